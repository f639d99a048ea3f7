/* SPDX-License-Identifier: 0BSD
 * What the programs that run kernels on cases of a file have in common. */
#ifndef BDCC_CHECK_H
#define BDCC_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "bdcc_isa.h"

/* {ENTRY(..., INDEX, name), ...} of every instruction set that this compiler has kernels for. */
#if BDCC_X86
#define EACH_ISA(ENTRY, ...)                                                                     \
    {                                                                                            \
        ENTRY(__VA_ARGS__, GENERIC, generic), ENTRY(__VA_ARGS__, POPCNT, popcnt),                \
            ENTRY(__VA_ARGS__, AVX2, avx2), ENTRY(__VA_ARGS__, AVXVNNI, avxvnni),                \
            ENTRY(__VA_ARGS__, AVX512, avx512)                                                   \
    }
#elif BDCC_NEON64
#define EACH_ISA(ENTRY, ...)                                                                     \
    {                                                                                            \
        ENTRY(__VA_ARGS__, GENERIC, generic), ENTRY(__VA_ARGS__, NEON, neon),                    \
            ENTRY(__VA_ARGS__, NEONDOT, neondot)                                                 \
    }
#elif BDCC_NEON
#define EACH_ISA(ENTRY, ...) \
    { ENTRY(__VA_ARGS__, GENERIC, generic), ENTRY(__VA_ARGS__, NEON, neon) }
#elif BDCC_SIMD32
#define EACH_ISA(ENTRY, ...) \
    { ENTRY(__VA_ARGS__, GENERIC, generic), ENTRY(__VA_ARGS__, SIMD32, simd32) }
#else
#define EACH_ISA(ENTRY, ...) \
    { ENTRY(__VA_ARGS__, GENERIC, generic) }
#endif

/* Aligned to 64 bytes, and a sanitizer sees what is behind the last byte. */
static inline void *room(size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 64, bytes + !bytes)) exit(2);
    memset(memory, 0xa5, bytes);
    return memory;
}

/* Bytes of the file, not aligned to more than malloc aligns to. */
static inline void *take(FILE *file, size_t bytes) {
    void *memory = malloc(bytes + !bytes);
    if (!memory || fread(memory, 1, bytes, file) != bytes) exit(2);
    return memory;
}

/* Without arguments prints the instruction sets of this machine; else runs the cases of a file. */
static inline int check(int argc, char **argv, void (*run)(FILE *, FILE *)) {
    if (argc < 3) {
        for (int isa = 0; isa < BDCC_ISA_COUNT; isa++) {
            if (bdcc_isa_usable(isa)) printf("%s\n", bdcc_isa_name(isa));
        }
        return 0;
    }
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) return 2;
    run(in, out);
    fclose(in);
    return fclose(out) ? 2 : 0;
}

#endif
