/* SPDX-License-Identifier: 0BSD
 * What one core can do at most: its clock, how many of the instructions that kernels are made of it issues per cycle,
 * and how fast it reads memory. `bdcc bench --layers` compiles and runs this; it is no part of any project.
 *
 *     probe BYTES      BYTES: a third size to read, beside one that the last cache holds and one that none does
 *
 * prints lines: "ghz G", "rate NAME N" (operations per cycle), "cache_bytes N", "read BYTES N" (GB/s). Times are the
 * least of many of some microseconds each, so that other work on the machine counts little. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include "bdcc_isa.h"
#endif

enum { REPEATS = 250, ROUNDS = 16000, PASSES = 24, PARTS = 64 };
enum { SMALL = 2 << 20, LEAST_MEMORY = 64 << 20, LEAST_GIVEN = 4096 };
typedef void (*loop_t)(long rounds);

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- the clock: additions that wait for each other take a cycle each; of a constant, some CPUs do six at once --- */

#define BARRIER(x) __asm__ volatile("" : "+r"(x))
#define TIMES8(S) S S S S S S S S

static volatile uintptr_t one = 1;

static void additions(long rounds) {
    uintptr_t sum = 0, step = one;
    for (; rounds; rounds--) {
        TIMES8(TIMES8(sum += step; BARRIER(sum);))
    }
}
enum { ADDITIONS = 64 };

/* --- plain C: what the compiler makes of it --- */

/* A byte chooses one of 256 sums. */
static void table64(long rounds) {
    static uint64_t sums[256];
    static uint8_t choices[8];
    const uint64_t *table = sums;
    const uint8_t *choice = choices;
    uint64_t s0 = 0, s1 = 0;
    for (; rounds; rounds--) {
        BARRIER(table);
        BARRIER(choice);
        s0 += table[choice[0]], s1 += table[choice[1]], s0 += table[choice[2]], s1 += table[choice[3]];
        s0 += table[choice[4]], s1 += table[choice[5]], s0 += table[choice[6]], s1 += table[choice[7]];
        BARRIER(s0);
        BARRIER(s1);
    }
}

#if defined(__x86_64__)

/* --- x86-64: instructions by name; each line of a loop is one operation of the kernels --- */

#define XMM                                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "xmm14", "xmm15"
#define TIMES12(L) L("0") L("1") L("2") L("3") L("4") L("5") L("6") L("7") L("8") L("9") L("10") L("11")
#define LOOP(name, lines, end)                                                                                 \
    static void name(long rounds) {                                                                            \
        __asm__ volatile("xorps %%xmm14, %%xmm14\n\txorps %%xmm15, %%xmm15\n\t.p2align 5\n1:\n\t" lines         \
                         "dec %0\n\tjnz 1b\n\t" end                                                            \
                         : "+r"(rounds)::"cc", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", XMM);             \
    }

#define POPCNT(t, s) "mov %%r8, %%" t "\n\tand %%r9, %%" t "\n\tpopcnt %%" t ", %%" t "\n\tadd %%" t ", %%" s "\n\t"
LOOP(popcnt64,
    POPCNT("rax", "r10") POPCNT("rcx", "r11") POPCNT("rdx", "r10") POPCNT("rax", "r11") POPCNT("rcx", "r10")
        POPCNT("rdx", "r11") POPCNT("rax", "r10") POPCNT("rcx", "r11") POPCNT("rdx", "r10") POPCNT("rax", "r11")
            POPCNT("rcx", "r10") POPCNT("rdx", "r11"),
    "")

#define MADDWD(i) "movdqa %%xmm14, %%xmm12\n\tpmaddwd %%xmm15, %%xmm12\n\tpaddd %%xmm12, %%xmm" i "\n\t"
#define MADDUBS128(i) "movdqa %%xmm14, %%xmm12\n\tpmaddubsw %%xmm15, %%xmm12\n\tpaddw %%xmm12, %%xmm" i "\n\t"
#define MADDUBS256(i) "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n\tvpaddw %%ymm12, %%ymm" i ", %%ymm" i "\n\t"
#define VNNI256(i) "vpdpbusd %%ymm14, %%ymm15, %%ymm" i "\n\t"
#define AVXVNNI(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" i "\n\t"
#define VNNI512(i) "vpdpbusd %%zmm14, %%zmm15, %%zmm" i "\n\t"
LOOP(madd128, TIMES12(MADDWD), "")
LOOP(maddubs128, TIMES12(MADDUBS128), "")
LOOP(maddubs256, TIMES12(MADDUBS256), "vzeroupper")
LOOP(vnni256, TIMES12(VNNI256), "vzeroupper")
LOOP(avxvnni, TIMES12(AVXVNNI), "vzeroupper")
LOOP(vnni512, TIMES12(VNNI512), "vzeroupper")

#define SHUFFLE128(i) "movdqa %%xmm14, %%xmm12\n\tpshufb %%xmm15, %%xmm12\n\tpaddb %%xmm12, %%xmm" i "\n\t"
#define SHUFFLE256(i) "vpshufb %%ymm14, %%ymm15, %%ymm12\n\tvpaddb %%ymm12, %%ymm" i ", %%ymm" i "\n\t"
#define PERMUTE512(i) "vpermb %%zmm14, %%zmm15, %%zmm12\n\tvpaddb %%zmm12, %%zmm" i ", %%zmm" i "\n\t"
LOOP(shuffle128, TIMES12(SHUFFLE128), "")
LOOP(shuffle256, TIMES12(SHUFFLE256), "vzeroupper")
LOOP(permute512, TIMES12(PERMUTE512), "vzeroupper")

/* A product word and the full adder that takes it in, as the counters of popcount kernels do. */
#define ADDER128(i)                                                                                          \
    "movdqa %%xmm14, %%xmm12\n\tpand %%xmm15, %%xmm12\n\tmovdqa %%xmm" i ", %%xmm13\n\tpxor %%xmm12, %%xmm13" \
    "\n\tpand %%xmm" i ", %%xmm12\n\tmovdqa %%xmm13, %%xmm" i "\n\tpxor %%xmm14, %%xmm" i "\n\tpand %%xmm14, " \
    "%%xmm13\n\tpor %%xmm12, %%xmm13\n\t"
#define ADDER256(i)                                                                                         \
    "vpand %%ymm14, %%ymm15, %%ymm12\n\tvpxor %%ymm12, %%ymm" i ", %%ymm13\n\tvpand %%ymm12, %%ymm" i       \
    ", %%ymm12\n\tvpxor %%ymm13, %%ymm14, %%ymm" i "\n\tvpand %%ymm13, %%ymm14, %%ymm13\n\tvpor %%ymm12, "  \
    "%%ymm13, %%ymm13\n\t"
#define POPCNT512(i) \
    "vpandq %%zmm14, %%zmm15, %%zmm12\n\tvpopcntq %%zmm12, %%zmm12\n\tvpaddq %%zmm12, %%zmm" i ", %%zmm" i "\n\t"
LOOP(adder128, TIMES12(ADDER128), "")
LOOP(adder256, TIMES12(ADDER256), "vzeroupper")
LOOP(popcnt512, TIMES12(POPCNT512), "vzeroupper")

#define MULADD128(i) "movaps %%xmm14, %%xmm12\n\tmulps %%xmm15, %%xmm12\n\taddps %%xmm12, %%xmm" i "\n\t"
#define MULADD256(i) "vmulps %%ymm14, %%ymm15, %%ymm12\n\tvaddps %%ymm12, %%ymm" i ", %%ymm" i "\n\t"
#define MULADD512(i) "vmulps %%zmm14, %%zmm15, %%zmm12\n\tvaddps %%zmm12, %%zmm" i ", %%zmm" i "\n\t"
#define CLEAR(i) "xorps %%xmm" i ", %%xmm" i "\n\t" /* what is left in registers may be slow subnormals */
LOOP(clear, TIMES12(CLEAR), "")
LOOP(muladd128, TIMES12(MULADD128), "")
LOOP(muladd256, TIMES12(MULADD256), "vzeroupper")
LOOP(muladd512, TIMES12(MULADD512), "vzeroupper")

/* --- reading: eight lines a round, `ahead` bytes fetched in advance or not --- */

#define TIMES8_AT(L) L("0") L("64") L("128") L("192") L("256") L("320") L("384") L("448")
#define FETCH(o) "prefetcht0 " o "(%0,%2)\n\t"
#define LINE128(o)                                                                                              \
    "movups " o "(%0), %%xmm0\n\tmovups " o "+16(%0), %%xmm1\n\tmovups " o "+32(%0), %%xmm2\n\tmovups " o        \
    "+48(%0), %%xmm3\n\t"
#define LINE256(o) "vmovdqu " o "(%0), %%ymm0\n\tvmovdqu " o "+32(%0), %%ymm1\n\t"
#define LINE512(o) "vmovdqu64 " o "(%0), %%zmm0\n\t"
#define READ(name, lines, fetches, end)                                                           \
    static void name(const unsigned char *p, size_t bytes, size_t ahead) {                        \
        const unsigned char *stop = p + bytes;                                                    \
        __asm__ volatile(".p2align 5\n1:\n\t" fetches lines                                       \
                         "add $512, %0\n\tcmp %1, %0\n\tjb 1b\n\t" end                            \
                         : "+r"(p)                                                                \
                         : "r"(stop), "r"(ahead)                                                  \
                         : "cc", "memory", XMM);                                                  \
    }
READ(read128, TIMES8_AT(LINE128), "", "")
READ(read128_ahead, TIMES8_AT(LINE128), TIMES8_AT(FETCH), "")
READ(read256, TIMES8_AT(LINE256), "", "vzeroupper")
READ(read256_ahead, TIMES8_AT(LINE256), TIMES8_AT(FETCH), "vzeroupper")
READ(read512, TIMES8_AT(LINE512), "", "vzeroupper")
READ(read512_ahead, TIMES8_AT(LINE512), TIMES8_AT(FETCH), "vzeroupper")

static int has_avxvnni(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

#else

/* --- elsewhere: vectors of 16 bytes; every sum waits for itself alone --- */

typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
#define CHAINS(T, name, sink)                                                                              \
    static volatile T sink;                                                                                \
    static void name(long rounds) {                                                                        \
        const T x = {1, 1, 1, 1};                                                                          \
        T y = sink, a = y, b = y, c = y, d = y, e = y, f = y, g = y, h = y, i = y, j = y, k = y, l = y, m = x; \
        m += y;                                                                                            \
        for (; rounds; rounds--) {                                                                         \
            a = a * m + y, b = b * m + y, c = c * m + y, d = d * m + y, e = e * m + y, f = f * m + y;      \
            g = g * m + y, h = h * m + y, i = i * m + y, j = j * m + y, k = k * m + y, l = l * m + y;      \
        }                                                                                                  \
        sink = a + b + c + d + e + f + g + h + i + j + k + l;                                              \
    }
CHAINS(float4, muladd128, float_sink)
CHAINS(int4, mac128, int_sink)

/* A product word and the full adder that takes it in, as the counters of popcount kernels do. */
static int4 full_add(int4 *sum, int4 b, int4 x) {
    int4 product = x & b, t = *sum ^ product, carry = (*sum & product) | (t & b);
    *sum = t ^ b;
    return carry;
}

static void adder128(long rounds) {
    int4 x = int_sink, a = x, b = x, c = x, d = x, e = x, f = x, k = x, l = x, m = x, n = x, o = x, p = x;
    for (; rounds; rounds--) {
        k = full_add(&a, k, x), l = full_add(&b, l, x), m = full_add(&c, m, x);
        n = full_add(&d, n, x), o = full_add(&e, o, x), p = full_add(&f, p, x);
    }
    int_sink = a ^ b ^ c ^ d ^ e ^ f ^ k ^ l ^ m ^ n ^ o ^ p;
}

static void read128(const unsigned char *p, size_t bytes, size_t ahead) {
    int4 a = {0, 0, 0, 0}, b = a, c = a, d = a;
    for (const unsigned char *stop = p + bytes; p < stop; p += 64) {
        const int4 *line = (const int4 *)(const void *)p;
        if (ahead) {
            __builtin_prefetch((const void *)((uintptr_t)p + ahead));
        }
        a |= line[0], b |= line[1], c |= line[2], d |= line[3];
    }
    int_sink = a | b | c | d;
}
#define read128_ahead read128

/* --- ARM: instructions by name; a line is one operation of the kernels, on registers of 16 bytes --- */

#define TIMES12(L) L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7) L(8) L(9) L(10) L(11)
#if defined(__aarch64__)
#define LOOP(name, lines)                                                                                        \
    static void name(long rounds) {                                                                              \
        __asm__ volatile(".p2align 5\n1:\n\t" lines "subs %0, %0, #1\n\tb.ne 1b\n\t"           \
                         : "+r"(rounds)::"cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", \
                           "v11", "v12", "v13", "v14", "v15");                                                   \
    }
#define COUNT(i) "and v12.16b, v14.16b, v15.16b\n\tcnt v12.16b, v12.16b\n\tadd v" #i ".16b, v" #i ".16b, v12.16b\n\t"
#define LOOK_UP(i) "tbl v12.16b, {v14.16b}, v15.16b\n\tadd v" #i ".16b, v" #i ".16b, v12.16b\n\t"
#define MULTIPLY(i) "smlal v" #i ".8h, v14.8b, v15.8b\n\t"
#define DOT(i) "sdot v" #i ".4s, v14.16b, v15.16b\n\t"
BDCC_TARGET_NEONDOT LOOP(sdot, TIMES12(DOT))
#elif defined(__ARM_NEON)
#define LOOP(name, lines)                                                                                        \
    static void name(long rounds) {                                                                              \
        __asm__ volatile(".p2align 5\n1:\n\t" lines "subs %0, %0, #1\n\tbne 1b\n\t"                              \
                         : "+r"(rounds)::"cc", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9", "q10", \
                           "q11", "q12", "q13", "q14", "q15");                                                   \
    }
#define COUNT(i) "vand q12, q14, q15\n\tvcnt.8 q12, q12\n\tvadd.i8 q" #i ", q" #i ", q12\n\t"
#define LOOK_UP(i) \
    "vtbl.8 d24, {d28,d29}, d30\n\tvtbl.8 d25, {d28,d29}, d31\n\tvadd.i8 q" #i ", q" #i ", q12\n\t"
#define MULTIPLY(i) "vmlal.s8 q" #i ", d28, d30\n\t"
#endif
#if defined(LOOP)
LOOP(cnt128, TIMES12(COUNT))
LOOP(tbl128, TIMES12(LOOK_UP))
LOOP(smlal128, TIMES12(MULTIPLY))
#endif

#endif

/* --- measuring --- */

/* usable: whether this CPU has the instructions; operations: of a round of the loop. */
typedef struct {
    const char *name;
    int usable;
    loop_t loop;
    int operations;
    double least; /* seconds */
} probe_t;

static double timed(loop_t loop, long rounds) {
    double start = seconds();
    loop(rounds);
    return seconds() - start;
}

/* Probes take turns, so that a noisy moment does not fall on one of them alone. Returns seconds per cycle. */
static double measure(probe_t *probes, size_t count) {
    double clock = 1;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double t = timed(additions, ROUNDS / 8);
        clock = t < clock ? t : clock;
#if defined(__x86_64__)
        clear(1);
#endif
        for (size_t i = 0; i < count; i++) {
            if (probes[i].usable) {
                t = timed(probes[i].loop, ROUNDS);
                probes[i].least = t < probes[i].least ? t : probes[i].least;
            }
        }
    }
    return clock / ((double)(ROUNDS / 8) * ADDITIONS);
}

typedef void (*read_t)(const unsigned char *, size_t, size_t);

/* The sum of the least times of each part; what is small is read as a whole, often enough for a time. */
static void reading(const unsigned char *memory, size_t bytes, read_t plain, read_t fetching) {
    double least[PARTS], sum = 0;
    int parts = bytes < SMALL ? 1 : PARTS;
    size_t part = bytes / (size_t)parts / 512 * 512, repeats = bytes < SMALL ? SMALL / bytes : 1;
    for (int pass = 0; pass < PASSES; pass++) {
        for (int i = 0; i < parts; i++) {
            double start = seconds(), t;
            for (size_t k = 0; k < repeats; k++) {
                (pass % 2 ? fetching : plain)(memory + (size_t)i * part, part, 4096);
            }
            t = seconds() - start;
            least[i] = pass && least[i] < t ? least[i] : t;
        }
    }
    for (int i = 0; i < parts; i++) {
        sum += least[i];
    }
    printf("read %zu %.4f\n", bytes, 1e-9 * (double)(repeats * (size_t)parts * part) / sum);
}

/* Bytes of the largest cache, as the kernel says (what cpuid says may be of a whole server, not of this guest). */
static size_t last_cache(void) {
    size_t most = 0;
    for (int i = 0; i < 8; i++) {
        char name[80];
        unsigned long kilobytes = 0;
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        FILE *file = fopen(name, "r");
        if (file) {
            if (fscanf(file, "%luK", &kilobytes) == 1 && (size_t)kilobytes * 1024 > most) {
                most = (size_t)kilobytes * 1024;
            }
            fclose(file);
        }
    }
    return most ? most : (size_t)8 << 20;
}

int main(int argc, char **argv) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int ssse3 = __builtin_cpu_supports("ssse3") != 0, avx2 = __builtin_cpu_supports("avx2") != 0;
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl");
    int vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    read_t plain = avx512 ? read512 : avx2 ? read256 : read128;
    read_t fetching = avx512 ? read512_ahead : avx2 ? read256_ahead : read128_ahead;
#else
    read_t plain = read128, fetching = read128_ahead;
#endif
    probe_t probes[] = {
        {"table64", 1, table64, 8, 1},
#if defined(__x86_64__)
        {"adder128", 1, adder128, 12, 1},
        {"popcnt64", __builtin_cpu_supports("popcnt") != 0, popcnt64, 12, 1},
        {"adder256", avx2, adder256, 12, 1},
        {"popcnt512", avx512 && __builtin_cpu_supports("avx512vpopcntdq"), popcnt512, 12, 1},
        {"shuffle128", ssse3, shuffle128, 12, 1},
        {"shuffle256", avx2, shuffle256, 12, 1},
        {"permute512", avx512 && __builtin_cpu_supports("avx512vbmi"), permute512, 12, 1},
        {"madd128", 1, madd128, 12, 1},
        {"maddubs128", ssse3, maddubs128, 12, 1},
        {"maddubs256", avx2, maddubs256, 12, 1},
        {"vpdpbusd256", vnni || has_avxvnni(), vnni ? vnni256 : avxvnni, 12, 1},
        {"vpdpbusd512", vnni, vnni512, 12, 1},
        {"muladd128", 1, muladd128, 12, 1},
        {"muladd256", avx2, muladd256, 12, 1},
        {"muladd512", avx512, muladd512, 12, 1},
#else
#if defined(LOOP)
        {"cnt128", 1, cnt128, 12, 1},
        {"tbl128", 1, tbl128, 12, 1},
        {"smlal128", 1, smlal128, 12, 1},
#endif
#if defined(__aarch64__)
        {"sdot128", bdcc_isa_usable(BDCC_ISA_NEONDOT), sdot, 12, 1},
#endif
        {"adder128", 1, adder128, 6, 1},
        {"madd128", 1, mac128, 12, 1},
        {"muladd128", 1, muladd128, 12, 1},
#endif
    };
    size_t count = sizeof probes / sizeof probes[0];
    double cycle = measure(probes, count);
    printf("ghz %.4f\n", 1e-9 / cycle);
    for (size_t i = 0; i < count; i++) {
        if (probes[i].usable) {
            printf("rate %s %.4f\n", probes[i].name, (double)ROUNDS * probes[i].operations * cycle / probes[i].least);
        }
    }
    size_t cache = last_cache(), most = 4 * cache < LEAST_MEMORY ? LEAST_MEMORY : 4 * cache;
    size_t given = argc > 1 ? (size_t)strtoull(argv[1], 0, 10) : 0;
    given = given && given < LEAST_GIVEN ? LEAST_GIVEN : given;
    size_t size = ((given > most ? given : most) + 4095) / 4096 * 4096;
    unsigned char *memory = aligned_alloc(4096, size);
    if (!memory) {
        return 1;
    }
    memset(memory, 1, size); /* pages of its own, not the kernel's one of zeros */
    printf("cache_bytes %zu\n", cache);
    reading(memory, cache / 2, plain, fetching);
    reading(memory, most, plain, fetching);
    if (given) {
        reading(memory, given, plain, fetching);
    }
    free(memory);
    return 0;
}
