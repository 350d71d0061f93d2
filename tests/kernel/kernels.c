/* SPDX-License-Identifier: MIT
 * kron-kernels: every operation of a backend against `ref`, over random shapes, storage types and
 * adapters, and its speed (--bench; there, decode is one of the names).
 *
 *   kron-kernels [--op NAME] [--seed N] [--cases N] [--bench [--match PART-OF-A-NAME]]
 *
 * A case is built from its seed alone, so that a failure is repeated by `--op NAME --seed N
 * --cases 1`. Each is built twice: as it is, and with the absolute value of every number; the
 * second, run by `ref`, gives for each output the sum of |a b| that its error is held against
 * (STYLE.md 3e.3). Levels of instructions are forced by KRON_CPU_MASK, as a user would.
 *
 * linear_int8 and geglu_int8 are these operations in whole numbers, held against a
 * plain model of that (int8.c) and, by the most that quantisation can do, against `ref`;
 * those of 16 bits are held against `ref` alone (int16.c). */
#include "int16.h"
#include "int8.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 4 };

static struct be_device *ref_device, *devices[MAX_DEVICES];
static const char *device_names[MAX_DEVICES];
static int n_devices;

static const double unit = 0x1p-24;

/* --- devices --- */

static void open_device(const char *mask, int threads)
{
    if (mask != NULL)
        setenv("KRON_CPU_MASK", mask, 1);
    else
        unsetenv("KRON_CPU_MASK");
    kron_status status = be_open("cpu", threads, &devices[n_devices]);
    if (status != KRON_OK) {
        fprintf(stderr, "kron-kernels: %s\n", kron_error_detail());
        exit(1);
    }
    device_names[n_devices++] = mask ? mask : "best";
}

static void open_devices(bool all)
{
    if (be_open("ref", 0, &ref_device) != KRON_OK) {
        fprintf(stderr, "kron-kernels: %s\n", kron_error_detail());
        exit(1);
    }
    if (all) {
        open_device("none", 1);
        open_device("avx2", 3);
        setenv("KRON_CPU_MASK", "avxvnni", 1);
        if (strcmp(int8_kernels_best()->name, "avxvnni") == 0)
            open_device("avxvnni", 2);
    }
    open_device(NULL, 0);
}

static void close_devices(void)
{
    be_close(&ref_device);
    for (int i = 0; i < n_devices; i++)
        be_close(&devices[i]);
}

/* --- running a case on a device --- */

enum { GUARD = 64 };
static const unsigned char guard_byte = 0xA5;

/* A binding with guards on both sides where the host can see it. */
struct bound {
    struct be_buf *whole, inner;
};

static kron_status bind_open(struct be_device *d, struct bound *b, size_t bytes)
{
    unsigned char guard[GUARD];

    memset(guard, guard_byte, sizeof guard);
    KRON_TRY(be_buf_alloc(d, bytes + 2 * GUARD, &b->whole));
    b->inner = *b->whole;
    b->inner.bytes = bytes;
    if (b->whole->host != NULL)
        b->inner.host = (char *)b->whole->host + GUARD;
    KRON_TRY(be_buf_write(b->whole, 0, guard, GUARD));
    return be_buf_write(b->whole, GUARD + bytes, guard, GUARD);
}

static bool guards_hold(struct bound *b)
{
    unsigned char got[2 * GUARD];

    if (b->whole->host == NULL)
        return true;
    be_buf_read(b->whole, 0, got, GUARD);
    be_buf_read(b->whole, GUARD + b->inner.bytes, got + GUARD, GUARD);
    for (int i = 0; i < 2 * GUARD; i++)
        if (got[i] != guard_byte)
            return false;
    return true;
}

/* Everything that a device holds for a case. */
struct running {
    struct be_weights *weights;
    struct be_plan *plan;
    struct bound bind[CASE_BINDS];
    struct be_buf *list[CASE_BINDS];
};

static kron_status start(struct running *r, struct be_device *d, struct test_case *t)
{
    memset(r, 0, sizeof *r);
    KRON_TRY(be_weights_create(d, &t->table, &t->set, &r->weights));
    KRON_TRY(be_plan_create(d, &t->g, r->weights, t->strengths, &r->plan));
    for (int i = 0; i < t->g.n_binds; i++) {
        KRON_TRY(bind_open(d, &r->bind[i], t->bind_bytes[i]));
        r->list[i] = &r->bind[i].inner;
        if (t->bind_data[i] != NULL)
            KRON_TRY(be_buf_write(r->list[i], 0, t->bind_data[i], t->bind_bytes[i]));
    }
    return KRON_OK;
}

static void stop(struct running *r, struct be_device *d, struct test_case *t)
{
    be_plan_free(d, &r->plan);
    be_weights_free(d, &r->weights);
    for (int i = 0; i < t->g.n_binds; i++)
        be_buf_free(&r->bind[i].whole);
}

/* Runs with an output full of NaN. */
static kron_status run_once(struct running *r, struct be_device *d, struct test_case *t, float *out)
{
    size_t n = t->bind_bytes[t->out_bind];

    for (size_t i = 0; i < n / 4; i++)
        out[i] = NAN;
    KRON_TRY(be_buf_write(r->list[t->out_bind], 0, out, n));
    KRON_TRY(be_plan_run(d, r->plan, r->list, t->strengths));
    return be_buf_read(r->list[t->out_bind], 0, out, n);
}

/* Two runs: the second finds scratch as the first left it, and must give the same bits. */
static bool run_case(struct be_device *d, struct test_case *t, float *out, const char **why)
{
    struct running r = {0};
    size_t n = t->bind_bytes[t->out_bind];
    void *again = NULL;

    kron_status status = mem_alloc(&again, n, "a test");
    if (status == KRON_OK)
        status = start(&r, d, t);
    if (status == KRON_OK)
        status = run_once(&r, d, t, again);
    if (status == KRON_OK)
        status = run_once(&r, d, t, out);
    *why = status != KRON_OK ? kron_error_detail() : NULL;
    if (status == KRON_OK && memcmp(again, out, n) != 0)
        *why = "a second run differs from the first";
    for (int i = 0; status == KRON_OK && i < t->g.n_binds; i++)
        if (!guards_hold(&r.bind[i]))
            *why = "guard bytes of a buffer were written";
    stop(&r, d, t);
    mem_free(again);
    return *why == NULL;
}

/* --- bounds: the largest error allowed for each output --- */

typedef void (*bound_fn)(const struct test_case *t, const float *want, const float *abs_want,
                         double *bound);

/* Products: roundings of K terms, of the factors of the deltas, of the sum's own parts. */
static double product_terms(const struct test_case *t)
{
    double terms = sqrt((double)layer_k(&t->layer[0])) + 2;

    for (int i = 0; i < t->list[0].n; i++) {
        const struct delta *d = &t->list[0].at[i];
        terms += sqrt((double)d->rank) + sqrt((double)d->uq) + 4;
        terms += d->stages * (sqrt((double)d->block) + 3);
        if (d->magnitude != NULL) /* a norm's sum, its root and the division */
            terms += sqrt((double)(d->axis == GAIN_OUT ? layer_k(&t->layer[0]) : d->rows)) + 4;
    }
    return terms;
}

static void product_bound(const struct test_case *t, const float *want, const float *abs_want,
                          double *bound)
{
    double terms = product_terms(t);
    int64_t n = gr_elements(t->out_shape);

    /* 1.13: the steepest slope of any activation; 4: its own rounding. */
    for (int64_t i = 0; i < n; i++)
        bound[i] = unit * (1.13 * terms * (double)abs_want[i] + 4 * fabs((double)want[i]));
}

/* abs_want holds |value| and |gate| sums side by side (case.c builds it as a linear layer). */
static void geglu_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound)
{
    double terms = product_terms(t);
    int64_t half = t->out_shape.c, n = gr_elements(t->out_shape);

    (void)want;
    for (int64_t i = 0; i < n; i++) {
        const float *row = abs_want + i / half * 2 * half + i % half;
        bound[i] = unit * (2.2 * terms + 6) * (double)row[0] * (double)row[half];
    }
}

/* The twin of absolute values is a plain sum there: nothing may be rounded twice. */
static void exact_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound)
{
    (void)want, (void)abs_want;
    memset(bound, 0, (size_t)gr_elements(t->out_shape) * sizeof *bound);
}

static void act_bound(const struct test_case *t, const float *want, const float *abs_want,
                      double *bound)
{
    const float *x = t->bind_data[0];

    (void)want, (void)abs_want;
    for (int64_t i = 0; i < gr_elements(t->out_shape); i++)
        bound[i] = unit * 6 * fabs((double)x[i]);
}

static void timestep_bound(const struct test_case *t, const float *want, const float *abs_want,
                           double *bound)
{
    (void)want, (void)abs_want;
    for (int64_t i = 0; i < gr_elements(t->out_shape); i++)
        bound[i] = unit * 2;
}

/* y = (x - mean) inv w + b: the mean's rounding counts against the size of x, all else against
 * the parts of y. The weight's own rounding (deltas) is in its absolute sum, bound by terms. */
static void norm_run_bound(const struct test_case *t, const float *x, double *bound, int64_t count,
                           int64_t run, int64_t stride, int64_t channel)
{
    double mean = 0, size = 0, var = 0, total = (double)(count * run);
    double terms = 8 + product_terms(t);

    for (int64_t i = 0; i < count * run; i++) {
        double v = (double)x[i / run * stride + i % run];
        mean += v / total;
        size += fabs(v) / total;
    }
    for (int64_t i = 0; i < count * run; i++) {
        double v = (double)x[i / run * stride + i % run] - mean;
        var += v * v / total;
    }
    double inv = 1 / sqrt(var + (double)t->g.ops[t->op].eps);
    for (int64_t i = 0; i < count * run; i++) {
        int64_t at = i / run * stride + i % run;
        double w = t->weight_abs[channel + i % run], b = t->bias_abs[channel + i % run];
        double v = (double)x[at];
        bound[at] = 1.13 * unit * (inv * w * (4 * fabs(v) + 8 * size + terms * fabs(v - mean)) +
                                   4 * b);
    }
}

static void norm_bound(const struct test_case *t, const float *want, const float *abs_want,
                       double *bound)
{
    const struct gr_op *op = &t->g.ops[t->op];
    const float *x = t->bind_data[0];
    struct gr_shape s = t->out_shape;
    int64_t groups = op->kind == OP_GROUP_NORM ? op->groups : 1, run = s.c / groups;
    int64_t pixels = s.h * s.w;

    (void)want, (void)abs_want;
    if (op->kind == OP_LAYER_NORM)
        for (int64_t r = 0; r < s.n * pixels; r++)
            norm_run_bound(t, x + r * s.c, bound + r * s.c, 1, s.c, s.c, 0);
    else
        for (int64_t i = 0; i < s.n * groups; i++) {
            int64_t at = i / groups * pixels * s.c + i % groups * run;
            norm_run_bound(t, x + at, bound + at, pixels, run, s.c, i % groups * run);
        }
}

/* Means are sums of few f32 terms joined in double; deviations are of numbers whose distance from
 * the mean has the rounding of both. */
static void stats_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound)
{
    const struct gr_op *op = &t->g.ops[t->op];
    struct gr_shape s = gr_shape_of(&t->g, op->in[0]);
    int64_t run = s.c / op->groups, pixels = s.h * s.w;
    const float *x = t->bind_data[0];

    (void)abs_want;
    for (int64_t i = 0; i < s.n * s.c; i++) {
        int64_t n = i / s.c, k = i % s.c, first = n * pixels * s.c + k / run * run;
        int64_t at = 2 * n * s.c + k;
        double size = 0, inv = (double)want[at + s.c];
        for (int64_t p = 0; p < pixels * run; p++)
            size += fabs((double)x[first + p / run * s.c + p % run]);
        size /= (double)(pixels * run);
        bound[at] = unit * 8 * size;
        bound[at + s.c] = unit * inv * (8 + 4 * size * inv);
    }
}

static void apply_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound)
{
    struct gr_shape s = t->out_shape;
    double terms = 8 + product_terms(t);
    const float *x = t->bind_data[0], *all = t->bind_data[1];

    (void)want, (void)abs_want;
    for (int64_t i = 0; i < gr_elements(s); i++) {
        int64_t k = i % s.c;
        const float *stats = all + i / (s.h * s.w * s.c) * 2 * s.c;
        double v = fabs((double)x[i]) + fabs((double)stats[k]);
        bound[i] = 1.13 * unit * (fabs((double)stats[s.c + k]) * t->weight_abs[k] * terms * v +
                                  4 * t->bias_abs[k]);
    }
}

/* An error e in a score shifts each probability by at most 2 e of itself; the sum over keys adds
 * as a product of that length. */
static void attention_bound(const struct test_case *t, const float *want, const float *abs_want,
                            double *bound)
{
    const struct gr_op *op = &t->g.ops[t->op];
    struct gr_shape s = t->out_shape, ks = gr_shape_of(&t->g, op->in[1]);
    int64_t tq = s.h * s.w, tk = ks.h * ks.w, d = s.c / op->heads;
    const float *q = t->bind_data[0], *k = t->bind_data[1], *v = t->bind_data[2];

    (void)want, (void)abs_want;
    for (int64_t i = 0; i < s.n * tq * op->heads; i++) {
        int64_t h = i % op->heads, row = i / op->heads, n = row / tq;
        const float *qi = q + row * s.c + h * d;
        double score = 0, most = 0;
        for (int64_t j = 0; j < tk; j++) {
            const float *kj = k + (n * tk + j) * s.c + h * d, *vj = v + (kj - k);
            double sum = 0;
            for (int64_t e = 0; e < d; e++) {
                sum += fabs((double)qi[e] * (double)kj[e]);
                most = fmax(most, fabs((double)vj[e]));
            }
            score = fmax(score, sum / sqrt((double)d));
        }
        double e = (sqrt((double)d) + 6) * score;
        for (int64_t j = 0; j < d; j++)
            bound[row * s.c + h * d + j] = unit * (2 * e + sqrt((double)tk) + 8) * most;
    }
}

static const bound_fn bounds[OP_COUNT] = {
    [OP_LINEAR] = product_bound,   [OP_GEGLU] = geglu_bound,     [OP_CONV2D] = product_bound,
    [OP_NORM_STATS] = stats_bound, [OP_NORM_APPLY] = apply_bound,
    [OP_GROUP_NORM] = norm_bound,  [OP_LAYER_NORM] = norm_bound, [OP_ATTENTION] = attention_bound,
    [OP_ACT] = act_bound,          [OP_ADD] = exact_bound,       [OP_CONCAT] = exact_bound,
    [OP_UPSAMPLE] = exact_bound,   [OP_EMBED] = exact_bound,     [OP_TIMESTEP] = timestep_bound,
};

/* --- checking --- */

struct tally {
    long passed, failed;
    double worst; /* largest error as a share of its bound */
};

static bool compare(const struct test_case *t, const float *got, const float *want,
                    const double *bound, struct tally *tally, const char *device)
{
    for (int64_t i = 0; i < gr_elements(t->out_shape); i++) {
        double error = fabs((double)got[i] - (double)want[i]);
        double ratio = error == 0 ? 0 : error / (bound[i] + 1e-37);
        if (ratio > tally->worst)
            tally->worst = ratio;
        if (ratio <= 1)
            continue;
        printf("FAIL %s: element %lld is %.9g, not %.9g; error %.3g, bound %.3g\n  %s\n", device,
               (long long)i, (double)got[i], (double)want[i], error, bound[i], t->text);
        return false;
    }
    return true;
}

static void check_devices(struct test_case *t, const float *want, const double *bound,
                          struct tally *tally)
{
    void *got;

    if (mem_alloc(&got, t->bind_bytes[t->out_bind], "a test") != KRON_OK)
        return;
    for (int d = 0; d < n_devices; d++) {
        const char *why;
        bool ok = run_case(devices[d], t, got, &why);
        if (!ok)
            printf("FAIL %s: %s\n  %s\n", device_names[d], why, t->text);
        ok = ok && compare(t, got, want, bound, tally, device_names[d]);
        *(ok ? &tally->passed : &tally->failed) += 1;
    }
    mem_free(got);
}

/* whole: in whole numbers of 16 bits, where the operation has such a way. */
static void one_case(enum gr_op_kind kind, uint64_t seed, bound_fn bound_of, bool whole,
                     struct tally *tally)
{
    struct test_case t, twin;
    void *want = NULL, *abs_want = NULL, *bound = NULL;
    const char *why = NULL;

    case_build(&t, kind, seed, false);
    case_build(&twin, kind, seed, true);
    case_settle_gains(&t, &twin);
    size_t n = t.bind_bytes[t.out_bind];
    kron_status status = t.g.status ? t.g.status : twin.g.status;
    if (status == KRON_OK && whole && !int16_case(&t)) {
        case_free(&t);
        case_free(&twin);
        return;
    }
    if (status == KRON_OK)
        status = mem_alloc(&want, n, "a test");
    if (status == KRON_OK)
        status = mem_alloc(&abs_want, twin.bind_bytes[twin.out_bind], "a test");
    if (status == KRON_OK)
        status = mem_alloc(&bound, n * 2, "a test");
    if (status == KRON_OK && run_case(ref_device, &t, want, &why) &&
        run_case(ref_device, &twin, abs_want, &why)) {
        bound_of(&t, want, abs_want, bound);
        check_devices(&t, want, bound, tally);
    } else {
        printf("FAIL ref: %s\n  %s\n", why ? why : kron_error_detail(), t.text);
        tally->failed++;
    }
    mem_free(want);
    mem_free(abs_want);
    mem_free(bound);
    case_free(&t);
    case_free(&twin);
}

/* --- whole numbers --- */

static bool compare_int8(const struct test_case *t, const struct int8_bounds *b, const float *got,
                         const float *want, struct tally *tally, const char *device)
{
    for (int64_t i = 0; i < gr_elements(t->out_shape); i++) {
        double error = fabs((double)got[i] - b->model[i]), far = fabs((double)(got[i] - want[i]));
        double ratio = b->exact ? error / (b->near[i] + 1e-37) : 0;
        if (ratio > tally->worst)
            tally->worst = ratio;
        if (ratio <= 1 && far <= b->far[i])
            continue;
        printf("FAIL %s: element %lld is %.9g; the model %s %.9g, bound %.3g; ref %.9g, bound "
               "%.3g\n  %s\n", device, (long long)i, (double)got[i], b->exact ? "says" : "(no)",
               b->model[i], b->near[i], (double)want[i], b->far[i], t->text);
        return false;
    }
    return true;
}

static void check_int8(struct test_case *t, const struct int8_bounds *b, const float *want, int d,
                       struct tally *tally)
{
    const char *why = NULL;
    void *got = NULL;

    bool ok = mem_alloc(&got, t->bind_bytes[t->out_bind], "a test") == KRON_OK &&
              run_case(devices[d], t, got, &why);
    if (!ok)
        printf("FAIL %s: %s\n  %s\n", device_names[d], why ? why : kron_error_detail(), t->text);
    ok = ok && compare_int8(t, b, got, want, tally, device_names[d]);
    *(ok ? &tally->passed : &tally->failed) += 1;
    mem_free(got);
}

/* One model serves all kernels of as many bits. */
static void check_int8_devices(struct test_case *t, const struct test_case *twin,
                               const float *want, const float *abs_want, struct tally *tally)
{
    struct int8_bounds b = {0};
    int bits = 0;

    for (int d = 0; d < n_devices; d++) {
        const struct int8_kernels *k = ((const struct cpu_device *)devices[d])->int8;
        if (k->x_most != bits) {
            int8_bounds_free(&b);
            if (int8_bounds_make(&b, t, twin, k, abs_want, product_terms(t)) != KRON_OK)
                return;
        }
        bits = k->x_most;
        check_int8(t, &b, want, d, tally);
    }
    int8_bounds_free(&b);
}

static void one_int8_case(enum gr_op_kind kind, uint64_t seed, struct tally *tally)
{
    struct test_case t, twin;
    void *want = NULL, *abs_want = NULL;
    const char *why;

    case_build(&t, kind, seed, false);
    case_build(&twin, kind, seed, true);
    case_settle_gains(&t, &twin);
    if (int8_case(&t, &twin, seed) &&
        mem_alloc(&want, t.bind_bytes[t.out_bind], "a test") == KRON_OK &&
        mem_alloc(&abs_want, twin.bind_bytes[twin.out_bind], "a test") == KRON_OK &&
        run_case(ref_device, &t, want, &why) && run_case(ref_device, &twin, abs_want, &why))
        check_int8_devices(&t, &twin, want, abs_want, tally);
    mem_free(want);
    mem_free(abs_want);
    case_free(&t);
    case_free(&twin);
}

static const struct int8_test {
    enum gr_op_kind kind;
    const char *name;
    int cases;
    bound_fn bound; /* of 16 bits against ref; NULL: 8 bits, against the model too */
} int8_tests[] = {{OP_LINEAR, "linear_int8", 60, NULL},
                  {OP_GEGLU, "geglu_int8", 50, NULL},
                  {OP_LINEAR, "linear_int16", 200, int16_linear_bound},
                  {OP_ATTENTION, "attention_int16", 200, int16_attention_bound},
                  {OP_CONV2D, "conv2d_int16", 300, int16_conv_bound}};

static void check_int8_op(const struct int8_test *test, uint64_t seed, int cases,
                          struct tally *all)
{
    double start_at = clock_seconds();
    const char *wrong = test->bound ? NULL : int8_extremes();
    struct tally t = {0};

    if (wrong != NULL) {
        printf("FAIL %s kernels: sums of the largest numbers are wrong\n", wrong);
        t.failed++;
    }
    for (int i = 0; i < (cases ? cases : test->cases); i++)
        if (test->bound != NULL)
            one_case(test->kind, seed + (uint64_t)i, test->bound, true, &t);
        else
            one_int8_case(test->kind, seed + (uint64_t)i, &t);
    printf("%-12s %5ld passed, %ld failed, worst error %.2f of its bound, %.1f s\n", test->name,
           t.passed, t.failed, t.worst, clock_seconds() - start_at);
    all->passed += t.passed;
    all->failed += t.failed;
}

/* Cases of each operation in a default run: what a minute on two cores allows. */
static const int default_cases[OP_COUNT] = {
    [OP_LINEAR] = 350, [OP_GEGLU] = 200,     [OP_CONV2D] = 300, [OP_GROUP_NORM] = 150,
    [OP_NORM_STATS] = 100, [OP_NORM_APPLY] = 100,
    [OP_LAYER_NORM] = 200, [OP_ATTENTION] = 200, [OP_ACT] = 100,    [OP_ADD] = 50,
    [OP_CONCAT] = 50,  [OP_UPSAMPLE] = 50,   [OP_EMBED] = 50,   [OP_TIMESTEP] = 30,
};

static bool run_checks(const char *only, uint64_t seed, int cases)
{
    struct tally all = {0};

    open_devices(true);
    for (int kind = 0; kind < OP_COUNT; kind++) {
        struct tally t = {0};
        if (only != NULL && strcmp(only, gr_op_name(kind)) != 0)
            continue;
        if (bounds[kind] == NULL || default_cases[kind] == 0) {
            printf("FAIL %s: the operation has no test\n", gr_op_name(kind));
            t.failed++;
        }
        double start_at = clock_seconds();
        for (int i = 0; bounds[kind] != NULL && i < (cases ? cases : default_cases[kind]); i++)
            one_case(kind, seed + (uint64_t)i, bounds[kind], false, &t);
        printf("%-12s %5ld passed, %ld failed, worst error %.2f of its bound, %.1f s\n",
               gr_op_name(kind), t.passed, t.failed, t.worst, clock_seconds() - start_at);
        all.passed += t.passed;
        all.failed += t.failed;
    }
    for (size_t i = 0; i < sizeof int8_tests / sizeof *int8_tests; i++)
        if (only == NULL || strcmp(only, int8_tests[i].name) == 0)
            check_int8_op(&int8_tests[i], seed, cases, &all);
    close_devices();
    printf("%ld passed, %ld failed\n", all.passed, all.failed);
    return all.failed == 0 && all.passed > 0;
}

/* --- speed --- */

/* Seconds of a run: the least of some, after one that warms up. */
static double time_case(struct be_device *d, struct test_case *t, double at_least, size_t *bytes)
{
    struct running r = {0};
    double best = INFINITY, total = 0;
    void *out = NULL;

    kron_status status = mem_alloc(&out, t->bind_bytes[t->out_bind], "a benchmark");
    if (status == KRON_OK)
        status = start(&r, d, t);
    if (status == KRON_OK)
        status = run_once(&r, d, t, out);
    for (int i = 0; status == KRON_OK && (i < 3 || total < at_least) && total < 10; i++) {
        double t0 = clock_seconds();
        status = be_plan_run(d, r.plan, r.list, t->strengths);
        double seconds = clock_seconds() - t0;
        best = seconds < best ? seconds : best;
        total += seconds;
    }
    if (status != KRON_OK)
        fprintf(stderr, "kron-kernels: %s\n", kron_error_detail());
    *bytes = be_plan_bytes(d, r.plan) - t->g.arena_bytes;
    stop(&r, d, t);
    mem_free(out);
    return best;
}

static void bench_one(const struct bench_shape *b)
{
    struct test_case t;
    size_t scratch;

    bench_build(&t, b);
    double seconds = time_case(devices[0], &t, 0.5, &scratch);
    case_free(&t);
    printf("%-44s %9.3f ms %8.1f %s  scratch %5.1f MB\n", b->text, seconds * 1e3,
           bench_work(b) / seconds * 1e-9, bench_unit(b), (double)scratch * 1e-6);
    fflush(stdout);
}

/* Rate of a shape in f32 or whole numbers. */
static double rate_of(const struct bench_shape *b, enum gr_compute compute, bool keep)
{
    struct test_case t;
    size_t ignored;

    bench_build(&t, b);
    t.g.ops[t.op].compute = compute;
    t.g.ops[t.op].keep = keep;
    double seconds = time_case(devices[0], &t, 0.3, &ignored);
    case_free(&t);
    return bench_work(b) / seconds * 1e-9;
}

/* One thing in two or three ways, in turn, so that a busy machine slows all alike: linear layers
 * may keep their weight as whole numbers. */
static void bench_whole(const struct bench_shape *b, enum gr_compute compute)
{
    bool rows = b->kind == OP_LINEAR || b->kind == OP_GEGLU;
    double f32 = 0, kept = 0, packed = 0, v;

    for (int i = 0; i < 2; i++) {
        f32 = (v = rate_of(b, COMPUTE_F32, false)) > f32 ? v : f32;
        packed = (v = rate_of(b, compute, false)) > packed ? v : packed;
        kept = rows && (v = rate_of(b, compute, true)) > kept ? v : kept;
    }
    printf("%-44s f32 %7.1f GF/s  whole %7.1f GOP/s (%.2f x)", b->text, f32, packed,
           packed / f32);
    if (rows)
        printf(", weight kept %7.1f (%.2f x)", kept, kept / f32);
    printf("\n");
    fflush(stdout);
}

static bool has_way(const struct bench_shape *b, bool sixteen)
{
    struct test_case t;

    bench_build(&t, b);
    bool yes = !sixteen || int16_case(&t);
    case_free(&t);
    return yes;
}

static void run_whole_bench(const char *only, const char *match)
{
    for (size_t i = 0; i < sizeof int8_tests / sizeof *int8_tests; i++) {
        bool sixteen = int8_tests[i].bound != NULL;
        if (only != NULL && strcmp(only, int8_tests[i].name) != 0)
            continue;
        for (int j = 0; j < n_bench_shapes; j++)
            if (bench_shapes[j].kind == int8_tests[i].kind &&
                has_way(&bench_shapes[j], sixteen) &&
                (match == NULL || strstr(bench_shapes[j].text, match) != NULL))
                bench_whole(&bench_shapes[j], sixteen ? COMPUTE_INT16 : COMPUTE_INT8);
    }
}

static void run_bench(const char *only, const char *match)
{
    if (only == NULL || strcmp(only, "decode") == 0)
        bench_decode();
    open_devices(false);
    for (int i = 0; i < n_bench_shapes; i++)
        if ((only == NULL || strcmp(only, gr_op_name(bench_shapes[i].kind)) == 0) &&
            (match == NULL || strstr(bench_shapes[i].text, match) != NULL))
            bench_one(&bench_shapes[i]);
    run_whole_bench(only, match);
    close_devices();
}

int main(int argc, char **argv)
{
    const char *only = NULL, *match = NULL;
    int64_t seed = 1, cases = 0;
    bool bench = false;

    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--bench") == 0) {
            bench = true;
        } else if (strcmp(argv[i], "--op") == 0 && more) {
            only = argv[++i];
        } else if (strcmp(argv[i], "--match") == 0 && more) {
            match = argv[++i];
        } else if (strcmp(argv[i], "--seed") == 0 && more && str_to_i64(argv[i + 1], &seed)) {
            i++;
        } else if (strcmp(argv[i], "--cases") == 0 && more && str_to_i64(argv[i + 1], &cases)) {
            i++;
        } else {
            fprintf(stderr, "usage: kron-kernels [--op NAME] [--seed N] [--cases N] "
                            "[--bench [--match TEXT]]\n");
            return 2;
        }
    }
    if (!bench)
        return run_checks(only, (uint64_t)seed, (int)cases) ? 0 : 1;
    run_bench(only, match);
    return 0;
}
