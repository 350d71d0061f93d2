/* SPDX-License-Identifier: MIT
 * What a file says by itself: ranks, factors, alphas and scales, from its tensors' shapes alone,
 * as far as these tell without a layer. */
#include "adapter/family.h"
#include <math.h>

void adapter_families(const struct adapter_file *f, struct str *out)
{
    unsigned fams = 0;

    for (int i = 0; i < f->n_modules; i++)
        fams |= module_families(&f->modules[i]);
    for (int i = 0; i < FAM_COUNT; i++)
        if (fams & 1u << i)
            str_addf(out, "%s%s", out->len > 0 ? " + " : "", fam_text((enum fam)i));
    if (fams == 0)
        str_add(out, "no family");
}

void adapter_range_add(struct adapter_range *r, double v)
{
    r->min = r->n == 0 || v < r->min ? v : r->min;
    r->max = r->n == 0 || v > r->max ? v : r->max;
    r->n++;
}

/* The rank that a module's scale is taken from (0: every factor is whole), and LoKr's w1[up, uq].
 * False for families that have no such scale. */
static bool numbers(const struct adapter_module *m, int64_t *rank, int64_t *up, int64_t *uq)
{
    const struct tensor *const *p = m->part;
    const struct tensor *w1 = p[AP_LOKR_W1] ? p[AP_LOKR_W1] : p[AP_LOKR_W1_A];

    *rank = *up = *uq = 0;
    if (p[AP_LORA_DOWN] != NULL || p[AP_HADA_W1_B] != NULL) {
        *rank = (p[AP_LORA_DOWN] ? p[AP_LORA_DOWN] : p[AP_HADA_W1_B])->dim[0];
        return true;
    }
    if (w1 == NULL)
        return false;
    *up = w1->dim[0];
    *uq = (p[AP_LOKR_W1_B] ? p[AP_LOKR_W1_B] : w1)->dim[1];
    if (p[AP_LOKR_W2] == NULL && p[AP_LOKR_T2] != NULL)
        *rank = p[AP_LOKR_T2]->dim[0];
    else if (p[AP_LOKR_W2] == NULL && p[AP_LOKR_W2_B] != NULL)
        *rank = p[AP_LOKR_W2_B]->dim[0];
    else if (p[AP_LOKR_W1_B] != NULL)
        *rank = p[AP_LOKR_W1_B]->dim[0];
    return true;
}

static void add_module(const struct adapter_file *f, const struct adapter_module *m,
                       struct adapter_summary *s)
{
    const struct tensor *alpha = m->part[AP_ALPHA];
    int64_t rank, up, uq;
    float v;

    for (int i = 0; i < AP_COUNT; i++)
        if (m->part[i] != NULL && i != AP_ALPHA && i != AP_SCALE && i != AP_SCALAR)
            s->types |= 1u << m->part[i]->type;
    if (alpha != NULL && tensor_elements(alpha) == 1) {
        tensor_decode(alpha, 0, 1, &v);
        adapter_range_add(&s->alpha, v);
    }
    if (!numbers(m, &rank, &up, &uq))
        return;
    if (rank > 0)
        adapter_range_add(&s->rank, (double)rank);
    if (up > 0)
        adapter_range_add(&s->factor, (double)up);
    adapter_range_add(&s->scale, module_scale(f, m, rank, uq));
    s->n_whole += up > 0 && rank == 0;
}

void adapter_summarise(const struct adapter_file *f, struct adapter_summary *s)
{
    *s = (struct adapter_summary){.n_modules = f->n_modules,
                                  .n_tensors = f->n_tensors,
                                  .n_embeddings = f->n_embeddings,
                                  .arch = f->arch};
    for (int64_t i = 0; i < st_count(f->st); i++)
        s->bytes += st_at(f->st, i)->bytes;
    for (int i = 0; i < f->n_modules; i++)
        add_module(f, &f->modules[i], s);
}

/* --- what may be wrong with it --- */

/* LyCORIS writes alpha = dim beside pairs that are whole, so that alpha / dim is 1, and all
 * loaders take 1. In a file whose metadata say otherwise the pairs were trained with alpha / dim
 * (ComfyUI issue 15114), unless dim is the huge number that asks for whole pairs. */
bool adapter_alpha_lost(const struct adapter_file *f, double *wanted)
{
    enum { ASKS_FOR_WHOLE = 10000 };
    const char *dim_text = st_meta(f->st, "ss_network_dim");
    struct adapter_summary s;
    double dim;

    adapter_summarise(f, &s);
    if (dim_text == NULL || !str_to_double(dim_text, &dim) || !(dim >= 1) ||
        dim >= ASKS_FOR_WHOLE || s.n_whole == 0 || f->cdka || s.alpha.n == 0 ||
        s.alpha.min != s.alpha.max || !isfinite(s.alpha.min) || s.alpha.min <= 0)
        return false;
    *wanted = s.alpha.min / dim;
    return fabs(*wanted - 1) > 0.01;
}
