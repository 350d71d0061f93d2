/* SPDX-License-Identifier: MIT
 * The products that deltas add, in f32. */
#include "adapter/product.h"
#include "tensor/mat.h"
#include <math.h>
#include <string.h>

static kron_status decode(const struct tensor *t, float **out)
{
    if (t->data == NULL)
        return KRON_OK;
    KRON_TRY(mem_floats(out, tensor_elements(t), "a factor"));
    tensor_decode(t, 0, tensor_elements(t), *out);
    return KRON_OK;
}

bool product_has(const struct delta *d)
{
    return d->kind == DELTA_LOW_RANK || d->kind == DELTA_HADAMARD || d->kind == DELTA_KRON ||
           d->kind == DELTA_FULL;
}

static kron_status open_factors(struct product *p, const struct delta *d)
{
    KRON_TRY(decode(&d->a, &p->a));
    KRON_TRY(decode(&d->b, &p->b));
    KRON_TRY(decode(&d->c, &p->c));
    if (d->kind == DELTA_HADAMARD)
        return decode(&d->d, &p->e);
    if (d->kind != DELTA_KRON)
        return KRON_OK;
    KRON_TRY(decode(&d->w1, &p->w1));
    if (d->w2.data != NULL)
        return decode(&d->w2, &p->w2);
    int64_t m = p->k / d->uq;
    KRON_TRY(mem_floats(&p->w2, d->vp * m, "a factor"));
    mat_mul(p->a, d->rank, 1, p->b, d->vp, d->rank, m, p->w2, false);
    return KRON_OK;
}

bool product_is_all(const struct delta *d)
{
    return product_has(d) && d->axis == GAIN_NONE && d->bias == NULL && d->region == NULL &&
           !d->replace;
}

kron_status product_open(struct product *p, const struct delta *d, const struct layer *l)
{
    KRON_ASSERT(product_has(d));
    *p = (struct product){.d = d, .rows = d->rows, .k = layer_k(l)};
    kron_status status = open_factors(p, d);
    if (status != KRON_OK)
        product_close(p);
    return status;
}

void product_close(struct product *p)
{
    mem_free(p->a);
    mem_free(p->b);
    mem_free(p->c);
    mem_free(p->e);
    mem_free(p->w1);
    mem_free(p->w2);
    memset(p, 0, sizeof *p);
}

static kron_status hadamard_rows(const struct product *p, int64_t row, int64_t n, float *out)
{
    int64_t r = p->d->rank;
    float *second;

    KRON_TRY(mem_floats(&second, n * p->k, "rows of a LoHa"));
    mat_mul(p->a + row * r, r, 1, p->b, n, r, p->k, out, false);
    mat_mul(p->c + row * r, r, 1, p->e, n, r, p->k, second, false);
    for (int64_t i = 0; i < n * p->k; i++)
        out[i] *= second[i];
    mem_free(second);
    return KRON_OK;
}

static void kron_rows(const struct product *p, int64_t row, int64_t n, float *out)
{
    const struct delta *d = p->d;
    int64_t m = p->k / d->uq;

    for (int64_t o = row; o < row + n; o++)
        for (int64_t l = 0; l < d->uq; l++) {
            const float *w2 = p->w2 + o % d->vp * m;
            float w1 = p->w1[o / d->vp * d->uq + l];
            for (int64_t c = 0; c < m; c++)
                *out++ = w1 * w2[c];
        }
}

kron_status product_rows(const struct product *p, int64_t row, int64_t n, float *out)
{
    int64_t r = p->d->rank;

    row += p->d->from;
    switch (p->d->kind) {
    case DELTA_LOW_RANK:
        mat_mul(p->a + row * r, r, 1, p->b, n, r, p->k, out, false);
        return KRON_OK;
    case DELTA_HADAMARD:
        return hadamard_rows(p, row, n, out);
    case DELTA_KRON:
        kron_rows(p, row, n, out);
        return KRON_OK;
    default:
        tensor_decode(&p->d->d, row * p->k, n * p->k, out);
        return KRON_OK;
    }
}

/* --- norms --- */

/* Rows of something, n at a time from `row` on. */
typedef kron_status (*rows_fn)(const void *from, int64_t row, int64_t n, float *out);

/* sqrt of the sum of squares of rows x k numbers, of every step-th block of rows. */
static kron_status norm_by_rows(rows_fn get, const void *from, int64_t rows, int64_t k,
                                int64_t most, double *out)
{
    enum { BLOCK = 16384 };
    int64_t n = k < BLOCK ? BLOCK / k : 1, blocks = (rows + n - 1) / n, step = 1, seen = 0;
    double sum = 0;
    float *x;

    if (most > 0)
        while (blocks / step * n * k > most && step < blocks)
            step++;
    KRON_TRY(mem_floats(&x, n * k, "rows of a weight"));
    kron_status status = KRON_OK;
    for (int64_t b = 0; b < blocks && status == KRON_OK; b += step) {
        int64_t row = b * n, some = rows - row < n ? rows - row : n;
        status = get(from, row, some, x);
        sum += mat_norm2(x, some * k);
        seen += some;
    }
    mem_free(x);
    *out = seen > 0 ? sqrt(sum * (double)rows / (double)seen) : 0;
    return status;
}

static kron_status get_product(const void *from, int64_t row, int64_t n, float *out)
{
    return product_rows(from, row, n, out);
}

static kron_status get_weight(const void *from, int64_t row, int64_t n, float *out)
{
    const struct layer *l = from;

    tensor_decode(&l->weight, row * layer_k(l), n * layer_k(l), out);
    return KRON_OK;
}

kron_status product_norm(const struct product *p, int64_t most, double *out)
{
    const struct delta *d = p->d;

    if (d->kind == DELTA_KRON && p->rows == d->up * d->vp) {
        *out = sqrt(mat_norm2(p->w1, d->up * d->uq) * mat_norm2(p->w2, d->vp * p->k / d->uq));
        return KRON_OK;
    }
    if (d->kind == DELTA_LOW_RANK) {
        const float *a = p->a + d->from * d->rank;
        KRON_TRY(mat_product_norm2(a, p->b, p->rows, d->rank, p->k, out));
        *out = sqrt(*out > 0 ? *out : 0);
        return KRON_OK;
    }
    return norm_by_rows(get_product, p, p->rows, p->k, most, out);
}

kron_status layer_norm(const struct layer *l, int64_t most, double *out)
{
    return norm_by_rows(get_weight, l, l->out, layer_k(l), most, out);
}
