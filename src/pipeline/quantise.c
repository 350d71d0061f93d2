/* SPDX-License-Identifier: MIT
 * Weights in another type than their files', made when a network first needs them; and the squares
 * of what its linear layers read, which tell which of their channels matter.
 *
 * A layer has its type, and the place of its data, from the opening on; the data come when the
 * first graph that has it is planned, so that the text encoders run before the UNet is converted,
 * and what is never used costs nothing. Converting takes all cores: a thread of its own would only take them
 * from what runs meanwhile. No picture depends on when a layer was made. */
#include "convert/convert.h"
#include "pipeline/session.h"
#include <omp.h>
#include <string.h>

struct quantiser {
    pthread_mutex_t lock; /* of all below, after the opening */
    struct sd_model *model;
    struct be_device *device;
    struct type_rules rules;
    struct importance *importance; /* NULL: none */
    struct change {
        bool wanted;
        struct tensor from; /* in the model's files */
        void *to;           /* NULL: it is there */
    } *at; /* by layer */
    struct arena mem;       /* of converted weights */
    struct st_file *cached; /* of an earlier run; NULL: none */
    struct str key, path;   /* of the cache; path empty: none */
    size_t before, after;   /* bytes converted in this run */
    double seconds;
};

static enum dtype type_wanted(const struct quantiser *q, const kron_model_params *p,
                              const struct layer *l)
{
    return l->kind == LAYER_NORM ? l->weight.type
                                 : type_rules_choose(&q->rules, p->type, &l->weight);
}

/* --- the cache: a GGUF with the tensor "ID.NAME" for each layer that was converted --- */

static void add_identity(struct str *key, const char *path)
{
    struct file_id id = path_identity(path);

    str_addf(key, "%s %llu %llu %lld %lld\n", path, (unsigned long long)id.device,
             (unsigned long long)id.inode, (long long)id.bytes, (long long)id.changed);
}

static kron_status make_key(struct quantiser *q, const kron_model_params *p)
{
    const struct st_file *f;

    if (p->quant_cache == NULL || p->quant_cache[0] == '\0')
        return KRON_OK;
    if (!path_is_dir(p->quant_cache))
        return err_set(KRON_ERR_IO, "%s: there is no such folder for converted weights",
                       p->quant_cache);
    str_addf(&q->key, "1\n"); /* of this form of key and file */
    for (int i = 0; (f = store_source(q->model->store, i)) != NULL; i++)
        add_identity(&q->key, st_path(f));
    if (p->importance != NULL)
        add_identity(&q->key, p->importance);
    str_addf(&q->key, "%s\n%s\n", dtype_info(dtype_of(p->type, DT_BOOL))->name,
             p->type_rules != NULL ? p->type_rules : "");
    KRON_TRY(q->key.status);
    str_addf(&q->path, "%s/kron-%016llx.gguf", p->quant_cache,
             (unsigned long long)hash_bytes(q->key.s, q->key.len, 0));
    return q->path.status;
}

static void name_in_cache(const struct layer *l, char *name, size_t size)
{
    snprintf(name, size, "%d.%s", l->id, l->name);
}

/* NULL where there is no such file, or it is not what it should be: then it is made anew. */
static void open_cache(struct quantiser *q)
{
    if (q->path.len == 0 || !path_is_file(q->path.s) || st_open(&q->cached, q->path.s) != KRON_OK)
        return;
    const char *key = st_meta(q->cached, "kron.key");
    if (key == NULL || strcmp(key, q->key.s) != 0)
        st_close(&q->cached);
}

/* The layer's weight in the cache, if it is there. */
static const struct tensor *cached(const struct quantiser *q, const struct layer *l,
                                   enum dtype type)
{
    char name[200];

    if (q->cached == NULL)
        return NULL;
    name_in_cache(l, name, sizeof name);
    const struct tensor *t = st_find(q->cached, name);
    bool fits = t != NULL && t->type == type && t->n_dims == l->weight.n_dims &&
                memcmp(t->dim, l->weight.dim, sizeof t->dim) == 0;
    return fits ? t : NULL;
}

/* All that is there by now, of this run and those before it. */
static kron_status write_cache(const struct quantiser *q)
{
    const struct layer_table *table = &q->model->layers;
    const char *const meta[] = {"kron.key", q->key.s};
    struct arena mem = {0};
    struct tensor *t;
    int64_t n = 0;

    KRON_TRY(mem_alloc_n((void **)&t, (size_t)table->n, sizeof *t, "a cache of weights"));
    for (int i = 0; i < table->n; i++) {
        char name[200];
        if (!q->at[i].wanted || q->at[i].to != NULL)
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

/* --- opening --- */

/* Gives a layer its type, and data from the cache or room for them. */
static kron_status change_type(struct quantiser *q, struct layer *l, enum dtype type)
{
    struct change *c = &q->at[l->id];
    const struct tensor *t = cached(q, l, type);
    const char *name = l->weight.name; /* as messages and importance know it */

    *c = (struct change){.wanted = true, .from = l->weight};
    l->weight.scale = NULL;
    l->weight.type = type;
    l->weight.bytes = dtype_bytes(type, tensor_elements(&l->weight));
    if (t != NULL) {
        l->weight = *t;
        l->weight.name = name;
        return KRON_OK;
    }
    c->to = arena_alloc(&q->mem, l->weight.bytes);
    l->weight.data = c->to;
    return q->mem.status;
}

static kron_status start(struct quantiser *q, const kron_model_params *p)
{
    const struct layer_table *t = &q->model->layers;
    size_t all = 0, there = 0;

    KRON_TRY(type_rules_parse(&q->rules, p->type_rules));
    if (p->importance != NULL) {
        KRON_TRY(importance_create(&q->importance));
        KRON_TRY(importance_read(q->importance, p->importance));
    }
    KRON_TRY(mem_alloc_n((void **)&q->at, (size_t)t->n, sizeof *q->at, "types of layers"));
    KRON_TRY(make_key(q, p));
    open_cache(q);
    for (int i = 0; i < t->n; i++) {
        enum dtype type = type_wanted(q, p, t->at[i]);
        if (type == t->at[i]->weight.type)
            continue;
        KRON_TRY(change_type(q, t->at[i], type));
        all += t->at[i]->weight.bytes;
        there += q->at[i].to == NULL ? t->at[i]->weight.bytes : 0;
    }
    if (all > 0)
        log_info("weights of another type: %.1f MB, %.1f MB of them from %s", (double)all / 1e6,
                 (double)there / 1e6, there > 0 ? q->path.s : "an earlier run");
    return KRON_OK;
}

kron_status engine_quantise(struct engine *e, const kron_model_params *p)
{
    void *mem;

    if (p->type == KRON_TYPE_KEEP && (p->type_rules == NULL || p->type_rules[0] == '\0'))
        return KRON_OK;
    KRON_TRY(mem_alloc(&mem, sizeof *e->quantiser, "types of weights"));
    e->quantiser = mem;
    e->quantiser->model = &e->model;
    e->quantiser->device = e->device;
    pthread_mutex_init(&e->quantiser->lock, NULL);
    return start(e->quantiser, p);
}

/* --- converting --- */

static kron_status make(struct quantiser *q, const struct layer *l)
{
    struct change *c = &q->at[l->id];

    if (c->to == NULL)
        return KRON_OK;
    KRON_TRY(recode(&c->from, l->weight.type, q->importance, c->to));
    q->before += c->from.bytes;
    q->after += l->weight.bytes;
    c->to = NULL;
    return KRON_OK;
}

static kron_status make_all(struct quantiser *q, const struct graph *g)
{
    kron_status status = KRON_OK;

    for (int i = 0; i < g->n_ops && status == KRON_OK; i++) {
        if (g->ops[i].layer != NULL)
            status = make(q, g->ops[i].layer);
        if (status == KRON_OK && g->ops[i].layer2 != NULL)
            status = make(q, g->ops[i].layer2);
    }
    return status;
}

kron_status engine_make_weights(struct engine *e, const struct graph *g)
{
    struct quantiser *q = e->quantiser;
    int before = omp_get_max_threads();

    if (q == NULL)
        return KRON_OK;
    pthread_mutex_lock(&q->lock);
    double start = clock_seconds();
    size_t after = q->after;
    if (q->device->caps.n_threads > 0)
        omp_set_num_threads(q->device->caps.n_threads);
    kron_status status = make_all(q, g);
    omp_set_num_threads(before);
    double seconds = clock_seconds() - start;
    q->seconds += seconds;
    if (q->after > after)
        log_info("%s: weights of another type: %.1f MB made in %.1f s", g->name,
                 (double)(q->after - after) / 1e6, seconds);
    pthread_mutex_unlock(&q->lock);
    return status;
}

bool engine_quantised_maps(const struct engine *e, const void *data)
{
    return e->quantiser != NULL && e->quantiser->cached != NULL &&
           st_maps(e->quantiser->cached, data);
}

void engine_quantise_end(struct engine *e)
{
    struct quantiser *q = e->quantiser;

    if (q == NULL)
        return;
    if (q->after > 0)
        log_info("weights of another type: %.1f MB made of %.1f MB in %.1f s",
                 (double)q->after / 1e6, (double)q->before / 1e6, q->seconds);
    if (q->after > 0 && q->path.len > 0 && write_cache(q) != KRON_OK)
        log_warn("converted weights are not kept: %s", kron_error_detail());
    type_rules_free(&q->rules);
    importance_free(&q->importance);
    arena_free(&q->mem);
    st_close(&q->cached);
    mem_free(q->at);
    str_free(&q->key);
    str_free(&q->path);
    pthread_mutex_destroy(&q->lock);
    mem_free(q);
    e->quantiser = NULL;
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
