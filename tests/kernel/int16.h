/* SPDX-License-Identifier: MIT
 * tests/kernel/int16.h - how far operations in whole numbers of 16 bits may be from exact ones. */
#ifndef TESTS_KERNEL_INT16_H
#define TESTS_KERNEL_INT16_H
#include "case.h"

/* Turns a case into one in whole numbers; false if it has no such way. */
bool int16_case(struct test_case *t);

/* The most that quantisation and f32 can do to each output; of a convolution, but for the odds of
 * many roundings going one way. */
void int16_attention_bound(const struct test_case *t, const float *want, const float *abs_want,
                           double *bound);
void int16_linear_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound);
void int16_conv_bound(const struct test_case *t, const float *want, const float *abs_want,
                      double *bound);

#endif
