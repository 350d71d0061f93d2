/* SPDX-License-Identifier: MIT
 * Operations as the public profile shows them. */
#include "pipeline/session.h"

static const char *route_text(const struct session *s, const struct gr_op *op)
{
    const struct delta_set *set = s->set != NULL ? adapter_set_deltas(s->set) : NULL;
    bool product = op->kind == OP_LINEAR || op->kind == OP_GEGLU || op->kind == OP_CONV2D;

    return product && delta_set_list(set, op->layer).n > 0 ? gr_route_name(op->route) : "";
}

static const char *compute_text(const struct gr_op *op, const struct gr_work *w)
{
    static const char *const names[] = {"f32", "int8", "int16"};

    return w->flops == 0 ? "" : names[op->compute];
}

static void put_shape(int64_t out[4], struct gr_shape s)
{
    out[0] = s.n;
    out[1] = s.h;
    out[2] = s.w;
    out[3] = s.c;
}

void session_profile(void *user, const struct graph *g, const struct gr_op *op, double start,
                     double end)
{
    const struct session *s = user;
    const struct layer *l = op->layer;
    struct gr_work work = gr_op_work(g, op);
    kron_operation o = {
        .part = g->name, .kind = gr_op_name(op->kind), .layer = l != NULL ? l->name : "",
        .type = l != NULL ? dtype_info(l->weight.type)->name : "", .route = route_text(s, op),
        .compute = compute_text(op, &work),
        .start = start, .seconds = end - start, .flops = work.flops,
        .weight_bytes = work.weight_bytes, .value_bytes = work.value_bytes,
    };

    put_shape(o.in, gr_shape_of(g, op->in[0]));
    put_shape(o.out, gr_shape_of(g, op->out));
    if (op->kind == OP_ATTENTION)
        o.other = gr_shape_of(g, op->in[1]).h * gr_shape_of(g, op->in[1]).w;
    if (op->kind == OP_CONV2D) {
        o.window[0] = l->kh;
        o.window[1] = l->kw;
    }
    s->profile(&o, s->profile_user);
}
