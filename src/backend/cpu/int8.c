/* SPDX-License-Identifier: MIT
 * The operation: activations are quantised once, each row in cache; panels of the weight are
 * packed, all at once where they stay in memory, else a block at a time; tiles of the output are
 * made in a worker's scratch, where all that is f32 joins them, and written once, finished. */
#include "backend/cpu/int8.h"
#include <omp.h>
#include <string.h>

enum {
    BLOCK_BYTES = 1 << 20, /* of packed rows that are not kept */
    TEMP_BYTES = 2 << 20,  /* of whole rows of output, for what turns them */
    ROWS = 64,             /* about so many activations of one task */
    COLS = 64,             /* and columns of the output */
    OUT_ROWS = 64,         /* weight rows of outliers that a worker takes at a time */
};

/* A gated layer is two parts, values and gates, of which the same columns belong together. */
struct int8_plan {
    const struct int8_way *k;
    struct packed *kept;           /* NULL: packed anew in each run, in scratch */
    int parts;
    int64_t part;                  /* weight rows of a part */
    int64_t panels;                /* of a part */
    int64_t block;                 /* panels of a part in one block */
    int64_t depth, groups;         /* channels, rounded up */
    int64_t chunk, group;          /* rows, panels of one task */
    size_t x_at, scale_at, zero_at, most_at; /* activations */
    size_t out_x_at, out_w_at;     /* outliers: [m, n], [n, out] */
    size_t q_at, w_scale_at, w_sum_at;
};

/* One run. */
struct job {
    const struct cpu_call *c;
    const struct int8_plan *i;
    const float *bias;
    struct delta_ranks ranks;
    int64_t m;
    int n_out;
    int32_t out[INT8_OUTLIERS];
    const int8_t *q; /* of the panels at hand: part by part, `stride` panels each */
    const float *w_scale, *w_sum;
    int64_t first, stride;
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* --- activations --- */

static void quantise_row(const struct job *j, int64_t r, const float *x, float *most)
{
    const struct int8_plan *i = j->i;

    i->k->quantise(x, j->c->o->w.k, most,
                   (char *)cpu_scratch(j->c, i->x_at) + r * i->depth * i->k->bytes,
                   (float *)cpu_scratch(j->c, i->scale_at) + r * i->groups,
                   (float *)cpu_scratch(j->c, i->zero_at) + r * i->groups);
}

static float *most_of(const struct job *j, int thread)
{
    return (float *)cpu_scratch(j->c, j->i->most_at) + thread * j->i->depth;
}

/* Once more without the outliers: zero is what a missing channel is in any range. */
static void without_outliers(const struct job *j, int64_t r)
{
    const struct cpu_call *c = j->c;
    int64_t k = c->o->w.k;
    float *x = cpu_thread_scratch(c), *out = (float *)cpu_scratch(c, j->i->out_x_at) + r * j->n_out;

    memcpy(x, c->x[0] + r * k, (size_t)k * sizeof *x);
    for (int e = 0; e < j->n_out; e++) {
        out[e] = x[j->out[e]];
        x[j->out[e]] = 0;
    }
    quantise_row(j, r, x, most_of(j, omp_get_thread_num()));
}

/* The outliers' columns of weight rows [row, row + n), as rows of out_w. */
static void outlier_weights(const struct job *j, int64_t row, int64_t n)
{
    const struct cpu_call *c = j->c;
    const struct wsource *w = &c->o->w;
    float one[OUT_ROWS], *to = (float *)cpu_scratch(c, j->i->out_w_at) + row;

    for (int e = 0; e < j->n_out; e++) {
        wpass_rows(c, w, row, n, j->out[e], 1, one, 1, cpu_thread_scratch(c));
        memcpy(to + e * w->out, one, (size_t)n * sizeof *one);
    }
}

static void find_outliers(struct job *j)
{
    float *most = most_of(j, 0);

    for (int t = 1; t < j->c->threads; t++)
        for (int64_t i = 0; i < j->c->o->w.k; i++)
            most[i] = most[i] > most_of(j, t)[i] ? most[i] : most_of(j, t)[i];
    j->n_out = int8_outliers(most, j->c->o->w.k, j->out);
}

static void quantise(struct job *j)
{
    const struct cpu_call *c = j->c;
    int64_t k = c->o->w.k, out = c->o->w.out, pieces = (out + OUT_ROWS - 1) / OUT_ROWS;

#pragma omp parallel num_threads(c->threads)
    {
        float *most = most_of(j, omp_get_thread_num());
#pragma omp for schedule(static)
        for (int t = 0; t < c->threads; t++) /* fewer workers than asked for are possible */
            memset(most_of(j, t), 0, (size_t)k * sizeof *most);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < j->m; r++)
            quantise_row(j, r, c->x[0] + r * k, most);
#pragma omp single
        find_outliers(j);
        if (j->n_out > 0) {
#pragma omp for schedule(static) nowait
            for (int64_t r = 0; r < j->m; r++)
                without_outliers(j, r);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces; p++)
                outlier_weights(j, p * OUT_ROWS, least(OUT_ROWS, out - p * OUT_ROWS));
        }
    }
}

/* --- weights --- */

static void pack_panel(const struct job *j, int part, int64_t panel, int8_t *q, float *scale,
                       float *sum)
{
    const struct cpu_call *c = j->c;
    const struct wsource *w = &c->o->w;
    const struct int8_plan *i = j->i;
    int64_t at = panel * i->k->panel, n = least(i->k->panel, i->part - at), row = part * i->part;
    const float *direct = wpass_direct(c, w);
    float *mem = cpu_thread_scratch(c);

    row += at;
    if (!direct)
        wpass_rows(c, w, row, n, 0, w->k, mem, w->k, mem + i->k->panel * w->k);
    i->k->pack(direct ? direct + row * w->k : mem, n, w->k, w->k, q, scale, sum);
}

/* Panels [first, first + n) of each part, by the workers of the region at hand. */
static void pack(const struct job *j, int64_t first, int64_t n, int8_t *q, float *scale,
                 float *sum)
{
    const struct int8_plan *i = j->i;
    int64_t ranges = i->k->panel * i->groups; /* of a panel */

#pragma omp for schedule(static)
    for (int64_t p = 0; p < i->parts * n; p++)
        pack_panel(j, (int)(p / n), first + p % n, q + p * i->k->panel * i->depth * i->k->bytes,
                   scale + p * ranges, sum + p * ranges);
}

/* Fills what is kept where it does not hold this run's weight yet. */
static void pack_kept(const struct job *j)
{
    const struct cpu_call *c = j->c;
    struct packed *k = j->i->kept;

    if (packed_holds(c, k))
        return;
#pragma omp parallel num_threads(c->threads)
    pack(j, 0, j->i->panels, k->q, k->scale, k->sum);
    packed_filled(c, k);
}

/* --- the product --- */

/* Rows [row, row + rows) times panels [panel, panel + n) of each part, at temp, one part after
 * the other, ld wide; outliers and low ranks added. */
static void make_tile(const struct job *j, int64_t row, int64_t rows, int64_t panel, int64_t n,
                      float *temp, int64_t ld)
{
    const struct cpu_call *c = j->c;
    const struct int8_plan *i = j->i;
    int64_t width = i->k->panel, out = c->o->w.out;
    struct int8_tile t = {.rows = rows, .depth = i->depth, .groups = i->groups, .ldy = ld};

    t.x = (const char *)cpu_scratch(c, i->x_at) + row * i->depth * i->k->bytes;
    t.x_scale = (const float *)cpu_scratch(c, i->scale_at) + row * i->groups;
    t.x_zero = (const float *)cpu_scratch(c, i->zero_at) + row * i->groups;
    for (int part = 0; part < i->parts; part++) {
        float *to = temp + part * rows * ld;
        int64_t col = panel * width, cols = least(n * width, i->part - col);
        for (int64_t p = 0; p < n; p++) {
            int64_t at = part * j->stride + panel - j->first + p;
            t.w = j->q + at * width * i->depth * i->k->bytes;
            t.w_scale = j->w_scale + at * width * i->groups;
            t.w_sum = j->w_sum + at * width * i->groups;
            t.y = to + p * width;
            i->k->product(&t);
        }
        col += part * i->part;
        if (j->n_out > 0)
            c->k->gemm(rows, cols, j->n_out,
                       (const float *)cpu_scratch(c, i->out_x_at) + row * j->n_out, j->n_out,
                       (const float *)cpu_scratch(c, i->out_w_at) + col, out, to, ld, true);
        delta_add_ranks(&j->ranks, row, rows, col, cols, to, ld);
    }
}

static void finish_tile(const struct job *j, int64_t row, int64_t rows, int64_t col, int64_t n,
                        const float *temp, int64_t ld)
{
    const struct cpu_call *c = j->c;
    int64_t ldy = c->ys.c;
    const float *gates = temp + rows * ld, *bias = j->bias ? j->bias + col : NULL;

    for (int64_t r = 0; r < rows; r++) {
        int64_t at = (row + r) * ldy + col;
        if (j->i->parts == 2)
            c->k->geglu(c->y + at, temp + r * ld, bias, gates + r * ld, bias + ldy, n);
        else
            c->k->finish(c->y + at, temp + r * ld, bias, NULL, c->x[1] ? c->x[1] + at : NULL,
                         c->op->act, n);
    }
}

/* Rows [at, at + m) times the panels at hand, finished; or as they are to raw[m, out]. */
static void multiply(const struct job *j, int64_t at, int64_t m, int64_t panels, float *raw)
{
    const struct cpu_call *c = j->c;
    const struct int8_plan *i = j->i;
    int64_t chunks = (m + i->chunk - 1) / i->chunk, groups = (panels + i->group - 1) / i->group;
    int64_t width = i->k->panel, ld = i->group * width;

#pragma omp for schedule(static)
    for (int64_t e = 0; e < chunks * groups; e++) {
        float *temp = cpu_thread_scratch(c);
        int64_t row = e / groups * i->chunk, rows = least(i->chunk, m - row);
        int64_t panel = e % groups * i->group, n = least(i->group, panels - panel);
        int64_t col = (j->first + panel) * width, cols = least(n * width, i->part - col);
        make_tile(j, at + row, rows, j->first + panel, n, temp, ld);
        if (raw == NULL)
            finish_tile(j, at + row, rows, col, cols, temp, ld);
        for (int64_t p = 0; raw != NULL && p < i->parts * rows; p++)
            memcpy(raw + (row + p % rows) * c->o->w.out + p / rows * i->part + col,
                   temp + p * ld, (size_t)cols * sizeof *temp);
    }
}

static void use_panels(struct job *j, const struct packed *k)
{
    j->q = k->q;
    j->w_scale = k->scale;
    j->w_sum = k->sum;
}

/* Rows [at, at + m) times all panels. */
static void product(struct job *j, int64_t at, int64_t m, float *raw)
{
    const struct cpu_call *c = j->c;
    const struct int8_plan *i = j->i;
    struct packed own = {0};

    if (i->kept == NULL) {
        own.q = cpu_scratch(c, i->q_at);
        own.scale = cpu_scratch(c, i->w_scale_at);
        own.sum = cpu_scratch(c, i->w_sum_at);
    }
    use_panels(j, i->kept ? i->kept : &own);
    for (int64_t p = 0; p < i->panels; p += i->block) {
        int64_t n = least(i->block, i->panels - p);
        j->first = p;
        j->stride = n;
#pragma omp parallel num_threads(c->threads)
        {
            if (i->kept == NULL)
                pack(j, p, n, own.q, own.scale, own.sum);
            multiply(j, at, m, n, raw);
        }
    }
}

/* Whole rows in scratch, for what turns the product or is added to all of it. */
static void by_rows(struct job *j, int64_t at, int64_t m)
{
    const struct cpu_call *c = j->c;
    float *temp = cpu_scratch(c, c->o->temp_at);
    int64_t out = c->o->w.out, half = c->ys.c;

    product(j, at, m, temp);
    delta_apply(c, c->x[0] + at * c->o->w.k, m, temp, at);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < m; r++) {
        float *y = c->y + (at + r) * half;
        if (j->i->parts == 2)
            c->k->geglu(y, temp + r * out, j->bias, temp + r * out + half, j->bias + half, half);
        else
            c->k->finish(y, temp + r * out, j->bias, NULL,
                         c->x[1] ? c->x[1] + (at + r) * half : NULL, c->op->act, out);
    }
}

static const float *bias_of(const struct cpu_call *c)
{
    const float *bias = cpu_bias(c);

    if (bias != NULL || c->op->kind != OP_GEGLU)
        return bias;
    float *zero = cpu_scratch(c, c->o->bias_at); /* gating has no way without one */
    memset(zero, 0, (size_t)c->o->w.out * sizeof *zero);
    return zero;
}

static void int8_run(struct cpu_call *c)
{
    const struct int8_plan *i = c->o->int8;
    struct job j = {.c = c, .i = i, .m = rows_of(c->xs)};

    wpass_prepare(c, &c->o->w);
    j.bias = bias_of(c);
    j.ranks = delta_ranks(c, c->x[0], j.m);
    quantise(&j);
    if (i->kept != NULL)
        pack_kept(&j);
    if (!delta_active(c) || j.ranks.r > 0) {
        product(&j, 0, j.m, NULL);
        return;
    }
    for (int64_t at = 0; at < j.m; at += c->o->m_chunk)
        by_rows(&j, at, least(c->o->m_chunk, j.m - at));
}

/* --- compiling --- */

/* Evenly split, and whole tiles. */
static int64_t even(int64_t n, int64_t most, int64_t unit)
{
    int64_t pieces = (n + most - 1) / most;

    return up_to((n + pieces - 1) / pieces, unit);
}

static void take_activations(const struct be_plan *p, struct cpu_op *o, int64_t m)
{
    struct int8_plan *i = o->int8;
    int64_t out = least(INT8_OUTLIERS, o->w.k / 16);

    i->x_at = cpu_take(o, (size_t)(up_to(m, i->k->tile) * i->depth * i->k->bytes));
    i->scale_at = cpu_take(o, (size_t)(m * i->groups) * sizeof(float));
    i->zero_at = cpu_take(o, (size_t)(m * i->groups) * sizeof(float));
    i->most_at = cpu_take(o, (size_t)(p->device->n_threads * i->depth) * sizeof(float));
    i->out_x_at = cpu_take(o, (size_t)(m * out) * sizeof(float));
    i->out_w_at = cpu_take(o, (size_t)(out * o->w.out) * sizeof(float));
}

static kron_status take_weights(struct be_plan *p, struct cpu_op *o)
{
    struct int8_plan *i = o->int8;
    int64_t row = i->depth * i->k->bytes, most = BLOCK_BYTES / (i->parts * i->k->panel * row);

    if (o->op->keep) {
        i->block = i->panels;
        return weights_packed(p, o->op->layer, i->parts * i->panels * i->k->panel, row,
                              i->groups, &i->kept);
    }
    i->block = even(i->panels, most < 4 ? 4 : most, 1);
    int64_t rows = i->parts * i->block * i->k->panel;
    i->q_at = cpu_take(o, (size_t)(rows * row));
    i->w_scale_at = cpu_take(o, (size_t)(rows * i->groups) * sizeof(float));
    i->w_sum_at = cpu_take(o, (size_t)(rows * i->groups) * sizeof(float));
    return KRON_OK;
}

/* A worker holds a row, or panel rows and what the weight pass needs, or a tile, or a turn. */
static void take_workers(struct be_plan *p, struct cpu_op *o)
{
    const struct int8_plan *i = o->int8;
    size_t pass = (size_t)(i->k->panel * o->w.k) * sizeof(float) + wpass_thread_bytes(&o->w);
    size_t tile = (size_t)(i->parts * i->chunk * i->group * i->k->panel) * sizeof(float);
    size_t turn = delta_thread_bytes(&o->w), most = pass > tile ? pass : tile;

    cpu_take_threads(p, o, most > turn ? most : turn);
}

static void take_rows(struct cpu_op *o, int64_t m)
{
    int64_t most = TEMP_BYTES / 4 / o->w.out;

    o->m_chunk = least(m, most < 32 ? 32 : most);
    o->temp_at = cpu_take(o, (size_t)(o->m_chunk * o->w.out) * sizeof(float));
}

static kron_status int8_compile(struct be_plan *p, struct cpu_op *o)
{
    int64_t m = rows_of(gr_shape_of(p->g, o->op->in[0]));
    struct int8_plan *i = o->int8 = arena_alloc(&p->mem, sizeof *o->int8);

    KRON_TRY(p->mem.status);
    KRON_TRY(wpass_compile(p, o, o->op->layer, o->op->route));
    i->k = o->op->compute == COMPUTE_INT16 ? &p->device->int8->sixteen : &p->device->int8->eight;
    i->parts = o->op->kind == OP_GEGLU ? 2 : 1;
    i->part = o->w.out / i->parts;
    i->panels = (i->part + i->k->panel - 1) / i->k->panel;
    i->depth = int8_depth(o->w.k);
    i->groups = int8_groups(o->w.k);
    i->chunk = even(m, ROWS, i->k->tile);
    i->group = COLS / i->k->panel;
    if (o->op->kind == OP_GEGLU && !o->has_bias)
        o->bias_at = cpu_take(o, (size_t)o->w.out * sizeof(float));
    take_activations(p, o, m);
    KRON_TRY(take_weights(p, o));
    take_workers(p, o);
    if (delta_on_rows(&o->w)) {
        take_rows(o, m);
        delta_compile(p, o);
    }
    return KRON_OK;
}

const struct cpu_op_fns cpu_int8 = {int8_compile, int8_run};
