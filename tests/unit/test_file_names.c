/* SPDX-License-Identifier: MIT
 * Names of files with the endings of the formats. */
#include "file/file.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void stems_are_without_endings(void **state)
{
    static const char *const stems[] = {"model", "a.b", "v1.5-q8_0", ".gguf"};

    (void)state;
    assert_string_equal(st_ending(0), ".safetensors");
    for (size_t k = 0; k < sizeof stems / sizeof *stems; k++)
        for (int i = 0; st_ending(i) != NULL; i++) {
            char name[64];
            snprintf(name, sizeof name, "%s%s", stems[k], st_ending(i));
            assert_int_equal(st_stem(name), strlen(stems[k]));
        }
    assert_int_equal(st_stem("model.png"), 9);
    assert_int_equal(st_stem("gguf"), 4);
    assert_int_equal(st_stem(""), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stems_are_without_endings)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
