/* SPDX-License-Identifier: MIT
 * backend/cpu/winograd.h - 3x3 convolutions by transformed tiles; a part of conv.c's operation. */
#ifndef BACKEND_CPU_WINOGRAD_H
#define BACKEND_CPU_WINOGRAD_H
#include "backend/cpu/cpu.h"

/* True if the op can run so and is faster so. */
bool wino_suits(const struct graph *g, const struct gr_op *op);
/* Takes scratch; o->w is set. */
kron_status wino_compile(struct be_plan *p, struct cpu_op *o);
/* y = W x + bias + vec + residual of the call, deltas in the rows of W. */
void wino_run(const struct cpu_call *c, const float *bias);

#endif
