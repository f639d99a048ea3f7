/* SPDX-License-Identifier: 0BSD
 * From reset to main on a Cortex-M, without a vendor's library. Semihosting is for QEMU and debuggers: on a board that
 * stands alone, print to a UART instead, for a semihosting call without a debugger is a fault. */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define CPACR REGISTER(0xE000ED88u)

enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026, SYST_TOP = 0xFFFFFF };

int main(void);
extern uint32_t data_begin[], data_end[], data_in_flash[], bss_begin[];
extern unsigned char stack_end[];
static volatile uint32_t wraps; /* of SysTick, which has 24 bits */

static void semihosting(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void board_print(const char *text) { semihosting(SYS_WRITE0, text); }

_Noreturn void board_exit(int code) {
    const uint32_t why[] = { APPLICATION_EXIT, (uint32_t)code };
    for (;;) semihosting(SYS_EXIT_EXTENDED, why);
}

void board_clock_start(void) {
    wraps = 0;
    SYST_RVR = SYST_TOP;
    SYST_CVR = 0;
    SYST_CSR = 7; /* the CPU's clock, an interrupt at 0, on */
}

uint64_t board_clock(void) {
    uint32_t before, now;
    do { /* again, if it wraps in between */
        before = wraps;
        now = SYST_TOP - SYST_CVR;
    } while (before != wraps);
    return ((uint64_t)before << 24) + now;
}

static void sys_tick(void) { ++wraps; }

static void fault(void) {
    board_print("fault\n");
    board_exit(1);
}

void reset(void) {
    CPACR |= 0xFu << 20; /* the floating-point unit, before anything uses it */
    __asm__ volatile("dsb\nisb" : : : "memory");
    for (uint32_t *to = data_begin, *from = data_in_flash; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_begin; to < (uint32_t *)(void *)bss_end;) *to++ = 0;
    board_exit(main());
}

__attribute__((section(".vectors"), used)) static const struct {
    void *stack;
    void (*handlers[15])(void);
} vectors = {
    stack_end,
    { reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, sys_tick },
};
