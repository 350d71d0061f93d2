/* SPDX-License-Identifier: MIT
 * Changes that are stored as they are: W + s D with D as large as the weight, of any layer, norms
 * too; weights that are replaced; biases. Neither rank nor alpha, but for the bias of a LoRA's
 * second product (PEFT's lora_bias), which counts as that product does. */
#include "adapter/family.h"

static kron_status bind_whole(const struct bind *b, const struct tensor *t, struct delta *d)
{
    const struct layer *l = b->l;

    if (!shape_is_kernel(t, l->out, l->in, l->kh, l->kw))
        return misfit(b, t);
    d->kind = DELTA_FULL;
    d->scale = 1;
    return factor_view(b, t, l->out, layer_k(l), &d->d);
}

kron_status full_bind(const struct bind *b, struct delta *d)
{
    return bind_whole(b, b->m->part[AP_DIFF], d);
}

kron_status set_bind(const struct bind *b, struct delta *d)
{
    d->replace = true;
    return bind_whole(b, b->m->part[AP_SET_WEIGHT], d);
}

static kron_status bind_bias(const struct bind *b, const struct tensor *t, double scale,
                             struct delta *d)
{
    float *own;

    if (tensor_elements(t) != b->l->out)
        return misfit(b, t);
    KRON_TRY(factor_floats(b, t, b->l->out, &d->bias));
    own = (float *)(uintptr_t)d->bias;
    for (int64_t i = 0; i < b->l->out; i++)
        own[i] = (float)(scale * (double)own[i]);
    return KRON_OK;
}

kron_status norm_bind(const struct bind *b, struct delta *d)
{
    const struct tensor *w = b->m->part[AP_W_NORM], *bias = b->m->part[AP_B_NORM];

    if (b->l->kind != LAYER_NORM)
        return err_set(KRON_ERR_SHAPE, "changes a norm, and the layer is none");
    if (w != NULL)
        KRON_TRY(bind_whole(b, w, d));
    return bias != NULL ? bind_bias(b, bias, 1, d) : KRON_OK;
}

kron_status bias_bind(const struct bind *b, struct delta *d)
{
    const struct tensor *const *p = b->m->part;

    if (p[AP_DIFF_B] != NULL)
        return bind_bias(b, p[AP_DIFF_B], 1, d);
    if (p[AP_LORA_DOWN] == NULL)
        return err_set(KRON_ERR_FORMAT, "has a bias of lora_up but no lora_down");
    return bind_bias(b, p[AP_LORA_BIAS], bind_scale(b, p[AP_LORA_DOWN]->dim[0], 0), d);
}
