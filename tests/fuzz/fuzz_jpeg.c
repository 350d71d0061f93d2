/* SPDX-License-Identifier: MIT
 * Any bytes as a JPEG file: a picture or an error, its texts or an error. */
#include "image/image.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kron_image image;
    struct image_texts texts;
    kron_status status = image_jpeg_decode(&image, data, size);
    check((status == KRON_OK) == (image.pixels != NULL));
    if (status == KRON_OK) {
        check(image.width > 0 && image.width <= IMAGE_MAX_SIDE);
        check(image.height > 0 && image.height <= IMAGE_MAX_SIDE);
        check(image.channels == 1 || image.channels == 3);
    } else {
        check(kron_error_detail()[0] != '\0' && strchr(kron_error_detail(), '\n') == NULL);
    }
    image_free(&image);
    if (image_jpeg_texts(&texts, data, size) == KRON_OK)
        for (size_t i = 0; i < texts.n; i++)
            check(image_utf8_valid(texts.items[i].value, strlen(texts.items[i].value)));
    image_texts_free(&texts);
    return 0;
}
