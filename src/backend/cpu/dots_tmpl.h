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

/* n numbers of each row, VL or fewer. A vector of w is loaded when it is used: the sums, x and one
 * of w fill the 16 registers of AVX2. */
INLINE void dots_step(const float *const x[DOTS_X], const float *const w[DOTS_W], int64_t n,
                      vf s[DOTS_X][DOTS_W])
{
    vf a[DOTS_X];

#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++)
        a[i] = n == VL ? vload(x[i]) : vload_n(x[i], n);
#pragma GCC unroll 4
    for (int j = 0; j < DOTS_W; j++) {
        vf b = n == VL ? vload(w[j]) : vload_n(w[j], n);
#pragma GCC unroll 3
        for (int i = 0; i < DOTS_X; i++)
            s[i][j] = VFMA(a[i], b, s[i][j]);
    }
}

INLINE void dots_sums(int64_t k, const float *x[DOTS_X], const float *w[DOTS_W], v4 sum[DOTS_X])
{
    vf s[DOTS_X][DOTS_W];

#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++)
#pragma GCC unroll 4
        for (int j = 0; j < DOTS_W; j++)
            s[i][j] = (vf){0};
    for (; k >= VL; k -= VL) {
        dots_step(x, w, VL, s);
#pragma GCC unroll 3
        for (int i = 0; i < DOTS_X; i++)
            x[i] += VL;
#pragma GCC unroll 4
        for (int j = 0; j < DOTS_W; j++)
            w[j] += VL;
    }
    if (k > 0)
        dots_step(x, w, k, s);
#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++)
        sum[i] = dots_across(s[i]);
}

/* A whole tile of y. */
static void dots_tile(int64_t k, const float *x, int64_t ldx, const float *w, int64_t ldw, float *y,
                      int64_t ldy, bool add)
{
    const float *px[DOTS_X] = {x, x + ldx, x + 2 * ldx};
    const float *pw[DOTS_W] = {w, w + ldw, w + 2 * ldw, w + 3 * ldw};
    v4 sum[DOTS_X];

    dots_sums(k, px, pw, sum);
#pragma GCC unroll 3
    for (int i = 0; i < DOTS_X; i++) {
        v4_mem *to = (v4_mem *)(y + i * ldy);
        *to = add ? sum[i] + *to : sum[i];
    }
}

/* What is left at the edges: past the last row of x or w the first is read again. */
static void dots_edge(int64_t m, int64_t n, int64_t k, const float *x, int64_t ldx, const float *w,
                      int64_t ldw, float *y, int64_t ldy, bool add)
{
    const float *px[DOTS_X], *pw[DOTS_W];
    v4 sum[DOTS_X];

    for (int i = 0; i < DOTS_X; i++)
        px[i] = x + (i < m ? i : 0) * ldx;
    for (int j = 0; j < DOTS_W; j++)
        pw[j] = w + (j < n ? j : 0) * ldw;
    dots_sums(k, px, pw, sum);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            y[i * ldy + j] = add ? y[i * ldy + j] + sum[i][j] : sum[i][j];
}

static void k_dots(int64_t m, int64_t n, int64_t k, const float *x, int64_t ldx, const float *w,
                   int64_t ldw, float *y, int64_t ldy, bool add)
{
    for (int64_t i = 0; i < m; i += DOTS_X)
        for (int64_t j = 0; j < n; j += DOTS_W) {
            int64_t rows = m - i < DOTS_X ? m - i : DOTS_X, cols = n - j < DOTS_W ? n - j : DOTS_W;
            const float *a = x + i * ldx, *b = w + j * ldw;
            float *to = y + i * ldy + j;
            if (rows == DOTS_X && cols == DOTS_W)
                dots_tile(k, a, ldx, b, ldw, to, ldy, add);
            else
                dots_edge(rows, cols, k, a, ldx, b, ldw, to, ldy, add);
        }
}
