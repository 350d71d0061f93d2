/* SPDX-License-Identifier: MIT
 * UTF-8 from anywhere, and EXIF's UserComment in the forms that programs write. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "image/image.h"
#include <string.h>

static void broken_utf8_becomes_replacement_marks(void **state)
{
    static const char *const rows[][2] = {
        {"plain", "plain"},
        {"\xc3\xa9\xe7\x8c\xab\xf0\x9f\x90\xb1", "\xc3\xa9\xe7\x8c\xab\xf0\x9f\x90\xb1"},
        {"a\xff" "b", "a\xef\xbf\xbd" "b"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},             /* a long form of '/' */
        {"\xe7\x8c", "\xef\xbf\xbd\xef\xbf\xbd"},             /* cut off */
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* half a surrogate pair */
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct str got = {0};
        image_utf8_repair(&got, rows[i][0], strlen(rows[i][0]));
        assert_string_equal(str_get(&got), rows[i][1]);
        assert_int_equal(image_utf8_valid(rows[i][0], strlen(rows[i][0])), i < 2);
        str_free(&got);
    }
}

/* Every character goes to UTF-8 and back. */
static void all_characters_survive(void **state)
{
    (void)state;
    for (uint32_t code = 1; code < 0x110000; code += code < 0x900 ? 1 : 37) {
        struct str s = {0};
        size_t at = 0;
        if (code >= 0xD800 && code <= 0xDFFF)
            continue;
        image_utf8_add(&s, code);
        assert_int_equal(image_utf8_next(s.s, s.len, &at), code);
        assert_int_equal(at, s.len);
        str_free(&s);
    }
}

static void user_comment_comes_back(void **state)
{
    static const char *const texts[] = {"", "a cat", "Caf\xc3\xa9", "\xe7\x8c\xab",
                                        "\xf0\x9f\x90\xb1 and more\nSteps: 20"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct image_bytes bytes = {0};
        struct str got = {0};
        assert_int_equal(image_exif_write(&bytes, texts[i]), KRON_OK);
        assert_true(image_exif_read(&got, bytes.data, bytes.len));
        assert_string_equal(str_get(&got), texts[i]);
        str_free(&got);
        image_bytes_free(&bytes);
    }
}

/* A little-endian TIFF with two entries before the pointer, as cameras write them. */
static const uint8_t camera[] =
    "II*\0\x08\0\0\0"
    "\x03\0" "\x0f\x01\x02\0\x01\0\0\0" "A\0\0\0" "\x12\x01\x03\0\x01\0\0\0" "\x01\0\0\0"
    "\x69\x87\x04\0\x01\0\0\0" "\x32\0\0\0" "\0\0\0\0"
    "\x01\0" "\x86\x92\x07\0\x0c\0\0\0" "\x44\0\0\0" "\0\0\0\0"
    "ASCII\0\0\0" "hey\0";

static void other_forms_are_read(void **state)
{
    static const struct {
        const char *code, *text;
        size_t bytes;
        const char *want;
    } rows[] = {
        {"ASCII\0\0\0", "hey\0", 4, "hey"},
        {"UNICODE\0", "h\0i\0", 4, "hi"},
        {"UNICODE\0", "\0h\0i", 4, "hi"},
        {"UNICODE\0", "\xff\xfe\xab\x73", 4, "\xe7\x8e\xab"},
        {"UNICODE\0", "\xab\x73\xab\x73", 4, "\xe7\x8e\xab\xe7\x8e\xab"}, /* by the header */
        {"UNICODE\0", "\x3d\xd8\x61\0", 4, "\xef\xbf\xbd" "a"},           /* a lone half */
        {"\0\0\0\0\0\0\0\0", "hey\0", 4, "hey"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t tiff[sizeof camera - 1];
        struct str got = {0};
        memcpy(tiff, camera, sizeof tiff);
        memcpy(tiff + 0x44, rows[i].code, 8);
        memcpy(tiff + 0x4c, rows[i].text, rows[i].bytes);
        assert_true(image_exif_read(&got, tiff, sizeof tiff));
        assert_string_equal(str_get(&got), rows[i].want);
        str_free(&got);
    }
}

static void cut_or_changed_exif_ends_in_peace(void **state)
{
    uint8_t tiff[sizeof camera - 1];
    (void)state;
    for (size_t n = 0; n < sizeof tiff; n++) {
        struct str got = {0};
        assert_false(image_exif_read(&got, camera, n));
        str_free(&got);
        for (int bit = 0; bit < 8; bit++) {
            memcpy(tiff, camera, sizeof tiff);
            tiff[n] ^= (uint8_t)(1 << bit);
            image_exif_read(&got, tiff, sizeof tiff);
            str_free(&got);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_utf8_becomes_replacement_marks),
        cmocka_unit_test(all_characters_survive),
        cmocka_unit_test(user_comment_comes_back),
        cmocka_unit_test(other_forms_are_read),
        cmocka_unit_test(cut_or_changed_exif_ends_in_peace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
