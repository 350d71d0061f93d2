/* SPDX-License-Identifier: MIT
 * The weight pass: rows of a layer's effective weight as f32, base decoded and deltas added, a
 * piece at a time on each thread, with everything that a piece needs in that thread's cache.
 *
 * Factors in files may be f16 or bf16 and large, so they are decoded by the piece as well; only a
 * Kronecker product's W2, which every row uses again, is kept as f32 for the length of an op. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum {
    SEG = 256,         /* columns of factors that are decoded at a time */
    RANKS = 128,       /* ranks likewise */
    W2_MOST = 4 << 20, /* bytes of W2s kept as f32 by one op */
};

/* A worker's scratch: a panel of B, one of A, two products, a short row. */
enum {
    AT_B = 0,
    AT_A = AT_B + SEG * RANKS,
    AT_P = AT_A + WPASS_ROWS * RANKS,
    AT_Q = AT_P + WPASS_ROWS * SEG,
    AT_ROW = AT_Q + WPASS_ROWS * SEG,
    AT_TEMP = AT_ROW + SEG, /* rows of a delta on its own, if some delta needs them */
};

static int64_t kernel_size(const struct layer *l)
{
    return (int64_t)l->kh * l->kw;
}

static bool is_f32(const struct tensor *t)
{
    return t->type == DT_F32 && t->scale == NULL && (uintptr_t)t->data % sizeof(float) == 0;
}

const float *cpu_floats(const struct cpu_kernels *k, const struct tensor *t, int64_t at, int64_t n,
                        float *dst)
{
    if (is_f32(t))
        return (const float *)t->data + at;
    tensor_decode_by(t, at, n, dst, k->decode);
    return dst;
}

const float *cpu_bias(const struct cpu_call *c)
{
    const struct wsource *w = &c->o->w;
    const struct tensor *t = &w->layer->bias;
    float *sum = cpu_scratch(c, c->o->bias_at);

    if (!c->o->has_bias)
        return NULL;
    if (!c->o->own_bias)
        return (const float *)t->data;
    memset(sum, 0, (size_t)w->out * sizeof *sum);
    if (t->data != NULL)
        c->k->decode(t->type, t->data, w->out, sum);
    for (int i = 0; i < w->n; i++) {
        const struct delta *d = &w->at[i].d;
        float s = delta_strength(d, c->strengths);
        if (d->bias != NULL && s != 0)
            c->k->axpy(sum + d->at, d->bias, s, d->rows);
    }
    return sum;
}

float wpass_strength(const struct cpu_call *c, const struct delta *d)
{
    return delta_strength(d, c->strengths) * d->scale;
}

static bool w2_needs_memory(const struct delta *d)
{
    return d->kind == DELTA_KRON && (d->w2.data == NULL || !is_f32(&d->w2));
}

/* --- compiling --- */

static bool has_factors(const struct delta *d)
{
    return d->kind != DELTA_NONE && d->kind != DELTA_LEFT && d->kind != DELTA_RIGHT;
}

/* True if the delta multiplies rows or columns of the base. */
static bool scales_base(const struct delta *d)
{
    return d->axis != GAIN_NONE || (d->replace && d->kind != DELTA_NONE);
}

/* Takes memory for W2s that every row uses again, as far as it stays small. Those that would have
 * to be multiplied out again come first: to decode one again costs less. */
static void take_w2(struct cpu_op *o, bool products, size_t *kept)
{
    for (int i = 0; i < o->w.n; i++) {
        const struct delta *d = &o->w.at[i].d;
        size_t bytes = (size_t)(d->vp * d->vq * kernel_size(o->w.layer)) * sizeof(float);
        if (!w2_needs_memory(d) || (d->w2.data == NULL) != products || bytes > W2_MOST - *kept)
            continue;
        o->w.at[i].w2_at = cpu_take(o, bytes);
        *kept += bytes;
    }
}

/* What the deltas together ask of the op. */
static void settle(struct cpu_op *o)
{
    struct wsource *w = &o->w;
    const struct tensor *bias = &w->layer->bias;
    size_t kept = 0;

    o->has_bias = bias->data != NULL;
    o->own_bias = o->has_bias && !is_f32(bias);
    for (int i = 0; i < w->n; i++) {
        const struct delta *d = &w->at[i].d;
        o->has_bias = o->has_bias || d->bias != NULL;
        o->own_bias = o->own_bias || d->bias != NULL;
        w->gains = w->gains || scales_base(d);
        w->temp = w->temp || d->axis == GAIN_IN;
    }
    for (int i = 0; i < w->n; i++)
        if (w->at[i].d.kind == DELTA_KRON)
            w->at[i].w1_at = cpu_take(o, (size_t)(w->at[i].d.up * w->at[i].d.uq) * sizeof(float));
    if (o->own_bias)
        o->bias_at = cpu_take(o, (size_t)w->out * sizeof(float));
    take_w2(o, true, &kept);
    take_w2(o, false, &kept);
}

static kron_status take_deltas(struct be_plan *p, struct cpu_op *o, const struct layer *l, int n)
{
    o->w = (struct wsource){.layer = l, .base = l->weight, .out = l->out, .k = layer_k(l)};
    o->w.at = arena_alloc(&p->mem, (size_t)n * sizeof *o->w.at + 1);
    return p->mem.status;
}

kron_status wpass_compile_list(struct be_plan *p, struct cpu_op *o, const struct layer *l,
                               const struct delta *deltas, int n)
{
    KRON_TRY(take_deltas(p, o, l, n));
    for (int i = 0; i < n; i++)
        o->w.at[o->w.n++] = (struct wdelta){.d = deltas[i], .in_rows = true, .w2_at = NONE_AT};
    settle(o);
    return KRON_OK;
}

/* The region's mask at the size of the op's output, which may be rows of a picture. */
static kron_status scale_mask(struct be_plan *p, const struct cpu_op *o, struct wdelta *w)
{
    struct gr_shape y = gr_shape_of(p->g, gr_root(p->g, o->op->out));
    float *mask = arena_alloc(&p->mem, (size_t)(y.h * y.w) * sizeof *mask);

    KRON_TRY(p->mem.status);
    delta_region_scale(w->d.region, y.w, y.h, mask);
    w->mask = mask + p->g->values[o->op->out].row * y.w;
    return KRON_OK;
}

/* A merged weight has all in it but biases and what is confined to a region. */
static bool is_merged(struct delta *d)
{
    if (d->region != NULL)
        return false;
    d->kind = DELTA_NONE;
    d->axis = GAIN_NONE;
    return d->bias == NULL;
}

/* Only what is the same for every row of activations can be part of the weight. */
static bool in_rows(const struct be_plan *p, const struct cpu_op *o, const struct delta *d,
                    enum gr_route route)
{
    struct gr_shape y = gr_shape_of(p->g, gr_root(p->g, o->op->out));

    if (d->region != NULL)
        return false;
    return route == ROUTE_WEIGHT ||
           (route == ROUTE_MIXED && gr_delta_in_rows(d, o->w.layer, y.n * y.h * y.w,
                                                     &p->device->base.caps.rates));
}

kron_status wpass_compile(struct be_plan *p, struct cpu_op *o, const struct layer *l,
                          enum gr_route route)
{
    struct delta_list list = delta_set_list(p->weights->set, l);

    route = gr_route_allowed(list, route);
    KRON_TRY(take_deltas(p, o, l, list.n));
    if (route == ROUTE_MIXED) /* in_rows() asks for the rates */
        KRON_TRY(be_measure(&p->device->base));
    if (route == ROUTE_MERGED)
        KRON_TRY(weights_merged(p, l, &o->w.base));
    for (int i = 0; i < list.n; i++) {
        struct wdelta *w = &o->w.at[o->w.n];
        *w = (struct wdelta){.d = list.at[i], .w2_at = NONE_AT};
        if (route == ROUTE_MERGED && is_merged(&w->d))
            continue;
        if (route != ROUTE_MERGED)
            KRON_TRY(weights_delta(p, l, i, &w->d));
        w->in_rows = in_rows(p, o, &w->d, route);
        if (w->d.region != NULL)
            KRON_TRY(scale_mask(p, o, w));
        o->w.n++;
    }
    settle(o);
    return KRON_OK;
}

/* Short rows of W2 stand at AT_ROW. */
size_t wpass_thread_bytes(const struct wsource *w)
{
    if (w->n == 0)
        return 0;
    return (size_t)(AT_TEMP + (w->temp ? WPASS_ROWS * SEG : 0)) * sizeof(float);
}

/* --- products of two factors --- */

/* Rows [row, row + n) and columns [col, col + n_col) of some matrix, to be written to dst. */
struct piece {
    int64_t row, n, col, n_col;
    float *dst;
    int64_t ld;
    float *scratch;
};

static struct piece narrower(const struct piece *p, int64_t at, int64_t most)
{
    struct piece q = *p;

    q.col += at;
    q.n_col = p->n_col - at < most ? p->n_col - at : most;
    q.dst += at;
    return q;
}

/* dst (+)= s g A B of a piece, B's rows `width` long; g: a factor for each row, or NULL. */
static void add_product(const struct cpu_kernels *k, const struct tensor *a,
                        const struct tensor *b, int64_t rank, int64_t width, float s,
                        const float *g, const struct piece *p, bool add)
{
    float *pa = p->scratch + AT_A, *pb = p->scratch + AT_B;

    for (int64_t r0 = 0; r0 < rank; r0 += RANKS) {
        int64_t r = rank - r0 < RANKS ? rank - r0 : RANKS;
        for (int64_t i = 0; i < p->n; i++) {
            const float *from = cpu_floats(k, a, (p->row + i) * rank + r0, r, pa + i * r);
            for (int64_t j = 0; j < r; j++)
                pa[i * r + j] = from[j] * (g ? s * g[i] : s);
        }
        for (int64_t at = 0; at < p->n_col; at += SEG) {
            struct piece q = narrower(p, at, SEG);
            int64_t ldb = q.n_col;
            const float *panel = pb;
            if (is_f32(b)) {
                panel = (const float *)b->data + r0 * width + q.col;
                ldb = width;
            }
            for (int64_t j = 0; panel == pb && j < r; j++)
                cpu_floats(k, b, (r0 + j) * width + q.col, q.n_col, pb + j * ldb);
            k->gemm(q.n, q.n_col, r, pa, r, panel, ldb, q.dst, q.ld, add || r0 > 0);
        }
    }
}

static void add_hadamard(const struct cpu_kernels *k, const struct wsource *w,
                         const struct delta *d, float s, const float *g, const struct piece *p)
{
    for (int64_t at = 0; at < p->n_col; at += SEG) {
        struct piece to = narrower(p, at, SEG), one = to, two = to;
        one.ld = two.ld = to.n_col;
        one.dst = p->scratch + AT_P;
        two.dst = p->scratch + AT_Q;
        add_product(k, &d->a, &d->b, d->rank, w->k, 1, NULL, &one, false);
        add_product(k, &d->c, &d->d, d->rank, w->k, 1, NULL, &two, false);
        for (int64_t i = 0; i < p->n; i++)
            k->axpy_mul(to.dst + i * to.ld, one.dst + i * one.ld, two.dst + i * two.ld,
                        g ? s * g[i] : s, to.n_col);
    }
}

static void add_full(const struct cpu_kernels *k, const struct wsource *w, const struct delta *d,
                     float s, const float *g, const struct piece *p)
{
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t at = 0; at < p->n_col; at += SEG) {
            int64_t m = p->n_col - at < SEG ? p->n_col - at : SEG;
            const float *x = cpu_floats(k, &d->d, (p->row + i) * w->k + p->col + at, m,
                                        p->scratch + AT_ROW);
            k->axpy(p->dst + i * p->ld + at, x, g ? s * g[i] : s, m);
        }
}

/* --- Kronecker --- */

/* Row o = i vp + j gains s W1[i, l] W2[j, :] at column l * width. W2's row comes from memory
 * where it is there as f32, else in segments that are decoded, or multiplied, as they are used. */
struct kron_rows {
    const struct delta *d;
    const float *w1; /* s c W1[up, uq] */
    const float *w2; /* [vp, width] as f32, or NULL */
    int64_t width;
};

static struct kron_rows kron_of(const struct cpu_call *c, const struct wsource *w, int i)
{
    const struct delta *d = &w->at[i].d;
    struct kron_rows r = {.d = d, .w1 = cpu_scratch(c, w->at[i].w1_at)};

    r.width = d->vq * kernel_size(w->layer);
    if (!w2_needs_memory(d))
        r.w2 = d->w2.data;
    else if (w->at[i].w2_at != NONE_AT)
        r.w2 = cpu_scratch(c, w->at[i].w2_at);
    return r;
}

/* One row of a piece, times s, of which W2's columns [m0, m0 + m) are at hand in w2. */
static void kron_row(const struct cpu_kernels *k, int64_t width, float s, const float *w1,
                     const float *w2, int64_t m0, int64_t m, const struct piece *p, float *dst)
{
    for (int64_t l = p->col / width; l * width < p->col + p->n_col; l++) {
        int64_t from = l * width + m0, to = from + m, first = from;
        if (from < p->col)
            from = p->col;
        if (to > p->col + p->n_col)
            to = p->col + p->n_col;
        if (from < to)
            k->axpy(dst + from - p->col, w2 + from - first, s * w1[l], to - from);
    }
}

/* W2's columns [m0, m0 + m) of row j. */
static const float *w2_part(const struct cpu_kernels *k, const struct kron_rows *r, int64_t j,
                            int64_t m0, int64_t m, float *scratch)
{
    const struct delta *d = r->d;
    struct piece one = {j, 1, m0, m, scratch + AT_ROW, m, scratch};

    if (r->w2)
        return r->w2 + j * r->width;
    if (d->w2.data != NULL)
        return cpu_floats(k, &d->w2, j * r->width + m0, m, scratch + AT_ROW);
    add_product(k, &d->a, &d->b, d->rank, r->width, 1, NULL, &one, false);
    return one.dst;
}

/* True if columns [m0, m0 + m) of some group of `width` are columns of the piece. */
static bool touches(const struct piece *p, int64_t width, int64_t m0, int64_t m)
{
    int64_t l = p->col >= m0 + m ? (p->col - m0 - m) / width + 1 : 0; /* first that ends in it */

    return l * width + m0 < p->col + p->n_col;
}

static void add_kron(const struct cpu_kernels *k, const struct kron_rows *r, const float *g,
                     const struct piece *p)
{
    const struct delta *d = r->d;

    for (int64_t m0 = 0; m0 < r->width; m0 += r->w2 ? r->width : SEG) {
        int64_t m = r->w2 || r->width - m0 < SEG ? r->width - m0 : SEG;
        for (int64_t o = 0; touches(p, r->width, m0, m) && o < p->n; o++) {
            int64_t i = (p->row + o) / d->vp, j = (p->row + o) % d->vp;
            kron_row(k, r->width, g ? g[o] : 1, r->w1 + i * d->uq,
                     w2_part(k, r, j, m0, m, p->scratch), m0, m, p, p->dst + o * p->ld);
        }
    }
}

/* --- all of a row --- */

/* dst += s g D of a piece whose rows are D's own; g by row or NULL. */
static void add_factors(const struct cpu_call *c, const struct wsource *w, int i, const float *g,
                        const struct piece *p)
{
    const struct delta *d = &w->at[i].d;
    float s = wpass_strength(c, d);

    if (d->kind == DELTA_KRON) {
        struct kron_rows r = kron_of(c, w, i);
        add_kron(c->k, &r, g, p);
    } else if (d->kind == DELTA_LOW_RANK) {
        add_product(c->k, &d->a, &d->b, d->rank, w->k, s, g, p, true);
    } else if (d->kind == DELTA_HADAMARD) {
        add_hadamard(c->k, w, d, s, g, p);
    } else {
        add_full(c->k, w, d, s, g, p);
    }
}

/* The same with a gain for each input channel: D is made on its own first. */
static void add_by_column(const struct cpu_call *c, const struct wsource *w, int i,
                          const struct piece *p)
{
    int64_t ks = kernel_size(w->layer);
    const float *gain = w->at[i].d.gain;

    for (int64_t at = 0; at < p->n_col; at += SEG) {
        struct piece to = narrower(p, at, SEG), own = to;
        own.dst = p->scratch + AT_TEMP;
        own.ld = to.n_col;
        memset(own.dst, 0, (size_t)(own.n * own.ld) * sizeof *own.dst);
        add_factors(c, w, i, NULL, &own);
        for (int64_t r = 0; r < to.n; r++)
            for (int64_t j = 0; j < to.n_col; j++)
                to.dst[r * to.ld + j] += gain[(to.col + j) / ks] * own.dst[r * own.ld + j];
    }
}

/* The rows of a piece that a delta changes, as rows of its D. */
static bool window_of(const struct delta *d, const struct piece *p, struct piece *q)
{
    int64_t first = p->row > d->at ? p->row : d->at;
    int64_t end = p->row + p->n < d->at + d->rows ? p->row + p->n : d->at + d->rows;

    *q = *p;
    q->n = end - first;
    q->dst += (first - p->row) * p->ld;
    q->row = first - d->at + d->from;
    return q->n > 0;
}

static void add_delta(const struct cpu_call *c, const struct wsource *w, int i,
                      const struct piece *p)
{
    const struct delta *d = &w->at[i].d;
    struct piece q;

    if (!has_factors(d) || wpass_strength(c, d) == 0 || !window_of(d, p, &q))
        return;
    if (d->axis == GAIN_IN)
        add_by_column(c, w, i, &q);
    else
        add_factors(c, w, i, d->axis == GAIN_OUT ? d->gain + q.row - d->from : NULL, &q);
}

/* --- what deltas do to the base --- */

/* Multiplies a row of the base, its part of a piece, by 1 + the sum of s (g - 1). */
static void scale_row(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t col,
                      int64_t n_col, float *dst)
{
    int64_t ks = kernel_size(w->layer);
    float all = 1, by[SEG];
    bool columns = false;

    for (int64_t j = 0; j < n_col; j++)
        by[j] = 0;
    for (int i = 0; i < w->n; i++) {
        const struct delta *d = &w->at[i].d;
        float s = delta_strength(d, c->strengths);
        if (s == 0 || row < d->at || row >= d->at + d->rows)
            continue;
        if (d->replace && scales_base(d))
            all -= s;
        else if (d->axis == GAIN_OUT)
            all += s * (d->gain[row - d->at] - 1);
        columns = columns || d->axis == GAIN_IN;
        for (int64_t j = 0; d->axis == GAIN_IN && j < n_col; j++)
            by[j] += s * (d->gain[(col + j) / ks] - 1);
    }
    for (int64_t j = 0; (columns || all != 1) && j < n_col; j++)
        dst[j] *= all + by[j];
}

static void scale_base(const struct cpu_call *c, const struct wsource *w, const struct piece *p)
{
    for (int64_t at = 0; at < p->n_col; at += SEG) {
        struct piece q = narrower(p, at, SEG);
        for (int64_t r = 0; r < q.n; r++)
            scale_row(c, w, q.row + r, q.col, q.n_col, q.dst + r * q.ld);
    }
}

static void decode_rows(const struct cpu_call *c, const struct wsource *w, const struct piece *p)
{
    for (int64_t i = 0; i < p->n; i++)
        tensor_decode_by(&w->base, (p->row + i) * w->k + p->col, p->n_col, p->dst + i * p->ld,
                         c->k->decode);
}

/* dst += s (base M) for the blocks of columns [first, first + n_col), which are whole, as far as
 * they lie in the piece, a few rows at a time. */
static void turn_span(const struct cpu_call *c, const struct wsource *w, const struct delta *d,
                      float s, int64_t first, int64_t n_col, const struct piece *p)
{
    float *own = p->scratch + AT_P, *to = p->scratch + AT_Q;
    int64_t b = d->block, most = WPASS_ROWS * SEG / n_col;
    int64_t from = first > p->col ? first : p->col;
    int64_t end = first + n_col < p->col + p->n_col ? first + n_col : p->col + p->n_col;

    for (int64_t r = 0; r < p->n; r += most) {
        int64_t n = p->n - r < most ? p->n - r : most;
        struct piece q = {p->row + r, n, first, n_col, own, n_col, NULL};
        decode_rows(c, w, &q);
        for (int64_t j = 0; j < n_col; j += b)
            c->k->gemm(n, b, b, own + j, n_col, d->mix + (first + j) * b, b, to + j, n_col, false);
        for (int64_t o = 0; o < n; o++)
            c->k->axpy(p->dst + (r + o) * p->ld + from - p->col, to + o * n_col + from - first, s,
                       end - from);
    }
}

/* Several blocks are decoded at a time where they are small: a base of a block type is decoded by
 * the whole block of its own. */
static void turn_rows(const struct cpu_call *c, const struct wsource *w, int i,
                      const struct piece *p)
{
    const struct delta *d = &w->at[i].d;
    float s = delta_strength(d, c->strengths);
    int64_t b = d->block, wide = b < SEG ? SEG / b * b : b;
    int64_t end = (p->col + p->n_col + b - 1) / b * b;

    for (int64_t at = p->col / b * b; at < end && s != 0; at += wide)
        turn_span(c, w, d, s, at, end - at < wide ? end - at : wide, p);
}

static void turn_window(const struct cpu_call *c, const struct wsource *w, int i,
                        const struct piece *p)
{
    struct piece q;

    if (!window_of(&w->at[i].d, p, &q))
        return;
    q.row += w->at[i].d.at; /* back to rows of the layer */
    turn_rows(c, w, i, &q);
}

float wpass_delta_strength(const struct cpu_call *c, const struct wsource *w, int i)
{
    const struct delta *d = &w->at[i].d;
    bool base = scales_base(d) || d->kind == DELTA_RIGHT;

    return base || (w->at[i].in_rows && has_factors(d)) ? delta_strength(d, c->strengths) : 0;
}

static bool changes(const struct cpu_call *c, const struct wsource *w)
{
    for (int i = 0; i < w->n; i++)
        if (wpass_delta_strength(c, w, i) != 0)
            return true;
    return false;
}

const float *wpass_direct(const struct cpu_call *c, const struct wsource *w)
{
    return is_f32(&w->base) && !changes(c, w) ? w->base.data : NULL;
}

/* The first delta that can be added while the base is decoded; -1 if there is none. Blocks of a
 * base do not end where W2's rows do, and scales come before deltas; adding to each row right after
 * it is decoded gained 2 % of a product by 8 rows of activations. */
static int fused_delta(const struct cpu_call *c, const struct wsource *w)
{
    bool plain = dtype_info(w->base.type)->block == 1 && w->base.scale == NULL && !w->gains;

    for (int i = 0; i < w->n && plain; i++) {
        const struct delta *d = &w->at[i].d;
        if (w->at[i].in_rows && d->kind == DELTA_KRON && wpass_strength(c, d) != 0 &&
            d->rows == w->out && kron_of(c, w, i).w2 != NULL)
            return i;
    }
    return -1;
}

/* Base and Kronecker delta of one row: nothing is stored and read again between the two. */
static void fused_row(const struct cpu_call *c, const struct wsource *w,
                      const struct kron_rows *r, int64_t row, int64_t col, int64_t n_col,
                      float *dst)
{
    const struct delta *d = r->d;
    int64_t o = row + d->from;
    const float *w2 = r->w2 + o % d->vp * r->width, *w1 = r->w1 + o / d->vp * d->uq;
    const char *base = w->base.data;
    int bytes = dtype_info(w->base.type)->bytes;

    for (int64_t at = col; at < col + n_col;) {
        int64_t l = at / r->width, m = at % r->width, n = r->width - m;
        n = n < col + n_col - at ? n : col + n_col - at;
        c->k->decode_axpy(w->base.type, base + (row * w->k + at) * bytes, n, dst + at - col,
                          w1[l], w2 + m);
        at += n;
    }
}

/* Convolutions take a row in short pieces, which no hardware prefetcher sees coming: asks for the
 * next piece of a row from `at` on, if it has one. */
static void fetch_ahead(const struct wsource *w, int64_t at, int64_t n_col)
{
    const struct dtype_info *info = dtype_info(w->base.type);
    const char *p = (const char *)w->base.data + at / info->block * info->bytes;

    if (n_col == w->k || n_col > TRANSPOSE_COLUMNS)
        return;
    for (int64_t i = 0; i < n_col / info->block * info->bytes; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

/* Whole rows of a base whose blocks span rows are decoded together: alone each would have the
 * blocks at its ends decoded again. */
static bool rows_together(const struct wsource *w, int64_t n_col, int64_t ld)
{
    return n_col == w->k && ld == w->k && w->k % dtype_info(w->base.type)->block != 0;
}

/* Kronecker deltas are added to a row while it is in the first cache; others take several rows at
 * once, and gains come before both. */
static bool by_row(const struct wsource *w, int i)
{
    return w->at[i].in_rows && w->at[i].d.kind == DELTA_KRON && !w->gains;
}

void wpass_rows(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                int64_t col, int64_t n_col, float *dst, int64_t ld, float *scratch)
{
    struct piece p = {row, n, col, n_col, dst, ld, scratch};
    int fused = fused_delta(c, w);
    struct kron_rows r = {0};

    bool together = rows_together(w, n_col, ld);

    if (fused >= 0)
        r = kron_of(c, w, fused);
    if (together)
        tensor_decode_by(&w->base, row * w->k, n * w->k, dst, c->k->decode);
    for (int64_t i = 0; i < n; i++) {
        struct piece one = {row + i, 1, col, n_col, dst + i * ld, ld, scratch};
        fetch_ahead(w, (row + i) * w->k + col + n_col, n_col);
        if (fused >= 0)
            fused_row(c, w, &r, row + i, col, n_col, one.dst);
        else if (!together)
            decode_rows(c, w, &one);
        for (int d = 0; d < w->n; d++)
            if (d != fused && by_row(w, d))
                add_delta(c, w, d, &one);
    }
    if (w->gains)
        scale_base(c, w, &p);
    for (int i = 0; i < w->n; i++) {
        if (w->at[i].d.kind == DELTA_RIGHT)
            turn_window(c, w, i, &p);
        else if (w->at[i].in_rows && !by_row(w, i))
            add_delta(c, w, i, &p);
    }
}

int64_t wpass_transpose_columns(const struct wsource *w)
{
    return dtype_info(w->base.type)->block > 32 ? 256 : TRANSPOSE_COLUMNS;
}

size_t wpass_transpose_bytes(const struct wsource *w)
{
    return TRANSPOSE_ROWS * TRANSPOSE_COLUMNS * sizeof(float) + wpass_thread_bytes(w);
}

void wpass_transpose(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                     int64_t col, int64_t n_col, const struct transposed *t, int64_t i,
                     float *scratch)
{
    const float *direct = wpass_direct(c, w), *src = scratch;
    int64_t ld = TRANSPOSE_COLUMNS, end = i + n;

    if (direct == NULL) {
        wpass_rows(c, w, row, n, col, n_col, scratch, ld, scratch + TRANSPOSE_ROWS * ld);
    } else {
        src = direct + row * w->k + col;
        ld = w->k;
    }
    for (; i + 8 <= end; i += 8, src += 8 * ld)
        c->k->scatter8(src, ld, n_col, t->at, t->dst + i / t->panel * t->step + i % t->panel);
    for (; i < end; i++, src += ld)
        for (int64_t j = 0; j < n_col; j++)
            t->dst[i / t->panel * t->step + i % t->panel + t->at[j]] = src[j];
}

/* Rows of one piece, so that every thread gets several and none is longer than a call allows. */
static int64_t piece_rows(const struct cpu_call *c, int64_t n)
{
    int64_t rows = (n + 4 * c->threads - 1) / (4 * c->threads);

    rows = (rows + 7) / 8 * 8;
    return rows < WPASS_ROWS ? rows : WPASS_ROWS;
}

void wpass_block(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                 float *dst)
{
    int64_t step = piece_rows(c, n), pieces = (n + step - 1) / step;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        int64_t at = i * step, m = n - at < step ? n - at : step;
        wpass_rows(c, w, row + at, m, 0, w->k, dst + at * w->k, w->k, cpu_thread_scratch(c));
    }
}

void wpass_delta_block(const struct cpu_call *c, const struct wsource *w, int d, int64_t row,
                       int64_t n, float *dst)
{
    int64_t step = piece_rows(c, n), pieces = (n + step - 1) / step;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        int64_t at = i * step, m = n - at < step ? n - at : step;
        struct piece p = {row + at, m, 0, w->k, dst + at * w->k, w->k, cpu_thread_scratch(c)};
        memset(p.dst, 0, (size_t)(m * w->k) * sizeof *dst);
        add_delta(c, w, d, &p);
    }
}

/* --- W2 as f32 --- */

static void write_w2(const struct cpu_call *c, const struct wsource *w, const struct delta *d,
                     int64_t row, int64_t n, float *dst)
{
    int64_t width = d->vq * kernel_size(w->layer), step = piece_rows(c, n);
    int64_t pieces = (n + step - 1) / step;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        int64_t at = i * step, m = n - at < step ? n - at : step;
        float *to = dst + at * width;
        if (d->w2.data != NULL) {
            const float *from = cpu_floats(c->k, &d->w2, (row + at) * width, m * width, to);
            if (from != to)
                memcpy(to, from, (size_t)(m * width) * sizeof *to);
        } else {
            struct piece p = {row + at, m, 0, width, to, width, cpu_thread_scratch(c)};
            add_product(c->k, &d->a, &d->b, d->rank, width, 1, NULL, &p, false);
        }
    }
}

static void write_w1(const struct cpu_call *c, const struct delta *d, float *dst)
{
    const float *from = cpu_floats(c->k, &d->w1, 0, d->up * d->uq, dst);
    float s = wpass_strength(c, d);

    for (int64_t i = 0; i < d->up * d->uq; i++)
        dst[i] = s * from[i];
}

void wpass_prepare(const struct cpu_call *c, const struct wsource *w)
{
    for (int i = 0; i < w->n; i++) {
        const struct delta *d = &w->at[i].d;
        if (d->kind == DELTA_KRON && wpass_strength(c, d) != 0)
            write_w1(c, d, cpu_scratch(c, w->at[i].w1_at));
        if (w->at[i].w2_at != NONE_AT && wpass_strength(c, d) != 0)
            write_w2(c, w, d, 0, d->vp, cpu_scratch(c, w->at[i].w2_at));
    }
}

const float *wpass_w2(const struct cpu_call *c, const struct wsource *w, int i, int64_t row,
                      int64_t n, float *dst)
{
    struct kron_rows r = kron_of(c, w, i);

    if (r.w2 != NULL)
        return r.w2 + row * r.width;
    write_w2(c, w, r.d, row, n, dst);
    return dst;
}
