/* SPDX-License-Identifier: MIT
 * Decoding at every level of instructions gives the bits that tensor/ defines. */
#include "backend/cpu/kernels.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1024, MOST_BYTES = 8 * N };

static const struct cpu_kernels *levels[3];
static int n_levels;

static int find_levels(void **state)
{
    (void)state;
    levels[n_levels++] = &cpu_kernels_c;
#ifdef KRON_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        levels[n_levels++] = &cpu_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        levels[n_levels++] = &cpu_kernels_avx512;
#endif
    return 0;
}

/* Any bits, scales too: infinities, subnormals and NaN. */
static void random_bytes(uint32_t seed, unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (unsigned char)(seed >> 24);
    }
}

/* NaN is NaN, and a product with 0 may have either sign. */
static bool same(float a, float b)
{
    return a == b || (isnan(a) && isnan(b));
}

static void check(const struct cpu_kernels *k, enum dtype t, int64_t n, const void *src,
                  const float *x)
{
    float want[N], *got = malloc((size_t)n * sizeof *got); /* ends where it ends */

    assert_true(got != NULL || n == 0);
    dtype_info(t)->decode(src, n, want);
    k->decode(t, src, n, got);
    for (int64_t i = 0; i < n; i++)
        if (!same(got[i], want[i]))
            fail_msg("%s, %s: number %d of %d is %.9g, not %.9g", k->name, dtype_info(t)->name,
                     (int)i, (int)n, (double)got[i], (double)want[i]);
    k->decode_axpy(t, src, n, got, 0.5f, x); /* one or two roundings */
    for (int64_t i = 0; i < n; i++) {
        double sum = (double)want[i] + 0.5 * (double)x[i];
        double bound = 0x1p-23 * fabs(sum) + 0x1p-140;
        if (isfinite(want[i]) && !(fabs((double)got[i] - sum) <= bound))
            fail_msg("%s, %s + a x: number %d of %d is %.9g, not %.9g", k->name,
                     dtype_info(t)->name, (int)i, (int)n, (double)got[i], sum);
    }
    free(got);
}

static void every_level_decodes_alike(void **state)
{
    static float x[N];
    unsigned char memory[MOST_BYTES];

    (void)state;
    for (int i = 0; i < N; i++)
        x[i] = (float)(i % 37) - 18;
    for (int l = 0; l < n_levels; l++)
        for (int t = 0; t < DT_COUNT; t++)
            for (uint32_t seed = 0; seed < 40; seed++) {
                const struct dtype_info *info = dtype_info((enum dtype)t);
                int64_t n = (int64_t)(seed * 61 % N) / info->block * info->block;
                size_t bytes = dtype_bytes((enum dtype)t, n);
                unsigned char *src = malloc(bytes + 1); /* at an odd address, and no more */
                assert_non_null(src);
                random_bytes(seed, memory, bytes);
                memcpy(src + 1, memory, bytes);
                check(levels[l], (enum dtype)t, n, src + 1, x);
                free(src);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_level_decodes_alike)};

    return cmocka_run_group_tests(tests, find_levels, NULL);
}
