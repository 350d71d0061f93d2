/* SPDX-License-Identifier: MIT
 * The tokenizer against transformers' ids (tests/golden/tokens.json, its origin is in
 * ../shared/reference/README.md), and on bytes that no reference takes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "model/tokenizer.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static struct tokenizer *tok;

static int set_up(void **state)
{
    (void)state;
    return tok_create(&tok) == KRON_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tok_free(&tok);
    return tok == NULL ? 0 : -1;
}

static void expect_bytes(const char *text, size_t len, const int32_t *want, size_t n_want)
{
    int32_t *ids;
    size_t n;
    assert_int_equal(tok_encode(tok, text, len, &ids, &n), KRON_OK);
    bool same = n == n_want && memcmp(ids, want, n * sizeof *ids) == 0;
    if (!same) {
        print_error("'%.*s' gave", (int)len, text);
        for (size_t i = 0; i < n; i++)
            print_error(" %d", (int)ids[i]);
        print_error(", expected");
        for (size_t i = 0; i < n_want; i++)
            print_error(" %d", (int)want[i]);
        print_error("\n");
    }
    mem_free(ids);
    assert_true(same);
}

#define EXPECT(text, ...)                                                          \
    do {                                                                           \
        static const int32_t want_[] = {__VA_ARGS__};                              \
        expect_bytes(text, sizeof(text) - 1, want_, sizeof want_ / sizeof *want_); \
    } while (0)

/* --- the golden file: one {"text": "...", "ids": [...]} a line --- */

static unsigned read_hex4(const char *p)
{
    char digits[5] = {p[0], p[1], p[2], p[3], '\0'};
    return (unsigned)strtoul(digits, NULL, 16);
}

/* Undoes JSON's escapes from p to the closing quote; the address after it. */
static const char *read_string(const char *p, char *out, size_t *len)
{
    *len = 0;
    for (; *p != '"'; p++) {
        assert_true(*p != '\0');
        if (*p != '\\') {
            out[(*len)++] = *p;
            continue;
        }
        p++;
        if (*p != 'u') {
            const char *from = "nrtbf\"\\/", *to = "\n\r\t\b\f\"\\/", *k = strchr(from, *p);
            assert_non_null(k);
            out[(*len)++] = to[k - from];
            continue;
        }
        utf8proc_int32_t c = (utf8proc_int32_t)read_hex4(p + 1);
        p += 4;
        if (c >= 0xd800 && c < 0xdc00) {
            c = 0x10000 + ((c - 0xd800) << 10) + ((utf8proc_int32_t)read_hex4(p + 3) - 0xdc00);
            p += 6;
        }
        *len += (size_t)utf8proc_encode_char(c, (uint8_t *)out + *len);
    }
    return p + 1;
}

static void test_golden_ids(void **state)
{
    (void)state;
    char *json;
    size_t bytes;
    assert_int_equal(
        file_read(&json, &bytes, KRON_SOURCE_DIR "/tests/golden/tokens.json", 1 << 20), KRON_OK);
    int rows = 0;
    static const char text_key[] = "{\"text\": \"", ids_key[] = ", \"ids\": [";
    for (const char *p = json; (p = strstr(p, text_key)) != NULL; rows++) {
        static char text[4096];
        static int32_t ids[1024];
        size_t len, n = 0;
        assert_true(strcspn(p, "\n") < sizeof text);
        p = read_string(p + strlen(text_key), text, &len);
        assert_memory_equal(p, ids_key, strlen(ids_key));
        for (p += strlen(ids_key); *p != ']'; n++) {
            char *end;
            ids[n] = (int32_t)strtol(p, &end, 10);
            assert_true(end > p);
            p = end + strspn(end, ", ");
        }
        expect_bytes(text, len, ids, n);
    }
    mem_free(json);
    assert_int_equal(rows, 64);
}

/* Ids below are from transformers 5.23. */
static void test_lower_case_is_by_character(void **state)
{
    (void)state;
    EXPECT("\xce\x91\xce\xa3", 138, 109, 139, 481);             /* no final sigma          */
    EXPECT("\xc4\xb0", 328, 16384);                             /* dotted I: i, then a dot */
    EXPECT("it'S", 585, 568);
    EXPECT("it'\xc5\xbf", 585, 262, 129, 379);                  /* long s is no 's         */
    EXPECT("Kelvin \xe2\x84\xaa", 32859, 330);
}

static void test_white_space_is_unicodes(void **state)
{
    (void)state;
    EXPECT("a\x0b" "b", 320, 321);
    EXPECT("\xc2\x85" "a", 320);
    EXPECT("x\xe2\x80\xa8y", 343, 344);
    EXPECT("\x1c\x1d" "a", 216, 473, 320); /* Python's isspace() but not a space */
    EXPECT("a\xe2\x80\x8b" "b", 320, 9844, 321);
}

static void test_combining_marks_are_put_in_order(void **state)
{
    (void)state;
    EXPECT("a\xcc\x81", 22229);
    int32_t *one, *two;
    size_t n_one, n_two;
    /* dot below and acute, in both orders */
    assert_int_equal(tok_encode(tok, "o\xcc\xa3\xcc\x81", 5, &one, &n_one), KRON_OK);
    assert_int_equal(tok_encode(tok, "o\xcc\x81\xcc\xa3", 5, &two, &n_two), KRON_OK);
    assert_int_equal(n_one, n_two);
    assert_memory_equal(one, two, n_one * sizeof *one);
    mem_free(one);
    mem_free(two);
}

static void test_special_tokens(void **state)
{
    (void)state;
    EXPECT("a<|endoftext|>b", 320, 49407, 321);
    EXPECT("<|endoftext|>'s", 49407, 568);
    EXPECT("<|startoftext|><|endoftext|>", 49406, 49407);
    EXPECT("<|ENDOFTEXT|>", 27, 347, 40786, 4160, 91, 285);
    EXPECT("<|endoftext", 27, 347, 40786, 4160);
}

static void test_nul_is_a_character(void **state)
{
    (void)state;
    EXPECT("\0a", 444, 320);
}

static void test_bad_utf8_becomes_replacement(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80", "\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xe2\x82", "\xc0\xaf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char want[16] = "";
        for (size_t k = 0; k < strlen(bad[i]); k++)
            memcpy(want + 3 * k, "\xef\xbf\xbd", 4);
        int32_t *ids;
        size_t n;
        assert_int_equal(tok_encode(tok, want, strlen(want), &ids, &n), KRON_OK);
        assert_true(n > 0);
        expect_bytes(bad[i], strlen(bad[i]), ids, n);
        mem_free(ids);
    }
}

static void test_long_word(void **state)
{
    (void)state;
    char *word = malloc(TOK_TEXT_MAX_BYTES + 1);
    assert_non_null(word);
    memset(word, 'a', TOK_TEXT_MAX_BYTES + 1);
    int32_t *ids;
    size_t n;
    assert_int_equal(tok_encode(tok, word, TOK_TEXT_MAX_BYTES, &ids, &n), KRON_OK);
    /* Eights, but the word's end is two tokens of four. */
    bool eights = n == TOK_TEXT_MAX_BYTES / 8 + 1;
    for (size_t i = 0; eights && i + 2 < n; i++)
        eights = ids[i] == 23126;
    assert_true(eights && ids[n - 2] == 6727 && ids[n - 1] == 19336);
    mem_free(ids);
    assert_int_equal(tok_encode(tok, word, TOK_TEXT_MAX_BYTES + 1, &ids, &n),
                     KRON_ERR_ARGUMENT);
    assert_null(ids);
    free(word);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    for (long k = 1; k <= 3; k++) {
        struct tokenizer *t;
        mem_fail_after(k);
        kron_status status = tok_create(&t);
        mem_fail_after(0);
        assert_int_equal(status, KRON_ERR_MEMORY);
        assert_null(t);
    }
    kron_status status = KRON_ERR_MEMORY;
    for (long k = 1; status != KRON_OK; k++) {
        int32_t *ids;
        size_t n;
        mem_fail_after(k);
        status = tok_encode(tok, "a photo of a cat", 16, &ids, &n);
        mem_fail_after(0);
        assert_true(status == KRON_OK ? k > 3 && n == 5 : status == KRON_ERR_MEMORY);
        mem_free(ids);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_ids),
        cmocka_unit_test(test_lower_case_is_by_character),
        cmocka_unit_test(test_white_space_is_unicodes),
        cmocka_unit_test(test_combining_marks_are_put_in_order),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_nul_is_a_character),
        cmocka_unit_test(test_bad_utf8_becomes_replacement),
        cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
