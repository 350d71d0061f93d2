/* SPDX-License-Identifier: MIT
 * Transforms of F(4x4, 3x3): 16 pixels of a 3x3 convolution by 36 products instead of 144 (Lavin
 * and Gray 2015), for vectors of VL channels. The polynomials are evaluated at 0, +-a, +-2a and
 * infinity with a = 3/4: of these sets it rounds least, to six times the error of plain sums and
 * half of that with the usual a = 1. A set of 36 numbers lies in 36 places `step` floats apart. */

static const float wino_a = 0.75f;
#define A1 wino_a
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define A4 (A2 * A2)

/* to = B' d, 6 numbers from 6. */
INLINE void wino_in6(const vf *d, int64_t s, vf *to, int64_t t)
{
    vf e = VFMA(d[2 * s], vset(-4 * A2), d[4 * s]);
    vf f = VFMA(d[s], vset(-4 * A3), d[3 * s] * A1);
    vf g = VFMA(d[2 * s], vset(-A2), d[4 * s]);
    vf h = VFMA(d[s], vset(-2 * A3), d[3 * s] * (2 * A1));

    to[0] = VFMA(d[0], vset(4 * A4), VFMA(d[2 * s], vset(-5 * A2), d[4 * s]));
    to[t] = e + f;
    to[2 * t] = e - f;
    to[3 * t] = g + h;
    to[4 * t] = g - h;
    to[5 * t] = VFMA(d[s], vset(4 * A4), VFMA(d[3 * s], vset(-5 * A2), d[5 * s]));
}

/* to = G w, 6 numbers from 3. */
INLINE void wino_weight6(const vf *w, int64_t s, vf *to, int64_t t)
{
    vf even1 = VFMA(w[2 * s], vset(-1 / (6 * A2)), w[0] * (-1 / (6 * A4)));
    vf even2 = VFMA(w[2 * s], vset(1 / (6 * A2)), w[0] * (1 / (24 * A4)));
    vf odd1 = w[s] * (-1 / (6 * A3)), odd2 = w[s] * (1 / (12 * A3));

    to[0] = w[0] * (1 / (4 * A4));
    to[t] = even1 + odd1;
    to[2 * t] = even1 - odd1;
    to[3 * t] = even2 + odd2;
    to[4 * t] = even2 - odd2;
    to[5 * t] = w[2 * s];
}

/* to = A' m, 4 numbers from 6. */
INLINE void wino_out4(const vf *m, int64_t s, vf *to, int64_t t)
{
    vf s1 = m[s] + m[2 * s], d1 = m[s] - m[2 * s];
    vf s2 = m[3 * s] + m[4 * s], d2 = m[3 * s] - m[4 * s];

    to[0] = m[0] + (s1 + s2);
    to[t] = VFMA(d2, vset(2 * A1), d1 * A1);
    to[2 * t] = VFMA(s2, vset(4 * A2), s1 * A2);
    to[3 * t] = VFMA(d2, vset(8 * A3), VFMA(d1, vset(A3), m[5 * s]));
}

#undef A1
#undef A2
#undef A3
#undef A4

INLINE void wino_input_vector(const float *const *px, int64_t at, int64_t n, float *v,
                              int64_t step)
{
    vf d[36], e[36];

#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
        vf column[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            column[i] = load_part(px[i * 6 + j] + at, n);
        wino_in6(column, 1, d + j, 6);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
        wino_in6(d + i * 6, 1, e + i * 6, 1);
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++)
            store_part(v + (i * 6 + j) * step + at, e[i * 6 + j], n);
    }
}

static void k_wino_input(const float *const *px, int64_t from, int64_t n, float *v, int64_t step)
{
    int64_t at = from, end = from + n;

    for (; at + VL <= end; at += VL)
        wino_input_vector(px, at, VL, v, step);
    if (at < end)
        wino_input_vector(px, at, end - at, v, step);
}

static void k_wino_weights(const float *w, int64_t n, float *u, int64_t step)
{
    for (int64_t i = 0; i < n; i++, w += 9 * 2 * VL, u += 2 * VL)
        for (int h = 0; h < 2 * VL; h += VL) {
            vf g[9], d[18], e[6];
#pragma GCC unroll 9
            for (int t = 0; t < 9; t++)
                g[t] = vload(w + t * 2 * VL + h);
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++)
                wino_weight6(g + j, 3, d + j, 3);
#pragma GCC unroll 6
            for (int r = 0; r < 6; r++) {
                wino_weight6(d + r * 3, 1, e, 1);
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++)
                    vstore(u + (r * 6 + j) * step + h, e[j]);
            }
        }
}

/* One vector of channels of one tile. */
INLINE void wino_output_vector(const struct wino_tile *t, int64_t at, int64_t n)
{
    vf d[24], e[4], add = {0};

#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
        vf m[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            m[i] = vload(t->m + (i * 6 + j) * t->step + at);
        wino_out4(m, 1, d + j, 6);
    }
    if (t->bias != NULL)
        add += load_part(t->bias + at, n);
    if (t->vec != NULL)
        add += load_part(t->vec + at, n);
    for (int64_t i = 0; i < t->rows; i++) {
        wino_out4(d + i * 6, 1, e, 1);
        for (int64_t j = 0; j < t->cols; j++) {
            int64_t place = i * t->ld_row + j * t->ld_px + at;
            vf y = e[j] + add;
            if (t->res != NULL)
                y += load_part(t->res + place, n);
            store_part(t->y + place, y, n);
        }
    }
}

static void k_wino_output(const struct wino_tile *t, int64_t n)
{
    int64_t at = 0;

    for (; at + VL <= n; at += VL)
        wino_output_vector(t, at, VL);
    if (at < n)
        wino_output_vector(t, at, n - at);
}

/* m[mr, 2 VL] (+)= v[mr, k] u[k, 2 VL], mr constant in each call; rows from n on repeat the last
 * and are not stored. What the next product reads is fetched meanwhile: it lies farther than the
 * hardware looks ahead. */
INLINE void wino_rows(const int mr, const struct wino_product *a, int64_t at, bool first)
{
    vf s[CONV_MR][2];
    const float *x[CONV_MR], *u = a->u;
    int64_t n = a->n - at < mr ? a->n - at : mr, ahead = a->next_v - a->v;

#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
        x[i] = a->v + (at + (i < n ? i : n - 1)) * a->ldv;
        s[i][0] = s[i][1] = (vf){0};
    }
    for (int64_t k = 0; k < a->k; k++, u += 2 * VL) {
        vf w0 = vload(u), w1 = vload(u + VL);
        if (first)
            __builtin_prefetch(u + (a->next_u - a->u));
        if (k % 16 == 0)
#pragma GCC unroll 8
            for (int i = 0; i < mr; i++)
                __builtin_prefetch(x[i] + ahead + k, 0, 2);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf y = vset(x[i][k]);
            s[i][0] = VFMA(y, w0, s[i][0]);
            s[i][1] = VFMA(y, w1, s[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
        float *to = a->m + (at + i) * a->ldm;
        if (i >= n)
            break;
        vstore(to, a->add ? s[i][0] + vload(to) : s[i][0]);
        vstore(to + VL, a->add ? s[i][1] + vload(to + VL) : s[i][1]);
    }
}

static void k_wino_product(const struct wino_product *a)
{
    int64_t at = 0;

    for (; a->n - at > 4; at += CONV_MR)
        wino_rows(CONV_MR, a, at, at == 0);
    if (a->n - at > 2)
        wino_rows(4, a, at, at == 0);
    else if (a->n - at > 0)
        wino_rows(2, a, at, at == 0);
}
