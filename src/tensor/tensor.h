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
    /* Blocks of numbers that share scales, in GGML's layouts (docs/types.md). A tensor of such a
     * type is whole blocks; a file may have let them span rows, so rows may begin within one. */
    DT_Q4_0,
    DT_Q4_1,
    DT_Q5_0,
    DT_Q5_1,
    DT_Q8_0,
    DT_Q2_K,
    DT_Q3_K,
    DT_Q4_K,
    DT_Q5_K,
    DT_Q6_K,
    DT_IQ4_NL,
    DT_IQ4_XS,
    DT_MXFP4,
    DT_NVFP4,
    DT_TQ1_0,
    DT_TQ2_0,
    DT_COUNT
};

enum { DTYPE_BLOCK_MOST = 256 }; /* no type has a larger block */

/* Types are blocks: `block` elements in `bytes` bytes; 1 for plain numbers. */
struct dtype_info {
    const char *name; /* as safetensors writes it, "F16", or GGML, "q4_K" */
    int block;
    int bytes;
    /* Writes n elements (a multiple of block) as f32. */
    void (*decode)(const void *src, int64_t n, float *dst);
    /* dtype_encode() of this type; NULL where there is none. */
    void (*encode)(const float *src, int64_t n, void *dst, const float *importance);
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
    int skip; /* numbers of the first block that lie before the tensor's own */
    /* NULL, or factors that the numbers of `data` are still to be multiplied by, each product
     * rounded to f32: one for all (step 0), or one for each of dim[0] rows (step 1). */
    const float *scale;
    int scale_step;
};

int64_t tensor_elements(const struct tensor *t);
/* Bytes of n elements; n must be a multiple of the type's block. */
size_t dtype_bytes(enum dtype t, int64_t n);
/* Elements [at, at + n) as f32, any part of the tensor: blocks that it cuts are decoded whole. */
void tensor_decode(const struct tensor *t, int64_t at, int64_t n, float *dst);
/* The same by a decoder of the caller's: decode(t, src, n, dst) writes whole blocks. */
typedef void (*dtype_decode_fn)(enum dtype t, const void *src, int64_t n, float *dst);
void tensor_decode_by(const struct tensor *t, int64_t at, int64_t n, float *dst,
                      dtype_decode_fn decode);
/* True for the plain types that can be encoded: f64, f32, f16, bf16, f8. */
bool dtype_is_float(enum dtype t);
/* True for types that weights are brought to for their size: f8 and all block types. */
bool dtype_is_quantised(enum dtype t);
/* Writes n numbers in type t: a plain float type or a block type, n a multiple of its block.
 *
 * Plain types: to nearest even; what a type has no number for becomes its infinity or NaN.
 * Block types: with about the least sum of importance[i] error[i]^2 in each block. importance has
 * n numbers >= 0, or is NULL: all alike. NaN becomes 0; infinities, and what is too large for any
 * scale, the largest number that the block can hold. */
void dtype_encode(enum dtype t, const float *src, int64_t n, void *dst, const float *importance);
/* The same without importance. */
void tensor_encode(enum dtype t, const float *src, int64_t n, void *dst);
/* A view of rows [row, row + n) of the first dimension, with their scales: its data begin at the
 * block that holds the first number. */
struct tensor tensor_rows(const struct tensor *t, int64_t row, int64_t n);
/* "[320, 4, 3, 3]" into buf (64 bytes are enough); returns buf. */
const char *tensor_shape_text(const struct tensor *t, char *buf, size_t n);

#endif
