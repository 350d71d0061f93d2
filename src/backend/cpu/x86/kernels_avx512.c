/* SPDX-License-Identifier: MIT
 * Kernels for AVX-512 F, BW, VL and DQ. */
#include "backend/cpu/kernels.h"
#include <immintrin.h>
#include <math.h>

#define VL 16
#define MR 12
#define CONV_MR 8
#define VFMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VSEL(m, a, b) \
    ((vf)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)(m)), (__m512)(b), (__m512)(a)))
#include "backend/cpu/simd.h"

/* Each gives VL numbers from packed bytes. */
INLINE vf get_f16(const void *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
}

INLINE vi get_i8(const void *p)
{
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(p));
}

INLINE vi get_u8(const void *p)
{
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
}

INLINE vf get_s8(const void *p)
{
    return VFLOATS(get_i8(p));
}

INLINE vf get_bf16(const void *p)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
}

INLINE vf get_e5m2(const void *p) /* the upper byte of an f16 */
{
    return (vf)_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(p)), 8));
}

/* As an f16 of the same bits, but the second for the sign, the exponent is 8 too small; all ones
 * in the rest is NaN. */
INLINE vf get_e4m3(const void *p)
{
    __m256i b = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(p)), 7);
    __m256i rest = _mm256_and_si256(b, _mm256_set1_epi16(0x3f80));
    __m256i nan = _mm256_cmpeq_epi16(rest, _mm256_set1_epi16(0x3f80));
    __m256i h = _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi16((short)0xbf80)), nan);
    return (vf)_mm512_cvtph_ps(h) * 256.0f;
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

TABLE(avx512);
