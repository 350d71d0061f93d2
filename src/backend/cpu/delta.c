/* SPDX-License-Identifier: MIT
 * The activation route: y += deltas of x, as small products on activations. x is [m, k] dense,
 * y [m, out] dense; convolutions bring their windows as rows (conv.c).
 *
 *   low rank    t = x B',  y += s c t A', a few ranks at a time; the ranks of all such deltas of
 *               a layer stand side by side, as one
 *   Kronecker   x as [m uq, width], width = vq kh kw: either t = x W2' then W1 mixes the uq parts
 *               of a row, or W1 first and then W2, whichever is less work
 *   others      rows of the delta as a weight, times x
 *   left        y itself is turned, block by block, before anything is added to it
 *
 * What is confined to a region sees rows of x that are scaled by its mask. One memory area is cut
 * anew by each delta; chunks keep it small whatever the sizes. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum {
    AREA_BYTES = 4 << 20,
    PANEL_BYTES = 1 << 20,
    MASK_BYTES = 1 << 20, /* of scaled rows */
    TURN_ROWS = 16,       /* that a worker turns at a time */
};

struct sizes {
    int64_t panel;   /* ranks, rows of W2, or delta rows held at once */
    int64_t per_row; /* floats of scratch for a row of x */
    int64_t fixed;   /* floats of scratch beyond that */
};

static int64_t at_least(int64_t v, int64_t least, int64_t most)
{
    v = v < least ? least : v;
    return v < most ? v : most;
}

static int64_t kron_width(const struct wsource *w, const struct delta *d)
{
    return d->vq * w->layer->kh * w->layer->kw;
}

static bool w1_first(const struct wsource *w, const struct delta *d)
{
    int64_t width = kron_width(w, d);
    int64_t w2 = d->uq * width * d->vp + d->up * d->uq * d->vp;

    return d->rows == w->out && d->up * d->uq * width + d->up * width * d->vp < w2;
}

/* A Kronecker product that must be applied as a weight: part of one, or with gains. */
static bool is_cut(const struct delta *d)
{
    return d->axis != GAIN_NONE || d->from != 0 || d->rows != d->up * d->vp;
}

static struct sizes as_rows(const struct wsource *w, const struct delta *d)
{
    struct sizes s = {.panel = at_least(PANEL_BYTES / 4 / w->k, 16, d->rows)};

    s.fixed = s.panel * w->k;
    return s;
}

/* Ranks of a layer that are held at once, side by side. */
static int64_t rank_panel(const struct wsource *w)
{
    int64_t n = 0;

    for (int i = 0; i < w->n; i++)
        n += w->at[i].d.kind == DELTA_LOW_RANK ? w->at[i].d.rank : 0;
    return at_least(PANEL_BYTES / 4 / (w->k + w->out), 8, n);
}

static struct sizes sizes_of(const struct wsource *w, const struct delta *d)
{
    struct sizes s = {0};
    int64_t width;

    switch (d->kind) {
    case DELTA_LOW_RANK:
        s.panel = rank_panel(w);
        s.fixed = s.panel * (w->k + w->out);
        s.per_row = s.panel;
        break;
    case DELTA_KRON:
        if (is_cut(d))
            return as_rows(w, d);
        width = kron_width(w, d);
        s.panel = at_least(PANEL_BYTES / 4 / width, 16, d->vp);
        s.fixed = s.panel * width;
        s.per_row = w1_first(w, d) ? d->up * width : d->uq * s.panel;
        break;
    case DELTA_HADAMARD:
    case DELTA_FULL:
        return as_rows(w, d);
    case DELTA_INPUT: /* a low rank by now */
    case DELTA_NONE:
    case DELTA_LEFT:
    case DELTA_RIGHT:
        break;
    }
    return s;
}

static int64_t round16(int64_t n)
{
    return (n + 15) / 16 * 16;
}

static bool on_rows(const struct wdelta *d)
{
    return !d->in_rows && d->d.kind != DELTA_NONE && d->d.kind != DELTA_RIGHT;
}

bool delta_on_rows(const struct wsource *w)
{
    for (int i = 0; i < w->n; i++)
        if (on_rows(&w->at[i]))
            return true;
    return false;
}

bool delta_active(const struct cpu_call *c)
{
    const struct wsource *w = &c->o->w;

    for (int i = 0; i < w->n; i++)
        if (on_rows(&w->at[i]) && delta_strength(&w->at[i].d, c->strengths) != 0)
            return true;
    return false;
}

bool delta_turns(const struct wsource *w)
{
    for (int i = 0; i < w->n; i++)
        if (w->at[i].d.kind == DELTA_LEFT)
            return true;
    return false;
}

/* A plain row, a turned one, and two blocks, for some rows. */
size_t delta_thread_bytes(const struct wsource *w)
{
    int64_t block = 0;

    for (int i = 0; i < w->n; i++)
        if (w->at[i].d.block > block)
            block = w->at[i].d.block;
    return delta_turns(w) ? (size_t)(TURN_ROWS * 2 * (w->out + block)) * sizeof(float) : 0;
}

void delta_compile(struct be_plan *p, struct cpu_op *o)
{
    int64_t m = 0, fixed = 0, rows = 0;
    struct gr_shape y = gr_shape_of(p->g, o->op->out);
    bool masks = false;

    for (int i = 0; i < o->w.n; i++) {
        struct sizes s = sizes_of(&o->w, &o->w.at[i].d);
        m = s.per_row > m ? s.per_row : m;
        fixed = s.fixed > fixed ? s.fixed : fixed;
        masks = masks || o->w.at[i].mask != NULL;
    }
    rows = m > 0 ? at_least(AREA_BYTES / 4 / m, 16, y.n * y.h * y.w) : y.n * y.h * y.w;
    o->delta_rows = rows;
    o->mask_rows = at_least(MASK_BYTES / 4 / o->w.k, 16, y.n * y.h * y.w);
    o->mask_at = masks ? cpu_take(o, (size_t)(o->mask_rows * o->w.k) * 4) : NONE_AT;
    o->delta_at = cpu_take(o, (size_t)(round16(fixed) + round16(rows * m) + 32) * 4);
}

/* s g times ranks [r0, r0 + r) of A, g the gain of each output row, as columns of a[rows, ld]. */
static void take_a(const struct cpu_call *c, const struct delta *d, int64_t r0, int64_t r, float *a,
                   int64_t ld)
{
    float s = wpass_strength(c, d);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t o = 0; o < d->rows; o++) {
        float *to = a + o * ld, g = d->axis == GAIN_OUT ? s * d->gain[o] : s;
        const float *from = cpu_floats(c->k, &d->a, (d->from + o) * d->rank + r0, r, to);
        for (int64_t j = 0; j < r; j++)
            to[j] = g * from[j];
    }
}

/* Ranks [r0, r0 + r) of B, times the gain of each input channel. */
static void take_b(const struct cpu_call *c, const struct delta *d, int64_t r0, int64_t r, float *b)
{
    const struct wsource *w = &c->o->w;
    int64_t ks = (int64_t)w->layer->kh * w->layer->kw;
    const float *from = cpu_floats(c->k, &d->b, r0 * w->k, r * w->k, b);

    if (from != b)
        memcpy(b, from, (size_t)(r * w->k) * sizeof *b);
    for (int64_t j = 0; d->axis == GAIN_IN && j < r; j++)
        for (int64_t i = 0; i < w->k; i++)
            b[j * w->k + i] *= d->gain[i / ks];
}

/* True for the deltas whose ranks stand side by side. */
static bool stacks(const struct cpu_call *c, int i)
{
    const struct wdelta *d = &c->o->w.at[i];

    return on_rows(d) && d->d.kind == DELTA_LOW_RANK && d->mask == NULL &&
           d->d.rows == c->o->w.out && wpass_strength(c, &d->d) != 0;
}

/* Columns [r0, r0 + r) of the ranks side by side, of one delta (`only`) or all that stack (-1). */
static void take_ranks(const struct cpu_call *c, int only, int64_t r0, int64_t r, float *a,
                       float *b)
{
    const struct wsource *w = &c->o->w;
    int64_t first = 0; /* of delta i among all */

    for (int i = 0; i < w->n && first < r0 + r; i++) {
        const struct delta *d = &w->at[i].d;
        if (only >= 0 ? i != only : !stacks(c, i))
            continue;
        int64_t from = first > r0 ? first : r0;
        int64_t end = first + d->rank < r0 + r ? first + d->rank : r0 + r;
        if (from < end) {
            take_b(c, d, from - first, end - from, b + (from - r0) * w->k);
            take_a(c, d, from - first, end - from, a + from - r0, r);
        }
        first += d->rank;
    }
}

static int64_t stacked_ranks(const struct cpu_call *c)
{
    int64_t n = 0;

    for (int i = 0; i < c->o->w.n; i++)
        n += stacks(c, i) ? c->o->w.at[i].d.rank : 0;
    return n;
}

/* Where a panel of B, one of A and the ranks of activations stand. */
struct rank_room {
    int64_t panel;
    float *b, *a, *t;
};

static struct rank_room rank_room(const struct cpu_call *c)
{
    const struct wsource *w = &c->o->w;
    struct rank_room r = {.panel = rank_panel(w), .b = cpu_scratch(c, c->o->delta_at)};

    r.a = r.b + r.panel * w->k;
    r.t = r.b + round16(r.panel * (w->k + w->out));
    return r;
}

/* rank: of all that take part. */
static void low_rank(const struct cpu_call *c, int only, int64_t rank, const float *x, int64_t m,
                     float *y)
{
    const struct wsource *w = &c->o->w;
    int64_t out = only >= 0 ? w->at[only].d.rows : w->out;
    struct rank_room z = rank_room(c);

    for (int64_t r0 = 0; r0 < rank; r0 += z.panel) {
        int64_t r = rank - r0 < z.panel ? rank - r0 : z.panel;
        take_ranks(c, only, r0, r, z.a, z.b);
        for (int64_t at = 0; at < m; at += c->o->delta_rows) {
            int64_t n = m - at < c->o->delta_rows ? m - at : c->o->delta_rows;
            onednn_gemm(true, n, r, w->k, 1, x + at * w->k, w->k, z.b, w->k, 0, z.t, r);
            onednn_gemm(true, n, out, r, 1, z.t, r, z.a, r, 1, y + at * w->out, w->out);
        }
    }
}

struct delta_ranks delta_ranks(const struct cpu_call *c, const float *x, int64_t m)
{
    const struct wsource *w = &c->o->w;
    int64_t rank = stacked_ranks(c);
    struct delta_ranks none = {0};

    for (int i = 0; i < w->n; i++) {
        const struct wdelta *d = &w->at[i];
        if (on_rows(d) && !stacks(c, i) && delta_strength(&d->d, c->strengths) != 0)
            return none;
    }
    if (rank == 0 || rank > rank_panel(w) || m > c->o->delta_rows)
        return none;
    struct rank_room z = rank_room(c);
    take_ranks(c, -1, 0, rank, z.a, z.b);
    onednn_gemm(true, m, rank, w->k, 1, x, w->k, z.b, w->k, 0, z.t, rank);
    return (struct delta_ranks){rank, z.t, z.a};
}

void delta_add_ranks(const struct delta_ranks *k, int64_t row, int64_t rows, int64_t col,
                     int64_t n, float *y, int64_t ld)
{
    if (k->r > 0)
        onednn_gemm(true, rows, n, k->r, 1, k->t + row * k->r, k->r, k->a + col * k->r, k->r, 1, y,
                    ld);
}

/* z[m, up, width] = s W1 x, then y[m, i, j] += z W2'. */
static void kron_w1_first(const struct cpu_call *c, const struct delta *d, const float *w1,
                          const float *w2, int64_t j0, int64_t nj, const float *x, int64_t m,
                          float *y, float *z)
{
    int64_t width = kron_width(&c->o->w, d);

    if (j0 == 0) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t r = 0; r < m; r++)
            c->k->gemm(d->up, width, d->uq, w1, d->uq, x + r * d->uq * width, width,
                       z + r * d->up * width, width, false);
    }
    onednn_gemm(true, m * d->up, nj, width, 1, z, width, w2, width, 1, y + j0, d->vp);
}

/* t[m, uq, j] = x W2', then y[m, i, j] += s W1 t. */
static void kron_w2_first(const struct cpu_call *c, const struct delta *d, const float *w1,
                          const float *w2, int64_t j0, int64_t nj, const float *x, int64_t m,
                          float *y, float *t)
{
    int64_t width = kron_width(&c->o->w, d), out = c->o->w.out;

    onednn_gemm(true, m * d->uq, nj, width, 1, x, width, w2, width, 0, t, nj);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < m; r++)
        c->k->gemm(d->up, nj, d->uq, w1, d->uq, t + r * d->uq * nj, nj, y + r * out + j0, d->vp,
                   true);
}

static void kronecker(const struct cpu_call *c, int i, const float *x, int64_t m, float *y)
{
    const struct wsource *w = &c->o->w;
    const struct delta *d = &w->at[i].d;
    struct sizes z = sizes_of(w, d);
    const float *w1 = cpu_scratch(c, w->at[i].w1_at); /* s c W1 */
    float *w2 = cpu_scratch(c, c->o->delta_at), *t = w2 + round16(z.fixed);

    for (int64_t at = 0; at < m; at += c->o->delta_rows) {
        int64_t n = m - at < c->o->delta_rows ? m - at : c->o->delta_rows;
        for (int64_t j0 = 0; j0 < d->vp; j0 += z.panel) {
            int64_t nj = d->vp - j0 < z.panel ? d->vp - j0 : z.panel;
            const float *part = wpass_w2(c, w, i, j0, nj, w2);
            (w1_first(w, d) ? kron_w1_first : kron_w2_first)(c, d, w1, part, j0, nj,
                                                             x + at * w->k, n, y + at * w->out, t);
        }
    }
}

static void as_weight(const struct cpu_call *c, int i, const float *x, int64_t m, float *y)
{
    const struct wsource *w = &c->o->w;
    const struct delta *d = &w->at[i].d;
    int64_t panel = sizes_of(w, d).panel;
    float *rows = cpu_scratch(c, c->o->delta_at);

    for (int64_t row = 0; row < d->rows; row += panel) {
        int64_t n = d->rows - row < panel ? d->rows - row : panel;
        wpass_delta_block(c, w, i, d->at + row, n, rows);
        onednn_gemm(true, m, n, w->k, 1, x, w->k, rows, w->k, 1, y + row, w->out);
    }
}

/* y: the first of the delta's columns. */
static void apply_one(const struct cpu_call *c, int i, const float *x, int64_t m, float *y)
{
    const struct delta *d = &c->o->w.at[i].d;

    if (d->kind == DELTA_LOW_RANK)
        low_rank(c, i, d->rank, x, m, y);
    else if (d->kind == DELTA_KRON && !is_cut(d))
        kronecker(c, i, x, m, y);
    else
        as_weight(c, i, x, m, y);
}

/* In rows of x that are scaled: what a region leaves out is zero. */
static void apply_masked(const struct cpu_call *c, int i, const float *x, int64_t m, float *y,
                         int64_t first)
{
    const struct wsource *w = &c->o->w;
    int64_t pixels = c->ys.h * c->ys.w, most = c->o->mask_rows;
    float *rows = cpu_scratch(c, c->o->mask_at);

    for (int64_t at = 0; at < m; at += most) {
        int64_t n = m - at < most ? m - at : most;
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t r = 0; r < n; r++) {
            float a = w->at[i].mask[(first + at + r) % pixels];
            for (int64_t j = 0; j < w->k; j++)
                rows[r * w->k + j] = a * x[(at + r) * w->k + j];
        }
        apply_one(c, i, rows, n, y + at * w->out);
    }
}

/* --- left --- */

/* y[n, ..] rows of a layer's product, `ld` wide: x + s x M in every block of every stage. */
static void turn(const struct cpu_kernels *k, const struct delta *d, float s, int64_t n, float *y,
                 int64_t ld, float *in, float *out)
{
    int64_t b = d->block;

    for (int stage = 0; stage < d->stages; stage++)
        for (int64_t j = 0; j < d->n_blocks; j++) {
            for (int64_t e = 0; e < b; e++) {
                int64_t row = delta_left_row(d, stage, j, e);
                for (int64_t r = 0; r < n; r++)
                    in[r * b + e] = y[r * ld + row];
            }
            k->gemm(n, b, b, in, b, d->mix + (stage * d->n_blocks + j) * b * b, b, out, b, false);
            for (int64_t e = 0; e < b; e++) {
                int64_t row = delta_left_row(d, stage, j, e);
                for (int64_t r = 0; r < n; r++)
                    y[r * ld + row] += s * out[r * b + e];
            }
        }
    for (int64_t r = 0; d->rescale != NULL && r < n; r++)
        for (int64_t o = 0; o < d->rows; o++)
            y[r * ld + o] *= 1 + s * (d->rescale[o] - 1);
}

/* Each left delta turns the plain product, and their changes add up. */
static void turn_rows(const struct cpu_call *c, int64_t n, float *y, float *scratch)
{
    const struct wsource *w = &c->o->w;
    float *plain = scratch, *x = plain + TURN_ROWS * w->out, *blocks = x + TURN_ROWS * w->out;

    memcpy(plain, y, (size_t)(n * w->out) * sizeof *y);
    for (int i = 0; i < w->n; i++) {
        const struct delta *d = &w->at[i].d;
        float s = delta_strength(d, c->strengths);
        if (d->kind != DELTA_LEFT || s == 0)
            continue;
        memcpy(x, plain, (size_t)(n * w->out) * sizeof *x);
        turn(c->k, d, s, n, x + d->at, w->out, blocks, blocks + TURN_ROWS * d->block);
        c->k->axpy(y, x, 1, n * w->out);
        c->k->axpy(y, plain, -1, n * w->out);
    }
}

void delta_apply(const struct cpu_call *c, const float *x, int64_t m, float *y, int64_t first)
{
    const struct wsource *w = &c->o->w;

    if (delta_turns(w)) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t at = 0; at < m; at += TURN_ROWS)
            turn_rows(c, m - at < TURN_ROWS ? m - at : TURN_ROWS, y + at * w->out,
                      cpu_thread_scratch(c));
    }
    low_rank(c, -1, stacked_ranks(c), x, m, y);
    for (int i = 0; i < w->n; i++) {
        const struct wdelta *d = &w->at[i];
        if (!on_rows(d) || d->d.kind == DELTA_LEFT || stacks(c, i) ||
            wpass_strength(c, &d->d) == 0)
            continue;
        if (d->mask != NULL)
            apply_masked(c, i, x, m, y + d->d.at, first);
        else
            apply_one(c, i, x, m, y + d->d.at);
    }
}
