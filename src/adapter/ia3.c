/* SPDX-License-Identifier: MIT
 * IA3 (Liu et al. 2022): rows or input channels of W times a vector. LyCORIS stores what is added
 * to 1 (`weight`, with `on_input` saying which side); PEFT stores the factor itself (`ia3_l`, its
 * shape saying which), and scales the output, bias included. */
#include "adapter/family.h"

static kron_status gain_of(const struct bind *b, const struct tensor *t, float add,
                           struct delta *d)
{
    int64_t n = d->axis == GAIN_OUT ? b->l->out : b->l->in;
    float *own;

    if (tensor_elements(t) != n)
        return misfit(b, t);
    KRON_TRY(factor_floats(b, t, n, &d->gain));
    own = (float *)(uintptr_t)d->gain;
    for (int64_t i = 0; i < n; i++)
        own[i] += add;
    return KRON_OK;
}

/* The bias gains (l - 1) of itself. */
static kron_status scale_bias(const struct bind *b, struct delta *d)
{
    const struct layer *l = b->l;
    float *own;

    if (l->bias.data == NULL)
        return KRON_OK;
    KRON_TRY(factor_floats(b, &l->bias, l->out, &d->bias));
    own = (float *)(uintptr_t)d->bias;
    for (int64_t i = 0; i < l->out; i++)
        own[i] *= d->gain[i] - 1;
    return KRON_OK;
}

kron_status ia3_bind(const struct bind *b, struct delta *d)
{
    const struct tensor *l = b->m->part[AP_IA3_L], *w = b->m->part[AP_IA3_WEIGHT];
    const struct tensor *on_input = b->m->part[AP_IA3_ON_INPUT];
    float input = 0;

    d->kind = DELTA_NONE;
    if (l != NULL) {
        bool out = shape_is(l, b->l->out, 1, 1, 1) || (b->l->is_conv &&
                                                       shape_is(l, 1, b->l->out, 1, 1));
        d->axis = out ? GAIN_OUT : GAIN_IN;
        KRON_TRY(gain_of(b, l, 0, d));
        return out ? scale_bias(b, d) : KRON_OK;
    }
    if (w == NULL || on_input == NULL)
        return err_set(KRON_ERR_FORMAT, "has no %s", w == NULL ? "weight" : "on_input");
    if (tensor_elements(on_input) != 1)
        return err_set(KRON_ERR_SHAPE, "on_input is not one number");
    tensor_decode(on_input, 0, 1, &input);
    d->axis = input != 0 ? GAIN_IN : GAIN_OUT;
    return gain_of(b, w, 1, d);
}
