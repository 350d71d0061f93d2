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
};

static int64_t kernel_size(const struct layer *l)
{
    return (int64_t)l->kh * l->kw;
}

static bool is_f32(const struct tensor *t)
{
    return t->type == DT_F32 && (uintptr_t)t->data % sizeof(float) == 0;
}

const float *cpu_floats(const struct cpu_kernels *k, const struct tensor *t, int64_t at, int64_t n,
                        float *dst)
{
    if (is_f32(t))
        return (const float *)t->data + at;
    const struct dtype_info *info = dtype_info(t->type);
    k->decode(t->type, (const char *)t->data + at / info->block * info->bytes, n, dst);
    return dst;
}

bool cpu_needs_bias(const struct layer *l)
{
    return l->bias.data != NULL && !is_f32(&l->bias);
}

const float *cpu_bias(const struct cpu_call *c, const struct layer *l)
{
    if (l->bias.data == NULL)
        return NULL;
    return cpu_floats(c->k, &l->bias, 0, l->out, cpu_scratch(c, c->o->bias_at));
}

float wpass_strength(const struct cpu_call *c, const struct delta *d)
{
    return c->strengths[d->strength] * d->scale;
}

static bool w2_needs_memory(const struct delta *d)
{
    return d->kind == DELTA_KRON && (d->w2.data == NULL || !is_f32(&d->w2));
}

kron_status wpass_compile(struct be_plan *p, struct cpu_op *o, const struct layer *l,
                          enum gr_route route)
{
    struct wsource *w = &o->w;
    size_t kept = 0;

    *w = (struct wsource){.layer = l, .base = l->weight, .out = l->out, .k = layer_k(l)};
    w->in_weight = route == ROUTE_WEIGHT;
    if (cpu_needs_bias(l))
        o->bias_at = cpu_take(o, (size_t)l->out * sizeof(float));
    if (route == ROUTE_MERGED)
        return weights_merged(p, l, &w->base);
    w->deltas = delta_set_list(p->weights->set, l);
    w->w2_at = arena_alloc(&p->mem, (size_t)w->deltas.n * sizeof *w->w2_at + 1);
    KRON_TRY(p->mem.status);
    for (int i = 0; i < w->deltas.n; i++) {
        const struct delta *d = &w->deltas.at[i];
        size_t bytes = (size_t)(d->vp * d->vq * kernel_size(l)) * sizeof(float);
        w->w2_at[i] = NONE_AT;
        if (!w2_needs_memory(d) || bytes > W2_MOST - kept)
            continue;
        w->w2_at[i] = cpu_take(o, bytes);
        kept += bytes;
    }
    return KRON_OK;
}

/* w1 rows and short rows of W2 stand at AT_ROW. */
size_t wpass_thread_bytes(const struct wsource *w)
{
    int64_t longest = 0;

    if (w->deltas.n == 0)
        return 0;
    for (int i = 0; i < w->deltas.n; i++)
        if (w->deltas.at[i].uq > longest)
            longest = w->deltas.at[i].uq;
    return (size_t)(AT_ROW + SEG + longest) * sizeof(float);
}

/* --- products of two factors --- */

/* to[n, n_col] (+)= scale A[row .., r] B[r, col ..], B's rows `width` long. */
static void add_product(const struct cpu_kernels *k, const struct tensor *a,
                        const struct tensor *b, int64_t rank, int64_t width, float scale,
                        int64_t row, int64_t n, int64_t col, int64_t n_col, float *to, int64_t ld,
                        bool add, float *scratch)
{
    float *pa = scratch + AT_A, *pb = scratch + AT_B;

    for (int64_t r0 = 0; r0 < rank; r0 += RANKS) {
        int64_t r = rank - r0 < RANKS ? rank - r0 : RANKS;
        for (int64_t i = 0; i < n; i++) {
            const float *from = cpu_floats(k, a, (row + i) * rank + r0, r, pa + i * r);
            for (int64_t j = 0; j < r; j++)
                pa[i * r + j] = from[j] * scale;
        }
        for (int64_t at = 0; at < n_col; at += SEG) {
            int64_t m = n_col - at < SEG ? n_col - at : SEG, ldb = m;
            const float *panel = pb;
            if (is_f32(b)) {
                panel = (const float *)b->data + r0 * width + col + at;
                ldb = width;
            }
            for (int64_t j = 0; panel == pb && j < r; j++)
                cpu_floats(k, b, (r0 + j) * width + col + at, m, pb + j * m);
            k->gemm(n, m, r, pa, r, panel, ldb, to + at, ld, add || r0 > 0);
        }
    }
}

static void add_low_rank(const struct cpu_kernels *k, const struct wsource *w,
                         const struct delta *d, float s, int64_t row, int64_t n, int64_t col,
                         int64_t n_col, float *dst, int64_t ld, float *scratch)
{
    add_product(k, &d->a, &d->b, d->rank, w->k, s, row, n, col, n_col, dst, ld, true, scratch);
}

static void add_hadamard(const struct cpu_kernels *k, const struct wsource *w,
                         const struct delta *d, float s, int64_t row, int64_t n, int64_t col,
                         int64_t n_col, float *dst, int64_t ld, float *scratch)
{
    float *p = scratch + AT_P, *q = scratch + AT_Q;

    for (int64_t at = 0; at < n_col; at += SEG) {
        int64_t m = n_col - at < SEG ? n_col - at : SEG;
        add_product(k, &d->a, &d->b, d->rank, w->k, 1, row, n, col + at, m, p, m, false, scratch);
        add_product(k, &d->c, &d->d, d->rank, w->k, 1, row, n, col + at, m, q, m, false, scratch);
        for (int64_t i = 0; i < n; i++)
            k->axpy_mul(dst + i * ld + at, p + i * m, q + i * m, s, m);
    }
}

static void add_full(const struct cpu_kernels *k, const struct wsource *w, const struct delta *d,
                     float s, int64_t row, int64_t n, int64_t col, int64_t n_col, float *dst,
                     int64_t ld, float *scratch)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = 0; at < n_col; at += SEG) {
            int64_t m = n_col - at < SEG ? n_col - at : SEG;
            const float *x =
                cpu_floats(k, &d->d, (row + i) * w->k + col + at, m, scratch + AT_ROW);
            k->axpy(dst + i * ld + at, x, s, m);
        }
}

/* --- Kronecker --- */

/* Row o = i vp + j gains s W1[i, l] W2[j, :] at column l * width. W2's row comes from memory
 * where it is there as f32, else in segments that are decoded, or multiplied, as they are used. */
struct kron_rows {
    const struct delta *d;
    const float *w2; /* [vp, width] as f32, or NULL */
    float s;
    int64_t width;
};

static struct kron_rows kron_of(const struct cpu_call *c, const struct wsource *w, int i)
{
    const struct delta *d = &w->deltas.at[i];
    struct kron_rows r = {.d = d, .s = wpass_strength(c, d)};

    r.width = d->vq * kernel_size(w->layer);
    if (!w2_needs_memory(d))
        r.w2 = d->w2.data;
    else if (w->w2_at[i] != NONE_AT)
        r.w2 = cpu_scratch(c, w->w2_at[i]);
    return r;
}

/* One row's columns [col, col + n_col), of which W2's [m0, m0 + m) are at hand in w2. */
static void kron_row(const struct cpu_kernels *k, const struct kron_rows *r, const float *w1,
                     const float *w2, int64_t m0, int64_t m, int64_t col, int64_t n_col,
                     float *dst)
{
    for (int64_t l = col / r->width; l * r->width < col + n_col; l++) {
        int64_t from = l * r->width + m0, to = from + m, first = from;
        if (from < col)
            from = col;
        if (to > col + n_col)
            to = col + n_col;
        if (from < to)
            k->axpy(dst + from - col, w2 + from - first, r->s * w1[l], to - from);
    }
}

static void add_kron(const struct cpu_kernels *k, const struct kron_rows *r, int64_t row,
                     int64_t n, int64_t col, int64_t n_col, float *dst, int64_t ld,
                     float *scratch)
{
    const struct delta *d = r->d;
    float *w1_mem = scratch + AT_ROW + SEG;

    for (int64_t m0 = 0; m0 < r->width; m0 += r->w2 ? r->width : SEG) {
        int64_t m = r->w2 || r->width - m0 < SEG ? r->width - m0 : SEG;
        for (int64_t o = row; o < row + n; o++) {
            int64_t i = o / d->vp, j = o % d->vp;
            const float *w1 = cpu_floats(k, &d->w1, i * d->uq, d->uq, w1_mem), *w2;
            if (r->w2) {
                w2 = r->w2 + j * r->width;
            } else if (d->w2.data != NULL) {
                w2 = cpu_floats(k, &d->w2, j * r->width + m0, m, scratch + AT_ROW);
            } else {
                float *to = scratch + AT_ROW;
                add_product(k, &d->a, &d->b, d->rank, r->width, 1, j, 1, m0, m, to, m, false,
                            scratch);
                w2 = to;
            }
            kron_row(k, r, w1, w2, m0, m, col, n_col, dst + (o - row) * ld);
        }
    }
}

/* --- all of a row --- */

static void add_delta(const struct cpu_call *c, const struct wsource *w, int i, int64_t row,
                      int64_t n, int64_t col, int64_t n_col, float *dst, int64_t ld,
                      float *scratch)
{
    const struct delta *d = &w->deltas.at[i];
    float s = wpass_strength(c, d);

    if (s == 0)
        return;
    if (d->kind == DELTA_KRON) {
        struct kron_rows r = kron_of(c, w, i);
        add_kron(c->k, &r, row, n, col, n_col, dst, ld, scratch);
    } else if (d->kind == DELTA_LOW_RANK) {
        add_low_rank(c->k, w, d, s, row, n, col, n_col, dst, ld, scratch);
    } else if (d->kind == DELTA_HADAMARD) {
        add_hadamard(c->k, w, d, s, row, n, col, n_col, dst, ld, scratch);
    } else {
        add_full(c->k, w, d, s, row, n, col, n_col, dst, ld, scratch);
    }
}

static bool changes(const struct cpu_call *c, const struct wsource *w)
{
    for (int i = 0; w->in_weight && i < w->deltas.n; i++)
        if (wpass_strength(c, &w->deltas.at[i]) != 0)
            return true;
    return false;
}

const float *wpass_direct(const struct cpu_call *c, const struct wsource *w)
{
    return is_f32(&w->base) && !changes(c, w) ? w->base.data : NULL;
}

/* The first delta that can be added while the base is decoded; -1 if there is none. */
static int fused_delta(const struct cpu_call *c, const struct wsource *w)
{
    for (int i = 0; w->in_weight && i < w->deltas.n; i++) {
        const struct delta *d = &w->deltas.at[i];
        if (d->kind == DELTA_KRON && wpass_strength(c, d) != 0 && kron_of(c, w, i).w2 != NULL &&
            dtype_info(w->base.type)->block == 1)
            return i;
    }
    return -1;
}

/* Base and Kronecker delta of one row: nothing is stored and read again between the two. */
static void fused_row(const struct cpu_call *c, const struct wsource *w,
                      const struct kron_rows *r, int64_t row, int64_t col, int64_t n_col,
                      float *dst, float *scratch)
{
    const struct delta *d = r->d;
    const float *w2 = r->w2 + row % d->vp * r->width;
    const float *w1 = cpu_floats(c->k, &d->w1, row / d->vp * d->uq, d->uq, scratch);
    const char *base = w->base.data;
    int bytes = dtype_info(w->base.type)->bytes;

    for (int64_t at = col; at < col + n_col;) {
        int64_t l = at / r->width, m = at % r->width, n = r->width - m;
        n = n < col + n_col - at ? n : col + n_col - at;
        c->k->decode_axpy(w->base.type, base + (row * w->k + at) * bytes, n, dst + at - col,
                          r->s * w1[l], w2 + m);
        at += n;
    }
}

/* Convolutions take a row in short pieces, which no hardware prefetcher sees coming: asks for the
 * next piece of a row from `at` on, if it has one. */
static void fetch_ahead(const struct wsource *w, int64_t at, int64_t n_col)
{
    const struct dtype_info *info = dtype_info(w->base.type);
    const char *p = (const char *)w->base.data + at / info->block * info->bytes;

    if (n_col == w->k)
        return;
    for (int64_t i = 0; i < n_col / info->block * info->bytes; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

void wpass_rows(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                int64_t col, int64_t n_col, float *dst, int64_t ld, float *scratch)
{
    const struct dtype_info *info = dtype_info(w->base.type);
    int fused = fused_delta(c, w);
    struct kron_rows r = {0};

    if (fused >= 0)
        r = kron_of(c, w, fused);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = (row + i) * w->k + col;
        fetch_ahead(w, at + n_col, n_col);
        if (fused >= 0)
            fused_row(c, w, &r, row + i, col, n_col, dst + i * ld, scratch + AT_ROW + SEG);
        else
            c->k->decode(w->base.type, (const char *)w->base.data + at / info->block * info->bytes,
                         n_col, dst + i * ld);
    }
    for (int i = 0; w->in_weight && i < w->deltas.n; i++)
        if (i != fused)
            add_delta(c, w, i, row, n, col, n_col, dst, ld, scratch);
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
        memset(dst + at * w->k, 0, (size_t)(m * w->k) * sizeof *dst);
        add_delta(c, w, d, row + at, m, 0, w->k, dst + at * w->k, w->k, cpu_thread_scratch(c));
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
            add_product(c->k, &d->a, &d->b, d->rank, width, 1, row + at, m, 0, width, to, width,
                        false, cpu_thread_scratch(c));
        }
    }
}

void wpass_prepare(const struct cpu_call *c, const struct wsource *w)
{
    for (int i = 0; i < w->deltas.n; i++) {
        const struct delta *d = &w->deltas.at[i];
        if (w->w2_at[i] != NONE_AT && wpass_strength(c, d) != 0)
            write_w2(c, w, d, 0, d->vp, cpu_scratch(c, w->w2_at[i]));
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
