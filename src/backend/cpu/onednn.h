/* SPDX-License-Identifier: MIT
 * backend/cpu/onednn.h - what this backend uses of oneDNN: its matrix product, whose C interface
 * is the same in 2.x and 3.x. Only onednn.c includes the library's headers.
 *
 * oneDNN runs on OpenMP threads, as many as omp_get_max_threads() says; on one inside a parallel
 * region. */
#ifndef BACKEND_CPU_ONEDNN_H
#define BACKEND_CPU_ONEDNN_H
#include "base/base.h"

/* c[m, n] = alpha a b + beta c, row-major. a is [m, k]; b is [k, n], or [n, k] with b_rows. */
void onednn_gemm(bool b_rows, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

#endif
