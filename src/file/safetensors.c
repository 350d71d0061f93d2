/* SPDX-License-Identifier: MIT
 * safetensors (huggingface.co/docs/safetensors): eight bytes of header length, a JSON header, then
 * the data. Read without copying: tensors are views of the mapping. Every number of the header is
 * checked, so that nobody after us has to. */
#include "file/formats.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The reference implementation refuses longer headers. */
static const size_t max_header = 100 * 1000 * 1000;

/* --- one tensor --- */

static kron_status read_shape(const struct st_file *f, const char *name, const json_t *shape,
                              struct tensor *t, size_t *elements)
{
    size_t n = json_array_size(shape);

    if (!json_is_array(shape) || n > TENSOR_MAX_DIMS)
        return st_bad(f, name, "shape is not a list of at most 6 numbers");
    *elements = 1;
    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        t->dim[i] = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(shape, i);
        json_int_t v = json_integer_value(d);
        if (!json_is_integer(d) || v < 0 || !size_mul(*elements, (size_t)v, elements) ||
            *elements > INT64_MAX)
            return st_bad(f, name, "shape holds a number that is negative, too large or no "
                          "integer");
        t->dim[i] = v;
    }
    t->n_dims = (int)n;
    return KRON_OK;
}

static kron_status read_offsets(const struct st_file *f, const char *name, const json_t *offsets,
                                size_t data_bytes, size_t *begin, size_t *end)
{
    const json_t *a = json_array_get(offsets, 0), *b = json_array_get(offsets, 1);

    if (json_array_size(offsets) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return st_bad(f, name, "data_offsets is not a pair of integers");
    if (json_integer_value(a) < 0 || json_integer_value(b) < json_integer_value(a))
        return st_bad(f, name, "data_offsets is not a range");
    *begin = (size_t)json_integer_value(a);
    *end = (size_t)json_integer_value(b);
    if (*end > data_bytes)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s' ends at byte %zu of the data, the "
                       "file has %zu: is it truncated?", f->path, name, *end, data_bytes);
    return KRON_OK;
}

static kron_status read_tensor(struct st_file *f, const char *name, const json_t *j,
                               const uint8_t *data, size_t data_bytes, struct tensor *t)
{
    const char *type = json_string_value(json_object_get(j, "dtype"));
    size_t elements = 0, want, begin = 0, end = 0;

    if (!json_is_object(j) || type == NULL)
        return st_bad(f, name, "header entry has no dtype");
    if (!dtype_from_name(type, &t->type) || dtype_info(t->type)->block != 1)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: tensor '%.200s': unknown dtype '%.40s'", f->path,
                       name, type);
    KRON_TRY(read_shape(f, name, json_object_get(j, "shape"), t, &elements));
    KRON_TRY(read_offsets(f, name, json_object_get(j, "data_offsets"), data_bytes, &begin, &end));
    if (!size_mul(elements, (size_t)dtype_info(t->type)->bytes, &want) || want != end - begin)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s' of %zu %s numbers has %zu bytes of "
                       "data", f->path, name, elements, type, end - begin);
    t->bytes = want;
    t->data = data + begin;
    t->name = arena_strdup(&f->mem, name);
    return f->mem.status;
}

/* --- the header --- */

static kron_status read_meta(struct st_file *f, const json_t *j)
{
    const char *key;
    const json_t *value;

    if (!json_is_object(j))
        return err_set(KRON_ERR_FORMAT, "%s: __metadata__ is not an object", f->path);
    f->meta = arena_alloc(&f->mem, (json_object_size(j) + 1) * sizeof *f->meta);
    if (f->meta == NULL)
        return f->mem.status;
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        if (!json_is_string(value))
            return err_set(KRON_ERR_FORMAT, "%s: __metadata__ '%.200s' is not a string", f->path,
                           key);
        f->meta[f->n_meta].key = arena_strdup(&f->mem, key);
        f->meta[f->n_meta].value = arena_strdup(&f->mem, json_string_value(value));
        f->n_meta++;
    }
    return f->mem.status;
}

/* In order, each tensor begins where the one before it ends, and the last ends the file: bytes of
 * none are a lie about the file. */
static kron_status check_gaps(const struct st_file *f, const uint8_t *data, size_t data_bytes)
{
    size_t at = 0;

    for (int64_t i = 0; i <= f->n; i++) {
        const struct tensor *t = &f->tensors[i];
        size_t begin = i < f->n ? (size_t)((const uint8_t *)t->data - data) : data_bytes;
        if (begin > at)
            return err_set(KRON_ERR_FORMAT, "%s: bytes %zu to %zu of the data belong to no tensor",
                           f->path, at, begin);
        at += i < f->n ? t->bytes : 0;
    }
    return KRON_OK;
}

static kron_status read_entries(struct st_file *f, json_t *header, size_t header_bytes)
{
    const uint8_t *data = f->bytes + 8 + header_bytes;
    size_t data_bytes = f->n_bytes - 8 - header_bytes;
    const char *name;
    json_t *j;

    f->tensors = arena_alloc(&f->mem, (json_object_size(header) + 1) * sizeof *f->tensors);
    if (f->tensors == NULL)
        return f->mem.status;
    json_object_foreach(header, name, j)
    {
        if (strcmp(name, "__metadata__") == 0)
            KRON_TRY(read_meta(f, j));
        else
            KRON_TRY(read_tensor(f, name, j, data, data_bytes, &f->tensors[f->n++]));
    }
    KRON_TRY(st_sort(f));
    KRON_TRY(check_gaps(f, data, data_bytes));
    return st_index(f);
}

kron_status safetensors_read(struct st_file *f)
{
    uint64_t n = 0;
    json_error_t e;

    if (f->n_bytes < 8)
        return err_set(KRON_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", f->path,
                       f->n_bytes);
    for (int i = 0; i < 8; i++)
        n |= (uint64_t)f->bytes[i] << 8 * i;
    if (n > f->n_bytes - 8)
        return err_set(KRON_ERR_FORMAT, "%s: not a file of safetensors, GGUF or torch.save(), or "
                       "truncated: as safetensors its header would have %llu bytes, the file has "
                       "%zu", f->path, (unsigned long long)n, f->n_bytes);
    if (n > max_header)
        return err_set(KRON_ERR_FORMAT, "%s: a header of %llu bytes, expected at most %zu", f->path,
                       (unsigned long long)n, max_header);
    json_t *header = json_loadb((const char *)f->bytes + 8, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (header == NULL)
        return err_set(KRON_ERR_FORMAT, "%s: the safetensors header is not JSON: %s", f->path,
                       e.text);
    kron_status status = json_is_object(header)
                             ? read_entries(f, header, (size_t)n)
                             : err_set(KRON_ERR_FORMAT, "%s: the header is not an object", f->path);
    json_decref(header);
    return status;
}
