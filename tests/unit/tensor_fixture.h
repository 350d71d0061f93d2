/* SPDX-License-Identifier: MIT
 * Tensors of tests of files: made, and compared in all that a file keeps of them. */
#ifndef UNIT_TENSOR_FIXTURE_H
#define UNIT_TENSOR_FIXTURE_H
#include "tensor/tensor.h"

static inline struct tensor tensor_of(const char *name, enum dtype type, const void *data,
                                      int n_dims, const int64_t *dim)
{
    struct tensor t = {.data = data, .type = type, .n_dims = n_dims,
                       .dim = {1, 1, 1, 1, 1, 1}, .name = name};

    for (int i = 0; i < n_dims; i++)
        t.dim[i] = dim[i];
    t.bytes = dtype_bytes(type, tensor_elements(&t));
    return t;
}

static inline void expect_same(const struct tensor *a, const struct tensor *b)
{
    assert_non_null(a);
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->n_dims, b->n_dims);
    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        assert_int_equal(a->dim[i], b->dim[i]);
    assert_int_equal(a->bytes, b->bytes);
    if (a->bytes > 0)
        assert_memory_equal(a->data, b->data, a->bytes);
    assert_string_equal(a->name, b->name);
}

#endif
