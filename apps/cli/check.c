/* SPDX-License-Identifier: MIT
 * Everything that can be found wrong before a model is loaded and minutes are spent. */
#define _POSIX_C_SOURCE 200809L
#include "cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PROMPT_FILE = 1 << 20, SIZE_DEFAULT = 512 };

static bool is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static const char *file_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static char *copy(const char *s, size_t n)
{
    char *c = malloc(n + 1);
    if (c != NULL) {
        memcpy(c, s, n);
        c[n] = '\0';
    }
    return c;
}

bool check_folder_of(const char *path)
{
    const char *file = file_of(path);
    if (*file == '\0' || is_folder(path))
        return complain("%s is a folder, expected the name of a file", path);
    char *folder = file == path ? copy(".", 1) : copy(path, (size_t)(file - path));
    if (folder == NULL)
        return complain("out of memory");
    bool good = true;
    if (!is_folder(folder))
        good = complain("%s: there is no folder %s", path, folder);
    else if (access(folder, W_OK | X_OK) != 0)
        good = complain("%s: cannot write into %s: %s", path, folder, strerror(errno));
    free(folder);
    return good;
}

/* --- names of the pictures --- */

/* PNG or JPEG by its ending. */
static bool is_picture_name(const char *path)
{
    const char *ending = strrchr(file_of(path), '.');
    return ending != NULL && (strcasecmp(ending, ".png") == 0 || strcasecmp(ending, ".jpg") == 0 ||
                              strcasecmp(ending, ".jpeg") == 0);
}

static bool is_other_format(const char *path)
{
    static const char *const endings[] = {".webp", ".avi", ".webm", ".gif", ".bmp", ".tga", ".mp4"};
    const char *ending = strrchr(file_of(path), '.');
    for (size_t i = 0; ending != NULL && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(ending, endings[i]) == 0)
            return true;
    return false;
}

/* "%d" or "%03d" in a file's name: where it begins, with its length and width; NULL if none. */
static const char *find_number(const char *file, size_t *len, int *digits)
{
    for (const char *s = strchr(file, '%'); s != NULL; s = strchr(s + 1, '%')) {
        size_t n = strspn(s + 1, "0123456789");
        if (n <= 3 && s[1 + n] == 'd') {
            *len = n + 2;
            *digits = atoi(s + 1);
            return s;
        }
    }
    return NULL;
}

bool output_init(struct output *out, const struct options *o)
{
    size_t len = strlen(o->output), number_len = 0;
    *out = (struct output){.count = o->batch, .numbered = o->begin >= 0};
    if (!check_folder_of(o->output))
        return false;
    if (is_other_format(o->output))
        return complain("--output %s: this version of Kron writes PNG and JPEG", o->output);
    char *path = malloc(len + sizeof ".png");
    if (path == NULL)
        return complain("out of memory");
    snprintf(path, len + sizeof ".png", "%s%s", o->output,
             is_picture_name(o->output) ? "" : ".png");
    const char *number = find_number(file_of(path), &number_len, &out->digits);
    out->pattern = number != NULL;
    if (number == NULL)
        number = strrchr(path, '.');
    out->begin = o->begin >= 0 ? o->begin : out->pattern ? 0 : 1;
    out->head = copy(path, (size_t)(number - path));
    out->tail = copy(number + number_len, strlen(number + number_len));
    free(path);
    return out->head != NULL && out->tail != NULL ? true : complain("out of memory");
}

char *output_name(const struct output *out, int i)
{
    size_t size = strlen(out->head) + strlen(out->tail) + 32;
    char *name = malloc(size);
    if (name == NULL)
        return NULL;
    if (out->pattern)
        snprintf(name, size, "%s%0*d%s", out->head, out->digits, out->begin + i, out->tail);
    else if (out->count > 1 && (out->numbered || i > 0))
        snprintf(name, size, "%s_%d%s", out->head, out->begin + i, out->tail);
    else
        snprintf(name, size, "%s%s", out->head, out->tail);
    return name;
}

void output_free(struct output *out)
{
    free(out->head);
    free(out->tail);
}

/* --- prompts --- */

static bool read_prompt(char **out, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return complain("%s: %s", path, strerror(errno));
    char *text = malloc(MAX_PROMPT_FILE + 1);
    size_t n = text != NULL ? fread(text, 1, MAX_PROMPT_FILE + 1, f) : 0;
    bool failed = ferror(f) != 0;
    int error = errno;
    fclose(f);
    const char *wrong = text == NULL                           ? "out of memory"
                        : failed                               ? strerror(error)
                        : n > MAX_PROMPT_FILE                  ? "longer than 1 MiB"
                        : n > 0 && memchr(text, 0, n) != NULL  ? "not a text file"
                                                               : NULL;
    if (wrong != NULL) {
        free(text);
        return complain("%s: %s", path, wrong);
    }
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        n--;
    text[n] = '\0';
    *out = text;
    return true;
}

static bool read_prompts(struct options *o)
{
    if (o->prompt != NULL && o->prompt_file != NULL)
        return complain("--prompt and --prompt-file: only one of the two can be given");
    if (o->negative != NULL && o->negative_file != NULL)
        return complain("--negative-prompt and --negative-prompt-file: only one of the two can be "
                        "given");
    if (o->prompt_file != NULL && !read_prompt(&o->prompt_text, o->prompt_file))
        return false;
    if (o->negative_file != NULL && !read_prompt(&o->negative_text, o->negative_file))
        return false;
    if (o->prompt_text != NULL)
        o->prompt = o->prompt_text;
    if (o->negative_text != NULL)
        o->negative = o->negative_text;
    if (o->prompt == NULL)
        return complain("a prompt is missing: -p TEXT or --prompt-file FILE");
    return true;
}

/* --- options together --- */

static bool check_side(const char *name, int side)
{
    if (side == SIZE_UNSET || side % 8 == 0)
        return true;
    int below = side / 8 * 8, above = below + 8;
    if (above > MAX_SIDE)
        return complain("%s %d is not a multiple of 8: %d is", name, side, below);
    return complain("%s %d is not a multiple of 8: %d and %d are", name, side, below, above);
}

static bool check_loras(const struct options *o)
{
    for (int i = 0; i < o->loras.n; i++)
        if (kron_adapter_check_text(o->loras.at[i]) != KRON_OK)
            return complain("--lora: %s", kron_error_detail());
    return true;
}

bool check_type_rules(const struct options *o)
{
    return kron_type_rules_check(o->type_rules) == KRON_OK
               ? true
               : complain("--tensor-type-rules: %s", kron_error_detail());
}

bool check_options(struct options *o)
{
    if (o->model == NULL && o->diffusion_model == NULL)
        return complain("a model is missing: -m FILE");
    if (!check_side("--width", o->width) || !check_side("--height", o->height))
        return false;
    if (o->mode == MODE_IMG2IMG && o->init_path == NULL)
        return complain("--mode img2img needs --init-img");
    if (o->mask_path != NULL && o->init_path == NULL)
        return complain("--mask needs --init-img");
    if (o->lora_dir != NULL && !is_folder(o->lora_dir))
        return complain("--lora-model-dir %s: there is no such folder", o->lora_dir);
    if (o->embd_dir != NULL && !is_folder(o->embd_dir))
        return complain("--embd-dir %s: there is no such folder", o->embd_dir);
    if (!check_type_rules(o))
        return false;
    if (o->quant_cache != NULL && !is_folder(o->quant_cache))
        return complain("--quant-cache %s: there is no such folder", o->quant_cache);
    if (o->imat_out != NULL && !check_folder_of(o->imat_out))
        return false;
    if (o->profile_trace != NULL && !check_folder_of(o->profile_trace))
        return false;
    if (!check_loras(o))
        return false;
    if (o->seed > INT64_MAX - o->batch)
        return complain("--seed %lld: too large for %d pictures", (long long)o->seed, o->batch);
    if (o->preview != PREVIEW_NONE && !is_picture_name(o->preview_path))
        return complain("--preview-path %s: the name must end in .png or .jpg", o->preview_path);
    if (o->preview != PREVIEW_NONE && !check_folder_of(o->preview_path))
        return false;
    return read_prompts(o);
}

/* --- pictures --- */

/* Cuts the middle out, in the shape of width x height, so that scaling does not distort. */
static void crop(kron_image *image, int width, int height)
{
    int64_t w = image->width, h = image->height;
    int64_t new_w = w * height > h * width ? (h * width + height / 2) / height : w;
    int64_t new_h = w * height < h * width ? (w * height + width / 2) / width : h;
    new_w = new_w < 1 ? 1 : new_w;
    new_h = new_h < 1 ? 1 : new_h;
    size_t left = (size_t)((w - new_w) / 2), top = (size_t)((h - new_h) / 2);
    size_t pixel = (size_t)image->channels;
    for (size_t y = 0; y < (size_t)new_h; y++)
        memmove(image->pixels + y * (size_t)new_w * pixel,
                image->pixels + ((top + y) * (size_t)w + left) * pixel, (size_t)new_w * pixel);
    image->width = (int)new_w;
    image->height = (int)new_h;
}

static bool fit(kron_image *image, int width, int height)
{
    kron_image scaled;
    crop(image, width, height);
    if (image->width == width && image->height == height)
        return true;
    kron_status status = kron_image_resize(&scaled, image, width, height);
    if (status != KRON_OK) {
        complain_status(status);
        return false;
    }
    kron_image_free(image);
    *image = scaled;
    return true;
}

static bool load(kron_image *image, const char *path, int channels)
{
    kron_status status = kron_image_load(image, path, channels);
    if (status != KRON_OK)
        complain_status(status);
    return status == KRON_OK;
}

bool load_pictures(struct options *o, kron_image *init, kron_image *mask)
{
    if (o->init_path != NULL) {
        if (!load(init, o->init_path, 3))
            return false;
        if (init->width < 8 || init->height < 8)
            return complain("%s: %d x %d pixels, expected at least 8 x 8", o->init_path,
                            init->width, init->height);
        o->width = o->width == SIZE_UNSET ? init->width / 8 * 8 : o->width;
        o->height = o->height == SIZE_UNSET ? init->height / 8 * 8 : o->height;
        if (!fit(init, o->width, o->height))
            return false;
    }
    o->width = o->width == SIZE_UNSET ? SIZE_DEFAULT : o->width;
    o->height = o->height == SIZE_UNSET ? SIZE_DEFAULT : o->height;
    if (o->mask_path != NULL &&
        !(load(mask, o->mask_path, 1) && fit(mask, o->width, o->height)))
        return false;
    return true;
}
