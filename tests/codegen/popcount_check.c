/* SPDX-License-Identifier: 0BSD
 * Runs the packing and the popcount kernels on the cases of a file and writes every y_int: popcount_check IN OUT.
 * Compiled with -D'KERNELS=K(4, 3) K(2, 2)'. Buffers have exactly the documented sizes, so that a sanitizer sees a byte
 * too far. Without arguments: prints the instruction sets of this machine. */
#define _POSIX_C_SOURCE 200112L
#include "check.h"
#include "popcount_kernels.h"

enum { DIRECT, GATHERED, VECTOR };

typedef struct {
    int32_t isa, bases, form, out_h, out_w, groups, blocks, rows, words, weights, valid, codes;
    bdcc_window_t window; /* first_channel is of group 0 */
} case_t;

typedef void kernel_fn(const bdcc_gemm_t *, const uint8_t *, const uint64_t *, const int32_t *, const uint64_t *,
                       int32_t *);

#define KERNEL(BASES, BITS, INDEX, ISA) [BDCC_ISA_##INDEX] = bdcc_popcount_b##BASES##q##BITS##__##ISA
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
    kernel_fn *const kernel = find(c->isa, c->bases, c->window.bits);
    bdcc_window_t w = c->window;
    w.isa = c->isa;
    bdcc_gemm_t g = { .pixels = c->out_w, .blocks = c->blocks, .rows = c->rows, .words = c->words };
    uint64_t *weights = take(in, (size_t)c->weights * sizeof *weights);
    int32_t *coefficients = take(in, (size_t)(c->groups * c->blocks * c->bases * 8) * sizeof *coefficients);
    uint64_t *valid = take(in, (size_t)c->valid * sizeof *valid);
    uint8_t *codes = take(in, (size_t)c->codes);
    if (c->form == DIRECT) {
        g.pixel_stride = w.stride_w * bdcc_direct_pixel_bytes(&w);
        g.row_stride = w.dilation_h * bdcc_direct_row_bytes(&w);
        g.plane_stride = bdcc_direct_plane_bytes(&w);
    } else {
        g.pixel_stride = (ptrdiff_t)c->words * 8;
        g.plane_stride = c->out_w * g.pixel_stride;
    }
    uint8_t *planes = room((size_t)(w.bits * g.plane_stride) + (c->form == DIRECT ? 7 : 0));
    uint8_t *scratch = room((size_t)c->words * 64);
    const size_t count = (size_t)c->out_w * (size_t)c->blocks * 8;
    int32_t *y = room(count * sizeof *y);
    for (int32_t group = 0; group < c->groups; group++) {
        w.first_channel = group * w.channels;
        if (c->form == DIRECT) bdcc_pack_direct(&w, codes, planes);
        if (c->form == VECTOR) bdcc_pack_vector(codes, w.channels, c->words, w.bits, planes);
        for (int32_t row = 0; row < c->out_h; row++) {
            const uint8_t *x = planes;
            if (c->form == DIRECT) x += row * w.stride_h * bdcc_direct_row_bytes(&w);
            if (c->form == GATHERED) bdcc_gather_row(&w, row, c->out_w, c->words, codes, scratch, planes);
            kernel(&g, x, weights + group * (c->weights / c->groups), coefficients + group * c->blocks * c->bases * 8,
                   valid, y);
            if (fwrite(y, sizeof *y, count, out) != count) exit(2);
        }
    }
    free(weights);
    free(coefficients);
    free(valid);
    free(codes);
    free(planes);
    free(scratch);
    free(y);
}

static void run_all(FILE *in, FILE *out) {
    case_t c;
    while (fread(&c, sizeof c, 1, in) == 1) run(&c, in, out);
}

int main(int argc, char **argv) { return check(argc, argv, run_all); }
