/* SPDX-License-Identifier: MIT
 * Group norm and layer norm. Weights of norms go through the weight pass too: adapters may
 * change them.
 *
 * Group statistics are taken in one reading of x: a chunk of pixels that fits a cache gives each
 * group's count, mean and sum of squares about that mean, in f32 lanes of few terms; chunks are
 * joined in double (Chan et al. 1983), in a fixed order. */
#include "backend/cpu/cpu.h"
#include <math.h>
#include <omp.h>
#include <string.h>

enum { CHUNK_BYTES = 64 << 10 }; /* of x, read twice: for its mean, then about it */

struct moments {
    double count, mean, m2;
    double next; /* mean of the chunk at work */
};

static void join(struct moments *a, double count, double mean, double m2)
{
    double all = a->count + count, delta = mean - a->mean;

    a->m2 += m2 + delta * delta * a->count * count / all;
    a->mean += delta * count / all;
    a->count = all;
}

/* The norm's weight and bias as f32 [c], at block_at and bias_at. */
static void norm_params(const struct cpu_call *c, const float **weight, const float **bias)
{
    const struct wsource *w = &c->o->w;
    float *mem = cpu_scratch(c, c->o->block_at);

    wpass_prepare(c, w);
    *weight = wpass_direct(c, w);
    if (*weight == NULL)
        for (int64_t at = 0; at < w->out; at += WPASS_ROWS)
            wpass_rows(c, w, at, w->out - at < WPASS_ROWS ? w->out - at : WPASS_ROWS, 0, 1,
                       mem + at, 1, cpu_thread_scratch(c));
    if (*weight == NULL)
        *weight = mem;
    *bias = cpu_bias(c);
    if (*bias == NULL) {
        float *zero = cpu_scratch(c, c->o->bias_at);
        memset(zero, 0, (size_t)w->out * sizeof *zero);
        *bias = zero;
    }
}

static kron_status take_params(struct be_plan *p, struct cpu_op *o, size_t thread_bytes)
{
    const struct layer *l = o->op->layer;

    KRON_TRY(wpass_compile(p, o, l, ROUTE_WEIGHT));
    if (!o->has_bias)
        o->bias_at = cpu_take(o, (size_t)l->out * sizeof(float));
    o->block_at = cpu_take(o, (size_t)l->out * sizeof(float));
    thread_bytes += wpass_thread_bytes(&o->w);
    cpu_take_threads(p, o, thread_bytes);
    return KRON_OK;
}

/* --- group norm --- */

static int64_t chunk_rows(int64_t channels)
{
    int64_t rows = CHUNK_BYTES / 4 / channels;

    return rows < 8 ? 8 : rows > 128 ? 128 : rows;
}

/* Adds `rows` pixels to the moments of all groups. sum, mean: a worker's scratch, [c] each. */
static void add_chunk(const struct cpu_call *c, const float *x, int64_t rows, struct moments *m,
                      float *sum, float *mean)
{
    int64_t channels = c->xs.c, groups = c->op->groups, run = channels / groups;
    double count = (double)(rows * run);

    memset(sum, 0, (size_t)channels * sizeof *sum);
    c->k->column_sums(x, rows, channels, channels, NULL, sum);
    for (int64_t g = 0; g < groups; g++) {
        double total = 0;
        for (int64_t i = 0; i < run; i++)
            total += (double)sum[g * run + i];
        for (int64_t i = 0; i < run; i++)
            mean[g * run + i] = (float)(total / count);
        m[g].next = total / count;
    }
    memset(sum, 0, (size_t)channels * sizeof *sum);
    c->k->column_sums(x, rows, channels, channels, mean, sum);
    for (int64_t g = 0; g < groups; g++) {
        double off = m[g].next - (double)mean[g * run], m2 = -count * off * off;
        for (int64_t i = 0; i < run; i++)
            m2 += (double)sum[g * run + i];
        join(&m[g], count, m[g].next, m2);
    }
}

/* Scratch of one group norm, cut from block_at on after the weight. */
struct group_scratch {
    struct moments *m;   /* [n, slices, groups] */
    float *mean, *scale; /* [n, c] */
    int64_t slices, chunk;
};

static int64_t slices_of(struct gr_shape s, int threads)
{
    int64_t chunk = chunk_rows(s.c), chunks = (s.h * s.w + chunk - 1) / chunk;

    return chunks < threads ? chunks : threads;
}

static struct group_scratch group_scratch(const struct cpu_call *c)
{
    struct group_scratch s = {.chunk = chunk_rows(c->xs.c)};

    s.slices = slices_of(c->xs, c->threads);
    s.m = cpu_scratch(c, c->o->delta_at);
    s.mean = cpu_scratch(c, c->o->temp_at);
    s.scale = s.mean + c->xs.n * c->xs.c;
    return s;
}

/* Slice s of sample n: every slices-th chunk of its pixels. */
static void add_slice(const struct cpu_call *c, const struct group_scratch *gs, int64_t n,
                      int64_t s)
{
    int64_t pixels = c->xs.h * c->xs.w, groups = c->op->groups;
    struct moments *m = gs->m + (n * gs->slices + s) * groups;
    char *mem = cpu_thread_scratch(c);
    float *sum = (float *)mem, *mean = sum + c->xs.c;

    memset(m, 0, (size_t)groups * sizeof *m);
    for (int64_t at = s * gs->chunk; at < pixels; at += gs->slices * gs->chunk) {
        int64_t rows = pixels - at < gs->chunk ? pixels - at : gs->chunk;
        add_chunk(c, c->x[0] + (n * pixels + at) * c->xs.c, rows, m, sum, mean);
    }
}

/* Joins the slices of sample n and spreads each group's mean and 1 / deviation, times weight
 * where there is one, over its channels. */
static void settle(const struct cpu_call *c, const struct group_scratch *gs, int64_t n,
                   const float *weight, float *mean, float *scale)
{
    int64_t groups = c->op->groups, run = c->xs.c / groups;

    for (int64_t g = 0; g < groups; g++) {
        struct moments all = {0};
        for (int64_t s = 0; s < gs->slices; s++) {
            const struct moments *m = &gs->m[(n * gs->slices + s) * groups + g];
            join(&all, m->count, m->mean, m->m2);
        }
        double inv = 1 / sqrt(all.m2 / all.count + (double)c->op->eps);
        for (int64_t i = g * run; i < (g + 1) * run; i++) {
            mean[i] = (float)all.mean;
            scale[i] = (float)(weight != NULL ? inv * (double)weight[i] : inv);
        }
    }
}

static void find_moments(const struct cpu_call *c, const struct group_scratch *gs)
{
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < c->xs.n * gs->slices; i++)
        add_slice(c, gs, i / gs->slices, i % gs->slices);
}

/* mean: [c] of each sample, so many numbers apart; scale: [n, c]. */
static void apply(const struct cpu_call *c, const float *mean, int64_t mean_step,
                  const float *scale, const float *bias)
{
    int64_t pixels = c->xs.h * c->xs.w, channels = c->xs.c;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->xs.n * pixels; r++) {
        int64_t n = r / pixels;
        c->k->normalise(c->y + r * channels, c->x[0] + r * channels, mean + n * mean_step,
                        scale + n * channels, bias, c->op->act, channels);
    }
}

static void group_norm_run(struct cpu_call *c)
{
    struct group_scratch gs = group_scratch(c);
    int64_t channels = c->xs.c;
    const float *w, *b;

    norm_params(c, &w, &b);
    find_moments(c, &gs);
    for (int64_t n = 0; n < c->xs.n; n++)
        settle(c, &gs, n, w, gs.mean + n * channels, gs.scale + n * channels);
    apply(c, gs.mean, channels, gs.scale, b);
}

static void take_moments(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape s = gr_shape_of(p->g, o->op->in[0]);
    int64_t slices = slices_of(s, p->device->n_threads);

    o->delta_at = cpu_take(o, (size_t)(s.n * slices * o->op->groups) * sizeof(struct moments));
}

static kron_status group_norm_compile(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape s = gr_shape_of(p->g, o->op->in[0]);

    KRON_TRY(take_params(p, o, (size_t)(2 * s.c) * sizeof(float)));
    take_moments(p, o);
    o->temp_at = cpu_take(o, (size_t)(2 * s.n * s.c) * sizeof(float));
    return KRON_OK;
}

const struct cpu_op_fns cpu_group_norm = {group_norm_compile, group_norm_run};

/* --- the same in two steps --- */

static void norm_stats_run(struct cpu_call *c)
{
    struct group_scratch gs = group_scratch(c);

    find_moments(c, &gs);
    for (int64_t n = 0; n < c->xs.n; n++) {
        float *mean = c->y + 2 * n * c->xs.c;
        settle(c, &gs, n, NULL, mean, mean + c->xs.c);
    }
}

static kron_status norm_stats_compile(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape s = gr_shape_of(p->g, o->op->in[0]);

    cpu_take_threads(p, o, (size_t)(2 * s.c) * sizeof(float));
    take_moments(p, o);
    return KRON_OK;
}

const struct cpu_op_fns cpu_norm_stats = {norm_stats_compile, norm_stats_run};

static void norm_apply_run(struct cpu_call *c)
{
    float *scale = cpu_scratch(c, c->o->temp_at);
    int64_t channels = c->xs.c;
    const float *w, *b;

    norm_params(c, &w, &b);
    for (int64_t i = 0; i < c->xs.n * channels; i++)
        scale[i] = w[i % channels] * c->x[1][(i / channels * 2 + 1) * channels + i % channels];
    apply(c, c->x[1], 2 * channels, scale, b);
}

static kron_status norm_apply_compile(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape s = gr_shape_of(p->g, o->op->in[0]);

    KRON_TRY(take_params(p, o, 0));
    o->temp_at = cpu_take(o, (size_t)(s.n * s.c) * sizeof(float));
    return KRON_OK;
}

const struct cpu_op_fns cpu_norm_apply = {norm_apply_compile, norm_apply_run};

/* --- layer norm --- */

static void layer_norm_run(struct cpu_call *c)
{
    int64_t rows = c->xs.n * c->xs.h * c->xs.w, n = c->xs.c;
    const float *w, *b;

    norm_params(c, &w, &b);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        c->k->layer_norm(c->y + r * n, c->x[0] + r * n, w, b, c->op->eps, n);
}

static kron_status layer_norm_compile(struct be_plan *p, struct cpu_op *o)
{
    return take_params(p, o, 0);
}

const struct cpu_op_fns cpu_layer_norm = {layer_norm_compile, layer_norm_run};
