/* SPDX-License-Identifier: MIT
 * The table of storage types and the decoding that defines each. */
#include "tensor/quant.h"
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

#define ENCODER(name, type, expr)                                                              \
    static void encode_##name(const float *src, int64_t n, void *dst, const float *importance) \
    {                                                                                          \
        unsigned char *p = dst;                                                                \
        (void)importance;                                                                      \
        for (int64_t i = 0; i < n; i++) {                                                      \
            type v = expr(src[i]);                                                             \
            memcpy(p + (size_t)i * sizeof v, &v, sizeof v);                                    \
        }                                                                                      \
    }

ENCODER(f64, double, (double))
ENCODER(f32, float, )
ENCODER(f16, uint16_t, f32_to_f16)
ENCODER(bf16, uint16_t, f32_to_bf16)
ENCODER(e4m3, uint8_t, f32_to_f8_e4m3)
ENCODER(e5m2, uint8_t, f32_to_f8_e5m2)

#define BLOCKS(name, len, size, most)                                                          \
    static void decode_##name(const void *src, int64_t n, float *dst)                          \
    {                                                                                          \
        for (int64_t i = 0; i < n / (len); i++)                                                \
            get_##name((const uint8_t *)src + i * (size), dst + i * (len));                    \
    }                                                                                          \
    static void encode_##name(const float *src, int64_t n, void *dst, const float *importance) \
    {                                                                                          \
        float x[len], w[len];                                                                  \
        for (int64_t i = 0; i < n / (len); i++) {                                              \
            quant_take(src + i * (len), importance ? importance + i * (len) : NULL, len,       \
                       most, x, w);                                                            \
            put_##name(x, w, (uint8_t *)dst + i * (size));                                     \
        }                                                                                      \
    }
QUANT_TYPES(BLOCKS)

#define BLOCK_ROW(name, len, size, most) {#name, len, size, decode_##name, encode_##name},

/* In the order of enum dtype. */
static const struct dtype_info infos[DT_COUNT] = {
    {"F32", 1, 4, decode_f32, encode_f32},
    {"F16", 1, 2, decode_f16, encode_f16},
    {"BF16", 1, 2, decode_bf16, encode_bf16},
    {"F8_E4M3", 1, 1, decode_e4m3, encode_e4m3},
    {"F8_E5M2", 1, 1, decode_e5m2, encode_e5m2},
    {"F64", 1, 8, decode_f64, encode_f64},
    {"I64", 1, 8, decode_i64, NULL},
    {"I32", 1, 4, decode_i32, NULL},
    {"I16", 1, 2, decode_i16, NULL},
    {"I8", 1, 1, decode_i8, NULL},
    {"U8", 1, 1, decode_u8, NULL},
    {"BOOL", 1, 1, decode_u8, NULL},
    QUANT_TYPES(BLOCK_ROW)
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

static void decode_part(const void *data, enum dtype t, int64_t at, int64_t n, float *dst,
                        dtype_decode_fn decode)
{
    int64_t block = infos[t].block, bytes = infos[t].bytes;
    const char *src = (const char *)data + (block == 1 ? at : at / block) * bytes;
    float whole[DTYPE_BLOCK_MOST];

    if (block == 1) {
        decode(t, src, n, dst);
        return;
    }
    if (at % block != 0 && n > 0) { /* the end of a block */
        int64_t cut = at % block, m = block - cut < n ? block - cut : n;
        decode(t, src, block, whole);
        memcpy(dst, whole + cut, (size_t)m * sizeof *dst);
        src += bytes;
        dst += m;
        n -= m;
    }
    int64_t full = n / block * block;
    if (full > 0)
        decode(t, src, full, dst);
    if (full < n) { /* the beginning of one */
        decode(t, src + full / block * bytes, block, whole);
        memcpy(dst + full, whole, (size_t)(n - full) * sizeof *dst);
    }
}

/* dst are elements [at, at + n). */
static void apply_scale(const struct tensor *t, int64_t at, int64_t n, float *dst)
{
    int64_t width = t->scale_step > 0 ? tensor_elements(t) / t->dim[0] : at + n;

    while (n > 0) {
        int64_t row = at / width, m = (row + 1) * width - at < n ? (row + 1) * width - at : n;
        float s = t->scale[row * t->scale_step];
        for (int64_t i = 0; i < m; i++)
            dst[i] *= s;
        at += m;
        dst += m;
        n -= m;
    }
}

void tensor_decode_by(const struct tensor *t, int64_t at, int64_t n, float *dst,
                      dtype_decode_fn decode)
{
    decode_part(t->data, t->type, t->skip + at, n, dst, decode);
    if (t->scale != NULL)
        apply_scale(t, at, n, dst);
}

static void decode_scalar(enum dtype t, const void *src, int64_t n, float *dst)
{
    infos[t].decode(src, n, dst);
}

void tensor_decode(const struct tensor *t, int64_t at, int64_t n, float *dst)
{
    tensor_decode_by(t, at, n, dst, decode_scalar);
}

bool dtype_is_float(enum dtype t)
{
    return infos[t].encode != NULL && infos[t].block == 1;
}

bool dtype_is_quantised(enum dtype t)
{
    return infos[t].block > 1 || (dtype_is_float(t) && infos[t].bytes == 1);
}

void dtype_encode(enum dtype t, const float *src, int64_t n, void *dst, const float *importance)
{
    KRON_ASSERT(infos[t].encode != NULL && n % infos[t].block == 0);
    infos[t].encode(src, n, dst, importance);
}

void tensor_encode(enum dtype t, const float *src, int64_t n, void *dst)
{
    dtype_encode(t, src, n, dst, NULL);
}

struct tensor tensor_rows(const struct tensor *t, int64_t row, int64_t n)
{
    struct tensor v = *t;
    int64_t width = t->dim[0] > 0 ? tensor_elements(t) / t->dim[0] : 0;
    int64_t block = infos[t->type].block, first = t->skip + row * width;

    KRON_ASSERT(row >= 0 && n >= 0 && row + n <= t->dim[0]);
    v.data = (const char *)t->data + dtype_bytes(t->type, first);
    v.skip = (int)(first % block);
    v.bytes = n > 0 ? dtype_bytes(t->type, v.skip + n * width + block - 1) : 0;
    v.dim[0] = n;
    if (v.scale != NULL)
        v.scale += row * v.scale_step;
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
