/* SPDX-License-Identifier: 0BSD
 * What the runtime's tests share: one check, bitwise comparison, random and adversarial values. */
#ifndef BDCC_CHECK_H
#define BDCC_CHECK_H

#include "bdcc_base.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int failures;

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            ++failures;                                                          \
            printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
        }                                                                        \
    } while (0)

/* Exactly n * size bytes on the heap, so that a sanitizer sees every step outside. */
BDCC_UNUSED static void *room(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (p == NULL) exit(2);
    return p;
}

static uint64_t random_state = 1;

BDCC_UNUSED static uint32_t random_u32(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 32);
}

BDCC_UNUSED static int32_t random_below(int32_t n) { return (int32_t)(random_u32() % (uint32_t)n); }

BDCC_UNUSED static float random_float(void) { return ((float)random_below(2000001) - 1000000.0f) * 1e-5f; }

/* One in eight is a value that breaks things: NaN of any sign and payload, infinities, zeros of both signs, huge,
 * subnormal. */
BDCC_UNUSED static float hard_float(void) {
    static const uint32_t hard[] = { 0x7FC00000u, 0xFFC00001u, 0x7F800000u, 0xFF800000u, 0x80000000u,
                                     0x00000000u, 0x7F7FFFFFu, 0xFF7FFFFFu, 0x00000001u, 0x807FFFFFu,
                                     0x3F000000u, 0xBF000000u, 0x40200000u, 0xC0200000u };
    if (random_u32() % 8 != 0) return random_float();
    return bdcc_float_from_bits(hard[random_u32() % (sizeof hard / sizeof hard[0])]);
}

BDCC_UNUSED static float *floats(size_t n, float (*next)(void)) {
    float *x = (float *)room(n, sizeof *x);
    for (size_t i = 0; i < n; ++i) x[i] = next();
    return x;
}

/* Lays `runs` runs of `run` bytes of part into whole, `pitch` apart: what lies between must stay as it was. */
BDCC_UNUSED static void lay(void *whole, const void *part, size_t runs, size_t run, size_t pitch) {
    for (size_t i = 0; i < runs * run; ++i)
        ((unsigned char *)whole)[i / run * pitch + i % run] = ((const unsigned char *)part)[i];
}

BDCC_UNUSED static float plain_canonical(float x) { return isnan(x) ? bdcc_float_from_bits(0x7FC00000u) : x; }

BDCC_UNUSED static void check_floats(const char *what, const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        if (bdcc_float_bits(got[i]) == bdcc_float_bits(want[i])) continue;
        ++failures;
        printf("%s: value %zu of %zu is %.9g (%08x), not %.9g (%08x)\n", what, i, n, (double)got[i],
               (unsigned)bdcc_float_bits(got[i]), (double)want[i], (unsigned)bdcc_float_bits(want[i]));
        return;
    }
}

BDCC_UNUSED static void check_bytes(const char *what, const uint8_t *got, const uint8_t *want, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        if (got[i] == want[i]) continue;
        ++failures;
        printf("%s: byte %zu of %zu is %d, not %d\n", what, i, n, got[i], want[i]);
        return;
    }
}

BDCC_UNUSED static int report(const char *name) {
    printf("%s: %s\n", name, failures == 0 ? "ok" : "FAILED");
    return failures != 0;
}

#endif
