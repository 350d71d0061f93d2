/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter file, bound to a linear layer, a convolution and a norm. Whatever is
 * applied must be a delta that fits its layer: computing it reads every factor. */
#include "adapter/adapter.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct layer layers[] = {
    {.id = 0,
     .part = PART_UNET,
     .kind = LAYER_CONV,
     .name = "conv_in",
     .native = "input_blocks.0.0",
     .out = 8,
     .in = 4,
     .kh = 3,
     .kw = 3,
     .is_conv = true},
    {.id = 1,
     .part = PART_UNET,
     .kind = LAYER_LINEAR,
     .name = "time_embedding.linear_1",
     .native = "time_embed.0",
     .out = 12,
     .in = 8,
     .kh = 1,
     .kw = 1},
    {.id = 2,
     .part = PART_UNET,
     .kind = LAYER_NORM,
     .name = "conv_norm_out",
     .native = "out.0",
     .out = 8,
     .in = 1,
     .kh = 1,
     .kw = 1},
};
enum { N_LAYERS = sizeof layers / sizeof *layers, LARGEST = 8 * 4 * 9 };

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void check_set(const struct adapter_set *set)
{
    const struct adapter_report *r = adapter_set_report(set, 0);
    struct str text = {0};
    static const double plain[LARGEST] = {1, -1, 2};
    double w[LARGEST] = {0};

    check(r->n_applied > 0 && r->n_applied <= r->n_modules && r->n_tensors_used <= r->n_tensors);
    for (int i = 0; i < N_LAYERS; i++) {
        struct delta_list list = delta_set_list(adapter_set_deltas(set), &layers[i]);
        for (int k = 0; k < list.n; k++)
            check(delta_add_ref(&list.at[k], &layers[i], 1, plain, w) == KRON_OK);
    }
    adapter_report_text(r, 100, &text);
    check(text.status == KRON_OK && text.len > 0);
    str_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct layer *at[N_LAYERS];
    static struct layer_table table = {.at = at, .n = N_LAYERS};
    static struct adapter_names *names;
    struct adapter_file *f;
    struct adapter_set *set;
    void *copy = malloc(size > 0 ? size : 1); /* exact, so that a read past the end is seen */

    for (int i = 0; i < N_LAYERS; i++)
        at[i] = &layers[i];
    if (names == NULL)
        check(adapter_names_create(&names, &table) == KRON_OK);
    check(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    if (adapter_open_memory(&f, copy, size, "fuzz", NULL) == KRON_OK) {
        if (adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, names, false) == KRON_OK)
            check_set(set);
        else
            check(kron_error_detail()[0] != '\0');
        adapter_set_free(&set);
        adapter_close(&f);
    } else {
        check(kron_error_detail()[0] != '\0');
    }
    free(copy);
    return 0;
}
