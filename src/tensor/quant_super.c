/* SPDX-License-Identifier: MIT
 * Scales of runs that are integers times one f16 of their block. Each run's own best scale
 * decides where the f16 begins; then, in turns, each run takes the integers near by that leave
 * the least error, and the f16 is solved for by least squares over the whole block. */
#include "tensor/quant.h"
#include <math.h>
#include <string.h>

enum { MOST_RUNS = 16, TURNS = 3 };

static const int near[] = {0, -1, 1};

static int between(int v, int lo, int hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

static int nearest(float v, int lo, int hi)
{
    return (int)lrintf(fminf(fmaxf(v, (float)lo), (float)hi));
}

/* --- x = d scale q --- */

/* The best scales for d, from those in `scale` on; returns the error. d_next: what d should be. */
static float settle(const struct quant_super *s, const float *x, const float *w, float d,
                    int *scale, float *d_next)
{
    float total = 0, xq = 0, qq = 0;

    for (int r = 0; r < s->n; r++) {
        struct quant_sums best = {.err = INFINITY};
        int middle = scale[r];
        for (int i = 0; i < 3; i++) {
            int v = between(middle + near[i], s->lo, s->hi);
            struct quant_sums at = quant_levels(s->g, s->len, x + r * s->len, w + r * s->len,
                                                d * (float)v, NULL);
            if (at.err < best.err) {
                best = at;
                scale[r] = v;
            }
        }
        total += best.err;
        xq += (float)scale[r] * best.xq;
        qq += (float)(scale[r] * scale[r]) * best.qq;
    }
    *d_next = qq > 0 ? xq / qq : 0;
    return total;
}

/* Scales for d that start from each run's own; the result replaces what has a larger error. */
static float try_scale(const struct quant_super *s, const float *x, const float *w,
                       const float *own, float d, uint8_t *p, int *scale, float *least)
{
    uint16_t h = quant_f16(d);
    int now[MOST_RUNS];
    float next, stored = f16_to_f32(h);

    for (int r = 0; r < s->n; r++)
        now[r] = stored != 0 ? nearest(own[r] / stored, s->lo, s->hi) : 0;
    float err = settle(s, x, w, stored, now, &next);
    if (err < *least) {
        *least = err;
        quant_put_f16(p, h);
        memcpy(scale, now, (size_t)s->n * sizeof *scale);
    }
    return next;
}

float quant_super_scales(const struct quant_super *s, const float *x, const float *w, uint8_t *p,
                         int *scale, float *q)
{
    float own[MOST_RUNS], top = 0, least = INFINITY;

    for (int r = 0; r < s->n; r++) {
        own[r] = quant_scale(s->g, s->len, x + r * s->len, w + r * s->len);
        top = fabsf(own[r]) > fabsf(top) ? own[r] : top;
    }
    float d = top != 0 ? top / (float)s->lo : 0;
    for (int i = 0; i < TURNS; i++)
        d = try_scale(s, x, w, own, d, p, scale, &least);
    d = quant_get_f16(p);
    for (int r = 0; r < s->n && q != NULL; r++)
        quant_levels(s->g, s->len, x + r * s->len, w + r * s->len, d * (float)scale[r],
                     q + r * s->len);
    return d;
}

/* --- x = d scale q - dmin min --- */

struct pair {
    float d, m;
};

/* Normal equations for d and dmin. */
struct system {
    float aa, ab, bb, xa, xb;
};

static void add_run(struct system *e, float scale, float min, struct quant_sums s, float w,
                    float x)
{
    e->aa += scale * scale * s.qq;
    e->ab -= scale * min * s.q;
    e->bb += min * min * w;
    e->xa += scale * s.xq;
    e->xb -= min * x;
}

static struct pair solve(struct system e, struct pair old)
{
    float det = e.aa * e.bb - e.ab * e.ab;
    struct pair p = old;

    if (det > 1e-6f * e.aa * e.bb) {
        p.d = (e.xa * e.bb - e.xb * e.ab) / det;
        p.m = (e.xb * e.aa - e.xa * e.ab) / det;
    } else if (e.aa > 0) {
        p.d = e.xa / e.aa;
    }
    return p.d >= 0 && p.m >= 0 ? p : old;
}

/* The best scale and minimum of one run among those next to the given ones. */
static struct quant_sums settle_run(const struct quant_super_min *s, const float *x,
                                    const float *w, struct pair d, int *scale, int *min)
{
    struct quant_sums best = {.err = INFINITY};
    int scale0 = *scale, min0 = *min;

    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            int sc = between(scale0 + near[i], 0, s->most);
            int mn = between(min0 + near[j], 0, s->most);
            struct quant_sums at =
                quant_levels_min(s->hi, s->len, x, w, d.d * (float)sc, d.m * (float)mn, NULL);
            if (at.err < best.err) {
                best = at;
                *scale = sc;
                *min = mn;
            }
        }
    return best;
}

/* As try_scale(). */
static struct pair try_pair(const struct quant_super_min *s, const float *x, const float *w,
                            const struct pair *own, struct pair d, uint8_t *p, int *scale,
                            int *min, float *least)
{
    uint16_t hd = quant_f16(d.d), hm = quant_f16(d.m);
    struct pair stored = {f16_to_f32(hd), f16_to_f32(hm)};
    struct system e = {0};
    int sc[MOST_RUNS], mn[MOST_RUNS];
    float err = 0;

    for (int r = 0; r < s->n; r++) {
        const float *xr = x + r * s->len, *wr = w + r * s->len;
        float sum_w = 0, sum_x = 0;
        sc[r] = stored.d > 0 ? nearest(own[r].d / stored.d, 0, s->most) : 0;
        mn[r] = stored.m > 0 ? nearest(own[r].m / stored.m, 0, s->most) : 0;
        struct quant_sums best = settle_run(s, xr, wr, stored, &sc[r], &mn[r]);
        for (int i = 0; i < s->len; i++) {
            sum_w += wr[i];
            sum_x += wr[i] * xr[i];
        }
        add_run(&e, (float)sc[r], (float)mn[r], best, sum_w, sum_x);
        err += best.err;
    }
    if (err < *least) {
        *least = err;
        quant_put_f16(p, hd);
        quant_put_f16(p + 2, hm);
        memcpy(scale, sc, (size_t)s->n * sizeof *scale);
        memcpy(min, mn, (size_t)s->n * sizeof *min);
    }
    return solve(e, stored);
}

void quant_super_mins(const struct quant_super_min *s, const float *x, const float *w, uint8_t *p,
                      int *scale, int *min, float *q)
{
    struct pair own[MOST_RUNS], d = {0, 0};
    float least = INFINITY;

    for (int r = 0; r < s->n; r++) {
        quant_scale_min(s->hi, s->len, x + r * s->len, w + r * s->len, false, &own[r].d,
                        &own[r].m);
        d.d = own[r].d > d.d ? own[r].d : d.d;
        d.m = own[r].m > d.m ? own[r].m : d.m;
    }
    d.d /= (float)s->most;
    d.m /= (float)s->most;
    for (int i = 0; i < TURNS; i++)
        d = try_pair(s, x, w, own, d, p, scale, min, &least);
    for (int r = 0; r < s->n; r++)
        quant_levels_min(s->hi, s->len, x + r * s->len, w + r * s->len,
                         quant_get_f16(p) * (float)scale[r],
                         quant_get_f16(p + 2) * (float)min[r], q + r * s->len);
}
