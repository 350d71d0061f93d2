/* SPDX-License-Identifier: MIT
 * Any bytes as a safetensors file: views that lie in it and do not touch, or an error. */
#include "tensor_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = copy_of(data, size);
    size_t header = size;

    open_and_check(copy, size, false); /* of whatever format */
    /* Again with a length that fits: else hardly any changed file would get past it. */
    for (size_t i = 8; i < size; i++)
        if (copy[i] == '}')
            header = i + 1;
    if (size >= 8) {
        for (int i = 0; i < 8; i++)
            copy[i] = (uint8_t)((uint64_t)(header - 8) >> 8 * i);
        open_and_check(copy, size, true);
    }
    free(copy);
    return 0;
}
