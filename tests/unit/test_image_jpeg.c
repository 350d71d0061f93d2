/* SPDX-License-Identifier: MIT
 * JPEG files: round trips, text, files of others (tests/golden/image, made by Pillow), damage. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "image/image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN KRON_SOURCE_DIR "/tests/golden/image/"

static char folder[] = "/tmp/kron-jpeg-XXXXXX";
static char path[64];

/* Smooth, so that JPEG keeps it closely; the channels differ. */
static kron_image slope(int width, int height, int channels)
{
    kron_image image;
    assert_int_equal(image_alloc(&image, width, height, channels), KRON_OK);
    for (int i = 0; i < width * height * channels; i++) {
        int x = i / channels % width, y = i / channels / width, c = i % channels;
        image.pixels[i] = (uint8_t)(60 + (x * (c + 1) + y * (3 - c)) * 100 / (width + height) / 2);
    }
    return image;
}

static struct image_bytes encode(const kron_image *image, const char *text, int quality)
{
    struct image_bytes bytes = {0};
    assert_int_equal(image_jpeg_encode(&bytes, image, text, quality), KRON_OK);
    return bytes;
}

static void pixels_come_back_closely(void **state)
{
    static const int sizes[][3] = {{1, 1, 1}, {1, 1, 3}, {37, 5, 1}, {64, 48, 3}, {3, 200, 3}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        kron_image image = slope(sizes[i][0], sizes[i][1], sizes[i][2]), back;
        assert_int_equal(kron_image_save(&image, path, NULL, 0), KRON_OK);
        assert_int_equal(kron_image_load(&back, path, 0), KRON_OK);
        assert_int_equal(back.width, image.width);
        assert_int_equal(back.height, image.height);
        assert_int_equal(back.channels, image.channels);
        for (int k = 0; k < image.width * image.height * image.channels; k++)
            assert_true(abs(image.pixels[k] - back.pixels[k]) <= 4);
        kron_image_free(&image);
        kron_image_free(&back);
    }
}

static void quality_costs_bytes(void **state)
{
    kron_image image = slope(128, 128, 3);
    (void)state;
    for (int i = 0; i < 128 * 128 * 3; i++)
        image.pixels[i] ^= (uint8_t)(i * 7 % 13);
    struct image_bytes low = encode(&image, NULL, 30), high = encode(&image, NULL, 100);
    struct image_bytes usual = encode(&image, NULL, 0), same = encode(&image, NULL, 95);
    assert_true(low.len < usual.len && usual.len < high.len);
    assert_int_equal(usual.len, same.len);
    image_bytes_free(&low);
    image_bytes_free(&high);
    image_bytes_free(&usual);
    image_bytes_free(&same);
    kron_image_free(&image);
}

static void parameters_come_back(void **state)
{
    static const char *const texts[] = {"a cat face\nSteps: 20", "Caf\xc3\xa9",
                                        "\xe7\x8c\xab \xf0\x9f\x90\xb1 \xd0\x9a", ""};
    kron_image image = slope(8, 8, 3);
    char *got;
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        assert_int_equal(kron_image_save(&image, path, texts[i], 0), KRON_OK);
        assert_int_equal(kron_image_read_parameters(&got, path), KRON_OK);
        assert_non_null(got);
        assert_string_equal(got, texts[i]);
        kron_string_free(got);
    }
    assert_int_equal(kron_image_save(&image, path, NULL, 0), KRON_OK);
    assert_int_equal(kron_image_read_parameters(&got, path), KRON_OK);
    assert_null(got);
    kron_image_free(&image);
}

static void text_too_long_for_a_segment_is_refused(void **state)
{
    kron_image image = slope(8, 8, 3);
    struct image_bytes bytes = {0};
    char *text = malloc(40001);
    (void)state;
    memset(text, 'a', 40000);
    text[40000] = '\0';
    assert_int_equal(image_jpeg_encode(&bytes, &image, text, 0), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "PNG"));
    image_bytes_free(&bytes);
    text[32000] = '\0';
    assert_int_equal(image_jpeg_encode(&bytes, &image, text, 0), KRON_OK);
    image_bytes_free(&bytes);
    free(text);
    kron_image_free(&image);
}

static void files_of_others_are_read(void **state)
{
    kron_image image;
    char *text;
    (void)state;
    assert_int_equal(kron_image_load(&image, GOLDEN "inks.jpg", 0), KRON_OK);
    assert_int_equal(image.channels, 3);
    assert_true(abs(image.pixels[0] - 191) <= 2 && abs(image.pixels[1] - 95) <= 2 &&
                image.pixels[2] <= 2);
    kron_image_free(&image);
    assert_int_equal(kron_image_load(&image, GOLDEN "user_comment.jpg", 0), KRON_OK);
    assert_int_equal(image.channels, 1);
    for (int y = 0; y < 16; y++)
        for (int x = 0; x < 24; x++)
            assert_true(abs(image.pixels[y * 24 + x] - (5 * y + 6 * x)) <= 8);
    kron_image_free(&image);
    assert_int_equal(kron_image_read_text(&text, GOLDEN "user_comment.jpg"), KRON_OK);
    assert_non_null(strstr(text, "UserComment: a cat, \xe7\x8c\xab \xf0\x9f\x90\xb1\n"
                                 "  Negative prompt: bad\n  Steps: 20, Seed: 1\n"));
    assert_non_null(strstr(text, "Comment: second text\n"));
    kron_string_free(text);
    assert_int_equal(kron_image_read_parameters(&text, GOLDEN "user_comment.jpg"), KRON_OK);
    assert_int_equal(strncmp(text, "a cat", 5), 0);
    kron_string_free(text);
}

static void cut_files_are_errors(void **state)
{
    kron_image image = slope(32, 24, 3), back;
    struct image_bytes file = encode(&image, "text", 0);
    (void)state;
    for (size_t n = 3; n < file.len; n++) {
        assert_int_equal(image_jpeg_decode(&back, file.data, n), KRON_ERR_FORMAT);
        assert_null(back.pixels);
        assert_non_null(strstr(kron_error_detail(), "JPEG"));
    }
    image_bytes_free(&file);
    kron_image_free(&image);
}

static void changed_files_never_crash(void **state)
{
    kron_image image = slope(16, 16, 3), back;
    struct image_bytes file = encode(&image, "text", 0);
    (void)state;
    for (size_t i = 0; i < file.len * 8; i++) {
        struct image_texts texts;
        file.data[i / 8] ^= (uint8_t)(1 << i % 8);
        image_jpeg_decode(&back, file.data, file.len);
        image_free(&back);
        image_jpeg_texts(&texts, file.data, file.len);
        image_texts_free(&texts);
        file.data[i / 8] ^= (uint8_t)(1 << i % 8);
    }
    image_bytes_free(&file);
    kron_image_free(&image);
}

static void lying_sizes_are_errors(void **state)
{
    kron_image image = slope(16, 16, 3), back;
    struct image_bytes file = encode(&image, NULL, 0);
    size_t at = 0;
    (void)state;
    while (at + 9 < file.len && (file.data[at] != 0xFF || file.data[at + 1] != 0xC0))
        at++;
    assert_true(at + 9 < file.len);
    memcpy(file.data + at + 5, "\x40\x00\x40\x00", 4); /* 16384 x 16384 */
    assert_int_equal(image_jpeg_decode(&back, file.data, file.len), KRON_ERR_FORMAT);
    memcpy(file.data + at + 5, "\x00\x10\x40\x01", 4); /* 16385 x 16 */
    assert_int_equal(image_jpeg_decode(&back, file.data, file.len), KRON_ERR_FORMAT);
    memcpy(file.data + at + 5, "\x00\x20\x00\x20", 4); /* more rows than there is data for */
    assert_int_equal(image_jpeg_decode(&back, file.data, file.len), KRON_ERR_FORMAT);
    image_bytes_free(&file);
    kron_image_free(&image);
}

static void no_memory_is_an_error_at_every_point(void **state)
{
    kron_image image = slope(20, 20, 3), back;
    kron_status status = KRON_ERR_MEMORY;
    (void)state;
    for (long n = 1; status != KRON_OK; n++) {
        struct image_bytes bytes = {0};
        struct image_texts texts = {0};
        mem_fail_after(n);
        status = image_jpeg_encode(&bytes, &image, "\xe7\x8c\xab", 0);
        if (status == KRON_OK)
            status = image_jpeg_texts(&texts, bytes.data, bytes.len);
        if (status == KRON_OK)
            status = image_jpeg_decode(&back, bytes.data, bytes.len);
        mem_fail_after(0);
        if (status != KRON_OK)
            assert_int_equal(status, KRON_ERR_MEMORY);
        else
            image_free(&back);
        image_texts_free(&texts);
        image_bytes_free(&bytes);
        assert_true(n < 1000);
    }
    kron_image_free(&image);
}

static int set_up(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/a.jpg", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_come_back_closely),
        cmocka_unit_test(quality_costs_bytes),
        cmocka_unit_test(parameters_come_back),
        cmocka_unit_test(text_too_long_for_a_segment_is_refused),
        cmocka_unit_test(files_of_others_are_read),
        cmocka_unit_test(cut_files_are_errors),
        cmocka_unit_test(changed_files_never_crash),
        cmocka_unit_test(lying_sizes_are_errors),
        cmocka_unit_test(no_memory_is_an_error_at_every_point),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
