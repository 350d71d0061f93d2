/* SPDX-License-Identifier: MIT
 * The definition of each delta form, and what each costs. */
#include "graph/layer.h"

struct delta_list delta_set_list(const struct delta_set *set, const struct layer *l)
{
    struct delta_list none = {0, NULL};

    if (set == NULL || l->id < 0 || l->id >= set->n_layers)
        return none;
    return set->by_layer[l->id];
}

static double at2(const struct tensor *t, int64_t width, int64_t row, int64_t col)
{
    float v;

    tensor_decode(t, row * width + col, 1, &v);
    return v;
}

/* (A B)[row, col] with A[.., r], B[r, width]. */
static double product_at(const struct tensor *a, const struct tensor *b, int64_t r, int64_t width,
                         int64_t row, int64_t col)
{
    double sum = 0;

    for (int64_t i = 0; i < r; i++)
        sum += at2(a, r, row, i) * at2(b, width, i, col);
    return sum;
}

static double kron_at(const struct delta *d, int64_t ks, int64_t o, int64_t col)
{
    int64_t width = d->vq * ks;
    int64_t i = o / d->vp, j = o % d->vp, l = col / width, m = col % width;
    double w2 = d->w2.data != NULL ? at2(&d->w2, width, j, m)
                                   : product_at(&d->a, &d->b, d->rank, width, j, m);

    return at2(&d->w1, d->uq, i, l) * w2;
}

static double delta_at(const struct delta *d, const struct layer *l, int64_t o, int64_t col)
{
    int64_t k = layer_k(l);

    switch (d->kind) {
    case DELTA_LOW_RANK:
        return product_at(&d->a, &d->b, d->rank, k, o, col);
    case DELTA_HADAMARD:
        return product_at(&d->a, &d->b, d->rank, k, o, col) *
               product_at(&d->c, &d->d, d->rank, k, o, col);
    case DELTA_KRON:
        return kron_at(d, (int64_t)l->kh * l->kw, o, col);
    case DELTA_FULL:
        break;
    }
    return at2(&d->d, k, o, col);
}

void delta_add_ref(const struct delta *d, const struct layer *l, float strength, int64_t row,
                   int64_t n, double *w)
{
    int64_t k = layer_k(l);
    double s = (double)strength * d->scale;

    for (int64_t o = 0; o < n; o++)
        for (int64_t c = 0; c < k; c++)
            w[o * k + c] += s * delta_at(d, l, row + o, c);
}

double delta_weight_cost(const struct delta *d, const struct layer *l)
{
    double all = (double)l->out * (double)layer_k(l);

    switch (d->kind) {
    case DELTA_LOW_RANK:
        return all * (double)d->rank;
    case DELTA_HADAMARD:
        return all * (2.0 * (double)d->rank + 1);
    case DELTA_KRON: {
        double w2 = (double)(d->vp * d->vq) * l->kh * l->kw;
        return all + w2 * (double)(d->w2.data != NULL ? 0 : d->rank);
    }
    case DELTA_FULL:
        break;
    }
    return all;
}

double delta_row_cost(const struct delta *d, const struct layer *l)
{
    double all = (double)l->out * (double)layer_k(l), ks = (double)l->kh * l->kw;

    if (d->kind == DELTA_LOW_RANK)
        return (double)d->rank * (double)(l->out + layer_k(l));
    if (d->kind == DELTA_KRON) {
        double up = (double)d->up, uq = (double)d->uq, vp = (double)d->vp, vq = (double)d->vq;
        double second = d->w2.data != NULL ? vq * ks * vp : (double)d->rank * (vq * ks + vp);
        return uq * second + up * uq * vp;
    }
    /* No shorter form than the product itself: the delta is built in tiles and multiplied. */
    return all;
}
