/* SPDX-License-Identifier: MIT
 * The activation route: y += deltas of x, as small products on activations. x is [m, k] dense,
 * y [m, out] dense; convolutions bring their windows as rows (conv.c).
 *
 *   low rank    t = x B',  y += s c t A', a few ranks at a time
 *   Kronecker   x as [m uq, width], width = vq kh kw: either t = x W2' then W1 mixes the uq parts
 *               of a row, or W1 first and then W2, whichever is less work
 *   others      rows of the delta as a weight, times x
 *
 * One memory area is cut anew by each delta; chunks keep it small whatever the sizes. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum { AREA_BYTES = 4 << 20, PANEL_BYTES = 1 << 20 };

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

    return d->up * d->uq * width + d->up * width * d->vp < w2;
}

static struct sizes sizes_of(const struct wsource *w, const struct delta *d)
{
    struct sizes s = {0};
    int64_t width;

    switch (d->kind) {
    case DELTA_LOW_RANK:
        s.panel = at_least(PANEL_BYTES / 4 / (w->k + w->out), 8, d->rank);
        s.fixed = s.panel * (w->k + w->out);
        s.per_row = s.panel;
        break;
    case DELTA_KRON:
        width = kron_width(w, d);
        s.panel = at_least(PANEL_BYTES / 4 / width, 16, d->vp);
        s.fixed = s.panel * width + d->up * d->uq;
        s.per_row = w1_first(w, d) ? d->up * width : d->uq * s.panel;
        break;
    case DELTA_HADAMARD:
    case DELTA_FULL:
        s.panel = at_least(PANEL_BYTES / 4 / w->k, 16, w->out);
        s.fixed = s.panel * w->k;
        break;
    }
    return s;
}

static int64_t round16(int64_t n)
{
    return (n + 15) / 16 * 16;
}

void delta_compile(struct be_plan *p, struct cpu_op *o)
{
    int64_t m = 0, fixed = 0, rows = 0;
    struct gr_shape y = gr_shape_of(p->g, o->op->out);

    for (int i = 0; i < o->w.deltas.n; i++) {
        struct sizes s = sizes_of(&o->w, &o->w.deltas.at[i]);
        m = s.per_row > m ? s.per_row : m;
        fixed = s.fixed > fixed ? s.fixed : fixed;
    }
    rows = m > 0 ? at_least(AREA_BYTES / 4 / m, 16, y.n * y.h * y.w) : y.n * y.h * y.w;
    o->delta_rows = rows;
    o->delta_at = cpu_take(o, (size_t)(round16(fixed) + round16(rows * m) + 32) * 4);
}

static void low_rank(const struct cpu_call *c, const struct delta *d, float s, const float *x,
                     int64_t m, float *y)
{
    const struct wsource *w = &c->o->w;
    struct sizes z = sizes_of(w, d);
    float *b = cpu_scratch(c, c->o->delta_at), *a = b + z.panel * w->k;
    float *t = b + round16(z.fixed);

    for (int64_t r0 = 0; r0 < d->rank; r0 += z.panel) {
        int64_t r = d->rank - r0 < z.panel ? d->rank - r0 : z.panel;
        const float *pb = cpu_floats(c->k, &d->b, r0 * w->k, r * w->k, b);
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t o = 0; o < w->out; o++) {
            const float *from = cpu_floats(c->k, &d->a, o * d->rank + r0, r, a + o * r);
            if (from != a + o * r)
                memcpy(a + o * r, from, (size_t)r * sizeof *a);
        }
        for (int64_t at = 0; at < m; at += c->o->delta_rows) {
            int64_t n = m - at < c->o->delta_rows ? m - at : c->o->delta_rows;
            onednn_gemm(true, n, r, w->k, 1, x + at * w->k, w->k, pb, w->k, 0, t, r);
            onednn_gemm(true, n, w->out, r, s, t, r, a, r, 1, y + at * w->out, w->out);
        }
    }
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

static void kronecker(const struct cpu_call *c, int i, float s, const float *x, int64_t m,
                      float *y)
{
    const struct wsource *w = &c->o->w;
    const struct delta *d = &w->deltas.at[i];
    struct sizes z = sizes_of(w, d);
    float *w1 = cpu_scratch(c, c->o->delta_at), *w2 = w1 + d->up * d->uq;
    float *t = w1 + round16(z.fixed);
    const float *from = cpu_floats(c->k, &d->w1, 0, d->up * d->uq, w1);

    for (int64_t j = 0; j < d->up * d->uq; j++)
        w1[j] = s * from[j];
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
    int64_t panel = sizes_of(w, &w->deltas.at[i]).panel;
    float *rows = cpu_scratch(c, c->o->delta_at);

    for (int64_t row = 0; row < w->out; row += panel) {
        int64_t n = w->out - row < panel ? w->out - row : panel;
        wpass_delta_block(c, w, i, row, n, rows);
        onednn_gemm(true, m, n, w->k, 1, x, w->k, rows, w->k, 1, y + row, w->out);
    }
}

void delta_apply(const struct cpu_call *c, const float *x, int64_t m, float *y)
{
    const struct wsource *w = &c->o->w;

    for (int i = 0; i < w->deltas.n; i++) {
        const struct delta *d = &w->deltas.at[i];
        float s = wpass_strength(c, d);
        if (s == 0)
            continue;
        if (d->kind == DELTA_LOW_RANK)
            low_rank(c, d, s, x, m, y);
        else if (d->kind == DELTA_KRON)
            kronecker(c, i, s, x, m, y);
        else
            as_weight(c, i, x, m, y);
    }
}
