/* SPDX-License-Identifier: MIT
 * What deltas make of a whole layer, in f32: blocks of rows by all threads. */
#include "adapter/product.h"
#include "convert/convert.h"
#include "tensor/mat.h"
#include <math.h>

enum { BLOCK = 1 << 16 }; /* numbers in a block of rows: stays in the second cache */

static int64_t block_rows(int64_t k)
{
    return k < BLOCK ? BLOCK / k : 1;
}

static kron_status add_block(const struct product *p, float scale, int64_t row, int64_t n,
                             float *w)
{
    float *x;

    KRON_TRY(mem_floats(&x, n * p->k, "rows of a weight"));
    kron_status status = product_rows(p, row, n, x);
    for (int64_t i = 0; i < n * p->k && status == KRON_OK; i++)
        w[i] += scale * x[i];
    mem_free(x);
    return status;
}

static kron_status add_product(const struct layer *l, const struct delta *d, float strength,
                               float *w)
{
    int64_t k = layer_k(l), step = block_rows(k);
    kron_status failed = KRON_OK;
    struct product p;

    KRON_TRY(product_open(&p, d, l));
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < l->out; row += step) {
        int64_t n = l->out - row < step ? l->out - row : step;
        kron_status status = add_block(&p, strength * d->scale, row, n, w + row * k);
        if (status != KRON_OK) {
#pragma omp atomic write
            failed = status;
        }
    }
    product_close(&p);
    /* The sentence is in the thread that failed. */
    return failed == KRON_OK ? KRON_OK
                             : err_set(failed, "out of memory: rows of the layer %s", l->name);
}

kron_status effective_change(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w)
{
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        if (!product_has(d))
            return err_set(KRON_ERR_UNSUPPORTED, "%s: its change depends on the weight", l->name);
        if (strengths[d->strength] != 0)
            KRON_TRY(add_product(l, d, strengths[d->strength], w));
    }
    return KRON_OK;
}

kron_status effective_weight(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w)
{
    int64_t k = layer_k(l), step = block_rows(k);

#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < l->out; row += step)
        tensor_decode(&l->weight, row * k, (l->out - row < step ? l->out - row : step) * k,
                      w + row * k);
    return effective_change(l, list, strengths, w);
}

/* --- distances --- */

struct side {
    struct delta_list list;
    const float *strengths;
    struct product *p;
};

static void side_close(struct side *s)
{
    for (int i = 0; s->p != NULL && i < s->list.n; i++)
        product_close(&s->p[i]);
    mem_free(s->p);
}

static kron_status side_open(struct side *s, const struct layer *l)
{
    KRON_TRY(mem_alloc_n((void **)&s->p, (size_t)s->list.n, sizeof *s->p, "deltas"));
    for (int i = 0; i < s->list.n; i++) {
        if (!product_has(&s->list.at[i]))
            return err_set(KRON_ERR_UNSUPPORTED, "%s: its change depends on the weight", l->name);
        KRON_TRY(product_open(&s->p[i], &s->list.at[i], l));
    }
    return KRON_OK;
}

/* x[n, k] += sign times the side's rows. */
static kron_status side_add(const struct side *s, float sign, int64_t row, int64_t n, float *x)
{
    for (int i = 0; i < s->list.n; i++) {
        const struct delta *d = &s->list.at[i];
        KRON_TRY(add_block(&s->p[i], sign * s->strengths[d->strength] * d->scale, row, n, x));
    }
    return KRON_OK;
}

static kron_status compare(const struct layer *l, const struct side *x, const struct side *y,
                           double *distance, double *size)
{
    int64_t k = layer_k(l), step = block_rows(k);
    double diff2 = 0, size2 = 0;
    kron_status status = KRON_OK;
    float *w;

    KRON_TRY(mem_floats(&w, step * k, "rows of a weight"));
    for (int64_t row = 0; row < l->out && status == KRON_OK; row += step) {
        int64_t n = l->out - row < step ? l->out - row : step;
        for (int64_t i = 0; i < n * k; i++)
            w[i] = 0;
        status = side_add(y, 1, row, n, w);
        size2 += mat_norm2(w, n * k);
        if (status == KRON_OK)
            status = side_add(x, -1, row, n, w);
        diff2 += mat_norm2(w, n * k);
    }
    mem_free(w);
    *size = sqrt(size2);
    *distance = diff2 == 0 ? 0 : sqrt(diff2) / *size; /* of something from nothing: infinite */
    return status;
}

kron_status change_distance(const struct layer *l, struct delta_list x, const float *xs,
                            struct delta_list y, const float *ys, double *distance, double *size)
{
    struct side a = {x, xs, NULL}, b = {y, ys, NULL};
    kron_status status = side_open(&a, l);

    if (status == KRON_OK)
        status = side_open(&b, l);
    if (status == KRON_OK)
        status = compare(l, &a, &b, distance, size);
    side_close(&a);
    side_close(&b);
    return status;
}
