/* SPDX-License-Identifier: MIT
 * PNG files: round trips, every kind of pixel, text, damage, and no memory. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "image/image.h"
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/kron-png-XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static kron_image pattern(int width, int height, int channels)
{
    kron_image image;
    assert_int_equal(image_alloc(&image, width, height, channels), KRON_OK);
    for (int i = 0; i < width * height * channels; i++)
        image.pixels[i] = (uint8_t)(i * 37 ^ i >> 3);
    return image;
}

static void assert_same(const kron_image *a, const kron_image *b)
{
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_int_equal(a->channels, b->channels);
    assert_memory_equal(a->pixels, b->pixels,
                        (size_t)a->width * (size_t)a->height * (size_t)a->channels);
}

static void pixels_come_back(void **state)
{
    static const int sizes[][3] = {{1, 1, 1}, {1, 1, 3}, {37, 5, 1}, {64, 48, 3}, {3, 200, 3}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        kron_image image = pattern(sizes[i][0], sizes[i][1], sizes[i][2]), back;
        assert_int_equal(kron_image_save(&image, in_folder("a.PNG"), NULL, 0), KRON_OK);
        assert_int_equal(kron_image_load(&back, in_folder("a.PNG"), 0), KRON_OK);
        assert_same(&image, &back);
        kron_image_free(&image);
        kron_image_free(&back);
    }
}

static void channels_are_converted(void **state)
{
    kron_image grey = pattern(9, 4, 1), rgb = pattern(9, 4, 3), back;
    (void)state;
    assert_int_equal(kron_image_save(&grey, in_folder("g.png"), NULL, 0), KRON_OK);
    assert_int_equal(kron_image_load(&back, in_folder("g.png"), 3), KRON_OK);
    for (int i = 0; i < 9 * 4 * 3; i++)
        assert_int_equal(back.pixels[i], grey.pixels[i / 3]);
    assert_int_equal(image_convert(&back, 1), KRON_OK);
    assert_same(&back, &grey); /* grey to RGB and back is exact */
    kron_image_free(&back);
    assert_int_equal(kron_image_save(&rgb, in_folder("c.png"), NULL, 0), KRON_OK);
    assert_int_equal(kron_image_load(&back, in_folder("c.png"), 1), KRON_OK);
    for (int i = 0; i < 9 * 4; i++) {
        const uint8_t *p = rgb.pixels + 3 * i;
        double luma = 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
        assert_true(back.pixels[i] >= luma - 0.51 && back.pixels[i] <= luma + 0.51);
    }
    kron_image_free(&back);
    kron_image_free(&grey);
    kron_image_free(&rgb);
}

/* --- files as other programs make them --- */

enum { W = 11, H = 7 };

static void append(png_structp png, png_bytep data, size_t bytes)
{
    assert_int_equal(image_bytes_add(png_get_io_ptr(png), data, bytes), KRON_OK);
}

static void flush_nothing(png_structp png)
{
    (void)png;
}

/* Samples are (x * 25 + y * 9 + c * 31) mod 2^depth, twice over for 16 bits. */
static unsigned sample(int x, int y, int c, int depth)
{
    unsigned v = (unsigned)(x * 25 + y * 9 + c * 31) & 255;
    return depth < 8 ? v & ((1u << depth) - 1) : v;
}

static void fill_row(uint8_t *row, int y, int depth, int channels)
{
    memset(row, 0, (size_t)W * 8);
    for (int x = 0; x < W; x++)
        for (int c = 0; c < channels; c++) {
            unsigned v = sample(x, y, c, depth);
            int i = x * channels + c;
            if (depth == 16)
                row[2 * i] = row[2 * i + 1] = (uint8_t)v;
            else
                row[i * depth / 8] |= (uint8_t)(v << (8 - depth - i * depth % 8));
        }
}

static void set_palette(png_structp png, png_infop info)
{
    png_color colours[256];
    png_byte alpha[2] = {0, 128};
    for (int i = 0; i < 256; i++)
        colours[i] = (png_color){(png_byte)i, (png_byte)(255 - i), (png_byte)(i / 2)};
    png_set_PLTE(png, info, colours, 1 << png_get_bit_depth(png, info));
    png_set_tRNS(png, info, alpha, 2, NULL);
}

static struct image_bytes make_png(int colour_type, int depth, int interlace)
{
    static const int channels_of[7] = {1, 0, 3, 1, 2, 0, 4};
    struct image_bytes out = {0};
    uint8_t rows[H][W * 8];
    png_bytep pointers[H];
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(png, &out, append, flush_nothing);
    png_set_IHDR(png, info, W, H, depth, colour_type, interlace, 0, 0);
    if (colour_type == PNG_COLOR_TYPE_PALETTE)
        set_palette(png, info);
    for (int y = 0; y < H; y++) {
        fill_row(rows[y], y, depth, channels_of[colour_type]);
        pointers[y] = rows[y];
    }
    png_write_info(png, info);
    png_write_image(png, pointers);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    return out;
}

static int on_white(int v, int alpha)
{
    return (int)((v * alpha + 255 * (255 - alpha)) / 255.0 + 0.5);
}

static int expected(int colour_type, int depth, int x, int y, int c)
{
    int top = (1 << (depth < 8 ? depth : 8)) - 1;
    int v = (int)sample(x, y, c, depth) * 255 / top;
    int index = (int)sample(x, y, 0, depth);
    int colour = c == 0 ? index : c == 1 ? 255 - index : index / 2;
    switch (colour_type) {
    case PNG_COLOR_TYPE_PALETTE:
        return on_white(colour, index == 0 ? 0 : index == 1 ? 128 : 255);
    case PNG_COLOR_TYPE_GRAY_ALPHA:
        return on_white(v, (int)sample(x, y, 1, depth));
    case PNG_COLOR_TYPE_RGB_ALPHA:
        return on_white(v, (int)sample(x, y, 3, depth));
    default:
        return v;
    }
}

static void every_kind_of_png_is_read(void **state)
{
    static const int kinds[][2] = {{0, 1},  {0, 2}, {0, 4}, {0, 8}, {0, 16},
                                   {2, 8},  {2, 16}, {3, 1}, {3, 2}, {3, 4},
                                   {3, 8},  {4, 8}, {4, 16}, {6, 8}, {6, 16}};
    (void)state;
    for (size_t k = 0; k < 2 * sizeof kinds / sizeof *kinds; k++) {
        int type = kinds[k / 2][0], depth = kinds[k / 2][1];
        struct image_bytes file = make_png(type, depth, k % 2);
        kron_image image;
        if (image_png_decode(&image, file.data, file.len) != KRON_OK)
            fail_msg("type %d depth %d: %s", type, depth, kron_error_detail());
        assert_int_equal(image.channels, type == 0 || type == 4 ? 1 : 3);
        for (int i = 0; i < W * H * image.channels; i++) {
            int x = i / image.channels % W, y = i / image.channels / W, c = i % image.channels;
            if (image.pixels[i] != expected(type, depth, x, y, c))
                fail_msg("type %d depth %d at %d,%d: %d", type, depth, x, y, image.pixels[i]);
        }
        image_free(&image);
        image_bytes_free(&file);
    }
}

/* --- text --- */

static const char *const texts[] = {
    "",
    "a cat face\nNegative prompt: bad\nSteps: 20, Seed: 1",
    "Caf\xc3\xa9 \xc2\xa9",                   /* Latin-1 */
    "\xc3\x83\xc2\xa9",                       /* Latin-1 whose bytes look like UTF-8 */
    "\xe7\x8c\xab \xf0\x9f\x90\xb1 \xd0\x9a", /* beyond Latin-1 */
};

static bool has_chunk(const char *path, const char *type)
{
    char *data;
    size_t bytes;
    assert_int_equal(file_read(&data, &bytes, path, 1 << 20), KRON_OK);
    bool found = false;
    for (size_t i = 0; i + 4 <= bytes; i++)
        found = found || memcmp(data + i, type, 4) == 0;
    mem_free(data);
    return found;
}

static void parameters_come_back(void **state)
{
    kron_image image = pattern(300, 200, 3); /* pixels in several chunks */
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char *got;
        assert_int_equal(kron_image_save(&image, in_folder("t.png"), texts[i], 0), KRON_OK);
        assert_int_equal(kron_image_read_parameters(&got, in_folder("t.png")), KRON_OK);
        assert_non_null(got);
        assert_string_equal(got, texts[i]);
        assert_int_equal(has_chunk(in_folder("t.png"), "iTXt"), i >= 3);
        assert_int_equal(has_chunk(in_folder("t.png"), "tEXt"), i < 3);
        kron_string_free(got);
    }
    char *none = folder; /* any value but NULL */
    assert_int_equal(kron_image_save(&image, in_folder("t.png"), NULL, 0), KRON_OK);
    assert_int_equal(kron_image_read_parameters(&none, in_folder("t.png")), KRON_OK);
    assert_null(none);
    kron_image_free(&image);
}

/* UTF-8 in tEXt, a compressed text, and one after the pixels. */
static void texts_of_others_are_read(void **state)
{
    struct image_bytes out = {0};
    uint8_t row[3] = {1, 2, 3};
    char utf8[] = "\xe7\x8c\xab", latin1[] = "\xe9t\xe9", late[] = "late\nline";
    png_text text[] = {
        {.compression = -1, .key = (char[]){"parameters"}, .text = utf8},
        {.compression = 0, .key = (char[]){"zipped"}, .text = latin1},
    };
    png_text after = {.compression = -1, .key = (char[]){"Comment"}, .text = late};
    (void)state;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png), end = png_create_info_struct(png);
    png_set_write_fn(png, &out, append, flush_nothing);
    png_set_IHDR(png, info, 1, 1, 8, PNG_COLOR_TYPE_RGB, 0, 0, 0);
    png_set_text(png, info, text, 2);
    png_write_info(png, info);
    png_write_row(png, row);
    png_set_text(png, end, &after, 1);
    png_write_end(png, end);
    png_destroy_info_struct(png, &end);
    png_destroy_write_struct(&png, &info);
    assert_int_equal(file_write(in_folder("o.png"), out.data, out.len), KRON_OK);
    image_bytes_free(&out);
    char *got;
    assert_int_equal(kron_image_read_text(&got, in_folder("o.png")), KRON_OK);
    assert_string_equal(got, "parameters: \xe7\x8c\xab\nzipped: \xc3\xa9t\xc3\xa9\n"
                             "Comment: late\n  line\n");
    kron_string_free(got);
}

/* --- damage --- */

static void cut_files_are_errors(void **state)
{
    struct image_bytes file = make_png(PNG_COLOR_TYPE_RGB, 8, 0);
    (void)state;
    for (size_t n = 8; n < file.len; n++) {
        kron_image image;
        assert_int_equal(image_png_decode(&image, file.data, n), KRON_ERR_FORMAT);
        assert_null(image.pixels);
        assert_non_null(strstr(kron_error_detail(), "PNG"));
    }
    image_bytes_free(&file);
}

/* A flipped bit is found by a check sum; only unknown chunks and ends may pass it. */
static void changed_files_never_crash(void **state)
{
    struct image_bytes file = make_png(PNG_COLOR_TYPE_PALETTE, 4, 1);
    size_t refused = 0;
    (void)state;
    for (size_t i = 0; i < file.len * 8; i++) {
        kron_image image;
        file.data[i / 8] ^= (uint8_t)(1 << i % 8);
        refused += image_png_decode(&image, file.data, file.len) != KRON_OK;
        image_free(&image);
        file.data[i / 8] ^= (uint8_t)(1 << i % 8);
    }
    assert_true(refused > file.len * 6);
    image_bytes_free(&file);
}

static void put_be(uint8_t *at, uint32_t v)
{
    for (int i = 3; i >= 0; i--, v >>= 8)
        at[i] = (uint8_t)v;
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

static void lying_sizes_are_errors(void **state)
{
    static const uint32_t sizes[][2] = {
        {16384, 16384}, {16385, 1}, {1, 16385}, {0, 7}, {1u << 31, 7}};
    struct image_bytes file = make_png(PNG_COLOR_TYPE_RGB, 8, 0);
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        kron_image image;
        put_be(file.data + 16, sizes[i][0]);
        put_be(file.data + 20, sizes[i][1]);
        put_be(file.data + 29, crc(file.data + 12, 17));
        assert_int_equal(image_png_decode(&image, file.data, file.len), KRON_ERR_FORMAT);
        assert_null(image.pixels);
    }
    image_bytes_free(&file);
}

static void wrong_files_are_named(void **state)
{
    kron_image image;
    char *text;
    (void)state;
    assert_int_equal(kron_image_load(&image, in_folder("missing.png"), 3), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "missing.png"));
    assert_int_equal(file_write(in_folder("text.png"), "hello", 5), KRON_OK);
    assert_int_equal(kron_image_load(&image, in_folder("text.png"), 3), KRON_ERR_FORMAT);
    assert_non_null(strstr(kron_error_detail(), "text.png"));
    assert_int_equal(kron_image_read_text(&text, in_folder("text.png")), KRON_ERR_FORMAT);
    assert_int_equal(file_write(in_folder("head.png"), "\x89PNG\r\n\x1a\n", 8), KRON_OK);
    assert_int_equal(kron_image_load(&image, in_folder("head.png"), 3), KRON_ERR_FORMAT);
    assert_non_null(strstr(kron_error_detail(), "head.png"));
    assert_int_equal(kron_image_load(&image, folder, 3), KRON_ERR_IO);
    assert_int_equal(kron_image_load(&image, in_folder("head.png"), 2), KRON_ERR_ARGUMENT);
    kron_image one = pattern(1, 1, 3);
    assert_int_equal(kron_image_save(&one, in_folder("a.gif"), NULL, 0), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_image_save(&one, in_folder("no/a.png"), NULL, 0), KRON_ERR_IO);
    assert_int_equal(kron_image_save(&one, in_folder("a.png"), NULL, 101), KRON_ERR_ARGUMENT);
    kron_image_free(&one);
}

static void no_memory_is_an_error_at_every_point(void **state)
{
    kron_image image = pattern(20, 20, 3), back;
    kron_status status = KRON_ERR_MEMORY;
    (void)state;
    for (long n = 1; status != KRON_OK; n++) {
        char *text = NULL;
        struct image_bytes bytes = {0};
        mem_fail_after(n);
        status = image_png_encode(&bytes, &image, "\xe7\x8c\xab");
        if (status == KRON_OK)
            status = image_png_decode(&back, bytes.data, bytes.len);
        if (status == KRON_OK) {
            image_free(&back);
            status = kron_image_read_parameters(&text, in_folder("m.png"));
            status = status == KRON_ERR_IO ? KRON_OK : status;
        }
        mem_fail_after(0);
        if (status != KRON_OK)
            assert_int_equal(status, KRON_ERR_MEMORY);
        image_bytes_free(&bytes);
        assert_true(n < 1000);
    }
    kron_image_free(&image);
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    static const char *const names[] = {"a.PNG", "g.png",    "c.png",   "t.png",
                                        "o.png", "text.png", "head.png"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(in_folder(names[i]));
    return rmdir(folder); /* fails if a save left a temporary file */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_come_back),
        cmocka_unit_test(channels_are_converted),
        cmocka_unit_test(every_kind_of_png_is_read),
        cmocka_unit_test(parameters_come_back),
        cmocka_unit_test(texts_of_others_are_read),
        cmocka_unit_test(cut_files_are_errors),
        cmocka_unit_test(changed_files_never_crash),
        cmocka_unit_test(lying_sizes_are_errors),
        cmocka_unit_test(wrong_files_are_named),
        cmocka_unit_test(no_memory_is_an_error_at_every_point),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
