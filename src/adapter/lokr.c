/* SPDX-License-Identifier: MIT
 * LoKr (Yeh et al. 2023): W + s c kron(w1, w2), where w1 mixes groups of channels and w2 holds
 * the kernel window. Layouts found in files, either side on its own:
 *
 *   w1  whole [up, uq]; or w1_a[up, r] w1_b[r, uq]: multiplied out, it is small
 *   w2  whole [vp, vq(, kh, kw)]; flat [vp, vq*kh*kw] (kohya's KronA and CDKA);
 *       w2_a[vp, r] w2_b[r, vq*kh*kw]; with t2[r, r, kh, kw]: w2_a[r, vp], w2_b[r, vq], so that
 *       w2[p, q, :] = sum over i, j of t2[i, j, :] w2_a[i, p] w2_b[j, q]
 *
 * Trainers choose the four sizes differently: they are read from the tensors, never computed
 * from a factor. Flat files cut in*kh*kw, not in; where uq does not divide `in`, no product over
 * channels says the same and the difference is multiplied out. */
#include "adapter/family.h"

static kron_status whole_or_pair(const struct adapter_module *m, enum ap whole, enum ap a,
                                 enum ap b, const char *whole_text, const char *a_text,
                                 const char *b_text)
{
    if (m->part[whole] != NULL)
        return KRON_OK;
    if (m->part[a] == NULL && m->part[b] == NULL)
        return err_set(KRON_ERR_FORMAT, "has no %s", whole_text);
    return need_both(m, a, b, a_text, b_text);
}

static kron_status misfit_pair(const struct layer *l, const struct tensor *w1,
                               const struct tensor *w2)
{
    char a[64], b[64], want[64];

    return err_set(KRON_ERR_SHAPE, "w1 %s and w2 %s do not make the layer's %s",
                   tensor_shape_text(w1, a, sizeof a), tensor_shape_text(w2, b, sizeof b),
                   layer_shape_text(l, want, sizeof want));
}

/* w1's two sizes from whichever form is there. */
static bool w1_shape(const struct adapter_module *m, struct lokr_shape *s)
{
    const struct tensor *w1 = m->part[AP_LOKR_W1], *a = m->part[AP_LOKR_W1_A];
    const struct tensor *b = m->part[AP_LOKR_W1_B];

    if (w1 != NULL) {
        s->up = w1->dim[0];
        s->uq = w1->dim[1];
        return shape_is(w1, s->up, s->uq, 1, 1);
    }
    s->up = a->dim[0];
    s->uq = b->dim[1];
    s->rank = b->dim[0];
    return s->rank > 0 && shape_is(a, s->up, s->rank, 1, 1) &&
           shape_is(b, s->rank, s->uq, 1, 1);
}

/* True if w2's tensors are vp rows of m numbers. */
static bool w2_fits(const struct adapter_module *mod, const struct layer *l,
                    struct lokr_shape *s)
{
    const struct tensor *w2 = mod->part[AP_LOKR_W2], *a = mod->part[AP_LOKR_W2_A];
    const struct tensor *b = mod->part[AP_LOKR_W2_B], *t = mod->part[AP_LOKR_T2];
    int64_t vq = s->across ? 0 : l->in / s->uq;

    if (w2 != NULL)
        return shape_is(w2, s->vp, s->m, 1, 1) || shape_is(w2, s->vp, vq, l->kh, l->kw);
    s->rank = t != NULL ? t->dim[0] : b->dim[0];
    if (s->rank < 1)
        return false;
    if (t != NULL)
        return !s->across && t->dim[1] > 0 && shape_is(t, s->rank, t->dim[1], l->kh, l->kw) &&
               shape_is(a, s->rank, s->vp, 1, 1) && shape_is(b, t->dim[1], vq, 1, 1);
    return !s->across && shape_is(a, s->vp, s->rank, 1, 1) &&
           shape_is_kernel(b, s->rank, vq, l->kh, l->kw);
}

kron_status lokr_shape(const struct adapter_module *m, const struct layer *l,
                       struct lokr_shape *s)
{
    const struct tensor *const *p = m->part;
    const struct tensor *w1, *w2;

    *s = (struct lokr_shape){0};
    KRON_TRY(whole_or_pair(m, AP_LOKR_W1, AP_LOKR_W1_A, AP_LOKR_W1_B, "lokr_w1", "lokr_w1_a",
                           "lokr_w1_b"));
    KRON_TRY(whole_or_pair(m, AP_LOKR_W2, AP_LOKR_W2_A, AP_LOKR_W2_B, "lokr_w2", "lokr_w2_a",
                           "lokr_w2_b"));
    w1 = p[AP_LOKR_W1] != NULL ? p[AP_LOKR_W1] : p[AP_LOKR_W1_A];
    w2 = p[AP_LOKR_W2] != NULL ? p[AP_LOKR_W2] : p[AP_LOKR_W2_B];
    if (!w1_shape(m, s) || s->up < 1 || s->uq < 1 || l->out % s->up != 0 ||
        layer_k(l) % s->uq != 0)
        return misfit_pair(l, w1, w2);
    s->vp = l->out / s->up;
    s->m = layer_k(l) / s->uq;
    s->across = l->in % s->uq != 0;
    return w2_fits(m, l, s) ? KRON_OK : misfit_pair(l, w1, w2);
}

/* w2, whole or as A[vp, r] B[r, m]. */
static kron_status bind_w2(const struct bind *b, const struct lokr_shape *s, struct delta *d)
{
    const struct tensor *const *p = b->m->part;
    const struct tensor *t = p[AP_LOKR_T2];
    int64_t ks = (int64_t)b->l->kh * b->l->kw;

    if (p[AP_LOKR_W2] != NULL)
        return factor_view(b, p[AP_LOKR_W2], s->vp, s->m, &d->w2);
    d->rank = s->rank;
    if (t == NULL) {
        KRON_TRY(factor_view(b, p[AP_LOKR_W2_A], s->vp, s->rank, &d->a));
        return factor_view(b, p[AP_LOKR_W2_B], s->rank, s->m, &d->b);
    }
    KRON_TRY(factor_transposed(b, p[AP_LOKR_W2_A], s->vp, s->rank, &d->a));
    return factor_core(b, t, p[AP_LOKR_W2_B], s->rank, t->dim[1], s->m / ks, ks, &d->b);
}

kron_status lokr_bind(const struct bind *b, struct delta *d)
{
    const struct tensor *const *p = b->m->part;
    struct lokr_shape s;

    KRON_TRY(lokr_shape(b->m, b->l, &s));
    d->scale = (float)bind_scale(b, s.rank, s.uq);
    if (p[AP_LOKR_W1] != NULL)
        KRON_TRY(factor_view(b, p[AP_LOKR_W1], s.up, s.uq, &d->w1));
    else
        KRON_TRY(factor_product(b, p[AP_LOKR_W1_A], p[AP_LOKR_W1_B], s.up,
                                p[AP_LOKR_W1_B]->dim[0], s.uq, &d->w1));
    if (s.across) {
        struct tensor w1 = d->w1;

        d->w1 = (struct tensor){0};
        d->kind = DELTA_FULL;
        return factor_kron(b, &w1, p[AP_LOKR_W2], &s, &d->d);
    }
    d->kind = DELTA_KRON;
    d->up = s.up;
    d->uq = s.uq;
    d->vp = s.vp;
    d->vq = b->l->in / s.uq;
    return bind_w2(b, &s, d);
}
