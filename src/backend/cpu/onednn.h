/* SPDX-License-Identifier: MIT
 * backend/cpu/onednn.h - what this backend uses of oneDNN, whose 2.x and 3.x interfaces differ:
 * onednn.c is the only file that knows either.
 *
 * oneDNN runs on OpenMP threads: as many as omp_get_max_threads() says, when a primitive is made
 * and when it runs; one inside a parallel region. */
#ifndef BACKEND_CPU_ONEDNN_H
#define BACKEND_CPU_ONEDNN_H
#include "base/base.h"

/* c[m, n] = alpha a b + beta c, row-major. a is [m, k]; b is [k, n], or [n, k] with b_rows. */
void onednn_gemm(bool b_rows, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Engine and stream. One for each plan: a plan runs on one thread at a time. */
struct onednn;
kron_status onednn_open(struct onednn **out);
void onednn_close(struct onednn **d);

struct conv_shape {
    int64_t n, ih, iw, ic, oh, ow, oc;
    int kh, kw, stride, pad_top, pad_left, pad_bottom, pad_right;
    bool bias; /* adds bias[oc] */
    bool sum;  /* adds to what y holds */
};

/* A prepared convolution: x[n, ih, iw, ic], y[n, oh, ow, oc] dense NHWC, weights in a layout that
 * the library chose: element (o, c), c = (i * kh + h) * kw + w, is at float row[o] + col[c]. */
struct onednn_conv {
    struct conv_shape shape;
    int32_t *row, *col; /* oc and ic * kh * kw numbers; oc rounded up to 8 in row */
    bool runs_of_8;     /* row[o .. o + 8) is consecutive for every o that divides by 8 */
    bool padded;        /* the layout has floats that are no weight: they must be zero */
    size_t weight_bytes, scratch_bytes;
    struct onednn_prim *prim;
};
kron_status onednn_conv_create(struct onednn *d, const struct conv_shape *s,
                               struct onednn_conv **out);
void onednn_conv_free(struct onednn_conv **c);
/* KRON_ERR_DEVICE if the library fails. bias: NULL without shape.bias. */
kron_status onednn_conv_run(struct onednn *d, const struct onednn_conv *c, const float *x,
                            const float *w, const float *bias, float *y, void *scratch);

#endif
