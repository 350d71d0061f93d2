/* SPDX-License-Identifier: MIT
 * The bounds of operations in whole numbers of 16 bits (backend/cpu/linear16_tmpl.h and others). */
#include "int16.h"
#include "backend/cpu/int8.h"
#include <math.h>
#include <string.h>

static const double unit = 0x1p-24;

/* What turns the product mixes errors: those cases are f32's. */
static bool turns(const struct test_case *t)
{
    for (int i = 0; i < t->list[0].n; i++)
        if (t->list[0].at[i].kind == DELTA_LEFT || t->list[0].at[i].kind == DELTA_RIGHT)
            return true;
    return false;
}

static bool conv_suits(const struct test_case *t)
{
    const struct layer *l = &t->layer[0];

    return l->kh == 3 && l->kw == 3 && l->in % 2 == 0 && t->g.ops[t->op].stride == 1;
}

bool int16_case(struct test_case *t)
{
    char text[sizeof t->text];
    struct gr_op *op = &t->g.ops[t->op];
    const char *name = gr_op_name(op->kind);

    if (op->kind == OP_ATTENTION && (op->causal || t->out_shape.c / op->heads > ATTENTION16_DEPTH))
        return false;
    if (op->kind == OP_CONV2D && !conv_suits(t))
        return false;
    if (turns(t))
        return false;
    op->compute = COMPUTE_INT16;
    op->keep = op->kind == OP_LINEAR && t->g.ops[t->op].out % 2 == 0;
    memcpy(text, t->text, sizeof text);
    snprintf(t->text, sizeof t->text, "--op %s_int16%.*s", name, (int)sizeof text - 40,
             text + strlen("--op ") + strlen(name));
    return true;
}

/* --- attention --- */

struct head {
    const float *q, *k, *v; /* of one query, of all keys */
    int64_t d, n, ld;
    double *score, *weight;
};

static double largest(const float *x, int64_t n)
{
    double most = 0;

    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

/* Scores, and the largest error of one: half a step of either side in each channel. */
static double score_error(const struct head *h)
{
    double steps = floor(sqrt(2147483520.0 / (double)((h->d + 1) / 2 * 2))), worst = 0;
    double root = sqrt((double)h->d), half_q = largest(h->q, h->d) / fmin(steps, 32767) / 2;

    for (int64_t j = 0; j < h->n; j++) {
        const float *k = h->k + j * h->ld;
        double half_k = largest(k, h->d) / fmin(steps, 32767) / 2, error = 0, size = 0;
        h->score[j] = 0;
        for (int64_t e = 0; e < h->d; e++) {
            double q = fabs((double)h->q[e]), a = fabs((double)k[e]);
            h->score[j] += (double)h->q[e] * (double)k[e] / root;
            error += q * half_k + a * half_q + half_q * half_k;
            size += q * a;
        }
        worst = fmax(worst, (error * 1.001 + 16 * unit * size) / root);
    }
    return worst;
}

/* exp2_near() errs by 1e-4 of a probability; rounding by half of a step of a block's largest one,
 * which the sum that divides may make twice as bad; a value by half a step of its block. */
static double block_error(const struct head *h, int64_t first, int64_t end)
{
    double most = 0;

    for (int64_t j = first; j < end; j++)
        most = fmax(most, h->weight[j]);
    return (double)(end - first) * most / 4095;
}

static void head_bound(const struct head *h, double *bound)
{
    double e = score_error(h), top = -INFINITY, sum = 0, rounding = 0;

    for (int64_t j = 0; j < h->n; j++)
        top = fmax(top, h->score[j]);
    for (int64_t j = 0; j < h->n; j++)
        sum += h->weight[j] = exp(h->score[j] - top);
    for (int64_t j = 0; j < h->n; j++)
        h->weight[j] /= sum;
    for (int64_t j = 0; j < h->n; j += ATTENTION16_KEYS)
        rounding += block_error(h, j, j + ATTENTION16_KEYS < h->n ? j + ATTENTION16_KEYS : h->n);
    for (int64_t c = 0; c < h->d; c++) {
        double most = 0;
        for (int64_t j = 0; j < h->n; j++)
            most = fmax(most, fabs((double)h->v[j * h->ld + c]));
        bound[c] = most * (expm1(2 * e) + rounding + 2e-4 + 0.5 / 2047 +
                           unit * (sqrt((double)h->n) + 16));
    }
}

void int16_attention_bound(const struct test_case *t, const float *want, const float *abs_want,
                           double *bound)
{
    const struct gr_op *op = &t->g.ops[t->op];
    struct gr_shape s = t->out_shape, ks = gr_shape_of(&t->g, op->in[1]);
    int64_t tq = s.h * s.w, tk = ks.h * ks.w, d = s.c / op->heads;
    void *mem = NULL;

    (void)want, (void)abs_want;
    if (mem_alloc_n(&mem, 2 * (size_t)tk, sizeof(double), "a test") != KRON_OK)
        return;
    for (int64_t i = 0; i < s.n * tq * op->heads; i++) {
        int64_t head = i % op->heads, row = i / op->heads, at = row / tq * tk * s.c + head * d;
        struct head h = {(const float *)t->bind_data[0] + row * s.c + head * d,
                         (const float *)t->bind_data[1] + at, (const float *)t->bind_data[2] + at,
                         d, tk, s.c, mem, (double *)mem + tk};
        head_bound(&h, bound + row * s.c + head * d);
    }
    mem_free(mem);
}

/* --- layers --- */

/* Sizes of the weight's parts, whichever of them are in its rows. */
static void weight_sizes(const struct test_case *t, double *size, double *one)
{
    const struct layer *l = &t->layer[0];
    int64_t n = l->out * layer_k(l);
    struct delta_list none = {0}, list = t->list[0];

    layer_weight_ref(l, none, t->strengths, size);
    for (int64_t e = 0; e < n; e++)
        size[e] = fabs(size[e]);
    for (int i = 0; i < list.n; i++) {
        layer_weight_ref(l, (struct delta_list){.n = 1, .at = &list.at[i]}, t->strengths, one);
        for (int64_t e = 0; e < n; e++)
            size[e] += fabs(one[e]);
    }
}

/* Half a step of a weight against the activations, of an activation against the weights, of both:
 * steps are the 4095th part of the largest number of a group. */
static double row_error(const float *x, const double *w, int64_t n)
{
    double size_x = 0, size_w = 0, most_x = 0, most_w = 0;

    for (int64_t i = 0; i < n; i++) {
        size_x += fabs((double)x[i]);
        size_w += w[i];
        most_x = fmax(most_x, fabs((double)x[i]));
        most_w = fmax(most_w, w[i]);
    }
    double half_x = most_x / 4095 / 2, half_w = most_w / 4095 / 2;
    return 1.001 * (size_x * half_w + size_w * half_x + (double)n * half_x * half_w);
}

void int16_linear_bound(const struct test_case *t, const float *want, const float *abs_want,
                        double *bound)
{
    const struct layer *l = &t->layer[0];
    int64_t in = l->in, rows = (int64_t)(t->bind_bytes[0] / 4) / in;
    const float *x = t->bind_data[0];
    void *mem = NULL;

    if (mem_alloc_n(&mem, (size_t)(2 * l->out * in), sizeof(double), "a test") != KRON_OK)
        return;
    double *w = mem;
    weight_sizes(t, w, w + l->out * in);
    for (int64_t i = 0; i < rows * l->out; i++) {
        int64_t r = i / l->out, o = i % l->out;
        double error = unit * 128 * (double)abs_want[i];
        for (int64_t g = 0; g < in; g += INT8_GROUP)
            error += row_error(x + r * in + g, w + o * in + g, in - g < INT8_GROUP ? in - g
                                                                                   : INT8_GROUP);
        bound[i] = 1.13 * error + 4 * unit * fabs((double)want[i]);
    }
    mem_free(mem);
}

/* The largest root of a sum of squares of x[i * step], i < n, of which there are `many`, `next`
 * apart. */
static double largest_root(const double *x, int64_t n, int64_t step, int64_t many, int64_t next)
{
    double most = 0;

    for (int64_t m = 0; m < many; m++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += x[m * next + i * step] * x[m * next + i * step];
        most = fmax(most, sqrt(sum));
    }
    return most;
}

/* Each of the 36 sums of a group of inputs errs by the rounding of both sides: a uniform half step
 * of one against the size of the other, at most 32700 steps. A' makes at most 177 times as much of
 * 36 independent errors, by the root of its sums of squares. Six times that, for each group. */
void int16_conv_bound(const struct test_case *t, const float *want, const float *abs_want,
                      double *bound)
{
    const struct layer *l = &t->layer[0];
    int64_t k = layer_k(l), in = l->in, n = gr_elements(t->out_shape);
    int64_t pixels = (int64_t)(t->bind_bytes[0] / 4) / in;
    double step = 6 * 177 * sqrt(2.0 / 12) / 32700;
    void *mem = NULL;

    if (mem_alloc_n(&mem, (size_t)(2 * l->out * k + pixels * in), sizeof(double), "a test") !=
        KRON_OK)
        return;
    double *w = mem, *x = w + 2 * l->out * k;
    weight_sizes(t, w, w + l->out * k);
    for (int64_t i = 0; i < pixels * in; i++)
        x[i] = (double)((const float *)t->bind_data[0])[i];
    for (int64_t i = 0; i < n; i++)
        bound[i] = unit * (128 * (double)abs_want[i] + 4 * fabs((double)want[i]));
    for (int64_t g = 0; g < in; g += WINO_GROUP) {
        int64_t some = in - g < WINO_GROUP ? in - g : WINO_GROUP;
        double px = largest_root(x + g, some, 1, pixels, in);
        for (int64_t o = 0; o < l->out; o++) {
            double taps = largest_root(w + o * k + 9 * g, some, 9, 9, 1);
            for (int64_t i = o; i < n; i += l->out)
                bound[i] += step * px * taps;
        }
    }
    mem_free(mem);
}
