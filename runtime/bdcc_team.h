/* SPDX-License-Identifier: 0BSD
 * Threads that do one piece of work together. The caller is one of them; the others sleep between two pieces. POSIX
 * threads, and where these are missing C11's. */
#ifndef BDCC_TEAM_H
#define BDCC_TEAM_H

#include "bdcc_base.h"

#include <stdatomic.h>

#if defined(__has_include) && !defined(BDCC_C11_THREADS)
#if !__has_include(<pthread.h>)
#define BDCC_C11_THREADS
#endif
#endif

#ifdef BDCC_C11_THREADS
#include <threads.h>
typedef thrd_t bdcc_thread_t;
typedef mtx_t bdcc_mutex_t;
typedef cnd_t bdcc_wakeup_t;
#define BDCC_THREAD_RESULT int
#define BDCC_THREAD_DONE 0
#define bdcc_thread_start(thread, function, argument) (thrd_create(thread, function, argument) == thrd_success)
#define bdcc_thread_join(thread) (void)thrd_join(thread, NULL)
#define bdcc_thread_yield thrd_yield
#define bdcc_mutex_init(mutex) (mtx_init(mutex, mtx_plain) == thrd_success)
#define bdcc_mutex_destroy mtx_destroy
#define bdcc_lock (void)mtx_lock
#define bdcc_unlock (void)mtx_unlock
#define bdcc_wakeup_init(wakeup) (cnd_init(wakeup) == thrd_success)
#define bdcc_wakeup_destroy cnd_destroy
#define bdcc_wait (void)cnd_wait
#define bdcc_wake_all (void)cnd_broadcast
#else
#include <pthread.h>
#include <sched.h>
typedef pthread_t bdcc_thread_t;
typedef pthread_mutex_t bdcc_mutex_t;
typedef pthread_cond_t bdcc_wakeup_t;
#define BDCC_THREAD_RESULT void *
#define BDCC_THREAD_DONE NULL
#define bdcc_thread_start(thread, function, argument) (pthread_create(thread, NULL, function, argument) == 0)
#define bdcc_thread_join(thread) (void)pthread_join(thread, NULL)
#define bdcc_thread_yield (void)sched_yield
#define bdcc_mutex_init(mutex) (pthread_mutex_init(mutex, NULL) == 0)
#define bdcc_mutex_destroy (void)pthread_mutex_destroy
#define bdcc_lock (void)pthread_mutex_lock
#define bdcc_unlock (void)pthread_mutex_unlock
#define bdcc_wakeup_init(wakeup) (pthread_cond_init(wakeup, NULL) == 0)
#define bdcc_wakeup_destroy (void)pthread_cond_destroy
#define bdcc_wait (void)pthread_cond_wait
#define bdcc_wake_all (void)pthread_cond_broadcast
#endif

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define BDCC_PAUSE() __builtin_ia32_pause()
#elif defined(__GNUC__) && (defined(__aarch64__) || (defined(__ARM_ARCH) && __ARM_ARCH >= 7))
#define BDCC_PAUSE() __asm__ volatile("yield")
#else
#define BDCC_PAUSE() (void)0
#endif

#define BDCC_MAX_PARTS 16
#define BDCC_SPINS 4096 /* looks at the barrier before a thread sleeps: in time about what it costs to wake one */
#define BDCC_YIELD 64   /* looks between two offers of the core to a thread that has none */
#define BDCC_TEAM_READY 0x5445414du

typedef void (*bdcc_work_fn)(const void *context, int32_t part);

typedef struct bdcc_team_s bdcc_team_t;
typedef struct {
    bdcc_team_t *team;
    bdcc_thread_t thread;
    int32_t part;
} bdcc_member_t;

/* What is written at every barrier has cache lines of its own. */
struct bdcc_team_s {
    uint32_t ready;
    int32_t parts;
    bdcc_work_fn work; /* NULL: go home */
    const void *context;
    bdcc_member_t members[BDCC_MAX_PARTS - 1]; /* parts 1 .. parts - 1 */
    bdcc_mutex_t mutex;
    bdcc_wakeup_t wakeup;
    unsigned char gap[64];
    atomic_int arrived;
    unsigned char another_gap[64];
    atomic_uint round; /* of the barrier: how often all have come */
    atomic_int sleepers;
    unsigned char last_gap[64];
};

/* Until all parts have come so far. Orders memory like a lock. Apart from the steps: what these are compiled for may
 * name atomics of other CPUs (BDCC_TARGET_NEONDOT). */
BDCC_APART BDCC_UNUSED static void bdcc_team_sync(bdcc_team_t *team) {
    const unsigned round = atomic_load_explicit(&team->round, memory_order_relaxed); /* until this part comes */
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->parts) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        /* Either this sees the sleeper, or the sleeper, who looks once more under the lock, sees the new round: all
         * four accesses are in one total order. An addition, not a store: of a store and a load of AArch64, QEMU 7.2
         * on x86 makes plain ones with no barrier between, the load may overtake, and all would sleep. */
        atomic_fetch_add(&team->round, 1);
        if (atomic_load(&team->sleepers) > 0) {
            bdcc_lock(&team->mutex);
            bdcc_unlock(&team->mutex);
            bdcc_wake_all(&team->wakeup);
        }
        return;
    }
    for (int i = 1; i <= BDCC_SPINS; i++) {
        if (atomic_load_explicit(&team->round, memory_order_acquire) != round) return;
        if (i % BDCC_YIELD == 0) {
            bdcc_thread_yield();
        } else {
            BDCC_PAUSE();
        }
    }
    bdcc_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->round) == round) bdcc_wait(&team->wakeup, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    bdcc_unlock(&team->mutex);
}

BDCC_UNUSED static BDCC_THREAD_RESULT bdcc_team_member(void *argument) {
    const bdcc_member_t *me = (const bdcc_member_t *)argument;
    bdcc_team_t *team = me->team;
    for (;;) {
        bdcc_team_sync(team);
        if (team->work == NULL) return BDCC_THREAD_DONE;
        team->work(team->context, me->part);
        bdcc_team_sync(team);
    }
}

/* work(context, part) once for each part, part 0 on the calling thread; until all are done. */
BDCC_UNUSED static void bdcc_team_run(bdcc_team_t *team, bdcc_work_fn work, const void *context) {
    team->work = work;
    team->context = context;
    bdcc_team_sync(team);
    work(context, 0);
    bdcc_team_sync(team);
}

/* Sends home the threads that were started, and takes the place of those that were not. */
BDCC_UNUSED static void bdcc_team_stop(bdcc_team_t *team, int32_t started) {
    team->ready = 0;
    team->work = NULL;
    atomic_fetch_add(&team->arrived, team->parts - 1 - started);
    bdcc_team_sync(team);
    for (int32_t i = 0; i < started; i++) bdcc_thread_join(team->members[i].thread);
    bdcc_wakeup_destroy(&team->wakeup);
    bdcc_mutex_destroy(&team->mutex);
}

/* 1: parts - 1 threads wait for work; 0: the system has not enough, and none is left over. */
BDCC_UNUSED static int bdcc_team_start(bdcc_team_t *team, int32_t parts) {
    team->ready = 0;
    team->parts = parts;
    atomic_init(&team->arrived, 0);
    atomic_init(&team->round, 0);
    atomic_init(&team->sleepers, 0);
    if (!bdcc_mutex_init(&team->mutex)) return 0;
    if (!bdcc_wakeup_init(&team->wakeup)) {
        bdcc_mutex_destroy(&team->mutex);
        return 0;
    }
    for (int32_t i = 0; i < parts - 1; i++) {
        bdcc_member_t *member = &team->members[i];
        member->team = team;
        member->part = i + 1;
        if (!bdcc_thread_start(&member->thread, bdcc_team_member, member)) {
            bdcc_team_stop(team, i);
            return 0;
        }
    }
    team->ready = BDCC_TEAM_READY;
    return 1;
}

#endif
