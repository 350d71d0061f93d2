/* SPDX-License-Identifier: MIT
 * Integer products for AVX-512 VNNI. */
#include "backend/cpu/int8.h"
#include <immintrin.h>
#include <math.h>

#define VL 16
#define INT8_TILE 12
#define PAIRS_TILE 12
#define X_MOST 255
#define W_MOST 127
#define VFMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VROUND(v) ((vi)_mm512_cvtps_epi32((__m512)(v)))
#define VMIN(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#include "backend/cpu/simd.h"

INLINE void int8_bytes(uint8_t *to, const vi v[4])
{
    for (int i = 0; i < 4; i++)
        _mm_storeu_si128((__m128i *)(void *)(to + 16 * i), _mm512_cvtepi32_epi8((__m512i)v[i]));
}

INLINE void int8_step(vi (*s)[2], const int rows, const uint8_t *x, int64_t ld, const int8_t *w)
{
#pragma GCC unroll 2
    for (int q = 0; q < 2; q++) {
        __m512i w0 = _mm512_loadu_si512(w + 128 * q), w1 = _mm512_loadu_si512(w + 128 * q + 64);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * ld + 4 * q, sizeof four);
            __m512i a = _mm512_set1_epi32(four);
            s[r][0] = (vi)_mm512_dpbusd_epi32((__m512i)s[r][0], a, w0);
            s[r][1] = (vi)_mm512_dpbusd_epi32((__m512i)s[r][1], a, w1);
        }
    }
}

INLINE void store16(int16_t *to, const vi v[2])
{
    for (int i = 0; i < 2; i++)
        _mm256_storeu_si256((__m256i *)(void *)(to + 16 * i), _mm512_cvtepi32_epi16((__m512i)v[i]));
}

INLINE vi pairs_add(vi s, vi a, vi b)
{
    return (vi)_mm512_dpwssd_epi32((__m512i)s, (__m512i)a, (__m512i)b);
}

#include "backend/cpu/int8_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/attention16_tmpl.h"
#include "backend/cpu/linear16_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd16_tmpl.h"

INT8_TABLE(avx512vnni);
