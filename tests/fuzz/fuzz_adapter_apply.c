/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter file, bound and run: each layer by every route of every device, so that
 * sizes that lie would reach the kernels. */
#include "adapter_layers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bind(data, size, NULL, fuzz_run);
    return 0;
}
