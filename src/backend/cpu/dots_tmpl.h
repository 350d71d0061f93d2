/* SPDX-License-Identifier: MIT
 * Products of two matrices whose rows both lie along k, for few rows of either: no packing, but a
 * sum across each vector at the end. A tile of 3 by 4 sums takes 7 loads for 12 products. */

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef float v4_mem __attribute__((vector_size(16), aligned(4), may_alias));

enum { DOTS_X = 3, DOTS_W = 4 };

/* The sums across four vectors. */
INLINE v4 dots_across(const vf s[DOTS_W])
{
    const v4i lo = {0, 4, 1, 5}, hi = {2, 6, 3, 7}, front = {0, 1, 4, 5}, back = {2, 3, 6, 7};
    v4 r[DOTS_W];

#pragma GCC unroll 4
    for (int j = 0; j < DOTS_W; j++) {
        union {
            vf whole;
            v4 part[VL / 4];
        } u = {s[j]};
        r[j] = u.part[0];
#pragma GCC unroll 4
        for (int i = 1; i < VL / 4; i++)
            r[j] += u.part[i];
    }
    v4 a = __builtin_shuffle(r[0], r[1], lo) + __builtin_shuffle(r[0], r[1], hi);
    v4 b = __builtin_shuffle(r[2], r[3], lo) + __builtin_shuffle(r[2], r[3], hi);
    return __builtin_shuffle(a, b, front) + __builtin_shuffle(a, b, back);
}

INLINE void dots_step(const vf x[DOTS_X], const vf w[DOTS_W], vf s[DOTS_X][DOTS_W])
{
#pragma GCC unroll 4
    for (int j = 0; j < DOTS_W; j++)
#pragma GCC unroll 3
        for (int i = 0; i < DOTS_X; i++)
            s[i][j] = VFMA(x[i], w[j], s[i][j]);
}

INLINE void dots_tile(int64_t k, const float *const x[DOTS_X], const float *const w[DOTS_W],
                      v4 sum[DOTS_X])
{
    vf s[DOTS_X][DOTS_W], a[DOTS_X], b[DOTS_W];
    int64_t p = 0;

#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++)
#pragma GCC unroll 4
        for (int j = 0; j < DOTS_W; j++)
            s[i][j] = (vf){0};
    for (; p + VL <= k; p += VL) {
#pragma GCC unroll 3
        for (int i = 0; i < DOTS_X; i++)
            a[i] = vload(x[i] + p);
#pragma GCC unroll 4
        for (int j = 0; j < DOTS_W; j++)
            b[j] = vload(w[j] + p);
        dots_step(a, b, s);
    }
    if (p < k) {
        for (int i = 0; i < DOTS_X; i++)
            a[i] = vload_n(x[i] + p, k - p);
        for (int j = 0; j < DOTS_W; j++)
            b[j] = vload_n(w[j] + p, k - p);
        dots_step(a, b, s);
    }
#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++)
        sum[i] = dots_across(s[i]);
}

/* Past the last row or weight row a tile reads the first of it again. */
static void k_dots(int64_t m, int64_t n, int64_t k, const float *x, int64_t ldx, const float *w,
                   int64_t ldw, float *y, int64_t ldy, bool add)
{
    for (int64_t i = 0; i < m; i += DOTS_X)
        for (int64_t j = 0; j < n; j += DOTS_W) {
            const float *px[DOTS_X], *pw[DOTS_W];
            v4 sum[DOTS_X];
            for (int r = 0; r < DOTS_X; r++)
                px[r] = x + (i + r < m ? i + r : i) * ldx;
            for (int r = 0; r < DOTS_W; r++)
                pw[r] = w + (j + r < n ? j + r : j) * ldw;
            dots_tile(k, px, pw, sum);
            for (int64_t r = 0; r < DOTS_X && i + r < m; r++) {
                float *to = y + (i + r) * ldy + j;
                if (n - j >= DOTS_W)
                    *(v4_mem *)to = add ? sum[r] + *(v4_mem *)to : sum[r];
                for (int64_t c = 0; n - j < DOTS_W && c < n - j; c++)
                    to[c] = add ? to[c] + sum[r][c] : sum[r][c];
            }
        }
}
