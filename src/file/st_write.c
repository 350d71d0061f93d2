/* SPDX-License-Identifier: MIT
 * Writing safetensors. */
#include "file/file.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static json_t *entry(const struct tensor *t, size_t at)
{
    json_t *shape = json_array();

    for (int i = 0; i < t->n_dims; i++)
        json_array_append_new(shape, json_integer(t->dim[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_info(t->type)->name, "shape", shape,
                     "data_offsets", (json_int_t)at, (json_int_t)(at + t->bytes));
}

static char *header_text(const struct tensor *tensors, int64_t n, const char *const *meta,
                         int64_t n_meta)
{
    json_t *header = json_object(), *m = json_object();
    size_t at = 0;
    char *text = NULL;

    for (int64_t i = 0; i < n_meta; i++)
        json_object_set_new(m, meta[2 * i], json_string(meta[2 * i + 1]));
    bool whole = (int64_t)json_object_size(m) == n_meta;
    if (n_meta > 0)
        json_object_set(header, "__metadata__", m);
    json_decref(m);
    for (int64_t i = 0; i < n; at += tensors[i].bytes, i++)
        json_object_set_new(header, tensors[i].name, entry(&tensors[i], at));
    /* A name given twice, or not UTF-8, would leave its data without an entry. */
    if (whole && (int64_t)json_object_size(header) == n + (n_meta > 0))
        text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    return text;
}

static void add_length(struct str *out, uint64_t n)
{
    char b[8];

    for (int i = 0; i < 8; i++)
        b[i] = (char)(n >> 8 * i & 255);
    str_add_n(out, b, 8);
}

kron_status st_write(const char *path, const struct tensor *tensors, int64_t n,
                     const char *const *meta_key_value, int64_t n_meta)
{
    struct str out = {0};
    char *text = header_text(tensors, n, meta_key_value, n_meta);

    if (text == NULL)
        return err_set(KRON_ERR_ARGUMENT, "%s: cannot write the header: names must be UTF-8 and "
                       "differ", path);
    size_t pad = (8 - strlen(text) % 8) % 8; /* data begins at a multiple of 8 */
    add_length(&out, strlen(text) + pad);
    str_add(&out, text);
    str_add_n(&out, "        ", pad);
    free(text);
    for (int64_t i = 0; i < n; i++)
        if (tensors[i].bytes > 0)
            str_add_n(&out, tensors[i].data, tensors[i].bytes);
    kron_status status = out.status;
    if (status == KRON_OK)
        status = file_write(path, out.s, out.len);
    str_free(&out);
    return status;
}
