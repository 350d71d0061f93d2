/* SPDX-License-Identifier: MIT
 * Modules whose rows lie in several layers, or in part of one: q, k and v trained as one
 * projection, and the reverse. Factors are cut, as views, to the rows that a layer takes. */
#include "adapter/family.h"

/* Rows [from, from + rows) of a factor whose rows are the module's. */
static void cut(struct tensor *t, const struct adapter_target *to)
{
    *t = tensor_rows(t, to->from, to->rows);
}

static void cut_floats(const float **p, const struct adapter_target *to)
{
    if (*p != NULL)
        *p += to->from;
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

/* Blocks of rows that are turned together must lie in one layer. */
static kron_status cut_blocks(struct delta *d, const struct adapter_target *to)
{
    if (d->butterfly || to->from % d->block != 0 || to->rows % d->block != 0)
        return err_set(KRON_ERR_UNSUPPORTED, "turns rows of several layers of the model together");
    d->mix += to->from / d->block * d->block * d->block;
    d->n_blocks = to->rows / d->block;
    cut_floats(&d->rescale, to);
    return KRON_OK;
}

kron_status delta_window(struct delta *d, const struct adapter_target *t)
{
    bool part = t->rows != d->rows; /* there are other targets */

    d->at = t->at;
    d->rows = t->rows;
    d->from = 0;
    if (!part)
        return KRON_OK;
    if (d->axis == GAIN_IN && d->magnitude != NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "DoRA over input channels needs the length of "
                       "columns that the model holds in several layers");
    if (d->axis == GAIN_OUT) {
        cut_floats(&d->gain, t);
        cut_floats(&d->magnitude, t);
    }
    cut_floats(&d->bias, t);
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
    case DELTA_LEFT:
        return cut_blocks(d, t);
    case DELTA_INPUT: /* these act on each row alone, whatever its number */
    case DELTA_RIGHT:
    case DELTA_NONE:
        break;
    }
    return KRON_OK;
}
