/* SPDX-License-Identifier: 0BSD
 * bdcc_team.h on C11's threads, where the system has them. */
#include "check.h"
#if defined(__has_include)
#if __has_include(<threads.h>)
#define BDCC_C11_THREADS
#endif
#endif
#ifdef BDCC_C11_THREADS
#include "test_team.c"
#else
int main(void) { return report("team on C11 threads: not here"); }
#endif
