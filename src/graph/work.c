/* SPDX-License-Identifier: MIT
 * What an operation has to do at the least, whatever way a backend does it. */
#include "graph/graph.h"

static double elements(const struct graph *g, gr_ref v)
{
    return v == GR_NONE ? 0 : (double)gr_elements(gr_shape_of(g, v));
}

static double pairs_of_tokens(const struct graph *g, const struct gr_op *op)
{
    struct gr_shape q = gr_shape_of(g, op->in[0]), k = gr_shape_of(g, op->in[1]);
    double n_q = (double)(q.h * q.w), n_k = (double)(k.h * k.w);

    return (double)q.n * (op->causal ? n_q * (n_q + 1) / 2 : n_q * n_k);
}

/* A multiply-add counts two. */
static double product_flops(const struct graph *g, const struct gr_op *op)
{
    switch (op->kind) {
    case OP_LINEAR:
    case OP_CONV2D:
        return 2 * elements(g, op->out) * (double)layer_k(op->layer);
    case OP_GEGLU: /* both halves */
        return 4 * elements(g, op->out) * (double)layer_k(op->layer);
    case OP_ATTENTION: /* q k', and what weighs v */
        return 4 * pairs_of_tokens(g, op) * (double)gr_shape_of(g, op->out).c;
    default:
        return 0;
    }
}

static double weight_bytes(const struct graph *g, const struct gr_op *op)
{
    const struct layer *l = op->layer;

    if (l == NULL)
        return 0;
    if (op->kind == OP_EMBED) /* a row for each token */
        return elements(g, op->in[0]) * (double)l->weight.bytes / (double)l->out;
    if (op->keep)
        return (op->compute == COMPUTE_INT16 ? 2 : 1) * (double)l->out * (double)layer_k(l) +
               (double)l->bias.bytes;
    if (op->route == ROUTE_MERGED)
        return 4 * (double)l->out * (double)layer_k(l) + (double)l->bias.bytes;
    return (double)l->weight.bytes + (double)l->bias.bytes;
}

struct gr_work gr_op_work(const struct graph *g, const struct gr_op *op)
{
    struct gr_work w = {.flops = product_flops(g, op), .weight_bytes = weight_bytes(g, op)};

    w.value_bytes = 4 * elements(g, op->out);
    for (int i = 0; i < GR_MAX_IN; i++)
        w.value_bytes += 4 * elements(g, op->in[i]);
    return w;
}
