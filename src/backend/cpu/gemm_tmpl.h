/* SPDX-License-Identifier: MIT
 * Products of panels that stay in cache, for vectors of VL floats: a tile of MR rows by 2 vectors
 * of c is held in registers over the whole of k. No packing: b's rows are read as they are. */

/* c[mr, w], w <= nv * VL; mr and nv are constants in each call. Columns past w of b are not
 * read where w is short. */
INLINE void gemm_tile(const int mr, const int nv, int64_t w, int64_t k, const float *a,
                      int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, bool add)
{
    vf s[12][2];
    bool whole = w == nv * VL;

#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            s[i][j] = (vf){0};
    for (int64_t p = 0; p < k; p++) {
        vf x[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            x[j] = load_part(b + p * ldb + j * VL, whole ? VL : w - j * VL);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            vf y = vset(a[i * lda + p]);
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                s[i][j] = VFMA(y, x[j], s[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            float *to = c + i * ldc + j * VL;
            vf v = add ? s[i][j] + load_part(to, w - j * VL) : s[i][j];
            store_part(to, v, w - j * VL);
        }
}

/* All columns of mr rows. */
#define GEMM_ROWS(mr)                                                                      \
    static void gemm_rows_##mr(int64_t n, int64_t k, const float *a, int64_t lda,          \
                               const float *b, int64_t ldb, float *c, int64_t ldc, bool add) \
    {                                                                                      \
        int64_t j = 0;                                                                     \
        for (; j + 2 * VL <= n; j += 2 * VL)                                               \
            gemm_tile(mr, 2, 2 * VL, k, a, lda, b + j, ldb, c + j, ldc, add);              \
        if (j + VL <= n) {                                                                 \
            gemm_tile(mr, 1, VL, k, a, lda, b + j, ldb, c + j, ldc, add);                  \
            j += VL;                                                                       \
        }                                                                                  \
        if (j < n)                                                                         \
            gemm_tile(mr, 1, n - j, k, a, lda, b + j, ldb, c + j, ldc, add);               \
    }
GEMM_ROWS(1)
GEMM_ROWS(2)
GEMM_ROWS(3)
GEMM_ROWS(4)
GEMM_ROWS(5)
#if MR == 12
GEMM_ROWS(12)
#endif
GEMM_ROWS(6)

/* One vector of columns of all rows: taller tiles, or too few sums would be under way. */
static int64_t gemm_column(int64_t m, int64_t k, const float *a, int64_t lda, const float *b,
                           int64_t ldb, float *c, int64_t ldc, bool add)
{
    int64_t i = 0;

    for (; i + 12 <= m; i += 12)
        gemm_tile(12, 1, VL, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
    return i;
}

static void k_gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                   int64_t ldb, float *c, int64_t ldc, bool add)
{
    int64_t i = 0, wide = n / (2 * VL) * (2 * VL);

    if (n - wide == VL && m >= 12 && wide > 0) {
        i = gemm_column(m, k, a, lda, b + wide, ldb, c + wide, ldc, add);
        k_gemm(i, wide, k, a, lda, b, ldb, c, ldc, add);
    }
#if MR == 12
    for (; i + 12 <= m; i += 12)
        gemm_rows_12(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
#endif
    for (; i + 6 <= m; i += 6)
        gemm_rows_6(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
    a += i * lda;
    c += i * ldc;
    switch (m - i) {
    case 5:
        gemm_rows_5(n, k, a, lda, b, ldb, c, ldc, add);
        break;
    case 4:
        gemm_rows_4(n, k, a, lda, b, ldb, c, ldc, add);
        break;
    case 3:
        gemm_rows_3(n, k, a, lda, b, ldb, c, ldc, add);
        break;
    case 2:
        gemm_rows_2(n, k, a, lda, b, ldb, c, ldc, add);
        break;
    case 1:
        gemm_rows_1(n, k, a, lda, b, ldb, c, ldc, add);
        break;
    }
}
