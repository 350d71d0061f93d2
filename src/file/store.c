/* SPDX-License-Identifier: MIT
 * Named tensors of one or several files. */
#include "file/file.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SOURCES = 64 };

struct source {
    char *tag;
    struct st_file *file; /* NULL: a part that has only a config */
    json_t *config;       /* NULL: none */
};

struct store {
    struct source at[MAX_SOURCES];
    int n;
    int64_t count;
    struct arena mem;
};

kron_status store_create(struct store **out)
{
    void *p;

    KRON_TRY(mem_alloc(&p, sizeof **out, "a store"));
    *out = p;
    return KRON_OK;
}

void store_free(struct store **s)
{
    if (*s == NULL)
        return;
    for (int i = 0; i < (*s)->n; i++) {
        st_close(&(*s)->at[i].file);
        json_decref((*s)->at[i].config);
    }
    arena_free(&(*s)->mem);
    mem_free(*s);
    *s = NULL;
}

static kron_status add_source(struct store *s, const char *tag, struct st_file *file,
                              json_t *config)
{
    struct source *x = &s->at[s->n];

    if (s->n == MAX_SOURCES)
        return err_set(KRON_ERR_UNSUPPORTED, "a model in more than %d files", MAX_SOURCES);
    x->tag = arena_strdup(&s->mem, tag);
    if (x->tag == NULL)
        return s->mem.status;
    x->file = file;
    x->config = config;
    s->count += file != NULL ? st_count(file) : 0;
    s->n++;
    return KRON_OK;
}

kron_status store_add_file(struct store *s, const char *tag, const char *path)
{
    struct st_file *file;

    if (path_is_dir(path))
        return err_set(KRON_ERR_IO, "%s: a folder where a model file is expected", path);
    KRON_TRY(st_open(&file, path));
    kron_status status = add_source(s, tag, file, NULL);
    if (status != KRON_OK)
        st_close(&file);
    return status;
}

/* --- diffusers folders --- */

static const struct {
    const char *tag, *base;
} parts[] = {
    {"unet", "diffusion_pytorch_model"},
    {"vae", "diffusion_pytorch_model"},
    {"text_encoder", "model"},
    {"text_encoder_2", "model"},
};

static bool shard_seen(const json_t *map, const char *shard, const void *upto)
{
    const char *key;
    const json_t *v;

    json_object_foreach((json_t *)(uintptr_t)map, key, v)
    {
        if ((const void *)v == upto)
            return false;
        if (json_is_string(v) && strcmp(json_string_value(v), shard) == 0)
            return true;
    }
    return false;
}

/* The files of a sharded part, each once; names may not leave the folder. */
static kron_status add_shards(struct store *s, const char *tag, const char *dir, const char *index)
{
    json_error_t e;
    json_t *j = json_load_file(index, 0, &e), *map = json_object_get(j, "weight_map"), *v;
    kron_status status = KRON_OK;
    const char *key;

    if (!json_is_object(map))
        status = err_set(KRON_ERR_FORMAT, "%s: expected JSON with a weight_map: %s", index, e.text);
    json_object_foreach(map, key, v)
    {
        const char *shard = json_string_value(v);
        if (status != KRON_OK)
            break;
        if (shard == NULL || strchr(shard, '/') != NULL) {
            status = err_set(KRON_ERR_FORMAT, "%s: '%.100s' is not in a file of this folder", index,
                             key);
        } else if (!shard_seen(map, shard, v)) {
            char *path = arena_printf(&s->mem, "%s/%s", dir, shard);
            status = path != NULL ? store_add_file(s, tag, path) : s->mem.status;
        }
    }
    json_decref(j);
    return status;
}

static const char *first_file(struct store *s, const char *dir, const char *base)
{
    static const char *const variants[] = {"", ".fp16", ".bf16", ".non_ema"};

    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        const char *path = arena_printf(&s->mem, "%s/%s%s.safetensors", dir, base, variants[i]);
        if (path != NULL && path_is_file(path))
            return path;
    }
    return NULL;
}

/* The config of a part is a source of its own, without tensors. */
static kron_status add_config(struct store *s, const char *tag, const char *path)
{
    json_error_t e;
    json_t *config;

    if (!path_is_file(path))
        return KRON_OK;
    config = json_load_file(path, 0, &e);
    if (config == NULL)
        return err_set(KRON_ERR_FORMAT, "%s: not JSON: %s", path, e.text);
    kron_status status = add_source(s, tag, NULL, config);
    if (status != KRON_OK)
        json_decref(config);
    return status;
}

static kron_status add_part(struct store *s, const char *path, const char *tag, const char *base)
{
    const char *dir = arena_printf(&s->mem, "%s/%s", path, tag), *file, *index, *config;

    if (dir == NULL || !path_is_dir(dir))
        return s->mem.status;
    file = first_file(s, dir, base);
    index = arena_printf(&s->mem, "%s/%s.safetensors.index.json", dir, base);
    config = arena_printf(&s->mem, "%s/config.json", dir);
    KRON_TRY(s->mem.status);
    KRON_TRY(add_config(s, tag, config));
    if (file != NULL)
        return store_add_file(s, tag, file);
    if (path_is_file(index))
        return add_shards(s, tag, dir, index);
    return err_set(KRON_ERR_IO, "%s: no %s.safetensors in it", dir, base);
}

kron_status store_add_folder(struct store *s, const char *path)
{
    int before = s->n;
    const char *scheduler = arena_printf(&s->mem, "%s/scheduler/scheduler_config.json", path);

    KRON_TRY(s->mem.status);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        KRON_TRY(add_part(s, path, parts[i].tag, parts[i].base));
    if (s->n == before)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: not a diffusers folder: none of unet/, vae/, "
                       "text_encoder/ is in it", path);
    return add_config(s, "scheduler", scheduler);
}

/* --- look-ups: the latest source of a tag first --- */

static bool is_tag(const struct store *s, int i, const char *tag)
{
    return strcmp(s->at[i].tag, tag) == 0;
}

bool store_has_tag(const struct store *s, const char *tag)
{
    return store_path(s, tag) != NULL;
}

const struct tensor *store_find(const struct store *s, const char *tag, const char *name)
{
    for (int i = s->n - 1; i >= 0; i--) {
        const struct tensor *t =
            is_tag(s, i, tag) && s->at[i].file != NULL ? st_find(s->at[i].file, name) : NULL;
        if (t != NULL)
            return t;
    }
    return NULL;
}

const char *store_meta(const struct store *s, const char *tag, const char *key)
{
    for (int i = s->n - 1; i >= 0; i--) {
        const char *v =
            is_tag(s, i, tag) && s->at[i].file != NULL ? st_meta(s->at[i].file, key) : NULL;
        if (v != NULL)
            return v;
    }
    return NULL;
}

/* Numbers and lists as text live in the store's arena: look-ups are few. */
static const char *config_text(struct store *s, const json_t *v)
{
    char *dump;
    const char *kept;

    if (v == NULL || json_is_null(v))
        return NULL;
    if (json_is_string(v))
        return json_string_value(v);
    dump = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    kept = dump != NULL ? arena_strdup(&s->mem, dump) : NULL;
    free(dump);
    return kept;
}

const char *store_config(const struct store *s, const char *tag, const char *key)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (is_tag(s, i, tag) && s->at[i].config != NULL)
            return config_text((struct store *)(uintptr_t)s, json_object_get(s->at[i].config, key));
    return NULL;
}

int64_t store_count(const struct store *s)
{
    return s->count;
}

const struct tensor *store_at(const struct store *s, int64_t i, const char **tag)
{
    for (int k = 0; k < s->n; k++) {
        int64_t n = s->at[k].file != NULL ? st_count(s->at[k].file) : 0;
        *tag = s->at[k].tag;
        if (i < n)
            return st_at(s->at[k].file, i);
        i -= n;
    }
    return NULL;
}

const struct st_file *store_file(const struct store *s, const char *tag)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (is_tag(s, i, tag) && s->at[i].file != NULL)
            return s->at[i].file;
    return NULL;
}

const struct st_file *store_source(const struct store *s, int i)
{
    for (int k = 0; k < s->n; k++)
        if (s->at[k].file != NULL && i-- == 0)
            return s->at[k].file;
    return NULL;
}

const char *store_path(const struct store *s, const char *tag)
{
    const struct st_file *file = store_file(s, tag);

    return file != NULL ? st_path(file) : NULL;
}
