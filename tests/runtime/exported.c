/* SPDX-License-Identifier: 0BSD
 * The runtime's inline functions as a shared library for test_runtime.py, compiled for TARGET as a model's steps are.
 */
#include "bdcc_checksum.h"
#include "bdcc_image.h"
#include "bdcc_isa.h"
#include "bdcc_lrn.h"
#include "bdcc_pool.h"
#include "bdcc_quantize.h"
#include "bdcc_softmax.h"

#ifndef TARGET
#define TARGET
#endif

#define BDCC_TARGET TARGET
#define BDCC_NAME(x) x
#define BDCC_ISA_INDEX NEEDS
#include "bdcc_float_layers.h"

#define GEOMETRY(type) \
    type g;            \
    memcpy(&g, geometry, sizeof g)

#define POOL(name, number)                                                  \
    TARGET void name(const int32_t *geometry, const number *x, number *y);  \
    TARGET void name(const int32_t *geometry, const number *x, number *y) { \
        GEOMETRY(bdcc_pool_t);                                              \
        bdcc_##name(&g, x, y, g.channels);                                  \
    }
POOL(max_pool_codes, uint8_t)
POOL(average_pool, float)

TARGET void max_pool_float(const int32_t *geometry, const float *x, int finite, float *y);
TARGET void max_pool_float(const int32_t *geometry, const float *x, int finite, float *y) {
    GEOMETRY(bdcc_pool_t);
    bdcc_max_pool_float(&g, x, finite, y, g.channels);
}

TARGET void conv(const int32_t *geometry, const float *x, const float *w, const float *bias, int relu, float *y);
TARGET void conv(const int32_t *geometry, const float *x, const float *w, const float *bias, int relu, float *y) {
    GEOMETRY(bdcc_conv_t);
    bdcc_conv_float(&g, x, w, bias, relu, y, g.out_c);
}

TARGET void dense(const float *x, const float *w, const float *bias, int32_t k, int32_t n, int relu, float *y);
TARGET void dense(const float *x, const float *w, const float *bias, int32_t k, int32_t n, int relu, float *y) {
    bdcc_dense_float(x, w, bias, k, n, relu, y);
}

TARGET void global_average_pool(const float *x, int32_t pixels, int32_t channels, float *y);
TARGET void global_average_pool(const float *x, int32_t pixels, int32_t channels, float *y) {
    bdcc_global_average_pool(x, pixels, channels, y);
}

TARGET void relu(const float *x, size_t n, float *y);
TARGET void relu(const float *x, size_t n, float *y) { bdcc_relu(x, n, y); }

TARGET void lrn(const float *x, int32_t pixels, int32_t channels, int32_t size, const float *alpha_bias,
                int32_t quarters, float *scratch, float *y);
TARGET void lrn(const float *x, int32_t pixels, int32_t channels, int32_t size, const float *alpha_bias,
                int32_t quarters, float *scratch, float *y) {
    const bdcc_lrn_t g = { pixels, channels, size, alpha_bias[0], alpha_bias[1], quarters };
    bdcc_lrn_float(&g, x, scratch, y);
}

TARGET void lrn_codes(const float *x, int32_t pixels, int32_t channels, int32_t size, const float *alpha_bias,
                      int32_t quarters, float *scratch, const float *reciprocal, int32_t zero_point, int32_t top,
                      uint8_t *codes);
TARGET void lrn_codes(const float *x, int32_t pixels, int32_t channels, int32_t size, const float *alpha_bias,
                      int32_t quarters, float *scratch, const float *reciprocal, int32_t zero_point, int32_t top,
                      uint8_t *codes) {
    const bdcc_lrn_t g = { pixels, channels, size, alpha_bias[0], alpha_bias[1], quarters };
    const bdcc_quant_t q = { *reciprocal, zero_point, top };
    bdcc_lrn_codes(&g, x, scratch, q, codes);
}

TARGET void softmax(const float *x, int32_t pixels, int32_t channels, float *y);
TARGET void softmax(const float *x, int32_t pixels, int32_t channels, float *y) {
    bdcc_softmax(x, pixels, channels, y);
}

TARGET void exponential(const float *x, size_t n, float *y);
TARGET void exponential(const float *x, size_t n, float *y) {
    for (size_t i = 0; i < n; ++i) y[i] = bdcc_exp(x[i]);
}

TARGET void quantize(const float *x, size_t n, const float *reciprocal, int32_t zero_point, int32_t top,
                     uint8_t *codes);
TARGET void quantize(const float *x, size_t n, const float *reciprocal, int32_t zero_point, int32_t top,
                     uint8_t *codes) {
    const bdcc_quant_t q = { *reciprocal, zero_point, top };
    bdcc_quantize(x, n, q, codes);
}

/* found: delta, reciprocal, zero point. */
TARGET void dynamic_range(const float *x, size_t n, int32_t bits, float *found);
TARGET void dynamic_range(const float *x, size_t n, int32_t bits, float *found) {
    const bdcc_quant_t q = bdcc_dynamic_range(x, n, bits, &found[0]);
    found[1] = q.reciprocal;
    found[2] = (float)q.zero_point;
}

TARGET void dynamic_constants(const float *s, const float *bias, const float *wsum, int32_t n, const float *delta,
                              int32_t zero_point, float *scale_out, float *bias_out);
TARGET void dynamic_constants(const float *s, const float *bias, const float *wsum, int32_t n, const float *delta,
                              int32_t zero_point, float *scale_out, float *bias_out) {
    bdcc_dynamic_constants(s, bias, wsum, n, *delta, zero_point, scale_out, bias_out);
}

TARGET void epilogue_float(const int32_t *y, int32_t pixels, int32_t channels, const float *scale, const float *bias,
                           int relu, float *out);
TARGET void epilogue_float(const int32_t *y, int32_t pixels, int32_t channels, const float *scale, const float *bias,
                           int relu, float *out) {
    bdcc_epilogue_float(y, pixels, channels, channels, scale, bias, relu, out, channels);
}

TARGET void epilogue_codes(const int32_t *y, int32_t pixels, int32_t channels, const float *scale, const float *bias,
                           int relu, const float *reciprocal, int32_t zero_point, int32_t top, uint8_t *out);
TARGET void epilogue_codes(const int32_t *y, int32_t pixels, int32_t channels, const float *scale, const float *bias,
                           int relu, const float *reciprocal, int32_t zero_point, int32_t top, uint8_t *out) {
    const bdcc_quant_t q = { *reciprocal, zero_point, top };
    bdcc_epilogue_codes(y, pixels, channels, channels, scale, bias, relu, q, out, channels);
}

TARGET void input_u8(const uint8_t *pixels, size_t row_bytes, int32_t c, int32_t h, int32_t w, const float *table,
                     const uint8_t *order, float *nhwc);
TARGET void input_u8(const uint8_t *pixels, size_t row_bytes, int32_t c, int32_t h, int32_t w, const float *table,
                     const uint8_t *order, float *nhwc) {
    bdcc_input_u8(pixels, row_bytes, c, h, w, table, order, nhwc);
}

TARGET void input_u8_codes(const uint8_t *pixels, size_t row_bytes, int32_t c, int32_t h, int32_t w,
                           const uint8_t *table, const uint8_t *order, uint8_t *nhwc);
TARGET void input_u8_codes(const uint8_t *pixels, size_t row_bytes, int32_t c, int32_t h, int32_t w,
                           const uint8_t *table, const uint8_t *order, uint8_t *nhwc) {
    bdcc_input_u8_codes(pixels, row_bytes, c, h, w, table, order, nhwc);
}

TARGET void input_codes(const float *nchw, int32_t c, int32_t h, int32_t w, const float *reciprocal,
                        int32_t zero_point, int32_t top, uint8_t *nhwc);
TARGET void input_codes(const float *nchw, int32_t c, int32_t h, int32_t w, const float *reciprocal,
                        int32_t zero_point, int32_t top, uint8_t *nhwc) {
    const bdcc_quant_t q = { *reciprocal, zero_point, top };
    bdcc_input_codes(nchw, c, h, w, q, nhwc);
}

/* shorter: the crop's, or 0 to stretch. */
int64_t resize_scratch(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h, int32_t shorter);
int resize(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h, int32_t shorter,
           const uint8_t *pixels, size_t row_bytes, uint8_t *out, void *scratch, size_t scratch_bytes);
static bdcc_resize_t geometry_of(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h,
                                 int32_t shorter) {
    return shorter ? bdcc_resize_crop(in_w, in_h, channels, out_w, out_h, shorter)
                   : bdcc_resize_stretch(in_w, in_h, channels, out_w, out_h);
}
int64_t resize_scratch(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h, int32_t shorter) {
    const bdcc_resize_t r = geometry_of(in_w, in_h, channels, out_w, out_h, shorter);
    return (int64_t)bdcc_resize_scratch_bytes(&r);
}
int resize(int32_t in_w, int32_t in_h, int32_t channels, int32_t out_w, int32_t out_h, int32_t shorter,
           const uint8_t *pixels, size_t row_bytes, uint8_t *out, void *scratch, size_t scratch_bytes) {
    const bdcc_resize_t r = geometry_of(in_w, in_h, channels, out_w, out_h, shorter);
    return bdcc_resize(&r, pixels, row_bytes, out, scratch, scratch_bytes);
}

void checksum(const uint8_t *data, size_t bytes, uint64_t *out);
void checksum(const uint8_t *data, size_t bytes, uint64_t *out) { *out = bdcc_checksum(data, bytes); }

int isa_usable(void);
int isa_usable(void) { return bdcc_isa_usable(NEEDS); }
