/* SPDX-License-Identifier: MIT
 * Which tensor gets which type, numbers in another type, importance of channels, and files that
 * killed writers left. */
#include "convert/convert.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "temp_dir.h"

static struct tensor shape(const char *name, enum dtype type, int n_dims, int64_t a, int64_t b)
{
    return (struct tensor){.name = name, .type = type, .n_dims = n_dims,
                           .dim = {a, b, n_dims > 2 ? 3 : 1, n_dims > 2 ? 3 : 1, 1, 1}};
}

static void expect_choice(const char *rules, kron_type type, const struct tensor *t,
                          enum dtype want)
{
    struct type_rules r;

    assert_int_equal(type_rules_parse(&r, rules), KRON_OK);
    enum dtype got = type_rules_choose(&r, type, t);
    if (got != want)
        fail_msg("'%s' of %s, rules '%s': %s, expected %s", t->name, dtype_info(t->type)->name,
                 rules, dtype_info(got)->name, dtype_info(want)->name);
    type_rules_free(&r);
}

static void blocks_are_for_matrices_in_whole_blocks(void **state)
{
    struct tensor linear = shape("a.attn1.to_q.weight", DT_F16, 2, 64, 320);
    struct tensor odd = shape("a.to_k.weight", DT_F16, 2, 64, 48);
    struct tensor conv = shape("a.conv.weight", DT_F16, 4, 64, 320);
    struct tensor norm = shape("a.norm.weight", DT_F32, 1, 320, 1);
    struct tensor words = shape("x.token_embedding.weight", DT_F16, 2, 100, 320);
    struct tensor time = shape("model.time_embed.0.weight", DT_F16, 2, 100, 320);
    struct tensor label = shape("model.label_emb.0.0.weight", DT_F16, 2, 100, 320);
    struct tensor bias = shape("a.proj.bias", DT_F16, 2, 10, 320);
    struct tensor ids = shape("ids", DT_I64, 2, 10, 320);
    struct tensor q8 = shape("a.to_v.weight", DT_Q8_0, 2, 64, 320);

    (void)state;
    expect_choice("", KRON_TYPE_Q8_0, &linear, DT_Q8_0);
    expect_choice("", KRON_TYPE_Q4_K, &linear, DT_F16); /* 320 is no multiple of 256 */
    expect_choice("", KRON_TYPE_Q8_0, &odd, DT_F16);
    expect_choice("", KRON_TYPE_Q8_0, &conv, DT_F16);
    expect_choice("", KRON_TYPE_Q8_0, &norm, DT_F32);
    expect_choice("", KRON_TYPE_Q8_0, &words, DT_F16);
    expect_choice("", KRON_TYPE_Q8_0, &time, DT_F16);
    expect_choice("", KRON_TYPE_Q8_0, &label, DT_F16);
    expect_choice("", KRON_TYPE_Q8_0, &bias, DT_F16);
    expect_choice("", KRON_TYPE_F32, &ids, DT_I64);
    expect_choice("", KRON_TYPE_Q4_0, &q8, DT_Q4_0);
    expect_choice("", KRON_TYPE_F16, &q8, DT_F16);
    expect_choice("", KRON_TYPE_KEEP, &q8, DT_Q8_0);
    expect_choice("", KRON_TYPE_BF16, &norm, DT_BF16);
    expect_choice("", KRON_TYPE_F8_E4M3, &norm, DT_F32);
}

static void the_first_rule_that_is_found_counts(void **state)
{
    struct tensor q = shape("vae.a=b.to_q.weight", DT_F16, 2, 64, 64);
    struct tensor words = shape("x.token_embedding.weight", DT_F16, 2, 100, 320);
    struct tensor conv = shape("vae.conv.weight", DT_F16, 4, 64, 320);

    (void)state;
    expect_choice("^vae\\.=f32,to_q=q4_0", KRON_TYPE_Q8_0, &q, DT_F32);
    expect_choice("^to_q=f32,to_q\\.=q4_0,vae=f32", KRON_TYPE_Q8_0, &q, DT_Q4_0);
    expect_choice("(to_k|to_q)\\.weight$=Q5_1", KRON_TYPE_KEEP, &q, DT_Q5_1);
    expect_choice("a=b=bf16", KRON_TYPE_KEEP, &q, DT_BF16);
    expect_choice("nothing=f32", KRON_TYPE_Q8_0, &q, DT_Q8_0);
    expect_choice("token=q8_0", KRON_TYPE_KEEP, &words, DT_Q8_0); /* asked for by name */
    expect_choice("conv=q8_0", KRON_TYPE_KEEP, &conv, DT_F16);
}

static void rules_that_cannot_be_read_are_errors(void **state)
{
    static const char *const bad[] = {"a", "=f16", "a=", "a=f17", "a=i8", "(=f16", "a=f16,b=x"};
    struct type_rules r;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(type_rules_parse(&r, bad[i]), KRON_ERR_ARGUMENT);
        assert_non_null(strstr(kron_error_detail(), "rule '"));
        assert_int_equal(kron_type_rules_check(bad[i]), KRON_ERR_ARGUMENT);
        type_rules_free(&r);
    }
    assert_int_equal(type_rules_parse(&r, NULL), KRON_OK);
    assert_int_equal(r.n, 0);
}

/* --- numbers --- */

enum { ROWS = 40, K = 64 };

static void fill(float *x, int64_t n)
{
    uint32_t s = 7;

    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(s >> 8) / 8388608.0f - 1;
    }
}

static struct tensor matrix(const float *x)
{
    return (struct tensor){.data = x, .bytes = ROWS * K * 4, .type = DT_F32, .n_dims = 2,
                           .dim = {ROWS, K, 1, 1, 1, 1}, .name = "w"};
}

/* Sum of squared errors of the columns of even number. */
static double error_of_even(const float *x, const void *bytes)
{
    struct tensor t = {.data = bytes, .type = DT_Q4_0, .n_dims = 2, .dim = {ROWS, K, 1, 1, 1, 1}};
    float back[ROWS * K];
    double sum = 0;

    tensor_decode(&t, 0, ROWS * K, back);
    for (int64_t i = 0; i < ROWS * K; i += 2)
        sum += ((double)back[i] - x[i]) * ((double)back[i] - x[i]);
    return sum;
}

static void importance_is_kept_best(void **state)
{
    static float x[ROWS * K], inputs[2 * K];
    char plain[ROWS * K], weighted[ROWS * K], alone[ROWS * K];
    struct importance *im;
    struct tensor t = matrix(x);

    (void)state;
    fill(x, ROWS * K);
    for (int i = 0; i < K; i++)
        inputs[i] = inputs[K + i] = i % 2 == 0 ? 10 : 0.1f;
    assert_int_equal(importance_create(&im), KRON_OK);
    assert_int_equal(importance_add(im, "other", inputs, 2, K), KRON_OK);
    assert_int_equal(recode(&t, DT_Q4_0, NULL, plain), KRON_OK);
    assert_int_equal(recode(&t, DT_Q4_0, im, alone), KRON_OK);
    assert_memory_equal(plain, alone, dtype_bytes(DT_Q4_0, ROWS * K));
    assert_int_equal(importance_add(im, "w", inputs, 2, K), KRON_OK);
    assert_int_equal(recode(&t, DT_Q4_0, im, weighted), KRON_OK);
    assert_true(error_of_even(x, weighted) < 0.9 * error_of_even(x, plain));
    importance_free(&im);
}

static void numbers_that_a_type_has_not_are_errors(void **state)
{
    static float x[ROWS * K];
    struct tensor t = matrix(x);
    char bytes[ROWS * K * 4];

    (void)state;
    fill(x, ROWS * K);
    x[70] = 1e6f;
    assert_int_equal(recode(&t, DT_F16, NULL, bytes), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "'w': 1 of its numbers are too large for F16"));
    assert_int_equal(recode(&t, DT_BF16, NULL, bytes), KRON_OK);
    x[70] = INFINITY; /* no number to lose */
    assert_int_equal(recode(&t, DT_F16, NULL, bytes), KRON_OK);
}

/* --- the file of importance --- */

static void importance_comes_back_from_its_file(void **state)
{
    float a[] = {1, 2, 3, -4, 0, 2}, b[] = {5}, out[3];
    struct importance *im, *back;

    (void)state;
    assert_int_equal(importance_create(&im), KRON_OK);
    assert_int_equal(importance_add(im, "l.weight", a, 2, 3), KRON_OK);
    assert_int_equal(importance_add(im, "m.weight", b, 1, 1), KRON_OK);
    assert_int_equal(importance_add(im, "m.weight", b, 1, 3), KRON_ERR_SHAPE);
    assert_int_equal(importance_write(im, in_dir("imatrix.gguf")), KRON_OK);
    assert_int_equal(importance_create(&back), KRON_OK);
    for (int i = 0; i < 2; i++) /* twice: means stay */
        assert_int_equal(importance_read(back, in_dir("imatrix.gguf")), KRON_OK);
    assert_true(importance_get(back, "l.weight", 3, out));
    for (int i = 0; i < 3; i++) /* and a ten-thousandth of the mean of channels */
        assert_true(fabs((double)out[i] - ((double[]){8.5, 2, 6.5}[i] + 1e-4 * 17 / 3)) < 1e-5);
    assert_false(importance_get(back, "l.weight", 2, out));
    assert_false(importance_get(back, "l", 3, out));
    assert_false(importance_get(NULL, "l", 3, out));
    importance_free(&back);
    importance_free(&im);
}

static void expect_bad(const struct tensor *t, int64_t n)
{
    struct importance *im;

    assert_int_equal(gguf_write(in_dir("bad.gguf"), t, n, NULL, 0), KRON_OK);
    assert_int_equal(importance_create(&im), KRON_OK);
    assert_int_equal(importance_read(im, in_dir("bad.gguf")), KRON_ERR_FORMAT);
    importance_free(&im);
}

static void other_files_are_no_importance(void **state)
{
    float sum[] = {1, 2}, less[] = {1, -2}, count[] = {3}, none[] = {0};
    struct tensor s = {sum, 8, DT_F32, 1, {2, 1, 1, 1, 1, 1}, "w.in_sum2"};
    struct tensor c = {count, 4, DT_F32, 1, {1, 1, 1, 1, 1, 1}, "w.counts"};

    (void)state;
    expect_bad(&c, 1);
    expect_bad(&s, 1);
    expect_bad((struct tensor[]){s, {none, 4, DT_F32, 1, {1, 1, 1, 1, 1, 1}, "w.counts"}}, 2);
    expect_bad((struct tensor[]){{less, 8, DT_F32, 1, {2, 1, 1, 1, 1, 1}, "w.in_sum2"}, c}, 2);
}

static void memory_can_end_anywhere(void **state)
{
    float x[] = {1, 2, 3};
    struct importance *im;

    (void)state;
    for (long n = 1;; n++) {
        mem_fail_after(n);
        kron_status status = importance_create(&im);
        if (status == KRON_OK) {
            status = importance_add(im, "w", x, 1, 3);
            if (status == KRON_OK)
                status = importance_write(im, in_dir("i.gguf"));
            if (status == KRON_OK)
                status = importance_read(im, in_dir("i.gguf"));
            importance_free(&im);
        }
        mem_fail_after(0);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
        assert_true(n < 200);
    }
}

/* --- what killed writers left --- */

static void a_killed_writer_leaves_what_the_next_removes(void **state)
{
    struct file_writer w = {0};
    int status, ready[2];
    char byte;

    (void)state;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (writer_open(&w, in_dir("model.gguf")) != KRON_OK || write(ready[1], "x", 1) != 1)
            _exit(1);
        pause();
        _exit(0);
    }
    int before = temp_dir_count(dir);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    before = temp_dir_count(dir) - 1;
    writer_clear_left(in_dir("model.gguf"));
    assert_int_equal(temp_dir_count(dir), before + 1); /* its writer lives */
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_false(path_is_file(in_dir("model.gguf")));
    writer_clear_left(in_dir("model")); /* of another file */
    assert_int_equal(temp_dir_count(dir), before + 1);
    writer_clear_left(in_dir("model.gguf"));
    assert_int_equal(temp_dir_count(dir), before);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_for_matrices_in_whole_blocks),
        cmocka_unit_test(the_first_rule_that_is_found_counts),
        cmocka_unit_test(rules_that_cannot_be_read_are_errors),
        cmocka_unit_test(importance_is_kept_best),
        cmocka_unit_test(numbers_that_a_type_has_not_are_errors),
        cmocka_unit_test(importance_comes_back_from_its_file),
        cmocka_unit_test(other_files_are_no_importance),
        cmocka_unit_test(memory_can_end_anywhere),
        cmocka_unit_test(a_killed_writer_leaves_what_the_next_removes),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
