/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter file, bound to a convolution, a linear layer and a norm. Whatever is
 * applied must be a delta that fits its layer: computing it reads every factor. */
#include "adapter_layers.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bind(data, size, check_set);
    return 0;
}
