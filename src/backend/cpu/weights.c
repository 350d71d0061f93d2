/* SPDX-License-Identifier: MIT
 * What stays in memory for a set of adapters: merged weights and weights as whole numbers where
 * asked for, and what some families need of the base: gains (DoRA's norms: a number for each row or
 * input channel) and, for the input form, W A, its low rank on the output side. Base and factors
 * are used where the files are mapped. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/places.h"
#include "backend/cpu/plan.h"
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>

struct kept {
    float *merged; /* [out, k] */
    struct derived {
        float *gain; /* [rows] or [in] */
        float *a, *b; /* [out, r ks], [r ks, k] */
    } *derived; /* by delta of the layer, or NULL */
    int n;
    struct packed packed;
};

enum { BLOCK_BYTES = 1 << 20, SLAB = 64 /* columns that left deltas turn at a time */ };

/* One lock for all: this is rare, and plans of several sessions may share weights. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

kron_status weights_create(struct be_device *d, const struct layer_table *table,
                           const struct delta_set *set, struct be_weights **out)
{
    void *p, *kept;

    KRON_TRY(mem_alloc(&p, sizeof **out, "weights"));
    kron_status status = mem_alloc_n(&kept, (size_t)table->n, sizeof(struct kept), "weights");
    if (status != KRON_OK) {
        mem_free(p);
        return status;
    }
    *out = p;
    **out = (struct be_weights){.table = table, .set = set, .kept = kept,
                                .places = ((struct cpu_device *)d)->places};
    return KRON_OK;
}

static void packed_free(struct packed *k)
{
    mem_free(k->q);
    mem_free(k->scale);
    mem_free(k->sum);
    mem_free(k->key);
    memset(k, 0, sizeof *k);
}

void weights_free(struct be_weights *w)
{
    for (int i = 0; i < w->table->n; i++) {
        struct kept *k = &w->kept[i];
        mem_free(k->merged);
        for (int j = 0; j < k->n; j++) {
            mem_free(k->derived[j].gain);
            mem_free(k->derived[j].a);
            mem_free(k->derived[j].b);
        }
        mem_free(k->derived);
        packed_free(&k->packed);
    }
    mem_free(w->kept);
    mem_free(w->work);
    mem_free(w);
}

void weights_trim(struct be_weights *w)
{
    mem_free(w->work);
    w->work = NULL;
    w->holder = 0;
}

static kron_status take_work(struct be_weights *w, size_t bytes)
{
    void *m;

    if (w->work != NULL && bytes <= w->work_bytes)
        return KRON_OK;
    weights_trim(w);
    w->work_bytes = bytes > w->work_bytes ? bytes : w->work_bytes;
    KRON_TRY(mem_alloc_raw(&m, w->work_bytes, "the compute buffer"));
    places_spread(w->places, m, w->work_bytes);
    w->work = m;
    return KRON_OK;
}

kron_status weights_reserve(struct be_weights *w, const struct be_plan *p, char **at)
{
    size_t bytes = plan_bytes(p);

    KRON_TRY(take_work(w, bytes));
    *at = w->work;
    if (w->holder == 0 || w->holder == p->number)
        return KRON_OK;
    if (p->g->held_bytes == 0 && w->held_bytes + bytes <= w->work_bytes)
        *at += w->held_bytes;
    else
        w->holder = 0;
    return KRON_OK;
}

/* --- rows of a layer, outside any plan --- */

/* An op that is no op: the weight pass of some deltas, with scratch of its own. */
struct pass {
    struct be_plan plan;
    struct cpu_op op;
    struct cpu_call call;
};

static void pass_close(struct pass *s)
{
    mem_free(s->plan.scratch);
    arena_free(&s->plan.mem);
}

static kron_status pass_open(struct pass *s, const struct be_plan *p, const struct layer *l,
                             const struct delta *deltas, int n, const float *strengths,
                             size_t more)
{
    void *scratch = NULL;

    memset(s, 0, sizeof *s);
    s->plan.device = p->device;
    s->plan.weights = p->weights;
    kron_status status = wpass_compile_list(&s->plan, &s->op, l, deltas, n);
    if (status == KRON_OK) {
        s->op.block_at = cpu_take(&s->op, more);
        cpu_take_threads(&s->plan, &s->op, wpass_thread_bytes(&s->op.w));
        status = mem_alloc(&scratch, s->op.scratch_bytes, l->name);
    }
    s->plan.scratch = scratch;
    s->call = (struct cpu_call){.p = &s->plan, .o = &s->op, .k = p->device->k,
                                .threads = p->device->n_threads, .strengths = strengths};
    if (status == KRON_OK)
        wpass_prepare(&s->call, &s->op.w);
    else
        pass_close(s);
    return status;
}

static int64_t rows_of_block(const struct layer *l)
{
    int64_t rows = BLOCK_BYTES / 4 / layer_k(l);

    return rows < 16 ? 16 : rows < l->out ? rows : l->out;
}

/* --- gains --- */

/* sum[o - at] or sum[channel] += squares of rows [row, row + n) of W + c D. */
static void add_squares(const struct cpu_call *c, const struct delta *d, const float *w,
                        int64_t row, int64_t n, double *sum)
{
    const struct layer *l = c->o->w.layer;
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;

    if (d->axis == GAIN_OUT) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t o = 0; o < n; o++)
            for (int64_t at = 0; at < k; at += 256) {
                int64_t m = k - at < 256 ? k - at : 256;
                const float *x = w + o * k + at;
                sum[row + o - d->at] += (double)c->k->dot(x, x, m);
            }
        return;
    }
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < l->in; i++)
        for (int64_t o = 0; o < n; o++)
            for (int64_t t = 0; t < ks; t++) {
                double v = (double)w[o * k + i * ks + t];
                sum[i] += v * v;
            }
}

static kron_status make_gain(const struct be_plan *p, const struct layer *l,
                             const struct delta *d, float **out)
{
    static const float whole = 1;
    struct delta plain = *d;
    struct pass s;
    int64_t n = d->axis == GAIN_IN ? l->in : d->rows, block = rows_of_block(l);
    void *sum, *gain;

    plain.axis = GAIN_NONE;
    plain.strength = 0;
    KRON_TRY(mem_alloc_n(&gain, (size_t)n, sizeof(float), l->name));
    kron_status status = mem_alloc_n(&sum, (size_t)n, sizeof(double), l->name);
    if (status == KRON_OK)
        status = pass_open(&s, p, l, &plain, 1, &whole, (size_t)(block * layer_k(l)) * 4);
    if (status != KRON_OK) {
        mem_free(gain);
        return status;
    }
    float *w = cpu_scratch(&s.call, s.op.block_at);
    for (int64_t row = d->at; row < d->at + d->rows; row += block) {
        int64_t m = d->at + d->rows - row < block ? d->at + d->rows - row : block;
        wpass_block(&s.call, &s.op.w, row, m, w);
        add_squares(&s.call, d, w, row, m, sum);
    }
    *out = gain;
    for (int64_t i = 0; i < n; i++) {
        double v = sqrt(((double *)sum)[i]);
        (*out)[i] = v > 0 ? (float)((double)d->magnitude[i] / v) : 1;
    }
    pass_close(&s);
    mem_free(sum);
    return KRON_OK;
}

/* --- the input form --- */

/* a[o, t r + j] = sum over i of W[o, i, t] A[i, j], rows [row, row + n). */
static void input_rows(const struct cpu_call *c, const float *w, int64_t n, const float *from,
                       int64_t r, float *a)
{
    const struct layer *l = c->o->w.layer;
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t o = 0; o < n; o++)
        for (int64_t i = 0; i < l->in; i++)
            for (int64_t t = 0; t < ks; t++)
                c->k->axpy(a + (o * ks + t) * r, from + i * r, w[o * k + i * ks + t], r);
}

/* b[t r + j, i ks + t] = B[j, i]; the rest is zero. */
static void input_columns(const struct layer *l, const float *from, int64_t r, float *b)
{
    int64_t ks = (int64_t)l->kh * l->kw;

    for (int64_t t = 0; t < ks; t++)
        for (int64_t j = 0; j < r; j++)
            for (int64_t i = 0; i < l->in; i++)
                b[(t * r + j) * layer_k(l) + i * ks + t] = from[j * l->in + i];
}

static kron_status make_input(const struct be_plan *p, const struct layer *l,
                              const struct delta *d, struct derived *out)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw, r = d->rank, block = rows_of_block(l);
    struct pass s;
    void *a = NULL, *b = NULL;

    KRON_TRY(mem_alloc_n(&a, (size_t)(l->out * r * ks), sizeof(float), l->name));
    kron_status status = mem_alloc_n(&b, (size_t)(r * ks * k), sizeof(float), l->name);
    if (status == KRON_OK)
        status = pass_open(&s, p, l, NULL, 0, NULL,
                           (size_t)(block * k + 2 * l->in * r) * sizeof(float));
    if (status != KRON_OK) {
        mem_free(a);
        mem_free(b);
        return status;
    }
    float *w = cpu_scratch(&s.call, s.op.block_at), *mem = w + block * k;
    const float *left = cpu_floats(s.call.k, &d->a, 0, l->in * r, mem);
    input_columns(l, cpu_floats(s.call.k, &d->b, 0, l->in * r, mem + l->in * r), r, b);
    for (int64_t row = 0; row < l->out; row += block) {
        int64_t n = l->out - row < block ? l->out - row : block;
        wpass_block(&s.call, &s.op.w, row, n, w);
        input_rows(&s.call, w, n, left, r, (float *)a + row * r * ks);
    }
    pass_close(&s);
    out->a = a;
    out->b = b;
    return KRON_OK;
}

/* --- deltas ready to apply --- */

static struct tensor floats(const float *data, int64_t rows, int64_t cols)
{
    struct tensor t = {.data = data, .bytes = (size_t)(rows * cols) * sizeof *data,
                       .type = DT_F32, .n_dims = 2, .dim = {rows, cols, 1, 1, 1, 1},
                       .name = "derived factor"};

    return t;
}

static kron_status derive(const struct be_plan *p, const struct layer *l, int i,
                          struct delta *out)
{
    struct delta_list list = delta_set_list(p->weights->set, l);
    struct kept *kept = &p->weights->kept[l->id];
    void *m;

    if (kept->derived == NULL) {
        KRON_TRY(mem_alloc_n(&m, (size_t)list.n, sizeof *kept->derived, l->name));
        kept->derived = m;
        kept->n = list.n;
    }
    struct derived *mine = &kept->derived[i];
    *out = list.at[i];
    if (out->kind == DELTA_INPUT) {
        int64_t ks = (int64_t)l->kh * l->kw;
        if (mine->a == NULL)
            KRON_TRY(make_input(p, l, out, mine));
        out->kind = DELTA_LOW_RANK;
        out->from = out->at; /* W A has the layer's rows */
        out->rank *= ks;
        out->a = floats(mine->a, l->out, out->rank);
        out->b = floats(mine->b, out->rank, layer_k(l));
    }
    if (out->axis != GAIN_NONE && out->gain == NULL) {
        if (mine->gain == NULL)
            KRON_TRY(make_gain(p, l, out, &mine->gain));
        out->gain = mine->gain;
    }
    return KRON_OK;
}

kron_status weights_delta(struct be_plan *p, const struct layer *l, int i, struct delta *out)
{
    pthread_mutex_lock(&lock);
    kron_status status = derive(p, l, i, out);
    pthread_mutex_unlock(&lock);
    return status != KRON_OK ? err_prefix(status, "%s", l->name) : KRON_OK;
}

/* --- merged weights --- */

/* Turns columns in x[rows, SLAB], with room for a block behind it. */
static void turn_slab(const struct cpu_kernels *k, const struct delta *d, float s, float *x)
{
    float *in = x + d->rows * SLAB;

    for (int stage = 0; stage < d->stages; stage++)
        for (int64_t j = 0; j < d->n_blocks; j++) {
            const float *m = d->mix + (stage * d->n_blocks + j) * d->block * d->block;
            for (int64_t e = 0; e < d->block; e++)
                memcpy(in + e * SLAB, x + delta_left_row(d, stage, j, e) * SLAB,
                       SLAB * sizeof *x);
            for (int64_t e = 0; e < d->block; e++) {
                float *to = x + delta_left_row(d, stage, j, e) * SLAB;
                for (int64_t i = 0; i < d->block; i++)
                    k->axpy(to, in + i * SLAB, s * m[i * d->block + e], SLAB);
            }
        }
    for (int64_t o = 0; d->rescale != NULL && o < d->rows; o++)
        for (int64_t c = 0; c < SLAB; c++)
            x[o * SLAB + c] *= 1 + s * (d->rescale[o] - 1);
}

static void plain_part(const struct cpu_call *c, const struct layer *l, int64_t row, int64_t col,
                       int64_t n, float *to)
{
    tensor_decode_by(&l->weight, row * layer_k(l) + col, n, to, c->k->decode);
}

/* to[out, k] += what a left delta changes of the plain weight. */
static kron_status merge_left(const struct cpu_call *c, const struct layer *l,
                              const struct delta *d, float *to)
{
    float s = delta_strength(d, c->strengths);
    int64_t k = layer_k(l), slabs = (k + SLAB - 1) / SLAB, each = (d->rows + d->block) * SLAB;
    void *mem;

    KRON_TRY(mem_alloc_n(&mem, (size_t)(each * c->threads), sizeof(float), l->name));
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < slabs; i++) {
        int64_t col = i * SLAB, n = k - col < SLAB ? k - col : SLAB;
        float *x = (float *)mem + omp_get_thread_num() * each, plain[SLAB];
        memset(x, 0, (size_t)each * sizeof *x);
        for (int64_t o = 0; o < d->rows; o++)
            plain_part(c, l, d->at + o, col, n, x + o * SLAB);
        turn_slab(c->k, d, s, x);
        for (int64_t o = 0; o < d->rows; o++) {
            plain_part(c, l, d->at + o, col, n, plain);
            c->k->axpy(to + (d->at + o) * k + col, x + o * SLAB, 1, n);
            c->k->axpy(to + (d->at + o) * k + col, plain, -1, n);
        }
    }
    mem_free(mem);
    return KRON_OK;
}

static kron_status merge_list(struct be_plan *p, const struct layer *l,
                              const struct delta *deltas, int n, float *to)
{
    struct pass s;

    KRON_TRY(pass_open(&s, p, l, deltas, n, p->merge_strengths, 0));
    wpass_block(&s.call, &s.op.w, 0, l->out, to);
    kron_status status = KRON_OK;
    for (int i = 0; i < n && status == KRON_OK; i++)
        if (deltas[i].kind == DELTA_LEFT)
            status = merge_left(&s.call, l, &deltas[i], to);
    pass_close(&s);
    return status;
}

static kron_status merge(struct be_plan *p, const struct layer *l, float *to)
{
    struct delta_list list = delta_set_list(p->weights->set, l);
    struct delta *ready;
    kron_status status = KRON_OK;
    void *mem;
    int n = 0;

    KRON_TRY(mem_alloc_n(&mem, (size_t)list.n, sizeof *ready, l->name));
    ready = mem;
    for (int i = 0; i < list.n && status == KRON_OK; i++)
        if (list.at[i].region == NULL)
            status = derive(p, l, i, &ready[n++]);
    if (status == KRON_OK)
        status = merge_list(p, l, ready, n, to);
    mem_free(mem);
    return status;
}

kron_status weights_merged(struct be_plan *p, const struct layer *l, struct tensor *out)
{
    size_t n = (size_t)(l->out * layer_k(l));
    kron_status status = KRON_OK;
    void *mem = NULL;

    KRON_ASSERT(l->id >= 0 && l->id < p->weights->table->n);
    struct kept *kept = &p->weights->kept[l->id];
    pthread_mutex_lock(&lock);
    if (kept->merged == NULL) {
        status = mem_alloc_n(&mem, n, sizeof *kept->merged, "a merged weight");
        if (status == KRON_OK)
            status = merge(p, l, mem);
        if (status == KRON_OK)
            kept->merged = mem;
        else
            mem_free(mem);
    }
    pthread_mutex_unlock(&lock);
    if (status != KRON_OK)
        return err_prefix(status, "%s", l->name);
    *out = l->weight;
    out->data = kept->merged;
    out->type = DT_F32;
    out->scale = NULL;
    out->bytes = n * sizeof *kept->merged;
    return KRON_OK;
}

/* --- weights as whole numbers --- */

static kron_status packed_take(struct packed *k, size_t rows, size_t depth, size_t groups,
                               size_t n)
{
    void *m;

    KRON_TRY(mem_alloc_n(&m, n + 1, sizeof *k->key, "a packed weight"));
    k->key = m;
    KRON_TRY(mem_alloc_n(&m, rows * groups, sizeof *k->scale, "a packed weight"));
    k->scale = m;
    KRON_TRY(mem_alloc_n(&m, rows * groups, sizeof *k->sum, "a packed weight"));
    k->sum = m;
    if (depth == 0)
        return KRON_OK;
    KRON_TRY(mem_alloc_n(&m, rows, depth, "a packed weight"));
    k->q = m;
    return KRON_OK;
}

bool packed_holds(const struct cpu_call *c, const struct packed *k)
{
    const struct wsource *w = &c->o->w;
    bool same = k->filled && k->base == w->base.data;

    for (int i = 0; same && i < w->n; i++)
        same = k->key[i] == wpass_delta_strength(c, w, i);
    return same;
}

void packed_filled(const struct cpu_call *c, struct packed *k)
{
    const struct wsource *w = &c->o->w;

    for (int i = 0; i < w->n; i++)
        k->key[i] = wpass_delta_strength(c, w, i);
    k->base = w->base.data;
    k->filled = true;
}

kron_status weights_packed(struct be_plan *p, const struct layer *l, int64_t rows, int64_t depth,
                           int64_t groups, struct packed **out)
{
    struct packed *k = &p->weights->kept[l->id].packed;
    kron_status status = KRON_OK;

    pthread_mutex_lock(&lock);
    if (k->key == NULL)
        status = packed_take(k, (size_t)rows, (size_t)depth, (size_t)groups,
                             (size_t)delta_set_list(p->weights->set, l).n);
    if (status != KRON_OK)
        packed_free(k);
    pthread_mutex_unlock(&lock);
    *out = k;
    return status != KRON_OK ? err_prefix(status, "%s", l->name) : KRON_OK;
}
