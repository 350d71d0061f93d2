/* SPDX-License-Identifier: MIT
 * Any bytes as a GGUF file: tensors that do not touch, or an error. */
#include "tensor_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t begin[8] = {'G', 'G', 'U', 'F', 3, 0, 0, 0};
    uint8_t *copy = copy_of(data, size);

    if (size >= 4)
        memcpy(copy, begin, 4);
    open_and_check(copy, size, size >= 4);
    if (size >= sizeof begin) { /* again as the version that is read */
        memcpy(copy, begin, sizeof begin);
        open_and_check(copy, size, true);
    }
    free(copy);
    return 0;
}
