/* SPDX-License-Identifier: MIT
 * The families by their definitions: number by number from the file's own tensors, in double,
 * sharing nothing with the canonical forms but the scale. Slow; for tests. */
#include "adapter/family.h"

static double at(const struct tensor *t, int64_t i)
{
    float v;

    tensor_decode(t, i, 1, &v);
    return v;
}

/* sum over p, q of core[p, q, w] a[p, o] b[q, i] of a Tucker form, where a's rows are p. */
static double tucker_at(const struct tensor *core, const struct tensor *a, const struct tensor *b,
                        int64_t ks, int64_t o, int64_t i, int64_t w)
{
    int64_t r1 = core->dim[0], r2 = core->dim[1];
    double sum = 0;

    for (int64_t p = 0; p < r1; p++)
        for (int64_t q = 0; q < r2; q++)
            sum += at(core, (p * r2 + q) * ks + w) * at(a, p * a->dim[1] + o) *
                   at(b, q * b->dim[1] + i);
    return sum;
}

/* (a b)[o, c] where b has `width` columns in all. */
static double pair_at(const struct tensor *a, const struct tensor *b, int64_t width, int64_t o,
                      int64_t c)
{
    int64_t r = a->dim[1];
    double sum = 0;

    for (int64_t q = 0; q < r; q++)
        sum += at(a, o * r + q) * at(b, q * width + c);
    return sum;
}

struct place { /* of a number of W[out, in, kh*kw] */
    int64_t o, i, w, c, ks, k;
};

static double lora_at(const struct adapter_module *m, const struct place *x)
{
    const struct tensor *up = m->part[AP_LORA_UP], *down = m->part[AP_LORA_DOWN];
    const struct tensor *mid = m->part[AP_LORA_MID];
    double sum = 0;

    if (mid == NULL)
        return pair_at(up, down, x->k, x->o, x->c);
    for (int64_t p = 0; p < mid->dim[0]; p++)
        for (int64_t q = 0; q < mid->dim[1]; q++)
            sum += at(up, x->o * mid->dim[0] + p) *
                   at(mid, (p * mid->dim[1] + q) * x->ks + x->w) *
                   at(down, q * down->dim[1] + x->i);
    return sum;
}

static double loha_at(const struct adapter_module *m, const struct place *x)
{
    const struct tensor *const *p = m->part;

    if (p[AP_HADA_T1] != NULL)
        return tucker_at(p[AP_HADA_T1], p[AP_HADA_W1_A], p[AP_HADA_W1_B], x->ks, x->o, x->i,
                         x->w) *
               tucker_at(p[AP_HADA_T2], p[AP_HADA_W2_A], p[AP_HADA_W2_B], x->ks, x->o, x->i, x->w);
    return pair_at(p[AP_HADA_W1_A], p[AP_HADA_W1_B], x->k, x->o, x->c) *
           pair_at(p[AP_HADA_W2_A], p[AP_HADA_W2_B], x->k, x->o, x->c);
}

static double lokr_at(const struct adapter_module *m, const struct lokr_shape *s,
                      const struct place *x)
{
    const struct tensor *const *p = m->part;
    int64_t i = x->o / s->vp, j = x->o % s->vp, l = x->c / s->m, n = x->c % s->m;
    double w1 = p[AP_LOKR_W1] != NULL
                    ? at(p[AP_LOKR_W1], i * s->uq + l)
                    : pair_at(p[AP_LOKR_W1_A], p[AP_LOKR_W1_B], s->uq, i, l);

    if (p[AP_LOKR_W2] != NULL)
        return w1 * at(p[AP_LOKR_W2], j * s->m + n);
    if (p[AP_LOKR_T2] != NULL)
        return w1 * tucker_at(p[AP_LOKR_T2], p[AP_LOKR_W2_A], p[AP_LOKR_W2_B], x->ks, j,
                              n / x->ks, n % x->ks);
    return w1 * pair_at(p[AP_LOKR_W2_A], p[AP_LOKR_W2_B], s->m, j, n);
}

/* Whether the module fits: asks the family itself, whose factors are dropped at once. */
static kron_status check_fit(const struct adapter_file *f, const struct adapter_module *m,
                             const struct layer *l, enum fam fam)
{
    struct factor_pool pool = {0};
    struct bind b = {f, m, l, &pool};
    struct delta d = {0};
    kron_status status = fam == FAM_LORA   ? lora_bind(&b, &d)
                         : fam == FAM_LOHA ? loha_bind(&b, &d)
                         : fam == FAM_LOKR ? lokr_bind(&b, &d)
                                           : full_bind(&b, &d);

    factor_pool_free(&pool);
    return status;
}

static kron_status add_family(const struct adapter_file *f, const struct adapter_module *m,
                              const struct layer *l, enum fam fam, double *dw)
{
    struct lokr_shape s = {0};
    struct place x = {.ks = (int64_t)l->kh * l->kw, .k = layer_k(l)};
    double scale = 1;

    KRON_TRY(check_fit(f, m, l, fam));
    if (fam == FAM_LORA)
        scale = module_scale(f, m, m->part[AP_LORA_DOWN]->dim[0], 0);
    if (fam == FAM_LOHA)
        scale = module_scale(f, m, m->part[AP_HADA_W1_B]->dim[0], 0);
    if (fam == FAM_LOKR) {
        KRON_TRY(lokr_shape(m, l, &s));
        scale = module_scale(f, m, s.rank, s.uq);
    }
    for (x.o = 0; x.o < l->out; x.o++)
        for (x.c = 0; x.c < x.k; x.c++) {
            double v;
            x.i = x.c / x.ks;
            x.w = x.c % x.ks;
            v = fam == FAM_LORA   ? lora_at(m, &x)
                : fam == FAM_LOHA ? loha_at(m, &x)
                : fam == FAM_LOKR ? lokr_at(m, &s, &x)
                                  : at(m->part[AP_DIFF], x.o * x.k + x.c);
            dw[x.o * x.k + x.c] += scale * v;
        }
    return KRON_OK;
}

kron_status adapter_reference(const struct adapter_file *f, int module, const struct layer *l,
                              double *dw)
{
    const struct adapter_module *m = &f->modules[module];
    unsigned fams = module_families(m);

    for (int i = 0; i < FAM_COUNT; i++)
        if ((fams & 1u << i) && fam_kind((enum fam)i) == FAM_WHOLE)
            return err_set(KRON_ERR_UNSUPPORTED, "%s: %s is not supported yet", m->prefix,
                           fam_text((enum fam)i));
    for (int i = FAM_LORA; i <= FAM_FULL; i++)
        if (fams & 1u << i)
            KRON_TRY(add_family(f, m, l, (enum fam)i, dw));
    return KRON_OK;
}
