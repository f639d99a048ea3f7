/* SPDX-License-Identifier: 0BSD
 * Runs the dense kernels by bytes on the cases of a file and writes every y_int: bytedot_dense_check IN OUT. Compiled with
 * -D'KERNELS=K(4, 3) K(2, 2)'. Buffers have exactly the documented sizes, so that a sanitizer sees a byte too far.
 * Without arguments: prints the instruction sets of this machine that there are kernels for. */
#define _POSIX_C_SOURCE 200112L
#include "check.h"
#include "bytedot_dense_kernels.h"

typedef struct {
    int32_t isa, bases, bits, words, layer_blocks, first_block, blocks;
} case_t;

typedef void kernel_fn(const uint64_t *, const int32_t *, const uint8_t *, int32_t, int32_t, int32_t, int32_t *);

#define KERNEL(BASES, BITS, INDEX, ISA) [BDCC_ISA_##INDEX] = bdcc_bytedot_dense_b##BASES##q##BITS##__##ISA
#define K(BASES, BITS) \
    if (bases == BASES && bits == BITS) { \
        kernel_fn *const kernels[] = EACH_ISA(KERNEL, BASES, BITS); \
        return kernels[isa]; \
    }

static kernel_fn *find(int32_t isa, int32_t bases, int32_t bits) {
    KERNELS
    exit(3);
}

static void run(const case_t *c, FILE *in, FILE *out) {
    const size_t planes = (size_t)c->layer_blocks * (size_t)c->words * (size_t)c->bases * 8;
    uint64_t *weights = take(in, planes * sizeof *weights);
    int32_t *coefficients = take(in, (size_t)c->layer_blocks * (size_t)c->bases * 8 * sizeof *coefficients);
    uint8_t *x = take(in, (size_t)c->words * 64);
    const size_t count = (size_t)c->blocks * 8;
    int32_t *y = room(count * sizeof *y);
    find(c->isa, c->bases, c->bits)(weights, coefficients, x, c->words, c->first_block, c->blocks, y);
    if (fwrite(y, sizeof *y, count, out) != count) exit(2);
    free(weights);
    free(coefficients);
    free(x);
    free(y);
}

static void run_all(FILE *in, FILE *out) {
    case_t c;
    while (fread(&c, sizeof c, 1, in) == 1) run(&c, in, out);
}

int main(int argc, char **argv) { return check(argc, argv, run_all); }
