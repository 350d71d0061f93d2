/* SPDX-License-Identifier: MIT
 * What stays in memory for a set of adapters: nothing but merged weights. Base and factors are
 * used where the files are mapped. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <pthread.h>

struct merged {
    float *data; /* [out, k] */
};

/* One lock for all: merging is rare, and plans of several sessions may share weights. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

kron_status weights_create(struct be_device *d, const struct layer_table *table,
                           const struct delta_set *set, struct be_weights **out)
{
    void *p, *merged;

    (void)d;
    KRON_TRY(mem_alloc(&p, sizeof **out, "weights"));
    kron_status status =
        mem_alloc_n(&merged, (size_t)table->n, sizeof(struct merged), "weights");
    if (status != KRON_OK) {
        mem_free(p);
        return status;
    }
    *out = p;
    **out = (struct be_weights){.table = table, .set = set, .merged = merged};
    return KRON_OK;
}

void weights_free(struct be_weights *w)
{
    for (int i = 0; i < w->table->n; i++)
        mem_free(w->merged[i].data);
    mem_free(w->merged);
    mem_free(w);
}

/* Computes rows as an op of the weight route would, with scratch of its own. */
static kron_status merge(struct be_plan *p, const struct layer *l, float *to)
{
    struct be_plan alone = {.device = p->device, .weights = p->weights};
    struct cpu_op o = {0};
    void *scratch;

    kron_status status = wpass_compile(&alone, &o, l, ROUTE_WEIGHT);
    if (status == KRON_OK) {
        cpu_take_threads(&alone, &o, wpass_thread_bytes(&o.w));
        status = mem_alloc(&scratch, o.scratch_bytes, "merging adapters");
    }
    if (status == KRON_OK) {
        alone.scratch = scratch;
        struct cpu_call c = {.p = &alone, .o = &o, .k = p->device->k,
                             .threads = p->device->n_threads, .strengths = p->merge_strengths};
        wpass_prepare(&c, &o.w);
        wpass_block(&c, &o.w, 0, l->out, to);
        mem_free(scratch);
    }
    arena_free(&alone.mem);
    return status;
}

kron_status weights_merged(struct be_plan *p, const struct layer *l, struct tensor *out)
{
    size_t n = (size_t)(l->out * layer_k(l));
    kron_status status = KRON_OK;
    void *mem = NULL;

    KRON_ASSERT(l->id >= 0 && l->id < p->weights->table->n);
    struct merged *m = &p->weights->merged[l->id];
    pthread_mutex_lock(&lock);
    if (m->data == NULL) {
        status = mem_alloc_n(&mem, n, sizeof *m->data, "a merged weight");
        if (status == KRON_OK)
            status = merge(p, l, mem);
        if (status == KRON_OK)
            m->data = mem;
        else
            mem_free(mem);
    }
    pthread_mutex_unlock(&lock);
    if (status != KRON_OK)
        return err_prefix(status, "%s", l->name);
    *out = l->weight;
    out->data = m->data;
    out->type = DT_F32;
    out->bytes = n * sizeof *m->data;
    return KRON_OK;
}
