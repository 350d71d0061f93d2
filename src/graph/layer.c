/* SPDX-License-Identifier: MIT
 * The definition of each delta form, and what each costs. */
#include "graph/layer.h"
#include <math.h>
#include <string.h>

struct delta_list delta_set_list(const struct delta_set *set, const struct layer *l)
{
    struct delta_list none = {0, NULL};

    if (set == NULL || l->id < 0 || l->id >= set->n_layers)
        return none;
    return set->by_layer[l->id];
}

bool delta_list_varies(struct delta_list list)
{
    for (int i = 0; i < list.n; i++)
        if (list.at[i].varying)
            return true;
    return false;
}

float delta_strength(const struct delta *d, const float *strengths)
{
    float s = strengths[d->strength];

    return d->replace ? s != 0 : s;
}

bool delta_has_weight(const struct delta *d)
{
    return d->kind != DELTA_NONE || d->axis != GAIN_NONE;
}

int64_t delta_left_row(const struct delta *d, int stage, int64_t j, int64_t e)
{
    int64_t p = j * d->block + e, half;

    if (!d->butterfly)
        return p;
    half = ((int64_t)1 << stage) * d->block / 2;
    return (p / 2 / half * 2 + p % 2) * half + p / 2 % half;
}

/* How much of source cell i lies in [from, to). */
static double overlap(int64_t i, double from, double to)
{
    double a = (double)i > from ? (double)i : from, b = (double)i + 1 < to ? (double)i + 1 : to;

    return b > a ? b - a : 0;
}

void delta_region_scale(const struct delta_region *r, int64_t w, int64_t h, float *out)
{
    double sx = (double)r->w / (double)w, sy = (double)r->h / (double)h;

    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            double y0 = (double)y * sy, x0 = (double)x * sx, sum = 0, all = 0;
            for (int64_t i = (int64_t)y0; i < r->h && (double)i < y0 + sy; i++)
                for (int64_t j = (int64_t)x0; j < r->w && (double)j < x0 + sx; j++) {
                    double part = overlap(i, y0, y0 + sy) * overlap(j, x0, x0 + sx);
                    sum += part * (double)r->mask[i * r->w + j];
                    all += part;
                }
            out[y * w + x] = (float)(all > 0 ? sum / all : 0);
        }
}

/* --- factors, number by number --- */

static double at2(const struct tensor *t, int64_t width, int64_t row, int64_t col)
{
    float v;

    tensor_decode(t, row * width + col, 1, &v);
    return v;
}

/* (A B)[row, col] with A[.., r], B[r, width]. */
static double product_at(const struct tensor *a, const struct tensor *b, int64_t r, int64_t width,
                         int64_t row, int64_t col)
{
    double sum = 0;

    for (int64_t i = 0; i < r; i++)
        sum += at2(a, r, row, i) * at2(b, width, i, col);
    return sum;
}

static double kron_at(const struct delta *d, int64_t ks, int64_t o, int64_t col)
{
    int64_t width = d->vq * ks;
    int64_t i = o / d->vp, j = o % d->vp, l = col / width, m = col % width;
    double w2 = d->w2.data != NULL ? at2(&d->w2, width, j, m)
                                   : product_at(&d->a, &d->b, d->rank, width, j, m);

    return at2(&d->w1, d->uq, i, l) * w2;
}

/* D[f, col]. */
static double delta_at(const struct delta *d, const struct layer *l, int64_t f, int64_t col)
{
    int64_t k = layer_k(l);

    switch (d->kind) {
    case DELTA_LOW_RANK:
        return product_at(&d->a, &d->b, d->rank, k, f, col);
    case DELTA_HADAMARD:
        return product_at(&d->a, &d->b, d->rank, k, f, col) *
               product_at(&d->c, &d->d, d->rank, k, f, col);
    case DELTA_KRON:
        return kron_at(d, (int64_t)l->kh * l->kw, f, col);
    case DELTA_FULL:
        return at2(&d->d, k, f, col);
    case DELTA_INPUT:
    case DELTA_NONE:
    case DELTA_LEFT:
    case DELTA_RIGHT:
        break;
    }
    return 0;
}

/* c times a row of W (A B): the channels of each kernel position are mixed. */
static void input_row(const struct delta *d, const struct layer *l, const double *row, double *to)
{
    int64_t ks = (int64_t)l->kh * l->kw;

    for (int64_t t = 0; t < ks; t++)
        for (int64_t j = 0; j < d->rank; j++) {
            double sum = 0;
            for (int64_t i = 0; i < l->in; i++)
                sum += row[i * ks + t] * at2(&d->a, d->rank, i, j);
            for (int64_t i = 0; i < l->in; i++)
                to[i * ks + t] += (double)d->scale * sum * at2(&d->b, l->in, j, i);
        }
}

/* --- a whole weight --- */

/* c D, [rows, k], into zeros. */
static void fill(const struct delta *d, const struct layer *l, const double *plain, double *to)
{
    int64_t k = layer_k(l);

    for (int64_t o = 0; o < d->rows; o++) {
        if (d->kind == DELTA_INPUT)
            input_row(d, l, plain + (d->at + o) * k, to + o * k);
        for (int64_t c = 0; c < k && d->kind != DELTA_INPUT; c++)
            to[o * k + c] = (double)d->scale * delta_at(d, l, d->from + o, c);
    }
}

/* g of every row or input channel. */
static void gains(const struct delta *d, const struct layer *l, const double *plain,
                  const double *dw, double *g)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    int64_t n = d->axis == GAIN_IN ? l->in : d->rows;

    for (int64_t i = 0; i < n; i++)
        g[i] = d->gain != NULL ? d->gain[i] : 0;
    if (d->gain != NULL)
        return;
    for (int64_t o = 0; o < d->rows; o++)
        for (int64_t c = 0; c < k; c++) {
            double v = plain[(d->at + o) * k + c] + dw[o * k + c];
            g[d->axis == GAIN_IN ? c / ks : o] += v * v;
        }
    for (int64_t i = 0; i < n; i++)
        g[i] = g[i] > 0 ? d->magnitude[i] / sqrt(g[i]) : 1;
}

static kron_status add_product(const struct delta *d, const struct layer *l, double s,
                               const double *plain, double *w)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    double *dw, *g;
    void *mem;

    KRON_TRY(mem_alloc_n(&mem, (size_t)(d->rows * k + d->rows + l->in), sizeof *dw, l->name));
    dw = mem;
    g = dw + d->rows * k;
    fill(d, l, plain, dw);
    if (d->axis != GAIN_NONE)
        gains(d, l, plain, dw, g);
    for (int64_t o = 0; o < d->rows; o++)
        for (int64_t c = 0; c < k; c++) {
            double gain = d->axis == GAIN_NONE ? 1 : g[d->axis == GAIN_IN ? c / ks : o];
            double base = d->replace ? -1 : gain - 1;
            w[(d->at + o) * k + c] +=
                s * (base * plain[(d->at + o) * k + c] + gain * dw[o * k + c]);
        }
    mem_free(mem);
    return KRON_OK;
}

/* to[e] = sum over j of x[j] M[j, e], times s. */
static void mix_block(const struct delta *d, int stage, int64_t j, double s, const double *x,
                      double *to)
{
    const float *m = d->mix + (stage * d->n_blocks + j) * d->block * d->block;

    for (int64_t e = 0; e < d->block; e++) {
        to[e] = 0;
        for (int64_t i = 0; i < d->block; i++)
            to[e] += s * x[i] * m[i * d->block + e];
    }
}

static void turn_column(const struct delta *d, double s, const double *plain, double *w,
                        int64_t ld, double *y, double *x, double *z)
{
    for (int64_t o = 0; o < d->rows; o++)
        y[o] = plain[o * ld];
    for (int stage = 0; stage < d->stages; stage++)
        for (int64_t j = 0; j < d->n_blocks; j++) {
            for (int64_t e = 0; e < d->block; e++)
                x[e] = y[delta_left_row(d, stage, j, e)];
            mix_block(d, stage, j, s, x, z);
            for (int64_t e = 0; e < d->block; e++)
                y[delta_left_row(d, stage, j, e)] += z[e];
        }
    for (int64_t o = 0; o < d->rows; o++)
        w[o * ld] += y[o] * (d->rescale ? 1 + s * (d->rescale[o] - 1) : 1) - plain[o * ld];
}

static void turn_row(const struct delta *d, double s, const double *plain, double *w, double *z)
{
    for (int64_t j = 0; j < d->n_blocks; j++) {
        mix_block(d, 0, j, s, plain + j * d->block, z);
        for (int64_t e = 0; e < d->block; e++)
            w[j * d->block + e] += z[e];
    }
}

static kron_status add_turn(const struct delta *d, const struct layer *l, double s,
                            const double *plain, double *w)
{
    int64_t k = layer_k(l), at = d->at * k;
    double *y;
    void *mem;

    KRON_TRY(mem_alloc_n(&mem, (size_t)(d->rows + 2 * d->block), sizeof *y, l->name));
    y = mem;
    if (d->kind == DELTA_LEFT)
        for (int64_t c = 0; c < k; c++)
            turn_column(d, s, plain + at + c, w + at + c, k, y, y + d->rows,
                        y + d->rows + d->block);
    else
        for (int64_t o = 0; o < d->rows; o++)
            turn_row(d, s, plain + at + o * k, w + at + o * k, y);
    mem_free(mem);
    return KRON_OK;
}

kron_status delta_add_ref(const struct delta *d, const struct layer *l, float strength,
                          const double *plain, double *w)
{
    if (d->kind == DELTA_LEFT || d->kind == DELTA_RIGHT)
        return add_turn(d, l, strength, plain, w);
    return delta_has_weight(d) ? add_product(d, l, strength, plain, w) : KRON_OK;
}

static void load(double *to, const struct tensor *t, int64_t n)
{
    float v;

    for (int64_t i = 0; i < n; i++) {
        tensor_decode(t, i, 1, &v);
        to[i] = v;
    }
}

kron_status layer_weight_ref(const struct layer *l, struct delta_list list,
                             const float *strengths, double *w)
{
    size_t n = (size_t)(l->out * layer_k(l));
    kron_status status = KRON_OK;
    void *plain;

    load(w, &l->weight, (int64_t)n);
    if (list.n == 0)
        return KRON_OK;
    KRON_TRY(mem_alloc_n(&plain, n, sizeof *w, l->name));
    memcpy(plain, w, n * sizeof *w);
    for (int i = 0; i < list.n && status == KRON_OK; i++)
        if (list.at[i].region == NULL)
            status = delta_add_ref(&list.at[i], l, delta_strength(&list.at[i], strengths), plain,
                                   w);
    mem_free(plain);
    return status;
}

void layer_bias_ref(const struct layer *l, struct delta_list list, const float *strengths,
                    double *b)
{
    memset(b, 0, (size_t)l->out * sizeof *b);
    if (l->bias.data != NULL)
        load(b, &l->bias, l->out);
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        for (int64_t o = 0; d->bias != NULL && o < d->rows; o++)
            b[d->at + o] += (double)delta_strength(d, strengths) * d->bias[o];
    }
}

/* --- costs --- */

double delta_weight_cost(const struct delta *d, const struct layer *l)
{
    double all = (double)d->rows * (double)layer_k(l);

    switch (d->kind) {
    case DELTA_LOW_RANK:
        return all * (double)d->rank;
    case DELTA_INPUT: /* brought to a low rank for each kernel position */
        return all * (double)d->rank * l->kh * l->kw;
    case DELTA_HADAMARD:
        return all * (2.0 * (double)d->rank + 1);
    case DELTA_KRON: {
        double w2 = (double)(d->vp * d->vq) * l->kh * l->kw;
        return all + w2 * (double)(d->w2.data != NULL ? 0 : d->rank);
    }
    case DELTA_LEFT:
    case DELTA_RIGHT:
        return all * (double)d->stages * (double)d->block;
    case DELTA_NONE:
    case DELTA_FULL:
        break;
    }
    return delta_has_weight(d) ? all : 0;
}

double delta_row_cost(const struct delta *d, const struct layer *l)
{
    double all = (double)d->rows * (double)layer_k(l), ks = (double)l->kh * l->kw;
    bool whole = d->from == 0 && d->rows == d->up * d->vp;

    if (d->kind == DELTA_LOW_RANK)
        return (double)d->rank * (double)(d->rows + layer_k(l));
    if (d->kind == DELTA_INPUT)
        return (double)d->rank * ks * (double)(d->rows + layer_k(l));
    if (d->kind == DELTA_KRON && whole && d->axis == GAIN_NONE) {
        double up = (double)d->up, uq = (double)d->uq, vp = (double)d->vp, vq = (double)d->vq;
        double second = d->w2.data != NULL ? vq * ks * vp : (double)d->rank * (vq * ks + vp);
        return uq * second + up * uq * vp;
    }
    if (d->kind == DELTA_LEFT)
        return (double)d->rows * (double)(d->stages * d->block);
    if (d->kind == DELTA_NONE || d->kind == DELTA_RIGHT) /* done to the weight's rows */
        return 0;
    /* No shorter form than the product itself: the delta is built in tiles and multiplied. */
    return all;
}
