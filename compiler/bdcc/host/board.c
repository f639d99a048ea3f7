/* SPDX-License-Identifier: 0BSD
 * Times a project's static library where there is no Python; board.mk compiles it.
 *
 *     board THREADS run|steps ISA LEAST MOST SECONDS       ISA: "" for the widest
 *
 * Rounds go on for SECONDS, but are at least LEAST and at most MOST: of the whole network (run), or of each of its steps, and
 * then of no step at all (steps). Prints "bdcc isa NAME", and of each "bdcc run|steps ROUNDS LEAST_NS MEDIAN_NS". */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include HEADER
#define JOIN(a, b) a##b
#define NAME(m, what) JOIN(m, what)
#define CALL(what) NAME(MODEL, what)

static float input[INPUTS], output[OUTPUTS];
static CALL(_t) model;
#if defined(THREADED)
static CALL(_pool_t) pool;
#endif

/* Stays on one CPU, the fastest where they differ (and then the last): one clock, one set of caches. */
static void pin(void) {
#if defined(__linux__)
    cpu_set_t allowed, chosen;
    long most = -1;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[80];
        long capacity = 0;
        if (!CPU_ISSET((size_t)cpu, &allowed)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpu_capacity", cpu);
        FILE *file = fopen(path, "r");
        if (file != NULL) {
            if (fscanf(file, "%ld", &capacity) != 1) capacity = 0;
            fclose(file);
        }
        if (capacity >= most) {
            most = capacity;
            CPU_ZERO(&chosen);
            CPU_SET((size_t)cpu, &chosen);
        }
    }
    if (most >= 0) sched_setaffinity(0, sizeof chosen, &chosen);
#endif
}

static double now(void) { /* nanoseconds */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run(void *arena, size_t bytes, int first, int last) {
#if defined(THREADED)
    return CALL(_run_steps_mt)(&model, &pool, arena, bytes, input, output, first, last);
#else
    return CALL(_run_steps)(&model, arena, bytes, input, output, first, last);
#endif
}

static int fail(const char *why) {
    fprintf(stderr, "board: %s\n", why);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 7) return fail("usage: board THREADS run|steps ISA LEAST MOST SECONDS");
    const int threads = atoi(argv[1]), by_step = strcmp(argv[2], "steps") == 0;
    const long least = atol(argv[4]), most = atol(argv[5]);
    const double budget = atof(argv[6]) * 1e9;
    if (threads < 1 || least < 1 || most < least) return fail("numbers that make no sense");
    int status = argv[3][0] == 0 ? CALL(_init)(&model, NULL, 0) : CALL(_init_isa)(&model, NULL, 0, argv[3]);
    if (status != 0) return fail(CALL(_strerror)(status));
#if defined(THREADED)
    status = CALL(_pool_start)(&pool, threads);
    if (status != 0) return fail(CALL(_strerror)(status));
    const size_t bytes = CALL(_arena_bytes_mt)(threads);
#else
    pin();
    const size_t bytes = CALL(_arena_bytes)();
#endif

    uint32_t seed = 1;
    for (int i = 0; i < INPUTS; i++) { /* near a normal distribution */
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            sum += (float)(seed >> 8) / 16777216.0f - 0.5f;
        }
        input[i] = sum * 1.7f;
    }

    const int count = CALL(_step_count)(), parts = by_step ? count + 1 : 1;
    void *arena = aligned_alloc(64, (bytes + 63) / 64 * 64);
    double *times = malloc((size_t)parts * (size_t)most * sizeof *times);
    if (arena == NULL || times == NULL) return fail("memory ran out");
    if (run(arena, bytes, 0, count) != 0) return fail("the library refuses to run"); /* touches arena and weights */
    long rounds = 0;
    const double began = now();
    while (rounds < least || (rounds < most && now() - began < budget)) {
        for (int part = 0; part < parts; part++) {
            const int first = by_step && part < count ? part : 0, last = !by_step ? count : part < count ? part + 1 : 0;
            const double start = now();
            if (run(arena, bytes, first, last) != 0) return fail("the library refuses to run");
            times[part * most + rounds] = now() - start;
        }
        ++rounds;
    }
    printf("bdcc isa %s\n", CALL(_isa)(&model));
    for (int part = 0; part < parts; part++) {
        double *own = times + part * most;
        qsort(own, (size_t)rounds, sizeof *own, ascending);
        const double median = (own[(rounds - 1) / 2] + own[rounds / 2]) / 2;
        printf("bdcc %s %ld %.0f %.0f\n", argv[2], rounds, own[0], median);
    }
#if defined(THREADED)
    if (CALL(_pool_stop)(&pool) != 0) return fail("the pool cannot be stopped");
#endif
    free(times);
    free(arena);
    return 0;
}
