/* SPDX-License-Identifier: MIT
 * One layer as a graph of one operation, run on a device by a given route. */
#ifndef UNIT_LAYER_RUN_H
#define UNIT_LAYER_RUN_H
#include "backend/backend.h"

struct layer_call {
    struct gr_shape x; /* NHWC; token sequences have h = 1 */
    int stride;        /* convolutions; 1 for all others */
    int groups;        /* norms: 0 for layer norm */
    float eps;         /* norms; 0: 1e-5 */
    enum gr_route route;
};

static inline gr_ref layer_run_op(struct graph *g, const struct layer *l,
                                  const struct layer_call *c)
{
    gr_ref x = gr_input(g, "x", GR_F32, c->x);
    float eps = c->eps > 0 ? c->eps : 1e-5f;

    if (l->kind != LAYER_NORM)
        return gr_conv(g, x, l, c->stride, GR_NONE, GR_NONE);
    return c->groups > 0 ? gr_group_norm(g, x, l, c->groups, eps, ACT_NONE)
                         : gr_layer_norm(g, x, l, eps);
}

static inline kron_status layer_run_graph(struct be_device *d, const struct graph *g,
                                          const struct layer_table *table,
                                          const struct delta_set *set, const float *strengths,
                                          const float *x, float *y)
{
    struct be_weights *weights = NULL;
    struct be_plan *plan = NULL;
    struct be_buf *bind[2] = {NULL, NULL};
    size_t nx = (size_t)gr_elements(g->values[g->ops[0].in[0]].shape) * sizeof *x;
    size_t ny = (size_t)gr_elements(g->values[g->ops[0].out].shape) * sizeof *y;
    kron_status status = be_weights_create(d, table, set, &weights);

    if (status == KRON_OK)
        status = be_plan_create(d, g, weights, strengths, &plan);
    if (status == KRON_OK)
        status = be_buf_alloc(d, nx, &bind[0]);
    if (status == KRON_OK)
        status = be_buf_alloc(d, ny, &bind[1]);
    if (status == KRON_OK)
        status = be_buf_write(bind[0], 0, x, nx);
    if (status == KRON_OK)
        status = be_plan_run(d, plan, bind, strengths);
    if (status == KRON_OK)
        status = be_buf_read(bind[1], 0, y, ny);
    be_buf_free(&bind[0]);
    be_buf_free(&bind[1]);
    be_plan_free(d, &plan);
    be_weights_free(d, &weights);
    return status;
}

/* y = layer(x) with the deltas of `set` (NULL: none); y has room for the output. */
static inline kron_status layer_run(struct be_device *d, const struct layer_table *table,
                                    const struct layer *l, const struct delta_set *set,
                                    const float *strengths, const struct layer_call *c,
                                    const float *x, float *y)
{
    struct graph g;
    kron_status status;

    gr_init(&g, "layer");
    gr_output(&g, layer_run_op(&g, l, c), "y");
    status = gr_plan(&g);
    if (status == KRON_OK) {
        g.ops[0].route = c->route;
        status = layer_run_graph(d, &g, table, set, strengths, x, y);
    }
    gr_free(&g);
    return status;
}

#endif
