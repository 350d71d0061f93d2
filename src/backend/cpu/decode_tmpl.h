/* SPDX-License-Identifier: MIT
 * Storage types to f32 with the get_ functions of a level; other types and tails go the scalar
 * way, which defines the numbers (tensor/tensor.h). */
#include "backend/cpu/decode_block_tmpl.h"

INLINE vf get_f32(const void *p) /* a file's numbers need not be aligned */
{
    vf v;

    memcpy(&v, p, sizeof v);
    return v;
}

/* Whole vectors of a type of `bytes` bytes a number; x may be NULL. Returns how many were done. */
#define DECODE(type, bytes)                                                            \
    INLINE int64_t decode_##type(const char *src, int64_t n, float *dst, float a,      \
                                 const float *x)                                       \
    {                                                                                  \
        int64_t i = 0;                                                                 \
        for (; i + VL <= n; i += VL) {                                                 \
            vf v = get_##type(src + i * bytes);                                        \
            if (x)                                                                     \
                v = VFMA(vload(x + i), vset(a), v);                                    \
            vstore(dst + i, v);                                                        \
        }                                                                              \
        return i;                                                                      \
    }
DECODE(f32, 4)
DECODE(f16, 2)
DECODE(bf16, 2)
DECODE(e5m2, 1)
DECODE(e4m3, 1)
#undef DECODE

INLINE int64_t decode_whole(enum dtype t, const void *src, int64_t n, float *dst, float a,
                            const float *x)
{
    switch (t) {
    case DT_F32:
        return decode_f32(src, n, dst, a, x);
    case DT_F16:
        return decode_f16(src, n, dst, a, x);
    case DT_BF16:
        return decode_bf16(src, n, dst, a, x);
    case DT_F8_E5M2:
        return decode_e5m2(src, n, dst, a, x);
    case DT_F8_E4M3:
        return decode_e4m3(src, n, dst, a, x);
    default:
        return 0;
    }
}

static void k_decode(enum dtype t, const void *src, int64_t n, float *dst)
{
    const struct dtype_info *info = dtype_info(t);

    if (info->block > 1) {
        decode_blocks(t, src, n, dst);
        return;
    }
    int64_t i = decode_whole(t, src, n, dst, 0, NULL);
    if (i < n)
        info->decode((const char *)src + i * info->bytes, n - i, dst + i);
}

static void k_decode_axpy(enum dtype t, const void *src, int64_t n, float *dst, float a,
                          const float *x)
{
    const struct dtype_info *info = dtype_info(t);
    int64_t i = decode_whole(t, src, n, dst, a, x);

    if (i == n)
        return;
    k_decode(t, (const char *)src + i * info->bytes, n - i, dst + i);
    k_axpy(dst + i, x + i, a, n - i);
}
