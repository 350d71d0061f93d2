/* SPDX-License-Identifier: MIT
 * LoHa (Hyeon-Woo et al. 2021): W + s alpha/r (w1_a w1_b) * (w2_a w2_b), elementwise. With cores
 * t1, t2[r, r, kh, kw] each product is sum over i, j of t[i, j, :] a[i, o] b[j, p], so that `a`
 * lies [r, out] and `b` [r, in]. */
#include "adapter/family.h"

/* One of the two products as A[out, r], B[r, k]. */
static kron_status bind_pair(const struct bind *b, const struct tensor *a,
                             const struct tensor *right, const struct tensor *core, int64_t *rank,
                             struct tensor *out_a, struct tensor *out_b)
{
    const struct layer *l = b->l;
    int64_t r = right->dim[0], r_a = core != NULL ? core->dim[0] : r;

    if (r < 1 || r_a < 1 || !(core ? shape_is(right, r, l->in, 1, 1)
                                   : shape_is_kernel(right, r, l->in, l->kh, l->kw)))
        return misfit(b, right);
    if (core != NULL && !shape_is(core, r_a, r, l->kh, l->kw))
        return misfit(b, core);
    if (core ? !shape_is(a, r_a, l->out, 1, 1) : !shape_is(a, l->out, r, 1, 1))
        return misfit(b, a);
    *rank = r_a;
    if (core == NULL) {
        KRON_TRY(factor_view(b, a, l->out, r, out_a));
        return factor_view(b, right, r, layer_k(l), out_b);
    }
    KRON_TRY(factor_transposed(b, a, l->out, r_a, out_a));
    return factor_core(b, core, right, r_a, r, l->in, (int64_t)l->kh * l->kw, out_b);
}

kron_status loha_bind(const struct bind *b, struct delta *d)
{
    static const char *const names[] = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"};
    const struct tensor *const *p = b->m->part;
    int64_t second;

    for (int i = 0; i < 4; i++)
        if (p[AP_HADA_W1_A + i] == NULL)
            return err_set(KRON_ERR_FORMAT, "has no %s", names[i]);
    KRON_TRY(need_both(b->m, AP_HADA_T1, AP_HADA_T2, "hada_t1", "hada_t2"));
    KRON_TRY(bind_pair(b, p[AP_HADA_W1_A], p[AP_HADA_W1_B], p[AP_HADA_T1], &d->rank, &d->a,
                       &d->b));
    KRON_TRY(bind_pair(b, p[AP_HADA_W2_A], p[AP_HADA_W2_B], p[AP_HADA_T2], &second, &d->c,
                       &d->d));
    if (second != d->rank)
        return err_set(KRON_ERR_SHAPE, "its two products have different ranks, %lld and %lld",
                       (long long)d->rank, (long long)second);
    d->kind = DELTA_HADAMARD;
    d->scale = (float)bind_scale(b, p[AP_HADA_W1_B]->dim[0], 0);
    return KRON_OK;
}
