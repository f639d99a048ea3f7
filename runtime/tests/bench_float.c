/* SPDX-License-Identifier: 0BSD
 * Speed of the steps that are not the popcount product, on AlexNet's shapes, for each instruction set of this CPU. */
#define _POSIX_C_SOURCE 199309L
#include "bdcc_checksum.h"
#include "bdcc_image.h"
#include "bdcc_isa.h"
#include "bdcc_lrn.h"
#include "bdcc_pool.h"
#include "bdcc_quantize.h"
#include "bdcc_softmax.h"

#include "check.h"

#include <time.h>

#define BDCC_NAME(x) x##_generic
#define BDCC_TARGET
#define BDCC_ISA_INDEX BDCC_ISA_GENERIC
#include "bdcc_float_layers.h"
#if BDCC_X86
#undef BDCC_NAME
#undef BDCC_TARGET
#undef BDCC_ISA_INDEX
#define BDCC_NAME(x) x##_avx2
#define BDCC_TARGET BDCC_TARGET_AVX2
#define BDCC_ISA_INDEX BDCC_ISA_AVX2
#include "bdcc_float_layers.h"
#undef BDCC_NAME
#undef BDCC_TARGET
#undef BDCC_ISA_INDEX
#define BDCC_NAME(x) x##_avx512
#define BDCC_TARGET BDCC_TARGET_AVX512
#define BDCC_ISA_INDEX BDCC_ISA_AVX512
#include "bdcc_float_layers.h"
#endif

typedef struct {
    const float *x, *w, *bias;
    float *y, *scratch;
    uint8_t *codes;
} data_t;

static const bdcc_conv_t conv1 = { 224, 224, 3, 54, 54, 96, 11, 11, 4, 4, 0, 0, 1, 1, 1 };
static const bdcc_conv_t conv2 = { 27, 27, 96, 27, 27, 256, 5, 5, 1, 1, 2, 2, 1, 1, 2 };
static const bdcc_conv_t conv3 = { 13, 13, 256, 13, 13, 384, 3, 3, 1, 1, 1, 1, 1, 1, 1 };
static const bdcc_pool_t pool1 = { 55, 55, 96, 27, 27, 3, 3, 2, 2, 0, 0, 1, 1, 0, 0, 0 };
static const bdcc_pool_t pool111 = { 111, 111, 96, 55, 55, 3, 3, 2, 2, 0, 0, 1, 1, 0, 0, 0 };
static const bdcc_quant_t four_bits = { 3.0f, 0, 15 };
static const uint8_t order[3] = { 0, 1, 2 };
enum { MAP = 55 * 55 * 96, SMALL = 27 * 27, DENSE = 4096 };

/* name, what it does with `d`, units of work, unit */
#define CASES(CASE, isa)                                                                                             \
    CASE(isa, conv1, bdcc_conv_float_##isa(&conv1, d->x, d->w, d->bias, 1, d->y, conv1.out_c), 54.0 * 54 * 96 * 363, \
         "GMAC/s")                                                                                                   \
    CASE(isa, conv2, bdcc_conv_float_##isa(&conv2, d->x, d->w, d->bias, 1, d->y, conv2.out_c),                       \
         27.0 * 27 * 256 * 1200, "GMAC/s")                                                                           \
    CASE(isa, conv3, bdcc_conv_float_##isa(&conv3, d->x, d->w, d->bias, 1, d->y, conv3.out_c), 169.0 * 384 * 2304,   \
         "GMAC/s")                                                                                                   \
    CASE(isa, dense, bdcc_dense_float(d->x, d->w, d->bias, DENSE, DENSE, 1, d->y), 4.0 * DENSE * DENSE, "GB/s")      \
    CASE(isa, lrn, bdcc_lrn_float(&(bdcc_lrn_t){ SMALL, 96, 5, 2e-5f, 1.0f, 3 }, d->x, d->scratch, d->y),            \
         4.0 * SMALL * 96, "GB/s")                                                                                   \
    CASE(isa, max_pool, bdcc_max_pool_float(&pool1, d->x, 0, d->y, pool1.channels), 4.0 * MAP, "GB/s")               \
    CASE(isa, max_pool_finite, bdcc_max_pool_float(&pool1, d->x, 1, d->y, pool1.channels), 4.0 * MAP, "GB/s")        \
    CASE(isa, max_pool_111, bdcc_max_pool_codes(&pool111, (const uint8_t *)d->w, d->codes, 96), 111. * 111 * 96,     \
         "GB/s")                                                                                                     \
    CASE(isa, max_pool_codes, bdcc_max_pool_codes(&pool1, (const uint8_t *)d->x, d->codes, pool1.channels),          \
         1.0 * MAP, "GB/s")                                                                                          \
    CASE(isa, average_pool, bdcc_average_pool(&pool1, d->x, d->y, pool1.channels), 4.0 * MAP, "GB/s")                \
    CASE(isa, quantize, bdcc_quantize(d->x, MAP, four_bits, d->codes), 4.0 * MAP, "GB/s")                            \
    CASE(isa, dynamic_range, (void)bdcc_dynamic_range(d->x, MAP, 4, d->y), 4.0 * MAP, "GB/s")                        \
    CASE(isa, epilogue_codes, bdcc_epilogue_codes((const int32_t *)(const void *)d->x, SMALL, 256, 256, d->w,        \
         d->bias, 1, four_bits, d->codes, 256), 4.0 * SMALL * 256, "GB/s")                                           \
    CASE(isa, epilogue_float, bdcc_epilogue_float((const int32_t *)(const void *)d->x, 169, 384, 384, d->w, d->bias, \
         1, d->y, 384), 4.0 * 169 * 384, "GB/s")                                                                     \
    CASE(isa, epilogue_codes_384, bdcc_epilogue_codes((const int32_t *)(const void *)d->x, 169, 384, 384, d->w,      \
         d->bias, 1, four_bits, d->codes, 384), 4.0 * 169 * 384, "GB/s")                                             \
    CASE(isa, epilogue_codes_k1, bdcc_epilogue_codes((const int32_t *)(const void *)d->x, 1, 4096, 4096, d->w,       \
         d->bias, 1, four_bits, d->codes, 4096), 4.0 * 4096, "GB/s")                                                 \
    CASE(isa, input_float, bdcc_input_float(d->x, 3, 227, 227, d->y), 12.0 * 227 * 227, "GB/s")                      \
    CASE(isa, input_u8, bdcc_input_u8((const uint8_t *)d->w, 3 * 227, 3, 227, 227, d->bias, order, d->y),            \
         3.0 * 227 * 227, "GB/s")                                                                                    \
    CASE(isa, input_codes, bdcc_input_codes(d->x, 3, 227, 227, four_bits, d->codes), 12.0 * 227 * 227, "GB/s")       \
    CASE(isa, input_u8_codes, bdcc_input_u8_codes((const uint8_t *)d->w, 3 * 227, 3, 227, 227,                       \
         (const uint8_t *)d->bias, order, d->codes), 3.0 * 227 * 227, "GB/s")                                        \
    CASE(isa, lrn_55, bdcc_lrn_float(&(bdcc_lrn_t){ 55 * 55, 96, 5, 2e-5f, 1.0f, 3 }, d->x, d->scratch, d->y),       \
         4.0 * 55 * 55 * 96, "GB/s")                                                                                 \
    CASE(isa, lrn_27, bdcc_lrn_float(&(bdcc_lrn_t){ 27 * 27, 256, 5, 2e-5f, 1.0f, 3 }, d->x, d->scratch, d->y),      \
         4.0 * 27 * 27 * 256, "GB/s")                                                                                \
    CASE(isa, lrn_codes_55, bdcc_lrn_codes(&(bdcc_lrn_t){ 55 * 55, 96, 5, 2e-5f, 1.0f, 3 }, d->x, d->y, four_bits,   \
         d->codes), 4.0 * 55 * 55 * 96, "GB/s")                                                                      \
    CASE(isa, relu, bdcc_relu(d->x, MAP, d->y), 4.0 * MAP, "GB/s")                                                   \
    CASE(isa, gap, bdcc_global_average_pool(d->x, 169, 1000, d->y), 4.0 * 169000, "GB/s")                            \
    CASE(isa, output, bdcc_output_float(d->x, 1000, 1, 1, d->y), 4.0 * 1000, "GB/s")                                 \
    CASE(isa, reorder, bdcc_output_float(d->x, 256, 6, 6, d->y), 4.0 * 9216, "GB/s")                                 \
    CASE(isa, softmax, bdcc_softmax(d->x, 1, 1000, d->y), 4000.0, "GB/s")                                            \
    CASE(isa, checksum, d->y[0] = (float)bdcc_checksum(d->w, 4 * DENSE * DENSE), 4.0 * DENSE * DENSE, "GB/s")

typedef void (*step_t)(const data_t *d);
typedef struct {
    const char *name;
    step_t step;
    double work;
    const char *unit;
} case_t;

#define GENERIC(isa, name, call, work, unit) \
    static void name##_generic(const data_t *d) { call; }
CASES(GENERIC, generic)
#define GENERIC_ROW(isa, name, call, work, unit) { #name, name##_generic, work, unit },
static const case_t generic[] = { CASES(GENERIC_ROW, generic) };
#if BDCC_X86
#define AVX2(isa, name, call, work, unit) \
    BDCC_TARGET_AVX2 static void name##_avx2(const data_t *d) { call; }
CASES(AVX2, avx2)
#define AVX2_ROW(isa, name, call, work, unit) { #name, name##_avx2, work, unit },
static const case_t avx2[] = { CASES(AVX2_ROW, avx2) };
#define AVX512(isa, name, call, work, unit) \
    BDCC_TARGET_AVX512 static void name##_avx512(const data_t *d) { call; }
CASES(AVX512, avx512)
#define AVX512_ROW(isa, name, call, work, unit) { #name, name##_avx512, work, unit },
static const case_t avx512[] = { CASES(AVX512_ROW, avx512) };
#endif

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* n floats where an arena or a section of weights would begin. */
static float *lined_up(size_t n) {
    float *x = (float *)aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    if (x == NULL) exit(2);
    for (size_t i = 0; i < n; ++i) x[i] = random_float();
    return x;
}

/* Shortest of several runs: the machine may be shared. */
static void measure(const case_t *c, const data_t *d) {
    double best = 1e9;
    for (int repeat = 0; repeat < 7; ++repeat) {
        const double start = seconds();
        double elapsed;
        int runs = 0;
        do {
            c->step(d);
            ++runs;
            elapsed = seconds() - start;
        } while (elapsed < 0.01);
        best = fmin(best, elapsed / runs);
    }
    printf("%10.1f us %6.1f %-6s", best * 1e6, c->work / best * 1e-9, c->unit);
}

/* bench_float [CASE ..]: these cases, or all whose name begins so. */
static int chosen(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; ++i) {
        if (strncmp(name, argv[i], strlen(argv[i])) == 0) return 1;
    }
    return argc < 2;
}

int main(int argc, char **argv) {
    const size_t weights = (size_t)DENSE * DENSE;
    const data_t d = { lined_up(MAP), lined_up(weights), lined_up(DENSE),
                       lined_up(MAP), lined_up(DENSE),   (uint8_t *)lined_up(MAP) };
    printf("%-15s %-24s%-24s%-24s\n", "", "   generic", "   avx2", "   avx512");
    for (size_t i = 0; i < sizeof generic / sizeof generic[0]; ++i) {
        if (!chosen(generic[i].name, argc, argv)) continue;
        printf("%-15s", generic[i].name);
        measure(&generic[i], &d);
#if BDCC_X86
        if (bdcc_isa_usable(BDCC_ISA_AVX2)) measure(&avx2[i], &d);
        if (bdcc_isa_usable(BDCC_ISA_AVX512)) measure(&avx512[i], &d);
#endif
        printf("\n");
    }
    return 0;
}
