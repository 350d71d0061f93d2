/* SPDX-License-Identifier: MIT
 * Any bytes as a PNG file. */
#include "image_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t crc(const uint8_t *data, size_t bytes)
{
    uint32_t c = 0xFFFFFFFF;
    for (size_t i = 0; i < bytes; i++) {
        c ^= data[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xEDB88320 & (0u - (c & 1)));
    }
    return ~c;
}

/* Mends the check sums: else hardly any changed file would get past its first chunk. */
static void mend(uint8_t *data, size_t size)
{
    for (size_t at = 8; at + 12 <= size;) {
        size_t n = (size_t)data[at] << 24 | (size_t)data[at + 1] << 16 |
                   (size_t)data[at + 2] << 8 | data[at + 3];
        if (n > size - at - 12)
            return;
        uint32_t sum = crc(data + at + 4, n + 4);
        for (int i = 3; i >= 0; i--, sum >>= 8)
            data[at + 8 + n + (size_t)i] = (uint8_t)sum;
        at += n + 12;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    check(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    check_image(image_png_decode, image_png_texts, copy, size);
    mend(copy, size);
    check_image(image_png_decode, image_png_texts, copy, size);
    free(copy);
    return 0;
}
