/* SPDX-License-Identifier: 0BSD
 * Pools over feature maps [H][W][C]. Every loop runs over the channels of one output pixel, so any window vectorises.
 * `pitch`: values of y from one output pixel to the next, at least the channels. */
#ifndef BDCC_POOL_H
#define BDCC_POOL_H

#include "bdcc_numeric.h"

typedef struct {
    int32_t in_h, in_w, channels, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h,
        dilation_w;
    int32_t pad_bottom, pad_right, count_include_pad; /* the average pool's divisor */
} bdcc_pool_t;

BDCC_INLINE bdcc_span_t bdcc_pool_rows(const bdcc_pool_t *g, int32_t oy) {
    return bdcc_taps_inside(oy * g->stride_h - g->pad_top, g->in_h, g->kernel_h, g->dilation_h);
}

BDCC_INLINE bdcc_span_t bdcc_pool_columns(const bdcc_pool_t *g, int32_t ox) {
    return bdcc_taps_inside(ox * g->stride_w - g->pad_left, g->in_w, g->kernel_w, g->dilation_w);
}

/* Index of the first channel that tap (kh, kw) of output (oy, ox) sees. */
BDCC_INLINE size_t bdcc_pool_source(const bdcc_pool_t *g, int32_t oy, int32_t ox, int32_t kh, int32_t kw) {
    const int32_t iy = oy * g->stride_h - g->pad_top + kh * g->dilation_h;
    const int32_t ix = ox * g->stride_w - g->pad_left + kw * g->dilation_w;
    return ((size_t)iy * (size_t)g->in_w + (size_t)ix) * (size_t)g->channels;
}

/* y[c] = OP(y[c], v[c]) for each tap v of one kernel row, ascending; three at a time, so that y is seldom touched. */
#define BDCC_POOL_TAPS(number, OP)                                                              \
    do {                                                                                        \
        const size_t tap = (size_t)g->dilation_w * (size_t)channels;                            \
        int32_t taps = columns.end - columns.first;                                             \
        const number *v = taps > 0 ? x + bdcc_pool_source(g, oy, ox, kh, columns.first) : x;    \
        for (; taps >= 3; taps -= 3, v += 3 * tap) {                                            \
            const number *v1 = v + tap, *v2 = v1 + tap;                                         \
            BDCC_INDEPENDENT                                                                    \
            for (int32_t c = 0; c < channels; ++c) y[c] = OP(OP(OP(y[c], v[c]), v1[c]), v2[c]); \
        }                                                                                       \
        for (; taps > 0; --taps, v += tap) {                                                    \
            BDCC_INDEPENDENT                                                                    \
            for (int32_t c = 0; c < channels; ++c) y[c] = OP(y[c], v[c]);                       \
        }                                                                                       \
    } while (0)

BDCC_INLINE uint8_t bdcc_larger_code(uint8_t m, uint8_t v) { return v > m ? v : m; }
BDCC_INLINE float bdcc_larger(float m, float v) { return v > m ? v : m; }
BDCC_INLINE float bdcc_larger_or_nan(float m, float v) { return v > m || v != v ? v : m; }
BDCC_INLINE float bdcc_plus(float sum, float v) { return sum + v; }

/* The quantizer is monotone, so the maximum of codes is the code of the maximum. A window of padding only gives 0. */
BDCC_INLINE void bdcc_max_pool_codes(const bdcc_pool_t *g, const uint8_t *BDCC_RESTRICT x, uint8_t *BDCC_RESTRICT y,
                                     int32_t pitch) {
    const int32_t channels = g->channels;
    for (int32_t oy = 0; oy < g->out_h; ++oy) {
        const bdcc_span_t rows = bdcc_pool_rows(g, oy);
        for (int32_t ox = 0; ox < g->out_w; ++ox, y += pitch) {
            const bdcc_span_t columns = bdcc_pool_columns(g, ox);
            memset(y, 0, (size_t)channels);
            for (int32_t kh = rows.first; kh < rows.end; ++kh) BDCC_POOL_TAPS(uint8_t, bdcc_larger_code);
        }
    }
}

/* -inf stands for "none yet": it loses to every number, and equals the first value where that is -inf itself. finite:
 * no value of x is a NaN. */
BDCC_INLINE void bdcc_max_pool_float(const bdcc_pool_t *g, const float *BDCC_RESTRICT x, int finite,
                                     float *BDCC_RESTRICT y, int32_t pitch) {
    const int32_t channels = g->channels;
    const float lowest = bdcc_float_from_bits(UINT32_C(0xFF800000));
    for (int32_t oy = 0; oy < g->out_h; ++oy) {
        const bdcc_span_t rows = bdcc_pool_rows(g, oy);
        for (int32_t ox = 0; ox < g->out_w; ++ox, y += pitch) {
            const bdcc_span_t columns = bdcc_pool_columns(g, ox);
            for (int32_t c = 0; c < channels; ++c) y[c] = lowest;
            for (int32_t kh = rows.first; kh < rows.end; ++kh) {
                if (finite) {
                    BDCC_POOL_TAPS(float, bdcc_larger);
                } else {
                    BDCC_POOL_TAPS(float, bdcc_larger_or_nan);
                }
            }
            if (finite) continue;
            for (int32_t c = 0; c < channels; ++c) y[c] = bdcc_canonical(y[c]);
        }
    }
}

/* Divisor: the positions inside the input, or with count_include_pad inside the padded input; those that ceil_mode adds
 * beyond never count. */
BDCC_INLINE void bdcc_average_pool(const bdcc_pool_t *g, const float *BDCC_RESTRICT x, float *BDCC_RESTRICT y,
                                   int32_t pitch) {
    const int32_t channels = g->channels;
    const int32_t padded_h = g->pad_top + g->in_h + g->pad_bottom, padded_w = g->pad_left + g->in_w + g->pad_right;
    for (int32_t oy = 0; oy < g->out_h; ++oy) {
        const bdcc_span_t rows = bdcc_pool_rows(g, oy);
        const bdcc_span_t counted_rows =
            g->count_include_pad ? bdcc_taps_inside(oy * g->stride_h, padded_h, g->kernel_h, g->dilation_h) : rows;
        for (int32_t ox = 0; ox < g->out_w; ++ox, y += pitch) {
            const bdcc_span_t columns = bdcc_pool_columns(g, ox);
            const bdcc_span_t counted_columns =
                g->count_include_pad ? bdcc_taps_inside(ox * g->stride_w, padded_w, g->kernel_w, g->dilation_w)
                                     : columns;
            const float count =
                (float)((counted_rows.end - counted_rows.first) * (counted_columns.end - counted_columns.first));
            for (int32_t c = 0; c < channels; ++c) y[c] = 0.0f;
            for (int32_t kh = rows.first; kh < rows.end; ++kh) BDCC_POOL_TAPS(float, bdcc_plus);
            for (int32_t c = 0; c < channels; ++c) y[c] = bdcc_canonical(y[c] / count);
        }
    }
}

/* x float32 [pixels][channels] -> y float32 [channels]. */
BDCC_INLINE void bdcc_global_average_pool(const float *BDCC_RESTRICT x, int32_t pixels, int32_t channels,
                                          float *BDCC_RESTRICT y) {
    for (int32_t c = 0; c < channels; ++c) y[c] = 0.0f;
    for (int32_t p = 0; p < pixels; ++p, x += channels) {
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) y[c] = y[c] + x[c];
    }
    for (int32_t c = 0; c < channels; ++c) y[c] = bdcc_canonical(y[c] / (float)pixels);
}

#endif
