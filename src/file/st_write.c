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

/* Eight bytes of length, the header, and blanks to where data begin: a multiple of 8. */
static kron_status put_header(struct file_writer *w, const char *text)
{
    size_t len = strlen(text), pad = (8 - len % 8) % 8;
    uint64_t n = len + pad;
    char length[8];

    for (int i = 0; i < 8; i++)
        length[i] = (char)(n >> 8 * i & 255);
    KRON_TRY(writer_put(w, length, 8));
    KRON_TRY(writer_put(w, text, len));
    return writer_put(w, "        ", pad);
}

kron_status st_write_header(struct file_writer *w, const char *path, const struct tensor *tensors,
                            int64_t n, const char *const *meta_key_value, int64_t n_meta)
{
    memset(w, 0, sizeof *w);
    for (int64_t i = 0; i < n; i++)
        if (dtype_info(tensors[i].type)->block != 1)
            return err_set(KRON_ERR_UNSUPPORTED, "%s: tensor '%.200s': safetensors has no type %s",
                           path, tensors[i].name, dtype_info(tensors[i].type)->name);
    char *text = header_text(tensors, n, meta_key_value, n_meta);

    if (text == NULL)
        return err_set(KRON_ERR_ARGUMENT, "%s: cannot write the header: names must be UTF-8 and "
                       "differ", path);
    kron_status status = writer_open(w, path);
    if (status == KRON_OK)
        status = put_header(w, text);
    free(text);
    if (status != KRON_OK)
        writer_fini(w);
    return status;
}

kron_status st_write(const char *path, const struct tensor *tensors, int64_t n,
                     const char *const *meta_key_value, int64_t n_meta)
{
    struct file_writer w;
    kron_status status = st_write_header(&w, path, tensors, n, meta_key_value, n_meta);

    for (int64_t i = 0; i < n && status == KRON_OK; i++)
        if (tensors[i].bytes > 0)
            status = writer_put(&w, tensors[i].data, tensors[i].bytes);
    if (status == KRON_OK)
        status = writer_commit(&w);
    writer_fini(&w);
    return status;
}
