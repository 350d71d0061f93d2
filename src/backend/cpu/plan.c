/* SPDX-License-Identifier: MIT
 * A planned graph as a list of prepared operations. */
#include "backend/cpu/plan.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/places.h"
#include "backend/host.h"
#include <omp.h>

enum { FETCH_AHEAD = 4 }; /* operations */

static const struct cpu_op_fns *const op_fns[OP_COUNT] = {
    [OP_LINEAR] = &cpu_linear,         [OP_GEGLU] = &cpu_geglu,
    [OP_CONV2D] = &cpu_conv2d,         [OP_GROUP_NORM] = &cpu_group_norm,
    [OP_NORM_STATS] = &cpu_norm_stats, [OP_NORM_APPLY] = &cpu_norm_apply,
    [OP_LAYER_NORM] = &cpu_layer_norm, [OP_ATTENTION] = &cpu_attention,
    [OP_ACT] = &cpu_act,               [OP_ADD] = &cpu_add,
    [OP_CONCAT] = &cpu_concat,         [OP_UPSAMPLE] = &cpu_upsample,
    [OP_EMBED] = &cpu_embed,           [OP_TIMESTEP] = &cpu_timestep,
};

static const struct cpu_op_fns *fns_of(const struct gr_op *op)
{
    bool rows = op->kind == OP_LINEAR || op->kind == OP_GEGLU;

    return rows && op->compute != COMPUTE_F32 ? &cpu_int8 : op_fns[op->kind];
}

bool plan_supports(const struct be_device *d, const struct graph *g, const struct gr_op *op)
{
    (void)d, (void)g;
    return op->kind < OP_COUNT && op_fns[op->kind] != NULL;
}

size_t cpu_take(struct cpu_op *o, size_t bytes)
{
    size_t at = o->scratch_bytes;

    o->scratch_bytes += (bytes + 63) / 64 * 64;
    return at;
}

void cpu_take_threads(struct be_plan *p, struct cpu_op *o, size_t bytes)
{
    o->thread_bytes = (bytes + 63) / 64 * 64;
    o->threads_at = cpu_take(o, o->thread_bytes * (size_t)p->device->n_threads);
}

void *cpu_thread_scratch(const struct cpu_call *c)
{
    return c->p->scratch + c->o->threads_at + (size_t)omp_get_thread_num() * c->o->thread_bytes;
}

/* True if input i of op lies in the output's bytes. */
static bool shares_output(const struct graph *g, const struct gr_op *op, int i)
{
    if (op->in[i] == GR_NONE)
        return false;
    const struct gr_value *a = &g->values[op->in[i]], *b = &g->values[op->out];
    return a->offset >= 0 && a->offset == b->offset;
}

static kron_status compile(struct be_plan *p)
{
    void *m;

    KRON_TRY(once_compile(p));
    KRON_TRY(mem_alloc_n(&m, (size_t)p->g->n_ops, sizeof *p->ops, "a plan"));
    p->ops = m;
    for (int i = 0; i < p->g->n_ops; i++) {
        struct cpu_op *o = &p->ops[i];
        o->op = &p->g->ops[i];
        o->res_in_place = shares_output(p->g, o->op, 1);
        KRON_TRY(fns_of(o->op)->compile(p, o));
        if (o->scratch_bytes > p->scratch_bytes)
            p->scratch_bytes = o->scratch_bytes;
    }
    return p->mem.status;
}

kron_status plan_create(struct be_device *d, const struct graph *g, struct be_weights *w,
                        const float *strengths, struct be_plan **out)
{
    int before = omp_get_max_threads();
    void *m;

    KRON_TRY(mem_alloc(&m, sizeof **out, "a plan"));
    struct be_plan *p = m;
    p->device = (struct cpu_device *)d;
    p->weights = w;
    p->g = g;
    p->merge_strengths = strengths;
    omp_set_num_threads(p->device->n_threads);
    kron_status status = compile(p);
    omp_set_num_threads(before);
    if (status != KRON_OK) {
        plan_free(p);
        return err_prefix(status, "%s", g->name);
    }
    *out = p;
    return KRON_OK;
}

/* The weight of op i of a plan is read while others are computed; it is given back when it has
 * been used. */
static void fetch(const struct be_plan *p, int i, bool once)
{
    if (i < p->g->n_ops && p->g->ops[i].pages && (once || !p->g->ops[i].once))
        map_fetch(p->g->ops[i].layer->weight.data, p->g->ops[i].layer->weight.bytes);
}

static void release(const struct gr_op *op)
{
    if (op->pages)
        map_release(op->layer->weight.data, op->layer->weight.bytes);
}

static kron_status run_all(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                           const struct be_timer *timer)
{
    const struct be_device *d = &p->device->base;
    bool once = once_needed(p, bind, strengths) || d->observe != NULL;

    for (int i = 0; i < p->g->n_ops; i++) {
        const struct gr_op *op = &p->g->ops[i];
        fetch(p, i + FETCH_AHEAD, once);
        if (op->once && !once)
            continue;
        struct cpu_call c = {.p = p, .o = &p->ops[i], .op = op, .k = p->device->k,
                             .threads = p->device->n_threads, .strengths = strengths};
        for (int j = 0; j < GR_MAX_IN; j++)
            c.x[j] = host_value(p->g, op->in[j], p->arena, bind);
        c.y = host_value(p->g, op->out, p->arena, bind);
        c.xs = gr_shape_of(p->g, op->in[0]);
        c.ys = gr_shape_of(p->g, op->out);
        if (d->observe != NULL && (op->kind == OP_LINEAR || op->kind == OP_GEGLU))
            d->observe(d->observe_user, op->layer, c.x[0], c.xs.n * c.xs.h * c.xs.w);
        double start = timer != NULL ? clock_seconds() : 0;
        fns_of(op)->run(&c);
        release(op);
        KRON_TRY(c.status);
        if (timer != NULL)
            timer->done(timer->user, p->g, op, start, clock_seconds());
    }
    once_made(p);
    return KRON_OK;
}

static kron_status run(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                       const struct be_timer *timer)
{
    KRON_TRY(weights_reserve(p->weights, p, &p->arena));
    p->scratch = p->arena + p->g->arena_bytes;
    return run_all(p, bind, strengths, timer);
}

/* The caller's number of threads and its affinity are put back: it is a user of OpenMP too. */
kron_status plan_run(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                     const struct be_timer *timer)
{
    int before = omp_get_max_threads();
    bool bound = places_enter(p->device->places);

    omp_set_num_threads(p->device->n_threads);
    kron_status status = run(p, bind, strengths, timer);
    places_leave(p->device->places, bound);
    omp_set_num_threads(before);
    return status;
}

void plan_free(struct be_plan *p)
{
    arena_free(&p->mem);
    mem_free(p->ops);
    mem_free(p);
}

size_t plan_bytes(const struct be_plan *p)
{
    return p->g->arena_bytes + p->scratch_bytes;
}
