/* SPDX-License-Identifier: MIT
 * What stands before the product of a module's factors, by the rules of the trainers:
 *
 *   a `scale` tensor           that number (A1111)
 *   no low-rank factor         1, whatever alpha says: LyCORIS writes its dim there, often 10000
 *                              or 100000, which is infinite in f16. Two exceptions: kohya's CDKA
 *                              and KronA, told by their metadata, alpha / sqrt(uq); PEFT, told by
 *                              its config, alpha / r
 *   alpha in the file          alpha / rank, the rank from the tensor's shape: files with a rank
 *                              for each layer hold one number in their metadata
 *   alpha in PEFT's config     alpha / rank, or alpha / sqrt(rank) with use_rslora
 *   no alpha                   1
 *
 * LyCORIS' own rs-LoRA needs no rule: it stores an alpha that makes alpha / rank right. */
#include "adapter/family.h"
#include <math.h>
#include <string.h>

/* The first element of a 0-d or 1-element tensor of any number type. */
static bool scalar(const struct tensor *t, double *out)
{
    float v;

    if (t == NULL || tensor_elements(t) != 1)
        return false;
    tensor_decode(t, 0, 1, &v);
    *out = v;
    return true;
}

/* PEFT's alpha of a module, NAN if there is none: a pattern names the end of a module's name. */
static double config_alpha(const struct adapter_config *c, const char *prefix)
{
    size_t len = strlen(prefix);

    for (int i = 0; i < c->n_patterns; i++) {
        size_t n = strlen(c->patterns[i].key);
        if (n <= len && strcmp(prefix + len - n, c->patterns[i].key) == 0 &&
            (n == len || prefix[len - n - 1] == '.'))
            return c->patterns[i].alpha;
    }
    return c->alpha;
}

static const struct adapter_config *config_of(const struct adapter_file *f, const char *prefix)
{
    if (str_starts(prefix, "text_encoder_2."))
        return &f->config[CONFIG_TE1];
    if (str_starts(prefix, "text_encoder."))
        return &f->config[CONFIG_TE0];
    return &f->config[CONFIG_UNET];
}

static double by_config(const struct adapter_file *f, const struct adapter_module *m, double rank)
{
    const struct adapter_config *c = config_of(f, m->prefix);
    double alpha = config_alpha(c, m->prefix);

    if (isnan(alpha) || !(rank > 0))
        return 1;
    return alpha / (c->rslora ? sqrt(rank) : rank);
}

static double by_rule(const struct adapter_file *f, const struct adapter_module *m, int64_t rank,
                      int64_t uq)
{
    double alpha = 1;
    bool has_alpha = scalar(m->part[AP_ALPHA], &alpha);

    if (scalar(m->part[AP_SCALE], &alpha))
        return alpha;
    if (rank == 0) {
        if (f->cdka && has_alpha && uq > 0)
            return alpha / sqrt((double)uq);
        return f->has_config && !has_alpha
                   ? by_config(f, m, config_of(f, m->prefix)->r)
                   : 1;
    }
    if (has_alpha)
        return isfinite(alpha) ? alpha / (double)rank : 1;
    return f->has_config ? by_config(f, m, (double)rank) : 1;
}

double module_scale(const struct adapter_file *f, const struct adapter_module *m, int64_t rank,
                    int64_t uq)
{
    double factor = 1;

    /* LyCORIS folds its learned `scalar` into a factor when it saves; a file that still has it
     * has not been folded. */
    scalar(m->part[AP_SCALAR], &factor);
    return factor * by_rule(f, m, rank, uq);
}

double bind_scale(const struct bind *b, int64_t rank, int64_t uq)
{
    return b->scale != 0 ? (double)b->scale : module_scale(b->file, b->m, rank, uq);
}
