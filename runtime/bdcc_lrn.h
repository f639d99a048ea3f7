/* SPDX-License-Identifier: 0BSD
 * Local response normalisation across channels, by square roots: y = x / (bias + alpha/size * sum of
 * squares)^(quarters/4). */
#ifndef BDCC_LRN_H
#define BDCC_LRN_H

#include "bdcc_quantize.h"

typedef struct {
    int32_t pixels, channels, size;
    float alpha_over_size, bias;
    int32_t beta_quarters; /* 1 .. 16 */
} bdcc_lrn_t;

/* Floats of scratch: a pixel, and the squares of some, each between zeros, which add nothing where a window leaves the
 * channels. Several pixels at a time, because a vector that lies across two that were just written waits for both. */
#define BDCC_LRN_PIXELS 8
#define BDCC_LRN_SCRATCH(channels, size) ((channels) + BDCC_LRN_PIXELS * ((channels) + (size)) + BDCC_BLOCK)

/* BDCC_BLOCK values in one go, so that the sums of one vector hide behind the roots of another. The power is the
 * product, left to right, of t's, its square root, its fourth root. */
BDCC_INLINE void bdcc_lrn_block(const bdcc_lrn_t *g, const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT squares,
                                float *BDCC_RESTRICT y) {
    BDCC_INDEPENDENT
    for (int32_t i = 0; i < BDCC_BLOCK; ++i) {
        float sum = 0.0f, power = 1.0f; /* 1 * t is t */
        for (int32_t shift = 0; shift < g->size; ++shift) sum = sum + squares[i + shift];
        const float t = g->bias + g->alpha_over_size * sum, root = bdcc_sqrt(t);
        for (int32_t factor = 0; factor < g->beta_quarters / 4; ++factor) power = power * t;
        if (g->beta_quarters & 2) power = power * root;
        if (g->beta_quarters & 1) power = power * bdcc_sqrt(root);
        y[i] = bdcc_canonical(x[i] / power);
    }
}

/* One pixel. */
BDCC_INLINE void bdcc_lrn_pixel(const bdcc_lrn_t *g, const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT squares,
                                float *BDCC_RESTRICT y) {
    const int32_t whole = g->channels / BDCC_BLOCK * BDCC_BLOCK;
    for (int32_t c = 0; c < whole; c += BDCC_BLOCK) bdcc_lrn_block(g, x + c, squares + c, y + c);
    if (whole < g->channels) {
        const size_t bytes = (size_t)(g->channels - whole) * sizeof *x;
        float rest[BDCC_BLOCK] = { 0 }, made[BDCC_BLOCK];
        memcpy(rest, x + whole, bytes);
        bdcc_lrn_block(g, rest, squares + whole, made);
        memcpy(y + whole, made, bytes);
    }
}

/* x float32 [pixels][channels]; y the same, not x; instead of it, codes if `coded`. */
BDCC_INLINE void bdcc_lrn(const bdcc_lrn_t *g, const float *BDCC_RESTRICT x, float *BDCC_RESTRICT scratch, int coded,
                          float *BDCC_RESTRICT y, bdcc_quant_t q, uint8_t *BDCC_RESTRICT codes) {
    const size_t channels = (size_t)g->channels, pitch = channels + (size_t)g->size;
    float *pixel = scratch, *squares = scratch + channels;
    for (int32_t i = 0; i < BDCC_LRN_SCRATCH(g->channels, g->size); ++i) scratch[i] = 0.0f;
    for (size_t first = 0; first < (size_t)g->pixels; first += BDCC_LRN_PIXELS) {
        const size_t left = (size_t)g->pixels - first, pixels = left < BDCC_LRN_PIXELS ? left : BDCC_LRN_PIXELS;
        for (size_t p = 0; p < pixels; ++p) {
            const float *from = x + (first + p) * channels;
            float *to = squares + p * pitch + (g->size - 1) / 2;
            BDCC_INDEPENDENT
            for (size_t c = 0; c < channels; ++c) to[c] = from[c] * from[c];
        }
        for (size_t p = 0; p < pixels; ++p) {
            const size_t at = (first + p) * channels;
            bdcc_lrn_pixel(g, x + at, squares + p * pitch, coded ? pixel : y + at);
            if (coded) bdcc_quantize(pixel, channels, q, codes + at);
        }
    }
}

/* x, y float32 [pixels][channels], not the same. */
BDCC_INLINE void bdcc_lrn_float(const bdcc_lrn_t *g, const float *BDCC_RESTRICT x, float *BDCC_RESTRICT scratch,
                                float *BDCC_RESTRICT y) {
    const bdcc_quant_t none = { 0.0f, 0, 0 };
    bdcc_lrn(g, x, scratch, 0, y, none, NULL);
}

/* The same, straight to codes. */
BDCC_INLINE void bdcc_lrn_codes(const bdcc_lrn_t *g, const float *BDCC_RESTRICT x, float *BDCC_RESTRICT scratch,
                                bdcc_quant_t q, uint8_t *BDCC_RESTRICT codes) {
    bdcc_lrn(g, x, scratch, 1, NULL, q, codes);
}

#endif
