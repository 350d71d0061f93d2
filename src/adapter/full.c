/* SPDX-License-Identifier: MIT
 * Full differences: W + s D, with D as large as the weight. Neither rank nor alpha. */
#include "adapter/family.h"

kron_status full_bind(const struct bind *b, struct delta *d)
{
    const struct layer *l = b->l;
    const struct tensor *diff = b->m->part[AP_DIFF];

    if (!shape_is_kernel(diff, l->out, l->in, l->kh, l->kw))
        return misfit(b, diff);
    d->kind = DELTA_FULL;
    d->scale = 1;
    return factor_view(b, diff, l->out, layer_k(l), &d->d);
}
