/* SPDX-License-Identifier: MIT
 * Integer products for AVX-VNNI. */
#include "backend/cpu/int8.h"
#include <math.h>

#define INT8_TILE 6
#define PAIRS_TILE 6
#define X_MOST 255
#define W_MOST 127
#include "backend/cpu/x86/int8_avx.h"

INLINE void int8_step(vi (*s)[2], const int rows, const uint8_t *x, int64_t ld, const int8_t *w)
{
    const __m256i *v = (const __m256i *)(const void *)w;

#pragma GCC unroll 2
    for (int q = 0; q < 2; q++) {
        __m256i w0 = _mm256_loadu_si256(v + 2 * q), w1 = _mm256_loadu_si256(v + 2 * q + 1);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * ld + 4 * q, sizeof four);
            __m256i a = _mm256_set1_epi32(four);
            s[r][0] = (vi)_mm256_dpbusd_avx_epi32((__m256i)s[r][0], a, w0);
            s[r][1] = (vi)_mm256_dpbusd_avx_epi32((__m256i)s[r][1], a, w1);
        }
    }
}

INLINE vi pairs_add(vi s, vi a, vi b)
{
    return (vi)_mm256_dpwssd_avx_epi32((__m256i)s, (__m256i)a, (__m256i)b);
}

#include "backend/cpu/int8_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/attention16_tmpl.h"
#include "backend/cpu/linear16_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd16_tmpl.h"

INT8_TABLE(avxvnni);
