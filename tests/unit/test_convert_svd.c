/* SPDX-License-Identifier: MIT
 * The linear algebra of the converters, on matrices whose answer is known by construction. */
#include "convert/svd.h"
#include "tensor/mat.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "distance.h"

static uint64_t seed;

static void fill(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        x[i] = (float)((double)(seed >> 33) / (double)(1u << 30) - 1);
    }
}

static float *random_matrix(int64_t rows, int64_t cols)
{
    float *x = malloc((size_t)(rows * cols) * sizeof *x);

    assert_non_null(x);
    fill(x, rows * cols);
    return x;
}

static float *multiply(const float *a, const float *b, int64_t m, int64_t k, int64_t n)
{
    float *c = calloc((size_t)(m * n), sizeof *c);

    assert_non_null(c);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t q = 0; q < k; q++)
                sum += (double)a[i * k + q] * b[q * n + j];
            c[i * n + j] = (float)sum;
        }
    return c;
}

/* The matrix that a decomposition stands for. */
static float *rebuild(const struct svd *d)
{
    float *a = calloc((size_t)(d->m * d->n), sizeof *a);

    assert_non_null(a);
    for (int64_t i = 0; i < d->m; i++)
        for (int64_t j = 0; j < d->n; j++) {
            double sum = 0;
            for (int64_t q = 0; q < d->k; q++)
                sum += d->s[q] * d->u[i * d->k + q] * d->v[j * d->k + q];
            a[i * d->n + j] = (float)sum;
        }
    return a;
}

/* Orthonormal vectors u[n, k] to f32's rounding. */
static void expect_orthonormal(const float *u, int64_t n, int64_t k)
{
    for (int64_t p = 0; p < k; p++)
        for (int64_t q = 0; q <= p; q++) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++)
                sum += (double)u[i * k + p] * u[i * k + q];
            assert_true(fabs(sum - (p == q)) < 1e-6);
        }
}

static void products_of_odd_sizes(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1}, {3, 5, 7}, {17, 4, 513}, {33, 9, 1030}};

    (void)state;
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        int64_t m = sizes[c][0], k = sizes[c][1], n = sizes[c][2];
        float *a = random_matrix(m, k), *b = random_matrix(k, n), *want = multiply(a, b, m, k, n);
        float *at = malloc((size_t)(m * k) * sizeof *at), *got = random_matrix(m, n);
        for (int64_t i = 0; i < m; i++)
            for (int64_t q = 0; q < k; q++)
                at[q * m + i] = a[i * k + q];
        mat_mul(a, k, 1, b, m, k, n, got, false);
        assert_true(distance(got, want, m * n) < 1e-6);
        mat_mul(at, 1, m, b, m, k, n, got, true);
        for (int64_t i = 0; i < m * n; i++)
            got[i] /= 2;
        assert_true(distance(got, want, m * n) < 1e-6);
        double norm2;
        assert_int_equal(mat_product_norm2(a, b, m, k, n, &norm2), KRON_OK);
        assert_true(fabs(norm2 / mat_norm2(want, m * n) - 1) < 1e-5);
        free(a);
        free(b);
        free(at);
        free(got);
        free(want);
    }
}

/* u diag(4, 2, 1) v' with orthonormal u, v: its singular values are known. */
static void known_factors_come_back(void **state)
{
    enum { M = 60, N = 45, K = 3 };
    static const double s[K] = {4, 2, 1};
    float *x = random_matrix(M, N), *a, *us, *vt;
    struct svd from, d, dense;

    (void)state;
    assert_int_equal(svd_dense(x, M, N, K, &from), KRON_OK);
    expect_orthonormal(from.u, M, K);
    us = malloc(M * K * sizeof *us);
    vt = malloc(N * K * sizeof *vt);
    for (int i = 0; i < M * K; i++)
        us[i] = (float)(from.u[i] * s[i % K]);
    for (int i = 0; i < N * K; i++)
        vt[i % K * N + i / K] = from.v[i];
    a = multiply(us, vt, M, K, N);
    assert_int_equal(svd_product(us, vt, M, K, N, 9, &d), KRON_OK);
    assert_int_equal(d.k, K); /* no more than there are */
    assert_int_equal(svd_dense(a, M, N, K, &dense), KRON_OK);
    for (int i = 0; i < K; i++) {
        assert_true(fabs(d.s[i] - s[i]) < 1e-5);
        assert_true(fabs(dense.s[i] - s[i]) < 1e-5);
    }
    expect_orthonormal(d.u, M, K);
    expect_orthonormal(d.v, N, K);
    float *back = rebuild(&d), *back_dense = rebuild(&dense);
    assert_true(distance(back, a, M * N) < 1e-6);
    assert_true(distance(back_dense, a, M * N) < 1e-6);
    free(back);
    free(back_dense);
    free(x);
    free(a);
    free(us);
    free(vt);
    svd_free(&from);
    svd_free(&d);
    svd_free(&dense);
}

/* The best approximation of rank k misses by the singular values left out, and no less. */
static void a_cut_is_the_nearest(void **state)
{
    enum { M = 90, R = 40, N = 70, K = 12 };
    float *a = random_matrix(M, R), *b = random_matrix(R, N), *ab = multiply(a, b, M, R, N);
    struct svd all, cut, dense;
    double left = 0, norm = 0;

    (void)state;
    assert_int_equal(svd_product(a, b, M, R, N, R, &all), KRON_OK);
    assert_int_equal(svd_product(a, b, M, R, N, K, &cut), KRON_OK);
    assert_int_equal(svd_dense(ab, M, N, K, &dense), KRON_OK);
    for (int i = 0; i < R; i++) {
        assert_true(i == 0 || all.s[i] <= all.s[i - 1]);
        norm += all.s[i] * all.s[i];
        left += i >= K ? all.s[i] * all.s[i] : 0;
    }
    float *got = rebuild(&cut), *got_dense = rebuild(&dense);
    assert_true(fabs(distance(got, ab, M * N) / sqrt(left / norm) - 1) < 1e-5);
    /* A random subspace of this flat spectrum is near the best, not the best. */
    assert_true(distance(got_dense, ab, M * N) < 1.01 * sqrt(left / norm));
    free(a);
    free(b);
    free(ab);
    free(got);
    free(got_dense);
    svd_free(&all);
    svd_free(&cut);
    svd_free(&dense);
}

static void kron(const float *w1, const float *w2, int64_t up, int64_t uq, int64_t vp, int64_t m,
                 float *out)
{
    for (int64_t o = 0; o < up * vp; o++)
        for (int64_t c = 0; c < uq * m; c++)
            out[o * uq * m + c] = w1[o / vp * uq + c / m] * w2[o % vp * m + c % m];
}

static void a_kronecker_product_is_found_again(void **state)
{
    static const int64_t sizes[][4] = {{4, 4, 20, 15}, {1, 3, 7, 5}, {8, 2, 3, 36}, {5, 5, 1, 1}};

    (void)state;
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        int64_t up = sizes[c][0], uq = sizes[c][1], vp = sizes[c][2], m = sizes[c][3];
        int64_t n = up * uq * vp * m;
        float *w1 = random_matrix(up, uq), *w2 = random_matrix(vp, m);
        float *a = random_matrix(1, n), *got = random_matrix(1, n);
        kron(w1, w2, up, uq, vp, m, a);
        fill(w1, up * uq);
        fill(w2, vp * m);
        assert_int_equal(kron_nearest(a, up, uq, vp, m, w1, w2), KRON_OK);
        kron(w1, w2, up, uq, vp, m, got);
        assert_true(distance(got, a, n) < 1e-6);
        free(w1);
        free(w2);
        free(a);
        free(got);
    }
}

static void a_kronecker_product_is_decomposed_by_its_factors(void **state)
{
    enum { UP = 4, UQ = 3, VP = 12, M = 20, K = 7 };
    float *w1 = random_matrix(UP, UQ), *w2 = random_matrix(VP, M);
    float *a = random_matrix(UP * VP, UQ * M);
    struct svd d1, d2, d, want;

    (void)state;
    kron(w1, w2, UP, UQ, VP, M, a);
    assert_int_equal(svd_dense(w1, UP, UQ, 99, &d1), KRON_OK);
    assert_int_equal(svd_dense(w2, VP, M, 99, &d2), KRON_OK);
    assert_int_equal(d1.k, UQ);
    assert_int_equal(svd_kron(&d1, &d2, K, &d), KRON_OK);
    assert_int_equal(svd_dense(a, UP * VP, UQ * M, 48, &want), KRON_OK);
    for (int i = 0; i < K; i++)
        assert_true(fabs(d.s[i] / want.s[i] - 1) < 1e-5);
    expect_orthonormal(d.u, UP * VP, K);
    svd_free(&d);
    assert_int_equal(svd_kron(&d1, &d2, 1000, &d), KRON_OK);
    float *got = rebuild(&d);
    assert_true(distance(got, a, UP * VP * UQ * M) < 1e-6);
    free(got);
    svd_free(&d);
    svd_free(&d1);
    svd_free(&d2);
    svd_free(&want);
    free(w1);
    free(w2);
    free(a);
}

static void zeros_have_no_directions(void **state)
{
    float zero[6 * 5] = {0}, w1[4], w2[3 * 2];
    struct svd d;

    (void)state;
    assert_int_equal(svd_dense(zero, 6, 5, 2, &d), KRON_OK);
    for (int64_t i = 0; i < 6 * d.k; i++)
        assert_true(d.u[i] == 0 && d.s[i / 6] == 0);
    svd_free(&d);
    assert_int_equal(kron_nearest(zero, 2, 2, 3, 2, w1, w2), KRON_OK);
    for (int i = 0; i < 4; i++)
        assert_true(w1[i] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_odd_sizes),
        cmocka_unit_test(known_factors_come_back),
        cmocka_unit_test(a_cut_is_the_nearest),
        cmocka_unit_test(a_kronecker_product_is_found_again),
        cmocka_unit_test(a_kronecker_product_is_decomposed_by_its_factors),
        cmocka_unit_test(zeros_have_no_directions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
