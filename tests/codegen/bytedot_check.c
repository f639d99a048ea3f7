/* SPDX-License-Identifier: 0BSD
 * Runs the byte dot-product kernels on the cases of a file and writes every y_int: bytedot_check IN OUT. Compiled with
 * -D'KERNELS=K(4) K(2)'. Buffers have exactly the documented sizes, so that a sanitizer sees a byte too far; pixels are
 * computed in two ranges, the second one first. Without arguments: prints the instruction sets of this machine. */
#define _POSIX_C_SOURCE 200112L
#include "check.h"
#include "bytedot_kernels.h"

typedef struct {
    int32_t isa, bases, flush, offset, flush_signed, weights, valid, x;
    int32_t out_w, pixels, blocks, rows, words, taps, tap_bytes, pixel_stride, row_stride, line_stride;
} case_t;

typedef void expand_fn(const bdcc_view_t *, const uint64_t *, const int32_t *, const uint64_t *, int32_t, int8_t *);
typedef void kernel_fn(const bdcc_view_t *, const uint8_t *, const int8_t *, int32_t, int32_t, int32_t, int32_t *);

#define KERNEL(ALL, INDEX, ISA) [BDCC_ISA_##INDEX] = ALL##__##ISA
static kernel_fn *const kernels[] = EACH_ISA(KERNEL, bdcc_bytedot);
#define K(BASES) \
    if (bases == BASES) { \
        expand_fn *const expansions[] = EACH_ISA(KERNEL, bdcc_bytedot_expand_b##BASES); \
        return expansions[isa]; \
    }

static expand_fn *find(int32_t isa, int32_t bases) {
    KERNELS
    exit(3);
}

static void run(const case_t *c, FILE *in, FILE *out) {
    const bdcc_view_t g = {
        .out_w = c->out_w, .pixels = c->pixels, .blocks = c->blocks, .rows = c->rows, .words = c->words,
        .taps = c->taps, .tap_bytes = c->tap_bytes, .pixel_stride = c->pixel_stride, .row_stride = c->row_stride,
        .line_stride = c->line_stride, .flush = c->flush, .offset = c->offset, .flush_signed = c->flush_signed,
    };
    uint64_t *weights = take(in, (size_t)c->weights * sizeof *weights);
    int32_t *coefficients = take(in, (size_t)(c->blocks * c->bases * 8) * sizeof *coefficients);
    uint64_t *valid = take(in, (size_t)c->valid * sizeof *valid);
    uint8_t *x = take(in, (size_t)c->x);
    const size_t row = 8 * BDCC_UNIT, run_bytes = (size_t)c->taps * (size_t)c->tap_bytes;
    int32_t *y = room((size_t)c->pixels * row * sizeof *y);
    const int32_t few = c->pixels / 3;
    for (int32_t unit = 0; unit * BDCC_UNIT < c->blocks; unit++) {
        const int32_t blocks = bdcc_unit_blocks(&g, unit);
        int8_t *expanded = room(((size_t)c->rows * run_bytes + sizeof(int32_t)) * 8 * (size_t)blocks);
        find(c->isa, c->bases)(&g, weights, coefficients, valid, unit, expanded);
        kernels[c->isa](&g, x, expanded, blocks, few, c->pixels - few, y + (size_t)few * row);
        kernels[c->isa](&g, x, expanded, blocks, 0, few, y);
        for (int32_t pixel = 0; pixel < c->pixels; pixel++) {
            const size_t filters = (size_t)blocks * 8;
            if (fwrite(y + (size_t)pixel * row, sizeof *y, filters, out) != filters) exit(2);
        }
        free(expanded);
    }
    free(weights);
    free(coefficients);
    free(valid);
    free(x);
    free(y);
}

static void run_all(FILE *in, FILE *out) {
    case_t c;
    while (fread(&c, sizeof c, 1, in) == 1) run(&c, in, out);
}

int main(int argc, char **argv) { return check(argc, argv, run_all); }
