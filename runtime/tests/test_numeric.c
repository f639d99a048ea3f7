/* SPDX-License-Identifier: 0BSD
 * bdcc_numeric.h against the C library, and windows against counting. */
#include "bdcc_numeric.h"

#include "check.h"

static void test_rint(void) {
    for (int32_t i = -2100; i <= 2100; ++i) {
        const float x = (float)i * 0.25f; /* every tie and its neighbours */
        CHECK(bdcc_rint(x) == nearbyintf(x));
    }
    CHECK(bdcc_rint(4194303.0f) == 4194303.0f);
    CHECK(bdcc_rint(-4194302.5f) == -4194302.0f);
}

static void test_exp(void) {
    const float infinite = bdcc_float_from_bits(0x7F800000u);
    for (int32_t i = -8700; i <= 8800; ++i) {
        const float x = (float)i * 0.01f;
        const double want = exp((double)x), ulp = ldexp(1.0, ilogb(want) - 23);
        CHECK(fabs((double)bdcc_exp(x) - want) <= 2.0 * ulp);
    }
    CHECK(bdcc_exp(0.0f) == 1.0f && bdcc_exp(-0.0f) == 1.0f);
    CHECK(bdcc_exp(-87.0f) > 0.0f && bdcc_exp(nextafterf(-87.0f, -100.0f)) == 0.0f);
    CHECK(bdcc_exp(88.0f) < infinite && bdcc_exp(nextafterf(88.0f, 100.0f)) == infinite);
    CHECK(bdcc_float_bits(bdcc_exp(-infinite)) == 0 && bdcc_exp(infinite) == infinite);
    CHECK(bdcc_float_bits(bdcc_exp(bdcc_float_from_bits(0xFFC01234u))) == 0x7FC00000u);
}

static void test_relu_and_sqrt(void) {
    for (size_t n = 0; n < 40; ++n) { /* vector tails */
        float *x = floats(n, hard_float), *got = floats(n, random_float), *want = floats(n, random_float);
        for (size_t i = 0; i < n; ++i) want[i] = plain_canonical(x[i] < 0.0f ? 0.0f : x[i]);
        bdcc_relu(x, n, got);
        check_floats("relu", got, want, n);
        for (size_t i = 0; i < n; ++i) want[i] = plain_canonical(sqrtf(x[i]));
        BDCC_INDEPENDENT
        for (size_t i = 0; i < n; ++i) got[i] = bdcc_canonical(bdcc_sqrt(x[i]));
        check_floats("sqrt", got, want, n);
        free(x);
        free(got);
        free(want);
    }
    CHECK(bdcc_float_bits(bdcc_relu1(-0.0f)) == 0x80000000u);
}

static void test_taps_inside(void) {
    for (int32_t start = -9; start < 12; ++start) {
        for (int32_t size = 1; size < 8; ++size) {
            for (int32_t kernel = 1; kernel < 6; ++kernel) {
                for (int32_t dilation = 1; dilation < 4; ++dilation) {
                    const bdcc_span_t span = bdcc_taps_inside(start, size, kernel, dilation);
                    CHECK(span.first >= 0 && span.first <= span.end && span.end <= kernel);
                    for (int32_t tap = 0; tap < kernel; ++tap) {
                        const int32_t at = start + tap * dilation;
                        CHECK((at >= 0 && at < size) == (tap >= span.first && tap < span.end));
                    }
                }
            }
        }
    }
}

int main(void) {
    test_rint();
    test_exp();
    test_relu_and_sqrt();
    test_taps_inside();
    return report("numeric");
}
