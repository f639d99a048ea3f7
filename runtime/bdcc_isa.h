/* SPDX-License-Identifier: 0BSD
 * Instruction sets that are chosen at run time: of x86-64, and of ARM; everywhere else only the generic one exists. Of
 * one architecture, a wider one has a higher number. */
#ifndef BDCC_ISA_H
#define BDCC_ISA_H

#include "bdcc_base.h"

#if BDCC_X86
#include <cpuid.h>
#endif
#if BDCC_NEON64 && defined(__linux__)
#include <sys/auxv.h>
#endif

enum {
    BDCC_ISA_GENERIC = 0,
    BDCC_ISA_POPCNT = 1,
    BDCC_ISA_AVX2 = 2,
    BDCC_ISA_AVXVNNI = 3,
    BDCC_ISA_AVX512 = 4,
    BDCC_ISA_NEON = 5,
    BDCC_ISA_NEONDOT = 6,
    BDCC_ISA_SIMD32 = 7,
    BDCC_ISA_COUNT = 8
};

/* Put in front of a function that is compiled for that instruction set. No FMA is asked for: bdcc never fuses.
 * What is not defined is left out: older compilers do not know AVX-VNNI, and detection goes on to AVX2. */
#if BDCC_X86
#define BDCC_TARGET_POPCNT __attribute__((target("popcnt,sse4.2")))
#define BDCC_TARGET_AVX2 __attribute__((target("popcnt,avx2")))
#if !defined(BDCC_NO_AVXVNNI) && defined(__has_include)
#if __has_include(<avxvnniintrin.h>)
#define BDCC_TARGET_AVXVNNI __attribute__((target("popcnt,avx2,avxvnni")))
#endif
#endif
#define BDCC_TARGET_AVX512 \
    __attribute__((        \
        target("popcnt,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vbmi,avx512vnni")))
#endif

/* NEON and the SIMD of 32-bit registers are what the compiler's flags say (AArch64 always has NEON). Dot products are
 * written as assembly: clang 14 has no intrinsics without a flag. binutils 2.40 takes them for ARMv8.2 and later only,
 * and gcc inlines nothing where less is allowed than flags do; its attribute therefore names what they may have allowed
 * of an older architecture. Steps give gcc no cause to use any of it but SHA3, which is there only if flags say so. */
#if BDCC_NEON
#define BDCC_TARGET_NEON
#if BDCC_NEON64
#if defined(__ARM_FEATURE_DOTPROD)
#define BDCC_TARGET_NEONDOT
#elif defined(__clang__)
#define BDCC_TARGET_NEONDOT __attribute__((target("dotprod")))
#elif defined(__ARM_FEATURE_COMPLEX) || defined(__ARM_FEATURE_SVE) || defined(__ARM_FEATURE_MATMUL_INT8)
#define BDCC_TARGET_NEONDOT __attribute__((target("+dotprod"))) /* of ARMv8.2 at least, as this asks for */
#else
#if defined(__ARM_FEATURE_SHA3)
#define BDCC_TARGET_SHA3 "+sha3"
#else
#define BDCC_TARGET_SHA3 ""
#endif
#define BDCC_TARGET_NEONDOT \
    __attribute__((target("arch=armv8.2-a+dotprod+crypto+fp16+fp16fml+sm4+rcpc" BDCC_TARGET_SHA3)))
#endif
#endif
#endif
#if BDCC_SIMD32
#define BDCC_TARGET_SIMD32
#endif

#if BDCC_X86
/* What is in a register stays there: gcc would load it anew for every use, and loads are what limits many a loop. */
#define BDCC_KEEP(v) __asm__("" : "+v"(v))
#elif BDCC_NEON
#define BDCC_KEEP(v) __asm__("" : "+w"(v))
#endif

BDCC_INLINE const char *bdcc_isa_name(int isa) {
    switch (isa) {
    case BDCC_ISA_GENERIC: return "generic";
    case BDCC_ISA_POPCNT: return "popcnt";
    case BDCC_ISA_AVX2: return "avx2";
    case BDCC_ISA_AVXVNNI: return "avxvnni";
    case BDCC_ISA_AVX512: return "avx512";
    case BDCC_ISA_NEON: return "neon";
    case BDCC_ISA_NEONDOT: return "neondot";
    case BDCC_ISA_SIMD32: return "simd32";
    default: return "unknown";
    }
}

/* The instruction set of that name, or -1. No strcmp: bare metal need not have it. */
BDCC_INLINE int bdcc_isa_from_name(const char *name) {
    for (int isa = 0; name && isa < BDCC_ISA_COUNT; isa++) {
        const char *known = bdcc_isa_name(isa);
        size_t i = 0;
        while (known[i] != 0 && name[i] == known[i]) i++;
        if (name[i] == known[i]) return isa;
    }
    return -1;
}

/* Whether this CPU has an instruction set and its operating system saves the registers of it. */
BDCC_INLINE int bdcc_isa_usable(int isa) {
#if BDCC_X86
    __builtin_cpu_init(); /* not left to a constructor: this may itself be called from one */
    switch (isa) {
    case BDCC_ISA_GENERIC: return 1;
    case BDCC_ISA_POPCNT:
        return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("sse4.2");
    case BDCC_ISA_AVX2: return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("avx2");
#ifdef BDCC_TARGET_AVXVNNI
    case BDCC_ISA_AVXVNNI: { /* bit 4 of leaf 7.1: a name that not every compiler knows */
        unsigned a = 0, b = 0, c = 0, d = 0;
        return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("avx2") &&
               __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1u);
    }
#endif
    case BDCC_ISA_AVX512:
        return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("avx2") &&
               __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vnni");
    default: return 0;
    }
#elif BDCC_NEON64 && defined(__ARM_FEATURE_DOTPROD)
    return isa == BDCC_ISA_GENERIC || isa == BDCC_ISA_NEON || isa == BDCC_ISA_NEONDOT;
#elif BDCC_NEON64 && defined(__linux__)
    return isa == BDCC_ISA_GENERIC || isa == BDCC_ISA_NEON ||
           (isa == BDCC_ISA_NEONDOT && (getauxval(AT_HWCAP) >> 20 & 1u)); /* HWCAP_ASIMDDP */
#elif BDCC_NEON
    return isa == BDCC_ISA_GENERIC || isa == BDCC_ISA_NEON;
#elif BDCC_SIMD32
    return isa == BDCC_ISA_GENERIC || isa == BDCC_ISA_SIMD32;
#else
    return isa == BDCC_ISA_GENERIC;
#endif
}

/* The last of these that this CPU has; the first it has anyway. */
BDCC_INLINE int bdcc_isa_detect(const uint8_t *isas, int count) {
    while (count > 1 && !bdcc_isa_usable(isas[count - 1])) count--;
    return isas[count - 1];
}

#endif
