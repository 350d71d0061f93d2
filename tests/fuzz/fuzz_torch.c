/* SPDX-License-Identifier: MIT
 * Any bytes as a file of torch.save(), and as the pickle and storages of one in its older layout:
 * tensors, or an error. */
#include "tensor_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char before[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
                                 "\x80\x02M\xe9\x03.\x80\x02}.";
    uint8_t *copy = copy_of(data, size);

    open_and_check(copy, size, false);
    free(copy);
    copy = malloc(sizeof before - 1 + size);
    check(copy != NULL);
    memcpy(copy, before, sizeof before - 1);
    if (size > 0)
        memcpy(copy + sizeof before - 1, data, size);
    open_and_check(copy, sizeof before - 1 + size, false);
    free(copy);
    return 0;
}
