/* SPDX-License-Identifier: MIT
 * 3x3 convolution by transformed tiles in whole numbers of 16 bits, as winograd_tmpl.h. A group of
 * WINO_GROUP inputs of a tile has a scale, and one of an output channel's weights. Its sums are
 * exact: by the sums of squares of both sides none reaches 2^31. v and u hold two inputs' numbers
 * in the place of a float. After wino_transform_tmpl.h and attention16_tmpl.h. */

/* n channels, at most two vectors of them. */
INLINE void wino16_part(const float *const *px, int64_t at, int64_t n, float inv, float *v,
                        int64_t step)
{
    int16_t last[2 * VL];
    vf e[2][36];

    wino_input_vector(true, px, at, n < VL ? n : VL, e[0]);
    wino_input_vector(true, px, at + VL, n - VL, e[1]);
#pragma GCC unroll 36
    for (int x = 0; x < 36; x++) {
        const vi q[2] = {VROUND(e[0][x] * inv), VROUND(e[1][x] * inv)};
        int16_t *to = (int16_t *)(void *)(v + x * step) + at;
        store16(n < 2 * VL ? last : to, q);
        if (n < 2 * VL)
            memcpy(to, last, (size_t)n * sizeof *last);
    }
}

/* Channels [from, from + n) times inv, rounded. */
static void wino16_input(const float *const *px, int64_t from, int64_t n, float inv, float *v,
                         int64_t step)
{
    int64_t at = from, end = from + n;

    for (; at + 2 * VL <= end; at += 2 * VL)
        wino16_part(px, at, 2 * VL, inv, v, step);
    if (at < end)
        wino16_part(px, at, end - at, inv, v, step);
}

/* n even; inv[panel] */
static void wino16_weights(const float *w, int64_t n, const float *inv, float *u, int64_t step)
{
    for (int64_t i = 0; i < n; i += 2, w += 2 * 9 * PANEL, u += PANEL)
        for (int h = 0; h < PANEL; h += VL) {
            vf e[2][36], by = vload(inv + h);
            wino_weight_vector(true, w + h, PANEL, e[0]);
            wino_weight_vector(true, w + 9 * PANEL + h, PANEL, e[1]);
            for (int x = 0; x < 36; x++)
                *(vi_mem *)(void *)(u + x * step + h) =
                    paired(VROUND(e[0][x] * by), VROUND(e[1][x] * by));
        }
}

/* As wino_rows(). */
INLINE void wino16_rows(const int mr, const struct wino_product *a, int64_t at, bool first)
{
    vi s[PAIRS_TILE][2];
    const float *x[PAIRS_TILE], *u = a->u;
    int64_t n = a->n - at < mr ? a->n - at : mr, ahead = a->next_v - a->v;

#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
        x[i] = a->v + (at + (i < n ? i : n - 1)) * a->ldv;
        s[i][0] = s[i][1] = (vi){0};
    }
    for (int64_t k = 0; k < a->k; k++, u += PANEL) {
        vi w0 = *(const vi_mem *)(const void *)u, w1 = *(const vi_mem *)(const void *)(u + VL);
        if (first)
            __builtin_prefetch(u + (a->next_u - a->u));
        if (k % 16 == 0)
#pragma GCC unroll 16
            for (int i = 0; i < mr; i++)
                __builtin_prefetch(x[i] + ahead + k, 0, 2);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            vi y = *(const pair *)(const void *)(x[i] + k) - (vi){0};
            s[i][0] = pairs_add(s[i][0], y, w0);
            s[i][1] = pairs_add(s[i][1], y, w1);
        }
    }
    vf scale0 = vload(a->u_scale), scale1 = vload(a->u_scale + VL);
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
        float *to = a->m + (at + i) * a->ldm;
        if (i >= n)
            break;
        vf by = vset(a->v_scale[(at + i) * a->v_scale_step]);
        vf y0 = VFLOATS(s[i][0]) * (scale0 * by), y1 = VFLOATS(s[i][1]) * (scale1 * by);
        vstore(to, a->add ? y0 + vload(to) : y0);
        vstore(to + VL, a->add ? y1 + vload(to + VL) : y1);
    }
}

static void wino16_product(const struct wino_product *a)
{
    int64_t at = 0;

    for (; a->n - at > 4; at += PAIRS_TILE)
        wino16_rows(PAIRS_TILE, a, at, at == 0);
    if (a->n - at > 2)
        wino16_rows(4, a, at, at == 0);
    else if (a->n - at > 0)
        wino16_rows(2, a, at, at == 0);
}

static void wino16_output(const struct wino_tile *t, int64_t n)
{
    wino_output(true, t, n);
}
