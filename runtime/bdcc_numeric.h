/* SPDX-License-Identifier: 0BSD
 * Single floats and windows: rounding, the canonical NaN, the exact exponential, which taps of a window lie inside. */
#ifndef BDCC_NUMERIC_H
#define BDCC_NUMERIC_H

#include "bdcc_base.h"

#include <math.h>

#if BDCC_X86 && defined(__clang__)
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__clang__) && defined(__ARM_NEON) && !defined(BDCC_PORTABLE)
#include <arm_neon.h>
#endif

/* gcc: the loop that follows reads nothing that it wrote, although the pointers' restrict was lost by inlining. */
#if defined(__GNUC__) && !defined(__clang__)
#define BDCC_INDEPENDENT _Pragma("GCC ivdep")
#else
#define BDCC_INDEPENDENT
#endif

/* Makes a variable's value unknown to the optimizer. gcc turns a clamp between constants into branches, and then cannot
 * vectorise. */
#if defined(__GNUC__)
#define BDCC_OPAQUE(variable) __asm__("" : "+m"(variable))
#else
#define BDCC_OPAQUE(variable) ((void)0)
#endif

/* In a loop over table look-ups: no vectors, which would be gathered value by value. */
#if defined(__GNUC__)
#define BDCC_SCALAR __asm__("")
#else
#define BDCC_SCALAR ((void)0)
#endif

/* Values that a step works on at a time: a loop of this length becomes whole vectors, whatever the compiler. */
#define BDCC_BLOCK 16

/* Half to even, for |x| < 2^22: the sum has no bit left below the units. */
BDCC_INLINE float bdcc_rint(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* Which NaN an operation makes depends on CPU and compiler; what is written must not. */
BDCC_INLINE float bdcc_canonical(float x) { return x == x ? x : bdcc_float_from_bits(UINT32_C(0x7FC00000)); }

/* A NaN stays, a -0 stays. */
BDCC_INLINE float bdcc_relu1(float x) { return x < 0.0f ? 0.0f : x; }

BDCC_INLINE void bdcc_relu(const float *BDCC_RESTRICT x, size_t n, float *BDCC_RESTRICT y) {
    BDCC_INDEPENDENT
    for (size_t i = 0; i < n; ++i) y[i] = bdcc_canonical(bdcc_relu1(x[i]));
}

/* gcc makes vectors of roots if the library's function, which it replaces, is declared to have no side effect (errno);
 * clang, of the intrinsic. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
float sqrtf(float) __attribute__((const));
#pragma GCC diagnostic pop
#endif

BDCC_INLINE float bdcc_sqrt(float x) {
#if BDCC_X86 && defined(__clang__)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif defined(__aarch64__) && defined(__clang__) && defined(__ARM_NEON) && !defined(BDCC_PORTABLE)
    return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0);
#elif defined(__arm__) && defined(__ARM_FP) && defined(__GNUC__) && !defined(BDCC_PORTABLE)
    float root; /* no call for negative numbers, which would want the library's errno */
    __asm__("vsqrt.f32 %0, %1" : "=t"(root) : "t"(x));
    return root;
#else
    return sqrtf(x);
#endif
}

/* exp(x) by a polynomial: the same bits everywhere, within 2 units in the last place. The clamp to -87 .. 88 (which
 * turns a NaN into a number too) keeps 2^n a normal float; what it hid is put back at the end. */
BDCC_INLINE float bdcc_exp(float x) {
    float inside = x >= -87.0f ? x : -87.0f;
    inside = inside <= 88.0f ? inside : 88.0f;
    const float n = bdcc_rint(inside * 1.44269504f);
    const float r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float mantissa = ((p * (r * r)) + r) + 1.0f;
    const float y = bdcc_float_from_bits(bdcc_float_bits(mantissa) + ((uint32_t)(int32_t)n << 23));
    const float high = x > 88.0f ? bdcc_float_from_bits(UINT32_C(0x7F800000)) : y;
    return bdcc_canonical(x != x ? x : x < -87.0f ? 0.0f : high);
}

/* The taps first .. end-1 of a window that starts at `start` and lie inside 0 .. size-1. */
typedef struct {
    int32_t first;
    int32_t end;
} bdcc_span_t;

BDCC_INLINE bdcc_span_t bdcc_taps_inside(int32_t start, int32_t size, int32_t kernel, int32_t dilation) {
    bdcc_span_t span;
    span.first = start < 0 ? (dilation - 1 - start) / dilation : 0;
    span.end = start < size ? (size - start + dilation - 1) / dilation : 0;
    if (span.end > kernel) span.end = kernel;
    if (span.first > span.end) span.first = span.end;
    return span;
}

#endif
