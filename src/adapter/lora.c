/* SPDX-License-Identifier: MIT
 * LoRA (Hu et al. 2021) and LoCon: W + s alpha/r up down. On a k x k convolution `down` holds the
 * window and `up` is 1x1; with a core (`lora_mid`, LoCon in CP form) both are 1x1 and the core
 * holds the window. The core is folded into `down`: its r*r*k*k numbers are few. */
#include "adapter/family.h"

kron_status lora_bind(const struct bind *b, struct delta *d)
{
    const struct layer *l = b->l;
    const struct tensor *up = b->m->part[AP_LORA_UP], *down = b->m->part[AP_LORA_DOWN];
    const struct tensor *mid = b->m->part[AP_LORA_MID];
    int64_t r, r_up;

    if (up == NULL || down == NULL)
        return err_set(KRON_ERR_FORMAT, "has no %s", up == NULL ? "lora_up" : "lora_down");
    r = down->dim[0];
    r_up = mid != NULL ? mid->dim[0] : r;
    if (r < 1 || r_up < 1 || !(mid ? shape_is(down, r, l->in, 1, 1)
                                   : shape_is_kernel(down, r, l->in, l->kh, l->kw)))
        return misfit(b, down);
    if (mid != NULL && !shape_is(mid, r_up, r, l->kh, l->kw))
        return misfit(b, mid);
    if (!shape_is(up, l->out, r_up, 1, 1))
        return misfit(b, up);
    d->kind = DELTA_LOW_RANK;
    d->rank = r_up;
    d->scale = (float)bind_scale(b, r, 0);
    KRON_TRY(factor_view(b, up, l->out, r_up, &d->a));
    if (mid != NULL)
        return factor_core(b, mid, down, r_up, r, l->in, (int64_t)l->kh * l->kw, &d->b);
    return factor_view(b, down, r, layer_k(l), &d->b);
}
