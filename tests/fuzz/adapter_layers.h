/* SPDX-License-Identifier: MIT
 * The model that fuzzed adapter files are bound to: a convolution, a linear layer and a norm, with
 * weights. */
#ifndef FUZZ_ADAPTER_LAYERS_H
#define FUZZ_ADAPTER_LAYERS_H
#include "adapter/adapter.h"
#include "layer_run.h"
#include <stdlib.h>

static const float fuzz_numbers[] = {0.5f, -0.25f, 1,     0.125f,  -2,   0.75f,
                                     0,    3,      -0.5f, 0.0625f, 1.5f, -1};
enum { FUZZ_LARGEST = 8 * 4 * 9 };
static float fuzz_weight[FUZZ_LARGEST]; /* of every layer, and the biases */

#define FUZZ_TENSOR(n)                                                                  \
    {                                                                                   \
        .data = fuzz_weight, .bytes = (n) * sizeof(float), .type = DT_F32, .n_dims = 1, \
        .dim = {n, 1, 1, 1, 1, 1}, .name = "base"                                       \
    }

static struct layer fuzz_layers[] = {
    {.id = 0,
     .part = PART_UNET,
     .kind = LAYER_CONV,
     .name = "conv_in",
     .native = "input_blocks.0.0",
     .out = 8,
     .in = 4,
     .kh = 3,
     .kw = 3,
     .is_conv = true,
     .weight = FUZZ_TENSOR(8 * 4 * 9),
     .bias = FUZZ_TENSOR(8)},
    {.id = 1,
     .part = PART_UNET,
     .kind = LAYER_LINEAR,
     .name = "time_embedding.linear_1",
     .native = "time_embed.0",
     .out = 12,
     .in = 8,
     .kh = 1,
     .kw = 1,
     .weight = FUZZ_TENSOR(12 * 8),
     .bias = FUZZ_TENSOR(12)},
    {.id = 2,
     .part = PART_UNET,
     .kind = LAYER_NORM,
     .name = "conv_norm_out",
     .native = "out.0",
     .out = 8,
     .in = 1,
     .kh = 1,
     .kw = 1,
     .weight = FUZZ_TENSOR(8),
     .bias = FUZZ_TENSOR(8)},
};
enum { FUZZ_LAYERS = sizeof fuzz_layers / sizeof *fuzz_layers };

static inline void check(bool holds)
{
    if (!holds)
        abort();
}

/* Made once, for all calls. */
static const struct layer_table *fuzz_table(void)
{
    static struct layer *at[FUZZ_LAYERS];
    static struct layer_table table = {.at = at, .n = FUZZ_LAYERS};

    for (int i = 0; i < FUZZ_LAYERS; i++)
        at[i] = &fuzz_layers[i];
    for (int i = 0; i < FUZZ_LARGEST; i++)
        fuzz_weight[i] = fuzz_numbers[i % (int)(sizeof fuzz_numbers / sizeof *fuzz_numbers)];
    return &table;
}

static const struct adapter_names *fuzz_names(void)
{
    static struct adapter_names *names;

    if (names == NULL)
        check(adapter_names_create(&names, fuzz_table()) == KRON_OK);
    return names;
}

static inline void fuzz_run_layer(struct be_device *d, const struct adapter_set *set, int i)
{
    static const struct layer_call calls[FUZZ_LAYERS] = {
        {.x = {2, 3, 4, 4}, .stride = 1},
        {.x = {2, 1, 3, 8}, .stride = 1},
        {.x = {2, 3, 2, 8}, .stride = 1, .groups = 2},
    };
    float x[96], y[192], strengths[ADAPTER_SLOTS];
    struct layer_call call = calls[i];

    for (int k = 0; k < 96; k++)
        x[k] = fuzz_weight[k];
    adapter_set_get_strengths(set, strengths);
    for (int r = ROUTE_WEIGHT; r <= ROUTE_MERGED; r++) {
        call.route = (enum gr_route)r;
        check(layer_run(d, fuzz_table(), &fuzz_layers[i], adapter_set_deltas(set), strengths, &call,
                        x, y) == KRON_OK);
    }
}

/* Each layer by every route of every device. */
static inline void fuzz_run(const struct adapter_set *set)
{
    static struct be_device *devices[4];
    int n = 0;

    for (int b = 0; be_drivers[b] != NULL; b++) {
        if (be_drivers[b]->count() == 0)
            continue;
        check(n < 4);
        if (devices[n] == NULL)
            check(be_open(be_drivers[b]->name, 1, &devices[n]) == KRON_OK);
        for (int i = 0; i < FUZZ_LAYERS; i++)
            if (delta_set_list(adapter_set_deltas(set), &fuzz_layers[i]).n > 0)
                fuzz_run_layer(devices[n], set, i);
        n++;
    }
}

/* Opens any bytes and binds them; calls `opened` (NULL: nothing) with a file that could be opened
 * and `then` with what could be bound. */
static inline void fuzz_bind(const uint8_t *data, size_t size,
                             void (*opened)(struct adapter_file *),
                             void (*then)(const struct adapter_set *))
{
    struct adapter_file *f;
    struct adapter_set *set;
    uint8_t *copy = malloc(size > 0 ? size : 1); /* exact, so that a read past the end is seen */

    check(copy != NULL);
    for (size_t i = 0; i < size; i++)
        copy[i] = data[i];
    if (adapter_open_memory(&f, copy, size, "fuzz", NULL) != KRON_OK) {
        check(kron_error_detail()[0] != '\0');
        free(copy);
        return;
    }
    if (opened != NULL)
        opened(f);
    if (adapter_bind(&set, &(struct adapter_use){f, 1, -0.5f}, 1, fuzz_names(), false) == KRON_OK)
        then(set);
    else
        check(kron_error_detail()[0] != '\0');
    adapter_set_free(&set);
    adapter_close(&f);
    free(copy);
}

#endif
