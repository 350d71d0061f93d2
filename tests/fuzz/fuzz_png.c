/* SPDX-License-Identifier: MIT
 * Any bytes as a PNG file: a picture or an error, its texts or an error. */
#include "image/image.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

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

static void decode(const uint8_t *data, size_t size)
{
    kron_image image;
    struct image_texts texts;
    kron_status status = image_png_decode(&image, data, size);
    check((status == KRON_OK) == (image.pixels != NULL));
    if (status == KRON_OK) {
        check(image.width > 0 && image.width <= IMAGE_MAX_SIDE);
        check(image.height > 0 && image.height <= IMAGE_MAX_SIDE);
        check(image.channels == 1 || image.channels == 3);
    } else {
        check(kron_error_detail()[0] != '\0' && strchr(kron_error_detail(), '\n') == NULL);
    }
    image_free(&image);
    if (image_png_texts(&texts, data, size) == KRON_OK)
        for (size_t i = 0; i < texts.n; i++)
            check(image_utf8_valid(texts.items[i].value, strlen(texts.items[i].value)));
    image_texts_free(&texts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    check(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    decode(copy, size);
    mend(copy, size);
    decode(copy, size);
    free(copy);
    return 0;
}
