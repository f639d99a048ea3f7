/* SPDX-License-Identifier: 0BSD
 * Between floats and codes: the quantizer, a picture's own range, and the epilogue of a decomposed layer. */
#ifndef BDCC_QUANTIZE_H
#define BDCC_QUANTIZE_H

#include "bdcc_numeric.h"

/* q = clamp(rint(x * reciprocal), -zero_point, top - zero_point) + zero_point; a NaN gives zero_point. */
typedef struct {
    float reciprocal;
    int32_t zero_point;
    int32_t top;
} bdcc_quant_t;

/* The quantizer with its bounds as floats, which the compiler must not know: see BDCC_OPAQUE. Without a zero point the
 * lower bound catches a NaN too. */
typedef struct {
    float reciprocal, low, high;
    int32_t zero_point;
} bdcc_clamp_t;

BDCC_INLINE bdcc_clamp_t bdcc_clamp(bdcc_quant_t q) {
    float low = (float)-q.zero_point, high = (float)(q.top - q.zero_point);
    BDCC_OPAQUE(low);
    BDCC_OPAQUE(high);
    const bdcc_clamp_t clamp = { q.reciprocal, low, high, q.zero_point };
    return clamp;
}

/* The bounds are integers, so clamping may come first; then rint's sum has the integer in its lowest bits. */
BDCC_INLINE uint8_t bdcc_code(float x, bdcc_clamp_t q) {
    float t = x * q.reciprocal;
    if (q.zero_point) t = t == t ? t : 0.0f;
    t = t > q.low ? t : q.low;
    t = t < q.high ? t : q.high;
    return (uint8_t)(bdcc_float_bits(t + 12582912.0f) + (uint32_t)q.zero_point);
}

BDCC_INLINE uint8_t bdcc_quantize1(float x, bdcc_quant_t q) { return bdcc_code(x, bdcc_clamp(q)); }

BDCC_INLINE void bdcc_quantize(const float *BDCC_RESTRICT x, size_t n, bdcc_quant_t q, uint8_t *BDCC_RESTRICT codes) {
    const bdcc_clamp_t clamp = bdcc_clamp(q);
    BDCC_INDEPENDENT
    for (size_t i = 0; i < n; ++i) codes[i] = bdcc_code(x[i], clamp);
}

/* `runs` runs of `run` values of x, one behind the other; their codes lie `pitch` apart. */
BDCC_INLINE void bdcc_quantize_runs(const float *BDCC_RESTRICT x, size_t runs, size_t run, bdcc_quant_t q,
                                    uint8_t *BDCC_RESTRICT codes, size_t pitch) {
    for (size_t i = 0; i < runs; ++i) bdcc_quantize(x + i * run, run, q, codes + i * pitch);
}

/* The quantizer of `bits` bits for the range of x itself, 0 included, NaN ignored; *delta is its step. */
BDCC_INLINE bdcc_quant_t bdcc_dynamic_range(const float *x, size_t n, int32_t bits, float *delta) {
    enum { LANES = BDCC_MICRO ? 4 : 64 }; /* the compiler may not reorder a minimum itself */
    float low[LANES], high[LANES];
    const size_t whole = n / LANES * LANES;
    for (int32_t lane = 0; lane < LANES; ++lane) low[lane] = high[lane] = 0.0f;
    for (size_t i = 0; i < whole; i += LANES) {
        BDCC_INDEPENDENT
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const float v = x[i + (size_t)lane];
            low[lane] = v < low[lane] ? v : low[lane];
            high[lane] = v > high[lane] ? v : high[lane];
        }
    }
    for (size_t i = whole; i < n; ++i) {
        low[0] = x[i] < low[0] ? x[i] : low[0];
        high[0] = x[i] > high[0] ? x[i] : high[0];
    }
    for (int32_t lane = 1; lane < LANES; ++lane) {
        low[0] = low[lane] < low[0] ? low[lane] : low[0];
        high[0] = high[lane] > high[0] ? high[lane] : high[0];
    }

    const int32_t top = (int32_t)((UINT32_C(1) << bits) - 1);
    const float levels = (float)top, smallest = 0x1p-100f, largest = 0x1p+100f;
    bdcc_quant_t q;
    q.top = top;
    *delta = high[0] / levels - low[0] / levels;
    if (!(*delta >= smallest)) {
        *delta = 1.0f;
        q.reciprocal = 1.0f;
        q.zero_point = 0;
        return q;
    }
    if (*delta > largest) *delta = largest;
    q.reciprocal = 1.0f / *delta;
    const float zero = -low[0] * q.reciprocal;
    q.zero_point = (int32_t)bdcc_rint(zero > levels ? levels : zero);
    return q;
}

/* What a dynamic range does to a layer's constants: scale_out = s * delta, bias_out = bias - (scale_out * zero_point) *
 * wsum. */
BDCC_INLINE void bdcc_dynamic_constants(const float *BDCC_RESTRICT s, const float *BDCC_RESTRICT bias,
                                        const float *BDCC_RESTRICT wsum, int32_t n, float delta, int32_t zero_point,
                                        float *BDCC_RESTRICT scale_out, float *BDCC_RESTRICT bias_out) {
    const float zero = (float)zero_point;
    BDCC_INDEPENDENT
    for (int32_t i = 0; i < n; ++i) {
        const float scale = s[i] * delta;
        scale_out[i] = scale;
        bias_out[i] = bias[i] - (scale * zero) * wsum[i];
    }
}

/* y = scale * y_int + bias of a decomposed layer: y_int int32 [pixels][stride], of which `channels` are used; out
 * [pixels][out_stride]. */
BDCC_INLINE void bdcc_epilogue_float(const int32_t *BDCC_RESTRICT y, int32_t pixels, int32_t channels, int32_t stride,
                                     const float *BDCC_RESTRICT scale, const float *BDCC_RESTRICT bias, int relu,
                                     float *BDCC_RESTRICT out, int32_t out_stride) {
    for (int32_t p = 0; p < pixels; ++p) {
        const int32_t *row = y + (size_t)p * (size_t)stride;
        float *to = out + (size_t)p * (size_t)out_stride;
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) {
            const float v = scale[c] * (float)row[c] + bias[c];
            to[c] = bdcc_canonical(relu ? bdcc_relu1(v) : v);
        }
    }
}

/* The same, straight to the codes that the next layer reads. */
BDCC_INLINE void bdcc_epilogue_codes(const int32_t *BDCC_RESTRICT y, int32_t pixels, int32_t channels, int32_t stride,
                                     const float *BDCC_RESTRICT scale, const float *BDCC_RESTRICT bias, int relu,
                                     bdcc_quant_t q, uint8_t *BDCC_RESTRICT out, int32_t out_stride) {
    const bdcc_clamp_t clamp = bdcc_clamp(q);
    relu = relu && q.zero_point; /* otherwise the clamp does it */
    for (int32_t p = 0; p < pixels; ++p) {
        const int32_t *row = y + (size_t)p * (size_t)stride;
        uint8_t *to = out + (size_t)p * (size_t)out_stride;
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) {
            const float v = scale[c] * (float)row[c] + bias[c];
            to[c] = bdcc_code(relu ? bdcc_relu1(v) : v, clamp);
        }
    }
}

#endif
