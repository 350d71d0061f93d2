/* SPDX-License-Identifier: MIT
 * backend/cpu/topology.h - which processors there are, and in what order workers take them.
 *
 * Linux tells by files under /sys/devices; what is not told is taken as one node of equal cores
 * without siblings. Pure: nothing is bound here (places.h does that). */
#ifndef BACKEND_CPU_TOPOLOGY_H
#define BACKEND_CPU_TOPOLOGY_H
#include "base/base.h"

struct topology_cpu {
    int id;      /* the system's number */
    int node;    /* of memory */
    int core;    /* id of the first hardware thread of its core, which may not be in the list */
    int sibling; /* 0: the first of its core in the list, 1: the second ... */
    bool slow;   /* a core of the small kind */
};

struct topology {
    struct topology_cpu *cpu; /* in order of use */
    int n;
    int cores; /* of which the list has some hardware thread */
};

/* Reads what `root` ("/sys/devices") says of the n processors `allowed`, without those that are not
 * online, and puts them in order: each core once before any twice, fast cores before slow ones,
 * one node after another, that of processor `home` first.
 *   home  where the caller runs; -1 if that is not known
 * t->n is 0 if none is left. Errors: KRON_ERR_MEMORY only. Caller frees: topology_free(). */
kron_status topology_read(struct topology *t, const char *root, const int *allowed, int n,
                          int home);
void topology_free(struct topology *t);

/* True if workers lose nothing by moving from one to the other: same node, same kind of core. */
bool topology_alike(const struct topology_cpu *a, const struct topology_cpu *b);

/* True if binding n workers to processors alike to those that they take would keep any worker off
 * some processor; false if there are fewer processors than workers. */
bool topology_matters(const struct topology *t, int n);

#endif
