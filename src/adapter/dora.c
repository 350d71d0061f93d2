/* SPDX-License-Identifier: MIT
 * DoRA (Liu et al. 2024) over any product: at strength 1 a row, or an input channel, of W + c D is
 * brought to the length that `dora_scale` says (LyCORIS: [out, 1, ..] or [1, in, ..]) or
 * `lora_magnitude_vector` (PEFT: [out] or [1, out, 1, 1]); other strengths interpolate from W. */
#include "adapter/family.h"
#include <string.h>

kron_status dora_bind(const struct bind *b, struct delta *d)
{
    const struct layer *l = b->l;
    const struct tensor *m = b->m->part[AP_DORA_SCALE];
    bool peft = strstr(m->name, "magnitude_vector") != NULL;

    if (shape_is(m, l->out, 1, 1, 1) || (peft && shape_is(m, 1, l->out, 1, 1)))
        d->axis = GAIN_OUT;
    else if (shape_is(m, 1, l->in, 1, 1))
        d->axis = GAIN_IN;
    else
        return misfit(b, m);
    return factor_floats(b, m, tensor_elements(m), &d->magnitude);
}
