/* SPDX-License-Identifier: MIT
 * tensor/ - storage types, shapes, and the scalar decoding that defines each type.
 * A tensor here is a typed view of memory that somebody else owns. */
#ifndef TENSOR_TENSOR_H
#define TENSOR_TENSOR_H
#include "base/base.h"

enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_F8_E4M3,
    DT_F8_E5M2,
    DT_F64,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U8,
    DT_BOOL,
    DT_COUNT
};

/* Types are blocks: `block` elements in `bytes` bytes (1 for plain numbers), so that quantised
 * formats are one more row of the table. */
struct dtype_info {
    const char *name; /* as safetensors writes it: "F16" */
    int block;
    int bytes;
    /* Writes n elements (a multiple of block) as f32. */
    void (*decode)(const void *src, int64_t n, float *dst);
};
const struct dtype_info *dtype_info(enum dtype t);
bool dtype_from_name(const char *name, enum dtype *out);

enum { TENSOR_MAX_DIMS = 6 };

struct tensor {
    const void *data; /* NULL: no tensor (an absent bias, say) */
    size_t bytes;
    enum dtype type;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS]; /* row-major: the last varies fastest; past n_dims 1 */
    const char *name;             /* as in its file; for messages; never NULL where data is not */
};

int64_t tensor_elements(const struct tensor *t);
/* Bytes of n elements; n must be a multiple of the type's block. */
size_t dtype_bytes(enum dtype t, int64_t n);
/* Elements [at, at + n) as f32; at and n multiples of the type's block. */
void tensor_decode(const struct tensor *t, int64_t at, int64_t n, float *dst);
/* True for the types that tensor_encode() writes: f64, f32, f16, bf16, f8. */
bool dtype_is_float(enum dtype t);
/* Writes n numbers in type t, to nearest even. What a type has no number for becomes its infinity
 * or NaN. */
void tensor_encode(enum dtype t, const float *src, int64_t n, void *dst);
/* A view of rows [row, row + n) of the first dimension. */
struct tensor tensor_rows(const struct tensor *t, int64_t row, int64_t n);
/* "[320, 4, 3, 3]" into buf (64 bytes are enough); returns buf. */
const char *tensor_shape_text(const struct tensor *t, char *buf, size_t n);

#endif
