/* SPDX-License-Identifier: MIT
 * The kernels in plain C (vectors of 4, which every compiler target has or splits), and the
 * choice of a level. */
#include "backend/cpu/kernels.h"
#include <math.h>
#include <stdlib.h>

#define VL 4
#define MR 6
#define CONV_MR 6
#include "backend/cpu/simd.h"
#include "backend/cpu/vector_tmpl.h"
#include "backend/cpu/gemm_tmpl.h"
#include "backend/cpu/dots_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/conv_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd_tmpl.h"
#include "backend/cpu/attention_tmpl.h"
#include "backend/cpu/table_tmpl.h"

static void k_decode(enum dtype t, const void *src, int64_t n, float *dst)
{
    dtype_info(t)->decode(src, n, dst);
}

static void k_decode_axpy(enum dtype t, const void *src, int64_t n, float *dst, float a,
                          const float *x)
{
    dtype_info(t)->decode(src, n, dst);
    k_axpy(dst, x, a, n);
}

TABLE(c);

int64_t attention_floats(int64_t d)
{
    int64_t dp = (d + 15) / 16 * 16, width = attention_keys(d), q = attention_queries(d);

    return (q + width) * (d + dp) + ATTENTION_ROWS * width + 2 * q;
}

#ifdef KRON_X86
bool cpu_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

bool cpu_has_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const struct cpu_kernels *cpu_kernels_best(void)
{
#ifdef KRON_X86
    const char *mask = getenv("KRON_CPU_MASK");
    bool none = mask != NULL && strcmp(mask, "none") == 0;
    bool avx2 = mask != NULL && (strcmp(mask, "avx2") == 0 || strcmp(mask, "avxvnni") == 0);

    if (!none && !avx2 && cpu_has_avx512())
        return &cpu_kernels_avx512;
    if (!none && cpu_has_avx2())
        return &cpu_kernels_avx2;
#endif
    return &cpu_kernels_c;
}
