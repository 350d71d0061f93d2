/* SPDX-License-Identifier: MIT
 * Memory: checked sizes, the one door of allocation, arenas, failures on demand; and the sentence
 * that an error leaves. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

/* AddressSanitizer ends the program at sizes that malloc() would only refuse. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static bool all_zero(const void *p, size_t n)
{
    const unsigned char *b = p;

    for (size_t i = 0; i < n; i++)
        if (b[i] != 0)
            return false;
    return true;
}

static void sizes_are_checked(void **state)
{
    size_t x;

    (void)state;
    assert_true(size_add(3, 4, &x));
    assert_int_equal(x, 7);
    assert_true(size_add(SIZE_MAX - 1, 1, &x));
    assert_true(x == SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &x));
    assert_true(size_mul(SIZE_MAX / 2, 2, &x));
    assert_true(size_mul(SIZE_MAX, 0, &x));
    assert_int_equal(x, 0);
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &x));
    assert_false(size_mul((size_t)1 << 32, (size_t)1 << 32, &x));
}

static void memory_is_zeroed_and_aligned(void **state)
{
    void *p;

    (void)state;
    for (size_t n = 0; n < 5000; n = n * 2 + 1) {
        assert_int_equal(mem_alloc(&p, n, "a test"), KRON_OK);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_true(all_zero(p, n));
        memset(p, 0xff, n); /* what the next one may get back */
        mem_free(p);
    }
    mem_free(NULL);
}

#if defined(__SANITIZE_ADDRESS__)
/* Whether the sanitizer would report an access to the byte (its own interface). */
int __asan_address_is_poisoned(const volatile void *p);

static void the_sanitizer_sees_each_byte_over_the_end(void **state)
{
    struct arena a = {0};
    void *p;

    (void)state;
    for (size_t n = 1; n < 200; n++) {
        assert_int_equal(mem_alloc(&p, n, "a test"), KRON_OK);
        unsigned char *piece = arena_alloc(&a, n), *m = p;
        assert_non_null(piece);
        assert_false(__asan_address_is_poisoned(m + n - 1));
        assert_true(__asan_address_is_poisoned(m + n));
        assert_false(__asan_address_is_poisoned(piece + n - 1));
        assert_true(__asan_address_is_poisoned(piece + n));
        mem_free(p);
    }
    arena_free(&a);
}
#endif

static void sizes_that_cannot_be_are_errors(void **state)
{
    static const size_t huge[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2};
    void *p = &p;

    (void)state;
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        assert_int_equal(mem_alloc(&p, huge[i], "the moon"), KRON_ERR_MEMORY);
        assert_null(p);
        assert_non_null(strstr(kron_error_detail(), "the moon"));
        assert_non_null(strstr(kron_error_detail(), "MB"));
    }
    p = &p;
    assert_int_equal(mem_alloc_n(&p, SIZE_MAX / 4, 8, "the sun"), KRON_ERR_MEMORY);
    assert_null(p);
    assert_non_null(strstr(kron_error_detail(), "the sun"));
    assert_int_equal(mem_alloc_n(&p, 10, 8, "ten"), KRON_OK);
    assert_true(all_zero(p, 80));
    mem_free(p);
}

static void growing_keeps_and_zeroes(void **state)
{
    void *p = NULL, *before;
    int *a;

    (void)state;
    assert_int_equal(mem_grow(&p, 0, 3, sizeof *a, "a list"), KRON_OK);
    a = p;
    a[0] = 1, a[1] = 2, a[2] = 3;
    assert_int_equal(mem_grow(&p, 3, 100, sizeof *a, "a list"), KRON_OK);
    a = p;
    assert_int_equal(a[0] + a[1] * 10 + a[2] * 100, 321);
    assert_true(all_zero(a + 3, 97 * sizeof *a));
    before = p;
    assert_int_equal(mem_grow(&p, 100, SIZE_MAX / 2, sizeof *a, "a list"), KRON_ERR_MEMORY);
    assert_ptr_equal(p, before);
    mem_fail_after(1);
    assert_int_equal(mem_grow(&p, 100, 200, sizeof *a, "a list"), KRON_ERR_MEMORY);
    mem_fail_after(0);
    assert_ptr_equal(p, before);
    assert_int_equal(((int *)p)[2], 3);
    mem_free(p);
}

static void the_nth_allocation_fails_and_all_after_it(void **state)
{
    void *p[4];

    (void)state;
    for (long n = 1; n <= 4; n++) {
        mem_fail_after(n);
        for (long i = 1; i <= 4; i++)
            assert_int_equal(mem_alloc(&p[i - 1], 8, "x"), i < n ? KRON_OK : KRON_ERR_MEMORY);
        mem_fail_after(0);
        for (long i = 0; i < 4; i++)
            mem_free(p[i]);
        assert_int_equal(mem_alloc(&p[0], 8, "x"), KRON_OK);
        mem_free(p[0]);
    }
}

static void arena_pieces_do_not_touch(void **state)
{
    enum { N = 600 };
    struct arena a = {0};
    unsigned char *p[N];
    size_t size[N], sum = 0;

    (void)state;
    for (size_t i = 0; i < N; i++) {
        size[i] = i % 7 == 0 ? 0 : i * 37 % 500;
        if (i == 300)
            size[i] = 100000; /* larger than a block */
        p[i] = arena_alloc(&a, size[i]);
        assert_non_null(p[i]);
        assert_int_equal((uintptr_t)p[i] % 16, 0);
        assert_true(all_zero(p[i], size[i]));
        memset(p[i], (int)(i & 255), size[i]);
        sum += size[i];
    }
    assert_true(sum > 5 * 16384); /* so that several blocks were used */
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < size[i]; k++)
            assert_int_equal(p[i][k], i & 255);
    arena_free(&a);
    assert_null(a.blocks);
    assert_string_equal(arena_strdup(&a, "again"), "again");
    assert_string_equal(arena_printf(&a, "%s-%d", "x", 12), "x-12");
    arena_free(&a);
}

static void an_arena_remembers_its_first_failure(void **state)
{
    struct arena a = {0};

    (void)state;
    assert_non_null(arena_alloc(&a, 16));
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_int_equal(a.status, KRON_ERR_MEMORY);
    assert_null(arena_alloc(&a, 1));
    assert_null(arena_strdup(&a, "x"));
    assert_null(arena_printf(&a, "%d", 1));
    arena_free(&a);
    assert_int_equal(a.status, KRON_OK);
    mem_fail_after(1);
    assert_null(arena_alloc(&a, 16));
    mem_fail_after(0);
    assert_int_equal(a.status, KRON_ERR_MEMORY);
    arena_free(&a);
}

static void errors_are_one_clean_line(void **state)
{
    char long_name[3000];

    (void)state;
    assert_int_equal(err_set(KRON_ERR_IO, "file '%s'", "a\nb\tc\x7f\x1b[31m"), KRON_ERR_IO);
    assert_string_equal(kron_error_detail(), "file 'a?b?c??[31m'");
    /* The old sentence may be an argument of the new one. */
    err_set(KRON_ERR_IO, "again: %s", kron_error_detail());
    assert_string_equal(kron_error_detail(), "again: file 'a?b?c??[31m'");
    assert_int_equal(err_prefix(KRON_ERR_FORMAT, "in %s", "x\ny"), KRON_ERR_FORMAT);
    assert_string_equal(kron_error_detail(), "in x?y: again: file 'a?b?c??[31m'");
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    err_set(KRON_ERR_IO, "%s", long_name);
    assert_int_equal(strlen(kron_error_detail()), 1023);
    err_prefix(KRON_ERR_IO, "p");
    assert_true(strncmp(kron_error_detail(), "p: nnn", 6) == 0);
    err_prefix(KRON_ERR_IO, "%s", long_name);
    assert_int_equal(strlen(kron_error_detail()), 1023);
}

static void every_status_has_a_text(void **state)
{
    (void)state;
#define IS_TEXT(name, value, text) \
    assert_int_equal(KRON_##name, value), assert_string_equal(kron_status_text(KRON_##name), text);
    KRON_STATUS_LIST(IS_TEXT)
#undef IS_TEXT
    assert_string_equal(kron_status_text((kron_status)-99), "unknown status");
    assert_non_null(strchr(kron_version(), '.'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(memory_is_zeroed_and_aligned),
#if defined(__SANITIZE_ADDRESS__)
        cmocka_unit_test(the_sanitizer_sees_each_byte_over_the_end),
#endif
        cmocka_unit_test(sizes_that_cannot_be_are_errors),
        cmocka_unit_test(growing_keeps_and_zeroes),
        cmocka_unit_test(the_nth_allocation_fails_and_all_after_it),
        cmocka_unit_test(arena_pieces_do_not_touch),
        cmocka_unit_test(an_arena_remembers_its_first_failure),
        cmocka_unit_test(errors_are_one_clean_line),
        cmocka_unit_test(every_status_has_a_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
