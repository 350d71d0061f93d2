/* SPDX-License-Identifier: MIT
 * The cost model that picks a route for each layer with deltas.
 *
 * Seconds that the deltas add to one call of a layer with M rows of activations:
 *   weight      passes over the weight in cache (Kronecker, full), or small products (low rank,
 *               Hadamard), whatever M is
 *   activation  M times the cost of the branch, plus reading and writing the output once more
 *   merged      nothing but reading f32 where the file holds fewer bytes */
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

static double weight_seconds(const struct delta_list *list, const struct layer *l,
                             const struct gr_rates *r)
{
    double s = 0;

    for (int i = 0; i < list->n; i++) {
        const struct delta *d = &list->at[i];
        bool product = d->kind == DELTA_LOW_RANK || d->kind == DELTA_HADAMARD;
        s += delta_weight_cost(d, l) / (product ? r->small : r->pass);
    }
    return s;
}

static double activation_seconds(const struct delta_list *list, const struct layer *l,
                                 double rows, const struct gr_rates *r)
{
    double s = 0;

    for (int i = 0; i < list->n; i++) {
        const struct delta *d = &list->at[i];
        bool tiles = d->kind == DELTA_HADAMARD || d->kind == DELTA_FULL;
        s += rows * delta_row_cost(d, l) / r->small;
        s += rows * (double)l->out * 8 / r->bandwidth;
        if (tiles) /* the delta is written out before it is multiplied */
            s += delta_weight_cost(d, l) / r->pass;
        if (l->kh * l->kw > 1) /* windows are gathered */
            s += rows * (double)layer_k(l) * 8 / r->bandwidth;
    }
    return s;
}

static const char *route_name(enum gr_route route)
{
    static const char *const names[] = {"weight", "activation", "merged"};

    return names[route];
}

/* Merging pays when the cheaper run-time route costs over 3 % of the layer's own product. */
static const double merge_from = 0.03;

void gr_choose_routes(struct graph *g, const struct delta_set *set, enum gr_apply mode,
                      const struct gr_rates *rates, size_t merge_budget)
{
    for (int o = 0; o < g->n_ops; o++) {
        struct gr_op *op = &g->ops[o];
        if (!has_weight(op))
            continue;
        struct delta_list list = delta_set_list(set, op->layer);
        op->route = ROUTE_WEIGHT;
        if (list.n == 0)
            continue;
        struct gr_shape y = g->values[op->out].shape;
        double rows = (double)(y.n * y.h * y.w);
        double all = (double)op->layer->out * (double)layer_k(op->layer);
        double w = weight_seconds(&list, op->layer, rates);
        double a = activation_seconds(&list, op->layer, rows, rates);
        size_t merged = (size_t)all * 4;
        op->route = a < w ? ROUTE_ACTIVATION : ROUTE_WEIGHT;
        if (mode == APPLY_IMMEDIATELY) {
            op->route = ROUTE_MERGED;
        } else if (mode == APPLY_AUTO && merged <= merge_budget &&
                   (a < w ? a : w) > merge_from * rows * all / rates->product) {
            op->route = ROUTE_MERGED;
            merge_budget -= merged;
        }
        log_debug("%s: route %-10s %s (%d deltas, %.0f rows: weight %.3f ms, activation %.3f ms)",
                  g->name, route_name(op->route), op->layer->name, list.n, rows, w * 1e3, a * 1e3);
    }
}
