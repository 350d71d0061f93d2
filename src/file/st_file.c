/* SPDX-License-Identifier: MIT
 * A file of tensors, whatever its format. */
#include "file/formats.h"
#include <stdlib.h>
#include <string.h>

/* --- for the readers --- */

kron_status st_bad(const struct st_file *f, const char *name, const char *what)
{
    return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s': %s", f->path, name, what);
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;

    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

kron_status st_sort(struct st_file *f)
{
    qsort(f->tensors, (size_t)f->n, sizeof *f->tensors, by_place);
    for (int64_t i = 1; i < f->n; i++) {
        const struct tensor *t = &f->tensors[i];
        if ((const uint8_t *)t[-1].data + t[-1].bytes > (const uint8_t *)t->data)
            return err_set(KRON_ERR_FORMAT, "%s: tensors '%.200s' and '%.200s' overlap", f->path,
                           t[-1].name, t->name);
    }
    return KRON_OK;
}

kron_status st_index(struct st_file *f)
{
    KRON_TRY(name_map_create(&f->names, (size_t)f->n));
    for (int64_t i = 0; i < f->n; i++) {
        const char *name = f->tensors[i].name;
        struct name_slot *slot = name_map_at(&f->names, name, strlen(name));
        if (slot->key != NULL)
            return st_bad(f, name, "the name is there twice");
        *slot = (struct name_slot){name, i};
    }
    return KRON_OK;
}

/* --- names of files --- */

static const char *const endings[] = {".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin"};

const char *st_ending(int i)
{
    return i < (int)(sizeof endings / sizeof *endings) ? endings[i] : NULL;
}

size_t st_stem(const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; st_ending(i) != NULL; i++)
        if (str_ends(name, st_ending(i)))
            return len - strlen(st_ending(i));
    return len;
}

/* --- interface --- */

static kron_status read_any(struct st_file *f)
{
    if (gguf_is(f->bytes, f->n_bytes))
        return gguf_read(f);
    if (torch_is(f->bytes, f->n_bytes))
        return torch_read(f);
    return safetensors_read(f);
}

static kron_status finish_open(struct st_file *f, struct st_file **out)
{
    kron_status status = read_any(f);

    if (status != KRON_OK)
        st_close(&f);
    *out = f;
    return status;
}

kron_status st_open(struct st_file **out, const char *path)
{
    struct st_file *f;
    void *p;

    *out = NULL;
    KRON_TRY(mem_alloc(&p, sizeof *f, path));
    f = p;
    kron_status status = map_open(&f->map, path);
    if (status != KRON_OK) {
        mem_free(f);
        return status;
    }
    f->path = f->map.path;
    f->bytes = f->map.data;
    f->n_bytes = f->map.bytes;
    return finish_open(f, out);
}

kron_status st_open_memory(struct st_file **out, const void *data, size_t bytes, const char *name)
{
    struct st_file *f;
    void *p;

    *out = NULL;
    KRON_TRY(mem_alloc(&p, sizeof *f, name));
    f = p;
    f->path = arena_strdup(&f->mem, name);
    f->bytes = data;
    f->n_bytes = bytes;
    if (f->path == NULL) {
        kron_status status = f->mem.status;
        mem_free(f);
        return status;
    }
    return finish_open(f, out);
}

void st_close(struct st_file **f)
{
    struct st_file *x = *f;

    if (x == NULL)
        return;
    name_map_free(&x->names);
    map_close(&x->map);
    arena_free(&x->mem);
    mem_free(x);
    *f = NULL;
}

const char *st_path(const struct st_file *f)
{
    return f->path;
}

bool st_maps(const struct st_file *f, const void *p)
{
    uintptr_t first = (uintptr_t)f->map.data, at = (uintptr_t)p;

    return f->map.data != NULL && at >= first && at < first + f->map.bytes;
}

int64_t st_count(const struct st_file *f)
{
    return f->n;
}

const struct tensor *st_at(const struct st_file *f, int64_t i)
{
    return &f->tensors[i];
}

const struct tensor *st_find(const struct st_file *f, const char *name)
{
    const struct name_slot *slot = name_map_at(&f->names, name, strlen(name));

    return slot->key != NULL ? &f->tensors[slot->value] : NULL;
}

const char *st_meta(const struct st_file *f, const char *key)
{
    for (int64_t i = 0; i < f->n_meta; i++)
        if (strcmp(f->meta[i].key, key) == 0)
            return f->meta[i].value;
    return NULL;
}

int64_t st_meta_count(const struct st_file *f)
{
    return f->n_meta;
}

void st_meta_at(const struct st_file *f, int64_t i, const char **key, const char **value)
{
    *key = f->meta[i].key;
    *value = f->meta[i].value;
}
