/* SPDX-License-Identifier: 0BSD
 * bdcc_quantize.h against the definition, worked out one value at a time with the C library's rounding. */
#include "bdcc_quantize.h"

#include "check.h"

static uint8_t quantize_ref(float x, bdcc_quant_t q) {
    const float scaled = x * q.reciprocal;
    if (isnan(scaled)) return (uint8_t)q.zero_point;
    const double code = nearbyint((double)scaled) + q.zero_point;
    return (uint8_t)(code < 0.0 ? 0.0 : code > q.top ? q.top : code);
}

static void test_quantize(void) {
    for (int32_t bits = 1; bits <= 8; ++bits) {
        const int32_t top = (1 << bits) - 1;
        const int32_t zeros[] = { 0, 1, top / 2, top };
        const float steps[] = { 1.0f, 0.37f, 12.5f, 0x1p+100f, 0x1p-100f, INFINITY };
        for (size_t i = 0; i < 24; ++i) {
            const bdcc_quant_t q = { steps[i / 4], zeros[i % 4], top };
            for (size_t n = 0; n < 70; n = n < 34 ? n + 1 : n + 35) {
                float *x = floats(n, hard_float);
                uint8_t *got = room(n, 1), *want = room(n, 1);
                for (size_t j = 0; j < n; ++j) want[j] = quantize_ref(x[j], q);
                bdcc_quantize(x, n, q, got);
                check_bytes("quantize", got, want, n);
                free(x);
                free(got);
                free(want);
            }
        }
    }
    const bdcc_quant_t q = { 1.0f, 2, 7 };
    CHECK(bdcc_quantize1(0.5f, q) == 2 && bdcc_quantize1(1.5f, q) == 4); /* ties to even */
    CHECK(bdcc_quantize1(NAN, q) == 2 && bdcc_quantize1(INFINITY, q) == 7 && bdcc_quantize1(-INFINITY, q) == 0);
}

static void test_quantize_runs(void) {
    enum { RUNS = 5, RUN = 19, PITCH = 23, N = (RUNS - 1) * PITCH + RUN };
    const bdcc_quant_t q = { 0.7f, 3, 15 };
    float *x = floats(RUNS * RUN, hard_float);
    uint8_t *got = room(N, 1), *want = room(N, 1), *plain = room(RUNS * RUN, 1);
    for (size_t i = 0; i < N; ++i) got[i] = want[i] = (uint8_t)random_below(256);
    for (size_t i = 0; i < RUNS * RUN; ++i) plain[i] = quantize_ref(x[i], q);
    lay(want, plain, RUNS, RUN, PITCH);
    bdcc_quantize_runs(x, RUNS, RUN, q, got, PITCH);
    check_bytes("quantize runs", got, want, N);
    free(x);
    free(got);
    free(want);
    free(plain);
}

static void dynamic_range_ref(const float *x, size_t n, int32_t bits, bdcc_quant_t *q, float *delta) {
    float low = 0.0f, high = 0.0f;
    for (size_t i = 0; i < n; ++i) {
        low = fminf(low, x[i]); /* fmin and fmax pass over a NaN */
        high = fmaxf(high, x[i]);
    }
    q->top = (1 << bits) - 1;
    *delta = high / (float)q->top - low / (float)q->top;
    q->zero_point = 0;
    if (!(*delta >= ldexpf(1.0f, -100))) {
        *delta = 1.0f;
        q->reciprocal = 1.0f;
        return;
    }
    *delta = fminf(*delta, ldexpf(1.0f, 100));
    q->reciprocal = 1.0f / *delta;
    q->zero_point = (int32_t)fminf(nearbyintf(-low * q->reciprocal), (float)q->top);
}

static void check_dynamic_range(const float *x, size_t n) {
    for (int32_t bits = 1; bits <= 8; ++bits) {
        float got_delta, want_delta;
        bdcc_quant_t want;
        const bdcc_quant_t got = bdcc_dynamic_range(x, n, bits, &got_delta);
        dynamic_range_ref(x, n, bits, &want, &want_delta);
        CHECK(got_delta == want_delta && got.reciprocal == want.reciprocal);
        CHECK(got.zero_point == want.zero_point && got.top == want.top);
    }
}

static void test_dynamic_range(void) {
    static const float edges[][3] = {
        { 0.0f, 0.0f, 0.0f },         { -0.0f, -0.0f, -0.0f },   { 3.0f, 3.0f, 3.0f },
        { -3.0f, -2.0f, -1.0f },      { 1.0f, 2.0f, 3.0f },      { NAN, NAN, NAN },
        { NAN, -1.0f, 5.0f },         { INFINITY, 0.0f, 1.0f },  { -INFINITY, 0.0f, 1.0f },
        { -INFINITY, INFINITY, NAN }, { 1e-38f, -1e-38f, 0.0f }, { 3e38f, -3e38f, 0.0f },
        { 0x1p-100f, 0.0f, 0.0f },    { -0x1p-93f, 0.0f, 0.0f }, { 0x1p+108f, 0.0f, -1.0f },
        { 1e-45f, 0.0f, 0.0f },
    };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; ++i) check_dynamic_range(edges[i], 3);
    for (size_t n = 0; n < 70; ++n) { /* lanes and tail; an extreme may sit in any of them */
        float *x = floats(n, random_float);
        check_dynamic_range(x, n);
        if (n > 0) x[random_below((int32_t)n)] = random_u32() % 2 ? 40.0f : -40.0f;
        check_dynamic_range(x, n);
        free(x);
    }
}

static void test_epilogues(void) {
    enum { PIXELS = 3, STRIDE = 48, OUT_STRIDE = 51 };
    for (int32_t channels = 1; channels <= STRIDE; ++channels) {
        for (int relu = 0; relu < 2; ++relu) {
            const size_t outputs = (PIXELS - 1) * OUT_STRIDE + (size_t)channels;
            int32_t *y = room(PIXELS * STRIDE, sizeof *y);
            float *scale = floats((size_t)channels, hard_float), *bias = floats((size_t)channels, hard_float);
            float *got = floats(outputs, random_float), *want = room(outputs, sizeof *want);
            uint8_t *got_codes = room(outputs, 1), *want_codes = room(outputs, 1);
            const bdcc_quant_t q = { 0.5f, random_below(16), 15 };
            for (size_t i = 0; i < PIXELS * STRIDE; ++i) y[i] = (int32_t)(random_u32() >> random_below(32));
            for (size_t i = 0; i < outputs; ++i) want[i] = got[i]; /* between the rows nothing is written */
            for (size_t p = 0; p < PIXELS; ++p) {
                for (size_t c = 0; c < (size_t)channels; ++c) {
                    volatile float product = scale[c] * (float)y[p * STRIDE + c]; /* rounded before the sum */
                    const float sum = product + bias[c];
                    const float v = relu && sum < 0.0f ? 0.0f : sum;
                    want[p * OUT_STRIDE + c] = plain_canonical(v);
                    want_codes[p * OUT_STRIDE + c] = quantize_ref(v, q);
                }
            }
            bdcc_epilogue_float(y, PIXELS, channels, STRIDE, scale, bias, relu, got, OUT_STRIDE);
            check_floats("epilogue", got, want, outputs);
            bdcc_epilogue_codes(y, PIXELS, channels, STRIDE, scale, bias, relu, q, got_codes, OUT_STRIDE);
            check_bytes("epilogue to codes", got_codes, want_codes, outputs);
            free(y);
            free(scale);
            free(bias);
            free(got);
            free(want);
            free(got_codes);
            free(want_codes);
        }
    }
}

static void test_dynamic_constants(void) {
    enum { N = 37 };
    float *s = floats(N, random_float), *bias = floats(N, random_float), *wsum = floats(N, random_float);
    float *scale_out = room(N, sizeof(float)), *bias_out = room(N, sizeof(float)), *want = room(N, sizeof(float));
    bdcc_dynamic_constants(s, bias, wsum, N, 0.3f, 77, scale_out, bias_out);
    for (int i = 0; i < N; ++i) want[i] = s[i] * 0.3f;
    check_floats("dynamic scale", scale_out, want, N);
    for (int i = 0; i < N; ++i) {
        volatile float shift = want[i] * 77.0f;
        volatile float product = shift * wsum[i];
        want[i] = bias[i] - product;
    }
    check_floats("dynamic bias", bias_out, want, N);
    free(s);
    free(bias);
    free(wsum);
    free(scale_out);
    free(bias_out);
    free(want);
}

int main(void) {
    test_quantize();
    test_quantize_runs();
    test_dynamic_range();
    test_epilogues();
    test_dynamic_constants();
    return report("quantize");
}
