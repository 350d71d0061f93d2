/* SPDX-License-Identifier: MIT
 * image/ - pictures as PNG and JPEG, in memory and in files; the text kept beside the pixels.
 * Start at image_load() and image_save() in image.c; png.c and jpeg.c each hold one format behind
 * the same four functions, which know bytes and no file names.
 * Decoders take foreign bytes: whatever these are, they end in a picture or in an error. */
#ifndef IMAGE_IMAGE_H
#define IMAGE_IMAGE_H
#include "base/base.h"
#include <kron/image.h>

enum {
    IMAGE_MAX_SIDE = 16384,       /* pixels, of any picture read, written or scaled to */
    IMAGE_MAX_FILE = 1 << 29,     /* bytes of a file to read */
    IMAGE_MAX_TEXT = 8 << 20,     /* bytes of one text in a file */
};

/* Bytes that grow at the end. Start from {0}. */
struct image_bytes {
    uint8_t *data;
    size_t len, cap;
};
kron_status image_bytes_add(struct image_bytes *b, const void *data, size_t bytes);
void image_bytes_free(struct image_bytes *b);

/* --- pixels (image.c) --- */

/* Gives `out` black pixels. KRON_ERR_ARGUMENT for sizes outside 1..IMAGE_MAX_SIDE. */
kron_status image_alloc(kron_image *out, int width, int height, int channels);
void image_free(kron_image *image);
/* Makes it grey (1, Rec. 601 luma) or RGB (3); nothing happens if it is. On failure unchanged. */
kron_status image_convert(kron_image *image, int channels);
/* Scales by Lanczos windows, a = 3, widened where it shrinks (resize.c). */
kron_status image_resize(kron_image *out, const kron_image *in, int width, int height);

/* --- text (text.c) --- */

struct image_text {
    const char *key, *value; /* UTF-8, NUL-terminated, in the arena of the list */
};
/* Start from {0}. */
struct image_texts {
    struct image_text *items;
    size_t n, cap;
    struct arena mem;
};
/* Copies both; a NUL ends either. */
kron_status image_texts_add(struct image_texts *t, const char *key, const char *value);
/* The value of the first text of this key; NULL if there is none. */
const char *image_texts_find(const struct image_texts *t, const char *key);
void image_texts_free(struct image_texts *t);

/* Reads the character at s[at], at < len, and moves on. Bytes that are not UTF-8 give U+FFFD. */
uint32_t image_utf8_next(const char *s, size_t len, size_t *at);
bool image_utf8_valid(const char *s, size_t len);
void image_utf8_add(struct str *out, uint32_t code);
/* Adds what must be valid UTF-8, with U+FFFD where it is not. */
void image_utf8_repair(struct str *out, const char *s, size_t len);

/* --- EXIF (exif.c): one text, UserComment --- */

/* Builds what follows "Exif\0\0" in a JPEG: a TIFF header and the text in UTF-16. */
kron_status image_exif_write(struct image_bytes *out, const char *text);
/* Reads UserComment, if there is one, into `out`; false without one or if damaged. */
bool image_exif_read(struct str *out, const uint8_t *tiff, size_t bytes);

/* --- formats: png.c, jpeg.c --- */

bool image_is_png(const uint8_t *data, size_t bytes);
kron_status image_png_decode(kron_image *out, const uint8_t *data, size_t bytes);
/* parameters: UTF-8 or NULL. The caller frees `out`, also after a failure. */
kron_status image_png_encode(struct image_bytes *out, const kron_image *image,
                             const char *parameters);
kron_status image_png_texts(struct image_texts *out, const uint8_t *data, size_t bytes);

bool image_is_jpeg(const uint8_t *data, size_t bytes);
kron_status image_jpeg_decode(kron_image *out, const uint8_t *data, size_t bytes);
kron_status image_jpeg_encode(struct image_bytes *out, const kron_image *image,
                              const char *parameters, int quality);
kron_status image_jpeg_texts(struct image_texts *out, const uint8_t *data, size_t bytes);

/* --- files (image.c): messages begin with the file's name --- */

kron_status image_load(kron_image *out, const char *path, int channels);
kron_status image_save(const kron_image *image, const char *path, const char *parameters,
                       int quality);
kron_status image_load_texts(struct image_texts *out, const char *path);

#endif
