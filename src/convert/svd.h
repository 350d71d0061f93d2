/* SPDX-License-Identifier: MIT
 * convert/svd.h - singular values and the nearest Kronecker product: what changing an adapter's
 * form needs. Matrices are row-major f32; orthogonal bases and small decompositions are made in
 * double. */
#ifndef CONVERT_SVD_H
#define CONVERT_SVD_H
#include "base/base.h"

/* The k largest singular values and their vectors: A ~ u diag(s) v'. */
struct svd {
    int64_t m, n, k; /* k may be less than asked for: never more than min(m, n) */
    float *u, *v;    /* u[m, k], v[n, k] */
    double *s;       /* falling */
};
void svd_free(struct svd *d); /* {0} is fine */
/* Of a b, with a[m, r] and b[r, n]: exact, at the cost of the factors, not of the product. */
kron_status svd_product(const float *a, const float *b, int64_t m, int64_t r, int64_t n, int64_t k,
                        struct svd *out);
/* Of a whole a[m, n], by subspace iteration from a random start (Halko, Martinsson and Tropp
 * 2011) with more columns than asked for; exact where these span the smaller side. */
kron_status svd_dense(const float *a, int64_t m, int64_t n, int64_t k, struct svd *out);
/* Of kron(W1, W2) from the decompositions of both: products of singular values, sorted. */
kron_status svd_kron(const struct svd *w1, const struct svd *w2, int64_t k, struct svd *out);

/* w1[up, uq] and w2[vp, m] whose Kronecker product is nearest to a[up*vp, uq*m]: the largest
 * singular pair of a, rearranged so that every block of it is a row (Van Loan and Pitsianis 1993).
 * Exact where `a` is such a product. */
kron_status kron_nearest(const float *a, int64_t up, int64_t uq, int64_t vp, int64_t m, float *w1,
                         float *w2);

#endif
