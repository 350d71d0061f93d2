/* SPDX-License-Identifier: MIT
 * oneDNN's matrix product. */
#include "backend/cpu/onednn.h"
#include <dnnl.h>

void onednn_gemm(bool b_rows, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    dnnl_status_t s = dnnl_sgemm('N', b_rows ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c,
                                 ldc);

    KRON_ASSERT(s == dnnl_success); /* it fails for wrong arguments only */
}
