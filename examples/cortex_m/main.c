/* SPDX-License-Identifier: 0BSD
 * A network on bare metal: every layer against the golden vectors, then a picture. MODEL is the network's prefix, MODEL_
 * the same in capitals: M(run) is digits_run where MODEL is digits. */
#include "board.h"
#include "selftest.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define M(name) JOIN(MODEL, name)
#define C(name) JOIN(MODEL_, name)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

enum { PAINT = 0xA5, CLASSES = 3 };

extern const unsigned char golden_file[], golden_file_end[], picture_file[], picture_file_end[];
static _Alignas(C(ARENA_ALIGN)) unsigned char arena[C(ARENA_BYTES)];
static float output[C(OUTPUT_N)];
static M(t) model;

static void print_number(uint64_t value) {
    char text[21], *at = text + sizeof text - 1;
    *at = 0;
    do *--at = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    board_print(at);
}

static void print(const char *before, uint64_t value, const char *after) {
    board_print(before);
    print_number(value);
    board_print(after);
}

/* The stack below the caller's frame is painted, and is used as deep as the paint is gone. */
static unsigned char *stack_pointer(void) {
    unsigned char *sp;
    __asm__ volatile("mov %0, sp" : "=r"(sp));
    return sp;
}

static uint32_t stack_used(const unsigned char *sp) {
    const unsigned char *at = bss_end;
    while (at < sp && *at == PAINT) ++at;
    return (uint32_t)(sp - at);
}

static int fail(const char *what, const char *why) {
    board_print(what);
    board_print(": ");
    board_print(why);
    board_print("\n");
    return 1;
}

/* How many layers differ, or -1. */
static int compare(const golden_t *golden) {
    int differing = 0;
    for (uint64_t picture = 0; picture < golden->pictures; ++picture) {
        for (int i = 0; i < M(step_count)(); ++i) {
            const int status = M(run_steps)(&model, arena, sizeof arena, golden_input(golden, picture), output, i, i + 1);
            if (status != C(OK)) return -1;
            const int equal = golden_equal(golden, picture, i, arena, output);
            print("picture ", picture, ": ");
            board_print(M(step)(i)->layer);
            board_print(equal ? " equal\n" : " DIFFERS\n");
            differing += !equal;
        }
    }
    return differing;
}

/* The likeliest classes of the linked picture. */
static int classify(void) {
    enum { ROW = C(INPUT_W) * C(INPUT_C) };
    int best[CLASSES];
    if (picture_file_end - picture_file != ROW * C(INPUT_H)) return fail("picture", "has not the size of the input");
    board_clock_start();
    const int status = M(run_u8)(&model, arena, sizeof arena, picture_file, ROW, output);
    const uint64_t ticks = board_clock();
    if (status != C(OK)) return fail("picture", M(strerror)(status));
    M(top_k)(output, CLASSES, best);
    for (int i = 0; i < CLASSES && i < C(OUTPUT_N); ++i) {
        print("", (uint64_t)i + 1, ". ");
        board_print(M(label)(best[i]));
        print("  ", (uint32_t)(100.0f * output[best[i]] + 0.5f), " %\n");
    }
    print("one picture: ", ticks, " ticks\n");
    return 0;
}

int main(void) {
    golden_t golden;
    unsigned char *const sp = stack_pointer();
    for (volatile unsigned char *at = bss_end; at < sp; ++at) *at = PAINT;
    int status = M(init)(&model, NULL, 0);
    if (status != C(OK)) return fail("init", M(strerror)(status));
    status = M(run_u8)(&model, arena, sizeof arena, picture_file, C(INPUT_W) * C(INPUT_C), output);
    if (status != C(OK)) return fail("run", M(strerror)(status));
    const uint32_t stack = stack_used(sp);

    const char *wrong = golden_open(&golden, golden_file, (size_t)(golden_file_end - golden_file));
    if (wrong != NULL) return fail("golden vectors", wrong);
    const int differing = compare(&golden);
    if (differing < 0) return fail("run", "failed");
    print("", golden.pictures * golden.steps, " layers compared, ");
    print("", (uint64_t)differing, " differ\n");

    if (classify() != 0) return 1;
    print(TEXT(MODEL) " takes ", (uint64_t)(network_end - network_begin), " bytes of flash and ");
    print("", sizeof arena + sizeof model + stack, " of RAM: ");
    print("arena ", sizeof arena, ", ");
    print("handle ", sizeof model, ", ");
    print("stack ", stack, "\n");
    return differing == 0 ? 0 : 4;
}
