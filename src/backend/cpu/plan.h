/* SPDX-License-Identifier: MIT
 * The plan's part of the table of functions (device.c); see backend/backend.h. */
#ifndef BACKEND_CPU_PLAN_H
#define BACKEND_CPU_PLAN_H
#include "backend/backend.h"

bool plan_supports(const struct be_device *d, const struct graph *g, const struct gr_op *op);
kron_status plan_create(struct be_device *d, const struct graph *g, struct be_weights *w,
                        const float *strengths, struct be_plan **out);
kron_status plan_run(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                     const struct be_timer *timer);
void plan_free(struct be_plan *p);
size_t plan_bytes(const struct be_plan *p);

#endif
