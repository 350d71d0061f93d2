/* SPDX-License-Identifier: MIT
 * Scales of block types: a grid of candidates, each judged by what is left after weighted least
 * squares for its levels.
 *
 * For given levels q the best scale is d = sum w x q / sum w q q, and it takes
 * (sum w x q)^2 / sum w q q off the error sum w x x: that is what candidates are compared by, so
 * that one pass over the numbers judges one candidate. */
#include "tensor/quant.h"
#include <math.h>
#include <string.h>

/* Four lanes, which every target of the compiler has or splits. */
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

static v4 load(const float *p)
{
    v4 v;

    memcpy(&v, p, sizeof v);
    return v;
}

static v4 all(float a)
{
    return (v4){a, a, a, a};
}

static float sum(v4 v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static v4 clamp(v4 v, v4 lo, v4 hi)
{
    i4 under = v < lo, over = v > hi;

    return (v4)(((i4)lo & under) | ((i4)hi & over) | ((i4)v & ~under & ~over));
}

/* To whole numbers, for |v| < 2^22. */
static v4 whole(v4 v)
{
    return (v + 12582912.0f) - 12582912.0f;
}

static float inverse(float d)
{
    return fabsf(d) > 1e-37f ? 1 / d : 0;
}

/* Listed levels as floats: the first, and each other's distance from the one below it and the
 * middle between the two. */
struct listed {
    int n;
    float first, cut[15], gap[15];
};

static void list_levels(const struct quant_grid *g, struct listed *l)
{
    l->n = g->n_values - 1;
    l->first = (float)g->values[0];
    for (int i = 0; i < l->n; i++) {
        l->gap[i] = (float)(g->values[i + 1] - g->values[i]);
        l->cut[i] = (float)(g->values[i + 1] + g->values[i]) * 0.5f;
    }
}

/* Level of v: the gaps whose middle lies below it added up. */
static v4 listed_level(const struct listed *l, v4 v)
{
    v4 q = all(l->first);

    for (int i = 0; i < l->n; i++)
        q += (v4)((i4)all(l->gap[i]) & (i4)(v > l->cut[i]));
    return q;
}

struct quant_sums quant_levels(const struct quant_grid *g, int n, const float *x, const float *w,
                               float d, float *q)
{
    v4 xq = {0}, qq = {0}, sq = {0}, err = {0}, lo = all((float)g->lo), hi = all((float)g->hi);
    float id = inverse(d);
    struct listed list = {0};

    if (g->values)
        list_levels(g, &list);
    for (int i = 0; i < n; i += 4) {
        v4 vx = load(x + i), vw = load(w + i), v = vx * id;
        v = g->values ? listed_level(&list, v) : whole(clamp(v, lo, hi));
        v4 e = vx - d * v, wv = vw * v;
        xq += wv * vx;
        qq += wv * v;
        sq += wv;
        err += vw * e * e;
        if (q != NULL)
            memcpy(q + i, &v, sizeof v);
    }
    return (struct quant_sums){sum(xq), sum(qq), sum(sq), sum(err)};
}

struct quant_sums quant_levels_min(int hi, int n, const float *x, const float *w, float d, float m,
                                   float *q)
{
    v4 xq = {0}, qq = {0}, sq = {0}, err = {0}, lo = {0}, top = all((float)hi);
    float id = inverse(d);

    for (int i = 0; i < n; i += 4) {
        v4 vx = load(x + i), vw = load(w + i), v = whole(clamp((vx + m) * id, lo, top));
        v4 e = vx - (d * v - m), wv = vw * v;
        xq += wv * vx;
        qq += wv * v;
        sq += wv;
        err += vw * e * e;
        if (q != NULL)
            memcpy(q + i, &v, sizeof v);
    }
    return (struct quant_sums){sum(xq), sum(qq), sum(sq), sum(err)};
}

/* The number farthest from 0, with its sign. */
static float extreme(int n, const float *x)
{
    float a = 0;

    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(a))
            a = x[i];
    return a;
}

static float least_squares(struct quant_sums s)
{
    return s.qq > 0 ? s.xq / s.qq : 0;
}

float quant_scale(const struct quant_grid *g, int n, const float *x, const float *w)
{
    float a = extreme(n, x), first = a / (float)g->lo, best = first, gain = -1;
    float ends[2] = {(float)g->lo, (float)g->hi};

    if (a == 0)
        return 0;
    for (int i = -g->tries; i <= g->tries; i++)
        for (int end = 0; end < 2; end++) {
            float d = a / (ends[end] * (1 + (float)i * g->step));
            struct quant_sums s = quant_levels(g, n, x, w, d, NULL);
            float took = s.qq > 0 ? s.xq * s.xq / s.qq : 0;
            if (took > gain) {
                gain = took;
                best = least_squares(s);
            }
        }
    /* Levels of the better scale may be better again; the plain one is never lost to. */
    for (int i = 0; i < 2; i++) {
        struct quant_sums s = quant_levels(g, n, x, w, best, NULL);
        float d = least_squares(s);
        if (quant_levels(g, n, x, w, d, NULL).err < s.err)
            best = d;
    }
    if (quant_levels(g, n, x, w, first, NULL).err <= quant_levels(g, n, x, w, best, NULL).err)
        return first;
    return best;
}

/* Sums of the numbers alone. */
struct plain {
    float w, x, xx;
};

/* The best d and m for given levels, and the error that they leave. */
static float solve(struct plain p, struct quant_sums s, bool free_m, float *d, float *m)
{
    float det = s.qq * p.w - s.q * s.q;

    *d = least_squares(s);
    *m = 0;
    if (det > 1e-6f * s.qq * p.w) {
        float slope = (s.xq * p.w - s.q * p.x) / det, low = (s.q * s.xq - s.qq * p.x) / det;
        if (free_m || low > 0) {
            *d = slope;
            *m = low;
        }
    }
    return p.xx - *d * s.xq + *m * p.x;
}

void quant_scale_min(int hi, int n, const float *x, const float *w, bool free_m, float *d,
                     float *m)
{
    struct plain p = {0};
    float lo = x[0], top = x[0], least = INFINITY, nd, nm;

    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        top = x[i] > top ? x[i] : top;
        p.w += w[i];
        p.x += w[i] * x[i];
        p.xx += w[i] * x[i] * x[i];
    }
    if (!free_m && lo > 0)
        lo = 0;
    *d = (top - lo) / (float)hi;
    *m = -lo;
    if (top <= lo)
        return;
    float first_d = *d, first_m = *m;
    /* Ranges a little narrower and wider, about the same middle and about the same low end. */
    for (int i = -8; i <= 4; i += 2)
        for (int end = 0; end < 2; end++) {
            float width = (top - lo) / ((float)hi - 0.1f * (float)i * (hi < 4 ? 0.6f : 1.0f));
            float low = end ? lo : lo + (top - lo - width * (float)hi) * 0.5f;
            struct quant_sums s = quant_levels_min(hi, n, x, w, width, -low, NULL);
            float left = solve(p, s, free_m, &nd, &nm);
            if (left < least) {
                least = left;
                *d = nd;
                *m = nm;
            }
        }
    for (int i = 0; i < 2; i++) {
        struct quant_sums s = quant_levels_min(hi, n, x, w, *d, *m, NULL);
        solve(p, s, free_m, &nd, &nm);
        if (quant_levels_min(hi, n, x, w, nd, nm, NULL).err < s.err) {
            *d = nd;
            *m = nm;
        }
    }
    if (quant_levels_min(hi, n, x, w, first_d, first_m, NULL).err <=
        quant_levels_min(hi, n, x, w, *d, *m, NULL).err) {
        *d = first_d;
        *m = first_m;
    }
}

int quant_index(const struct quant_grid *g, float q)
{
    if (g->values == NULL)
        return (int)q - g->lo;
    for (int i = 0; i < g->n_values; i++)
        if ((float)g->values[i] == q)
            return i;
    return 0;
}

uint16_t quant_f16(float v)
{
    return f32_to_f16(v > 65504 ? 65504 : v < -65504 ? -65504 : v);
}

void quant_take(const float *src, const float *importance, int n, float most, float *x, float *w)
{
    float top = 0;

    for (int i = 0; i < n; i++) {
        x[i] = isnan(src[i]) ? 0 : src[i] > most ? most : src[i] < -most ? -most : src[i];
        w[i] = importance && importance[i] > 0 ? importance[i] : 0;
        top = w[i] > top ? w[i] : top;
    }
    for (int i = 0; i < n; i++)
        w[i] = top > 0 && top < INFINITY ? w[i] / top : 1;
}
