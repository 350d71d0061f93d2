/* SPDX-License-Identifier: MIT
 * What integer products in vectors of 256 bits share, with VNNI and without; included by one file
 * for each, in place of simd.h. */
#include <immintrin.h>

#define VL 8
#define VFMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define VMAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VROUND(v) ((vi)_mm256_cvtps_epi32((__m256)(v)))
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

INLINE void store16(int16_t *to, const vi v[2])
{
    __m256i a = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]);

    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute4x64_epi64(a, 0xd8));
}
