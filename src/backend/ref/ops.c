/* SPDX-License-Identifier: MIT
 * The definition of each operation. Shape letters: n samples, h w pixels, c channels, t tokens. */
#include "backend/ref/ref.h"
#include <math.h>

static double act(enum gr_act a, double x)
{
    switch (a) {
    case ACT_SILU:
        return x / (1 + exp(-x));
    case ACT_GELU:
        return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
    case ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case ACT_NONE:
        break;
    }
    return x;
}

/* Row o of W x for the channels of one pixel. */
static double row_times(const struct ref_call *c, const double *w, int64_t o, const float *x)
{
    int64_t k = c->op->layer->in;
    double sum = 0;

    for (int64_t i = 0; i < k; i++)
        sum += w[o * k + i] * x[i];
    return sum;
}

/* Row o of W x + b at row r, what is confined to regions included. */
static double dot(const struct ref_call *c, int64_t o, int64_t r)
{
    const float *x = c->x[0] + r * c->xs.c;
    double sum = row_times(c, c->w, o, x) + c->b[o];

    for (int i = 0; i < c->n_regions; i++)
        sum += (double)c->regions[i].mask[r % (c->ys.h * c->ys.w)] *
               row_times(c, c->regions[i].w, o, x);
    return sum;
}

static void linear(const struct ref_call *c)
{
    int64_t rows = c->ys.n * c->ys.h * c->ys.w, out = c->ys.c;

    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++) {
            double v = act(c->op->act, dot(c, o, r));
            c->y[r * out + o] = (float)(v + (c->x[1] ? c->x[1][r * out + o] : 0));
        }
}

static void geglu(const struct ref_call *c)
{
    int64_t rows = c->ys.n * c->ys.h * c->ys.w, out = c->ys.c;

    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++)
            c->y[r * out + o] = (float)(dot(c, o, r) * act(ACT_GELU, dot(c, out + o, r)));
}

/* Output pixel (i, j) of sample n, channel o, before bias. */
static double window(const struct ref_call *c, const double *weight, int64_t n, int64_t i,
                     int64_t j, int64_t o)
{
    const struct layer *l = c->op->layer;
    double sum = 0;

    for (int64_t p = 0; p < l->in; p++)
        for (int u = 0; u < l->kh; u++)
            for (int v = 0; v < l->kw; v++) {
                int64_t h = i * c->op->stride + u - c->op->pad_top;
                int64_t w = j * c->op->stride + v - c->op->pad_left;
                if (h < 0 || h >= c->xs.h || w < 0 || w >= c->xs.w)
                    continue;
                sum += weight[((o * l->in + p) * l->kh + u) * l->kw + v] *
                       c->x[0][((n * c->xs.h + h) * c->xs.w + w) * c->xs.c + p];
            }
    return sum;
}

static void conv2d(const struct ref_call *c)
{
    float *y = c->y;
    const float *res = c->x[1];

    for (int64_t n = 0; n < c->ys.n; n++)
        for (int64_t i = 0; i < c->ys.h; i++)
            for (int64_t j = 0; j < c->ys.w; j++)
                for (int64_t o = 0; o < c->ys.c; o++) {
                    double v = window(c, c->w, n, i, j, o) + c->b[o];
                    for (int e = 0; e < c->n_regions; e++)
                        v += (double)c->regions[e].mask[i * c->ys.w + j] *
                             window(c, c->regions[e].w, n, i, j, o);
                    if (c->x[2])
                        v += c->x[2][n * c->ys.c + o];
                    if (res)
                        v += *res++;
                    *y++ = (float)v;
                }
}

/* Normalises the numbers that `count` runs of `run` channels hold, `stride` apart, with weight
 * and bias of the run's channels. */
static void normalise(const struct ref_call *c, const float *x, float *y, int64_t count,
                      int64_t run, int64_t stride, int64_t channel)
{
    double mean = 0, var = 0, total = (double)(count * run);

    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < run; k++)
            mean += x[i * stride + k];
    mean /= total;
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < run; k++)
            var += (x[i * stride + k] - mean) * (x[i * stride + k] - mean);
    double inv = 1 / sqrt(var / total + c->op->eps);
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < run; k++) {
            double v = (x[i * stride + k] - mean) * inv;
            y[i * stride + k] =
                (float)act(c->op->act, v * c->w[channel + k] + c->b[channel + k]);
        }
}

static void group_norm(const struct ref_call *c)
{
    int64_t run = c->xs.c / c->op->groups, pixels = c->xs.h * c->xs.w;

    for (int64_t n = 0; n < c->xs.n; n++)
        for (int64_t g = 0; g < c->op->groups; g++) {
            int64_t at = n * pixels * c->xs.c + g * run;
            normalise(c, c->x[0] + at, c->y + at, pixels, run, c->xs.c, g * run);
        }
}

static void norm_stats(const struct ref_call *c)
{
    int64_t run = c->xs.c / c->op->groups, pixels = c->xs.h * c->xs.w;
    double total = (double)(pixels * run);

    for (int64_t i = 0; i < c->xs.n * c->op->groups; i++) {
        int64_t n = i / c->op->groups, at = i % c->op->groups * run;
        const float *x = c->x[0] + n * pixels * c->xs.c + at;
        double mean = 0, var = 0;
        for (int64_t k = 0; k < pixels * run; k++)
            mean += x[k / run * c->xs.c + k % run] / total;
        for (int64_t k = 0; k < pixels * run; k++)
            var += pow(x[k / run * c->xs.c + k % run] - mean, 2) / total;
        for (int64_t k = at; k < at + run; k++) {
            c->y[2 * n * c->xs.c + k] = (float)mean;
            c->y[(2 * n + 1) * c->xs.c + k] = (float)(1 / sqrt(var + c->op->eps));
        }
    }
}

static void norm_apply(const struct ref_call *c)
{
    int64_t pixels = c->xs.h * c->xs.w, channels = c->xs.c;

    for (int64_t i = 0; i < gr_elements(c->ys); i++) {
        int64_t k = i % channels;
        const float *stats = c->x[1] + i / channels / pixels * 2 * channels;
        double v = ((double)c->x[0][i] - stats[k]) * stats[channels + k];
        c->y[i] = (float)act(c->op->act, v * c->w[k] + c->b[k]);
    }
}

static void layer_norm(const struct ref_call *c)
{
    int64_t rows = c->xs.n * c->xs.h * c->xs.w;

    for (int64_t r = 0; r < rows; r++)
        normalise(c, c->x[0] + r * c->xs.c, c->y + r * c->xs.c, 1, c->xs.c, c->xs.c, 0);
}

/* One query row: softmax over `t` keys, two passes, so that no score is ever kept. */
static void attend(const float *q, const float *k, const float *v, float *y, int64_t t,
                   int64_t stride, int64_t d)
{
    double top = -INFINITY, sum = 0, scale = 1 / sqrt((double)d);

    for (int64_t i = 0; i < t; i++) {
        double s = 0;
        for (int64_t e = 0; e < d; e++)
            s += (double)q[e] * k[i * stride + e];
        top = fmax(top, s * scale);
    }
    for (int64_t e0 = 0; e0 < d; e0 += 64) {
        int64_t width = d - e0 < 64 ? d - e0 : 64;
        double acc[64] = {0};
        sum = 0;
        for (int64_t i = 0; i < t; i++) {
            double s = 0;
            for (int64_t e = 0; e < d; e++)
                s += (double)q[e] * k[i * stride + e];
            double p = exp(s * scale - top);
            sum += p;
            for (int64_t e = 0; e < width; e++)
                acc[e] += p * v[i * stride + e0 + e];
        }
        for (int64_t e = 0; e < width; e++)
            y[e0 + e] = (float)(acc[e] / sum);
    }
}

static void attention(const struct ref_call *c)
{
    struct gr_shape ks = c->g->values[c->op->in[1]].shape;
    int64_t tq = c->xs.h * c->xs.w, tk = ks.h * ks.w, d = c->xs.c / c->op->heads;

    for (int64_t n = 0; n < c->xs.n; n++)
        for (int64_t i = 0; i < tq; i++)
            for (int64_t h = 0; h < c->op->heads; h++) {
                int64_t q = (n * tq + i) * c->xs.c + h * d, k = n * tk * c->xs.c + h * d;
                attend(c->x[0] + q, c->x[1] + k, c->x[2] + k, c->y + q,
                       c->op->causal ? i + 1 : tk, c->xs.c, d);
            }
}

static void act_op(const struct ref_call *c)
{
    for (int64_t i = 0; i < gr_elements(c->ys); i++)
        c->y[i] = (float)act(c->op->act, c->x[0][i]);
}

static void add(const struct ref_call *c)
{
    for (int64_t i = 0; i < gr_elements(c->ys); i++)
        c->y[i] = c->x[0][i] + c->x[1][i];
}

static void concat(const struct ref_call *c)
{
    int64_t a = c->xs.c, b = c->ys.c - a;

    for (int64_t r = 0; r < c->ys.n * c->ys.h * c->ys.w; r++) {
        for (int64_t i = 0; i < a; i++)
            c->y[r * (a + b) + i] = c->x[0][r * a + i];
        for (int64_t i = 0; i < b; i++)
            c->y[r * (a + b) + a + i] = c->x[1][r * b + i];
    }
}

static void upsample(const struct ref_call *c)
{
    float *y = c->y;

    for (int64_t n = 0; n < c->ys.n; n++)
        for (int64_t i = 0; i < c->ys.h; i++)
            for (int64_t j = 0; j < c->ys.w; j++)
                for (int64_t k = 0; k < c->ys.c; k++) {
                    int64_t u = i * c->xs.h / c->ys.h, v = j * c->xs.w / c->ys.w;
                    *y++ = c->x[0][((n * c->xs.h + u) * c->xs.w + v) * c->xs.c + k];
                }
}

static void embed(const struct ref_call *c)
{
    int64_t width = c->ys.c, t = c->ys.w, rows = c->op->layer->out;

    for (int64_t r = 0; r < c->ys.n * t; r++)
        for (int64_t i = 0; i < width; i++) {
            float token, pos;
            if (c->ids[r] < rows)
                tensor_decode(&c->op->layer->weight, c->ids[r] * width + i, 1, &token);
            else
                token = c->x[1][(c->ids[r] - rows) * width + i];
            tensor_decode(&c->op->layer2->weight, r % t * width + i, 1, &pos);
            c->y[r * width + i] = token + pos;
        }
}

static void timestep(const struct ref_call *c)
{
    int half = c->op->dim / 2;

    for (int64_t r = 0; r < c->xs.n * c->xs.c; r++)
        for (int i = 0; i < half; i++) {
            double a = c->x[0][r] * exp(-log(10000.0) * i / half);
            c->y[r * c->op->dim + i] = (float)cos(a);
            c->y[r * c->op->dim + half + i] = (float)sin(a);
        }
}

const ref_fn ref_ops[OP_COUNT] = {
    [OP_LINEAR] = linear,         [OP_GEGLU] = geglu,           [OP_CONV2D] = conv2d,
    [OP_NORM_STATS] = norm_stats, [OP_NORM_APPLY] = norm_apply,
    [OP_GROUP_NORM] = group_norm, [OP_LAYER_NORM] = layer_norm, [OP_ATTENTION] = attention,
    [OP_ACT] = act_op,            [OP_ADD] = add,               [OP_CONCAT] = concat,
    [OP_UPSAMPLE] = upsample, [OP_EMBED] = embed,           [OP_TIMESTEP] = timestep,
};
