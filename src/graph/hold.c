/* SPDX-License-Identifier: MIT
 * What need not be made at each run, since it depends on steady inputs alone: in a UNet keys and
 * values of the text, and the embedding of pooled text and sizes. */
#include "graph/graph.h"

void gr_steady(struct graph *g, gr_ref input)
{
    if (g->status != KRON_OK)
        return;
    KRON_ASSERT(g->values[input].role == GR_INPUT);
    g->values[input].steady = true;
}

/* `made`: by value, whether an operation marked `once` writes it. */
static bool reads_steady(const struct graph *g, const struct gr_op *op, const bool *made)
{
    for (int i = 0; i < GR_MAX_IN; i++) {
        gr_ref v = gr_root(g, op->in[i]);
        if (v != GR_NONE && !g->values[v].steady && !made[v])
            return false;
    }
    return op->in[0] != GR_NONE;
}

/* Outputs are written at each run: they are the caller's. Values in parts may lie over others. */
static bool may_be_held(const struct gr_value *v)
{
    return v->role == GR_TEMP && v->base == GR_NONE && v->over == GR_NONE;
}

static bool can_run_once(const struct graph *g, const struct gr_op *op,
                         const struct delta_set *set, const bool *made)
{
    if (!reads_steady(g, op, made) || !may_be_held(&g->values[op->out]) || op->layer2 != NULL)
        return false;
    return op->layer == NULL || !delta_list_varies(delta_set_list(set, op->layer));
}

void gr_hold(struct graph *g, const struct delta_set *set)
{
    if (g->status != KRON_OK)
        return;
    bool *made = arena_alloc(&g->mem, (size_t)g->n_values * sizeof *made);
    if (made == NULL) {
        g->status = g->mem.status;
        return;
    }
    for (int o = 0; o < g->n_ops; o++) {
        struct gr_op *op = &g->ops[o];
        op->once = can_run_once(g, op, set, made);
        made[op->out] = op->once;
        for (int i = 0; !op->once && i < GR_MAX_IN; i++) {
            gr_ref v = gr_root(g, op->in[i]);
            if (v != GR_NONE && made[v])
                g->values[v].held = true;
        }
    }
}
