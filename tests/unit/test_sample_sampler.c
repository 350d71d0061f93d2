/* SPDX-License-Identifier: MIT
 * Whole runs of every sampler on a network known in closed form, against
 * tests/golden/samplers.json (make_samplers.py, itself compared with diffusers' schedulers). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "golden_numbers.h"
#include "sample/sampler.h"
#include <math.h>

enum { N = 12, NOISES = 24, MOST_STEPS = 16 };

static struct noise_levels levels;
static char *golden;

/* A mixture of two normal distributions per element, and what a run did with it. */
struct toy {
    double width, mean[2 * N];
    double start[N], noise[NOISES * N];
    kron_prediction prediction;
    int n_noise, n_network, n_progress, n_edit;
    int noise_step;          /* of the last call */
    int cancel_at, fail_at;  /* 0: never */
    double edit_value;
    float last_x[N];
};
static struct toy toy;

static double toy_estimate(double x, double sigma, int k)
{
    double var = toy.width * toy.width + sigma * sigma;
    double off0 = x - toy.mean[k], off1 = x - toy.mean[N + k];
    double share = 1 / (1 + exp((off1 * off1 - off0 * off0) / (2 * var)));
    double shrink = toy.width * toy.width / var;
    return (1 - share) * (toy.mean[k] + off0 * shrink) + share * (toy.mean[N + k] + off1 * shrink);
}

static kron_status toy_network(void *user, const float *x, double t, float *out)
{
    struct toy *y = user;
    double sigma = t_to_sigma(&levels, t), norm = sqrt(sigma * sigma + 1);
    if (++y->n_network == y->fail_at)
        return err_set(KRON_ERR_DEVICE, "the toy broke");
    for (int k = 0; k < N; k++) {
        double full = x[k] * norm, latent = toy_estimate(full, sigma, k);
        double eps = (full - latent) / sigma;
        out[k] = (float)(y->prediction == KRON_PREDICTION_V ? (eps - sigma * latent) / norm : eps);
    }
    return KRON_OK;
}

static void toy_noise(void *user, int step, float *out, int64_t n)
{
    struct toy *y = user;
    assert_int_equal(n, N);
    assert_true(y->n_noise < NOISES);
    for (int k = 0; k < N; k++)
        out[k] = (float)y->noise[y->n_noise * N + k];
    y->n_noise++;
    y->noise_step = step;
}

static void toy_edit(void *user, double sigma, float *denoised)
{
    struct toy *y = user;
    assert_true(sigma > 0);
    y->n_edit++;
    denoised[3] = (float)y->edit_value;
}

static int toy_progress(void *user, int done, const float *x, const float *denoised)
{
    struct toy *y = user;
    assert_int_equal(done, ++y->n_progress);
    for (int k = 0; k < N; k++)
        assert_true(isfinite(denoised[k]));
    memcpy(y->last_x, x, sizeof y->last_x);
    return done == y->cancel_at;
}

static int set_up(void **state)
{
    (void)state;
    levels_init(&levels);
    golden = golden_read("samplers.json");
    return golden != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    mem_free(golden);
    return 0;
}

static int reset(void **state)
{
    (void)state;
    toy = (struct toy){.prediction = KRON_PREDICTION_EPS};
    toy.width = golden_number(golden, "width");
    bool whole = golden_list(golden, "means", toy.mean, 2 * N) == 2 * N &&
                 golden_list(golden, "start", toy.start, N) == N &&
                 golden_list(golden, "noise", toy.noise, NOISES * N) == NOISES * N;
    return whole ? 0 : -1;
}

static struct sample_job job_for(const struct sampler *s, const double *sigmas, int n_steps)
{
    return (struct sample_job){.sampler = s, .levels = &levels, .sigmas = sigmas,
                               .n_steps = n_steps, .n = N, .eta = -1,
                               .prediction = toy.prediction, .network = toy_network,
                               .noise = toy_noise, .progress = toy_progress, .user = &toy};
}

static void start(const struct sampler *s, double sigma, float *x)
{
    float noise[N];
    for (int k = 0; k < N; k++)
        noise[k] = (float)toy.start[k];
    sample_start(s, sigma, noise, NULL, x, N);
}

/* 2e-6 of the largest number: vectors are float, coefficients of a step reach about 5, and a run
 * has up to 9 steps. */
static void check_row(const char *row, const struct sampler *s)
{
    double sigmas[MOST_STEPS + 1], want[N], biggest = 0, worst = 0;
    float x[N];
    char prediction[8];
    int n_steps = golden_list(row, "sigmas", sigmas, MOST_STEPS + 1) - 1;
    golden_string(row, "prediction", prediction, sizeof prediction);
    assert_int_equal(golden_list(row, "final", want, N), N);
    toy.prediction = strcmp(prediction, "v") == 0 ? KRON_PREDICTION_V : KRON_PREDICTION_EPS;
    struct sample_job job = job_for(s, sigmas, n_steps);
    job.eta = golden_number(row, "eta");
    start(s, sigmas[0], x);
    assert_int_equal(sample_run(&job, x), KRON_OK);
    for (int k = 0; k < N; k++) {
        biggest = fmax(biggest, fabs(want[k]));
        worst = fmax(worst, fabs(x[k] - want[k]));
    }
    print_message("%-14s %2d steps, %s: %.1e\n", s->name, n_steps, prediction, worst / biggest);
    assert_true(worst <= 2e-6 * biggest);
    assert_int_equal(toy.n_progress, n_steps);
    assert_int_equal(toy.n_noise > 0, sampler_adds_noise(s, job.eta) && n_steps > 1);
    int most = s->evaluations * n_steps;
    assert_true(toy.n_network <= most && toy.n_network > most - s->evaluations);
}

static void runs_end_where_the_formulas_do(void **state)
{
    int rows = 0;
    bool seen[64] = {false};
    for (const char *p = golden_find(golden, "sampler"); p != NULL;
         p = golden_find(p, "sampler"), rows++) {
        const struct sampler *s;
        char name[32];
        golden_string(p - sizeof "\"sampler\":", "sampler", name, sizeof name);
        assert_int_equal(sampler_find(&s, name), KRON_OK);
        assert_int_equal(reset(state), 0);
        check_row(p, s);
        for (int i = 0; sampler_at(i) != NULL; i++)
            seen[i] = seen[i] || sampler_at(i) == s;
    }
    assert_int_equal(rows, 23);
    for (int i = 0; sampler_at(i) != NULL; i++)
        if (!seen[i])
            fail_msg("no golden run of %s", sampler_at(i)->name);
}

/* With many steps all samplers without noise solve the same equation. */
static void samplers_without_noise_meet(void **state)
{
    static double sigmas[201];
    float first[N], x[N];
    for (int i = 0; sampler_at(i) != NULL; i++) {
        const struct sampler *s = sampler_at(i);
        if (s->unit_variance || s->always_noise)
            continue; /* their schedules end elsewhere, or they always jump to the estimate */
        assert_int_equal(reset(state), 0);
        assert_int_equal(schedule_sigmas(sigmas, SCHEDULE_KARRAS, 200, KRON_ARCH_SD1, &levels),
                         KRON_OK);
        struct sample_job job = job_for(s, sigmas, 200);
        job.eta = 0;
        job.noise = NULL;
        start(s, sigmas[0], x);
        assert_int_equal(sample_run(&job, x), KRON_OK);
        if (i == 0)
            memcpy(first, x, sizeof first);
        for (int k = 0; k < N; k++)
            if (!(fabs(x[k] - first[k]) < 0.03))
                fail_msg("%s ends at %g, euler at %g", s->name, (double)x[k], (double)first[k]);
    }
}

static void starts_are_scaled_as_the_sampler_needs(void **state)
{
    (void)state;
    const struct sampler *plain, *unit;
    float noise[2] = {1, -2}, init[2] = {0.5f, 3}, x[2];
    assert_int_equal(sampler_find(&plain, "euler"), KRON_OK);
    assert_int_equal(sampler_find(&unit, "ddim"), KRON_OK);
    sample_start(plain, 3, noise, NULL, x, 2);
    assert_true(x[0] == 3 && x[1] == -6);
    sample_start(plain, 3, noise, init, x, 2);
    assert_true(x[0] == 3.5f && x[1] == -3);
    sample_start(unit, 3, noise, NULL, x, 2);
    assert_true(x[0] == 1 && x[1] == -2);
    sample_start(unit, 3, noise, init, x, 2);
    assert_true(fabs(x[0] - 3.5 / sqrt(10)) < 1e-6 && fabs(x[1] + 3 / sqrt(10)) < 1e-6);
}

static void a_run_can_be_stopped_after_any_step(void **state)
{
    const double sigmas[] = {10, 5, 2, 1, 0};
    for (int i = 0; sampler_at(i) != NULL; i++) {
        float x[N];
        assert_int_equal(reset(state), 0);
        toy.cancel_at = 2;
        struct sample_job job = job_for(sampler_at(i), sigmas, 4);
        start(job.sampler, sigmas[0], x);
        assert_int_equal(sample_run(&job, x), KRON_ERR_CANCELLED);
        assert_int_equal(toy.n_progress, 2);
        assert_int_equal(toy.n_network, 2 * sampler_at(i)->evaluations);
    }
}

static void errors_of_the_network_end_the_run(void **state)
{
    const double sigmas[] = {10, 5, 2, 1, 0};
    for (int i = 0; sampler_at(i) != NULL; i++)
        for (int call = 1; call <= 3; call++) {
            float x[N];
            assert_int_equal(reset(state), 0);
            toy.fail_at = call;
            struct sample_job job = job_for(sampler_at(i), sigmas, 4);
            start(job.sampler, sigmas[0], x);
            assert_int_equal(sample_run(&job, x), KRON_ERR_DEVICE);
            assert_int_equal(toy.n_network, call);
            assert_non_null(strstr(kron_error_detail(), "toy"));
        }
}

/* Inpainting: what edit() puts into every estimate is what comes out. */
static void an_edited_estimate_is_where_the_run_ends(void **state)
{
    const double sigmas[] = {10, 5, 2, 1, 0};
    for (int i = 0; sampler_at(i) != NULL; i++) {
        float x[N];
        assert_int_equal(reset(state), 0);
        toy.edit_value = 0.75;
        struct sample_job job = job_for(sampler_at(i), sigmas, 4);
        job.edit = toy_edit;
        start(job.sampler, sigmas[0], x);
        assert_int_equal(sample_run(&job, x), KRON_OK);
        assert_int_equal(toy.n_edit, toy.n_network);
        assert_true(fabs(x[3] - 0.75) < 1e-5);
    }
}

static void progress_sees_the_state_at_the_next_level(void **state)
{
    (void)state;
    const double sigmas[] = {8, 0.5};
    const struct sampler *s;
    float x[N];
    for (int unit = 0; unit < 2; unit++) {
        assert_int_equal(reset(state), 0);
        assert_int_equal(sampler_find(&s, unit ? "ddim" : "euler"), KRON_OK);
        struct sample_job job = job_for(s, sigmas, 1);
        start(s, sigmas[0], x);
        assert_int_equal(sample_run(&job, x), KRON_OK);
        double scale = unit ? sqrt(0.5 * 0.5 + 1) : 1;
        for (int k = 0; k < N; k++)
            assert_true(fabs(toy.last_x[k] - x[k] * scale) < 1e-5);
    }
}

static void eta_counts_only_where_noise_is_part_of_the_method(void **state)
{
    const struct sampler *s;
    const double sigmas[] = {10, 5, 2, 1, 0};
    float x[N];
    assert_int_equal(sampler_find(&s, "euler"), KRON_OK);
    assert_false(sampler_adds_noise(s, 1));
    struct sample_job job = job_for(s, sigmas, 4);
    job.eta = 1;
    start(s, sigmas[0], x);
    assert_int_equal(sample_run(&job, x), KRON_OK);
    assert_int_equal(toy.n_noise, 0);

    assert_int_equal(reset(state), 0);
    assert_int_equal(sampler_find(&s, "euler_a"), KRON_OK);
    assert_true(sampler_adds_noise(s, -1));
    assert_false(sampler_adds_noise(s, 0));
    job = job_for(s, sigmas, 4);
    start(s, sigmas[0], x);
    assert_int_equal(sample_run(&job, x), KRON_OK);
    assert_int_equal(toy.n_noise, 3);
    assert_int_equal(toy.noise_step, 2);

    assert_int_equal(sampler_find(&s, "lcm"), KRON_OK);
    assert_true(sampler_adds_noise(s, 0));
    assert_int_equal(sampler_find(&s, "ddim"), KRON_OK);
    assert_false(sampler_adds_noise(s, -1));
    assert_true(sampler_adds_noise(s, 0.5));
}

static void bad_jobs_are_refused(void **state)
{
    (void)state;
    const struct sampler *s;
    float x[N] = {0};
    assert_int_equal(sampler_find(&s, "heun"), KRON_OK);
    struct sample_job job = job_for(s, (const double[]){5, 6, 0}, 2);
    assert_int_equal(sample_run(&job, x), KRON_ERR_ARGUMENT);
    job = job_for(s, (const double[]){5, 0}, 1);
    job.n = 0;
    assert_int_equal(sample_run(&job, x), KRON_ERR_ARGUMENT);
    job.n = INT64_MAX;
    assert_int_not_equal(sample_run(&job, x), KRON_OK);
    job.n = N;
    mem_fail_after(1);
    assert_int_equal(sample_run(&job, x), KRON_ERR_MEMORY);
    mem_fail_after(0);
    assert_int_equal(toy.n_network, 0);
    assert_int_equal(sampler_find(&s, "eulerr"), KRON_ERR_ARGUMENT);
    assert_null(s);
    assert_non_null(strstr(kron_error_detail(), "eulerr"));
    assert_non_null(strstr(kron_error_detail(), "uni_pc"));
}

static void names_and_aliases_are_found(void **state)
{
    (void)state;
    static const char *const row[][2] = {
        {NULL, "euler_a"},           {"", "euler_a"},
        {"Euler", "euler"},          {"Euler a", "euler_a"},
        {"k_euler_a", "euler_a"},    {"euler_ancestral", "euler_a"},
        {"Heun", "heun"},            {"DPM2", "dpm2"},
        {"dpm_2", "dpm2"},           {"DPM++ 2S a", "dpm++2s_a"},
        {"dpmpp_2s_ancestral", "dpm++2s_a"}, {"dpmpp_2m", "dpm++2m"},
        {"DPM++ 2M", "dpm++2m"},     {"dpm++2mv2", "dpm++2mv2"},
        {"DPM++ 2M SDE", "dpm++2m_sde"}, {"dpmpp_sde", "dpm++sde"},
        {"DPM++ SDE", "dpm++sde"},   {"DDIM", "ddim"},
        {"ddim_trailing", "ddim_trailing"}, {"LCM", "lcm"},
        {"UniPC", "uni_pc"},         {"uni_pc", "uni_pc"},
        {"ipndm", "ipndm"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const struct sampler *s;
        assert_int_equal(sampler_find(&s, row[i][0]), KRON_OK);
        assert_string_equal(s->name, row[i][1]);
    }
    assert_null(sampler_at(-1));
    assert_null(sampler_at(14));
    const struct sampler *s;
    assert_int_equal(sampler_find(&s, "ddim"), KRON_OK);
    assert_int_equal(sampler_schedule(s, SCHEDULE_DISCRETE), SCHEDULE_DDIM);
    assert_int_equal(sampler_schedule(s, SCHEDULE_KARRAS), SCHEDULE_KARRAS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(runs_end_where_the_formulas_do, reset),
        cmocka_unit_test_setup(samplers_without_noise_meet, reset),
        cmocka_unit_test_setup(starts_are_scaled_as_the_sampler_needs, reset),
        cmocka_unit_test_setup(a_run_can_be_stopped_after_any_step, reset),
        cmocka_unit_test_setup(errors_of_the_network_end_the_run, reset),
        cmocka_unit_test_setup(an_edited_estimate_is_where_the_run_ends, reset),
        cmocka_unit_test_setup(progress_sees_the_state_at_the_next_level, reset),
        cmocka_unit_test_setup(eta_counts_only_where_noise_is_part_of_the_method, reset),
        cmocka_unit_test_setup(bad_jobs_are_refused, reset),
        cmocka_unit_test_setup(names_and_aliases_are_found, reset),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
