/* SPDX-License-Identifier: MIT
 * Kernels for AVX2, FMA and F16C. */
#include "backend/cpu/kernels.h"
#include <immintrin.h>
#include <math.h>

#define VL 8
#define MR 6
#define CONV_MR 6
#define VFMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define VMAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define VSEL(m, a, b) ((vf)_mm256_blendv_ps((__m256)(b), (__m256)(a), (__m256)(m)))
#include "backend/cpu/simd.h"

/* Each gives VL numbers from packed bytes. */
INLINE vf get_f16(const void *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p));
}

INLINE vi get_i8(const void *p)
{
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
}

INLINE vi get_u8(const void *p)
{
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
}

INLINE vf get_s8(const void *p)
{
    return VFLOATS(get_i8(p));
}

INLINE vf get_bf16(const void *p)
{
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16);
}

INLINE vf get_e5m2(const void *p) /* the upper byte of an f16 */
{
    return (vf)_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(p)), 8));
}

/* As an f16 of the same bits, but the second for the sign, the exponent is 8 too small; all ones
 * in the rest is NaN. */
INLINE vf get_e4m3(const void *p)
{
    __m128i b = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(p)), 7);
    __m128i rest = _mm_and_si128(b, _mm_set1_epi16(0x3f80));
    __m128i nan = _mm_cmpeq_epi16(rest, _mm_set1_epi16(0x3f80));
    __m128i h = _mm_or_si128(_mm_and_si128(b, _mm_set1_epi16((short)0xbf80)), nan);
    return (vf)_mm256_cvtph_ps(h) * 256.0f;
}

#include "backend/cpu/vector_tmpl.h"
#include "backend/cpu/decode_tmpl.h"
#include "backend/cpu/gemm_tmpl.h"
#include "backend/cpu/dots_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/conv_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd_tmpl.h"
#include "backend/cpu/attention_tmpl.h"
#include "backend/cpu/table_tmpl.h"

TABLE(avx2);
