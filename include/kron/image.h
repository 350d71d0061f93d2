/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/image.h - pictures in memory and in files. */
#ifndef KRON_IMAGE_H
#define KRON_IMAGE_H
#include <kron/status.h>
#include <stddef.h>
#include <stdint.h>
KRON_API_BEGIN

/* Rows from the top, pixels from the left, channels interleaved, 8 bits, sRGB. */
typedef struct kron_image {
    int width, height;   /* pixels */
    int channels;        /* 1 (grey), 3 (RGB) */
    uint8_t *pixels;     /* width * height * channels bytes; owned: kron_image_free() */
} kron_image;

/* Frees the pixels and zeroes the struct. A zeroed struct is fine; so is NULL. */
KRON_API void kron_image_free(kron_image *image);

/* Reads a PNG or JPEG file. Transparency is blended on white; 16 bits become 8; EXIF rotation is
 * not applied.
 *   out       the picture; caller frees it.
 *   channels  1 or 3: converted if the file differs. 0: as in the file (1 or 3).
 * Errors: KRON_ERR_IO, KRON_ERR_FORMAT (not a PNG or JPEG, damaged, or over 16384 pixels a side). */
KRON_API kron_status kron_image_load(kron_image *out, const char *path, int channels);

/* Scales to width x height with a filter that neither blurs nor aliases (Lanczos, a = 3). */
KRON_API kron_status kron_image_resize(kron_image *out, const kron_image *in, int width, int height);

/* Writes a file by the ending of its name: .png, .jpg or .jpeg. The file appears under its name
 * only when it is complete.
 *   parameters  text kept in the file as A1111 does (PNG: tEXt or, outside Latin-1, iTXt
 *               "parameters"; JPEG: EXIF UserComment); NULL: none.
 *   quality     1..100 for JPEG, 0 = 95. */
KRON_API kron_status kron_image_save(const kron_image *image, const char *path,
                                     const char *parameters, int quality);

/* The text that kron_image_save() or another program kept under "parameters".
 *   out  NUL-terminated, freed with kron_string_free(); NULL with KRON_OK if the file has none. */
KRON_API kron_status kron_image_read_parameters(char **out, const char *path);

/* Every text of a PNG (or the comments of a JPEG) as "key: value" lines, for display. Lines of a
 * value after its first are indented by two blanks, so that a line at the margin begins a key. */
KRON_API kron_status kron_image_read_text(char **out, const char *path);

KRON_API void kron_string_free(char *s);

KRON_API_END
#endif
