/* SPDX-License-Identifier: MIT
 * Integer products for AVX2 alone: 7 bits (int8.h). 127 * 64 * 4 still fits 16 bits, so two sums
 * of pairs are added there and widened once. */
#include "backend/cpu/int8.h"
#include <immintrin.h>
#include <math.h>

#define VL 8
#define INT8_TILE 4
#define X_MOST 127
#define W_MOST 64
#define VFMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define VMAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#include "backend/cpu/simd.h"

/* The low bytes of 32 numbers, in order. */
INLINE void int8_bytes(uint8_t *to, const vi v[4])
{
    const __m256i low = _mm256_set1_epi32(255);
    __m256i a = _mm256_packus_epi32(_mm256_and_si256((__m256i)v[0], low),
                                    _mm256_and_si256((__m256i)v[1], low));
    __m256i b = _mm256_packus_epi32(_mm256_and_si256((__m256i)v[2], low),
                                    _mm256_and_si256((__m256i)v[3], low));
    __m256i c = _mm256_packus_epi16(a, b); /* quads 0 2 4 6, 1 3 5 7 */

    c = _mm256_permutevar8x32_epi32(c, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)to, c);
}

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

#include "backend/cpu/int8_tmpl.h"

INT8_TABLE(avx2);
