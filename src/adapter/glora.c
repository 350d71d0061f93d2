/* SPDX-License-Identifier: MIT
 * GLoRA (Chavan et al. 2023): W + s c (W left right + up down), c = alpha / rank. LyCORIS stores
 * left, right, up, down as a1[in, r], a2[r, in], b1[out, r], b2[r, k]; its older files have the
 * pairs the other way round, a1[r, in], a2[in, r], b1[r, k], b2[out, r]: shapes tell. A core bm
 * [r, r, kh, kw] goes between up and down. */
#include "adapter/family.h"

static bool fits(const struct bind *b, const struct glora_parts *g, bool core)
{
    const struct layer *l = b->l;

    return g->rank > 0 && shape_is(g->left, l->in, g->rank, 1, 1) &&
           shape_is(g->right, g->rank, l->in, 1, 1) && shape_is(g->up, l->out, g->rank, 1, 1) &&
           (core ? shape_is(g->down, g->rank, l->in, 1, 1)
                 : shape_is_kernel(g->down, g->rank, l->in, l->kh, l->kw));
}

kron_status glora_parts(const struct bind *b, struct glora_parts *g)
{
    static const char *const names[] = {"a1", "a2", "b1", "b2"};
    const struct tensor *const *p = b->m->part;
    const struct tensor *bm = p[AP_GLORA_BM];

    for (int i = 0; i < 4; i++)
        if (p[AP_GLORA_A1 + i] == NULL)
            return err_set(KRON_ERR_FORMAT, "has no %s", names[i]);
    *g = (struct glora_parts){p[AP_GLORA_A1], p[AP_GLORA_A2], p[AP_GLORA_B1], p[AP_GLORA_B2],
                              p[AP_GLORA_A2]->dim[0]};
    if (!fits(b, g, bm != NULL)) {
        *g = (struct glora_parts){p[AP_GLORA_A2], p[AP_GLORA_A1], p[AP_GLORA_B2], p[AP_GLORA_B1],
                                  p[AP_GLORA_A1]->dim[0]};
        if (!fits(b, g, bm != NULL))
            return misfit(b, p[AP_GLORA_A1]);
    }
    if (bm != NULL && !shape_is(bm, g->rank, g->rank, b->l->kh, b->l->kw))
        return misfit(b, bm);
    return KRON_OK;
}

kron_status glora_bind_input(const struct bind *b, struct delta *d)
{
    struct glora_parts g;

    KRON_TRY(glora_parts(b, &g));
    d->kind = DELTA_INPUT;
    d->rank = g.rank;
    d->scale = (float)bind_scale(b, g.rank, 0);
    KRON_TRY(factor_view(b, g.left, b->l->in, g.rank, &d->a));
    return factor_view(b, g.right, g.rank, b->l->in, &d->b);
}

kron_status glora_bind_sum(const struct bind *b, struct delta *d)
{
    const struct tensor *bm = b->m->part[AP_GLORA_BM];
    struct glora_parts g;

    KRON_TRY(glora_parts(b, &g));
    d->kind = DELTA_LOW_RANK;
    d->rank = g.rank;
    d->scale = (float)bind_scale(b, g.rank, 0);
    KRON_TRY(factor_view(b, g.up, b->l->out, g.rank, &d->a));
    if (bm != NULL)
        return factor_core(b, bm, g.down, g.rank, g.rank, b->l->in,
                           (int64_t)b->l->kh * b->l->kw, &d->b);
    return factor_view(b, g.down, g.rank, layer_k(b->l), &d->b);
}
