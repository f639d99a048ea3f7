/* SPDX-License-Identifier: 0BSD
 * Convolution layers that are kept in float, in the vectors of one instruction set: included once for each, with
 * BDCC_NAME(x) for x and its suffix, BDCC_TARGET for its attribute and BDCC_ISA_INDEX for its number. */
#include "bdcc_float.h"
#include "bdcc_isa.h"

/* y[p][0 .. vectors * LANES - 1] += sum over k of x[p][k] * w[k][..], all sums in registers meanwhile: `pixels` and
 * `vectors` are constants. */
#if defined(__GNUC__)
BDCC_TARGET BDCC_INLINE void BDCC_NAME(bdcc_tile)(const float *BDCC_RESTRICT x, size_t x_step, int32_t pixels,
                                                  const float *BDCC_RESTRICT w, int32_t k, size_t w_step,
                                                  int32_t vectors, float *BDCC_RESTRICT y, size_t y_step) {
    enum { LANES = BDCC_FLOAT_LANES(BDCC_ISA_INDEX) };
#if defined(__arm__)
    typedef float bdcc_vector_t;
#else
    typedef float bdcc_vector_t __attribute__((vector_size(LANES * sizeof(float))));
#endif
    bdcc_vector_t sums[BDCC_TILE_PIXELS(BDCC_ISA_INDEX)][BDCC_TILE_VECTORS], weights[BDCC_TILE_VECTORS];
    BDCC_UNROLL
    for (int32_t p = 0; p < pixels; ++p) {
        BDCC_UNROLL
        for (int32_t v = 0; v < vectors; ++v) memcpy(&sums[p][v], y + (size_t)p * y_step + v * LANES, sizeof sums[p][v]);
    }
    for (int32_t i = 0; i < k; ++i, w += w_step) {
        BDCC_UNROLL
        for (int32_t v = 0; v < vectors; ++v) memcpy(&weights[v], w + v * LANES, sizeof(bdcc_vector_t));
        BDCC_UNROLL
        for (int32_t p = 0; p < pixels; ++p) {
            const float value = x[(size_t)p * x_step + (size_t)i];
            BDCC_UNROLL
            for (int32_t v = 0; v < vectors; ++v) sums[p][v] = sums[p][v] + value * weights[v];
        }
    }
    BDCC_UNROLL
    for (int32_t p = 0; p < pixels; ++p) {
        BDCC_UNROLL
        for (int32_t v = 0; v < vectors; ++v) memcpy(y + (size_t)p * y_step + v * LANES, &sums[p][v], sizeof sums[p][v]);
    }
}

/* The same for any number of pixels, as many at a time as a tile takes, else two. The weights of so many k stay in the
 * nearest cache while all pixels use them. */
BDCC_TARGET BDCC_INLINE void BDCC_NAME(bdcc_tiles)(const float *BDCC_RESTRICT x, size_t x_step, int32_t pixels,
                                                   const float *BDCC_RESTRICT w, int32_t k, size_t w_step,
                                                   int32_t vectors, float *BDCC_RESTRICT y, size_t y_step) {
    const int32_t most = BDCC_TILE_PIXELS(BDCC_ISA_INDEX);
    for (int32_t i = 0; i < k; i += BDCC_TILE_K, x += BDCC_TILE_K, w += BDCC_TILE_K * w_step) {
        const int32_t run = k - i < BDCC_TILE_K ? k - i : BDCC_TILE_K;
        for (int32_t p = 0, step; p < pixels; p += step) {
            const float *from = x + (size_t)p * x_step;
            float *to = y + (size_t)p * y_step;
            step = p + most <= pixels ? most : p + 2 <= pixels ? 2 : 1;
            if (step == 1) {
                BDCC_NAME(bdcc_tile)(from, x_step, 1, w, run, w_step, vectors, to, y_step);
            } else if (step == most) {
                BDCC_NAME(bdcc_tile)(from, x_step, most, w, run, w_step, vectors, to, y_step);
            } else {
                BDCC_NAME(bdcc_tile)(from, x_step, 2, w, run, w_step, vectors, to, y_step);
            }
        }
    }
}
#endif

/* y[p][0 .. n-1] += sum over k of x[p][k] * w[k][..]: at most BDCC_TILE_VECTORS vectors of channels. */
BDCC_TARGET BDCC_UNUSED static void BDCC_NAME(bdcc_products)(const float *BDCC_RESTRICT x, size_t x_step,
                                                             int32_t pixels, const float *BDCC_RESTRICT w, int32_t k,
                                                             size_t w_step, int32_t n, float *BDCC_RESTRICT y,
                                                             size_t y_step) {
#if defined(__GNUC__)
    const int32_t lanes = BDCC_FLOAT_LANES(BDCC_ISA_INDEX);
    if (n == BDCC_TILE_VECTORS * lanes) {
        BDCC_NAME(bdcc_tiles)(x, x_step, pixels, w, k, w_step, BDCC_TILE_VECTORS, y, y_step);
        return;
    }
    for (; n >= lanes; n -= lanes, w += lanes, y += lanes)
        BDCC_NAME(bdcc_tiles)(x, x_step, pixels, w, k, w_step, 1, y, y_step);
#endif
    if (n > 0) bdcc_accumulate(x, x_step, pixels, w, k, w_step, n, y, y_step);
}

/* One row of outputs takes the products of one row of weights. Without dilation and groups a window's row is
 * contiguous in x, hence one run of kernel_w * in_c products; otherwise kernel_w runs. Pixels whose run is whole go together, those
 * at the left and right border one by one with the part that lies inside. */
BDCC_TARGET BDCC_INLINE void BDCC_NAME(bdcc_conv_row)(const bdcc_conv_t *g, const float *BDCC_RESTRICT x_row,
                                                      const float *BDCC_RESTRICT w, size_t w_step, int32_t n,
                                                      float *BDCC_RESTRICT y, size_t y_step) {
    const int32_t channels = g->in_c / g->groups;
    const int32_t taps = g->dilation_w == 1 && g->groups == 1 ? g->kernel_w : 1;
    const size_t in_c = (size_t)g->in_c, x_step = (size_t)g->stride_w * in_c;
    const size_t tap_weights = (size_t)channels * w_step;
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
                BDCC_NAME(bdcc_products)(x_row + (size_t)(start + inside.first) * in_c, x_step, pixels,
                                         w + (size_t)inside.first * tap_weights,
                                         (inside.end - inside.first) * channels, w_step, n,
                                         y + (size_t)ox * y_step, y_step);
            }
            ox += pixels;
        }
    }
}

/* x float32 [H][W][CI], bias float32 [CO], y float32 [OH][OW][pitch]: the first CO values of each pixel are written. w
 * float32 [group][block of at most BDCC_FILTER_BLOCK filters][KH][KW][CI/groups][filter of the block]: a block is one
 * piece of memory, and stays near while the whole map uses it. */
BDCC_TARGET BDCC_UNUSED static void BDCC_NAME(bdcc_conv_float)(const bdcc_conv_t *g, const float *BDCC_RESTRICT x,
                                                               const float *BDCC_RESTRICT w,
                                                               const float *BDCC_RESTRICT bias, int relu,
                                                               float *BDCC_RESTRICT y, int32_t pitch) {
    const int32_t channels = g->in_c / g->groups, filters = g->out_c / g->groups;
    const int32_t most = BDCC_TILE_VECTORS * BDCC_FLOAT_LANES(BDCC_ISA_INDEX);
    const size_t in_row = (size_t)g->in_w * (size_t)g->in_c, y_step = (size_t)pitch;
    const size_t row_products = (size_t)g->kernel_w * (size_t)channels, products = (size_t)g->kernel_h * row_products;
    for (int32_t first = 0, n; first < g->out_c; first += n, y += n, bias += n) {
        const int32_t filter = first % filters, in_block = filter % BDCC_FILTER_BLOCK;
        const int32_t left = filters - filter + in_block;
        const int32_t block = left < BDCC_FILTER_BLOCK ? left : BDCC_FILTER_BLOCK;
        const float *from = x + first / filters * channels;
        const float *weights = w + (size_t)(first - in_block) * products + in_block;
        n = block - in_block < most ? block - in_block : most;
        for (int32_t oy = 0; oy < g->out_h; ++oy) {
            const int32_t top = oy * g->stride_h - g->pad_top;
            const bdcc_span_t rows = bdcc_taps_inside(top, g->in_h, g->kernel_h, g->dilation_h);
            float *y_row = y + (size_t)oy * (size_t)g->out_w * y_step;
            for (int32_t ox = 0; ox < g->out_w; ++ox) memset(y_row + (size_t)ox * y_step, 0, (size_t)n * sizeof *y);
            for (int32_t kh = rows.first; kh < rows.end; ++kh) {
                BDCC_NAME(bdcc_conv_row)(g, from + (size_t)(top + kh * g->dilation_h) * in_row,
                                         weights + (size_t)kh * row_products * (size_t)block, (size_t)block, n, y_row,
                                         y_step);
            }
            for (int32_t ox = 0; ox < g->out_w; ++ox) bdcc_finish(y_row + (size_t)ox * y_step, bias, n, relu);
        }
    }
}
