/* SPDX-License-Identifier: 0BSD
 * bdcc_team.h: every part works once, nobody passes a barrier too early, teams come and go, and a team that cannot have
 * all its threads leaves none behind. */
#include <stdatomic.h>

static atomic_int threads_left = 1 << 30;

#ifdef BDCC_C11_THREADS
#include <threads.h>
static int limited_create(thrd_t *thread, thrd_start_t function, void *argument) {
    return threads_left-- > 0 ? thrd_create(thread, function, argument) : thrd_error;
}
#define thrd_create limited_create
#else
#include <pthread.h>
static int limited_create(pthread_t *thread, const pthread_attr_t *how, void *(*function)(void *), void *argument) {
    return threads_left-- > 0 ? pthread_create(thread, how, function, argument) : 1;
}
#define pthread_create limited_create
#endif
#include "bdcc_team.h"

#include "check.h"

enum { ROUNDS = 20 };

typedef struct {
    bdcc_team_t *team;
    int32_t *steps; /* by part: how far it is */
    int32_t *wrong;
} work_t;

/* Between two barriers each part writes its own number and reads those of all; no atomics, the barriers order them. */
static void work(const void *context, int32_t part) {
    const work_t *w = (const work_t *)context;
    for (int32_t round = 0; round < ROUNDS; round++) {
        w->steps[part]++;
        bdcc_team_sync(w->team);
        for (int32_t i = 0; i < w->team->parts; i++) w->wrong[part] += w->steps[i] != w->steps[part];
        if (round % 8 == part % 8) { /* late: others give up spinning */
            for (int32_t i = 0; i < 2 * BDCC_SPINS; i++) BDCC_PAUSE();
            bdcc_thread_yield();
        }
        bdcc_team_sync(w->team);
    }
}

static void check_team(int32_t parts, int32_t runs) {
    bdcc_team_t team;
    int32_t steps[BDCC_MAX_PARTS] = { 0 }, wrong[BDCC_MAX_PARTS] = { 0 };
    const work_t w = { &team, steps, wrong };
    CHECK(bdcc_team_start(&team, parts));
    for (int32_t run = 0; run < runs; run++) bdcc_team_run(&team, work, &w);
    bdcc_team_stop(&team, parts - 1);
    for (int32_t i = 0; i < parts; i++) CHECK(steps[i] == runs * ROUNDS && wrong[i] == 0);
    for (int32_t i = parts; i < BDCC_MAX_PARTS; i++) CHECK(steps[i] == 0);
}

static BDCC_THREAD_RESULT another(void *argument) {
    (void)argument;
    for (int i = 0; i < 10; i++) check_team(3, 5);
    return BDCC_THREAD_DONE;
}

int main(void) {
    for (int32_t parts = 1; parts <= BDCC_MAX_PARTS; parts++) check_team(parts, parts < 4 ? 20 : 2);
    for (int i = 0; i < 200; i++) check_team(1 + i % 4, i % 2); /* also stopped before it ever ran */

    bdcc_thread_t thread;
    CHECK(bdcc_thread_start(&thread, another, NULL));
    for (int i = 0; i < 10; i++) check_team(2, 5);
    bdcc_thread_join(thread);

    for (int started = 0; started < 5; started++) {
        bdcc_team_t team;
        threads_left = started;
        CHECK(!bdcc_team_start(&team, 6));
        CHECK(team.ready == 0);
    }
    threads_left = 3;
    check_team(4, 1);
    return report("team");
}
