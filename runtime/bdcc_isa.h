/* SPDX-License-Identifier: 0BSD
 * Instruction sets of x86-64 that are chosen at run time; everywhere else only the generic one exists. Each contains
 * those before it. */
#ifndef BDCC_ISA_H
#define BDCC_ISA_H

#include "bdcc_base.h"

enum { BDCC_ISA_GENERIC = 0, BDCC_ISA_POPCNT = 1, BDCC_ISA_AVX2 = 2, BDCC_ISA_AVX512 = 3, BDCC_ISA_COUNT = 4 };

/* Put in front of a function that is compiled for that instruction set. No FMA is asked for: bdcc never fuses. */
#if BDCC_X86
#define BDCC_TARGET_POPCNT __attribute__((target("popcnt")))
#define BDCC_TARGET_AVX2 __attribute__((target("popcnt,avx2")))
#define BDCC_TARGET_AVX512 __attribute__((target("popcnt,avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))
#endif

BDCC_INLINE const char *bdcc_isa_name(int isa) {
    switch (isa) {
    case BDCC_ISA_GENERIC: return "generic";
    case BDCC_ISA_POPCNT: return "popcnt";
    case BDCC_ISA_AVX2: return "avx2";
    case BDCC_ISA_AVX512: return "avx512";
    default: return "unknown";
    }
}

/* The instruction set of that name, or -1. */
BDCC_INLINE int bdcc_isa_from_name(const char *name) {
    for (int isa = 0; name && isa < BDCC_ISA_COUNT; isa++) {
        if (strcmp(name, bdcc_isa_name(isa)) == 0) {
            return isa;
        }
    }
    return -1;
}

/* The widest instruction set that this CPU has and its operating system saves the registers of. */
BDCC_INLINE int bdcc_isa_detect(void) {
#if BDCC_X86
    __builtin_cpu_init(); /* not left to a constructor: this may itself be called from one */
    if (!__builtin_cpu_supports("popcnt")) {
        return BDCC_ISA_GENERIC;
    }
    if (!__builtin_cpu_supports("avx2")) {
        return BDCC_ISA_POPCNT;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vpopcntdq")) {
        return BDCC_ISA_AVX2;
    }
    return BDCC_ISA_AVX512;
#else
    return BDCC_ISA_GENERIC;
#endif
}

BDCC_INLINE int bdcc_isa_usable(int isa) { return isa >= BDCC_ISA_GENERIC && isa <= bdcc_isa_detect(); }

#endif
