/* SPDX-License-Identifier: 0BSD
 * Convolution and dense layers that are kept in float. Every output has one accumulator and takes its products in
 * ascending order, rounded one by one, so that the result does not depend on the CPU; all parallelism is over outputs.
 */
#ifndef BDCC_FLOAT_H
#define BDCC_FLOAT_H

#include "bdcc_numeric.h"

typedef struct {
    int32_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
        dilation_h, dilation_w;
    int32_t groups;
} bdcc_conv_t;

/* y[0 .. n-1] += x[0] * w[0][..] + ... + x[3] * w[3][..], in this order; w rows lie n apart. */
BDCC_INLINE void bdcc_accumulate_1x4(const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT w, int32_t n,
                                     float *BDCC_RESTRICT y) {
    const float *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
    const float x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    BDCC_INDEPENDENT
    for (int32_t c = 0; c < n; ++c) y[c] = (((y[c] + x0 * w[c]) + x1 * w1[c]) + x2 * w2[c]) + x3 * w3[c];
}

/* The same for four pixels at once: each weight that was loaded serves all of them. */
BDCC_INLINE void bdcc_accumulate_4x4(const float *BDCC_RESTRICT x, size_t x_step, const float *BDCC_RESTRICT w,
                                     int32_t n, float *BDCC_RESTRICT y, size_t y_step) {
    const float *a = x, *b = a + x_step, *c = b + x_step, *d = c + x_step;
    const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
    const float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    const float *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
    float *ya = y, *yb = ya + y_step, *yc = yb + y_step, *yd = yc + y_step;
    BDCC_INDEPENDENT
    for (int32_t i = 0; i < n; ++i) {
        const float v0 = w[i], v1 = w1[i], v2 = w2[i], v3 = w3[i];
        ya[i] = (((ya[i] + a0 * v0) + a1 * v1) + a2 * v2) + a3 * v3;
        yb[i] = (((yb[i] + b0 * v0) + b1 * v1) + b2 * v2) + b3 * v3;
        yc[i] = (((yc[i] + c0 * v0) + c1 * v1) + c2 * v2) + c3 * v3;
        yd[i] = (((yd[i] + d0 * v0) + d1 * v1) + d2 * v2) + d3 * v3;
    }
}

/* y[p][c] += sum over k of x[p][k] * w[k][c]: `pixels` rows x_step and y_step apart, k and c contiguous. Four weight
 * rows stay in the nearest cache while all pixels use them. */
BDCC_INLINE void bdcc_accumulate(const float *BDCC_RESTRICT x, size_t x_step, int32_t pixels,
                                 const float *BDCC_RESTRICT w, int32_t k, int32_t n, float *BDCC_RESTRICT y,
                                 size_t y_step) {
    int32_t i = 0;
    for (; i + 4 <= k; i += 4, x += 4, w += 4 * (size_t)n) {
        int32_t p = 0;
        for (; p + 4 <= pixels; p += 4)
            bdcc_accumulate_4x4(x + (size_t)p * x_step, x_step, w, n, y + (size_t)p * y_step, y_step);
        for (; p < pixels; ++p) bdcc_accumulate_1x4(x + (size_t)p * x_step, w, n, y + (size_t)p * y_step);
    }
    for (; i < k; ++i, ++x, w += n) {
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
    bdcc_accumulate(x, 0, 1, w, k, n, y, 0);
    bdcc_finish(y, bias, n, relu);
}

/* One row of outputs of one group takes the products of one row of weights. Without dilation and groups a window's row
 * is contiguous in x, hence one run of kernel_w * in_c products; otherwise kernel_w runs. Pixels whose run is whole go
 * together, those at the left and right border one by one with the part that lies inside. */
BDCC_INLINE void bdcc_conv_row(const bdcc_conv_t *g, const float *BDCC_RESTRICT x_row, const float *BDCC_RESTRICT w,
                               int32_t channels, int32_t filters, float *BDCC_RESTRICT y, size_t y_step) {
    const int whole_row = g->dilation_w == 1 && g->groups == 1;
    const int32_t taps = whole_row ? g->kernel_w : 1;
    const size_t in_c = (size_t)g->in_c, x_step = (size_t)g->stride_w * in_c;
    const size_t tap_weights = (size_t)channels * (size_t)filters;
    for (int32_t kw = 0; kw < g->kernel_w; kw += taps, w += (size_t)taps * tap_weights) {
        const int32_t shift = kw * g->dilation_w - g->pad_left; /* input column of the first tap of output 0 */
        for (int32_t ox = 0; ox < g->out_w;) {
            const int32_t start = ox * g->stride_w + shift;
            const bdcc_span_t inside = bdcc_taps_inside(start, g->in_w, taps, 1);
            int32_t pixels = 1;
            if (inside.end - inside.first == taps) {
                pixels += (g->in_w - taps - start) / g->stride_w;
                if (pixels > g->out_w - ox) pixels = g->out_w - ox;
            }
            if (inside.first < inside.end) {
                bdcc_accumulate(x_row + (size_t)(start + inside.first) * in_c, x_step, pixels,
                                w + (size_t)inside.first * tap_weights, (inside.end - inside.first) * channels, filters,
                                y + (size_t)ox * y_step, y_step);
            }
            ox += pixels;
        }
    }
}

/* x float32 [H][W][CI], w float32 [group][KH][KW][CI/groups][CO/groups], bias float32 [CO], y float32 [OH][OW][pitch]:
 * the first CO values of each pixel are written. */
BDCC_INLINE void bdcc_conv_float(const bdcc_conv_t *g, const float *BDCC_RESTRICT x, const float *BDCC_RESTRICT w,
                                 const float *BDCC_RESTRICT bias, int relu, float *BDCC_RESTRICT y, int32_t pitch) {
    const int32_t channels = g->in_c / g->groups, filters = g->out_c / g->groups;
    const size_t in_row = (size_t)g->in_w * (size_t)g->in_c, y_step = (size_t)pitch;
    const size_t kernel_row = (size_t)g->kernel_w * (size_t)channels * (size_t)filters;
    for (int32_t oy = 0; oy < g->out_h; ++oy, y += (size_t)g->out_w * y_step) {
        const int32_t top = oy * g->stride_h - g->pad_top;
        const bdcc_span_t rows = bdcc_taps_inside(top, g->in_h, g->kernel_h, g->dilation_h);
        for (int32_t ox = 0; ox < g->out_w; ++ox) {
            for (int32_t c = 0; c < g->out_c; ++c) y[(size_t)ox * y_step + (size_t)c] = 0.0f;
        }
        for (int32_t group = 0; group < g->groups; ++group) {
            for (int32_t kh = rows.first; kh < rows.end; ++kh) {
                const float *x_row = x + (size_t)(top + kh * g->dilation_h) * in_row + (size_t)group * (size_t)channels;
                const float *w_row = w + ((size_t)group * (size_t)g->kernel_h + (size_t)kh) * kernel_row;
                bdcc_conv_row(g, x_row, w_row, channels, filters, y + (size_t)group * (size_t)filters, y_step);
            }
        }
        for (int32_t ox = 0; ox < g->out_w; ++ox) bdcc_finish(y + (size_t)ox * y_step, bias, g->out_c, relu);
    }
}

#endif
