/* SPDX-License-Identifier: MIT
 * The reference device: host memory, and a loop over the operations. */
#include "backend/ref/ref.h"
#include "backend/host.h"
#include <string.h>

struct be_weights {
    const struct delta_set *set;
};

struct be_plan {
    const struct graph *g;
    const struct delta_set *set;
    float *arena;
    double *w, *b; /* effective weight and bias of the layer at work */
    size_t bytes;
};

static void close_device(struct be_device *d)
{
    mem_free(d);
}

static bool op_supported(const struct be_device *d, const struct graph *g, const struct gr_op *op)
{
    (void)d, (void)g;
    return ref_ops[op->kind] != NULL;
}

static kron_status weights_create(struct be_device *d, const struct layer_table *table,
                                  const struct delta_set *set, struct be_weights **out)
{
    void *p;

    (void)d, (void)table;
    KRON_TRY(mem_alloc(&p, sizeof **out, "weights"));
    *out = p;
    (*out)->set = set;
    return KRON_OK;
}

static void weights_free(struct be_weights *w)
{
    mem_free(w);
}

/* Each plan keeps its own: here nobody counts. */
static void weights_trim(struct be_weights *w)
{
    (void)w;
}

static void plan_free(struct be_plan *p)
{
    mem_free(p->arena);
    mem_free(p->w);
    mem_free(p->b);
    mem_free(p);
}

static kron_status alloc_scratch(struct be_plan *p)
{
    int64_t most_w = 1, most_b = 1;
    void *m;

    for (int o = 0; o < p->g->n_ops; o++) {
        const struct layer *l = p->g->ops[o].layer;
        if (l == NULL || l->kind == LAYER_EMBED)
            continue;
        most_w = l->out * layer_k(l) > most_w ? l->out * layer_k(l) : most_w;
        most_b = l->out > most_b ? l->out : most_b;
    }
    KRON_TRY(mem_alloc(&m, p->g->arena_bytes, "the compute buffer"));
    p->arena = m;
    KRON_TRY(mem_alloc_n(&m, (size_t)most_w, sizeof(double), "a layer's weight"));
    p->w = m;
    KRON_TRY(mem_alloc_n(&m, (size_t)most_b, sizeof(double), "a layer's bias"));
    p->b = m;
    p->bytes = p->g->arena_bytes + (size_t)(most_w + most_b) * sizeof(double);
    return KRON_OK;
}

/* Merged weights would be the same numbers here, so every route computes the same way. */
static kron_status plan_create(struct be_device *d, const struct graph *g, struct be_weights *w,
                               const float *strengths, struct be_plan **out)
{
    void *p;

    (void)d, (void)strengths;
    KRON_TRY(mem_alloc(&p, sizeof **out, "a plan"));
    *out = p;
    (*out)->g = g;
    (*out)->set = w->set;
    kron_status status = alloc_scratch(*out);
    if (status != KRON_OK) {
        plan_free(*out);
        *out = NULL;
    }
    return status;
}

/* --- what is confined to a region --- */

static void regions_free(struct ref_region *r, int n)
{
    for (int i = 0; i < n; i++) {
        mem_free(r[i].w);
        mem_free(r[i].mask);
    }
    mem_free(r);
}

static kron_status region_make(struct ref_region *r, const struct layer *l, const struct delta *d,
                               float strength, const double *w, struct gr_shape y, int64_t row)
{
    size_t n = (size_t)(l->out * layer_k(l));
    void *m;

    KRON_TRY(mem_alloc_n(&m, n, sizeof(double), l->name));
    r->w = m;
    KRON_TRY(mem_alloc_n(&m, (size_t)(y.h * y.w), sizeof(float), l->name));
    r->mask = m;
    delta_region_scale(d->region, y.w, y.h, r->mask);
    memmove(r->mask, r->mask + row * y.w, (size_t)((y.h - row) * y.w) * sizeof *r->mask);
    return delta_add_ref(d, l, strength, w, r->w);
}

static kron_status regions_make(struct ref_call *c, struct delta_list list, const float *strengths)
{
    struct ref_region *r;
    void *m;

    KRON_TRY(mem_alloc_n(&m, (size_t)list.n, sizeof *r, "regions"));
    c->regions = r = m;
    for (int i = 0; i < list.n; i++)
        if (list.at[i].region != NULL)
            KRON_TRY(region_make(&r[c->n_regions++], c->op->layer, &list.at[i],
                                 delta_strength(&list.at[i], strengths), c->w,
                                 gr_shape_of(c->g, gr_root(c->g, c->op->out)),
                                 c->g->values[c->op->out].row));
    return KRON_OK;
}

static kron_status run_op(struct be_plan *p, struct ref_call *c, const float *strengths)
{
    const struct layer *l = c->op->layer;
    struct delta_list list = l != NULL ? delta_set_list(p->set, l) : (struct delta_list){0, NULL};
    kron_status status = KRON_OK;

    if (l != NULL && c->op->kind != OP_EMBED) {
        KRON_TRY(layer_weight_ref(l, list, strengths, p->w));
        layer_bias_ref(l, list, strengths, p->b);
        status = regions_make(c, list, strengths);
    }
    if (status == KRON_OK)
        ref_ops[c->op->kind](c);
    regions_free((struct ref_region *)c->regions, c->n_regions);
    return status;
}

static kron_status plan_run(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                            const struct be_timer *timer)
{
    for (int o = 0; o < p->g->n_ops; o++) {
        const struct gr_op *op = &p->g->ops[o];
        struct ref_call c = {.g = p->g, .op = op, .w = p->w, .b = p->b};
        for (int i = 0; i < GR_MAX_IN; i++)
            c.x[i] = host_value(p->g, op->in[i], p->arena, bind);
        c.ids = (const void *)c.x[0];
        c.y = host_value(p->g, op->out, p->arena, bind);
        c.xs = gr_shape_of(p->g, op->in[0]);
        c.ys = gr_shape_of(p->g, op->out);
        double start = timer != NULL ? clock_seconds() : 0;
        KRON_TRY(run_op(p, &c, strengths));
        if (timer != NULL)
            timer->done(timer->user, p->g, op, start, clock_seconds());
    }
    return KRON_OK;
}

static size_t plan_bytes(const struct be_plan *p)
{
    return p->bytes;
}

static const struct be_fns fns = {
    .close = close_device,
    .buf_alloc = host_buf_alloc,
    .buf_free = host_buf_free,
    .buf_write = host_buf_write,
    .buf_read = host_buf_read,
    .op_supported = op_supported,
    .weights_create = weights_create,
    .weights_free = weights_free,
    .weights_trim = weights_trim,
    .plan_create = plan_create,
    .plan_run = plan_run,
    .plan_free = plan_free,
    .plan_bytes = plan_bytes,
};

static int count(void)
{
    return 1;
}

static kron_status open_device(int index, int n_threads, struct be_device **out)
{
    void *p;

    (void)index, (void)n_threads;
    KRON_TRY(mem_alloc(&p, sizeof **out, "a device"));
    *out = p;
    **out = (struct be_device){
        .fns = &fns, .name = "ref", .caps = {.n_threads = 1, .rates = {1e8, 1e8, 1e7, 1e9}}};
    return KRON_OK;
}

const struct be_driver be_ref = {.name = "ref", .count = count, .open = open_device};
