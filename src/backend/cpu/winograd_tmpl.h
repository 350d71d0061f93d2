/* SPDX-License-Identifier: MIT
 * 3x3 convolution by transformed tiles in f32. After wino_transform_tmpl.h. */

INLINE void wino_input_part(const float *const *px, int64_t at, int64_t n, float *v, int64_t step)
{
    vf e[36];

    wino_input_vector(false, px, at, n, e);
#pragma GCC unroll 36
    for (int x = 0; x < 36; x++)
        store_part(v + x * step + at, e[x], n);
}

static void k_wino_input(const float *const *px, int64_t from, int64_t n, float inv, float *v,
                         int64_t step)
{
    int64_t at = from, end = from + n;

    (void)inv;
    for (; at + VL <= end; at += VL)
        wino_input_part(px, at, VL, v, step);
    if (at < end)
        wino_input_part(px, at, end - at, v, step);
}

static void k_wino_weights(const float *w, int64_t n, const float *inv, float *u, int64_t step)
{
    (void)inv;
    for (int64_t i = 0; i < n; i++, w += 9 * 2 * VL, u += 2 * VL)
        for (int h = 0; h < 2 * VL; h += VL) {
            vf e[36];
            wino_weight_vector(false, w + h, 2 * VL, e);
#pragma GCC unroll 36
            for (int x = 0; x < 36; x++)
                vstore(u + x * step + h, e[x]);
        }
}

static void k_wino_output(const struct wino_tile *t, int64_t n)
{
    wino_output(false, t, n);
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
