/* SPDX-License-Identifier: MIT
 * A graph as text, for reading a plan. */
#include "graph/graph.h"

static void add_value_text(struct str *t, const struct graph *g, gr_ref v)
{
    const struct gr_value *x = &g->values[v];

    str_addf(t, " %%%d[%lld,%lld,%lld,%lld]", v, (long long)x->shape.n, (long long)x->shape.h,
             (long long)x->shape.w, (long long)x->shape.c);
    if (x->bind >= 0)
        str_addf(t, "=%s", x->name);
    else
        str_addf(t, "@%lld", (long long)x->offset);
}

void gr_dump(const struct graph *g)
{
    for (int o = 0; o < g->n_ops; o++) {
        const struct gr_op *op = &g->ops[o];
        struct str t = {0};
        str_addf(&t, "%s %d: %s", g->name, o, gr_op_name(op->kind));
        for (int i = 0; i < GR_MAX_IN; i++)
            if (op->in[i] != GR_NONE)
                add_value_text(&t, g, op->in[i]);
        str_add(&t, " ->");
        add_value_text(&t, g, op->out);
        if (op->layer != NULL)
            str_addf(&t, " '%s'", op->layer->name);
        log_debug("%s", str_get(&t));
        str_free(&t);
    }
    log_debug("%s: arena %zu bytes, lower bound %zu", g->name, g->arena_bytes, g->lower_bound);
}
