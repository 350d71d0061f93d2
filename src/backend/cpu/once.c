/* SPDX-License-Identifier: MIT
 * Whether what a plan holds from run to run is still right: told by the bytes that it was made of,
 * a copy of which is compared at each run. So nobody need say that something is new, or forget it. */
#include "backend/cpu/cpu.h"
#include <string.h>

static size_t input_bytes(const struct gr_value *v)
{
    return v->steady ? (size_t)gr_elements(v->shape) * 4 : 0;
}

static struct delta_list deltas_of(const struct be_plan *p, const struct gr_op *op)
{
    bool has = op->once && op->layer != NULL;

    return has ? delta_set_list(p->weights->set, op->layer) : (struct delta_list){0, NULL};
}

kron_status once_compile(struct be_plan *p)
{
    size_t bytes = 0;

    p->number = ++p->weights->n_plans;
    for (int v = 0; v < p->g->n_values; v++)
        bytes += input_bytes(&p->g->values[v]);
    for (int o = 0; o < p->g->n_ops; o++)
        bytes += (size_t)deltas_of(p, &p->g->ops[o]).n * sizeof(float);
    if (p->g->held_bytes > 0)
        p->made_of = arena_alloc(&p->mem, bytes);
    return p->mem.status;
}

/* Puts n bytes at *at, which moves on. True if others were there. */
static bool put(char **at, const void *now, size_t n)
{
    bool differs = memcmp(*at, now, n) != 0;

    if (differs)
        memcpy(*at, now, n);
    *at += n;
    return differs;
}

bool once_needed(struct be_plan *p, struct be_buf *const *bind, const float *strengths)
{
    struct be_weights *w = p->weights;
    char *at = p->made_of;
    bool differs = false;

    if (at == NULL)
        return true;
    for (int i = 0; i < p->g->n_values; i++) {
        const struct gr_value *v = &p->g->values[i];
        if (input_bytes(v) > 0)
            differs |= put(&at, bind[v->bind]->host, input_bytes(v));
    }
    for (int o = 0; o < p->g->n_ops; o++) {
        struct delta_list list = deltas_of(p, &p->g->ops[o]);
        for (int i = 0; i < list.n; i++) {
            float s = delta_strength(&list.at[i], strengths);
            differs |= put(&at, &s, sizeof s);
        }
    }
    if (!differs && w->holder == p->number)
        return false;
    w->holder = 0;
    return true;
}

void once_made(struct be_plan *p)
{
    if (p->made_of == NULL)
        return;
    p->weights->holder = p->number;
    p->weights->held_bytes = p->g->held_bytes;
}
