/* SPDX-License-Identifier: MIT
 * safetensors files: written and read back, and every way in which a header can lie. */
#include "file/file.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"
#include "tensor_fixture.h"

/* A file image: header length, header, n_data zero bytes. */
struct image {
    unsigned char bytes[32768];
    size_t n;
};

static void make(struct image *m, const char *header, size_t n_data)
{
    size_t len = strlen(header);

    assert_true(8 + len + n_data <= sizeof m->bytes);
    memset(m->bytes, 0, sizeof m->bytes);
    for (int i = 0; i < 8; i++)
        m->bytes[i] = (unsigned char)((uint64_t)len >> 8 * i);
    memcpy(m->bytes + 8, header, len);
    m->n = 8 + len + n_data;
}

static kron_status open_image(const struct image *m, struct st_file **f)
{
    void *copy; /* of the exact size, so that AddressSanitizer sees a step too far */

    assert_int_equal(mem_alloc(&copy, m->n, "an image"), KRON_OK);
    memcpy(copy, m->bytes, m->n);
    kron_status status = st_open_memory(f, copy, m->n, "test.safetensors");
    if (status != KRON_OK) {
        assert_null(*f);
        mem_free(copy);
        return status;
    }
    st_close(f);
    mem_free(copy);
    return status;
}

static void what_is_written_is_read(void **state)
{
    static const float w[6] = {1, 2, 3, 4, 5, 6};
    static const uint16_t h[3] = {0x3c00, 0x4000, 0x4200};
    static const unsigned char b[5] = {1, 0, 1, 1, 0};
    const struct tensor in[] = {
        tensor_of("a.weight", DT_F32, w, 2, (const int64_t[]){2, 3}),
        tensor_of("gr\xc3\xbc\xc3\x9f \"e\"", DT_F16, h, 1, (const int64_t[]){3}),
        tensor_of("flags", DT_BOOL, b, 5, (const int64_t[]){1, 1, 5, 1, 1}),
        tensor_of("scalar", DT_F32, w, 0, NULL),
        tensor_of("empty", DT_F32, NULL, 2, (const int64_t[]){0, 7}),
    };
    static const char *const meta[] = {"format", "pt", "note", "two\nlines"};
    char path[8192];
    struct st_file *f;
    const char *key, *value;

    (void)state;
    make_dir(NULL);
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    assert_int_equal(st_write(path, in, 5, meta, 2), KRON_OK);
    assert_int_equal(st_open(&f, path), KRON_OK);
    assert_string_equal(st_path(f), path);
    assert_int_equal(st_count(f), 5);
    for (int i = 0; i < 5; i++)
        expect_same(st_find(f, in[i].name), &in[i]);
    for (int i = 0; i < 5; i++)
        assert_ptr_equal(st_find(f, st_at(f, i)->name), st_at(f, i));
    assert_int_equal((uintptr_t)st_find(f, "a.weight")->data % 8, 0);
    assert_null(st_find(f, "a.weigh"));
    assert_null(st_find(f, ""));
    assert_null(st_find(f, "__metadata__"));
    assert_int_equal(st_meta_count(f), 2);
    assert_string_equal(st_meta(f, "note"), "two\nlines");
    assert_null(st_meta(f, "Note"));
    st_meta_at(f, 0, &key, &value);
    assert_string_equal(st_meta(f, key), value);
    st_close(&f);
    assert_null(f);
    st_close(&f);
    remove_dir(NULL);
}

/* A name that JSON cannot hold would leave data without an entry, and a type that the format lacks
 * could not be read: nothing is written. */
static void names_that_cannot_be_written(void **state)
{
    static const float w[2] = {1, 2};
    static const char *const meta[] = {"key", "\xff"}, *const twice[] = {"k", "1", "k", "2"};
    const struct tensor bad[] = {tensor_of("ok", DT_F32, w, 0, NULL),
                                 tensor_of("\xff\xfe", DT_F32, w, 0, NULL)};
    const struct tensor same[] = {tensor_of("a", DT_F32, w, 0, NULL),
                                  tensor_of("a", DT_F32, w + 1, 0, NULL)};
    const struct tensor block = {.data = w, .bytes = 18, .type = DT_Q4_0, .n_dims = 1,
                                 .dim = {32, 1, 1, 1, 1, 1}, .name = "blocks"};
    char path[8192];

    (void)state;
    make_dir(NULL);
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    assert_int_equal(st_write(path, bad, 2, NULL, 0), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), path));
    assert_int_equal(st_write(path, same, 2, NULL, 0), KRON_ERR_ARGUMENT);
    assert_int_equal(st_write(path, bad, 1, meta, 1), KRON_ERR_ARGUMENT);
    assert_int_equal(st_write(path, bad, 1, twice, 2), KRON_ERR_ARGUMENT);
    assert_int_equal(st_write(path, &block, 1, NULL, 0), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "'blocks': safetensors has no type q4_0"));
    assert_int_equal(temp_dir_count(dir), 0);
    assert_int_equal(st_write(path, bad, 1, NULL, 0), KRON_OK);
    remove_dir(NULL);
}

static const struct {
    const char *header;
    size_t n_data;
} good_headers[] = {
    {"{}", 0},
    {"{}   \n", 0},
    {"{\"__metadata__\":{}}", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":null}}", 8},
    {"{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"e\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[2,2]}}", 4},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1},
};

static void good_headers_open(void **state)
{
    struct image m;
    struct st_file *f;

    (void)state;
    for (size_t i = 0; i < sizeof good_headers / sizeof *good_headers; i++) {
        make(&m, good_headers[i].header, good_headers[i].n_data);
        if (open_image(&m, &f) != KRON_OK)
            fail_msg("%s: %s", good_headers[i].header, kron_error_detail());
    }
}

#define ENTRY(dtype, shape, offsets) \
    "{\"te.x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct bad_header {
    const char *name, *header;
    size_t n_data;
    const char *want; /* in the message */
    kron_status status;
} bad_headers[] = {
    {"nothing in the header", "", 4, "not JSON", KRON_ERR_FORMAT},
    {"not JSON", "hello", 4, "not JSON", KRON_ERR_FORMAT},
    {"JSON cut", "{\"a\":{\"dtype\"", 4, "not JSON", KRON_ERR_FORMAT},
    {"JSON and more", "{} x", 4, "not JSON", KRON_ERR_FORMAT},
    {"not UTF-8", "{\"\xff\":1}", 4, "not JSON", KRON_ERR_FORMAT},
    {"a NUL in a name", "{\"a\\u0000b\":1}", 4, "not JSON", KRON_ERR_FORMAT},
    {"a list", "[]", 4, "not an object", KRON_ERR_FORMAT},
    {"a name twice", "{\"a\":1,\"a\":2}", 4, "uplicate", KRON_ERR_FORMAT},
    {"an entry that is a number", "{\"te.x\":1}", 4, "'te.x'", KRON_ERR_FORMAT},
    {"an entry that is empty", "{\"te.x\":{}}", 4, "'te.x': header entry has no dtype",
     KRON_ERR_FORMAT},
    {"dtype a number", ENTRY("4", "[1]", "[0,4]"), 4, "'te.x': header entry has no dtype",
     KRON_ERR_FORMAT},
    {"dtype unknown", ENTRY("\"F4\"", "[1]", "[0,4]"), 4, "'te.x': unknown dtype 'F4'",
     KRON_ERR_UNSUPPORTED},
    {"dtype of another format", ENTRY("\"q4_0\"", "[32]", "[0,18]"), 18,
     "'te.x': unknown dtype 'q4_0'", KRON_ERR_UNSUPPORTED},
    {"dtype with a control character", ENTRY("\"F\\n4\"", "[1]", "[0,4]"), 4, "dtype 'F?4'",
     KRON_ERR_UNSUPPORTED},
    {"no shape", "{\"te.x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "'te.x': shape",
     KRON_ERR_FORMAT},
    {"shape a number", ENTRY("\"F32\"", "1", "[0,4]"), 4, "'te.x': shape", KRON_ERR_FORMAT},
    {"shape negative", ENTRY("\"F32\"", "[-1]", "[0,4]"), 4, "negative", KRON_ERR_FORMAT},
    {"shape twice negative", ENTRY("\"F32\"", "[-1,-1]", "[0,4]"), 4, "negative", KRON_ERR_FORMAT},
    {"shape not whole", ENTRY("\"F32\"", "[1.0]", "[0,4]"), 4, "no integer", KRON_ERR_FORMAT},
    {"shape of text", ENTRY("\"F32\"", "[\"1\"]", "[0,4]"), 4, "no integer", KRON_ERR_FORMAT},
    {"shape huge", ENTRY("\"F32\"", "[9223372036854775807]", "[0,4]"), 4, "4 bytes of data",
     KRON_ERR_FORMAT},
    {"shape beyond 64 bits", ENTRY("\"F32\"", "[99999999999999999999]", "[0,4]"), 4, "not JSON",
     KRON_ERR_FORMAT},
    {"shape's product overflows", ENTRY("\"F32\"", "[4294967296,4294967296,1]", "[0,4]"), 4,
     "too large", KRON_ERR_FORMAT},
    {"shape's product wraps to what is there",
     ENTRY("\"U8\"", "[4294967297,4294967297]", "[0,1]"), 4,
     "too large", KRON_ERR_FORMAT},
    {"shape's product fits size_t alone", ENTRY("\"U8\"", "[1099511627776,8388608,0]", "[0,0]"), 4,
     "too large", KRON_ERR_FORMAT},
    {"shape times type overflows", ENTRY("\"F64\"", "[4611686018427387904]", "[0,0]"), 4,
     "0 bytes of data", KRON_ERR_FORMAT},
    {"too many dimensions", ENTRY("\"F32\"", "[1,1,1,1,1,1,1]", "[0,4]"), 4, "at most 6",
     KRON_ERR_FORMAT},
    {"no offsets", "{\"te.x\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "'te.x': data_offsets",
     KRON_ERR_FORMAT},
    {"one offset", ENTRY("\"F32\"", "[1]", "[0]"), 4, "pair", KRON_ERR_FORMAT},
    {"three offsets", ENTRY("\"F32\"", "[1]", "[0,4,8]"), 8, "pair", KRON_ERR_FORMAT},
    {"offsets not whole", ENTRY("\"F32\"", "[1]", "[0,4.0]"), 4, "pair", KRON_ERR_FORMAT},
    {"offsets an object", ENTRY("\"F32\"", "[1]", "{\"0\":0,\"1\":4}"), 4, "pair", KRON_ERR_FORMAT},
    {"offsets negative", ENTRY("\"F32\"", "[1]", "[-4,0]"), 4, "range", KRON_ERR_FORMAT},
    {"offsets reversed", ENTRY("\"F32\"", "[1]", "[4,0]"), 4, "range", KRON_ERR_FORMAT},
    {"end after the data", ENTRY("\"F32\"", "[2]", "[0,8]"), 7,
     "ends at byte 8 of the data, the file "
     "has 7", KRON_ERR_FORMAT},
    {"all after the data", ENTRY("\"F32\"", "[1]", "[4611686018427387904,4611686018427387908]"), 4,
     "truncated", KRON_ERR_FORMAT},
    {"no data at all", ENTRY("\"F32\"", "[1]", "[0,4]"), 0, "truncated", KRON_ERR_FORMAT},
    {"fewer bytes than the shape", ENTRY("\"F32\"", "[2]", "[0,4]"), 8,
     "'te.x' of 2 F32 numbers has 4 bytes", KRON_ERR_FORMAT},
    {"more bytes than the shape", ENTRY("\"F16\"", "[1]", "[0,4]"), 8, "has 4 bytes",
     KRON_ERR_FORMAT},
    {"bytes of an empty shape", ENTRY("\"F32\"", "[0]", "[0,4]"), 4, "of 0 F32 numbers",
     KRON_ERR_FORMAT},
    {"two on the same bytes", "{\"te.x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"te.y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "overlap",
     KRON_ERR_FORMAT},
    {"two that share a byte", "{\"te.y\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[3,6]},"
     "\"te.x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 8,
     "'te.x' and 'te.y' overlap", KRON_ERR_FORMAT},
    {"one inside another, two apart",
     "{\"te.x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
     "\"te.y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]},"
     "\"te.z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]}}", 8, "overlap",
     KRON_ERR_FORMAT},
    {"bytes of none at the start", ENTRY("\"U8\"", "[4]", "[1,5]"), 5,
     "bytes 0 to 1 of the data belong to no tensor", KRON_ERR_FORMAT},
    {"bytes of none between two",
     "{\"te.y\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[6,9]},"
     "\"te.x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 9,
     "bytes 4 to 6 of the data belong to no tensor", KRON_ERR_FORMAT},
    {"bytes of none at the end", ENTRY("\"U8\"", "[4]", "[0,4]"), 6,
     "bytes 4 to 6 of the data belong to no tensor", KRON_ERR_FORMAT},
    {"bytes, but no tensor", "{}", 3, "bytes 0 to 3 of the data belong to no tensor",
     KRON_ERR_FORMAT},
    {"metadata a list", "{\"__metadata__\":[]}", 0, "__metadata__ is not an object",
     KRON_ERR_FORMAT},
    {"metadata of numbers", "{\"__metadata__\":{\"n\":1}}", 0, "__metadata__ 'n' is not a string",
     KRON_ERR_FORMAT},
    {"a name with control characters", "{\"a\\u001b[31m\\nb\":1}", 0, "tensor 'a?[31m?b'",
     KRON_ERR_FORMAT},
};

static void bad_headers_are_refused(void **state)
{
    struct image m;
    struct st_file *f;

    (void)state;
    for (size_t i = 0; i < sizeof bad_headers / sizeof *bad_headers; i++) {
        const struct bad_header *b = &bad_headers[i];
        make(&m, b->header, b->n_data);
        kron_status status = open_image(&m, &f);
        if (status != b->status)
            fail_msg("%s: status %d, expected %d", b->name, status, b->status);
        if (strstr(kron_error_detail(), b->want) == NULL ||
            !str_starts(kron_error_detail(), "test.safetensors: "))
            fail_msg("%s: '%s' does not say '%s'", b->name, kron_error_detail(), b->want);
    }
}

static void long_names_do_not_fill_the_message(void **state)
{
    char header[4000];
    struct image m;
    struct st_file *f;
    int n = snprintf(header, sizeof header, "{\"");

    (void)state;
    memset(header + n, 'n', 3000);
    snprintf(header + n + 3000, sizeof header - 3000 - (size_t)n, "\":{\"dtype\":\"F9\"}}");
    make(&m, header, 0);
    assert_int_equal(open_image(&m, &f), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "unknown dtype 'F9'"));
}

static void lengths_that_lie(void **state)
{
    static const struct {
        uint64_t length;
        size_t file;
        const char *want;
    } cases[] = {
        {0, 0, "0 bytes are too few"},
        {0, 7, "7 bytes are too few"},
        {0, 8, "not JSON"},
        {1, 8, "would have 1 bytes, the file has 8"},
        {UINT64_MAX, 100, "would have 18446744073709551615 bytes"},
        {UINT64_MAX - 7, 100, "would have"}, /* 8 + length wraps to 0 */
        {93, 100, "would have 93 bytes"},
        {(uint64_t)1 << 63, 100, "would have"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct image m = {.n = cases[i].file};
        struct st_file *f;
        for (int k = 0; k < 8; k++)
            m.bytes[k] = (unsigned char)(cases[i].length >> 8 * k);
        assert_int_equal(open_image(&m, &f), KRON_ERR_FORMAT);
        if (strstr(kron_error_detail(), cases[i].want) == NULL)
            fail_msg("case %zu: %s", i, kron_error_detail());
    }
}

/* A sparse file, so that the header's length is true and only the limit stands against it. */
static void a_header_over_the_limit(void **state)
{
    static const unsigned char length[8] = {0x01, 0xe1, 0xf5, 0x05}; /* 100,000,001 */
    char path[8192];
    struct st_file *f;

    (void)state;
    make_dir(NULL);
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    assert_int_equal(file_write(path, length, 8), KRON_OK);
    assert_int_equal(truncate(path, 200 * 1000 * 1000), 0);
    assert_int_equal(st_open(&f, path), KRON_ERR_FORMAT);
    assert_null(f);
    assert_non_null(strstr(kron_error_detail(), path));
    assert_non_null(strstr(kron_error_detail(), "100000001 bytes, expected at most 100000000"));
    remove_dir(NULL);
}

static void files_that_are_none(void **state)
{
    char path[8192];
    struct st_file *f;

    (void)state;
    make_dir(NULL);
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    assert_int_equal(st_open(&f, path), KRON_ERR_IO);
    assert_null(f);
    assert_non_null(strstr(kron_error_detail(), path));
    assert_int_equal(st_open(&f, dir), KRON_ERR_IO);
    assert_int_equal(file_write(path, "", 0), KRON_OK);
    assert_int_equal(st_open(&f, path), KRON_ERR_FORMAT);
    assert_non_null(strstr(kron_error_detail(), "0 bytes are too few"));
    remove_dir(NULL);
}

/* Every way to cut a good file is an error, none is a crash. */
static void every_cut_is_an_error(void **state)
{
    struct image m;
    struct st_file *f;

    (void)state;
    make(&m, "{\"b\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[4,8]},"
             "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8);
    assert_int_equal(open_image(&m, &f), KRON_OK);
    for (size_t whole = m.n; m.n-- > 0;)
        if (open_image(&m, &f) != KRON_ERR_FORMAT)
            fail_msg("%zu of %zu bytes opened", m.n, whole);
}

/* The metadata outgrows the first block of the file's arena, so that its growth fails too. */
static void no_memory_is_an_error(void **state)
{
    char header[24576];
    struct image m;
    struct st_file *f;
    int failures = 0;

    (void)state;
    snprintf(header, sizeof header, "{\"__metadata__\":{\"k\":\"%020000d\"},"
             "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 0);
    make(&m, header, 4);
    for (long n = 1;; n++, failures++) {
        mem_fail_after(n);
        kron_status status = st_open_memory(&f, m.bytes, m.n, "test");
        mem_fail_after(0);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
        assert_null(f);
    }
    assert_true(failures >= 4);
    st_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(names_that_cannot_be_written),
        cmocka_unit_test(good_headers_open),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(long_names_do_not_fill_the_message),
        cmocka_unit_test(lengths_that_lie),
        cmocka_unit_test(a_header_over_the_limit),
        cmocka_unit_test(files_that_are_none),
        cmocka_unit_test(every_cut_is_an_error),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
