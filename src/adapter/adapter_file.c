/* SPDX-License-Identifier: MIT
 * An adapter file: its tensors, sorted into modules. */
#include "adapter/family.h"
#include <string.h>

struct grouping {
    struct adapter_file *f;
    struct name_map map; /* prefix -> index of its module */
};

/* "x.weight" is IA3's vector where "x.on_input" is there too; else a plain weight. */
static bool is_ia3_weight(const struct st_file *st, const char *name, size_t prefix_len)
{
    struct str key = {0};
    bool found;

    str_add_n(&key, name, prefix_len);
    str_add(&key, ".on_input");
    found = key.status == KRON_OK && st_find(st, str_get(&key)) != NULL;
    str_free(&key);
    return found;
}

static kron_status module_of(struct grouping *g, const char *name, size_t len,
                             struct adapter_module **out)
{
    struct name_slot *slot = name_map_at(&g->map, name, len);
    struct adapter_file *f = g->f;

    if (slot->key == NULL) {
        char *own = arena_printf(&f->mem, "%.*s", (int)len, name);
        if (own == NULL)
            return f->mem.status;
        *slot = (struct name_slot){own, f->n_modules};
        f->modules[f->n_modules++].prefix = own;
    }
    *out = &f->modules[slot->value];
    return KRON_OK;
}

/* The axes that a part always has an even number of: 4 for a core, 2 or 4 for another factor. */
static int least_axes(enum ap part, int n_dims)
{
    switch (part) {
    case AP_LORA_MID: case AP_LOKR_T2: case AP_HADA_T1: case AP_HADA_T2:
        return 4;
    case AP_LORA_UP: case AP_LORA_DOWN: case AP_LOKR_W1: case AP_LOKR_W1_A: case AP_LOKR_W1_B:
    case AP_LOKR_W2: case AP_LOKR_W2_A: case AP_LOKR_W2_B: case AP_HADA_W1_A: case AP_HADA_W1_B:
    case AP_HADA_W2_A: case AP_HADA_W2_B:
        return n_dims + n_dims % 2;
    default:
        return 0;
    }
}

/* ggml's files leave out axes of 1 that stand first, such as the rank of rank 1. */
static kron_status with_first_axes(struct adapter_file *f, enum ap part, const struct tensor **t)
{
    int n = least_axes(part, (*t)->n_dims), more = n - (*t)->n_dims;
    struct tensor *own;

    if (more <= 0 || n > TENSOR_MAX_DIMS)
        return KRON_OK;
    own = arena_alloc(&f->mem, sizeof *own);
    if (own == NULL)
        return f->mem.status;
    *own = **t;
    own->n_dims = n;
    for (int i = 0; i < n; i++)
        own->dim[i] = i < more ? 1 : (*t)->dim[i - more];
    *t = own;
    return KRON_OK;
}

static kron_status add_tensor(struct grouping *g, const struct tensor *t)
{
    struct adapter_file *f = g->f;
    struct adapter_module *m = NULL;
    size_t len;
    enum ap part = ap_split(t->name, &len);

    if (embedding_bundled(t->name)) {
        bool known;
        KRON_TRY(embedding_add(f, t, &known));
        if (!known)
            f->leftovers[f->n_leftovers++] = (struct adapter_leftover){t, false};
        return KRON_OK;
    }
    f->n_tensors++;
    if (part == AP_COUNT || len > INT16_MAX ||
        (part == AP_IA3_WEIGHT && !is_ia3_weight(f->st, t->name, len))) {
        f->leftovers[f->n_leftovers++] = (struct adapter_leftover){t, false};
        return KRON_OK;
    }
    KRON_TRY(module_of(g, t->name, len, &m));
    if (m->part[part] != NULL) {
        f->leftovers[f->n_leftovers++] = (struct adapter_leftover){t, true};
        return KRON_OK;
    }
    KRON_TRY(with_first_axes(f, part, &t));
    m->part[part] = t;
    m->n_parts++;
    return KRON_OK;
}

static kron_status group(struct adapter_file *f)
{
    struct grouping g = {.f = f};
    size_t n = (size_t)st_count(f->st);
    kron_status status;

    KRON_TRY(mem_alloc_n((void **)&f->modules, n, sizeof *f->modules, "adapter modules"));
    KRON_TRY(mem_alloc_n((void **)&f->leftovers, n, sizeof *f->leftovers, "adapter tensors"));
    KRON_TRY(name_map_create(&g.map, n));
    status = KRON_OK;
    for (size_t i = 0; i < n && status == KRON_OK; i++)
        status = add_tensor(&g, st_at(f->st, (int64_t)i));
    name_map_free(&g.map);
    return status;
}

static kron_status fill(struct adapter_file *f, const char *config)
{
    KRON_TRY(group(f));
    if (f->n_modules == 0)
        return err_set(KRON_ERR_FORMAT,
                       "%s: none of its %lld tensors has the name of an adapter tensor%s",
                       adapter_path(f), (long long)st_count(f->st),
                       f->n_embeddings > 0 ? " (it holds vectors of textual inversion)" : "");
    KRON_TRY(config_read(f, config));
    f->arch = arch_guess(f);
    return KRON_OK;
}

/* Takes st over, also on failure. */
static kron_status wrap(struct adapter_file **out, struct st_file *st, const char *config)
{
    struct adapter_file *f;
    kron_status status = mem_alloc((void **)&f, sizeof *f, "adapter");

    if (status != KRON_OK) {
        st_close(&st);
        return status;
    }
    f->st = st;
    if ((status = fill(f, config)) != KRON_OK) {
        adapter_close(&f);
        return status;
    }
    *out = f;
    return KRON_OK;
}

/* The text of adapter_config.json in the same folder; NULL where there is none. */
static kron_status read_sidecar(char **out, const char *path)
{
    enum { CONFIG_MAX_BYTES = 1 << 20 };
    const char *slash = strrchr(path, '/');
    struct str name = {0};
    size_t bytes;
    kron_status status;

    *out = NULL;
    if (slash != NULL)
        str_add_n(&name, path, (size_t)(slash - path) + 1);
    str_add(&name, "adapter_config.json");
    status = name.status;
    if (status == KRON_OK && path_is_file(str_get(&name)))
        status = file_read(out, &bytes, str_get(&name), CONFIG_MAX_BYTES);
    str_free(&name);
    return status;
}

kron_status adapter_open(struct adapter_file **out, const char *path)
{
    struct st_file *st;
    char *config;
    kron_status status;

    *out = NULL;
    KRON_TRY(st_open(&st, path));
    status = read_sidecar(&config, path);
    if (status != KRON_OK) {
        st_close(&st);
        return status;
    }
    status = wrap(out, st, config);
    mem_free(config);
    return status;
}

kron_status adapter_open_memory(struct adapter_file **out, const void *data, size_t bytes,
                                const char *name, const char *config)
{
    struct st_file *st;

    *out = NULL;
    KRON_TRY(st_open_memory(&st, data, bytes, name));
    return wrap(out, st, config);
}

void adapter_close(struct adapter_file **f)
{
    if (*f == NULL)
        return;
    for (int i = 0; i < CONFIG_COUNT; i++)
        mem_free((*f)->config[i].patterns);
    mem_free((*f)->modules);
    mem_free((*f)->leftovers);
    mem_free((*f)->embeddings);
    arena_free(&(*f)->mem);
    st_close(&(*f)->st);
    mem_free(*f);
    *f = NULL;
}

const char *adapter_path(const struct adapter_file *f)
{
    return st_path(f->st);
}

int adapter_count(const struct adapter_file *f)
{
    return f->n_modules;
}

const char *adapter_prefix(const struct adapter_file *f, int module)
{
    return f->modules[module].prefix;
}
