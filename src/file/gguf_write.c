/* SPDX-License-Identifier: MIT
 * Writing GGUF, version 3. */
#include "file/gguf.h"
#include <string.h>

static void put_number(struct str *out, int bytes, uint64_t v)
{
    for (int i = 0; i < bytes; i++) {
        char c = (char)(v >> 8 * i & 255);
        str_add_n(out, &c, 1);
    }
}

static void put_string(struct str *out, const char *s)
{
    put_number(out, 8, strlen(s));
    str_add(out, s);
}

/* --- metadata --- */

static const char *find_value(const char *const *meta, int64_t n_meta, const char *key)
{
    for (int64_t i = 0; i < n_meta; i++)
        if (strcmp(meta[2 * i], key) == 0)
            return meta[2 * i + 1];
    return NULL;
}

/* Whether the numbers of t's last axis are no whole blocks, so that they are written in other rows,
 * and its shape beside them. */
static bool is_flat(const struct tensor *t)
{
    return t->n_dims > 1 && t->dim[t->n_dims - 1] % dtype_info(t->type)->block != 0;
}

static void put_shape(struct str *out, const struct tensor *t)
{
    put_number(out, 8, strlen(GGUF_SHAPE_KEY) + strlen(t->name));
    str_add(out, GGUF_SHAPE_KEY);
    str_add(out, t->name);
    put_number(out, 4, GGUF_ARRAY);
    put_number(out, 4, GGUF_I32);
    put_number(out, 8, (uint64_t)t->n_dims);
    for (int i = 0; i < t->n_dims; i++)
        put_number(out, 4, (uint64_t)t->dim[i]);
}

static void put_metas(struct str *out, const struct tensor *tensors, int64_t n,
                      const char *const *meta, int64_t n_meta)
{
    for (int64_t i = 0; i < n_meta; i++) {
        put_string(out, meta[2 * i]);
        put_number(out, 4, GGUF_STRING);
        put_string(out, meta[2 * i + 1]);
    }
    for (int64_t i = 0; i < n; i++)
        if (is_flat(&tensors[i]))
            put_shape(out, &tensors[i]);
}

/* --- tensors --- */

/* Of all but the first axis, if that is whole blocks, else one block. */
static int64_t row_of(const struct tensor *t)
{
    int64_t block = dtype_info(t->type)->block, n = tensor_elements(t);

    if (!is_flat(t))
        return t->n_dims > 0 ? t->dim[t->n_dims - 1] : 1;
    return n > 0 && n / t->dim[0] % block != 0 ? block : n > 0 ? n / t->dim[0] : 0;
}

static kron_status put_tensor(struct str *out, const struct tensor *t, uint64_t offset,
                              const char *path)
{
    const struct dtype_info *info = dtype_info(t->type);
    uint32_t number;
    char shape[64];

    if (!gguf_type_number(t->type, &number))
        return err_set(KRON_ERR_UNSUPPORTED, "%s: tensor '%.200s': GGUF has no type for %s", path,
                       t->name, info->name);
    if (tensor_elements(t) % info->block != 0 || row_of(t) % info->block != 0 || t->n_dims > 4)
        return err_set(KRON_ERR_SHAPE, "%s: tensor '%.200s' %s cannot be written to GGUF: expected "
                       "at most 4 axes, and whole %s blocks of %d", path, t->name,
                       tensor_shape_text(t, shape, sizeof shape), info->name, info->block);
    put_string(out, t->name);
    put_number(out, 4, is_flat(t) ? 2 : (uint64_t)t->n_dims);
    if (is_flat(t)) {
        put_number(out, 8, (uint64_t)row_of(t));
        put_number(out, 8, (uint64_t)(tensor_elements(t) / row_of(t)));
    } else {
        for (int i = t->n_dims - 1; i >= 0; i--)
            put_number(out, 8, (uint64_t)t->dim[i]);
    }
    put_number(out, 4, number);
    put_number(out, 8, offset);
    return out->status;
}

static size_t padding(size_t bytes)
{
    return (GGUF_ALIGNMENT - bytes % GGUF_ALIGNMENT) % GGUF_ALIGNMENT;
}

static kron_status check_names(const struct tensor *tensors, int64_t n,
                               const char *const *meta, int64_t n_meta, const char *path)
{
    struct name_map seen = {0};
    kron_status status = name_map_create(&seen, (size_t)n);

    for (int64_t i = 0; i < n && status == KRON_OK; i++) {
        struct name_slot *slot = name_map_at(&seen, tensors[i].name, strlen(tensors[i].name));
        if (slot->key != NULL)
            status = err_set(KRON_ERR_ARGUMENT, "%s: two tensors named '%.200s'", path,
                             tensors[i].name);
        *slot = (struct name_slot){tensors[i].name, i};
    }
    name_map_free(&seen);
    for (int64_t i = 0; i < n_meta && status == KRON_OK; i++)
        if (find_value(meta, i, meta[2 * i]) != NULL)
            status = err_set(KRON_ERR_ARGUMENT, "%s: two metadata values for '%.200s'", path,
                             meta[2 * i]);
    return status;
}

static kron_status put_header(struct str *out, const char *path, const struct tensor *tensors,
                              int64_t n, const char *const *meta, int64_t n_meta)
{
    uint64_t offset = 0;
    int64_t n_flat = 0;

    KRON_TRY(check_names(tensors, n, meta, n_meta, path));
    for (int64_t i = 0; i < n; i++)
        n_flat += is_flat(&tensors[i]);
    str_add(out, "GGUF");
    put_number(out, 4, GGUF_VERSION);
    put_number(out, 8, (uint64_t)n);
    put_number(out, 8, (uint64_t)(n_meta + n_flat));
    put_metas(out, tensors, n, meta, n_meta);
    for (int64_t i = 0; i < n; i++) {
        KRON_TRY(put_tensor(out, &tensors[i], offset, path));
        offset += tensors[i].bytes + padding(tensors[i].bytes);
    }
    for (size_t pad = padding(out->len); pad > 0; pad--)
        put_number(out, 1, 0);
    return out->status;
}

kron_status gguf_write_header(struct file_writer *w, const char *path,
                              const struct tensor *tensors, int64_t n,
                              const char *const *meta_key_value, int64_t n_meta)
{
    struct str out = {0};

    memset(w, 0, sizeof *w);
    kron_status status = put_header(&out, path, tensors, n, meta_key_value, n_meta);
    if (status == KRON_OK)
        status = writer_open(w, path);
    if (status == KRON_OK)
        status = writer_put(w, out.s, out.len);
    str_free(&out);
    if (status != KRON_OK)
        writer_fini(w);
    return status;
}

kron_status gguf_write_padding(struct file_writer *w, size_t bytes)
{
    static const char zeros[GGUF_ALIGNMENT];

    return writer_put(w, zeros, padding(bytes));
}

kron_status gguf_write(const char *path, const struct tensor *tensors, int64_t n,
                       const char *const *meta_key_value, int64_t n_meta)
{
    struct file_writer w;
    kron_status status = gguf_write_header(&w, path, tensors, n, meta_key_value, n_meta);

    for (int64_t i = 0; i < n && status == KRON_OK; i++) {
        if (tensors[i].bytes > 0)
            status = writer_put(&w, tensors[i].data, tensors[i].bytes);
        if (status == KRON_OK)
            status = gguf_write_padding(&w, tensors[i].bytes);
    }
    if (status == KRON_OK)
        status = writer_commit(&w);
    writer_fini(&w);
    return status;
}
