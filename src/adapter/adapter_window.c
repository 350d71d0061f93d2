/* SPDX-License-Identifier: MIT
 * Modules whose rows lie in several layers, or in part of one: q, k and v trained as one
 * projection, and the reverse. Factors are cut, as views, to the rows that a layer takes. */
#include "adapter/family.h"

/* Rows [from, from + rows) of a factor whose rows are the module's. */
static void cut(struct tensor *t, const struct adapter_target *to)
{
    *t = tensor_rows(t, to->from, to->rows);
}

/* Row o of a product is i*vp + j, so a border may fall within row i of w1: whole rows of w1 are
 * kept, and `from` says where in them the layer's rows begin. */
static void cut_kron(struct delta *d, const struct adapter_target *to)
{
    int64_t first = to->from / d->vp, end = (to->from + to->rows + d->vp - 1) / d->vp;

    d->w1 = tensor_rows(&d->w1, first, end - first);
    d->up = end - first;
    d->from = to->from - first * d->vp;
}

void delta_window(struct delta *d, const struct adapter_target *t)
{
    d->at = t->at;
    d->rows = t->rows;
    d->from = 0;
    switch (d->kind) {
    case DELTA_HADAMARD:
        cut(&d->c, t);
        cut(&d->a, t);
        break;
    case DELTA_LOW_RANK:
        cut(&d->a, t);
        break;
    case DELTA_KRON:
        cut_kron(d, t);
        break;
    case DELTA_FULL:
        cut(&d->d, t);
        break;
    }
}
