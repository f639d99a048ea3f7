/* SPDX-License-Identifier: 0BSD
 * Runs the look-up kernels on the cases of a file and writes every y_int: lut_check IN OUT. Compiled with
 * -D'KERNELS=K(4, 3) K(2, 2)'. Buffers have exactly the documented sizes, so that a sanitizer sees a byte too far; tables
 * and pixels are computed in two ranges, the second one first. Without arguments: prints the instruction sets of
 * this machine. */
#define _POSIX_C_SOURCE 200112L /* posix_memalign takes any size */
#include "check.h"
#include "lut_kernels.h"

typedef struct {
    int32_t isa, bases, bits, weights, valid, x, table_bytes, scratch_bytes;
    int32_t out_w, pixels, blocks, rows, words, taps, tap_bytes, pixel_stride, row_stride, line_stride;
} case_t;

typedef void tables_fn(const bdcc_view_t *, const uint8_t *, const uint64_t *, int32_t, int32_t, unsigned char *);
typedef void kernel_fn(const bdcc_view_t *, const uint8_t *, const unsigned char *, const uint64_t *, const int32_t *,
                       const uint64_t *, unsigned char *, int32_t, int32_t, int32_t, int32_t *);
typedef struct {
    tables_fn *tables;
    kernel_fn *kernel;
    int32_t unit;
} family_t;

#define FAMILY(BASES, BITS, INDEX, ISA) \
    [BDCC_ISA_##INDEX] = { bdcc_lut_tables_q##BITS##__##ISA, bdcc_lut_b##BASES##q##BITS##__##ISA, bdcc_lut_unit__##ISA }
#define K(BASES, BITS) \
    if (bases == BASES && bits == BITS) { \
        const family_t families[] = EACH_ISA(FAMILY, BASES, BITS); \
        return families[isa]; \
    }

static family_t find(int32_t isa, int32_t bases, int32_t bits) {
    KERNELS
    exit(3);
}

static void run(const case_t *c, FILE *in, FILE *out) {
    const family_t f = find(c->isa, c->bases, c->bits);
    const bdcc_view_t g = {
        .out_w = c->out_w, .pixels = c->pixels, .blocks = c->blocks, .rows = c->rows, .words = c->words,
        .taps = c->taps, .tap_bytes = c->tap_bytes, .pixel_stride = c->pixel_stride, .row_stride = c->row_stride,
        .line_stride = c->line_stride, .cells = c->x / c->tap_bytes,
    };
    uint64_t *weights = take(in, (size_t)c->weights * sizeof *weights);
    int32_t *coefficients = take(in, (size_t)(c->blocks * c->bases * 8) * sizeof *coefficients);
    uint64_t *valid = take(in, (size_t)c->valid * sizeof *valid);
    uint8_t *x = take(in, (size_t)c->x);
    unsigned char *tables = room((size_t)c->table_bytes), *scratch = room((size_t)c->scratch_bytes);
    int32_t *y = room((size_t)c->pixels * (size_t)f.unit * sizeof *y);
    const int32_t cells = g.cells, some = cells / 3, few = c->pixels / 3;
    f.tables(&g, x, valid, some, cells - some, tables);
    f.tables(&g, x, valid, 0, some, tables);
    for (int32_t unit = 0; unit * f.unit < c->blocks * 8; unit++) {
        const int32_t rest = c->blocks * 8 - unit * f.unit, filters = rest < f.unit ? rest : f.unit;
        f.kernel(&g, x, tables, weights, coefficients, valid, scratch, unit, few, c->pixels - few, y + few * f.unit);
        f.kernel(&g, x, tables, weights, coefficients, valid, scratch, unit, 0, few, y);
        for (int32_t pixel = 0; pixel < c->pixels; pixel++) {
            if (fwrite(y + pixel * f.unit, sizeof *y, (size_t)filters, out) != (size_t)filters) exit(2);
        }
    }
    free(weights);
    free(coefficients);
    free(valid);
    free(x);
    free(tables);
    free(scratch);
    free(y);
}

static void run_all(FILE *in, FILE *out) {
    case_t c;
    while (fread(&c, sizeof c, 1, in) == 1) run(&c, in, out);
}

int main(int argc, char **argv) { return check(argc, argv, run_all); }
