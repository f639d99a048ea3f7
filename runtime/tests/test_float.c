/* SPDX-License-Identifier: 0BSD
 * bdcc_float.h against one product at a time, every one rounded, in ascending order. */
#include "bdcc_base.h"

#define BDCC_TARGET
#define BDCC_NAME(x) x
#define BDCC_ISA_INDEX BDCC_ISA_GENERIC
#include "bdcc_float_layers.h"

#include "check.h"

static void conv_ref(const bdcc_conv_t *g, const float *x, const float *w, const float *bias, int relu, float *y) {
    const int32_t channels = g->in_c / g->groups, filters = g->out_c / g->groups;
    for (int32_t oy = 0; oy < g->out_h; ++oy) {
        for (int32_t ox = 0; ox < g->out_w; ++ox) {
            for (int32_t o = 0; o < g->out_c; ++o) {
                const int32_t group = o / filters;
                float sum = 0.0f;
                for (int32_t kh = 0; kh < g->kernel_h; ++kh) {
                    for (int32_t kw = 0; kw < g->kernel_w; ++kw) {
                        const int32_t iy = oy * g->stride_h - g->pad_top + kh * g->dilation_h;
                        const int32_t ix = ox * g->stride_w - g->pad_left + kw * g->dilation_w;
                        if (iy < 0 || iy >= g->in_h || ix < 0 || ix >= g->in_w) continue;
                        for (int32_t c = 0; c < channels; ++c) {
                            const int32_t tap = (kh * g->kernel_w + kw) * channels + c;
                            const int32_t taps = g->kernel_h * g->kernel_w, filter = o % filters;
                            const int32_t in_block = filter % BDCC_FILTER_BLOCK, left = filters - filter + in_block;
                            const int32_t block = left < BDCC_FILTER_BLOCK ? left : BDCC_FILTER_BLOCK;
                            volatile float product = x[(iy * g->in_w + ix) * g->in_c + group * channels + c] *
                                                     w[(o - in_block) * taps * channels + tap * block + in_block];
                            sum = sum + product;
                        }
                    }
                }
                sum = sum + bias[o];
                *y++ = plain_canonical(relu && sum < 0.0f ? 0.0f : sum);
            }
        }
    }
}

static void check_conv(const bdcc_conv_t *g, float (*next)(void)) {
    const size_t inputs = (size_t)(g->in_h * g->in_w * g->in_c), outputs = (size_t)(g->out_h * g->out_w * g->out_c);
    const size_t weights = (size_t)(g->kernel_h * g->kernel_w * g->in_c / g->groups * g->out_c);
    float *x = floats(inputs, next), *w = floats(weights, random_float), *bias = floats((size_t)g->out_c, random_float);
    float *plain = room(outputs, sizeof(float));
    for (int32_t pitch = g->out_c; pitch < g->out_c + 9; pitch += 4) {
        for (int relu = 0; relu < 2; ++relu) {
            const size_t pixels = outputs / (size_t)g->out_c;
            const size_t n = (pixels - 1) * (size_t)pitch + (size_t)g->out_c;
            float *got = floats(n, hard_float), *want = room(n, sizeof(float));
            memcpy(want, got, n * sizeof(float));
            conv_ref(g, x, w, bias, relu, plain);
            lay(want, plain, pixels, (size_t)g->out_c * sizeof(float), (size_t)pitch * sizeof(float));
            bdcc_conv_float(g, x, w, bias, relu, got, pitch);
            check_floats("conv", got, want, n);
            free(got);
            free(want);
        }
    }
    free(x);
    free(w);
    free(bias);
    free(plain);
}

static void test_conv(void) {
    /* in h, w, c; out h, w, c; kernel; stride; pads at the beginning; dilation; groups */
    static const bdcc_conv_t geometries[] = {
        { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1 },
        { 13, 13, 7, 13, 13, 19, 3, 3, 1, 1, 1, 1, 1, 1, 1 },
        { 23, 27, 3, 4, 5, 16, 11, 11, 4, 4, 0, 0, 1, 1, 1 },
        { 9, 9, 4, 9, 9, 6, 5, 5, 1, 1, 2, 2, 1, 1, 2 },   /* groups */
        { 9, 11, 8, 5, 6, 8, 3, 3, 2, 2, 1, 1, 1, 1, 8 },  /* depthwise */
        { 8, 10, 5, 8, 6, 33, 3, 3, 1, 1, 2, 0, 2, 2, 1 }, /* dilation, padded above and below only */
        { 4, 3, 2, 4, 3, 9, 7, 7, 1, 1, 3, 3, 1, 1, 1 },   /* a kernel wider than the map */
        { 2, 2, 3, 5, 6, 5, 2, 1, 1, 1, 2, 2, 1, 1, 1 },   /* outputs that see only padding */
        { 5, 17, 2, 3, 15, 77, 3, 3, 1, 1, 0, 0, 1, 1, 1 },  /* whole tiles, and what is left */
        { 3, 17, 50, 3, 17, 64, 1, 3, 1, 1, 0, 1, 1, 1, 1 }, /* more products than a tile takes at a time */
        { 5, 1, 6, 3, 1, 8, 3, 1, 1, 1, 0, 0, 1, 1, 1 },
        { 3, 40, 1, 1, 13, 2, 3, 4, 1, 3, 0, 0, 1, 1, 1 },
        { 6, 6, 6, 6, 6, 6, 3, 3, 1, 1, 2, 2, 2, 2, 3 },
    };
    for (size_t i = 0; i < sizeof geometries / sizeof geometries[0]; ++i) {
        check_conv(&geometries[i], random_float);
        check_conv(&geometries[i], hard_float);
    }
}

static void test_dense(void) {
    for (int32_t k = 1; k < 12; ++k) {
        for (int32_t n = 1; n < 36; n += k % 3 + 1) {
            const bdcc_conv_t g = { 1, 1, k, 1, 1, n, 1, 1, 1, 1, 0, 0, 1, 1, 1 };
            float *x = floats((size_t)k, hard_float), *w = floats((size_t)(k * n), random_float),
                  *bias = floats((size_t)n, hard_float);
            float *got = floats((size_t)n, hard_float), *want = room((size_t)n, sizeof(float));
            conv_ref(&g, x, w, bias, n % 2, want);
            bdcc_dense_float(x, w, bias, k, n, n % 2, got);
            check_floats("dense", got, want, (size_t)n);
            free(x);
            free(w);
            free(bias);
            free(got);
            free(want);
        }
    }
}

int main(void) {
    test_conv();
    test_dense();
    return report("float");
}
