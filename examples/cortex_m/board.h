/* SPDX-License-Identifier: 0BSD
 * What main.c needs of a board: words out, an end, and a clock. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_print(const char *text);
_Noreturn void board_exit(int code);

/* Ticks of the CPU's clock since board_clock_start. */
void board_clock_start(void);
uint64_t board_clock(void);

extern unsigned char network_begin[], network_end[], bss_end[]; /* of the linker script */

#endif
