/* SPDX-License-Identifier: MIT
 * Growable text, and strict reading of numbers. */
#include "base/base.h"
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* AddressSanitizer ends the program at sizes that malloc() would only refuse. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void text_grows(void **state)
{
    struct str t = {0};

    (void)state;
    assert_string_equal(str_get(&t), "");
    for (int i = 0; i < 1000; i++)
        str_addf(&t, "%d,", i % 10);
    str_add(&t, "end");
    str_add_n(&t, "xyz", 1);
    str_add_n(&t, "a\0b", 3);
    assert_int_equal(t.status, KRON_OK);
    assert_int_equal(t.len, 2007);
    assert_true(strncmp(t.s, "0,1,2,3,4,5,6,7,8,9,0,", 22) == 0);
    assert_memory_equal(t.s + 2000, "endxa\0b", 8);
    str_free(&t);
    assert_null(t.s);
}

/* Each length around the sizes that the buffer doubles at. */
static void every_length_fits(void **state)
{
    char part[300];

    (void)state;
    memset(part, 'p', sizeof part);
    for (size_t n = 0; n < sizeof part; n++) {
        struct str t = {0};
        str_add_n(&t, part, n);
        str_add_n(&t, part, 1);
        str_addf(&t, "%.*s", (int)n, part);
        assert_int_equal(t.len, 2 * n + 1);
        assert_int_equal(strlen(t.s), t.len);
        str_free(&t);
    }
}

static void a_failure_sticks(void **state)
{
    struct str t = {0};
    char part[100] = "";

    (void)state;
    memset(part, 'p', sizeof part - 1);
    str_add(&t, "kept");
    mem_fail_after(1);
    str_add(&t, part);
    mem_fail_after(0);
    assert_int_equal(t.status, KRON_ERR_MEMORY);
    str_add(&t, "more");
    str_addf(&t, "%d", 1);
    assert_string_equal(str_get(&t), "kept");
    str_free(&t);
    str_add_n(&t, part, SIZE_MAX / 2);
    assert_int_equal(t.status, KRON_ERR_MEMORY);
    assert_string_equal(str_get(&t), "");
    str_free(&t);
}

static void starts_and_ends(void **state)
{
    (void)state;
    assert_true(str_starts("lora_unet", "lora_"));
    assert_true(str_starts("x", ""));
    assert_false(str_starts("lor", "lora_"));
    assert_true(str_ends("a.png", ".png"));
    assert_true(str_ends("x", ""));
    assert_false(str_ends("png", ".png"));
    assert_false(str_ends("a.png ", ".png"));
}

static void whole_integers_only(void **state)
{
    static const struct {
        const char *s;
        int64_t want;
    } good[] = {{"0", 0},     {"-0", 0},   {"007", 7},
                {"+12", 12},  {"-5", -5},  {"9223372036854775807", INT64_MAX},
                {"-9223372036854775808", INT64_MIN}};
    static const char *const bad[] = {
        "", " ", " 1", "1 ", "1x", "x1", "0x10", "1.0", "1e3", "-", "+", "--1", "+-1", "- 1", "\t1",
        "9223372036854775808", "-9223372036854775809", "99999999999999999999999", "inf", "."};
    int64_t v;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(str_to_i64(good[i].s, &v));
        assert_true(v == good[i].want);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (str_to_i64(bad[i], &v))
            fail_msg("'%s' was taken as %lld", bad[i], (long long)v);
}

static const struct {
    const char *s;
    double want;
} good_numbers[] = {{"0", 0},         {"-1.5", -1.5},   {"+.5", 0.5},     {"5.", 5},
                    {"1e3", 1000},    {"1E-3", 1e-3},   {"007.25", 7.25}, {"1e-400", 0},
                    {"4.9e-324", 0x1p-1074}, {"1.7976931348623157e308", 0x1.fffffffffffffp1023},
                    {"0.1", 0.1}};

static const char *const bad_numbers[] = {
    "", " ", " 1", "1 ", "1x", "1,5", "0x10", "-0X1p3", "0x", "inf", "-inf", "+infinity", "nan",
    "-nan", "nan(1)", "1e400", "-1e999", "-", "+", ".", "-.", "e5", ".e5", "1e", "1e+", "--1",
    "1.2.3", "1_000"};

static void check_numbers(void)
{
    double v;

    for (size_t i = 0; i < sizeof good_numbers / sizeof *good_numbers; i++) {
        if (!str_to_double(good_numbers[i].s, &v))
            fail_msg("'%s' was refused", good_numbers[i].s);
        assert_true(v == good_numbers[i].want);
    }
    for (size_t i = 0; i < sizeof bad_numbers / sizeof *bad_numbers; i++)
        if (str_to_double(bad_numbers[i], &v))
            fail_msg("'%s' was taken as %g", bad_numbers[i], v);
}

static void whole_numbers_only(void **state)
{
    (void)state;
    check_numbers();
}

/* A program that embeds the library may have set a locale whose point is a comma. */
static void the_point_is_a_point_in_any_locale(void **state)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE",
                                        "pl_PL.UTF-8"};
    const char *set = NULL;

    (void)state;
    for (size_t i = 0; set == NULL && i < sizeof names / sizeof *names; i++)
        set = setlocale(LC_NUMERIC, names[i]);
    if (set == NULL || strcmp(localeconv()->decimal_point, ",") != 0) {
        print_message("no locale with a decimal comma on this machine: case skipped\n");
        setlocale(LC_NUMERIC, "C");
        skip();
    }
    assert_true(strtod("1,5", NULL) == 1.5);
    check_numbers();
    setlocale(LC_NUMERIC, "C");
}

static void hashes_are_fnv_1a(void **state)
{
    (void)state;
    assert_true(hash_bytes("", 0, 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(hash_bytes("a", 1, 0) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(hash_bytes("foobar", 6, 0) == UINT64_C(0x85944171f73967e8));
    assert_true(hash_bytes("foobar", 6, 1) != hash_bytes("foobar", 6, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_grows),
        cmocka_unit_test(every_length_fits),
        cmocka_unit_test(a_failure_sticks),
        cmocka_unit_test(starts_and_ends),
        cmocka_unit_test(whole_integers_only),
        cmocka_unit_test(whole_numbers_only),
        cmocka_unit_test(the_point_is_a_point_in_any_locale),
        cmocka_unit_test(hashes_are_fnv_1a),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
