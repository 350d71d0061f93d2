/* SPDX-License-Identifier: MIT
 * Block types against what the gguf package makes of the same blocks and numbers
 * (tools/make_quant_goldens.py). */
#include "file/file.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SETS = 5, NUMBERS = 4096, FIRST = DT_BOOL + 1 };

static struct st_file *golden;

static const struct tensor *find(const char *format, const char *type)
{
    char name[64];

    snprintf(name, sizeof name, format, type);
    return st_find(golden, name);
}

static const float *input(int i)
{
    char digit[2] = {(char)('0' + i), '\0'};
    const struct tensor *t = find("input.%s", digit);

    assert_non_null(t);
    assert_int_equal(tensor_elements(t), NUMBERS);
    return t->data;
}

/* The root of sum w (x - y)^2 / sum w x^2, y being x encoded and decoded; w NULL: all 1. */
static double round_trip(enum dtype t, const float *x, int64_t n, const float *importance,
                         const float *w, float *y)
{
    void *blocks = malloc(dtype_bytes(t, n));
    double err = 0, all = 0;

    assert_non_null(blocks);
    dtype_encode(t, x, n, blocks, importance);
    dtype_info(t)->decode(blocks, n, y);
    free(blocks);
    for (int64_t i = 0; i < n; i++) {
        double e = (double)x[i] - (double)y[i], a = w ? (double)w[i] : 1;
        err += a * e * e;
        all += a * (double)x[i] * (double)x[i];
    }
    return sqrt(err / all);
}

static void blocks_decode_to_the_bit(void **state)
{
    (void)state;
    for (int t = FIRST; t < DT_COUNT; t++) {
        const struct dtype_info *info = dtype_info((enum dtype)t);
        const struct tensor *blocks = find("%s.blocks", info->name);
        const struct tensor *floats = find("%s.floats", info->name);
        assert_non_null(blocks);
        assert_int_equal(blocks->dim[1], info->bytes);
        int64_t n = tensor_elements(floats);
        assert_int_equal(n, blocks->dim[0] * info->block);
        float *got = malloc((size_t)n * sizeof *got);
        info->decode(blocks->data, n, got);
        const float *want = floats->data;
        for (int64_t i = 0; i < n; i++)
            if (memcmp(&got[i], &want[i], 4) != 0 && !(isnan(got[i]) && isnan(want[i])))
                fail_msg("%s: number %d is %.9g, not %.9g", info->name, (int)i, (double)got[i],
                         (double)want[i]);
        free(got);
    }
}

static void any_part_decodes(void **state)
{
    enum { N = 768 };
    float whole[N], part[N + 2];
    unsigned char blocks[N * 2];

    (void)state;
    for (int t = FIRST; t < DT_COUNT; t++) {
        struct tensor x = {.type = (enum dtype)t, .data = blocks, .n_dims = 1, .dim = {N}};
        dtype_encode(x.type, input(0), N, blocks, NULL);
        dtype_info(x.type)->decode(blocks, N, whole);
        for (int64_t at = 0; at < N; at += 37)
            for (int64_t n = 0; at + n <= N; n += 1 + n / 3) {
                part[0] = part[n + 1] = 123;
                tensor_decode(&x, at, n, part + 1);
                assert_memory_equal(part + 1, whole + at, (size_t)n * sizeof *part);
                assert_true(part[0] == 123 && part[n + 1] == 123);
            }
    }
}

/* What input.0, normally distributed, loses: measured, and a little more. */
static const struct {
    enum dtype type;
    double error;
} losses[] = {
    {DT_Q4_0, 0.0808},   {DT_Q4_1, 0.0702},  {DT_Q5_0, 0.0402},   {DT_Q5_1, 0.0339},
    {DT_Q8_0, 0.0051},   {DT_Q2_K, 0.2594},  {DT_Q3_K, 0.1421},   {DT_Q4_K, 0.0706},
    {DT_Q5_K, 0.0347},   {DT_Q6_K, 0.0171},  {DT_IQ4_NL, 0.0724}, {DT_IQ4_XS, 0.0731},
    {DT_MXFP4, 0.1105},  {DT_NVFP4, 0.0901}, {DT_TQ1_0, 0.4302},  {DT_TQ2_0, 0.4302},
};

static void encoding_loses_little(void **state)
{
    static float y[NUMBERS];
    int compared = 0;

    (void)state;
    assert_int_equal(sizeof losses / sizeof *losses, DT_COUNT - FIRST);
    for (int t = FIRST; t < DT_COUNT; t++) {
        const char *name = dtype_info((enum dtype)t)->name;
        const struct tensor *package = find("%s.error", name);
        for (int i = 0; i < SETS; i++) {
            double e = round_trip((enum dtype)t, input(i), NUMBERS, NULL, NULL, y);
            double most = package ? (double)((const float *)package->data)[i] : 1;
            if (i == 0 && losses[t - FIRST].error < most)
                most = losses[t - FIRST].error;
            compared += package != NULL;
            if (!(e <= most))
                fail_msg("%s, input %d: error %g, not %g", name, i, e, most);
        }
        assert_int_equal(losses[t - FIRST].type, t);
    }
    assert_int_equal(compared, 8 * SETS); /* the types that the package encodes */
}

/* A type of n levels a number: blocks that use the whole range of levels come back as they were. */
static void levels_come_back(void **state)
{
    static const struct {
        enum dtype type;
        int lo, n; /* levels lo .. lo + n - 1 */
        float step, offset;
    } cases[] = {{DT_Q4_0, -8, 16, 0.0625f, 0},        {DT_Q5_0, -16, 32, 0.0625f, 0},
                 {DT_Q4_1, 0, 16, 0.0625f, 0.25f},     {DT_Q5_1, 0, 32, 0.0625f, -3},
                 {DT_Q8_0, -127, 255, 0.0625f, 0},     {DT_TQ1_0, -1, 3, 0.0625f, 0},
                 {DT_TQ2_0, -1, 3, 0.0625f, 0},        {DT_Q3_K, -4, 8, 0.0625f, 0},
                 {DT_Q2_K, 0, 4, 15 / 256.0f, 0},      {DT_Q4_K, 0, 16, 63 / 1024.0f, 0},
                 {DT_Q5_K, 0, 32, 63 / 1024.0f, 0},    {DT_Q6_K, -32, 64, 0.0625f, 0}};
    float x[256], y[256];

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int i = 0; i < 256; i++) /* the ends of the range in every 16 numbers */
            x[i] = cases[c].step * (float)(cases[c].lo + (i % 16 == 0   ? 0
                                                    : i % 16 == 5 ? cases[c].n - 1
                                                                  : i * 7 % cases[c].n)) +
                   cases[c].offset;
        round_trip(cases[c].type, x, 256, NULL, NULL, y);
        for (int i = 0; i < 256; i++)
            if (x[i] != y[i])
                fail_msg("%s: %g became %g", dtype_info(cases[c].type)->name, (double)x[i],
                         (double)y[i]);
    }
}

static void listed_levels_come_back(void **state)
{
    static const float nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
    static const float fp4[] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12, 0};
    static const struct {
        enum dtype type;
        const float *levels;
    } cases[] = {{DT_IQ4_NL, nl}, {DT_IQ4_XS, nl}, {DT_MXFP4, fp4}, {DT_NVFP4, fp4}};
    float x[256], y[256];

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int i = 0; i < 256; i++)
            x[i] = 0.25f * cases[c].levels[i * 7 % 16];
        round_trip(cases[c].type, x, 256, NULL, NULL, y);
        assert_memory_equal(x, y, sizeof x);
    }
}

static void zeros_stay(void **state)
{
    float x[256] = {0}, y[256];

    (void)state;
    for (int t = FIRST; t < DT_COUNT; t++) {
        round_trip((enum dtype)t, x, 256, NULL, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == 0);
    }
}

/* It keeps its value; other blocks do not see it, and its own loses at most what it holds. */
static void an_outlier_stays_in_its_block(void **state)
{
    float x[256], y[256], plain[256];

    (void)state;
    for (int t = FIRST; t < DT_COUNT; t++) {
        double err = 0, all = 0;
        int block = dtype_info((enum dtype)t)->block;
        memcpy(x, input(0), sizeof x);
        round_trip((enum dtype)t, x, 256, NULL, NULL, plain);
        x[17] = -3;
        round_trip((enum dtype)t, x, 256, NULL, NULL, y);
        assert_true(fabsf(y[17] + 3) < 0.25f);
        assert_memory_equal(y + block, plain + block, (size_t)(256 - block) * sizeof *y);
        for (int i = 0; i < block; i++)
            if (i != 17) {
                err += (double)(x[i] - y[i]) * (double)(x[i] - y[i]);
                all += (double)x[i] * (double)x[i];
            }
        double nearest = 3 / 127.0; /* iq4_nl's level next to 0, which it has not */
        if (err > 1.05 * all + block * nearest * nearest)
            fail_msg("%s: error %g of %g", dtype_info((enum dtype)t)->name, err, all);
    }
}

static void what_is_not_a_number_is_defined(void **state)
{
    float x[256], y[256];

    (void)state;
    for (int t = FIRST; t < DT_COUNT; t++) {
        for (int i = 0; i < 256; i++)
            x[i] = NAN;
        round_trip((enum dtype)t, x, 256, NULL, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == 0);
        memcpy(x, input(0), sizeof x);
        x[3] = INFINITY;
        x[70] = -INFINITY;
        x[200] = FLT_MAX;
        round_trip((enum dtype)t, x, 256, NULL, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(isfinite(y[i]));
        assert_true(y[3] > 1000 && y[70] < -1000 && y[200] > 1000);
        for (int i = 0; i < 256; i++) /* smaller than any f16 */
            x[i] = 1e-42f * (float)(i - 100);
        round_trip((enum dtype)t, x, 256, NULL, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(fabsf(y[i]) < 1e-7f);
    }
}

/* Columns that matter more lose less; importance that says nothing changes nothing. */
static void importance_moves_the_error(void **state)
{
    static float y[NUMBERS], other[NUMBERS], w[NUMBERS], none[NUMBERS];

    (void)state;
    for (int i = 0; i < NUMBERS; i++)
        w[i] = i % 7 == 0 ? 4000 : i % 3 == 0 ? 20 : 1;
    for (int t = FIRST; t < DT_COUNT; t++) {
        double with = round_trip((enum dtype)t, input(1), NUMBERS, w, w, y);
        double without = round_trip((enum dtype)t, input(1), NUMBERS, NULL, w, other);
        if (!(with < 0.97 * without))
            fail_msg("%s: error %g with importance, %g without",
                     dtype_info((enum dtype)t)->name, with, without);
        round_trip((enum dtype)t, input(1), NUMBERS, none, NULL, y);
        assert_memory_equal(y, other, sizeof y);
    }
}

static int open_golden(void **state)
{
    (void)state;
    return st_open(&golden, KRON_SOURCE_DIR "/tests/golden/quant.safetensors");
}

static int close_golden(void **state)
{
    (void)state;
    st_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_decode_to_the_bit),
        cmocka_unit_test(any_part_decodes),
        cmocka_unit_test(encoding_loses_little),
        cmocka_unit_test(levels_come_back),
        cmocka_unit_test(listed_levels_come_back),
        cmocka_unit_test(zeros_stay),
        cmocka_unit_test(an_outlier_stays_in_its_block),
        cmocka_unit_test(what_is_not_a_number_is_defined),
        cmocka_unit_test(importance_moves_the_error),
    };

    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
