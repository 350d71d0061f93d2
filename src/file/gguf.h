/* SPDX-License-Identifier: MIT
 * What the reader and the writer of GGUF share. */
#ifndef FILE_GGUF_H
#define FILE_GGUF_H
#include "file/formats.h"

enum gguf_value {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_COUNT
};

enum { GGUF_VERSION = 3, GGUF_ALIGNMENT = 32 };

/* ComfyUI-GGUF's key for the shape of a tensor whose rows are no whole number of blocks: the file
 * holds its numbers in another shape. An array of integers, row-major as ours. */
#define GGUF_SHAPE_KEY "comfy.gguf.orig_shape."

/* ggml's number of a storage type, and back; false for one that the other side does not have. */
bool gguf_type(uint32_t number, enum dtype *out);
bool gguf_type_number(enum dtype type, uint32_t *out);

#endif
