/* SPDX-License-Identifier: MIT
 * Scaling against Pillow's LANCZOS. Pillow rounds and clips to 8 bits between its two passes, we do
 * not: one level of difference is its rounding; the picture stays away from where it clips. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <kron/image.h>
#include <stdlib.h>
#include <string.h>

static kron_image borrow(const uint8_t *pixels, int width, int height, int channels)
{
    return (kron_image){
        .width = width, .height = height, .channels = channels, .pixels = (uint8_t *)pixels};
}

static void check_near(const kron_image *in, int width, int height, const uint8_t *want)
{
    kron_image out;
    assert_int_equal(kron_image_resize(&out, in, width, height), KRON_OK);
    assert_int_equal(out.width, width);
    assert_int_equal(out.height, height);
    assert_int_equal(out.channels, in->channels);
    for (int i = 0; i < width * height * in->channels; i++)
        if (abs(out.pixels[i] - want[i]) > 1)
            fail_msg("%d x %d, byte %d: %d, expected %d", width, height, i, out.pixels[i], want[i]);
    kron_image_free(&out);
}

static void rows_are_scaled_as_pillow_does(void **state)
{
    static const uint8_t row[] = {172, 47, 117, 192, 67, 251, 195, 103, 9, 211, 21};
    static const uint8_t to5[] = {110, 123, 196, 108, 92};
    static const uint8_t to17[] = {186, 115, 41,  84,  174, 186, 82,  113, 251,
                                   238, 168, 111, 9,   53,  207, 122, 0};
    (void)state;
    kron_image in = borrow(row, 11, 1, 1);
    check_near(&in, 5, 1, to5);
    check_near(&in, 17, 1, to17);
    check_near(&in, 11, 1, row);
    kron_image column = borrow(row, 1, 11, 1);
    check_near(&column, 1, 5, to5);
    check_near(&column, 1, 17, to17);
}

static void pictures_are_scaled_as_pillow_does(void **state)
{
    static const uint8_t picture[] = {
        107, 177, 82, 142, 79, 145, 75, 149, 134, 86, 71, 146, 141, 179, 76, 95, 120, 90,
        171, 88, 154, 81, 176, 98, 99, 84, 120, 138, 157, 157, 175, 183, 164, 166, 156, 83,
        175, 79, 77, 133, 131, 92, 127, 71, 70, 130, 151, 78, 158, 83, 185, 117, 176, 142,
        100, 141, 73, 140, 91, 119, 127, 73, 138, 94, 183, 113, 146, 96, 122, 150, 179, 185,
        111, 152, 85, 134, 138, 95, 181, 168, 157, 77, 96, 95, 174, 92, 79, 137, 173, 93,
        170, 97, 107, 127, 153, 108, 78, 102, 104, 80, 93, 85, 181, 157, 95, 141, 185, 162,
        144, 132, 116, 102, 158, 93, 125, 135, 183, 147, 73, 70, 147, 76, 122, 155, 140, 72};
    static const uint8_t to4x9[] = {
        129, 138, 108, 86, 99, 148, 103, 140, 91, 139, 108, 126, 102, 138, 112, 114, 128, 154,
        148, 147, 99, 146, 109, 97, 88, 124, 98, 149, 153, 163, 174, 153, 105, 149, 97, 81,
        125, 100, 72, 145, 132, 160, 118, 146, 100, 136, 76, 117, 126, 122, 100, 135, 138, 155,
        123, 154, 100, 128, 100, 136, 124, 144, 121, 141, 151, 138, 134, 151, 102, 127, 133, 120,
        155, 126, 87, 157, 137, 110, 87, 119, 100, 130, 129, 95, 154, 143, 108, 134, 141, 112,
        109, 92, 111, 145, 114, 85, 139, 165, 141, 110, 151, 126, 147, 85, 121, 155, 107, 88};
    static const uint8_t to3x2[] = {
        115, 123, 118, 133, 146, 131, 139, 114, 101, 144, 141, 114, 127, 133, 119, 130, 113, 101};
    (void)state;
    kron_image in = borrow(picture, 7, 6, 3);
    check_near(&in, 4, 9, to4x9);
    check_near(&in, 3, 2, to3x2);
    check_near(&in, 7, 6, picture);
}

static void flat_pictures_stay_flat(void **state)
{
    uint8_t pixels[13 * 9 * 3];
    (void)state;
    memset(pixels, 201, sizeof pixels);
    kron_image in = borrow(pixels, 13, 9, 3), out;
    static const int sizes[][2] = {{1, 1}, {64, 40}, {13, 1}, {2, 100}, {5, 4}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        assert_int_equal(kron_image_resize(&out, &in, sizes[s][0], sizes[s][1]), KRON_OK);
        for (int i = 0; i < out.width * out.height * 3; i++)
            assert_int_equal(out.pixels[i], 201);
        kron_image_free(&out);
    }
}

static void impossible_sizes_are_refused(void **state)
{
    uint8_t pixel[3] = {1, 2, 3};
    kron_image in = borrow(pixel, 1, 1, 3), none = {0}, out;
    (void)state;
    assert_int_equal(kron_image_resize(&out, &in, 0, 5), KRON_ERR_ARGUMENT);
    assert_null(out.pixels);
    assert_int_equal(kron_image_resize(&out, &in, 5, -1), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_image_resize(&out, &in, 16385, 5), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_image_resize(&out, &none, 5, 5), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_image_resize(&in, &in, 5, 5), KRON_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_scaled_as_pillow_does),
        cmocka_unit_test(pictures_are_scaled_as_pillow_does),
        cmocka_unit_test(flat_pictures_stay_flat),
        cmocka_unit_test(impossible_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
