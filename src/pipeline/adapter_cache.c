/* SPDX-License-Identifier: MIT
 * Adapter files of a model, opened once for all its sessions and kept within a budget of bytes.
 * A file is known by its path and by what tells one state of it from another; the same of PEFT's
 * adapter_config.json beside it. */
#include "pipeline/session.h"
#include <pthread.h>
#include <string.h>

/* --- counted files --- */

kron_status adapter_open_counted(kron_adapter **out, const char *path)
{
    void *p;

    KRON_TRY(mem_alloc(&p, sizeof **out, path));
    *out = p;
    kron_status status = adapter_open(&(*out)->file, path);
    if (status != KRON_OK) {
        mem_free(*out);
        *out = NULL;
        return status;
    }
    (*out)->refs = 1;
    return KRON_OK;
}

kron_adapter *adapter_ref(kron_adapter *a)
{
    __atomic_add_fetch(&a->refs, 1, __ATOMIC_RELAXED);
    return a;
}

void adapter_unref(kron_adapter **a)
{
    if (*a != NULL && __atomic_sub_fetch(&(*a)->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        adapter_close(&(*a)->file);
        mem_free(*a);
    }
    *a = NULL;
}

/* --- the cache --- */

struct entry {
    kron_adapter *adapter; /* counted; others may hold it too */
    struct file_id id, config;
    size_t bytes;
    uint64_t used; /* larger: later */
};

struct adapter_cache {
    pthread_mutex_t lock; /* of all below */
    struct entry *at;
    size_t n, cap;
    uint64_t clock;
    kron_adapter_cache stats;
};

kron_status cache_create(struct adapter_cache **out)
{
    void *p;

    *out = NULL;
    KRON_TRY(mem_alloc(&p, sizeof **out, "the cache of adapters"));
    struct adapter_cache *c = p;
    pthread_mutex_init(&c->lock, NULL);
    c->stats.budget = KRON_ADAPTER_CACHE_BYTES;
    *out = c;
    return KRON_OK;
}

static void drop(struct adapter_cache *c, size_t i)
{
    c->stats.bytes -= c->at[i].bytes;
    c->stats.files--;
    adapter_unref(&c->at[i].adapter);
    c->at[i] = c->at[--c->n];
}

void cache_free(struct adapter_cache **c)
{
    if (*c == NULL)
        return;
    while ((*c)->n > 0)
        drop(*c, 0);
    pthread_mutex_destroy(&(*c)->lock);
    mem_free((*c)->at);
    mem_free(*c);
    *c = NULL;
}

/* The file longest unused that nobody else holds: to drop another would free nothing. Only the
 * cache hands out references of what it alone holds, so that a count of 1 stays 1 in the lock. */
static size_t oldest_free(const struct adapter_cache *c)
{
    size_t best = c->n;

    for (size_t i = 0; i < c->n; i++)
        if (__atomic_load_n(&c->at[i].adapter->refs, __ATOMIC_ACQUIRE) == 1 &&
            (best == c->n || c->at[i].used < c->at[best].used))
            best = i;
    return best;
}

static void trim(struct adapter_cache *c)
{
    while (c->stats.bytes > c->stats.budget) {
        size_t i = oldest_free(c);
        if (i == c->n)
            return;
        drop(c, i);
        c->stats.dropped++;
    }
}

static bool same_id(const struct file_id *a, const struct file_id *b)
{
    return a->device == b->device && a->inode == b->inode && a->bytes == b->bytes &&
           a->changed == b->changed;
}

static kron_status config_identity(const char *path, struct file_id *out)
{
    const char *slash = strrchr(path, '/');
    struct str name = {0};

    if (slash != NULL)
        str_add_n(&name, path, (size_t)(slash - path) + 1);
    str_add(&name, "adapter_config.json");
    *out = path_identity(str_get(&name));
    kron_status status = name.status;
    str_free(&name);
    return status;
}

/* Its number, n if it is not there. A file that has changed since is dropped. */
static size_t find(struct adapter_cache *c, const char *path, const struct file_id *id,
                   const struct file_id *config)
{
    for (size_t i = 0; i < c->n; i++) {
        if (strcmp(adapter_path(c->at[i].adapter->file), path) != 0)
            continue;
        if (same_id(&c->at[i].id, id) && same_id(&c->at[i].config, config))
            return i;
        drop(c, i);
        return c->n;
    }
    return c->n;
}

static kron_status add(struct adapter_cache *c, const char *path, const struct file_id *id,
                       const struct file_id *config)
{
    kron_adapter *a;

    if (c->n == c->cap) {
        void *p = c->at;
        size_t cap = c->cap ? 2 * c->cap : 16;
        KRON_TRY(mem_grow(&p, c->cap, cap, sizeof *c->at, "the cache of adapters"));
        c->at = p;
        c->cap = cap;
    }
    KRON_TRY(adapter_open_counted(&a, path));
    c->at[c->n++] = (struct entry){a, *id, *config, (size_t)id->bytes, 0};
    c->stats.bytes += (size_t)id->bytes;
    c->stats.files++;
    return KRON_OK;
}

static kron_status open_locked(struct adapter_cache *c, const char *path, const struct file_id *id,
                               const struct file_id *config, kron_adapter **out)
{
    size_t i = find(c, path, id, config);

    if (i < c->n) {
        c->stats.hits++;
    } else {
        KRON_TRY(add(c, path, id, config));
        c->stats.misses++;
    }
    c->at[i].used = ++c->clock;
    *out = adapter_ref(c->at[i].adapter);
    trim(c);
    return KRON_OK;
}

kron_status cache_open(struct adapter_cache *c, const char *path, kron_adapter **out)
{
    struct file_id id = path_identity(path), config;

    *out = NULL;
    KRON_TRY(config_identity(path, &config));
    pthread_mutex_lock(&c->lock);
    kron_status status = open_locked(c, path, &id, &config, out);
    pthread_mutex_unlock(&c->lock);
    return status;
}

void cache_trim(struct adapter_cache *c)
{
    pthread_mutex_lock(&c->lock);
    trim(c);
    pthread_mutex_unlock(&c->lock);
}

void cache_set_budget(struct adapter_cache *c, size_t bytes)
{
    pthread_mutex_lock(&c->lock);
    c->stats.budget = bytes;
    trim(c);
    pthread_mutex_unlock(&c->lock);
}

kron_adapter_cache cache_stats(struct adapter_cache *c)
{
    pthread_mutex_lock(&c->lock);
    kron_adapter_cache stats = c->stats;
    pthread_mutex_unlock(&c->lock);
    return stats;
}
