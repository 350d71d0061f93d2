/* SPDX-License-Identifier: MIT
 * Singular values, by one-sided Jacobi rotations on small matrices and orthogonal bases of large
 * ones. Columns are kept as rows here ("columns" of n numbers one after the other), so that every
 * inner loop runs along memory. */
#include "convert/svd.h"
#include "tensor/mat.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void svd_free(struct svd *d)
{
    mem_free(d->u);
    mem_free(d->v);
    mem_free(d->s);
    memset(d, 0, sizeof *d);
}

static kron_status svd_alloc(struct svd *d, int64_t m, int64_t n, int64_t k)
{
    *d = (struct svd){.m = m, .n = n, .k = k};
    kron_status status = mem_floats(&d->u, m * k, "singular vectors");
    if (status == KRON_OK)
        status = mem_floats(&d->v, n * k, "singular vectors");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&d->s, (size_t)k, sizeof *d->s, "singular values");
    if (status != KRON_OK)
        svd_free(d);
    return status;
}

static double dot(const double *x, const double *y, int64_t n)
{
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    int64_t i = 0;

    for (; i + 4 <= n; i += 4) {
        s0 += x[i] * y[i];
        s1 += x[i + 1] * y[i + 1];
        s2 += x[i + 2] * y[i + 2];
        s3 += x[i + 3] * y[i + 3];
    }
    for (; i < n; i++)
        s0 += x[i] * y[i];
    return s0 + s1 + (s2 + s3);
}

/* --- orthogonal bases --- */

/* Gram and Schmidt, each column twice ("twice is enough": Giraud and others 2005). x: r columns
 * of n, orthonormal on return; a column that the others span becomes zero. t[r, r], may be NULL:
 * x_old = sum over p of t[p, q] x_p, upper triangular. */
static void orthogonalise(double *x, int64_t n, int64_t r, double *t)
{
    for (int64_t q = 0; q < r; q++) {
        double *xq = x + q * n, before = dot(xq, xq, n), norm;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t p = 0; p < q; p++) {
                const double *xp = x + p * n;
                double c = dot(xp, xq, n);
                for (int64_t i = 0; i < n; i++)
                    xq[i] -= c * xp[i];
                if (t != NULL)
                    t[p * r + q] += c;
            }
        norm = sqrt(dot(xq, xq, n));
        norm = norm > 1e-13 * sqrt(before) ? norm : 0;
        for (int64_t i = 0; i < n; i++)
            xq[i] = norm > 0 ? xq[i] / norm : 0;
        if (t != NULL)
            t[q * r + q] = norm;
    }
}

/* --- Jacobi --- */

static void rotate(double *x, double *y, int64_t n, double c, double s)
{
    for (int64_t i = 0; i < n; i++) {
        double a = x[i], b = y[i];
        x[i] = c * a - s * b;
        y[i] = s * a + c * b;
    }
}

/* Makes the r columns (of n) of x orthogonal by rotating pairs, the same rotations on the columns
 * of v[r, r]: x_old = x_new v'. Quadratic convergence ends it in some ten sweeps. */
static void jacobi(double *x, int64_t n, int64_t r, double *v)
{
    enum { MAX_SWEEPS = 60 };
    bool turned = true;

    memset(v, 0, (size_t)(r * r) * sizeof *v);
    for (int64_t i = 0; i < r; i++)
        v[i * r + i] = 1;
    for (int sweep = 0; turned && sweep < MAX_SWEEPS; sweep++) {
        turned = false;
        for (int64_t p = 0; p < r; p++)
            for (int64_t q = p + 1; q < r; q++) {
                double *xp = x + p * n, *xq = x + q * n;
                double a = dot(xp, xp, n), b = dot(xq, xq, n), g = dot(xp, xq, n);
                if (fabs(g) <= 1e-13 * sqrt(a * b) || a == 0 || b == 0)
                    continue;
                double z = (b - a) / (2 * g);
                double t = (z >= 0 ? 1 : -1) / (fabs(z) + sqrt(1 + z * z));
                double c = 1 / sqrt(1 + t * t);
                rotate(xp, xq, n, c, c * t);
                rotate(v + p * r, v + q * r, r, c, c * t);
                turned = true;
            }
    }
}

/* --- products --- */

struct order {
    double s;
    int64_t i;
};

static int by_size(const void *a, const void *b)
{
    const struct order *x = a, *y = b;

    if (x->s != y->s)
        return x->s < y->s ? 1 : -1;
    return (x->i > y->i) - (x->i < y->i);
}

/* Scratch of svd_product(): qa, qb r columns of m and n; ta, tb, core, v [r, r]. */
struct work {
    double *qa, *qb, *ta, *tb, *core, *v;
    struct order *order;
};

static kron_status work_alloc(struct work *w, int64_t m, int64_t r, int64_t n)
{
    double **at[] = {&w->qa, &w->qb, &w->ta, &w->tb, &w->core, &w->v};
    const int64_t size[] = {m * r, n * r, r * r, r * r, r * r, r * r};

    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        KRON_TRY(mem_alloc_n((void **)at[i], (size_t)size[i], sizeof(double), "a decomposition"));
    return mem_alloc_n((void **)&w->order, (size_t)r, sizeof *w->order, "a decomposition");
}

static void work_free(struct work *w)
{
    mem_free(w->qa);
    mem_free(w->qb);
    mem_free(w->ta);
    mem_free(w->tb);
    mem_free(w->core);
    mem_free(w->v);
    mem_free(w->order);
}

/* out[row, j] = sum over p of q_p[row] x[p], scaled: one singular vector. */
static void combine(const double *q, int64_t n, int64_t r, const double *x, double scale,
                    float *out, int64_t stride)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t p = 0; p < r; p++)
            sum += q[p * n + i] * x[p];
        out[i * stride] = (float)(sum * scale);
    }
}

/* a = Qa Ta and b' = Qb Tb, so a b = Qa (Ta Tb') Qb', and the core in the middle is small. */
static kron_status decompose(struct work *w, const float *a, const float *b, int64_t m, int64_t r,
                             int64_t n, int64_t k, struct svd *out)
{
    for (int64_t q = 0; q < r; q++)
        for (int64_t i = 0; i < m; i++)
            w->qa[q * m + i] = a[i * r + q];
    for (int64_t i = 0; i < n * r; i++)
        w->qb[i] = b[i];
    orthogonalise(w->qa, m, r, w->ta);
    orthogonalise(w->qb, n, r, w->tb);
    for (int64_t i = 0; i < r; i++) /* core, its columns one after the other */
        for (int64_t j = 0; j < r; j++)
            w->core[j * r + i] = dot(w->ta + i * r, w->tb + j * r, r);
    jacobi(w->core, r, r, w->v);
    for (int64_t i = 0; i < r; i++)
        w->order[i] = (struct order){sqrt(dot(w->core + i * r, w->core + i * r, r)), i};
    qsort(w->order, (size_t)r, sizeof *w->order, by_size);
    KRON_TRY(svd_alloc(out, m, n, k));
#pragma omp parallel for schedule(dynamic) if ((m + n) * r * k > 100000)
    for (int64_t j = 0; j < k; j++) {
        const double s = w->order[j].s;
        int64_t at = w->order[j].i * r;
        out->s[j] = s;
        combine(w->qa, m, r, w->core + at, s > 0 ? 1 / s : 0, out->u + j, k);
        combine(w->qb, n, r, w->v + at, 1, out->v + j, k);
    }
    return KRON_OK;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

kron_status svd_product(const float *a, const float *b, int64_t m, int64_t r, int64_t n, int64_t k,
                        struct svd *out)
{
    struct work w;

    *out = (struct svd){0};
    kron_status status = work_alloc(&w, m, r, n);
    if (status == KRON_OK)
        status = decompose(&w, a, b, m, r, n, least(k, least(r, least(m, n))), out);
    work_free(&w);
    return status;
}

/* --- whole matrices --- */

/* x[n, p] with orthonormal columns in place of its own. */
static void basis(float *x, int64_t n, int64_t p, double *columns)
{
    for (int64_t j = 0; j < p; j++)
        for (int64_t i = 0; i < n; i++)
            columns[j * n + i] = x[i * p + j];
    orthogonalise(columns, n, p, NULL);
    for (int64_t j = 0; j < p; j++)
        for (int64_t i = 0; i < n; i++)
            x[i * p + j] = (float)columns[j * n + i];
}

static void fill_random(float *x, int64_t n)
{
    uint64_t seed = 1;

    for (int64_t i = 0; i < n; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        x[i] = (float)((double)(seed >> 33) / (double)(UINT64_C(1) << 30) - 1);
    }
}

kron_status svd_dense(const float *a, int64_t m, int64_t n, int64_t k, struct svd *out)
{
    enum { MORE = 10, TURNS = 3 };
    int64_t p = least(k + MORE, least(m, n));
    float *x = NULL, *y = NULL, *b = NULL;
    double *columns = NULL;

    *out = (struct svd){0};
    kron_status status = mem_floats(&x, n * p, "a subspace");
    if (status == KRON_OK)
        status = mem_floats(&y, m * p, "a subspace");
    if (status == KRON_OK)
        status = mem_floats(&b, p * n, "a subspace");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&columns, (size_t)((m > n ? m : n) * p), sizeof *columns,
                             "a subspace");
    if (status == KRON_OK) {
        fill_random(x, n * p);
        for (int turn = 0; turn < TURNS; turn++) {
            mat_mul(a, n, 1, x, m, n, p, y, false);
            basis(y, m, p, columns);
            if (turn + 1 < TURNS) { /* a'y, made as (y'a)' along a's rows */
                mat_mul(y, 1, p, a, p, m, n, b, false);
                for (int64_t j = 0; j < p; j++)
                    for (int64_t i = 0; i < n; i++)
                        x[i * p + j] = b[j * n + i];
                basis(x, n, p, columns);
            }
        }
        mat_mul(y, 1, p, a, p, m, n, b, false);
        status = svd_product(y, b, m, p, n, k, out);
    }
    mem_free(x);
    mem_free(y);
    mem_free(b);
    mem_free(columns);
    return status;
}

/* --- Kronecker products --- */

kron_status svd_kron(const struct svd *w1, const struct svd *w2, int64_t k, struct svd *out)
{
    int64_t n = w1->k * w2->k;
    struct order *order;

    *out = (struct svd){0};
    k = least(k, n);
    KRON_TRY(mem_alloc_n((void **)&order, (size_t)n, sizeof *order, "singular values"));
    for (int64_t i = 0; i < n; i++)
        order[i] = (struct order){w1->s[i / w2->k] * w2->s[i % w2->k], i};
    qsort(order, (size_t)n, sizeof *order, by_size);
    kron_status status = svd_alloc(out, w1->m * w2->m, w1->n * w2->n, k);
    for (int64_t j = 0; j < k && status == KRON_OK; j++) {
        int64_t a = order[j].i / w2->k, b = order[j].i % w2->k;
        out->s[j] = order[j].s;
        for (int64_t i = 0; i < out->m; i++)
            out->u[i * k + j] =
                w1->u[i / w2->m * w1->k + a] * w2->u[i % w2->m * w2->k + b];
        for (int64_t i = 0; i < out->n; i++)
            out->v[i * k + j] =
                w1->v[i / w2->n * w1->k + a] * w2->v[i % w2->n * w2->k + b];
    }
    mem_free(order);
    return status;
}

kron_status kron_nearest(const float *a, int64_t up, int64_t uq, int64_t vp, int64_t m, float *w1,
                         float *w2)
{
    int64_t width = vp * m;
    struct svd d = {0};
    float *r;

    KRON_TRY(mem_floats(&r, up * uq * width, "a rearranged weight"));
    for (int64_t i = 0; i < up * vp; i++)
        for (int64_t l = 0; l < uq; l++)
            memcpy(r + (i / vp * uq + l) * width + i % vp * m, a + (i * uq + l) * m,
                   (size_t)m * sizeof *r);
    kron_status status = svd_dense(r, up * uq, width, 1, &d);
    mem_free(r);
    if (status != KRON_OK)
        return status;
    double root = d.k > 0 ? sqrt(d.s[0]) : 0;
    for (int64_t i = 0; i < up * uq; i++)
        w1[i] = (float)(root * d.u[i]);
    for (int64_t i = 0; i < width; i++)
        w2[i] = (float)(root * d.v[i]);
    svd_free(&d);
    return KRON_OK;
}
