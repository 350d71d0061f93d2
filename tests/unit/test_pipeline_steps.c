/* SPDX-License-Identifier: MIT
 * What a step may not do, and what is not done before it is asked for. */
#include "session_fixture.h"
#include "backend/backend.h"

enum { STEPS = 4 };

/* From the end of the first step, which plans, to that of the last no memory is to be had. */
static int starve(const kron_progress *p, void *user)
{
    bool sampling = strcmp(p->phase, "sampling") == 0;

    (void)user;
    if (sampling && p->step == 1)
        mem_fail_after(1);
    if (sampling && p->step == p->n_steps)
        mem_fail_after(0);
    return 0;
}

static void expect_no_allocation(kron_session *s, const char *sampler)
{
    kron_job j = small_job();
    kron_image image = {0};

    j.steps = STEPS;
    j.sampler = sampler;
    j.progress = starve;
    kron_status status = kron_generate(s, &j, &image);
    mem_fail_after(0);
    if (status != KRON_OK)
        fail_msg("%s: %s", sampler, kron_error_detail());
    kron_image_free(&image);
}

static void steps_after_the_first_allocate_nothing(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);

    (void)state;
    for (int i = 0; kron_sampler_name(i) != NULL; i++)
        expect_no_allocation(s, kron_sampler_name(i));
    kron_session_free(&s);
}

/* By each route, and with a strength that is another at each step. */
static void nor_do_they_with_adapters(void **state)
{
    static const kron_step_point rising[2] = {{0, 0}, {1, 1}};
    static const kron_apply applies[3] = {KRON_APPLY_AUTO, KRON_APPLY_AT_RUNTIME,
                                          KRON_APPLY_IMMEDIATELY};
    kron_adapter_use uses[2] = {{neon, 1, 1}, {sketch, 1, 1}};

    (void)state;
    uses[1].curve = rising;
    uses[1].n_curve = 2;
    for (int i = 0; i < 3; i++) {
        kron_session *s = new_session(applies[i]);
        assert_int_equal(kron_session_set_adapters(s, uses, 2), KRON_OK);
        expect_no_allocation(s, "euler_a");
        kron_session_free(&s);
    }
}

static void rates_are_measured_when_asked_for(void **state)
{
    struct be_device *d;

    (void)state;
    assert_int_equal(be_open("cpu", 1, &d), KRON_OK);
    assert_true(d->caps.rates.product == 0);
    assert_int_equal(be_measure(d), KRON_OK);
    struct gr_rates r = d->caps.rates;
    assert_true(r.product > 0 && r.small > 0 && r.pass > 0 && r.bandwidth > 0);
    assert_int_equal(be_measure(d), KRON_OK);
    assert_memory_equal(&r, &d->caps.rates, sizeof r);
    be_close(&d);
    assert_int_equal(be_open("ref", 1, &d), KRON_OK);
    assert_int_equal(be_measure(d), KRON_OK);
    assert_true(d->caps.rates.product > 0);
    be_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_after_the_first_allocate_nothing),
        cmocka_unit_test(nor_do_they_with_adapters),
        cmocka_unit_test(rates_are_measured_when_asked_for),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
