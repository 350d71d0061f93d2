/* SPDX-License-Identifier: MIT
 * tests/kernel/case.h - one operation with everything it needs, made from a seed. */
#ifndef TESTS_KERNEL_CASE_H
#define TESTS_KERNEL_CASE_H
#include "backend/backend.h"

enum { CASE_BINDS = 8, CASE_DELTAS = 4 };

struct test_case {
    struct arena mem;
    struct graph g;
    int op; /* index of the operation under test */
    struct layer layer[2];
    struct layer *at[2];
    struct layer_table table;
    struct delta_set set;
    struct delta_list list[2];
    struct delta delta[CASE_DELTAS];
    float strengths[CASE_DELTAS];
    void *bind_data[CASE_BINDS]; /* NULL: the output */
    size_t bind_bytes[CASE_BINDS];
    int out_bind;
    struct gr_shape out_shape;
    double *weight_abs, *bias_abs; /* norms: sums of |parts| of weight and bias, by channel */
    char text[900];                /* seed and sizes */
};

/* A random case of `kind`. absolute: every number is replaced by its size and no activation is
 * applied, so that the result bounds what was added up; geglu becomes a linear layer. The status
 * of the graph tells whether it could be built. */
void case_build(struct test_case *t, enum gr_op_kind kind, uint64_t seed, bool absolute);
void case_free(struct test_case *t);
/* Gives the twin of a case gains where the case has magnitudes: 1 + |g - 1|, as others have. */
void case_settle_gains(const struct test_case *t, struct test_case *twin);

/* --- shapes worth timing --- */

struct bench_shape {
    enum gr_op_kind kind;
    const char *text;
    struct gr_shape x;
    int64_t out; /* channels; attention: key tokens */
    int k;       /* convolution: window side; attention: heads */
    int stride;
    enum dtype type;
    int lokr; /* 0: no adapter, else the factor */
    enum gr_route route;
};
extern const struct bench_shape bench_shapes[];
extern const int n_bench_shapes;

void bench_build(struct test_case *t, const struct bench_shape *b);
/* Floating point operations of a product, bytes moved by others; what bench_unit() says. */
double bench_work(const struct bench_shape *b);
const char *bench_unit(const struct bench_shape *b);

/* --- decode.c --- */

/* Prints how fast each storage type becomes f32. */
void bench_decode(void);

#endif
