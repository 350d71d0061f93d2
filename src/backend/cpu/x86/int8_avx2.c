/* SPDX-License-Identifier: MIT
 * Integer products for AVX2 alone: 7 bits (int8.h). 127 * 64 * 4 still fits 16 bits, so two sums
 * of pairs are added there and widened once. */
#include "backend/cpu/int8.h"
#include <math.h>

#define INT8_TILE 4
#define PAIRS_TILE 6
#define X_MOST 127
#define W_MOST 64
#include "backend/cpu/x86/int8_avx.h"

INLINE __m256i four(const uint8_t *p)
{
    int32_t v;

    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

INLINE void int8_step(vi (*s)[2], const int rows, const uint8_t *x, int64_t ld, const int8_t *w)
{
    const __m256i *v = (const __m256i *)(const void *)w, one = _mm256_set1_epi16(1);

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        __m256i x0 = four(x + r * ld), x1 = four(x + r * ld + 4);
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            __m256i a = _mm256_maddubs_epi16(x0, _mm256_loadu_si256(v + j));
            __m256i b = _mm256_maddubs_epi16(x1, _mm256_loadu_si256(v + 2 + j));
            s[r][j] += (vi)_mm256_madd_epi16(_mm256_add_epi16(a, b), one);
        }
    }
}

INLINE vi pairs_add(vi s, vi a, vi b)
{
    return s + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#include "backend/cpu/int8_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/attention16_tmpl.h"
#include "backend/cpu/linear16_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd16_tmpl.h"

INT8_TABLE(avx2);
