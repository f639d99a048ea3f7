/* SPDX-License-Identifier: 0BSD
 * The memory that a process holds after a few inferences, linked with a project's static library:
 *
 *     cc resident.c -DMODEL=alexnet -DHEADER='"alexnet.h"' -DINPUTS=154587 -DOUTPUTS=202 libalexnet.a
 *
 * prints "steady_kib N peak_kib N". Without MODEL: the same process with nothing in it, to be subtracted.
 * Input and output are the caller's, so they are touched in both. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(MODEL)
#include HEADER
#define JOIN(a, b) a##b
#define NAME(m, what) JOIN(m, what)
#endif

enum { RUNS = 3 };
static float input[INPUTS], output[OUTPUTS];

static long status(const char *key) {
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            kib = strtol(line + strlen(key), NULL, 10);
        }
    }
    if (file) {
        fclose(file);
    }
    return kib;
}

int main(void) {
    for (int i = 0; i < INPUTS; i++) {
        input[i] = (float)(i % 17) * 0.1f - 0.8f;
    }
    memset(output, 1, sizeof output);
#if defined(MODEL)
    NAME(MODEL, _t) model;
    size_t bytes = NAME(MODEL, _arena_bytes)();
    void *arena = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!arena || NAME(MODEL, _init)(&model, NULL, 0)) {
        return 1;
    }
    for (int i = 0; i < RUNS; i++) {
        if (NAME(MODEL, _run)(&model, arena, bytes, input, output)) {
            return 1;
        }
    }
#endif
    printf("steady_kib %ld peak_kib %ld\n", status("VmRSS:"), status("VmHWM:"));
    return 0;
}
