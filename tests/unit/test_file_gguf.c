/* SPDX-License-Identifier: MIT
 * GGUF files: what the gguf package of PyPI wrote (tools/make_file_samples.py), what we write, and
 * every way in which a header can lie. */
#include "file/file.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"
#include "tensor_fixture.h"

#define SAMPLES KRON_SOURCE_DIR "/tests/fuzz/corpus/gguf/"

static struct st_file *open_sample(const char *name)
{
    struct st_file *f;
    char path[4096];

    snprintf(path, sizeof path, SAMPLES "%s", name);
    if (st_open(&f, path) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    return f;
}

/* Opens a copy of exactly n bytes, so that AddressSanitizer sees a step too far. */
static kron_status open_bytes(const void *data, size_t n)
{
    struct st_file *f;
    void *copy;

    assert_int_equal(mem_alloc(&copy, n, "a file"), KRON_OK);
    if (n > 0)
        memcpy(copy, data, n);
    kron_status status = st_open_memory(&f, copy, n, "test.gguf");
    st_close(&f);
    mem_free(copy);
    return status;
}

/* Each error names the file. */
static void expect_error(kron_status got, kron_status want, const char *text)
{
    const char *detail = kron_error_detail();

    if (got != want || strstr(detail, text) == NULL || !str_starts(detail, "test.gguf: "))
        fail_msg("status %d, '%s'; expected %d and '%s'", got, got ? detail : "", want, text);
}

/* --- files of the gguf package --- */

static void metadata_of_every_type_is_text(void **state)
{
    static const char *const want[][2] = {
        {"general.architecture", "sd1"},
        {"u8", "200"},
        {"i8", "-100"},
        {"u16", "60000"},
        {"i16", "-30000"},
        {"u32", "4000000000"},
        {"i32", "-2000000000"},
        {"f32", "0.100000001"},
        {"yes", "true"},
        {"no", "false"},
        {"text", "two\nlines, gr\xc3\xbc\xc3\x9f"},
        {"u64", "18000000000000000000"},
        {"i64", "-9000000000000000000"},
        {"f64", "0.10000000000000001"},
        {"numbers", "[1,-2,3]"},
        {"floats", "[0.5,1.5]"},
        {"words", "[\"a\",\"b\\\"\\\\\\u000a\"]"},
        {"nested", "[[1,2],[3]]"},
    };
    struct st_file *f = open_sample("types");

    (void)state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_non_null(st_meta(f, want[i][0]));
        assert_string_equal(st_meta(f, want[i][0]), want[i][1]);
    }
    assert_int_equal(st_meta_count(f), sizeof want / sizeof *want);
    assert_null(st_meta(f, "none"));
    st_close(&f);
}

static void expect_counted(const struct st_file *f, const char *name, enum dtype type,
                           const char *shape)
{
    const struct tensor *t = st_find(f, name);
    char text[64];

    assert_non_null(t);
    assert_int_equal(t->type, type);
    assert_string_equal(tensor_shape_text(t, text, sizeof text), shape);
    assert_int_equal(t->bytes, dtype_bytes(type, tensor_elements(t)));
    for (int64_t i = 0; i < tensor_elements(t); i++) {
        float v;
        tensor_decode(t, i, 1, &v);
        assert_true(v == (float)i);
    }
}

static void axes_are_turned_around(void **state)
{
    struct st_file *f = open_sample("types");

    (void)state;
    expect_counted(f, "f32", DT_F32, "[2, 3]");
    expect_counted(f, "f16", DT_F16, "[3, 2, 1, 1]");
    expect_counted(f, "bf16", DT_BF16, "[4]");
    expect_counted(f, "f64", DT_F64, "[2]");
    expect_counted(f, "i8", DT_I8, "[3]");
    expect_counted(f, "i16", DT_I16, "[3]");
    expect_counted(f, "i32", DT_I32, "[3]");
    expect_counted(f, "i64", DT_I64, "[3]");
    assert_int_equal(st_count(f), 8);
    st_close(&f);
}

static void blocks_are_found(void **state)
{
    static const struct {
        const char *name;
        enum dtype type;
        float error; /* half a step of numbers in [-1, 1) */
    } want[] = {{"Q4_0", DT_Q4_0, 0.13f},   {"Q4_1", DT_Q4_1, 0.07f},   {"Q5_0", DT_Q5_0, 0.07f},
                {"Q5_1", DT_Q5_1, 0.035f}, {"Q8_0", DT_Q8_0, 0.0045f}};
    struct st_file *f = open_sample("quantised");

    (void)state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const struct tensor *t = st_find(f, want[i].name);
        float v[128];
        assert_non_null(t);
        assert_int_equal(t->type, want[i].type);
        assert_true(t->n_dims == 2 && t->dim[0] == 2 && t->dim[1] == 64);
        tensor_decode(t, 0, 128, v);
        for (int k = 0; k < 128; k++)
            assert_true(fabsf(v[k] - ((float)k / 64 - 1)) <= want[i].error);
    }
    st_close(&f);
}

static void alignment_and_shapes_come_from_metadata(void **state)
{
    struct st_file *f = open_sample("aligned");

    (void)state;
    expect_counted(f, "a", DT_F32, "[5]");
    assert_int_equal((const char *)st_find(f, "b")->data - (const char *)st_find(f, "a")->data, 64);
    st_close(&f);
    f = open_sample("version_2");
    expect_counted(f, "a", DT_F32, "[5]");
    st_close(&f);
    f = open_sample("reshaped");
    expect_counted(f, "conv.weight", DT_F32, "[2, 4, 3, 3]");
    st_close(&f);
    f = open_sample("empty");
    assert_int_equal(st_count(f), 0);
    st_close(&f);
}

/* 36 numbers a row: half a block of 32 too many. They stay in the file, and rows begin within
 * blocks. */
static void blocks_may_span_rows(void **state)
{
    static unsigned char blocks[9 * 34];
    const int64_t dim[] = {9, 32};
    struct tensor t = {.data = blocks, .bytes = sizeof blocks, .type = DT_Q8_0, .n_dims = 2,
                       .dim = {dim[0], dim[1], 1, 1, 1, 1}, .name = "conv.weight"};
    static const char *const meta[] = {"comfy.gguf.orig_shape.conv.weight", "[8,4,3,3]"};
    float want[288], got[288];
    struct st_file *f;
    const struct tensor *r;

    (void)state;
    for (size_t i = 0; i < sizeof blocks; i++)
        blocks[i] = i % 34 == 1 ? 0x2c : (unsigned char)(i * 37); /* a scale of about 1/16 */
    tensor_decode(&t, 0, 288, want);
    make_dir(NULL);
    assert_int_equal(gguf_write(in_dir("x.gguf"), &t, 1, meta, 1), KRON_OK);
    assert_int_equal(st_open(&f, in_dir("x.gguf")), KRON_OK);
    r = st_find(f, "conv.weight");
    assert_true(r->type == DT_Q8_0 && r->bytes == sizeof blocks && r->n_dims == 4);
    assert_true(r->dim[0] == 8 && r->dim[1] == 4 && r->dim[2] == 3 && r->dim[3] == 3);
    tensor_decode(r, 0, 288, got);
    assert_memory_equal(got, want, sizeof want);
    struct tensor rows = tensor_rows(r, 3, 2), row = tensor_rows(&rows, 1, 1);
    tensor_decode(&rows, 1, 71, got);
    assert_memory_equal(got, want + 109, 71 * sizeof *got);
    assert_true(rows.bytes == 3 * 34 && row.bytes == 2 * 34 && row.skip == 16);
    tensor_decode(&row, 0, 36, got);
    assert_memory_equal(got, want + 144, 36 * sizeof *got);
    assert_int_equal(gguf_write(in_dir("y.gguf"), r, 1, NULL, 0), KRON_OK); /* and back */
    st_close(&f);
    assert_int_equal(st_open(&f, in_dir("y.gguf")), KRON_OK);
    r = st_find(f, "conv.weight");
    assert_true(r->type == DT_Q8_0 && r->n_dims == 4 && r->dim[1] == 4 && r->dim[3] == 3);
    assert_memory_equal(r->data, blocks, sizeof blocks);
    st_close(&f);
    remove_dir(NULL);
}

static void what_is_not_read_is_named(void **state)
{
    static const struct {
        const char *sample, *want;
    } cases[] = {
        {"unknown", "unknown: tensor 'odd' has the ggml type 16"},
        {"big_endian", "big_endian: a big-endian GGUF file"},
        {"version_1", "version_1: GGUF version 1, expected 2 or 3"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct st_file *f;
        char path[4096];
        snprintf(path, sizeof path, SAMPLES "%s", cases[i].sample);
        assert_int_equal(st_open(&f, path), KRON_ERR_UNSUPPORTED);
        assert_null(f);
        assert_non_null(strstr(kron_error_detail(), cases[i].want));
    }
}

static void files_that_are_cut(void **state)
{
    static const char *const samples[] = {"types", "aligned", "reshaped", "quantised"};

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        struct st_file *f = open_sample(samples[i]);
        const struct tensor *last = st_at(f, st_count(f) - 1);
        char path[4096], *data;
        size_t n, end;
        snprintf(path, sizeof path, SAMPLES "%s", samples[i]);
        assert_int_equal(file_read(&data, &n, path, 1 << 20), KRON_OK);
        for (end = n; memcmp(data + end - last->bytes, last->data, last->bytes) != 0; end--)
            ; /* padding that follows the last tensor may be cut */
        for (size_t cut = 4; cut < end; cut++)
            expect_error(open_bytes(data, cut), KRON_ERR_FORMAT, "truncated");
        assert_int_equal(open_bytes(data, end), KRON_OK);
        mem_free(data);
        st_close(&f);
    }
}

/* --- headers that lie --- */

struct image {
    unsigned char bytes[4096];
    size_t n;
};

static void put(struct image *m, int bytes, uint64_t v)
{
    assert_true(m->n + (size_t)bytes <= sizeof m->bytes);
    for (int i = 0; i < bytes; i++)
        m->bytes[m->n++] = (unsigned char)(v >> 8 * i);
}

static void put_string(struct image *m, const char *s, size_t len)
{
    put(m, 8, len);
    for (size_t i = 0; i < len; i++)
        put(m, 1, (unsigned char)s[i]);
}

static void begin(struct image *m, uint64_t n_tensors, uint64_t n_meta)
{
    m->n = 0;
    put(m, 4, 0x46554747);
    put(m, 4, 3);
    put(m, 8, n_tensors);
    put(m, 8, n_meta);
}

static void put_u32(struct image *m, const char *key, uint32_t v)
{
    put_string(m, key, strlen(key));
    put(m, 4, 4);
    put(m, 4, v);
}

/* An f32 tensor of n numbers. */
static void put_tensor(struct image *m, const char *name, uint64_t n, uint64_t offset)
{
    put_string(m, name, strlen(name));
    put(m, 4, 1);
    put(m, 8, n);
    put(m, 4, 0);
    put(m, 8, offset);
}

static void put_data(struct image *m, size_t bytes)
{
    while (m->n % 32 != 0)
        put(m, 1, 0);
    while (bytes-- > 0)
        put(m, 1, 0);
}

static void expect_lie(const struct image *m, const char *want)
{
    expect_error(open_bytes(m->bytes, m->n), KRON_ERR_FORMAT, want);
}

static void counts_that_lie(void **state)
{
    struct image m;

    (void)state;
    begin(&m, UINT64_MAX, 0);
    put_data(&m, 64);
    expect_lie(&m, "tensors do not fit into 96 bytes");
    begin(&m, 0, UINT64_MAX);
    put_data(&m, 64);
    expect_lie(&m, "metadata entries do not fit");
    begin(&m, 1, 0);
    put(&m, 8, UINT64_MAX); /* the length of the name */
    put_data(&m, 64);
    expect_lie(&m, "header ends within the name of a tensor");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 8);
    put(&m, 8, 1u << 30);
    put_data(&m, 64);
    expect_lie(&m, "header ends within metadata 'k'");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 9);
    put(&m, 4, 10);
    put(&m, 8, UINT64_MAX); /* elements of an array */
    put_data(&m, 64);
    expect_lie(&m, "header ends within metadata 'k'");
}

static void metadata_that_lies(void **state)
{
    struct image m;

    (void)state;
    begin(&m, 0, 1);
    put_string(&m, "a\0b", 3);
    put(&m, 8, 0);
    expect_lie(&m, "a metadata key has a NUL in it");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 8);
    put_string(&m, "a\0b", 3);
    expect_lie(&m, "metadata 'k' has a NUL in it");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 13);
    expect_lie(&m, "metadata 'k' has the value type 13");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 9);
    put(&m, 4, 99);
    put(&m, 8, 0);
    expect_lie(&m, "metadata 'k' has the value type 99");
    begin(&m, 0, 1);
    put_string(&m, "k", 1);
    put(&m, 4, 9);
    for (int i = 0; i < 20; i++) {
        put(&m, 4, 9);
        put(&m, 8, 1);
    }
    expect_lie(&m, "metadata 'k' nests arrays over 8 deep");
    begin(&m, 0, 2);
    put_u32(&m, "k", 1);
    put_u32(&m, "k", 2);
    expect_lie(&m, "metadata 'k' is there twice");
    begin(&m, 1, 1);
    put_u32(&m, "general.alignment", 48);
    put_tensor(&m, "a", 1, 0);
    put_data(&m, 64);
    expect_lie(&m, "general.alignment is '48'");
    m.bytes[24 + 8 + 17 + 4] = 0;
    expect_lie(&m, "general.alignment is '0'");
}

static void shapes_that_lie(void **state)
{
    static const struct {
        const char *shape, *want; /* of [4, 8] numbers */
    } cases[] = {
        {"[4,8]", NULL},          {"[2,4,2,2]", NULL},   {"[1,1,1,1,4,8]", NULL},
        {"[32]", NULL},           {"[]", "one of its"},  {"[4,9]", "one of its"},
        {"[-4,-8]", "one of its"}, {"[4,8", "one of its"}, {"[4,8]]", "one of its"},
        {"32", "one of its"},     {"[4,8,x]", "one of its"},
        {"[1,1,1,1,1,4,8]", "one of its"},
        {"[0,999999999999999999,999999999999999999]", "one of its"},
        {"[999999999999999999,999999999999999999,999999999999999999]", "one of its"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct image m;
        begin(&m, 1, 1);
        put_string(&m, "comfy.gguf.orig_shape.a", 23);
        put(&m, 4, 8);
        put_string(&m, cases[i].shape, strlen(cases[i].shape));
        put_tensor(&m, "a", 32, 0);
        put_data(&m, 128);
        if (cases[i].want == NULL)
            assert_int_equal(open_bytes(m.bytes, m.n), KRON_OK);
        else
            expect_lie(&m, cases[i].want);
    }
}

static void tensors_that_lie(void **state)
{
    struct image m;

    (void)state;
    begin(&m, 1, 0);
    put_string(&m, "a", 1);
    put(&m, 4, 7);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' has 7 axes, expected at most 6");
    begin(&m, 1, 0);
    put_string(&m, "a", 1);
    put(&m, 4, 2);
    put(&m, 8, 1ull << 32);
    put(&m, 8, 1ull << 32);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' has too many elements");
    begin(&m, 1, 0);
    put_string(&m, "a", 1);
    put(&m, 4, 3);
    put(&m, 8, 0);
    put(&m, 8, 1ull << 32);
    put(&m, 8, 1ull << 32);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' has too many elements");
    begin(&m, 1, 0);
    put_tensor(&m, "a", 1ull << 62, 0);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a': it has too many elements");
    begin(&m, 1, 0);
    put_tensor(&m, "a", 17, 0);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' has 68 bytes from byte 0 of the data, the file has 64");
    begin(&m, 1, 0);
    put_tensor(&m, "a", 1, UINT64_MAX - 31);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' has 4 bytes from byte 18446744073709551584");
    begin(&m, 1, 0);
    put_tensor(&m, "a", 1, 16);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a' begins at byte 16 of the data, expected a multiple of 32");
    begin(&m, 2, 0);
    put_tensor(&m, "a", 16, 0);
    put_tensor(&m, "b", 1, 32);
    put_data(&m, 64);
    expect_lie(&m, "tensors 'a' and 'b' overlap");
    begin(&m, 2, 0);
    put_tensor(&m, "a", 1, 0);
    put_tensor(&m, "a", 1, 32);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a': the name is there twice");
    begin(&m, 1, 0);
    put_string(&m, "a", 1);
    put(&m, 4, 1);
    put(&m, 8, 33);
    put(&m, 4, 8); /* q8_0: blocks of 32 */
    put(&m, 8, 0);
    put_data(&m, 64);
    expect_lie(&m, "tensor 'a': rows of 33 numbers are no whole number of q8_0 blocks of 32");
}

/* --- writing --- */

static void what_is_written_is_read(void **state)
{
    static unsigned char bytes[8192];
    static const char *const meta[] = {"unet.heads", "4", "note", "two\nlines"};
    struct tensor in[DT_COUNT + 4];
    struct st_file *f;
    int n = 0;

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    for (int t = 0; t < DT_COUNT; t++)
        if (t != DT_F8_E4M3 && t != DT_F8_E5M2 && t != DT_U8 && t != DT_BOOL)
            in[n++] = tensor_of(dtype_info((enum dtype)t)->name, (enum dtype)t, bytes + t, 2,
                                (const int64_t[]){3, DTYPE_BLOCK_MOST});
    in[n++] = tensor_of("scalar", DT_F32, bytes, 0, NULL);
    in[n++] = tensor_of("empty", DT_F32, NULL, 2, (const int64_t[]){0, 7});
    in[n++] = tensor_of("conv", DT_F16, bytes, 4, (const int64_t[]){5, 2, 3, 3});
    in[n++] = tensor_of("blocks", DT_Q8_0, bytes, 4, (const int64_t[]){5, 32, 3, 3});
    make_dir(NULL);
    assert_int_equal(gguf_write(in_dir("x.gguf"), in, n, meta, 2), KRON_OK);
    assert_int_equal(st_open(&f, in_dir("x.gguf")), KRON_OK);
    assert_int_equal(st_count(f), n);
    for (int i = 0; i < n; i++) {
        expect_same(st_find(f, in[i].name), &in[i]);
        assert_int_equal((uintptr_t)st_find(f, in[i].name)->data % 32, 0);
    }
    assert_string_equal(st_meta(f, "unet.heads"), "4");
    assert_string_equal(st_meta(f, "note"), "two\nlines");
    st_close(&f);
    assert_int_equal(temp_dir_count(dir), 1);
    remove_dir(NULL);
}

static void what_cannot_be_written(void **state)
{
    static unsigned char bytes[4096];
    static const char *const twice[] = {"k", "1", "k", "2"};
    const struct tensor same[] = {tensor_of("a", DT_F32, bytes, 0, NULL),
                                  tensor_of("a", DT_F32, bytes, 0, NULL)};
    const struct tensor f8 = tensor_of("eight", DT_F8_E4M3, bytes, 0, NULL);
    const struct tensor five = tensor_of("five", DT_F32, bytes, 5, (const int64_t[]){1, 1, 1, 1, 1});
    const struct tensor odd = tensor_of("odd", DT_Q8_0, bytes, 4, (const int64_t[]){31, 2, 3, 3});
    const struct tensor flat = tensor_of("flat", DT_Q8_0, bytes, 2, (const int64_t[]){63, 3});

    (void)state;
    make_dir(NULL);
    assert_int_equal(gguf_write(in_dir("x"), same, 2, NULL, 0), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "two tensors named 'a'"));
    assert_int_equal(gguf_write(in_dir("x"), same, 1, twice, 2), KRON_ERR_ARGUMENT);
    assert_int_equal(gguf_write(in_dir("x"), &f8, 1, NULL, 0), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "'eight': GGUF has no type for F8_E4M3"));
    assert_int_equal(gguf_write(in_dir("x"), &five, 1, NULL, 0), KRON_ERR_SHAPE);
    assert_int_equal(gguf_write(in_dir("x"), &odd, 1, NULL, 0), KRON_ERR_SHAPE);
    assert_int_equal(gguf_write(in_dir("x"), &flat, 1, NULL, 0), KRON_ERR_SHAPE);
    assert_int_equal(gguf_write(in_dir("none/x"), same, 1, NULL, 0), KRON_ERR_IO);
    assert_int_equal(temp_dir_count(dir), 0);
    remove_dir(NULL);
}

static void no_memory_is_an_error(void **state)
{
    int failures = 0;

    (void)state;
    for (long n = 1;; n++, failures++) {
        struct st_file *f;
        mem_fail_after(n);
        kron_status status = st_open(&f, SAMPLES "types");
        mem_fail_after(0);
        st_close(&f);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
    }
    assert_true(failures > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metadata_of_every_type_is_text),
        cmocka_unit_test(axes_are_turned_around),
        cmocka_unit_test(blocks_are_found),
        cmocka_unit_test(alignment_and_shapes_come_from_metadata),
        cmocka_unit_test(blocks_may_span_rows),
        cmocka_unit_test(what_is_not_read_is_named),
        cmocka_unit_test(files_that_are_cut),
        cmocka_unit_test(counts_that_lie),
        cmocka_unit_test(metadata_that_lies),
        cmocka_unit_test(shapes_that_lie),
        cmocka_unit_test(tensors_that_lie),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(what_cannot_be_written),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
