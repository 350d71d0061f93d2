/* SPDX-License-Identifier: MIT
 * How much a file changes: which layers of each block, and by how much of their weights. */
#include "adapter/family.h"
#include "adapter/product.h"
#include "tensor/mat.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- cover --- */

/* A layer's block: up to the second dot of a UNet's single-file name ("input_blocks.4"), "layers.N"
 * of a text encoder, else up to the first dot. */
static size_t block_of(const struct layer *l, const char **name)
{
    const char *native = l->native != NULL ? l->native : l->name, *dot;

    *name = l->part == PART_UNET ? native : l->name;
    if (l->part != PART_UNET && (dot = strstr(l->name, "layers.")) != NULL)
        *name = dot;
    dot = strchr(*name, '.');
    if (dot != NULL && (str_starts(*name, "input_blocks.") || str_starts(*name, "layers.") ||
                        str_starts(*name, "output_blocks.")))
        dot = strchr(dot + 1, '.');
    return dot != NULL ? (size_t)(dot - *name) : strlen(*name);
}

static struct adapter_cover *cover_of(struct arena *mem, const struct layer *l,
                                      struct adapter_cover *list, int *n)
{
    const char *name;
    size_t len = block_of(l, &name);

    for (int i = 0; i < *n; i++)
        if (list[i].part == l->part && strlen(list[i].block) == len &&
            memcmp(list[i].block, name, len) == 0)
            return &list[i];
    list[*n] = (struct adapter_cover){.part = l->part,
                                      .block = arena_printf(mem, "%.*s", (int)len, name)};
    return list[*n].block != NULL ? &list[(*n)++] : NULL;
}

kron_status adapter_cover(const struct layer_table *layers, const struct bound *bound, size_t n,
                          struct arena *mem, struct adapter_cover **out, int *n_out)
{
    struct adapter_cover *list = arena_alloc(mem, (size_t)layers->n * sizeof *list + 1);
    bool *seen = arena_alloc(mem, (size_t)layers->n + 1);

    *n_out = 0;
    *out = list;
    if (list == NULL || seen == NULL)
        return mem->status;
    for (size_t i = 0; i < n; i++)
        seen[bound[i].layer] = true;
    for (int i = 0; i < layers->n; i++) {
        const struct layer *l = layers->at[i];
        struct adapter_cover *c;
        if (l->part == PART_VAE || (l->kind != LAYER_LINEAR && l->kind != LAYER_CONV && !seen[i]))
            continue;
        if ((c = cover_of(mem, l, list, n_out)) == NULL)
            return mem->status;
        c->n_layers++;
        c->n_changed += seen[i];
    }
    return KRON_OK;
}

/* --- ratios --- */

static kron_status change_by_weight(const struct delta *d, const struct layer *l, double *out)
{
    struct delta one = *d;
    struct delta_list list = {1, &one};
    static const float full_strength = 1;
    int64_t n = l->out * layer_k(l);
    float *w;

    one.strength = 0;
    one.region = NULL;
    KRON_TRY(mem_floats(&w, n, "a layer's change"));
    kron_status status = effective_change(l, list, &full_strength, w);
    *out = sqrt(mat_norm2(w, n));
    mem_free(w);
    return status;
}

static kron_status change_by_factors(const struct delta *d, const struct layer *l, int64_t most,
                                     double *out)
{
    struct product p;

    KRON_TRY(product_open(&p, d, l));
    kron_status status = product_norm(&p, most, out);
    product_close(&p);
    *out *= fabs((double)d->scale);
    return status;
}

/* Products alone, wherever they act, are known by their factors. */
static bool by_factors(const struct delta *d)
{
    return product_has(d) && d->axis == GAIN_NONE && !d->replace;
}

static kron_status ratio(const struct delta *d, const struct layer *l, int64_t most, double *out)
{
    double w, change;

    KRON_TRY(by_factors(d) ? change_by_factors(d, l, most, &change)
                           : change_by_weight(d, l, &change));
    KRON_TRY(layer_norm(l, most, &w));
    *out = change > 0 && w > 0 ? change / w : change > 0 ? INFINITY : 0;
    return KRON_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

kron_status adapter_measure(const struct layer_table *layers, const struct bound *bound, size_t n,
                            int max_layers, int64_t most, struct arena *mem,
                            struct adapter_change *c)
{
    size_t most_layers = max_layers > 0 ? (size_t)max_layers : n + 1;
    size_t step = n / most_layers + 1;
    double *sorted = arena_alloc(mem, (n + 1) * sizeof *sorted);

    *c = (struct adapter_change){.layers = arena_alloc(mem, (n + 1) * sizeof *c->layers)};
    if (sorted == NULL || c->layers == NULL)
        return mem->status;
    for (size_t i = 0; i < n; i += step) {
        const struct layer *l = layers->at[bound[i].layer];
        double v;
        const struct delta *d = &bound[i].d;
        /* Where not all is looked at there is no time for whole weights. */
        if (l->weight.data == NULL || !delta_has_weight(d) || (most > 0 && !by_factors(d)))
            continue;
        KRON_TRY(ratio(d, l, most, &v));
        c->layers[c->n] = (struct adapter_layer_change){l, v};
        sorted[c->n++] = v;
        if (c->largest == NULL || v > c->max) {
            c->largest = l;
            c->max = v;
        }
    }
    qsort(sorted, (size_t)c->n, sizeof *sorted, by_value);
    c->min = c->n > 0 ? sorted[0] : 0;
    c->median = c->n > 0 ? sorted[c->n / 2] : 0;
    return KRON_OK;
}

/* Over all layers a change as large as the weights leaves nothing of the model; one under f16's
 * resolution of them leaves the model as it is. */
kron_status adapter_warn(const struct adapter_file *f, const struct adapter_change *c,
                         struct arena *mem, const char **out, int *n)
{
    double wanted;

    *n = 0;
    if (adapter_alpha_lost(f, &wanted)) {
        out[*n] = arena_printf(mem,
                               "its pairs are whole, so their scale is 1, but its metadata say "
                               "alpha / dim = %.4g: if it acts too strongly, give it %.4g times "
                               "the strength",
                               wanted, wanted);
        ++*n;
    }
    if (c != NULL && c->n > 0 && !(c->median <= 1)) {
        out[*n] = arena_printf(mem,
                               "it changes weights by more than their own size (%.3g times at the "
                               "median): its scale is probably not the one it was trained with",
                               c->median);
        ++*n;
    } else if (c != NULL && c->n > 0 && c->median < 1e-5) {
        out[*n] = arena_printf(mem, "it changes next to nothing (%.2g of the weights at the "
                               "median): is it trained at all?", c->median);
        ++*n;
    }
    return mem->status;
}
