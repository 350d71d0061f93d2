/* SPDX-License-Identifier: MIT
 * Storage types: names, sizes, decoding; views of rows; shapes as text. */
#include "tensor/tensor.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static struct tensor vector(enum dtype type, const void *data, int64_t n)
{
    struct tensor t = {.data = data, .bytes = dtype_bytes(type, n), .type = type, .n_dims = 1,
                       .dim = {n, 1, 1, 1, 1, 1}, .name = "test"};

    return t;
}

/* Decodes the raw bytes both from aligned memory and one byte further. */
static void expect_values(enum dtype type, const void *raw, int64_t n, const float *want)
{
    unsigned char moved[256];
    float got[32];

    assert_true(n <= 32 && dtype_bytes(type, n) < sizeof moved);
    memcpy(moved + 1, raw, dtype_bytes(type, n));
    for (int shift = 0; shift < 2; shift++) {
        struct tensor t = vector(type, shift ? (const void *)(moved + 1) : raw, n);
        for (int64_t at = 0; at < n; at++) {
            tensor_decode(&t, at, n - at, got);
            for (int64_t i = 0; i < n - at; i++)
                if (got[i] != want[at + i] && !(isnan(got[i]) && isnan(want[at + i])))
                    fail_msg("%s number %d is %g, expected %g", dtype_info(type)->name,
                             (int)(at + i), (double)got[i], (double)want[at + i]);
        }
    }
}

#define EXPECT(type, c_type, raw, ...)                                        \
    do {                                                                      \
        const c_type raw_[] = raw;                                            \
        const float want_[] = {__VA_ARGS__};                                  \
        assert_int_equal(sizeof raw_ / sizeof *raw_, sizeof want_ / sizeof *want_); \
        expect_values(type, raw_, sizeof want_ / sizeof *want_, want_);       \
    } while (0)
#define RAW(...) {__VA_ARGS__}

static void each_type_decodes(void **state)
{
    (void)state;
    EXPECT(DT_F32, float, RAW(1.5f, -0.25f, 1e-40f, INFINITY), 1.5f, -0.25f, 1e-40f, INFINITY);
    EXPECT(DT_F16, uint16_t, RAW(0x3c00, 0xc000, 0x0001, 0x7c00, 0x7e00), 1, -2, 0x1p-24f, INFINITY,
           NAN);
    EXPECT(DT_BF16, uint16_t, RAW(0x3f80, 0xc049, 0x0080), 1, -3.140625f, 0x1p-126f);
    EXPECT(DT_F8_E4M3, uint8_t, RAW(0x38, 0xb8, 0x7e, 0x01, 0x7f), 1, -1, 448, 0x1p-9f, NAN);
    EXPECT(DT_F8_E5M2, uint8_t, RAW(0x3c, 0xbc, 0x7b, 0x01, 0x7c), 1, -1, 57344, 0x1p-16f,
           INFINITY);
    EXPECT(DT_F64, double, RAW(0.1, -1e300, 3), 0.1f, -INFINITY, 3);
    EXPECT(DT_I64, int64_t, RAW(-1, 16777217, INT64_MAX), -1, 16777216, 0x1p63f);
    EXPECT(DT_I32, int32_t, RAW(-1, 70000, INT32_MIN), -1, 70000, -0x1p31f);
    EXPECT(DT_I16, int16_t, RAW(-1, 300, INT16_MIN), -1, 300, -32768);
    EXPECT(DT_I8, int8_t, RAW(-1, 127, -128), -1, 127, -128);
    EXPECT(DT_U8, uint8_t, RAW(255, 0, 7), 255, 0, 7);
    EXPECT(DT_BOOL, uint8_t, RAW(1, 0), 1, 0);
}

static void types_have_names_and_sizes(void **state)
{
    static const struct {
        const char *name;
        enum dtype type;
        size_t bytes;
    } want[] = {{"F32", DT_F32, 4},   {"F16", DT_F16, 2},         {"BF16", DT_BF16, 2},
                {"F64", DT_F64, 8},   {"F8_E4M3", DT_F8_E4M3, 1}, {"F8_E5M2", DT_F8_E5M2, 1},
                {"I64", DT_I64, 8},   {"I32", DT_I32, 4},         {"I16", DT_I16, 2},
                {"I8", DT_I8, 1},     {"U8", DT_U8, 1},           {"BOOL", DT_BOOL, 1}};
    enum dtype t;

    (void)state;
    assert_int_equal(sizeof want / sizeof *want, DT_BOOL + 1);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_true(dtype_from_name(want[i].name, &t));
        assert_int_equal(t, want[i].type);
        assert_string_equal(dtype_info(t)->name, want[i].name);
        assert_int_equal(dtype_bytes(t, 10), 10 * want[i].bytes);
    }
    for (int i = DT_BOOL + 1; i < DT_COUNT; i++) {
        const struct dtype_info *info = dtype_info((enum dtype)i);
        assert_true(info->block >= 32 && DTYPE_BLOCK_MOST % info->block == 0);
        assert_true(dtype_from_name(info->name, &t));
        assert_int_equal(t, i);
        assert_int_equal(dtype_bytes(t, 512), 512 / info->block * info->bytes);
    }
    assert_string_equal(dtype_info(DT_Q4_K)->name, "q4_K");
    assert_string_equal(dtype_info(DT_TQ2_0)->name, "tq2_0");
    assert_false(dtype_from_name("f32", &t));
    assert_false(dtype_from_name("", &t));
    assert_false(dtype_from_name("F16 ", &t));
}

static void rows_are_views(void **state)
{
    float data[24], got[8];
    struct tensor t = vector(DT_F32, data, 24);

    (void)state;
    for (int i = 0; i < 24; i++)
        data[i] = (float)i;
    t.n_dims = 3;
    t.dim[0] = 3, t.dim[1] = 4, t.dim[2] = 2;
    assert_int_equal(tensor_elements(&t), 24);
    struct tensor v = tensor_rows(&t, 1, 2);
    assert_ptr_equal(v.data, data + 8);
    assert_int_equal(v.bytes, 16 * sizeof *data);
    assert_int_equal(v.dim[0], 2);
    assert_int_equal(v.dim[1], 4);
    assert_int_equal(v.n_dims, 3);
    tensor_decode(&v, 8, 8, got);
    for (int i = 0; i < 8; i++)
        assert_true(got[i] == (float)(16 + i));
    v = tensor_rows(&t, 3, 0); /* past the end, but of none */
    assert_int_equal(v.bytes, 0);
    assert_int_equal(tensor_elements(&v), 0);
    v = tensor_rows(&t, 0, 3);
    assert_ptr_equal(v.data, data);
    assert_int_equal(v.bytes, t.bytes);
}

static void scalars_and_empty_shapes(void **state)
{
    float one = 3;
    struct tensor t = vector(DT_F32, &one, 1);

    (void)state;
    t.n_dims = 0;
    assert_int_equal(tensor_elements(&t), 1);
    t.n_dims = 2;
    t.dim[0] = 0, t.dim[1] = 5;
    assert_int_equal(tensor_elements(&t), 0);
    assert_int_equal(tensor_rows(&t, 0, 0).bytes, 0);
}

static void shapes_are_text(void **state)
{
    struct tensor t = vector(DT_F16, "", 0);
    char buf[64], tiny[9];

    (void)state;
    t.n_dims = 4;
    t.dim[0] = 320, t.dim[1] = 4, t.dim[2] = t.dim[3] = 3;
    assert_string_equal(tensor_shape_text(&t, buf, sizeof buf), "[320, 4, 3, 3]");
    assert_string_equal(tensor_shape_text(&t, tiny, sizeof tiny), "[320, 4,");
    t.n_dims = 0;
    assert_string_equal(tensor_shape_text(&t, buf, sizeof buf), "[]");
    t.n_dims = 1;
    assert_string_equal(tensor_shape_text(&t, buf, sizeof buf), "[320]");
    t.n_dims = 6;
    for (int i = 0; i < 6; i++)
        t.dim[i] = INT64_MAX; /* longer than 64 bytes: cut, never overrun */
    assert_true(strlen(tensor_shape_text(&t, buf, sizeof buf)) == 63);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_type_decodes),
        cmocka_unit_test(types_have_names_and_sizes),
        cmocka_unit_test(rows_are_views),
        cmocka_unit_test(scalars_and_empty_shapes),
        cmocka_unit_test(shapes_are_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
