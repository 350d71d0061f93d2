/* SPDX-License-Identifier: MIT
 * The checking front of all backends, and the list of them. */
#include "backend/backend.h"
#include <pthread.h>
#include <string.h>

const struct be_driver *const be_drivers[] = {&be_cpu, &be_ref, NULL};

kron_status be_open(const char *name, int n_threads, struct be_device **out)
{
    struct str known = {0};

    *out = NULL;
    for (int i = 0; be_drivers[i] != NULL; i++) {
        const struct be_driver *d = be_drivers[i];
        bool any = name == NULL || name[0] == '\0';
        if (d->count() > 0 && (any || strcmp(name, d->name) == 0)) {
            str_free(&known);
            return d->open(0, n_threads, out);
        }
        if (d->count() > 0)
            str_addf(&known, "%s%s", known.len ? ", " : "", d->name);
    }
    kron_status status = err_set(KRON_ERR_ARGUMENT, "backend '%s' is not one of: %s",
                                 name ? name : "", str_get(&known));
    str_free(&known);
    return status;
}

void be_close(struct be_device **d)
{
    if (*d != NULL)
        (*d)->fns->close(*d);
    *d = NULL;
}

kron_status be_measure(struct be_device *d)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    kron_status status = KRON_OK;

    pthread_mutex_lock(&lock);
    if (d->caps.rates.product == 0 && d->fns->measure != NULL)
        status = d->fns->measure(d);
    pthread_mutex_unlock(&lock);
    return status;
}

kron_status be_buf_alloc(struct be_device *d, size_t bytes, struct be_buf **out)
{
    *out = NULL;
    return d->fns->buf_alloc(d, bytes, out);
}

void be_buf_free(struct be_buf **b)
{
    if (*b != NULL)
        (*b)->device->fns->buf_free(*b);
    *b = NULL;
}

static void check_range(const struct be_buf *b, size_t at, size_t n)
{
    KRON_ASSERT(at <= b->bytes && n <= b->bytes - at);
}

kron_status be_buf_write(struct be_buf *b, size_t at, const void *src, size_t n)
{
    check_range(b, at, n);
    return b->device->fns->buf_write(b, at, src, n);
}

kron_status be_buf_read(struct be_buf *b, size_t at, void *dst, size_t n)
{
    check_range(b, at, n);
    return b->device->fns->buf_read(b, at, dst, n);
}

kron_status be_weights_create(struct be_device *d, const struct layer_table *table,
                              const struct delta_set *set, struct be_weights **out)
{
    *out = NULL;
    return d->fns->weights_create(d, table, set, out);
}

void be_weights_free(struct be_device *d, struct be_weights **w)
{
    if (*w != NULL)
        d->fns->weights_free(*w);
    *w = NULL;
}

void be_weights_trim(struct be_device *d, struct be_weights *w)
{
    if (w != NULL)
        d->fns->weights_trim(w);
}

kron_status be_plan_create(struct be_device *d, const struct graph *g, struct be_weights *w,
                           const float *strengths, struct be_plan **out)
{
    *out = NULL;
    KRON_TRY(g->status);
    for (int o = 0; o < g->n_ops; o++)
        if (!d->fns->op_supported(d, g, &g->ops[o]))
            return err_set(KRON_ERR_UNSUPPORTED, "%s: device %s cannot run operation %d (%s%s%s)",
                           g->name, d->name, o, gr_op_name(g->ops[o].kind),
                           g->ops[o].layer ? " " : "",
                           g->ops[o].layer ? g->ops[o].layer->name : "");
    return d->fns->plan_create(d, g, w, strengths, out);
}

kron_status be_plan_run(struct be_device *d, struct be_plan *p, struct be_buf *const *bind,
                        const float *strengths)
{
    return d->fns->plan_run(p, bind, strengths, NULL);
}

kron_status be_plan_run_timed(struct be_device *d, struct be_plan *p, struct be_buf *const *bind,
                              const float *strengths, const struct be_timer *timer)
{
    return d->fns->plan_run(p, bind, strengths, timer);
}

void be_plan_free(struct be_device *d, struct be_plan **p)
{
    if (*p != NULL)
        d->fns->plan_free(*p);
    *p = NULL;
}

size_t be_plan_bytes(struct be_device *d, const struct be_plan *p)
{
    return d->fns->plan_bytes(p);
}

kron_status be_measure_peak(struct be_device *d, struct be_peak *out)
{
    *out = (struct be_peak){0, 0};
    if (d->fns->measure_peak == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "device %s: its peak cannot be measured", d->name);
    return d->fns->measure_peak(d, out);
}
