/* SPDX-License-Identifier: MIT
 * A session's profile: every operation once, in order, within the time of the job. */
#include "session_fixture.h"

enum { MOST = 4096 };

struct seen {
    kron_operation ops[MOST];
    int n;
    kron_session *session;
    kron_status nested; /* what changing the profile within the job says */
};

static struct seen seen;

static void see(const kron_operation *op, void *user)
{
    struct seen *s = user;

    assert_true(s->n < MOST);
    s->ops[s->n++] = *op;
    s->nested = kron_session_set_profile(s->session, NULL, NULL);
}

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

/* How many operations of a kind a part ran, and their multiply-adds. */
static int count(const char *part, const char *kind, double *flops)
{
    int n = 0;

    *flops = 0;
    for (int i = 0; i < seen.n; i++)
        if (is(seen.ops[i].part, part) && is(seen.ops[i].kind, kind)) {
            *flops += seen.ops[i].flops;
            n++;
        }
    return n;
}

static double draw_watched(kron_session *s, const kron_job *j, const kron_image *want)
{
    seen = (struct seen){.session = s};
    assert_int_equal(kron_session_set_profile(s, see, &seen), KRON_OK);
    double start = clock_seconds();
    expect_picture(s, j, want);
    return clock_seconds() - start;
}

static void times_lie_within_the_job_and_in_order(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    double all = draw_watched(s, &j, &plain), sum = 0;

    (void)state;
    assert_true(seen.n > 100);
    for (int i = 0; i < seen.n; i++) {
        assert_true(seen.ops[i].seconds >= 0);
        sum += seen.ops[i].seconds;
        if (i == 0)
            continue;
        const kron_operation *before = &seen.ops[i - 1];
        assert_true(seen.ops[i].start >= before->start + before->seconds - 1e-9);
    }
    assert_true(sum > 0 && sum <= all);
    assert_int_equal(seen.nested, KRON_ERR_ARGUMENT);
    kron_session_free(&s);
}

static void parts_kinds_and_layers_have_their_names(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    double flops, twice;

    (void)state;
    draw_watched(s, &j, &plain);
    assert_string_equal(seen.ops[0].part, "text encoder");
    assert_string_equal(seen.ops[0].kind, "embed");
    assert_string_equal(seen.ops[seen.n - 1].part, "vae decoder");
    assert_true(count("unet", "conv2d", &flops) > 0 && flops > 0);
    int steps = count("unet", "timestep", &twice);
    assert_true(steps >= 1 && twice == 0);
    for (int i = 0; i < seen.n; i++) {
        const kron_operation *op = &seen.ops[i];
        if (!is(op->layer, "conv_in") || !is(op->part, "unet"))
            continue;
        assert_string_equal(op->kind, "conv2d");
        assert_string_equal(op->type, "F16");
        assert_string_equal(op->compute, "f32");
        assert_string_equal(op->route, "");
        assert_int_equal(op->in[1], SIDE / 8);
        assert_int_equal(op->in[3], 4);
        assert_int_equal(op->window[0] * op->window[1], 9);
        double samples = (double)op->out[0] * SIDE / 8 * SIDE / 8;
        assert_true(op->flops == 2 * samples * 4 * 9 * (double)op->out[3]);
        assert_true(op->weight_bytes == 2.0 * 37 * (double)op->out[3]); /* with the bias */
        kron_session_free(&s);
        return;
    }
    fail_msg("no convolution conv_in");
}

static void adapters_show_their_route(void **state)
{
    static const kron_apply cases[] = {KRON_APPLY_IMMEDIATELY, KRON_APPLY_AT_RUNTIME};
    kron_job j = small_job();

    (void)state;
    for (size_t c = 0; c < 2; c++) {
        kron_session *s = new_session(cases[c]);
        int n = 0, merged = 0;
        use(s, neon, 1);
        seen = (struct seen){.session = s};
        assert_int_equal(kron_session_set_profile(s, see, &seen), KRON_OK);
        kron_image image = draw(s, &j);
        for (int i = 0; i < seen.n; i++) {
            n += !is(seen.ops[i].route, "");
            merged += is(seen.ops[i].route, "merged");
        }
        assert_true(n > 20);
        assert_int_equal(merged, cases[c] == KRON_APPLY_IMMEDIATELY ? n : 0);
        kron_image_free(&image);
        kron_session_free(&s);
    }
}

static void whole_numbers_show_where_they_are(void **state)
{
    kron_session_params p = {.compute = KRON_COMPUTE_INT8};
    kron_job j = small_job();
    kron_session *s;
    int n = 0;

    (void)state;
    assert_int_equal(kron_session_create(&s, model, &p), KRON_OK);
    seen = (struct seen){.session = s};
    assert_int_equal(kron_session_set_profile(s, see, &seen), KRON_OK);
    kron_image image = draw(s, &j);
    for (int i = 0; i < seen.n; i++) {
        bool whole = is(seen.ops[i].compute, "int8");
        n += whole;
        assert_true(!whole || is(seen.ops[i].part, "unet"));
    }
    assert_true(n > 0);
    kron_image_free(&image);
    kron_session_free(&s);
}

static void a_profile_ends_when_told(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();

    (void)state;
    draw_watched(s, &j, &plain);
    int n = seen.n;
    assert_int_equal(kron_session_set_profile(s, NULL, NULL), KRON_OK);
    expect_picture(s, &j, &plain);
    assert_int_equal(seen.n, n);
    assert_int_equal(kron_session_set_profile(NULL, see, &seen), KRON_ERR_ARGUMENT);
    kron_session_free(&s);
}

static void a_peak_is_measured(void **state)
{
    kron_peak peak;

    (void)state;
    assert_int_equal(kron_model_measure_peak(model, &peak), KRON_OK);
    assert_true(peak.flops > 1e6 && peak.bytes > 1e6);
    assert_int_equal(kron_model_measure_peak(model, NULL), KRON_ERR_ARGUMENT);
    mem_fail_after(1);
    assert_int_equal(kron_model_measure_peak(model, &peak), KRON_ERR_MEMORY);
    mem_fail_after(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_lie_within_the_job_and_in_order),
        cmocka_unit_test(parts_kinds_and_layers_have_their_names),
        cmocka_unit_test(adapters_show_their_route),
        cmocka_unit_test(whole_numbers_show_where_they_are),
        cmocka_unit_test(a_profile_ends_when_told),
        cmocka_unit_test(a_peak_is_measured),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
