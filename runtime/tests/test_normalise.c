/* SPDX-License-Identifier: 0BSD
 * bdcc_lrn.h and bdcc_softmax.h against one value at a time in the documented order. */
#include "bdcc_lrn.h"
#include "bdcc_softmax.h"

#include "check.h"

static float lrn_ref(const float *x, int32_t channels, int32_t c, int32_t size, float alpha_over_size, float bias,
                     int32_t quarters) {
    volatile float sum = 0.0f, power = 1.0f; /* volatile: each operation is rounded by itself */
    for (int32_t i = c - (size - 1) / 2; i <= c + size / 2; ++i) {
        if (i < 0 || i >= channels) continue;
        volatile float square = x[i] * x[i];
        sum = sum + square;
    }
    volatile float scaled = alpha_over_size * sum;
    const float t = bias + scaled;
    for (int32_t i = 0; i < quarters / 4; ++i) power = power * t;
    if (quarters & 2) power = power * sqrtf(t);
    if (quarters & 1) power = power * sqrtf(sqrtf(t));
    return plain_canonical(x[c] / power);
}

static void check_lrn(int32_t channels, int32_t size, float alpha_over_size, float bias, int32_t quarters,
                      float (*next)(void)) {
    enum { PIXELS = BDCC_LRN_PIXELS + 2 };
    const size_t n = (size_t)(PIXELS * channels);
    float *x = floats(n, next), *got = floats(n, hard_float), *want = room(n, sizeof(float));
    for (size_t i = 0; i < n; ++i) {
        const int32_t c = (int32_t)i % channels;
        want[i] = lrn_ref(x + (i - (size_t)c), channels, c, size, alpha_over_size, bias, quarters);
    }
    const bdcc_lrn_t g = { PIXELS, channels, size, alpha_over_size, bias, quarters };
    const bdcc_quant_t q = { 3.0f, 5, 15 };
    float *scratch = room((size_t)BDCC_LRN_SCRATCH(channels, size), sizeof(float));
    uint8_t *got_codes = room(n, 1), *want_codes = room(n, 1);
    bdcc_lrn_float(&g, x, scratch, got);
    check_floats("lrn", got, want, n);
    bdcc_lrn_codes(&g, x, scratch, q, got_codes);
    bdcc_quantize(want, n, q, want_codes);
    check_bytes("lrn's codes", got_codes, want_codes, n);
    free(scratch);
    free(got_codes);
    free(want_codes);
    free(x);
    free(got);
    free(want);
}

static void test_lrn(void) {
    for (int32_t channels = 1; channels < 12; ++channels) { /* windows wider than the channels too */
        for (int32_t size = 1; size < 12; ++size) check_lrn(channels, size, 0.02f, 1.0f, 3, hard_float);
    }
    for (int32_t quarters = 1; quarters <= 16; ++quarters)
        check_lrn(4 * BDCC_BLOCK + 3, 5, 2e-5f, 2.0f, quarters, hard_float);
    check_lrn(96, 5, 2e-5f, 1.0f, 3, random_float);
    check_lrn(2 * BDCC_BLOCK, 4, 0.5f, 0.0f, 2, random_float);
    check_lrn(7, 3, 0.5f, -30.0f, 3, random_float); /* the root of a negative number is the canonical NaN */
}

static void check_softmax(const float *x, int32_t channels) {
    float *got = floats((size_t)channels, random_float), *want = room((size_t)channels, sizeof(float)), largest = x[0],
          sum = 0.0f;
    for (int32_t c = 1; c < channels; ++c) largest = x[c] > largest || isnan(x[c]) ? x[c] : largest;
    for (int32_t c = 0; c < channels; ++c) sum += want[c] = bdcc_exp(x[c] - largest);
    for (int32_t c = 0; c < channels; ++c) want[c] = plain_canonical(want[c] / sum);
    bdcc_softmax(x, 1, channels, got);
    check_floats("softmax", got, want, (size_t)channels);
    free(got);
    free(want);
}

static void test_softmax(void) {
    static const float edges[][3] = {
        { 0.0f, -0.0f, 0.0f },
        { 1e30f, 0.0f, -1e30f },
        { INFINITY, 0.0f, 1.0f },
        { -INFINITY, 0.0f, 1.0f },
        { NAN, 0.0f, 1.0f },
        { 0.0f, 1.0f, NAN },
        { -INFINITY, -INFINITY, -INFINITY },
    };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; ++i) check_softmax(edges[i], 3);
    for (int32_t channels = 1; channels < 40; ++channels) {
        float *x = floats((size_t)channels, random_float);
        check_softmax(x, channels);
        free(x);
    }
    enum { PIXELS = 3, CHANNELS = 5 }; /* each pixel by itself, summing to 1 */
    float *x = floats(PIXELS * CHANNELS, random_float), *y = room(PIXELS * CHANNELS, sizeof(float));
    bdcc_softmax(x, PIXELS, CHANNELS, y);
    for (int32_t p = 0; p < PIXELS; ++p) {
        float alone[CHANNELS], sum = 0.0f;
        bdcc_softmax(x + p * CHANNELS, 1, CHANNELS, alone);
        check_floats("softmax of a map", y + p * CHANNELS, alone, CHANNELS);
        for (int32_t c = 0; c < CHANNELS; ++c) sum += alone[c];
        CHECK(fabsf(sum - 1.0f) < 1e-6f);
    }
    free(x);
    free(y);
}

int main(void) {
    test_lrn();
    test_softmax();
    return report("normalise");
}
