/* SPDX-License-Identifier: 0BSD
 * The way in and out: layouts, pixels to floats, crop and resize, the best classes. */
#ifndef BDCC_IMAGE_H
#define BDCC_IMAGE_H

#include "bdcc_quantize.h"

/* float32 [C][H][W] -> [H][W][C]. */
BDCC_INLINE void bdcc_input_float(const float *BDCC_RESTRICT nchw, int32_t c, int32_t h, int32_t w,
                                  float *BDCC_RESTRICT nhwc) {
    const size_t channels = (size_t)c, pixels = (size_t)h * (size_t)w;
    for (size_t p = 0; p < pixels; ++p) {
        for (size_t i = 0; i < channels; ++i) nhwc[p * channels + i] = nchw[i * pixels + p];
    }
}

/* float32 [C][H][W] -> codes [H][W][C]. */
BDCC_INLINE void bdcc_input_codes(const float *BDCC_RESTRICT nchw, int32_t c, int32_t h, int32_t w, bdcc_quant_t q,
                                  uint8_t *BDCC_RESTRICT codes) {
    enum { RUN = BDCC_MICRO ? 32 : 256 };
    const size_t channels = (size_t)c, pixels = (size_t)h * (size_t)w;
    for (size_t start = 0; start < pixels; start += RUN) {
        const size_t run = pixels - start < RUN ? pixels - start : RUN;
        const float *x = nchw + start;
        uint8_t *to = codes + start * channels;
        if (channels == 3) { /* a picture: quantized in three rows, then joined, both by vectors */
            uint8_t a[RUN], b[RUN], d[RUN];
            bdcc_quantize(x, run, q, a);
            bdcc_quantize(x + pixels, run, q, b);
            bdcc_quantize(x + 2 * pixels, run, q, d);
            BDCC_INDEPENDENT
            for (size_t p = 0; p < run; ++p) {
                to[3 * p] = a[p];
                to[3 * p + 1] = b[p];
                to[3 * p + 2] = d[p];
            }
        } else {
            uint8_t row[RUN];
            for (size_t i = 0; i < channels; ++i) {
                bdcc_quantize(x + i * pixels, run, q, row);
                for (size_t p = 0; p < run; ++p) to[p * channels + i] = row[p];
            }
        }
    }
}

/* float32 [H][W][C] -> [C][H][W]. */
BDCC_INLINE void bdcc_output_float(const float *BDCC_RESTRICT nhwc, int32_t c, int32_t h, int32_t w,
                                   float *BDCC_RESTRICT nchw) {
    const size_t channels = (size_t)c, pixels = (size_t)h * (size_t)w;
    if (pixels == 1) {
        memcpy(nchw, nhwc, channels * sizeof *nchw);
        return;
    }
    for (size_t p = 0; p < pixels; ++p) {
        for (size_t i = 0; i < channels; ++i) nchw[i * pixels + p] = nhwc[p * channels + i];
    }
}

/* Pixels of c bytes in rows row_bytes apart -> float32 [H][W][C]: channel i is table[i][byte order[i] of the pixel]. */
BDCC_INLINE void bdcc_input_u8(const uint8_t *BDCC_RESTRICT pixels, size_t row_bytes, int32_t c, int32_t h, int32_t w,
                               const float *BDCC_RESTRICT table, const uint8_t *BDCC_RESTRICT order,
                               float *BDCC_RESTRICT nhwc) {
    for (int32_t y = 0; y < h; ++y) {
        const uint8_t *pixel = pixels + (size_t)y * row_bytes;
        for (int32_t x = 0; x < w; ++x, pixel += c, nhwc += c) {
            BDCC_SCALAR;
            for (int32_t i = 0; i < c; ++i) nhwc[i] = table[(size_t)i * 256 + pixel[order[i]]];
        }
    }
}

/* The same to codes, by a table of them. */
BDCC_INLINE void bdcc_input_u8_codes(const uint8_t *BDCC_RESTRICT pixels, size_t row_bytes, int32_t c, int32_t h,
                                     int32_t w, const uint8_t *BDCC_RESTRICT table, const uint8_t *BDCC_RESTRICT order,
                                     uint8_t *BDCC_RESTRICT codes) {
    for (int32_t y = 0; y < h; ++y) {
        const uint8_t *pixel = pixels + (size_t)y * row_bytes;
        for (int32_t x = 0; x < w; ++x, pixel += c, codes += c) {
            BDCC_SCALAR;
            for (int32_t i = 0; i < c; ++i) codes[i] = table[(size_t)i * 256 + pixel[order[i]]];
        }
    }
}

/* A picture of in_w x in_h, scaled to full_w x full_h, of which the window at (left, top) of out_w x out_h is kept. */
typedef struct {
    int32_t in_w, in_h, channels, full_w, full_h, left, top, out_w, out_h;
} bdcc_resize_t;

/* The whole picture, whatever its proportions. */
BDCC_INLINE bdcc_resize_t bdcc_resize_stretch(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w,
                                              int32_t out_h) {
    const bdcc_resize_t r = { in_w, in_h, channels, out_w, out_h, 0, 0, out_w, out_h };
    return r;
}

/* The shorter side scaled to `shorter`, then the centre. */
BDCC_INLINE bdcc_resize_t bdcc_resize_crop(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h,
                                           int32_t shorter) {
    bdcc_resize_t r = { in_w, in_h, channels, 0, 0, 0, 0, out_w, out_h };
    const int64_t least = in_w < in_h ? in_w : in_h;
    if (least < 1) return r;
    const int64_t wide = (int64_t)shorter * in_w / least, high = (int64_t)shorter * in_h / least;
    if (wide > INT32_MAX || high > INT32_MAX) return r;
    r.full_w = (int32_t)wide;
    r.full_h = (int32_t)high;
    r.left = (r.full_w - out_w) / 2;
    r.top = (r.full_h - out_h) / 2;
    return r;
}

#define BDCC_RESIZE_LIMIT (INT32_C(1) << 20) /* longest side, before and after */
#define BDCC_RESIZE_BITS 22                  /* of a weight's fraction: 8 for the pixel and 2 to spare make 32 */

/* Half the width of the triangle that weighs input pixels: it grows with the factor of a reduction, so that all of them
 * count. */
BDCC_INLINE double bdcc_resize_support(int32_t in, int32_t full) { return in > full ? (double)in / (double)full : 1.0; }

/* Most input pixels that one output pixel sees. */
BDCC_INLINE size_t bdcc_resize_taps(int32_t in, int32_t full) {
    const int32_t support = in > full ? (int32_t)(((int64_t)in + full - 1) / full) : 1;
    return 2 * (size_t)support + 1;
}

/* Bytes of scratch that bdcc_resize needs; 0 if the geometry is not one it can do. */
BDCC_INLINE size_t bdcc_resize_scratch_bytes(const bdcc_resize_t *r) {
    const int32_t least[] = { r->in_w, r->in_h, r->channels, r->full_w, r->full_h, r->out_w, r->out_h };
    for (size_t i = 0; i < sizeof least / sizeof least[0]; ++i) {
        if (least[i] < 1 || least[i] > BDCC_RESIZE_LIMIT) return 0;
    }
    if (r->channels > 4 || r->left < 0 || r->top < 0 || r->left > r->full_w - r->out_w || r->top > r->full_h - r->out_h)
        return 0;
    const uint64_t across = bdcc_resize_taps(r->in_w, r->full_w), down = bdcc_resize_taps(r->in_h, r->full_h);
    const uint64_t width = (uint64_t)r->out_w;
    const uint64_t bytes = 4 * (width * (across + 2) + down) + down * width * (uint64_t)r->channels;
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

/* The input pixels first .. first + count - 1 that make pixel i of `full`, and their weights; returns count. */
BDCC_INLINE int32_t bdcc_resize_weights(int32_t in, int32_t full, int32_t i, int32_t *first, uint32_t *weights) {
    const double step = (double)in / (double)full, support = bdcc_resize_support(in, full);
    const double centre = (i + 0.5) * step;
    int32_t start = (int32_t)(centre - support + 0.5), end = (int32_t)(centre + support + 0.5);
    double sum = 0.0;
    if (start < 0) start = 0;
    if (end > in) end = in;
    *first = start;
    for (int pass = 0; pass < 2; ++pass) { /* the sum, then each weight as a part of it */
        double total = 0.0;
        for (int32_t j = start; j < end; ++j) {
            const double distance = (j + 0.5 - centre) / support;
            const double weight = distance < 0.0 ? 1.0 + distance : 1.0 - distance;
            const double positive = weight > 0.0 ? weight : 0.0;
            total += positive;
            if (pass == 1) weights[j - start] = (uint32_t)(positive / sum * (double)(1 << BDCC_RESIZE_BITS) + 0.5);
        }
        sum = total;
    }
    return end - start;
}

BDCC_INLINE uint8_t bdcc_resize_round(uint32_t sum) {
    const uint32_t value = (sum + (UINT32_C(1) << (BDCC_RESIZE_BITS - 1))) >> BDCC_RESIZE_BITS;
    return (uint8_t)(value < 255 ? value : 255);
}

/* Rows of `channels`-byte pixels, row_bytes apart -> uint8 [out_h][out_w][channels]. Antialiased bilinear, first
 * across, then down, each pass rounded to bytes. Each input row is scaled once, into a ring of as many rows as one
 * output row can see. 0, or -1 if the geometry is impossible, rows overlap, or scratch is too small or not aligned to 4
 * bytes. */
BDCC_INLINE int bdcc_resize(const bdcc_resize_t *r, const uint8_t *BDCC_RESTRICT pixels, size_t row_bytes,
                            uint8_t *BDCC_RESTRICT out, void *BDCC_RESTRICT scratch, size_t scratch_bytes) {
    const size_t needed = bdcc_resize_scratch_bytes(r);
    if (needed == 0 || scratch_bytes < needed || ((uintptr_t)scratch & 3) != 0) return -1;
    if (row_bytes < (size_t)r->in_w * (size_t)r->channels) return -1;
    const size_t across = bdcc_resize_taps(r->in_w, r->full_w), down = bdcc_resize_taps(r->in_h, r->full_h);
    const size_t channels = (size_t)r->channels, width = (size_t)r->out_w, row = width * channels;
    uint32_t *weights = (uint32_t *)scratch, *weights_down = weights + width * across;
    int32_t *first = (int32_t *)(void *)(weights_down + down), *count = first + width;
    uint8_t *ring = (uint8_t *)(count + width);

    for (size_t x = 0; x < width; ++x) {
        count[x] = bdcc_resize_weights(r->in_w, r->full_w, r->left + (int32_t)x, &first[x], weights + x * across);
    }
    int32_t next = -1; /* first input row that has not been scaled */
    for (int32_t y = 0; y < r->out_h; ++y) {
        int32_t top;
        const int32_t rows = bdcc_resize_weights(r->in_h, r->full_h, r->top + y, &top, weights_down);
        if (next < top) next = top;
        for (; next < top + rows; ++next) {
            const uint8_t *source = pixels + (size_t)next * row_bytes;
            uint8_t *to = ring + (size_t)next % down * row;
            for (size_t x = 0; x < width; ++x) {
                const uint8_t *from = source + (size_t)first[x] * channels;
                const uint32_t *weight = weights + x * across;
                for (size_t c = 0; c < channels; ++c) {
                    uint32_t sum = 0;
                    for (size_t j = 0; j < (size_t)count[x]; ++j) sum += weight[j] * from[j * channels + c];
                    to[x * channels + c] = bdcc_resize_round(sum);
                }
            }
        }
        for (size_t i = 0; i < row; ++i) {
            uint32_t sum = 0;
            for (int32_t j = 0; j < rows; ++j) sum += weights_down[j] * ring[(size_t)(top + j) % down * row + i];
            out[(size_t)y * row + i] = bdcc_resize_round(sum);
        }
    }
    return 0;
}

/* Greater first, then the lower index; a NaN behind every number. */
BDCC_INLINE int bdcc_ranks_before(float a, int32_t index_a, float b, int32_t index_b) {
    const int nan_a = a != a, nan_b = b != b;
    if (nan_a != nan_b) return nan_b;
    if (!nan_a && a != b) return a > b;
    return index_a < index_b;
}

/* Indices of the k (at most n) best of v, best first. One pass per place: each takes the best of what ranks behind the
 * last. */
BDCC_INLINE void bdcc_top_k(const float *v, int32_t n, int32_t k, int32_t *index) {
    for (int32_t place = 0; place < k && place < n; ++place) {
        int32_t best = -1;
        for (int32_t i = 0; i < n; ++i) {
            if (place > 0 && !bdcc_ranks_before(v[index[place - 1]], index[place - 1], v[i], i)) continue;
            if (best < 0 || bdcc_ranks_before(v[i], i, v[best], best)) best = i;
        }
        index[place] = best;
    }
}

#endif
