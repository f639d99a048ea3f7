/* SPDX-License-Identifier: 0BSD
 * Runs the dense kernels by bytes on the cases of a file and writes every y_int: bytedot_dense_check IN OUT. Compiled with
 * -D'KERNELS=K(4, 3) K(2, 2)'. Buffers have exactly the documented sizes, so that a sanitizer sees a byte too far.
 * Without arguments: prints the instruction sets of this machine that there are kernels for. */
#include <stdio.h>
#include <stdlib.h>

#include "bytedot_dense_kernels.h"

typedef struct {
    int32_t isa, bases, bits, words, layer_blocks, first_block, blocks;
} case_t;

typedef void kernel_fn(const uint64_t *, const int32_t *, const uint8_t *, int32_t, int32_t, int32_t, int32_t *);

#if BDCC_X86
#define SELECT(BASES, BITS)                                                                                  \
    {                                                                                                        \
        bdcc_bytedot_dense_b##BASES##q##BITS##__generic, bdcc_bytedot_dense_b##BASES##q##BITS##__popcnt,     \
            bdcc_bytedot_dense_b##BASES##q##BITS##__avx2, bdcc_bytedot_dense_b##BASES##q##BITS##__avxvnni,   \
            bdcc_bytedot_dense_b##BASES##q##BITS##__avx512                                                   \
    }
#else
#define SELECT(BASES, BITS) \
    { bdcc_bytedot_dense_b##BASES##q##BITS##__generic }
#endif
#define K(BASES, BITS)                                    \
    if (bases == BASES && bits == BITS) {                 \
        kernel_fn *const kernels[] = SELECT(BASES, BITS); \
        return kernels[isa];                              \
    }

static kernel_fn *find(int32_t isa, int32_t bases, int32_t bits) {
    KERNELS
    exit(3);
}

static void *take(FILE *file, size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory || fread(memory, 1, bytes, file) != bytes) exit(2);
    return memory;
}

static void run(const case_t *c, FILE *in, FILE *out) {
    const size_t planes = (size_t)c->layer_blocks * (size_t)c->words * (size_t)c->bases * 8;
    uint64_t *weights = take(in, planes * sizeof *weights);
    int32_t *coefficients = take(in, (size_t)c->layer_blocks * (size_t)c->bases * 8 * sizeof *coefficients);
    uint8_t *x = take(in, (size_t)c->words * 64);
    const size_t count = (size_t)c->blocks * 8;
    int32_t *y = malloc(count * sizeof *y);
    if (!y) exit(2);
    memset(y, 0xa5, count * sizeof *y);
    find(c->isa, c->bases, c->bits)(weights, coefficients, x, c->words, c->first_block, c->blocks, y);
    if (fwrite(y, sizeof *y, count, out) != count) exit(2);
    free(weights);
    free(coefficients);
    free(x);
    free(y);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        for (int isa = 0; isa < 5; isa++) {
            if (bdcc_isa_usable(isa)) printf("%s\n", bdcc_isa_name(isa));
        }
        return 0;
    }
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) return 2;
    case_t c;
    while (fread(&c, sizeof c, 1, in) == 1) run(&c, in, out);
    fclose(in);
    return fclose(out) ? 2 : 0;
}
