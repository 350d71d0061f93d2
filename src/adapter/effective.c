/* SPDX-License-Identifier: MIT
 * What deltas make of a whole layer, in f32: blocks of rows by all threads. The definition, which
 * tests hold this to, is layer_weight_ref(). */
#include "adapter/product.h"
#include "tensor/mat.h"
#include <math.h>
#include <string.h>

enum { BLOCK = 1 << 16 }; /* numbers in a block of rows: stays in the second cache */

static int64_t block_rows(int64_t k)
{
    return k < BLOCK ? BLOCK / k : 1;
}

static kron_status failed_rows(kron_status status, const struct layer *l)
{
    /* The sentence of the failure is in the thread that failed. */
    return status == KRON_OK
               ? KRON_OK
               : err_set(status, "out of memory: rows of the layer %s", l->name);
}

/* --- D, whole --- */

/* x[n, in] of one kernel position out of rows of w[n, in*ks], or back by adding. */
static void take_position(const float *w, int64_t n, int64_t in, int64_t ks, int64_t t, float *x)
{
    for (int64_t i = 0; i < n * in; i++)
        x[i] = w[i * ks + t];
}

static void add_position(const float *x, int64_t n, int64_t in, int64_t ks, int64_t t, float *w)
{
    for (int64_t i = 0; i < n * in; i++)
        w[i * ks + t] += x[i];
}

/* W (A B), position by position, of all the delta's rows. */
static kron_status fill_input(const struct layer *l, const struct delta *d, const float *plain,
                              float *to)
{
    int64_t ks = (int64_t)l->kh * l->kw, n = d->rows, r = d->rank;
    float *a, *b, *x, *y;
    void *mem;

    KRON_TRY(mem_alloc_n(&mem, (size_t)(2 * l->in * r + n * l->in + n * r), sizeof *a, l->name));
    a = mem;
    b = a + l->in * r;
    x = b + l->in * r;
    y = x + n * l->in;
    tensor_decode(&d->a, 0, l->in * r, a);
    tensor_decode(&d->b, 0, l->in * r, b);
    for (int64_t t = 0; t < ks; t++) {
        take_position(plain, n, l->in, ks, t, x);
        mat_mul(x, l->in, 1, a, n, l->in, r, y, false);
        mat_mul(y, r, 1, b, n, r, l->in, x, false);
        add_position(x, n, l->in, ks, t, to);
    }
    mem_free(mem);
    return KRON_OK;
}

static kron_status add_rows(const struct product *p, float scale, int64_t row, int64_t n,
                            float *to)
{
    float *x;

    KRON_TRY(mem_floats(&x, n * p->k, "rows of a weight"));
    kron_status status = product_rows(p, row, n, x);
    for (int64_t i = 0; i < n * p->k && status == KRON_OK; i++)
        to[i] += scale * x[i];
    mem_free(x);
    return status;
}

/* to[rows, k] += scale times D. */
static kron_status add_product(const struct layer *l, const struct delta *d, float scale,
                               float *to)
{
    int64_t k = layer_k(l), step = block_rows(k);
    kron_status failed = KRON_OK;
    struct product p;

    KRON_TRY(product_open(&p, d, l));
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < d->rows; row += step) {
        int64_t n = d->rows - row < step ? d->rows - row : step;
        kron_status status = add_rows(&p, scale, row, n, to + row * k);
        if (status != KRON_OK) {
#pragma omp atomic write
            failed = status;
        }
    }
    product_close(&p);
    return failed_rows(failed, l);
}

/* --- gains --- */

/* g[rows] or g[in]; for magnitudes the sums of squares of W + c D first. */
static void find_gains(const struct layer *l, const struct delta *d, const float *plain,
                       const float *dw, double *g)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    int64_t n = d->axis == GAIN_IN ? l->in : d->rows;

    memset(g, 0, (size_t)n * sizeof *g);
    for (int64_t i = 0; i < n && d->gain != NULL; i++)
        g[i] = d->gain[i];
    if (d->gain != NULL)
        return;
    for (int64_t o = 0; o < d->rows; o++)
        for (int64_t c = 0; c < k; c++) {
            double v = (double)plain[o * k + c] + (double)d->scale * dw[o * k + c];
            g[d->axis == GAIN_IN ? c / ks : o] += v * v;
        }
    for (int64_t i = 0; i < n; i++)
        g[i] = g[i] > 0 ? d->magnitude[i] / sqrt(g[i]) : 1;
}

/* w += s ((g - 1) W + g c D), or s (c D - W) where D replaces W. g NULL: 1. */
static void combine(const struct layer *l, const struct delta *d, float s, const float *plain,
                    const float *dw, const double *g, float *w)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;

#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < d->rows; o++)
        for (int64_t c = 0; c < k; c++) {
            float gain = g == NULL ? 1 : (float)g[d->axis == GAIN_IN ? c / ks : o];
            float base = d->replace ? -1 : gain - 1;
            w[o * k + c] += s * (base * plain[o * k + c] + gain * d->scale * dw[o * k + c]);
        }
}

/* plain and w are at the delta's first row. */
static kron_status add_sum(const struct layer *l, const struct delta *d, float s,
                           const float *plain, float *w)
{
    double *g = NULL;
    float *dw;

    KRON_TRY(mem_floats(&dw, d->rows * layer_k(l), "a layer's change"));
    kron_status status = KRON_OK;
    if (d->axis != GAIN_NONE)
        status = mem_alloc_n((void **)&g, (size_t)(d->axis == GAIN_IN ? l->in : d->rows),
                             sizeof *g, "gains");
    if (status == KRON_OK && d->kind == DELTA_INPUT)
        status = fill_input(l, d, plain, dw);
    else if (status == KRON_OK && d->kind != DELTA_NONE)
        status = add_product(l, d, 1, dw);
    if (status == KRON_OK && g != NULL)
        find_gains(l, d, plain, dw, g);
    if (status == KRON_OK)
        combine(l, d, s, plain, dw, g, w);
    mem_free(dw);
    mem_free(g);
    return status;
}

/* --- turns --- */

/* Rows of y, block by block: x + s x M. x, z: [block, k] of one thread. */
static void turn_block(const struct delta *d, int stage, int64_t j, float s, int64_t k, float *y,
                       float *x, float *z)
{
    const float *m = d->mix + (stage * d->n_blocks + j) * d->block * d->block;

    for (int64_t e = 0; e < d->block; e++)
        memcpy(x + e * k, y + delta_left_row(d, stage, j, e) * k, (size_t)k * sizeof *x);
    mat_mul(m, 1, d->block, x, d->block, d->block, k, z, false);
    for (int64_t e = 0; e < d->block; e++)
        for (int64_t c = 0; c < k; c++)
            y[delta_left_row(d, stage, j, e) * k + c] += s * z[e * k + c];
}

static kron_status turn_stage(const struct layer *l, const struct delta *d, int stage, float s,
                              float *y)
{
    int64_t k = layer_k(l);
    kron_status failed = KRON_OK;

#pragma omp parallel for schedule(dynamic)
    for (int64_t j = 0; j < d->n_blocks; j++) {
        float *x;
        kron_status status = mem_floats(&x, 2 * d->block * k, "rows of a weight");
        if (status == KRON_OK) {
            turn_block(d, stage, j, s, k, y, x, x + d->block * k);
            mem_free(x);
        } else {
#pragma omp atomic write
            failed = status;
        }
    }
    return failed_rows(failed, l);
}

static kron_status add_left(const struct layer *l, const struct delta *d, float s,
                            const float *plain, float *w)
{
    int64_t k = layer_k(l), n = d->rows * k;
    float *y;

    KRON_TRY(mem_floats(&y, n, "a layer's change"));
    memcpy(y, plain, (size_t)n * sizeof *y);
    kron_status status = KRON_OK;
    for (int stage = 0; stage < d->stages && status == KRON_OK; stage++)
        status = turn_stage(l, d, stage, s, y);
    for (int64_t i = 0; i < n && status == KRON_OK; i++)
        w[i] += y[i] * (d->rescale ? 1 + s * (d->rescale[i / k] - 1) : 1) - plain[i];
    mem_free(y);
    return status;
}

static void add_right(const struct layer *l, const struct delta *d, float s, const float *plain,
                      float *w)
{
    int64_t k = layer_k(l), b = d->block;

#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < d->rows; o++)
        for (int64_t i = 0; i < d->n_blocks * b; i++) {
            const float *m = d->mix + i * b; /* row i % b of block i / b */
            float x = s * plain[o * k + i];
            for (int64_t e = 0; e < b; e++)
                w[o * k + i / b * b + e] += x * m[e];
        }
}

/* --- all --- */

/* True if the change is the product, wherever the weight stands. */
static bool is_product(const struct delta *d)
{
    return product_has(d) && d->axis == GAIN_NONE && !d->replace;
}

static bool acts(const struct delta *d, const float *strengths)
{
    return delta_has_weight(d) && d->region == NULL && delta_strength(d, strengths) != 0;
}

/* plain is only read by deltas that are more than a product. */
static kron_status add_delta(const struct layer *l, const struct delta *d, float s,
                             const float *plain, float *w)
{
    int64_t at = d->at * layer_k(l);

    if (is_product(d))
        return add_product(l, d, s * d->scale, w + at);
    KRON_ASSERT(plain != NULL);
    if (d->kind == DELTA_LEFT)
        return add_left(l, d, s, plain + at, w + at);
    if (d->kind != DELTA_RIGHT)
        return add_sum(l, d, s, plain + at, w + at);
    add_right(l, d, s, plain + at, w + at);
    return KRON_OK;
}

static void decode_weight(const struct layer *l, float *w)
{
    int64_t k = layer_k(l), step = block_rows(k);

#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < l->out; row += step)
        tensor_decode(&l->weight, row * k, (l->out - row < step ? l->out - row : step) * k,
                      w + row * k);
}

/* w += the changes; whole: w holds the plain weight, else it is read where one is needed. */
static kron_status add_all(const struct layer *l, struct delta_list list, const float *strengths,
                           bool whole, float *w)
{
    int64_t n = l->out * layer_k(l);
    kron_status status = KRON_OK;
    bool needed = false;
    float *plain = NULL;

    for (int i = 0; i < list.n; i++)
        needed = needed || (acts(&list.at[i], strengths) && !is_product(&list.at[i]));
    if (needed)
        KRON_TRY(mem_floats(&plain, n, "a layer's weight"));
    if (needed && whole)
        memcpy(plain, w, (size_t)n * sizeof *w);
    else if (needed && l->weight.data != NULL)
        decode_weight(l, plain);
    for (int i = 0; i < list.n && status == KRON_OK; i++)
        if (acts(&list.at[i], strengths))
            status = add_delta(l, &list.at[i], delta_strength(&list.at[i], strengths), plain, w);
    mem_free(plain);
    return status;
}

kron_status effective_change(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w)
{
    memset(w, 0, (size_t)(l->out * layer_k(l)) * sizeof *w);
    return add_all(l, list, strengths, false, w);
}

kron_status effective_weight(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w)
{
    decode_weight(l, w);
    return add_all(l, list, strengths, true, w);
}

void effective_bias(struct delta_list list, const float *strengths, float *b)
{
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        float s = delta_strength(d, strengths);
        for (int64_t o = 0; d->bias != NULL && o < d->rows; o++)
            b[d->at + o] += s * d->bias[o];
    }
}
