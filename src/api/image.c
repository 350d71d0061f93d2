/* SPDX-License-Identifier: MIT
 * kron/image.h: arguments are checked here, the work is done in image/. */
#include "image/image.h"
#include <string.h>

void kron_image_free(kron_image *image)
{
    if (image != NULL)
        image_free(image);
}

void kron_string_free(char *s)
{
    mem_free(s);
}

static kron_status check_image(const kron_image *image, const char *call)
{
    if (image == NULL || image->pixels == NULL)
        return err_set(KRON_ERR_ARGUMENT, "%s: the image has no pixels", call);
    if (image->channels != 1 && image->channels != 3)
        return err_set(KRON_ERR_ARGUMENT, "%s: the image has %d channels, expected 1 or 3", call,
                       image->channels);
    if (image->width < 1 || image->height < 1 || image->width > IMAGE_MAX_SIDE ||
        image->height > IMAGE_MAX_SIDE)
        return err_set(KRON_ERR_ARGUMENT, "%s: the image has %d x %d pixels, expected 1 to %d",
                       call, image->width, image->height, IMAGE_MAX_SIDE);
    return KRON_OK;
}

kron_status kron_image_load(kron_image *out, const char *path, int channels)
{
    if (out == NULL || path == NULL || (channels != 0 && channels != 1 && channels != 3))
        return err_set(KRON_ERR_ARGUMENT,
                       "kron_image_load: expected an image, a path, and 0, 1 or 3 channels");
    return image_load(out, path, channels);
}

kron_status kron_image_resize(kron_image *out, const kron_image *in, int width, int height)
{
    if (out == NULL || out == in)
        return err_set(KRON_ERR_ARGUMENT, "kron_image_resize: out is NULL or the input");
    *out = (kron_image){0};
    KRON_TRY(check_image(in, "kron_image_resize"));
    return image_resize(out, in, width, height);
}

kron_status kron_image_save(const kron_image *image, const char *path, const char *parameters,
                            int quality)
{
    if (path == NULL || quality < 0 || quality > 100)
        return err_set(KRON_ERR_ARGUMENT,
                       "kron_image_save: expected a path and a quality of 0 to 100");
    KRON_TRY(check_image(image, "kron_image_save"));
    return image_save(image, path, parameters, quality);
}

static kron_status copy_string(char **out, const char *s)
{
    void *copy;
    size_t bytes = strlen(s) + 1;
    KRON_TRY(mem_alloc(&copy, bytes, "a text"));
    memcpy(copy, s, bytes);
    *out = copy;
    return KRON_OK;
}

kron_status kron_image_read_parameters(char **out, const char *path)
{
    static const char *const keys[] = {"parameters", "UserComment", "Comment"};
    struct image_texts texts;
    const char *value = NULL;
    if (out == NULL || path == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_image_read_parameters: an argument is NULL");
    *out = NULL;
    KRON_TRY(image_load_texts(&texts, path));
    for (size_t i = 0; i < sizeof keys / sizeof *keys && value == NULL; i++)
        value = image_texts_find(&texts, keys[i]);
    kron_status status = value != NULL ? copy_string(out, value) : KRON_OK;
    image_texts_free(&texts);
    return status;
}

/* Lines of a value after its first are indented, so that they cannot pass for keys. */
static void add_text(struct str *out, const struct image_text *text)
{
    str_addf(out, "%s: ", text->key);
    for (const char *c = text->value; *c != '\0';) {
        size_t line = strcspn(c, "\n");
        str_add_n(out, c, line);
        c += line;
        if (*c == '\n') {
            str_add(out, "\n  ");
            c++;
        }
    }
    str_add(out, "\n");
}

kron_status kron_image_read_text(char **out, const char *path)
{
    struct image_texts texts;
    struct str lines = {0};
    if (out == NULL || path == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_image_read_text: an argument is NULL");
    *out = NULL;
    KRON_TRY(image_load_texts(&texts, path));
    for (size_t i = 0; i < texts.n; i++)
        add_text(&lines, &texts.items[i]);
    kron_status status = lines.status;
    if (status == KRON_OK)
        status = copy_string(out, str_get(&lines));
    str_free(&lines);
    image_texts_free(&texts);
    return status;
}
