/* SPDX-License-Identifier: 0BSD
 * bdcc_concat.h: slices side by side are the inputs' bytes, pixel by pixel, and nothing else is touched. */
#include "bdcc_concat.h"

#include "check.h"

int main(void) {
    enum { PIXELS = 7, PARTS = 3 };
    static const size_t runs[PARTS] = { 1, 12, 20 };
    for (size_t pitch = 33; pitch < 36; ++pitch) { /* 33: no gap behind the last slice */
        const size_t n = (PIXELS - 1) * pitch + 33;
        uint8_t *got = room(n, 1), *want = room(n, 1);
        for (size_t i = 0; i < n; ++i) got[i] = want[i] = (uint8_t)random_below(256);
        for (size_t part = 0, start = 0; part < PARTS; start += runs[part++]) {
            uint8_t *x = room(PIXELS * runs[part], 1);
            for (size_t i = 0; i < PIXELS * runs[part]; ++i) x[i] = (uint8_t)random_below(256);
            lay(want + start, x, PIXELS, runs[part], pitch);
            bdcc_concat_slice(x, PIXELS, runs[part], got + start, pitch);
            free(x);
        }
        check_bytes("concat", got, want, n);
        free(got);
        free(want);
    }
    return report("concat");
}
