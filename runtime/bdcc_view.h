/* SPDX-License-Identifier: 0BSD
 * A decomposed layer as the byte kernels see it: output pixels that read runs of codes in a padded map, one per kernel
 * row (or one run in all, where the codes of each pixel were gathered). */
#ifndef BDCC_VIEW_H
#define BDCC_VIEW_H

#include "bdcc_pack.h"

/* Kernel row r of output pixel (oy, ox) of one group is the run at
 *     x + oy * line_stride + ox * pixel_stride + r * row_stride. */
typedef struct {
    int32_t pixels, out_w;                           /* output pixels, and how many of them make a row */
    int32_t blocks;                                  /* filter blocks of 8 */
    int32_t rows, words;                             /* runs, 64-bit words of a run in the weights */
    int32_t taps, tap_bytes;                         /* a run: taps of so many codes, a multiple of 8 */
    ptrdiff_t pixel_stride, row_stride, line_stride; /* bytes */
    int32_t cells; /* taps that are laid out at a time */
    int32_t flush; /* products that a pair of int16 sums holds; 0: not even two of them side by side */
    int32_t offset, flush_signed; /* what makes the codes signed bytes: 0 or 128; flush of codes less that, 1 or more */
} bdcc_view_t;

/* The first code that an output pixel sees. */
BDCC_INLINE const uint8_t *bdcc_view_pixel(const bdcc_view_t *g, const uint8_t *x, int32_t pixel) {
    return x + (ptrdiff_t)(pixel / g->out_w) * g->line_stride + (ptrdiff_t)(pixel % g->out_w) * g->pixel_stride;
}

/* The part'th of `parts` about equal pieces of 0 .. count - 1. */
BDCC_INLINE bdcc_span_t bdcc_share(int32_t count, int32_t part, int32_t parts) {
    const int32_t whole = count / parts, rest = count % parts; /* no product that takes 64 bits to divide */
    bdcc_span_t span;
    span.first = whole * part + rest * part / parts;
    span.end = whole * (part + 1) + rest * (part + 1) / parts;
    return span;
}

/* Bytes of one padded input row: a group's channels are rounded up to 8. */
BDCC_INLINE ptrdiff_t bdcc_padded_row_bytes(const bdcc_window_t *w) {
    return (ptrdiff_t)(w->pad_left + w->in_w + w->pad_right) * ((w->channels + 7) / 8 * 8);
}

/* One group's codes -> [pad_top + in_h + pad_bottom][pad_left + in_w + pad_right][channels rounded up to 8], padding of
 * code `zero`. Rows `rows` of it only. */
BDCC_INLINE void bdcc_pad_rows(const bdcc_window_t *w, const uint8_t *BDCC_RESTRICT codes, bdcc_span_t rows,
                               uint8_t *BDCC_RESTRICT padded) {
    const ptrdiff_t row = bdcc_padded_row_bytes(w);
    const size_t pixel = (size_t)((w->channels + 7) / 8 * 8), channels = (size_t)w->channels;
    for (int32_t y = rows.first; y < rows.end; y++) {
        uint8_t *to = padded + y * row;
        if (y < w->pad_top || y >= w->pad_top + w->in_h) {
            memset(to, w->zero, (size_t)row);
            continue;
        }
        const uint8_t *from = codes + (ptrdiff_t)(y - w->pad_top) * w->in_w * w->in_c + w->first_channel;
        memset(to, w->zero, (size_t)w->pad_left * pixel);
        to += (size_t)w->pad_left * pixel;
        if (pixel == (size_t)w->in_c) {
            memcpy(to, from, (size_t)w->in_w * pixel);
            to += (size_t)w->in_w * pixel;
        } else {
            for (int32_t x = 0; x < w->in_w; x++, from += w->in_c, to += pixel) {
                bdcc_copy_short(to, from, channels);
                memset(to + channels, 0, pixel - channels);
            }
        }
        memset(to, w->zero, (size_t)w->pad_right * pixel);
    }
}

/* The codes of output rows first_row + `rows`, gathered: [row][out_w][run_bytes], each pixel's kernel_h * kernel_w *
 * channels codes and zeros up to run_bytes. */
BDCC_INLINE void bdcc_gather_codes(const bdcc_window_t *w, int32_t out_w, int32_t run_bytes,
                                   const uint8_t *BDCC_RESTRICT codes, int32_t first_row, bdcc_span_t rows,
                                   uint8_t *BDCC_RESTRICT out) {
    const size_t run = (size_t)run_bytes, taps = (size_t)w->channels * (size_t)w->kernel_w;
    const size_t filled = taps * (size_t)w->kernel_h;
    for (int32_t y = rows.first; y < rows.end; y++) {
        uint8_t *line = out + (size_t)y * (size_t)out_w * run;
        for (int32_t i = 0; i < w->kernel_h; i++) {
            for (int32_t x = 0; x < out_w; x++) {
                bdcc_gather_run(w, first_row + y, i, x, codes, line + (size_t)x * run + (size_t)i * taps);
            }
        }
        for (int32_t x = 0; x < out_w; x++) memset(line + (size_t)x * run + filled, 0, run - filled);
    }
}

#endif
