/* SPDX-License-Identifier: MIT
 * Products of matrices, for work that is done once per layer. */
#include "tensor/mat.h"
#include <string.h>

enum { ROWS = 16, COLS = 512 }; /* of a tile: a row of c stays in the first cache */

/* c[j] += sum over 4 rows of b, so that each number of c is loaded and stored once for four. */
static void add_four(const float *a, int64_t a_col, const float *b, int64_t ldb, int64_t n,
                     float *c)
{
    float a0 = a[0], a1 = a[a_col], a2 = a[2 * a_col], a3 = a[3 * a_col];
    const float *b1 = b + ldb, *b2 = b1 + ldb, *b3 = b2 + ldb;

    for (int64_t j = 0; j < n; j++)
        c[j] += a0 * b[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j];
}

static void tile(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t ldb,
                 int64_t rows, int64_t k, int64_t cols, float *c, bool add)
{
    for (int64_t i = 0; i < rows && !add; i++)
        memset(c + i * ldb, 0, (size_t)cols * sizeof *c);
    for (int64_t q = 0; q + 4 <= k; q += 4)
        for (int64_t i = 0; i < rows; i++)
            add_four(a + i * a_row + q * a_col, a_col, b + q * ldb, ldb, cols, c + i * ldb);
    for (int64_t q = k / 4 * 4; q < k; q++)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                c[i * ldb + j] += a[i * a_row + q * a_col] * b[q * ldb + j];
}

void mat_mul(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t m, int64_t k,
             int64_t n, float *c, bool add)
{
#pragma omp parallel for collapse(2) schedule(dynamic) if (m * n * k > 100000)
    for (int64_t i = 0; i < m; i += ROWS)
        for (int64_t j = 0; j < n; j += COLS)
            tile(a + i * a_row, a_row, a_col, b + j, n, m - i < ROWS ? m - i : ROWS, k,
                 n - j < COLS ? n - j : COLS, c + i * n + j, add);
}

double mat_norm2(const float *a, int64_t n)
{
    double sum = 0;

#pragma omp parallel for reduction(+ : sum) if (n > 1000000)
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * a[i];
    return sum;
}

/* g[r, r] = a'a of a[n, r], or with `across` b b' of b[r, n]. */
static void gram(const float *x, int64_t n, int64_t r, bool across, double *g)
{
    for (int64_t i = 0; i < n && !across; i++)
        for (int64_t p = 0; p < r; p++)
            for (int64_t q = 0; q <= p; q++)
                g[p * r + q] += (double)x[i * r + p] * x[i * r + q];
    for (int64_t p = 0; p < r && across; p++)
        for (int64_t q = 0; q <= p; q++) {
            double sum[4] = {0};
            int64_t i = 0;
            for (; i + 4 <= n; i += 4)
                for (int k = 0; k < 4; k++)
                    sum[k] += (double)x[p * n + i + k] * x[q * n + i + k];
            for (; i < n; i++)
                sum[0] += (double)x[p * n + i] * x[q * n + i];
            g[p * r + q] = sum[0] + sum[1] + (sum[2] + sum[3]);
        }
}

kron_status mat_product_norm2(const float *a, const float *b, int64_t m, int64_t r, int64_t n,
                              double *out)
{
    double *g;

    KRON_TRY(mem_alloc_n((void **)&g, 2 * (size_t)(r * r), sizeof *g, "a Gram matrix"));
    gram(a, m, r, false, g);
    gram(b, n, r, true, g + r * r);
    *out = 0;
    for (int64_t p = 0; p < r; p++)
        for (int64_t q = 0; q <= p; q++) /* lower halves: off the diagonal all counts twice */
            *out += (p == q ? 1 : 2) * g[p * r + q] * g[r * r + p * r + q];
    mem_free(g);
    return KRON_OK;
}
