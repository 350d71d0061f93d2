/* SPDX-License-Identifier: MIT
 * tensor/mat.h - products of plain matrices, for work that is done once for a layer: reports and
 * conversions. What runs at every step belongs to a backend.
 *
 * Matrices are row-major f32 without gaps; threads are OpenMP's. */
#ifndef TENSOR_MAT_H
#define TENSOR_MAT_H
#include "base/base.h"

/* c[m, n] = a b, or with `add` c += a b. Element (i, q) of a is a[i * a_row + q * a_col], so that
 * a transposed matrix needs no copy; b[k, n]. */
void mat_mul(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t m, int64_t k,
             int64_t n, float *c, bool add);
double mat_norm2(const float *a, int64_t n); /* sum of squares */
/* |a b|^2 of a[m, r], b[r, n] by their Gram matrices: the product is not made. */
kron_status mat_product_norm2(const float *a, const float *b, int64_t m, int64_t r, int64_t n,
                              double *out);

#endif
