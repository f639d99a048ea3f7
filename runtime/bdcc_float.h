/* SPDX-License-Identifier: 0BSD
 * Layers that are kept in float: what bdcc_float_layers.h needs for every instruction set, and dense layers. Every
 * output has one accumulator and takes its products in ascending order, rounded one by one, so that the result does not depend
 * on the CPU; all parallelism is over outputs. */
#ifndef BDCC_FLOAT_H
#define BDCC_FLOAT_H

#include "bdcc_numeric.h"

typedef struct {
    int32_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
        dilation_h, dilation_w;
    int32_t groups;
} bdcc_conv_t;

/* Values of a vector, and what a tile of products has at most: pixels, vectors of channels, products at a time. In
 * 32-bit mode ARM's vectors take subnormal numbers for 0, so that floats go one by one. */
#if defined(__arm__)
#define BDCC_FLOAT_LANES(isa) 1
#else
#define BDCC_FLOAT_LANES(isa) ((isa) == BDCC_ISA_AVX512 ? 16 : (isa) == BDCC_ISA_AVX2 || (isa) == BDCC_ISA_AVXVNNI ? 8 : 4)
#endif
enum { BDCC_TILE_VECTORS = 4, BDCC_TILE_K = 128, BDCC_FILTER_BLOCK = 64 };

/* Pixels of a tile, for 32 registers or for 16. Six on ARM would be as many as fit, but not for gcc. */
#if defined(__arm__) || defined(__aarch64__)
#define BDCC_TILE_PIXELS(isa) 4
#else
#define BDCC_TILE_PIXELS(isa) ((isa) == BDCC_ISA_AVX512 ? 6 : 2)
#endif

/* In front of each loop over a tile, whose sums are registers only if no loop is left. */
#if defined(__clang__)
#define BDCC_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define BDCC_UNROLL _Pragma("GCC unroll 8")
#endif

/* y[0 .. n-1] += x[0] * w[0][..] + ... + x[3] * w[3][..], in this order; w rows lie w_step apart. */
BDCC_INLINE void bdcc_accumulate_1x4(const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT w, size_t w_step,
                                     int32_t n, float *BDCC_RESTRICT y) {
    const float *w1 = w + w_step, *w2 = w1 + w_step, *w3 = w2 + w_step;
    const float x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    BDCC_INDEPENDENT
    for (int32_t c = 0; c < n; ++c) y[c] = (((y[c] + x0 * w[c]) + x1 * w1[c]) + x2 * w2[c]) + x3 * w3[c];
}

/* y[p][c] += sum over k of x[p][k] * w[k][c]: `pixels` rows x_step and y_step apart, k and c contiguous. In memory: for
 * dense layers, which read each weight once, and for the channels that fill no vector. */
BDCC_INLINE void bdcc_accumulate(const float *BDCC_RESTRICT x, size_t x_step, int32_t pixels,
                                 const float *BDCC_RESTRICT w, int32_t k, size_t w_step, int32_t n,
                                 float *BDCC_RESTRICT y, size_t y_step) {
    int32_t i = 0;
    for (; i + 4 <= k; i += 4, x += 4, w += 4 * w_step) {
        for (int32_t p = 0; p < pixels; ++p)
            bdcc_accumulate_1x4(x + (size_t)p * x_step, w, w_step, n, y + (size_t)p * y_step);
    }
    for (; i < k; ++i, ++x, w += w_step) {
        for (int32_t p = 0; p < pixels; ++p) {
            const float v = x[(size_t)p * x_step];
            float *row = y + (size_t)p * y_step;
            BDCC_INDEPENDENT
            for (int32_t c = 0; c < n; ++c) row[c] = row[c] + v * w[c];
        }
    }
}

/* y = y + bias, Relu, canonical NaN. */
BDCC_INLINE void bdcc_finish(float *BDCC_RESTRICT y, const float *BDCC_RESTRICT bias, int32_t n, int relu) {
    BDCC_INDEPENDENT
    for (int32_t c = 0; c < n; ++c) {
        const float v = y[c] + bias[c];
        y[c] = bdcc_canonical(relu ? bdcc_relu1(v) : v);
    }
}

/* x float32 [K], w float32 [K][N], read once and in order. */
BDCC_INLINE void bdcc_dense_float(const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT w,
                                  const float *BDCC_RESTRICT bias, int32_t k, int32_t n, int relu,
                                  float *BDCC_RESTRICT y) {
    for (int32_t c = 0; c < n; ++c) y[c] = 0.0f;
    bdcc_accumulate(x, 0, 1, w, k, (size_t)n, n, y, 0);
    bdcc_finish(y, bias, n, relu);
}

#endif
