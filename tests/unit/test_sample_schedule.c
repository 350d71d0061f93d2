/* SPDX-License-Identifier: MIT
 * Schedules against tests/golden/schedules.json (from ../shared/reference, made with numpy in
 * float64) and ays.json (make_ays.py). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "golden_numbers.h"
#include "sample/schedule.h"
#include <math.h>

static struct noise_levels levels;
static char *golden;

static int set_up(void **state)
{
    (void)state;
    levels_init(&levels);
    golden = golden_read("schedules.json");
    return golden != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    mem_free(golden);
    return 0;
}

static void expect_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fabs(want)))
        fail_msg("%.17g, expected %.17g", got, want);
}

static void levels_have_the_known_ends(void **state)
{
    (void)state;
    double ends[2];
    assert_int_equal(golden_list(golden, "levels_first_last", ends, 2), 2);
    expect_near(levels.sigma[0], ends[0]);
    expect_near(levels.sigma[LEVELS_COUNT - 1], ends[1]);
}

static void schedules_are_those_of_the_reference(void **state)
{
    (void)state;
    int rows = 0;
    const char *end = golden_find(golden, "ddim_timesteps");
    for (const char *p = golden_find(golden, "name"); p != NULL && p < end;
         p = golden_find(p, "name"), rows++) {
        const char *row = p - sizeof "\"name\":"; /* golden_string() looks for the key again */
        char name[32];
        double sigma[64], t[64], got[64];
        golden_string(row, "name", name, sizeof name);
        int n = (int)golden_number(row, "n");
        assert_int_equal(golden_list(row, "sigmas", sigma, 64), n + 1);
        assert_int_equal(golden_list(row, "timesteps", t, 64), n);
        enum schedule s;
        assert_int_equal(schedule_find(&s, name), KRON_OK);
        assert_int_equal(schedule_sigmas(got, s, n, KRON_ARCH_SD1, &levels), KRON_OK);
        for (int i = 0; i <= n; i++)
            expect_near(got[i], sigma[i]);
        for (int i = 0; i < n; i++)
            assert_true(fabs(sigma_to_t(&levels, got[i]) - t[i]) < 1e-7);
    }
    assert_int_equal(rows, 25);
}

static void sigma_to_t_and_back(void **state)
{
    (void)state;
    double pair[20];
    const char *p = strchr(golden_find(golden, "sigma_to_t"), '[') + 1;
    int rows = 0;
    for (p = strchr(p, '['); p != NULL; p = strchr(p + 1, '['), rows++) {
        char *end;
        pair[0] = strtod(p + 1 + strspn(p + 1, " \n"), &end);
        pair[1] = strtod(end + strspn(end, ", \n"), NULL);
        assert_true(fabs(sigma_to_t(&levels, pair[0]) - pair[1]) < 1e-9);
    }
    assert_int_equal(rows, 9);
    for (double t = 0; t < 999; t += 0.37)
        assert_true(fabs(sigma_to_t(&levels, t_to_sigma(&levels, t)) - t) < 1e-8);
    expect_near(t_to_sigma(&levels, -3), levels.sigma[0]);
    expect_near(t_to_sigma(&levels, 4e9), levels.sigma[999]);
}

static void ddim_and_uni_pc_take_whole_timesteps(void **state)
{
    (void)state;
    static const int counts[] = {1, 2, 5, 20, 30};
    static const double uni_pc[] = {999, 856, 714, 571, 428, 285, 143}; /* runs_sd15.json, run11 */
    static const double trailing[] = {999, 856, 713, 570, 428, 285, 142};
    const char *p = golden_find(golden, "ddim_timesteps");
    double want[64], got[64];
    for (size_t k = 0; k < 5; k++) {
        char key[8];
        int n = counts[k];
        snprintf(key, sizeof key, "%d", n);
        assert_int_equal(golden_list(p, key, want, 64), n);
        assert_int_equal(schedule_sigmas(got, SCHEDULE_DDIM, n, KRON_ARCH_SD1, &levels), KRON_OK);
        for (int i = 0; i < n; i++)
            assert_true(fabs(sigma_to_t(&levels, got[i]) - want[i]) < 1e-9);
        assert_true(got[n] == levels.sigma[0]);
    }
    assert_int_equal(schedule_sigmas(got, SCHEDULE_UNI_PC, 7, KRON_ARCH_SD1, &levels), KRON_OK);
    for (int i = 0; i < 7; i++)
        assert_true(fabs(sigma_to_t(&levels, got[i]) - uni_pc[i]) < 1e-9);
    assert_true(got[7] == 0);
    assert_int_equal(schedule_sigmas(got, SCHEDULE_DDIM_TRAILING, 7, KRON_ARCH_SD1, &levels),
                     KRON_OK);
    for (int i = 0; i < 7; i++)
        assert_true(fabs(sigma_to_t(&levels, got[i]) - trailing[i]) < 1e-9);
}

static void ays_is_the_table_and_log_linear_between(void **state)
{
    (void)state;
    char *text = golden_read("ays.json");
    int rows = 0;
    assert_non_null(text);
    for (const char *p = golden_find(text, "arch"); p != NULL; p = golden_find(p, "arch"), rows++) {
        double want[64], got[64];
        kron_arch arch = strncmp(p, " \"sdxl\"", 7) == 0 ? KRON_ARCH_SDXL : KRON_ARCH_SD2;
        int n = (int)golden_number(p, "n");
        assert_int_equal(golden_list(p, "sigmas", want, 64), n + 1);
        assert_int_equal(schedule_sigmas(got, SCHEDULE_AYS, n, arch, &levels), KRON_OK);
        for (int i = 0; i <= n; i++)
            expect_near(got[i], want[i]);
    }
    assert_int_equal(rows, 10);
    mem_free(text);
}

/* What the samplers divide by is the difference of neighbours. */
static void every_schedule_falls_for_every_number_of_steps(void **state)
{
    (void)state;
    double sigmas[SCHEDULE_MAX_STEPS + 1];
    for (int s = 0; s <= SCHEDULE_UNI_PC; s++) {
        if (s == SCHEDULE_NAMED)
            continue;
        for (int n = 1; n <= SCHEDULE_MAX_STEPS; n++) {
            assert_int_equal(schedule_sigmas(sigmas, (enum schedule)s, n, KRON_ARCH_SDXL, &levels),
                             KRON_OK);
            if (schedule_check(sigmas, n) != KRON_OK)
                fail_msg("schedule %d, %d steps: %s", s, n, kron_error_detail());
        }
    }
}

static void bad_requests_are_named(void **state)
{
    (void)state;
    double out[4];
    enum schedule s;
    assert_int_equal(schedule_sigmas(out, SCHEDULE_KARRAS, 0, KRON_ARCH_SD1, &levels),
                     KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_sigmas(out, SCHEDULE_KARRAS, 1000, KRON_ARCH_SD1, &levels),
                     KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "1000"));
    assert_int_equal(schedule_find(&s, "karas"), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "karas"));
    assert_int_equal(schedule_check((double[]){3, 1, 1}, 2), KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_check((double[]){3, NAN, 0}, 2), KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_check((double[]){INFINITY, 1}, 1), KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_check((double[]){1, -1}, 1), KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_check((double[]){3}, 0), KRON_ERR_ARGUMENT);
    assert_int_equal(schedule_check((double[]){14.6, 1, 0}, 2), KRON_OK);
}

static void names_and_aliases_are_found(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum schedule want;
    } row[] = {{NULL, SCHEDULE_DISCRETE},        {"", SCHEDULE_DISCRETE},
               {"normal", SCHEDULE_DISCRETE},    {"Automatic", SCHEDULE_DISCRETE},
               {"Karras", SCHEDULE_KARRAS},      {"exponential", SCHEDULE_EXPONENTIAL},
               {"SGM Uniform", SCHEDULE_SGM_UNIFORM}, {"sgm_uniform", SCHEDULE_SGM_UNIFORM},
               {"simple", SCHEDULE_SIMPLE},      {"ays", SCHEDULE_AYS},
               {"Align Your Steps", SCHEDULE_AYS}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        enum schedule s;
        assert_int_equal(schedule_find(&s, row[i].name), KRON_OK);
        assert_int_equal(s, row[i].want);
    }
    for (int i = 0; i < SCHEDULE_NAMED; i++) {
        enum schedule s;
        assert_int_equal(schedule_find(&s, schedule_name(i)), KRON_OK);
        assert_int_equal(s, i);
    }
    assert_null(schedule_name(SCHEDULE_NAMED));
    assert_null(schedule_name(-1));
}

static void strength_chooses_the_first_step(void **state)
{
    (void)state;
    assert_int_equal(schedule_first_step(20, 1), 0);
    assert_int_equal(schedule_first_step(20, 0.75), 4);  /* 16 steps run */
    assert_int_equal(schedule_first_step(20, 0), 19);
    assert_int_equal(schedule_first_step(20, 0.999), 0); /* 19 + 1 */
    assert_int_equal(schedule_first_step(100, 0.29f), 70);
    assert_int_equal(schedule_first_step(1, 0.5), 0);
    assert_int_equal(schedule_first_step(20, -3), 19);
    assert_int_equal(schedule_first_step(20, 7), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_have_the_known_ends),
        cmocka_unit_test(schedules_are_those_of_the_reference),
        cmocka_unit_test(sigma_to_t_and_back),
        cmocka_unit_test(ddim_and_uni_pc_take_whole_timesteps),
        cmocka_unit_test(ays_is_the_table_and_log_linear_between),
        cmocka_unit_test(every_schedule_falls_for_every_number_of_steps),
        cmocka_unit_test(bad_requests_are_named),
        cmocka_unit_test(names_and_aliases_are_found),
        cmocka_unit_test(strength_chooses_the_first_step),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
