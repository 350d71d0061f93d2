/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter file, bound and run: each layer by every route of every device, so that
 * sizes that lie would reach the kernels. */
#include "adapter_layers.h"
#include "layer_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_layer(struct be_device *d, const struct adapter_set *set, int i)
{
    static const struct layer_call calls[FUZZ_LAYERS] = {
        {.x = {2, 3, 4, 4}, .stride = 1},
        {.x = {2, 1, 3, 8}, .stride = 1},
        {.x = {2, 3, 2, 8}, .stride = 1, .groups = 2},
    };
    float x[96], y[192], strengths[2] = {0.5f, -0.5f};
    struct layer_call call = calls[i];

    for (int k = 0; k < 96; k++)
        x[k] = fuzz_weight[k];
    for (int r = ROUTE_WEIGHT; r <= ROUTE_MERGED; r++) {
        call.route = (enum gr_route)r;
        check(layer_run(d, fuzz_table(), &fuzz_layers[i], adapter_set_deltas(set), strengths,
                        &call, x, y) == KRON_OK);
    }
}

static void run_set(const struct adapter_set *set)
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
                run_layer(devices[n], set, i);
        n++;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bind(data, size, run_set);
    return 0;
}
