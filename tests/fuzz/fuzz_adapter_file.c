/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter file, bound to a convolution, a linear layer and a norm, and to layers
 * that it tells of itself. Whatever is applied must be a delta that fits its layer: computing it
 * reads every factor. */
#include "adapter_layers.h"
#include "convert/convert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_set(const struct adapter_set *set)
{
    static const double plain[FUZZ_LARGEST] = {1, -1, 2};
    const struct adapter_report *r = adapter_set_report(set, 0);
    struct str text = {0};
    double w[FUZZ_LARGEST] = {0};

    check(r->n_applied > 0 && r->n_applied <= r->n_modules && r->n_tensors_used <= r->n_tensors);
    for (int i = 0; i < FUZZ_LAYERS; i++) {
        const struct layer *l = &fuzz_layers[i];
        struct delta_list list = delta_set_list(adapter_set_deltas(set), l);
        for (int k = 0; k < list.n; k++)
            check(delta_add_ref(&list.at[k], l, 1, plain, w) == KRON_OK);
    }
    adapter_report_text(r, 100, &text);
    check(text.status == KRON_OK && text.len > 0);
    str_free(&text);
}

/* The file's own layers fit it, and are looked up under its own names. */
static void check_own_layers(struct adapter_file *f)
{
    struct own_layers own;
    struct adapter_set *set;

    check(own_layers_create(&own, &f, 1) == KRON_OK);
    for (int i = 0; i < own.table.n; i++)
        check(own.table.at[i]->out > 0 && layer_k(own.table.at[i]) > 0);
    if (adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, own.names, false) == KRON_OK)
        check(adapter_set_report(set, 0)->n_cover > 0);
    adapter_set_free(&set);
    own_layers_free(&own);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bind(data, size, check_own_layers, check_set);
    return 0;
}
