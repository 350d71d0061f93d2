/* SPDX-License-Identifier: MIT
 * Pixels in memory, and the two formats behind one door. */
#include "image/image.h"
#include <string.h>
#include <strings.h>

kron_status image_bytes_add(struct image_bytes *b, const void *data, size_t bytes)
{
    size_t need;
    if (!size_add(b->len, bytes, &need))
        return err_set(KRON_ERR_MEMORY, "an encoded picture is too large");
    if (need > b->cap) {
        size_t cap = b->cap > 0 ? b->cap : 65536;
        while (cap < need)
            if (!size_mul(cap, 2, &cap))
                return err_set(KRON_ERR_MEMORY, "an encoded picture is too large");
        void *data_grown = b->data;
        KRON_TRY(mem_grow(&data_grown, b->cap, cap, 1, "an encoded picture"));
        b->data = data_grown;
        b->cap = cap;
    }
    if (bytes > 0)
        memcpy(b->data + b->len, data, bytes);
    b->len = need;
    return KRON_OK;
}

void image_bytes_free(struct image_bytes *b)
{
    mem_free(b->data);
    *b = (struct image_bytes){0};
}

kron_status image_alloc(kron_image *out, int width, int height, int channels)
{
    *out = (kron_image){0};
    if (width < 1 || height < 1 || width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE)
        return err_set(KRON_ERR_ARGUMENT,
                       "a picture of %d x %d pixels: sides from 1 to %d are possible", width,
                       height, IMAGE_MAX_SIDE);
    void *pixels;
    size_t n = (size_t)width * (size_t)height;
    KRON_TRY(mem_alloc_n(&pixels, n, (size_t)channels, "a picture"));
    *out = (kron_image){
        .width = width, .height = height, .channels = channels, .pixels = pixels};
    return KRON_OK;
}

void image_free(kron_image *image)
{
    mem_free(image->pixels);
    *image = (kron_image){0};
}

kron_status image_convert(kron_image *image, int channels)
{
    if (image->channels == channels)
        return KRON_OK;
    kron_image other;
    KRON_TRY(image_alloc(&other, image->width, image->height, channels));
    size_t n = (size_t)image->width * (size_t)image->height;
    const uint8_t *from = image->pixels;
    uint8_t *to = other.pixels;
    if (channels == 1) {
        /* 16.16 weights of Rec. 601 that add up to one, so that grey stays the same grey. */
        for (size_t i = 0; i < n; i++, from += 3)
            to[i] = (uint8_t)((from[0] * 19595u + from[1] * 38470u + from[2] * 7471u + 32768u) >>
                              16);
    } else {
        for (size_t i = 0; i < n; i++, to += 3)
            to[0] = to[1] = to[2] = from[i];
    }
    image_free(image);
    *image = other;
    return KRON_OK;
}

static kron_status read_bytes(char **data, size_t *bytes, const char *path)
{
    KRON_TRY(file_read(data, bytes, path, IMAGE_MAX_FILE));
    const uint8_t *head = (const uint8_t *)*data;
    if (image_is_png(head, *bytes) || image_is_jpeg(head, *bytes))
        return KRON_OK;
    mem_free(*data);
    return err_set(KRON_ERR_FORMAT, "%s: neither a PNG nor a JPEG file", path);
}

kron_status image_load(kron_image *out, const char *path, int channels)
{
    char *data;
    size_t bytes;
    *out = (kron_image){0};
    KRON_TRY(read_bytes(&data, &bytes, path));
    const uint8_t *head = (const uint8_t *)data;
    kron_status status = image_is_png(head, bytes) ? image_png_decode(out, head, bytes)
                                                   : image_jpeg_decode(out, head, bytes);
    mem_free(data);
    if (status == KRON_OK && channels != 0)
        status = image_convert(out, channels);
    if (status != KRON_OK) {
        image_free(out);
        return err_prefix(status, "%s", path);
    }
    return KRON_OK;
}

kron_status image_load_texts(struct image_texts *out, const char *path)
{
    char *data;
    size_t bytes;
    *out = (struct image_texts){0};
    KRON_TRY(read_bytes(&data, &bytes, path));
    const uint8_t *head = (const uint8_t *)data;
    kron_status status = image_is_png(head, bytes) ? image_png_texts(out, head, bytes)
                                                   : image_jpeg_texts(out, head, bytes);
    mem_free(data);
    if (status != KRON_OK) {
        image_texts_free(out);
        return err_prefix(status, "%s", path);
    }
    return KRON_OK;
}

kron_status image_save(const kron_image *image, const char *path, const char *parameters,
                       int quality)
{
    const char *slash = strrchr(path, '/');
    const char *ending = strrchr(slash != NULL ? slash : path, '.');
    struct image_bytes bytes = {0};
    kron_status status;
    if (ending != NULL && strcasecmp(ending, ".png") == 0)
        status = image_png_encode(&bytes, image, parameters);
    else if (ending != NULL &&
             (strcasecmp(ending, ".jpg") == 0 || strcasecmp(ending, ".jpeg") == 0))
        status = image_jpeg_encode(&bytes, image, parameters, quality);
    else
        return err_set(KRON_ERR_ARGUMENT, "%s: the name must end in .png, .jpg or .jpeg", path);
    if (status != KRON_OK)
        status = err_prefix(status, "%s", path);
    else
        status = file_write(path, bytes.data, bytes.len);
    image_bytes_free(&bytes);
    return status;
}
