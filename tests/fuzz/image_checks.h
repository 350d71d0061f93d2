/* SPDX-License-Identifier: MIT
 * What must hold of any bytes taken for a picture: a picture or an error, its texts or an error. */
#ifndef FUZZ_IMAGE_CHECKS_H
#define FUZZ_IMAGE_CHECKS_H
#include "image/image.h"
#include <stdlib.h>
#include <string.h>

static inline void check(bool holds)
{
    if (!holds)
        abort();
}

typedef kron_status decode_fn(kron_image *out, const uint8_t *data, size_t size);
typedef kron_status texts_fn(struct image_texts *out, const uint8_t *data, size_t size);

static inline void check_image(decode_fn *decode, texts_fn *read_texts, const uint8_t *data,
                               size_t size)
{
    kron_image image;
    struct image_texts texts;
    kron_status status = decode(&image, data, size);

    check((status == KRON_OK) == (image.pixels != NULL));
    if (status == KRON_OK) {
        check(image.width > 0 && image.width <= IMAGE_MAX_SIDE);
        check(image.height > 0 && image.height <= IMAGE_MAX_SIDE);
        check(image.channels == 1 || image.channels == 3);
    } else {
        check(kron_error_detail()[0] != '\0' && strchr(kron_error_detail(), '\n') == NULL);
    }
    image_free(&image);
    if (read_texts(&texts, data, size) == KRON_OK)
        for (size_t i = 0; i < texts.n; i++)
            check(image_utf8_valid(texts.items[i].value, strlen(texts.items[i].value)));
    image_texts_free(&texts);
}

#endif
