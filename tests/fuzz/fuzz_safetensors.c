/* SPDX-License-Identifier: MIT
 * Any bytes as a safetensors file: views that lie in it and do not touch, or an error. */
#include "file/file.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void check_tensor(const struct st_file *f, const struct tensor *t, const uint8_t *data,
                         size_t size)
{
    const uint8_t *at = t->data;
    float v[16];
    int64_t n = tensor_elements(t);

    check(n >= 0 && t->bytes == dtype_bytes(t->type, n));
    check(at >= data && t->bytes <= size && (size_t)(at - data) <= size - t->bytes);
    check(t->n_dims >= 0 && t->n_dims <= TENSOR_MAX_DIMS);
    check(st_find(f, t->name) == t);
    for (int64_t i = 0; i < n; i += 16)
        tensor_decode(t, i, n - i < 16 ? n - i : 16, v);
}

static void open_and_check(const uint8_t *data, size_t size)
{
    struct st_file *f;

    if (st_open_memory(&f, data, size, "fuzz") != KRON_OK) {
        check(f == NULL && str_starts(kron_error_detail(), "fuzz: "));
        check(strchr(kron_error_detail(), '\n') == NULL);
        return;
    }
    for (int64_t i = 0; i < st_count(f); i++) {
        check_tensor(f, st_at(f, i), data, size);
        if (i > 0)
            check((const uint8_t *)st_at(f, i - 1)->data + st_at(f, i - 1)->bytes <=
                  (const uint8_t *)st_at(f, i)->data);
    }
    for (int64_t i = 0; i < st_meta_count(f); i++) {
        const char *key, *value;
        st_meta_at(f, i, &key, &value);
        check(strcmp(st_meta(f, key), value) == 0);
    }
    st_close(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = calloc(size > 0 ? size : 1, 1);
    size_t header = size;

    check(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    open_and_check(copy, size);
    /* Again with a length that fits: else hardly any changed file would get past it. */
    for (size_t i = 8; i < size; i++)
        if (copy[i] == '}')
            header = i + 1;
    if (size >= 8) {
        for (int i = 0; i < 8; i++)
            copy[i] = (uint8_t)((uint64_t)(header - 8) >> 8 * i);
        open_and_check(copy, size);
    }
    free(copy);
    return 0;
}
