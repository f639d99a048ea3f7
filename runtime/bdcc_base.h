/* SPDX-License-Identifier: 0BSD
 * Ground rules that every other file of the runtime stands on: exact float arithmetic, inlining, byte order. */
#ifndef BDCC_BASE_H
#define BDCC_BASE_H

#ifdef __FAST_MATH__
#error "bdcc is exact: build without -ffast-math (and without -Ofast)"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "bdcc is exact: float expressions must be evaluated in float (on 32-bit x86 add -msse2 -mfpmath=sse)"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bdcc projects are little-endian: packed weights and bit planes are read as little-endian words"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A product is rounded before it is added, whatever the flags: no fused multiply-add. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

/* Runtime functions are inlined into the step that calls them, and so are compiled for that step's instruction set. */
#if defined(__GNUC__)
#define BDCC_INLINE static inline __attribute__((always_inline))
#define BDCC_UNUSED __attribute__((unused))
#else
#define BDCC_INLINE static inline
#define BDCC_UNUSED
#endif

/* For tiles: inlined into a larger function, or made anew for a constant number of steps, gcc reorders them until it runs
 * out of registers for their sums. */
#if defined(__clang__)
#define BDCC_APART __attribute__((noinline))
#elif defined(__GNUC__)
#define BDCC_APART __attribute__((noinline, noclone))
#else
#define BDCC_APART
#endif

/* Weights that stream from memory: fetches the line `ahead` bytes further on, where nothing need lie. */
#if defined(__GNUC__)
#define BDCC_PREFETCH(p, ahead) __builtin_prefetch((const void *)((uintptr_t)(p) + (ahead)))
#else
#define BDCC_PREFETCH(p, ahead) ((void)0)
#endif

#ifdef __cplusplus
#define BDCC_RESTRICT __restrict
#else
#define BDCC_RESTRICT restrict
#endif

/* Vector code exists for x86-64 and for ARM, with gcc or clang; -DBDCC_PORTABLE leaves plain C11 alone. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(BDCC_PORTABLE)
#define BDCC_X86 1
#else
#define BDCC_X86 0
#endif
#if defined(__ARM_NEON) && defined(__GNUC__) && !defined(BDCC_PORTABLE)
#define BDCC_NEON 1
#else
#define BDCC_NEON 0
#endif
#if defined(__ARM_FEATURE_SIMD32) && !BDCC_NEON && defined(__GNUC__) && !defined(BDCC_PORTABLE)
#define BDCC_SIMD32 1 /* SMLAD and its kin: ARMv6, Cortex-M4, Cortex-M7 */
#else
#define BDCC_SIMD32 0
#endif
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define BDCC_MICRO 1 /* flash and stack are short */
#else
#define BDCC_MICRO 0
#endif
#if BDCC_NEON && defined(__aarch64__)
#define BDCC_NEON64 1
#else
#define BDCC_NEON64 0
#endif

/* Unaligned little-endian load. */
BDCC_INLINE uint64_t bdcc_load64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

BDCC_INLINE uint32_t bdcc_float_bits(float x) {
    uint32_t v;
    memcpy(&v, &x, sizeof v);
    return v;
}

BDCC_INLINE float bdcc_float_from_bits(uint32_t v) {
    float x;
    memcpy(&x, &v, sizeof x);
    return x;
}

#endif
