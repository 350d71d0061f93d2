/* SPDX-License-Identifier: MIT
 * Weights in another type than their files', made when a model is opened; and the squares of what
 * its linear layers read, which tell which of their channels matter. */
#include "convert/convert.h"
#include "pipeline/session.h"
#include <omp.h>
#include <string.h>

struct quantising {
    struct engine *e;
    const kron_model_params *p;
    struct type_rules rules;
    struct importance *importance; /* NULL: none */
    enum dtype *want;              /* by layer */
    struct str key, path;          /* of the cache; path empty: none */
    size_t before, after;
};

static bool changes(const struct quantising *q, int i)
{
    const struct layer *l = q->e->model.layers.at[i];

    return l->kind != LAYER_NORM && q->want[i] != l->weight.type;
}

static kron_status plan(struct quantising *q)
{
    const struct layer_table *t = &q->e->model.layers;

    KRON_TRY(type_rules_parse(&q->rules, q->p->type_rules));
    if (q->p->importance != NULL) {
        KRON_TRY(importance_create(&q->importance));
        KRON_TRY(importance_read(q->importance, q->p->importance));
    }
    KRON_TRY(mem_alloc_n((void **)&q->want, (size_t)t->n, sizeof *q->want, "types of layers"));
    for (int i = 0; i < t->n; i++) {
        const struct tensor *w = &t->at[i]->weight;
        q->want[i] = type_rules_choose(&q->rules, q->p->type, w);
        if (changes(q, i)) {
            q->before += w->bytes;
            q->after += dtype_bytes(q->want[i], tensor_elements(w));
        }
    }
    return KRON_OK;
}

/* --- the cache: a GGUF with the tensor "ID.NAME" for each layer that changed --- */

static void add_identity(struct str *key, const char *path)
{
    struct file_id id = path_identity(path);

    str_addf(key, "%s %llu %llu %lld %lld\n", path, (unsigned long long)id.device,
             (unsigned long long)id.inode, (long long)id.bytes, (long long)id.changed);
}

static kron_status make_key(struct quantising *q)
{
    const struct st_file *f;

    if (q->p->quant_cache == NULL || q->p->quant_cache[0] == '\0')
        return KRON_OK;
    if (!path_is_dir(q->p->quant_cache))
        return err_set(KRON_ERR_IO, "%s: there is no such folder for converted weights",
                       q->p->quant_cache);
    str_addf(&q->key, "1\n"); /* of this form of key and file */
    for (int i = 0; (f = store_source(q->e->model.store, i)) != NULL; i++)
        add_identity(&q->key, st_path(f));
    if (q->p->importance != NULL)
        add_identity(&q->key, q->p->importance);
    str_addf(&q->key, "%s\n%s\n", dtype_info(dtype_of(q->p->type, DT_BOOL))->name,
             q->p->type_rules != NULL ? q->p->type_rules : "");
    KRON_TRY(q->key.status);
    str_addf(&q->path, "%s/kron-%016llx.gguf", q->p->quant_cache,
             (unsigned long long)hash_bytes(q->key.s, q->key.len, 0));
    return q->path.status;
}

static void name_in_cache(const struct layer *l, char *name, size_t size)
{
    snprintf(name, size, "%d.%s", l->id, l->name);
}

static const struct tensor *cached(const struct quantising *q, const struct st_file *f, int i)
{
    const struct layer *l = q->e->model.layers.at[i];
    char name[200];

    name_in_cache(l, name, sizeof name);
    const struct tensor *t = st_find(f, name);
    bool fits = t != NULL && t->type == q->want[i] && t->n_dims == l->weight.n_dims &&
                memcmp(t->dim, l->weight.dim, sizeof t->dim) == 0;
    return fits ? t : NULL;
}

/* False where there is no such file, or it is not what it should be: then it is made anew. */
static bool use_cache(struct quantising *q)
{
    const struct layer_table *table = &q->e->model.layers;
    struct st_file *f;

    if (q->path.len == 0 || !path_is_file(q->path.s))
        return false;
    bool good = st_open(&f, q->path.s) == KRON_OK;
    if (!good)
        return false;
    const char *key = st_meta(f, "kron.key");
    good = key != NULL && strcmp(key, q->key.s) == 0;
    for (int i = 0; i < table->n && good; i++)
        good = !changes(q, i) || cached(q, f, i) != NULL;
    for (int i = 0; i < table->n && good; i++) {
        const struct tensor *t = changes(q, i) ? cached(q, f, i) : NULL;
        const char *name = table->at[i]->weight.name;
        if (t == NULL)
            continue;
        table->at[i]->weight = *t;
        table->at[i]->weight.name = name; /* as messages and importance know it */
    }
    if (good)
        q->e->quantised_file = f;
    else
        st_close(&f);
    return good;
}

static kron_status write_tensors(const struct quantising *q, const bool *changed)
{
    const struct layer_table *table = &q->e->model.layers;
    const char *const meta[] = {"kron.key", q->key.s};
    struct arena mem = {0};
    struct tensor *t;
    int64_t n = 0;

    KRON_TRY(mem_alloc_n((void **)&t, (size_t)table->n, sizeof *t, "a cache of weights"));
    for (int i = 0; i < table->n; i++) {
        char name[200];
        if (!changed[i])
            continue;
        name_in_cache(table->at[i], name, sizeof name);
        t[n] = table->at[i]->weight;
        t[n++].name = arena_strdup(&mem, name);
    }
    writer_clear_left(q->path.s);
    kron_status status = mem.status;
    if (status == KRON_OK)
        status = gguf_write(q->path.s, t, n, meta, 1);
    arena_free(&mem);
    mem_free(t);
    return status;
}

/* --- converting --- */

static kron_status convert_layer(struct quantising *q, int i)
{
    struct tensor *w = &q->e->model.layers.at[i]->weight;
    size_t bytes = dtype_bytes(q->want[i], tensor_elements(w));
    void *data = arena_alloc(&q->e->quantised, bytes);

    if (data == NULL)
        return q->e->quantised.status;
    KRON_TRY(recode(w, q->want[i], q->importance, data));
    w->data = data;
    w->bytes = bytes;
    w->type = q->want[i];
    w->scale = NULL;
    return KRON_OK;
}

static kron_status convert_all(struct quantising *q)
{
    int n = q->e->model.layers.n, before = omp_get_max_threads();
    kron_status status = KRON_OK;
    bool *changed;

    KRON_TRY(mem_alloc_n((void **)&changed, (size_t)n, sizeof *changed, "types of layers"));
    if (q->e->device->caps.n_threads > 0)
        omp_set_num_threads(q->e->device->caps.n_threads);
    for (int i = 0; i < n && status == KRON_OK; i++) {
        changed[i] = changes(q, i);
        status = changed[i] ? convert_layer(q, i) : KRON_OK;
    }
    omp_set_num_threads(before);
    if (status == KRON_OK && q->path.len > 0 && write_tensors(q, changed) != KRON_OK)
        log_warn("converted weights are not kept: %s", kron_error_detail());
    mem_free(changed);
    return status;
}

static kron_status run(struct quantising *q)
{
    double start = clock_seconds();

    KRON_TRY(plan(q));
    if (q->after == 0)
        return KRON_OK;
    KRON_TRY(make_key(q));
    if (use_cache(q)) {
        log_info("weights of another type: %.1f MB from %s", (double)q->after / 1e6, q->path.s);
        return KRON_OK;
    }
    KRON_TRY(convert_all(q));
    log_info("weights of another type: %.1f MB made of %.1f MB in %.1f s", (double)q->after / 1e6,
             (double)q->before / 1e6, clock_seconds() - start);
    return KRON_OK;
}

kron_status engine_quantise(struct engine *e, const kron_model_params *p)
{
    struct quantising q = {.e = e, .p = p};

    if (p->type == KRON_TYPE_KEEP && (p->type_rules == NULL || p->type_rules[0] == '\0'))
        return KRON_OK;
    kron_status status = run(&q);
    type_rules_free(&q.rules);
    importance_free(&q.importance);
    mem_free(q.want);
    str_free(&q.key);
    str_free(&q.path);
    return status;
}

/* --- what linear layers read --- */

/* Layers that block types are for; convolutions of one pixel are none. */
static void observe(void *user, const struct layer *l, const float *x, int64_t rows)
{
    struct engine *e = user;

    if (l->is_conv || l->kind != LAYER_LINEAR)
        return;
    pthread_mutex_lock(&e->importance_lock);
    if (e->importance_status == KRON_OK)
        e->importance_status = importance_add(e->importance, l->weight.name, x, rows, l->in);
    pthread_mutex_unlock(&e->importance_lock);
}

kron_status engine_collect(struct engine *e, const kron_model_params *p)
{
    if (!p->collect_importance)
        return KRON_OK;
    if (!e->device->caps.observes)
        return err_set(KRON_ERR_UNSUPPORTED, "the device %s does not show what its layers read: "
                       "importance is collected on the cpu", e->device->name);
    KRON_TRY(importance_create(&e->importance));
    if (p->importance != NULL)
        KRON_TRY(importance_read(e->importance, p->importance));
    e->device->observe = observe;
    e->device->observe_user = e;
    return KRON_OK;
}

kron_status engine_save_importance(struct engine *e, const char *path)
{
    pthread_mutex_lock(&e->importance_lock);
    kron_status status = e->importance_status == KRON_OK
                             ? importance_write(e->importance, path)
                             : err_set(e->importance_status, "%s: collecting failed: %s", path,
                                       kron_status_text(e->importance_status));
    pthread_mutex_unlock(&e->importance_lock);
    return status;
}
