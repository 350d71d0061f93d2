/* SPDX-License-Identifier: MIT
 * backend/cpu/places.h - keeps workers near what they work on, while a plan runs.
 *
 * A worker is bound to all processors of one node and kind of core, not to one of them: two runs, or
 * two programs, that chose the same single ones would wait for each other beside idle ones. On a
 * machine with one node and one kind of core, where that is no choice, nothing is bound. Neither is
 * it where the user has bound OpenMP's threads (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY),
 * where KRON_CPU_BIND is "none", or while another run of this process is under way. */
#ifndef BACKEND_CPU_PLACES_H
#define BACKEND_CPU_PLACES_H
#include "base/base.h"

struct places; /* of one device */

/* What the machine and the calling thread's affinity offer.
 *   root       "/sys/devices" (topology.h)
 *   n_threads  workers; set to one for each usable core if it is 0
 *   out        NULL if nothing is to be bound */
kron_status places_create(const char *root, int *n_threads, struct places **out);
void places_free(struct places **p);

/* Around a run of the calling thread, whose team of workers, itself included, is bound in between:
 * `bound` is what places_enter() returned. Afterwards all of them may run where the caller could
 * before. p may be NULL. */
bool places_enter(struct places *p);
void places_leave(struct places *p, bool bound);

/* Spreads memory that nothing has touched yet over the workers' nodes, if they are several. p may
 * be NULL. */
void places_spread(const struct places *p, void *memory, size_t bytes);

#endif
