/* SPDX-License-Identifier: MIT
 * What must hold of any bytes opened as a file of tensors: an error that names the file in one
 * line, or tensors whose numbers can all be read. */
#ifndef FUZZ_TENSOR_CHECKS_H
#define FUZZ_TENSOR_CHECKS_H
#include "file/file.h"
#include <stdlib.h>
#include <string.h>

static void check(bool holds)
{
    if (!holds)
        abort();
}

static inline void check_tensor(const struct st_file *f, const struct tensor *t)
{
    float v[DTYPE_BLOCK_MOST];
    int64_t n = tensor_elements(t), step = dtype_info(t->type)->block;

    check(n >= 0 && n % step == 0 && t->bytes == dtype_bytes(t->type, n));
    check(t->n_dims >= 0 && t->n_dims <= TENSOR_MAX_DIMS);
    check(st_find(f, t->name) == t);
    for (int64_t i = 0; i < n; i += step)
        tensor_decode(t, i, step, v);
    for (int64_t r = 0; n > 0 && t->n_dims > 0 && r < t->dim[0]; r++) { /* may begin in a block */
        struct tensor row = tensor_rows(t, r, 1);
        int64_t width = tensor_elements(&row), m = width < step ? width : step;
        check((const char *)row.data + row.bytes <= (const char *)t->data + t->bytes);
        tensor_decode(&row, 0, m, v);
        tensor_decode(&row, width - m, m, v);
    }
}

/* `views`: those tensors that lie in the data do so one after the other. */
static inline void open_and_check(const uint8_t *data, size_t size, bool views)
{
    const uint8_t *end = data;
    struct st_file *f;

    if (st_open_memory(&f, data, size, "fuzz") != KRON_OK) {
        check(f == NULL && str_starts(kron_error_detail(), "fuzz: "));
        check(strchr(kron_error_detail(), '\n') == NULL);
        return;
    }
    for (int64_t i = 0; i < st_count(f); i++) {
        const struct tensor *t = st_at(f, i);
        check_tensor(f, t);
        if (!views || (const uint8_t *)t->data < data || (const uint8_t *)t->data > data + size)
            continue;
        check((const uint8_t *)t->data >= end);
        end = (const uint8_t *)t->data + t->bytes;
        check(end <= data + size);
    }
    for (int64_t i = 0; i < st_meta_count(f); i++) {
        const char *key, *value;
        st_meta_at(f, i, &key, &value);
        check(strcmp(st_meta(f, key), value) == 0);
    }
    st_close(&f);
}

/* A copy of exactly size bytes, so that a sanitizer sees a read past its end; free() it. */
static inline uint8_t *copy_of(const void *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);

    check(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

#endif
