/* SPDX-License-Identifier: MIT
 * The table of storage types and the decoding that defines each. */
#include "tensor/tensor.h"
#include <string.h>

#define DECODER(name, type, expr)                                   \
    static void decode_##name(const void *src, int64_t n, float *dst) \
    {                                                               \
        const unsigned char *p = src;                               \
        for (int64_t i = 0; i < n; i++) {                           \
            type v;                                                 \
            memcpy(&v, p + (size_t)i * sizeof v, sizeof v);         \
            dst[i] = expr;                                          \
        }                                                           \
    }

DECODER(f32, float, v)
DECODER(f16, uint16_t, f16_to_f32(v))
DECODER(bf16, uint16_t, bf16_to_f32(v))
DECODER(e4m3, uint8_t, f8_e4m3_to_f32(v))
DECODER(e5m2, uint8_t, f8_e5m2_to_f32(v))
DECODER(f64, double, (float)v)
DECODER(i64, int64_t, (float)v)
DECODER(i32, int32_t, (float)v)
DECODER(i16, int16_t, (float)v)
DECODER(i8, int8_t, (float)v)
DECODER(u8, uint8_t, (float)v)

static const struct dtype_info infos[DT_COUNT] = {
    [DT_F32] = {"F32", 1, 4, decode_f32},        [DT_F16] = {"F16", 1, 2, decode_f16},
    [DT_BF16] = {"BF16", 1, 2, decode_bf16},     [DT_F8_E4M3] = {"F8_E4M3", 1, 1, decode_e4m3},
    [DT_F8_E5M2] = {"F8_E5M2", 1, 1, decode_e5m2}, [DT_F64] = {"F64", 1, 8, decode_f64},
    [DT_I64] = {"I64", 1, 8, decode_i64},        [DT_I32] = {"I32", 1, 4, decode_i32},
    [DT_I16] = {"I16", 1, 2, decode_i16},        [DT_I8] = {"I8", 1, 1, decode_i8},
    [DT_U8] = {"U8", 1, 1, decode_u8},           [DT_BOOL] = {"BOOL", 1, 1, decode_u8},
};

const struct dtype_info *dtype_info(enum dtype t)
{
    return &infos[t];
}

bool dtype_from_name(const char *name, enum dtype *out)
{
    for (int t = 0; t < DT_COUNT; t++)
        if (strcmp(infos[t].name, name) == 0) {
            *out = (enum dtype)t;
            return true;
        }
    return false;
}

int64_t tensor_elements(const struct tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->n_dims; i++)
        n *= t->dim[i];
    return n;
}

size_t dtype_bytes(enum dtype t, int64_t n)
{
    return (size_t)(n / infos[t].block) * (size_t)infos[t].bytes;
}

void tensor_decode(const struct tensor *t, int64_t at, int64_t n, float *dst)
{
    infos[t->type].decode((const char *)t->data + dtype_bytes(t->type, at), n, dst);
}

bool dtype_is_float(enum dtype t)
{
    return t == DT_F64 || t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F8_E4M3 ||
           t == DT_F8_E5M2;
}

void tensor_encode(enum dtype t, const float *src, int64_t n, void *dst)
{
    double *f64 = dst;
    uint16_t *half = dst;
    uint8_t *f8 = dst;

    KRON_ASSERT(dtype_is_float(t));
    if (t == DT_F32)
        memcpy(dst, src, (size_t)n * sizeof *src);
    for (int64_t i = 0; t == DT_F64 && i < n; i++)
        f64[i] = src[i];
    for (int64_t i = 0; t == DT_F16 && i < n; i++)
        half[i] = f32_to_f16(src[i]);
    for (int64_t i = 0; t == DT_BF16 && i < n; i++)
        half[i] = f32_to_bf16(src[i]);
    for (int64_t i = 0; t == DT_F8_E4M3 && i < n; i++)
        f8[i] = f32_to_f8_e4m3(src[i]);
    for (int64_t i = 0; t == DT_F8_E5M2 && i < n; i++)
        f8[i] = f32_to_f8_e5m2(src[i]);
}

struct tensor tensor_rows(const struct tensor *t, int64_t row, int64_t n)
{
    struct tensor v = *t;
    int64_t width = t->dim[0] > 0 ? tensor_elements(t) / t->dim[0] : 0;

    KRON_ASSERT(row >= 0 && n >= 0 && row + n <= t->dim[0]);
    v.data = (const char *)t->data + dtype_bytes(t->type, row * width);
    v.bytes = dtype_bytes(t->type, n * width);
    v.dim[0] = n;
    return v;
}

const char *tensor_shape_text(const struct tensor *t, char *buf, size_t n)
{
    size_t at = 0;

    buf[0] = '\0';
    for (int i = 0; i < t->n_dims && at < n; i++) {
        int put = snprintf(buf + at, n - at, "%s%lld", i ? ", " : "[", (long long)t->dim[i]);
        at += put > 0 ? (size_t)put : 0;
    }
    if (at < n)
        snprintf(buf + at, n - at, t->n_dims ? "]" : "[]");
    return buf;
}
