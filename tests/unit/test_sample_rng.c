/* SPDX-License-Identifier: MIT
 * Random numbers against torch (tests/golden/make_rng_cpu.py, make_rng_cuda.py). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "golden_numbers.h"
#include "sample/rng.h"
#include <math.h>

enum { MOST = 4 * 128 * 128, KEPT = 128 };

/* Every row of a golden file: successive calls of one seed follow each other. */
static void check_file(const char *text, kron_rng kind, double tolerance, double *worst)
{
    void *memory;
    assert_int_equal(mem_alloc_n(&memory, MOST, sizeof(float), "test"), KRON_OK);
    float *out = memory;
    struct rng r;
    int rows = 0;
    for (const char *p = golden_find(text, "seed"); p != NULL; p = golden_find(p, "seed"), rows++) {
        uint64_t seed = strtoull(p, NULL, 10);
        int64_t n = (int64_t)golden_number(p, "n");
        assert_true(n <= MOST);
        if (golden_number(p, "call") == 0)
            rng_init(&r, kind, seed);
        rng_normal(&r, out, n);
        double at[KEPT], value[KEPT], sum = 0;
        int n_kept = golden_list(p, "at", at, KEPT);
        assert_int_equal(golden_list(p, "values", value, KEPT), n_kept);
        assert_true(n_kept > 0);
        for (int k = 0; k < n_kept; k++) {
            double off = fabs(out[(int64_t)at[k]] - value[k]);
            *worst = fmax(*worst, off);
            if (!(off <= tolerance))
                fail_msg("seed %llu, call of %lld, number %d: %.9g, expected %.9g",
                         (unsigned long long)seed, (long long)n, (int)at[k],
                         (double)out[(int64_t)at[k]], value[k]);
        }
        for (int64_t k = 0; k < n; k++)
            sum += out[k];
        assert_true(fabs(sum - golden_number(p, "sum")) <= tolerance * sqrt((double)n) * 4);
    }
    assert_true(rows >= 20);
    mem_free(memory);
}

/* 4 units in the last place of the largest numbers. */
static void cpu_numbers_are_those_of_torch(void **state)
{
    (void)state;
    char *text = golden_read("rng_cpu.json");
    double worst = 0;
    assert_non_null(text);
    check_file(text, KRON_RNG_CPU, 1e-6, &worst);
    print_message("largest difference %.3g\n", worst);
    mem_free(text);
}

static void cuda_numbers_are_philox_with_box_muller(void **state)
{
    (void)state;
    char *text = golden_read("rng_philox.json");
    double worst = 0;
    assert_non_null(text);
    check_file(text, KRON_RNG_CUDA, 2e-6, &worst);
    print_message("largest difference %.3g\n", worst);
    mem_free(text);
}

/* The device has fast sine and cosine: 2^-21.4 in the angle's first turn, times up to 6.6. */
static void cuda_numbers_are_those_of_a_gpu(void **state)
{
    (void)state;
    char *text = golden_read("rng_cuda.json");
    if (text == NULL) {
        print_message("no tests/golden/rng_cuda.json\n");
        skip();
    }
    double worst = 0;
    check_file(text, KRON_RNG_CUDA, 5e-6, &worst);
    print_message("largest difference %.3g\n", worst);
    mem_free(text);
}

/* What A1111's documentation of its CPU stand-in says for seed 0. */
static void cuda_seed_0_is_the_published_one(void **state)
{
    (void)state;
    static const double want[12] = {-0.92466259, -0.42534415, -2.6438457,  0.14518388,
                                    -0.12086647, -0.57972564, -0.62285122, -0.32838709,
                                    -1.07454231, -0.36314407, -1.67105067, 2.26550497};
    struct rng r;
    float got[12];
    rng_init(&r, KRON_RNG_CUDA, 0);
    rng_normal(&r, got, 12);
    for (int i = 0; i < 12; i++)
        assert_true(fabs(got[i] - want[i]) < 1e-6);
}

static void a_copy_goes_on_alike_and_an_empty_call_draws_nothing(void **state)
{
    (void)state;
    for (int kind = KRON_RNG_CUDA; kind <= KRON_RNG_CPU; kind++) {
        struct rng a, b;
        float x[40], y[40];
        rng_init(&a, (kron_rng)kind, 77);
        rng_normal(&a, x, 3);
        b = a;
        rng_normal(&b, y, 0);
        rng_normal(&a, x, 40);
        rng_normal(&b, y, 40);
        assert_memory_equal(x, y, sizeof x);
        rng_normal(&b, y, 40);
        assert_memory_not_equal(x, y, sizeof x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_numbers_are_those_of_torch),
        cmocka_unit_test(cuda_numbers_are_philox_with_box_muller),
        cmocka_unit_test(cuda_numbers_are_those_of_a_gpu),
        cmocka_unit_test(cuda_seed_0_is_the_published_one),
        cmocka_unit_test(a_copy_goes_on_alike_and_an_empty_call_draws_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
