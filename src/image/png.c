/* SPDX-License-Identifier: MIT
 * PNG by libpng. Every function that libpng may jump out of keeps its state in a struct of its
 * caller, since locals that change after setjmp() are lost. */
#include "image/image.h"
#include <png.h>
#include <setjmp.h>
#include <string.h>

enum { MAX_TEXTS = 64 }; /* with IMAGE_MAX_TEXT, the most that compressed text can blow up to */

struct png {
    png_structp png;
    png_infop info, info_end;
    jmp_buf jump;
    kron_status status;     /* set before a jump if it is not the file's fault */
    char message[128];
    const uint8_t *data;    /* reading: what is left */
    size_t left;
    struct image_bytes *out; /* writing */
    kron_image image;       /* its pixels are owned while reading, borrowed while writing */
    int stored_channels;    /* with alpha, before it is blended */
    png_bytep *rows;
};

static void on_error(png_structp png, png_const_charp message)
{
    struct png *p = png_get_error_ptr(png);
    if (p->status == KRON_OK) {
        p->status = KRON_ERR_FORMAT;
        snprintf(p->message, sizeof p->message, "%s", message);
    }
    longjmp(p->jump, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    log_debug("PNG: %s", message);
}

static void *png_memory(png_structp png, png_alloc_size_t bytes)
{
    struct png *p = png_get_mem_ptr(png);
    void *memory = NULL;

    /* libpng takes its own limit of a chunk as a benign error, and asks all the same. */
    if (bytes > 2 * (size_t)IMAGE_MAX_TEXT)
        return NULL;
    if (mem_alloc(&memory, bytes, "a PNG file") != KRON_OK)
        p->status = KRON_ERR_MEMORY;
    return memory;
}

static void png_release(png_structp png, void *memory)
{
    (void)png;
    mem_free(memory);
}

static void read_data(png_structp png, png_bytep to, size_t bytes)
{
    struct png *p = png_get_io_ptr(png);
    if (bytes > p->left)
        png_error(png, "the file is cut off");
    memcpy(to, p->data, bytes);
    p->data += bytes;
    p->left -= bytes;
}

static void write_data(png_structp png, png_bytep from, size_t bytes)
{
    struct png *p = png_get_io_ptr(png);
    if (image_bytes_add(p->out, from, bytes) != KRON_OK) {
        p->status = KRON_ERR_MEMORY;
        png_error(png, "out of memory");
    }
}

static void flush_data(png_structp png)
{
    (void)png;
}

static kron_status set_up_reader(struct png *p, const uint8_t *data, size_t bytes)
{
    *p = (struct png){.data = data, .left = bytes};
    if (setjmp(p->jump) == 0) {
        p->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, p, on_error, on_warning, p,
                                          png_memory, png_release);
        if (p->png != NULL) {
            p->info = png_create_info_struct(p->png);
            p->info_end = png_create_info_struct(p->png);
        }
        if (p->info == NULL || p->info_end == NULL)
            return p->status = err_set(KRON_ERR_MEMORY, "out of memory for reading a PNG file");
        png_set_read_fn(p->png, p, read_data);
        png_set_user_limits(p->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
        png_set_chunk_malloc_max(p->png, IMAGE_MAX_TEXT);
        png_set_chunk_cache_max(p->png, MAX_TEXTS);
        png_set_benign_errors(p->png, 1);
        return KRON_OK;
    }
    return p->status;
}

/* Frees all but the picture, and says what went wrong if something did. */
static kron_status finish(struct png *p)
{
    mem_free(p->rows);
    if (p->out != NULL)
        png_destroy_write_struct(&p->png, &p->info);
    else
        png_destroy_read_struct(&p->png, &p->info, &p->info_end);
    if (p->status == KRON_ERR_FORMAT)
        return err_set(KRON_ERR_FORMAT, "damaged PNG: %s", p->message);
    return p->status; /* out of memory: mem_alloc() said how much */
}

bool image_is_png(const uint8_t *data, size_t bytes)
{
    return bytes >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0;
}

/* --- pixels --- */

/* Deflate makes at most 1032 bytes of one. A header that promises more than the whole file could
 * give is found here, before its memory is taken. */
static void check_promise(struct png *p, size_t file_bytes)
{
    size_t bits = (size_t)png_get_bit_depth(p->png, p->info) *
                  (size_t)png_get_channels(p->png, p->info);
    size_t need = (size_t)png_get_image_width(p->png, p->info) * bits / 8 *
                  (size_t)png_get_image_height(p->png, p->info);
    if (need / 1032 > file_bytes)
        png_error(p->png, "the file is too short for its size in pixels");
}

static void ask_for_bytes(struct png *p)
{
    png_set_expand(p->png); /* palette, 1 2 4 bits, transparency by colour: all to 8 bits */
    png_set_scale_16(p->png);
    png_set_interlace_handling(p->png);
    png_read_update_info(p->png, p->info);
    p->stored_channels = png_get_channels(p->png, p->info);
}

static void make_room(struct png *p)
{
    int width = (int)png_get_image_width(p->png, p->info);
    int height = (int)png_get_image_height(p->png, p->info);
    void *rows;
    size_t stride = (size_t)width * (size_t)p->stored_channels;
    p->status = image_alloc(&p->image, width, height, p->stored_channels);
    if (p->status == KRON_OK)
        p->status = mem_alloc_n(&rows, (size_t)height, sizeof(png_bytep), "the rows of a PNG file");
    if (p->status != KRON_OK)
        longjmp(p->jump, 1);
    p->rows = rows;
    for (int y = 0; y < height; y++)
        p->rows[y] = p->image.pixels + (size_t)y * stride;
}

/* In place, which works as the written end never overtakes the read end. */
static void blend_on_white(kron_image *image)
{
    size_t n = (size_t)image->width * (size_t)image->height;
    int colours = image->channels - 1;
    const uint8_t *from = image->pixels;
    uint8_t *to = image->pixels;
    for (size_t i = 0; i < n; i++, from += colours + 1) {
        unsigned alpha = from[colours];
        for (int c = 0; c < colours; c++)
            *to++ = (uint8_t)((from[c] * alpha + 255u * (255u - alpha) + 127u) / 255u);
    }
    image->channels = colours;
}

static void read_picture(struct png *p)
{
    if (setjmp(p->jump) != 0)
        return;
    size_t file_bytes = p->left;
    png_read_info(p->png, p->info);
    check_promise(p, file_bytes);
    ask_for_bytes(p);
    make_room(p);
    png_read_image(p->png, p->rows);
    png_read_end(p->png, p->info_end);
}

kron_status image_png_decode(kron_image *out, const uint8_t *data, size_t bytes)
{
    struct png p;
    *out = (kron_image){0};
    if (set_up_reader(&p, data, bytes) == KRON_OK)
        read_picture(&p);
    kron_status status = finish(&p);
    if (status != KRON_OK) {
        image_free(&p.image);
        return status;
    }
    if (p.stored_channels == 2 || p.stored_channels == 4)
        blend_on_white(&p.image);
    *out = p.image;
    return KRON_OK;
}

/* --- text --- */

/* tEXt is Latin-1 by the standard, but several programs, stable-diffusion.cpp among them, put UTF-8
 * there. Latin-1 that happens to be well-formed UTF-8 is next to unknown. */
static void add_latin1(struct str *out, const char *s, size_t len)
{
    if (image_utf8_valid(s, len))
        str_add_n(out, s, len);
    else
        for (size_t i = 0; i < len; i++)
            image_utf8_add(out, (unsigned char)s[i]);
}

static kron_status copy_texts(struct png *p, png_infop info, struct image_texts *out)
{
    png_textp texts;
    int n = 0;
    png_get_text(p->png, info, &texts, &n);
    for (int i = 0; i < n; i++) {
        struct str key = {0}, value = {0};
        bool is_utf8 = texts[i].compression >= PNG_ITXT_COMPRESSION_NONE;
        add_latin1(&key, texts[i].key, strlen(texts[i].key));
        if (texts[i].text != NULL && is_utf8)
            image_utf8_repair(&value, texts[i].text, strlen(texts[i].text));
        else if (texts[i].text != NULL)
            add_latin1(&value, texts[i].text, strlen(texts[i].text));
        kron_status status = key.status != KRON_OK ? key.status : value.status;
        if (status == KRON_OK)
            status = image_texts_add(out, str_get(&key), str_get(&value));
        str_free(&key);
        str_free(&value);
        KRON_TRY(status);
    }
    return KRON_OK;
}

static void read_texts(struct png *p)
{
    if (setjmp(p->jump) != 0)
        return;
    size_t file_bytes = p->left;
    png_read_info(p->png, p->info);
    check_promise(p, file_bytes);
    /* Text may stand after the pixels, and libpng cannot step over these without decoding them. */
    int passes = png_set_interlace_handling(p->png);
    int height = (int)png_get_image_height(p->png, p->info);
    png_start_read_image(p->png);
    for (int i = 0; i < passes * height; i++)
        png_read_row(p->png, NULL, NULL);
    png_read_end(p->png, p->info_end);
}

kron_status image_png_texts(struct image_texts *out, const uint8_t *data, size_t bytes)
{
    struct png p;
    *out = (struct image_texts){0};
    if (set_up_reader(&p, data, bytes) == KRON_OK)
        read_texts(&p);
    kron_status status = p.status;
    if (status == KRON_OK)
        status = copy_texts(&p, p.info, out);
    if (status == KRON_OK)
        status = copy_texts(&p, p.info_end, out);
    if (status != KRON_OK)
        image_texts_free(out);
    kron_status end = finish(&p);
    return end != KRON_OK ? end : status;
}

/* --- writing --- */

/* Latin-1 of a text in UTF-8; false if it has other characters, or would be taken for UTF-8 by
 * add_latin1(). */
static bool to_latin1(struct str *out, const char *text)
{
    size_t len = strlen(text);
    bool ascii = true;
    for (size_t at = 0; at < len;) {
        uint32_t code = image_utf8_next(text, len, &at);
        if (code > 0xFF)
            return false;
        ascii = ascii && code < 0x80;
        str_add_n(out, &(char){(char)code}, 1);
    }
    return ascii || !image_utf8_valid(str_get(out), out->len);
}

static void write_picture(struct png *p, png_textp text)
{
    if (setjmp(p->jump) != 0)
        return;
    p->png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, p, on_error, on_warning, p,
                                       png_memory, png_release);
    if (p->png != NULL)
        p->info = png_create_info_struct(p->png);
    if (p->info == NULL) {
        p->status = err_set(KRON_ERR_MEMORY, "out of memory for writing a PNG file");
        return;
    }
    png_set_write_fn(p->png, p, write_data, flush_data);
    png_set_IHDR(p->png, p->info, (png_uint_32)p->image.width, (png_uint_32)p->image.height, 8,
                 p->image.channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (text != NULL)
        png_set_text(p->png, p->info, text, 1);
    png_write_info(p->png, p->info);
    size_t stride = (size_t)p->image.width * (size_t)p->image.channels;
    for (int y = 0; y < p->image.height; y++)
        png_write_row(p->png, p->image.pixels + (size_t)y * stride);
    png_write_end(p->png, NULL);
}

kron_status image_png_encode(struct image_bytes *out, const kron_image *image,
                             const char *parameters)
{
    struct png p = {.out = out, .image = *image};
    struct str latin1 = {0}, utf8 = {0};
    png_text text = {.key = (char[]){"parameters"}, .lang = (char[]){""}, .lang_key = (char[]){""}};
    if (parameters != NULL && to_latin1(&latin1, parameters)) {
        text.compression = PNG_TEXT_COMPRESSION_NONE;
        text.text = latin1.s;
        text.text_length = latin1.len;
    } else if (parameters != NULL) {
        image_utf8_repair(&utf8, parameters, strlen(parameters));
        text.compression = PNG_ITXT_COMPRESSION_NONE;
        text.text = utf8.s;
        text.itxt_length = utf8.len;
    }
    p.status = latin1.status != KRON_OK ? latin1.status : utf8.status;
    if (p.status == KRON_OK)
        write_picture(&p, parameters != NULL ? &text : NULL);
    str_free(&latin1);
    str_free(&utf8);
    return finish(&p);
}
