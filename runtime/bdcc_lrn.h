/* SPDX-License-Identifier: 0BSD
 * Local response normalisation across channels, by square roots: y = x / (bias + alpha/size * sum of
 * squares)^(quarters/4). */
#ifndef BDCC_LRN_H
#define BDCC_LRN_H

#include "bdcc_numeric.h"

/* y = x / t^(quarters/4), t in y; the power is the product, left to right, of t's, its square root, its fourth root. */
BDCC_INLINE void bdcc_lrn_divide(const float *BDCC_RESTRICT x, int32_t n, int32_t quarters, float *BDCC_RESTRICT y) {
    float root[BDCC_BLOCK], fourth[BDCC_BLOCK], power[BDCC_BLOCK];
    for (int32_t start = 0; start < n; start += BDCC_BLOCK) {
        const int32_t count = n - start < BDCC_BLOCK ? n - start : BDCC_BLOCK;
        float *t = y + start;
        for (int32_t i = 0; i < count; ++i) power[i] = 1.0f; /* 1 * t is t */
        for (int32_t factor = 0; factor < quarters / 4; ++factor) {
            for (int32_t i = 0; i < count; ++i) power[i] = power[i] * t[i];
        }
        if (quarters & 3) bdcc_sqrt(t, count, root);
        if (quarters & 2) {
            for (int32_t i = 0; i < count; ++i) power[i] = power[i] * root[i];
        }
        if (quarters & 1) {
            bdcc_sqrt(root, count, fourth);
            for (int32_t i = 0; i < count; ++i) power[i] = power[i] * fourth[i];
        }
        BDCC_INDEPENDENT
        for (int32_t i = 0; i < count; ++i) t[i] = bdcc_canonical(x[start + i] / power[i]);
    }
}

/* x, y float32 [pixels][channels], not the same; beta_quarters 1 .. 16. The sums of squares are built up in y, one
 * neighbour at a time for all channels: ascending for each of them. */
BDCC_INLINE void bdcc_lrn(const float *BDCC_RESTRICT x, int32_t pixels, int32_t channels, int32_t size,
                          float alpha_over_size, float bias, int32_t beta_quarters, float *BDCC_RESTRICT y) {
    for (int32_t p = 0; p < pixels; ++p, x += channels, y += channels) {
        for (int32_t c = 0; c < channels; ++c) y[c] = 0.0f;
        for (int32_t shift = -((size - 1) / 2); shift <= size / 2; ++shift) {
            const int32_t first = shift < 0 ? -shift : 0, end = shift > 0 ? channels - shift : channels;
            BDCC_INDEPENDENT
            for (int32_t c = first; c < end; ++c) y[c] = y[c] + x[c + shift] * x[c + shift];
        }
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) y[c] = bias + alpha_over_size * y[c];
        bdcc_lrn_divide(x, channels, beta_quarters, y);
    }
}

#endif
