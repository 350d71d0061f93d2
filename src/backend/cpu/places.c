/* SPDX-License-Identifier: MIT
 * Affinity of OpenMP's workers, by Linux's calls. */
#define _GNU_SOURCE /* sched_setaffinity */
#include "backend/cpu/places.h"
#include "backend/cpu/topology.h"
#include <linux/mempolicy.h>
#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_NODES = 1024, WORD = 8 * sizeof(unsigned long) /* bits */ };

struct places {
    cpu_set_t before;                       /* of the thread in places_enter() */
    unsigned long nodes[MOST_NODES / WORD]; /* of the workers */
    int n_nodes, n;
    cpu_set_t at[]; /* by worker */
};

static int runs; /* of this process, bound or not */

static bool is_set(const char *name)
{
    const char *v = getenv(name);
    return v != NULL && v[0] != '\0';
}

static bool is_refused(void)
{
    const char *v = getenv("KRON_CPU_BIND");

    return (v != NULL && strcmp(v, "none") == 0) || is_set("OMP_PROC_BIND") ||
           is_set("OMP_PLACES") || is_set("GOMP_CPU_AFFINITY");
}

static kron_status read_machine(const char *root, struct topology *t)
{
    int allowed[CPU_SETSIZE], n = 0;
    cpu_set_t set;

    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set))
                allowed[n++] = i;
    return topology_read(t, root, allowed, n, sched_getcpu());
}

static void fill(struct places *p, const struct topology *t, int n)
{
    p->n = n;
    for (int i = 0; i < n; i++) {
        int node = t->cpu[i].node;
        unsigned long bit = 1ul << node % WORD;
        for (int j = 0; j < t->n; j++)
            if (topology_alike(&t->cpu[i], &t->cpu[j]))
                CPU_SET(t->cpu[j].id, &p->at[i]);
        if (node >= MOST_NODES)
            continue;
        p->n_nodes += (p->nodes[node / WORD] & bit) == 0;
        p->nodes[node / WORD] |= bit;
    }
}

kron_status places_create(const char *root, int *n_threads, struct places **out)
{
    struct topology t;
    void *m;

    *out = NULL;
    KRON_TRY(read_machine(root, &t));
    if (*n_threads == 0)
        *n_threads = t.cores > 0 ? t.cores : omp_get_num_procs();
    kron_status status = KRON_OK;
    if (!is_refused() && topology_matters(&t, *n_threads)) {
        status = mem_alloc(&m, sizeof **out + (size_t)*n_threads * sizeof(cpu_set_t),
                           "processors of workers");
        if (status == KRON_OK) {
            *out = m;
            fill(*out, &t, *n_threads);
            log_debug("cpu: %d workers bound to their node and kind of core, %d nodes", *n_threads,
                      (*out)->n_nodes);
        }
    }
    topology_free(&t);
    return status;
}

void places_free(struct places **p)
{
    mem_free(*p);
    *p = NULL;
}

/* Each worker to its own processors, as far as the caller may use them, or all back. What cannot
 * be set stays as it was: slower, not wrong. */
static void bind_team(const struct places *p, bool back)
{
#pragma omp parallel num_threads(p->n)
    {
        cpu_set_t set = p->before;
        if (!back)
            CPU_AND(&set, &set, &p->at[omp_get_thread_num()]);
        if (CPU_COUNT(&set) > 0)
            (void)sched_setaffinity(0, sizeof set, &set);
    }
}

/* Only a run that is alone is bound, and writes p->before: any other would find `runs` above 0. */
bool places_enter(struct places *p)
{
    bool alone = __atomic_fetch_add(&runs, 1, __ATOMIC_SEQ_CST) == 0;

    if (p == NULL || !alone || sched_getaffinity(0, sizeof p->before, &p->before) != 0)
        return false;
    bind_team(p, false);
    return true;
}

void places_leave(struct places *p, bool bound)
{
    if (bound)
        bind_team(p, true);
    __atomic_fetch_sub(&runs, 1, __ATOMIC_SEQ_CST);
}

void places_spread(const struct places *p, void *memory, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)memory + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)memory + bytes) / page * page;

    if (p != NULL && p->n_nodes > 1 && from < end)
        (void)syscall(SYS_mbind, from, end - from, MPOL_INTERLEAVE, p->nodes,
                      (unsigned long)MOST_NODES, 0u);
}
