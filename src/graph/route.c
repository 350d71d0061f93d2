/* SPDX-License-Identifier: MIT
 * The cost model that picks a route for each layer with deltas.
 *
 * Seconds that the deltas add to one call of a layer with M rows of activations:
 *   weight      passes over the weight in cache (Kronecker, full), or small products (low rank,
 *               Hadamard, blocks that turn rows), whatever M is
 *   activation  M times the cost of the branch, plus reading and writing the output once more
 *   mixed       each delta by the cheaper of these two
 *   merged      nothing but reading f32 where the file holds fewer bytes
 * A weight that is kept as whole numbers holds what its deltas add: they cost nothing there. */
#include "graph/graph.h"

static bool has_weight(const struct gr_op *op)
{
    return op->kind == OP_LINEAR || op->kind == OP_GEGLU || op->kind == OP_CONV2D;
}

enum gr_route gr_route_allowed(struct delta_list list, enum gr_route route)
{
    bool left = false, base = false;

    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        left = left || d->kind == DELTA_LEFT;
        base = base || d->axis != GAIN_NONE || d->replace || d->kind == DELTA_RIGHT;
    }
    if (!left || route == ROUTE_MERGED)
        return route;
    return base ? ROUTE_MERGED : ROUTE_ACTIVATION;
}

static double weight_seconds(const struct delta *d, const struct layer *l,
                             const struct gr_rates *r)
{
    bool product = d->kind != DELTA_KRON && d->kind != DELTA_FULL && d->kind != DELTA_NONE;

    return delta_weight_cost(d, l) / (product ? r->small : r->pass);
}

static double activation_seconds(const struct delta *d, const struct layer *l, double rows,
                                 const struct gr_rates *r)
{
    bool tiles = d->kind == DELTA_HADAMARD || d->kind == DELTA_FULL ||
                 (d->kind == DELTA_KRON && d->axis != GAIN_NONE);
    double s = rows * delta_row_cost(d, l) / r->small;

    s += rows * (double)l->out * 8 / r->bandwidth;
    if (tiles) /* the delta is written out before it is multiplied */
        s += delta_weight_cost(d, l) / r->pass;
    if (l->kh * l->kw > 1) /* windows are gathered */
        s += rows * (double)layer_k(l) * 8 / r->bandwidth;
    return s;
}

bool gr_delta_in_rows(const struct delta *d, const struct layer *l, int64_t rows,
                      const struct gr_rates *rates)
{
    return weight_seconds(d, l, rates) <= activation_seconds(d, l, (double)rows, rates);
}

/* Seconds that all deltas of a layer take by each route. */
struct costs {
    double weight, activation, mixed;
};

static struct costs costs_of(const struct delta_list *list, const struct layer *l, int64_t rows,
                             const struct gr_rates *r)
{
    struct costs c = {0};

    for (int i = 0; i < list->n; i++) {
        double w = weight_seconds(&list->at[i], l, r);
        double a = activation_seconds(&list->at[i], l, (double)rows, r);
        c.weight += w;
        c.activation += a;
        c.mixed += gr_delta_in_rows(&list->at[i], l, rows, r) ? w : a;
    }
    return c;
}

/* --- whole numbers --- */

enum { FEW_ROWS = 4, LEAST_SIDE = 32, MOST_DEPTH = 1 << 15, FEW_KEYS = 192, MOST_HEAD = 192 };

/* Few keys, as those of a prompt, are not worth packing. */
static bool attention_gains(const struct graph *g, const struct gr_op *op)
{
    struct gr_shape k = gr_shape_of(g, op->in[1]);

    return !op->causal && k.h * k.w >= FEW_KEYS && k.c / op->heads <= MOST_HEAD;
}

/* Windows of 3x3 have a way with few products in 16 bits, of two inputs at a time. */
static bool conv_gains(const struct gr_op *op)
{
    const struct layer *l = op->layer;

    return l->kh == 3 && l->kw == 3 && op->stride == 1 && l->in % 2 == 0 &&
           l->in >= LEAST_SIDE && l->out >= LEAST_SIDE;
}

/* Few rows are a pass over the weight, whatever it is multiplied in. With less than 8 bits what
 * residuals are added to takes 16. */
static enum gr_compute rows_compute(const struct graph *g, const struct gr_op *op, int bits)
{
    const struct layer *l = op->layer;
    struct gr_shape x = gr_shape_of(g, op->in[0]);

    if (x.n * x.h * x.w <= FEW_ROWS || l->in < LEAST_SIDE || l->out < LEAST_SIDE ||
        l->in > MOST_DEPTH)
        return COMPUTE_F32;
    return bits < 8 && op->trunk && op->kind == OP_LINEAR ? COMPUTE_INT16 : COMPUTE_INT8;
}

static enum gr_compute whole_compute(const struct graph *g, const struct gr_op *op, int bits)
{
    switch (op->kind) {
    case OP_LINEAR:
    case OP_GEGLU:
        return rows_compute(g, op, bits);
    case OP_CONV2D:
        return conv_gains(op) ? COMPUTE_INT16 : COMPUTE_F32;
    case OP_ATTENTION:
        return attention_gains(g, op) ? COMPUTE_INT16 : COMPUTE_F32;
    default:
        return COMPUTE_F32;
    }
}

/* Bytes that a layer's weight takes as whole numbers, with their scales. */
static size_t whole_bytes(const struct gr_op *op)
{
    size_t n = (size_t)(op->layer->out * layer_k(op->layer));

    return (op->compute == COMPUTE_INT16 ? 2 * n : n) + n / 16;
}

void gr_choose_int8(struct graph *g, const struct delta_set *set, int bits, size_t *budget)
{
    int n = 0, n_kept = 0;
    size_t kept = 0;

    for (int o = 0; o < g->n_ops; o++) {
        struct gr_op *op = &g->ops[o];
        op->compute = whole_compute(g, op, bits);
        n += op->compute != COMPUTE_F32;
        if (op->compute == COMPUTE_F32 || (op->kind != OP_LINEAR && op->kind != OP_GEGLU))
            continue;
        struct delta_list list = delta_set_list(set, op->layer);
        size_t bytes = whole_bytes(op);
        op->keep = !op->once && bytes <= *budget && !delta_list_varies(list);
        *budget -= op->keep ? bytes : 0;
        kept += op->keep ? bytes : 0;
        n_kept += op->keep;
    }
    log_debug("%s: %d products in whole numbers, the weights of %d stay in memory (%.1f MB)",
              g->name, n, n_kept, (double)kept / 1e6);
}

const char *gr_route_name(enum gr_route r)
{
    static const char *const names[ROUTE_COUNT] = {"weight", "activation", "merged", "mixed"};

    return names[r];
}

/* Merging pays when the cheaper run-time route costs over 3 % of the layer's own product. */
static const double merge_from = 0.03;

/* What is left to choose with; and one layer's choice. */
struct choice {
    enum gr_apply mode;
    const struct gr_rates *rates;
    size_t merge_budget;
};

static enum gr_route choose(struct choice *c, const struct delta_list *list,
                            const struct costs *t, double product, size_t merged)
{
    double least = t->activation < t->weight ? t->activation : t->weight;
    enum gr_route route = t->activation < t->weight ? ROUTE_ACTIVATION : ROUTE_WEIGHT;

    if (t->mixed < least) {
        least = t->mixed;
        route = ROUTE_MIXED;
    }
    route = gr_route_allowed(*list, route);
    if (delta_list_varies(*list)) /* a merged weight would have to be made anew at each step */
        return route;
    if (c->mode == APPLY_IMMEDIATELY)
        return ROUTE_MERGED;
    if (c->mode == APPLY_AT_RUNTIME || merged > c->merge_budget || least <= merge_from * product)
        return route;
    c->merge_budget -= merged;
    return ROUTE_MERGED;
}

/* Bands of a picture after the first: their layer has its route already. */
static bool same_as_before(struct graph *g, int o)
{
    gr_ref whole = gr_root(g, g->ops[o].out);

    for (int i = o - 1; whole != g->ops[o].out && i >= 0; i--)
        if (gr_root(g, g->ops[i].out) == whole) {
            g->ops[o].route = g->ops[i].route;
            return true;
        }
    return false;
}

void gr_choose_routes(struct graph *g, const struct delta_set *set, enum gr_apply mode,
                      const struct gr_rates *rates, size_t merge_budget)
{
    struct choice c = {mode, rates, merge_budget};

    for (int o = 0; o < g->n_ops; o++) {
        struct gr_op *op = &g->ops[o];
        if (!has_weight(op))
            continue;
        struct delta_list list = delta_set_list(set, op->layer);
        op->route = ROUTE_WEIGHT;
        if (list.n == 0 || same_as_before(g, o))
            continue;
        struct gr_shape y = g->values[gr_root(g, op->out)].shape;
        int64_t rows = y.n * y.h * y.w;
        double all = (double)op->layer->out * (double)layer_k(op->layer);
        struct costs t = costs_of(&list, op->layer, rows, rates);
        if (op->keep) {
            op->route = gr_route_allowed(list, ROUTE_WEIGHT);
            continue;
        }
        size_t merged = op->once ? SIZE_MAX : (size_t)all * 4; /* room is for what runs often */
        op->route = choose(&c, &list, &t, (double)rows * all / rates->product, merged);
        log_debug("%s: route %-10s %s (%d deltas, %lld rows: weight %.3f ms, activation %.3f ms)",
                  g->name, gr_route_name(op->route), op->layer->name, list.n, (long long)rows,
                  t.weight * 1e3, t.activation * 1e3);
    }
}
