/* SPDX-License-Identifier: MIT
 * tests/kernel/int8.h - what linear layers in whole numbers must give. */
#ifndef TESTS_KERNEL_INT8_H
#define TESTS_KERNEL_INT8_H
#include "backend/cpu/int8.h"
#include "case.h"

/* Turns a case and its twin into ones in whole numbers: now and then with input channels far
 * larger than the others. False if it is too large for the model. */
bool int8_case(struct test_case *t, struct test_case *twin, uint64_t seed);

/* For each output: what a plain model of whole numbers gives, how far f32 arithmetic may be from
 * that, and the furthest that quantisation can be from exact numbers. abs_want: sums of |parts|
 * of the product, `terms` roundings each. exact: false where the model does not know the way. */
struct int8_bounds {
    double *model, *near, *far;
    bool exact;
};
kron_status int8_bounds_make(struct int8_bounds *b, const struct test_case *t,
                             const struct test_case *twin, const struct int8_kernels *k,
                             const float *abs_want, double terms);
void int8_bounds_free(struct int8_bounds *b);

/* The largest numbers that there are, by each set of kernels that this machine has: NULL, or the
 * name of the set that gives wrong sums. */
const char *int8_extremes(void);

#endif
