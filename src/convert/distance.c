/* SPDX-License-Identifier: MIT
 * How far one change of a layer is from another. Changes that are products alone are made a few
 * rows at a time; the others need the whole weight. Biases count as one more column. */
#include "adapter/product.h"
#include "convert/convert.h"
#include "tensor/mat.h"
#include <math.h>

struct side {
    struct delta_list list;
    const float *strengths;
    struct product *p; /* NULL: not by products */
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
    for (int i = 0; i < s->list.n; i++)
        if (product_has(&s->list.at[i]))
            KRON_TRY(product_open(&s->p[i], &s->list.at[i], l));
    return KRON_OK;
}

/* Weights of layers that are only products are not asked for. */
static bool needs_weight(struct delta_list list)
{
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        if (delta_has_weight(d) && !(product_has(d) && d->axis == GAIN_NONE && !d->replace))
            return true;
    }
    return false;
}

/* x[n, k] += sign times rows [row, row + n) of a product's change; y: [n, k] scratch. */
static kron_status add_rows(const struct product *p, float scale, int64_t row, int64_t n,
                            float *x, float *y)
{
    const struct delta *d = p->d;
    int64_t from = row > d->at ? row : d->at;
    int64_t to = row + n < d->at + d->rows ? row + n : d->at + d->rows;

    if (from >= to)
        return KRON_OK;
    KRON_TRY(product_rows(p, from - d->at, to - from, y));
    for (int64_t i = 0; i < (to - from) * p->k; i++)
        x[(from - row) * p->k + i] += scale * y[i];
    return KRON_OK;
}

static kron_status side_add(const struct side *s, float sign, int64_t row, int64_t n, float *x,
                            float *y)
{
    for (int i = 0; i < s->list.n; i++) {
        const struct delta *d = &s->list.at[i];
        if (product_has(d))
            KRON_TRY(add_rows(&s->p[i], sign * delta_strength(d, s->strengths) * d->scale, row, n,
                              x, y));
    }
    return KRON_OK;
}

/* Sums of squares of x - y and y. */
struct sums {
    double diff2, size2;
};

static kron_status by_rows(const struct layer *l, struct side *x, struct side *y, struct sums *s)
{
    enum { BLOCK = 1 << 16 };
    int64_t k = layer_k(l), step = k < BLOCK ? BLOCK / k : 1;
    kron_status status = side_open(x, l);
    float *w = NULL;

    if (status == KRON_OK)
        status = side_open(y, l);
    if (status == KRON_OK)
        status = mem_floats(&w, 2 * step * k, "rows of a weight");
    for (int64_t row = 0; row < l->out && status == KRON_OK; row += step) {
        int64_t n = l->out - row < step ? l->out - row : step;
        for (int64_t i = 0; i < n * k; i++)
            w[i] = 0;
        status = side_add(y, 1, row, n, w, w + step * k);
        s->size2 += mat_norm2(w, n * k);
        if (status == KRON_OK)
            status = side_add(x, -1, row, n, w, w + step * k);
        s->diff2 += mat_norm2(w, n * k);
    }
    mem_free(w);
    return status;
}

static kron_status by_weight(const struct layer *l, const struct side *x, const struct side *y,
                             struct sums *s)
{
    int64_t n = l->out * layer_k(l);
    float *w;

    if (l->weight.data == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: its change depends on the weight", l->name);
    KRON_TRY(mem_floats(&w, 2 * n, "a layer's change"));
    kron_status status = effective_change(l, x->list, x->strengths, w);
    if (status == KRON_OK)
        status = effective_change(l, y->list, y->strengths, w + n);
    s->size2 += mat_norm2(w + n, n);
    for (int64_t i = 0; i < n; i++)
        w[i] -= w[n + i];
    s->diff2 += mat_norm2(w, n);
    mem_free(w);
    return status;
}

static kron_status of_biases(const struct layer *l, const struct side *x, const struct side *y,
                             struct sums *s)
{
    float *b;

    KRON_TRY(mem_floats(&b, 2 * l->out, "a bias"));
    effective_bias(x->list, x->strengths, b);
    effective_bias(y->list, y->strengths, b + l->out);
    s->size2 += mat_norm2(b + l->out, l->out);
    for (int64_t i = 0; i < l->out; i++)
        b[i] -= b[l->out + i];
    s->diff2 += mat_norm2(b, l->out);
    mem_free(b);
    return KRON_OK;
}

kron_status change_distance(const struct layer *l, struct delta_list x, const float *xs,
                            struct delta_list y, const float *ys, double *distance, double *size)
{
    struct side a = {x, xs, NULL}, b = {y, ys, NULL};
    struct sums s = {0, 0};
    kron_status status = needs_weight(x) || needs_weight(y) ? by_weight(l, &a, &b, &s)
                                                            : by_rows(l, &a, &b, &s);

    side_close(&a);
    side_close(&b);
    KRON_TRY(status);
    KRON_TRY(of_biases(l, &a, &b, &s));
    *size = sqrt(s.size2);
    *distance = s.diff2 == 0 ? 0 : sqrt(s.diff2) / *size; /* of something from nothing: infinite */
    return KRON_OK;
}
