/* SPDX-License-Identifier: MIT
 * Any bytes as a JPEG file. */
#include "image_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_image(image_jpeg_decode, image_jpeg_texts, data, size);
    return 0;
}
