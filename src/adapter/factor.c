/* SPDX-License-Identifier: MIT
 * Factors of canonical deltas: views of a file's tensors where they serve as they are, else
 * folded into f32, with sums in double. */
#include "adapter/family.h"
#include <string.h>

bool shape_is(const struct tensor *t, int64_t a, int64_t b, int64_t c, int64_t d)
{
    const int64_t want[TENSOR_MAX_DIMS] = {a, b, c, d, 1, 1};

    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        if (t->dim[i] != want[i])
            return false;
    return true;
}

bool shape_is_kernel(const struct tensor *t, int64_t a, int64_t in, int kh, int kw)
{
    return shape_is(t, a, in, kh, kw) || shape_is(t, a, in * kh * kw, 1, 1);
}

const char *layer_shape_text(const struct layer *l, char *buf, size_t n)
{
    struct tensor t = {.n_dims = l->is_conv ? 4 : 2, .dim = {l->out, l->in, l->kh, l->kw}};

    return tensor_shape_text(&t, buf, n);
}

kron_status misfit(const struct bind *b, const struct tensor *t)
{
    char have[64], want[64];

    return err_set(KRON_ERR_SHAPE, "%s is %s, which does not fit the layer's %s",
                   t->name + strlen(b->m->prefix) + 1, tensor_shape_text(t, have, sizeof have),
                   layer_shape_text(b->l, want, sizeof want));
}

kron_status need_both(const struct adapter_module *m, enum ap a, enum ap b, const char *a_text,
                      const char *b_text)
{
    if ((m->part[a] == NULL) == (m->part[b] == NULL))
        return KRON_OK;
    return err_set(KRON_ERR_FORMAT, "has %s but no %s", m->part[a] != NULL ? a_text : b_text,
                   m->part[a] != NULL ? b_text : a_text);
}

void factor_pool_free(struct factor_pool *p)
{
    for (size_t i = 0; i < p->n; i++)
        mem_free(p->at[i]);
    mem_free(p->at);
    memset(p, 0, sizeof *p);
}

/* A new [rows, cols] f32 factor of the pool. */
static kron_status factor_new(const struct bind *b, int64_t rows, int64_t cols,
                              struct tensor *out, float **data)
{
    struct factor_pool *p = b->pool;
    size_t n, bytes;
    void *mem;

    if (!size_mul((size_t)rows, (size_t)cols, &n) || !size_mul(n, sizeof(float), &bytes))
        return err_set(KRON_ERR_MEMORY, "a factor of %lld x %lld does not fit in memory",
                       (long long)rows, (long long)cols);
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        KRON_TRY(mem_grow((void **)&p->at, p->cap, cap, sizeof *p->at, "list of factors"));
        p->cap = cap;
    }
    KRON_TRY(mem_alloc(&mem, bytes, "adapter factor"));
    p->at[p->n++] = mem;
    p->bytes += bytes;
    *data = mem;
    *out = (struct tensor){.data = mem,
                           .bytes = bytes,
                           .type = DT_F32,
                           .n_dims = 2,
                           .dim = {rows, cols, 1, 1, 1, 1},
                           .name = "folded factor"};
    return KRON_OK;
}

static kron_status check_type(const struct tensor *t)
{
    switch (t->type) {
    case DT_F32:
    case DT_F16:
    case DT_BF16:
    case DT_F8_E4M3:
    case DT_F8_E5M2:
    case DT_F64:
        return KRON_OK;
    default:
        return err_set(KRON_ERR_UNSUPPORTED, "%s is stored as %s, which is no type of a factor",
                       t->name, dtype_info(t->type)->name);
    }
}

/* All of t as f32, for folding; the caller frees it. */
static kron_status read_all(const struct tensor *t, float **out)
{
    KRON_TRY(check_type(t));
    KRON_TRY(mem_alloc_n((void **)out, (size_t)tensor_elements(t), sizeof(float),
                         "adapter factor"));
    tensor_decode(t, 0, tensor_elements(t), *out);
    return KRON_OK;
}

kron_status factor_view(const struct bind *b, const struct tensor *t, int64_t rows, int64_t cols,
                        struct tensor *out)
{
    float *data;

    KRON_TRY(check_type(t));
    /* Nothing in the format aligns tensors: kernels read elements where they lie. */
    if (t->type != DT_F64 && (uintptr_t)t->data % (size_t)dtype_info(t->type)->bytes == 0) {
        *out = *t;
        out->n_dims = 2;
        for (int i = 0; i < TENSOR_MAX_DIMS; i++)
            out->dim[i] = i == 0 ? rows : i == 1 ? cols : 1;
        return KRON_OK;
    }
    KRON_TRY(factor_new(b, rows, cols, out, &data));
    tensor_decode(t, 0, rows * cols, data);
    return KRON_OK;
}

kron_status factor_zeros(const struct bind *b, int64_t n, float **out)
{
    struct tensor t;

    *out = NULL;
    return factor_new(b, 1, n, &t, out);
}

kron_status factor_floats(const struct bind *b, const struct tensor *t, int64_t n,
                          const float **out)
{
    float *data = NULL;

    KRON_TRY(check_type(t));
    KRON_TRY(factor_zeros(b, n, &data));
    if (n > 0)
        tensor_decode(t, 0, n, data);
    *out = data;
    return KRON_OK;
}

kron_status factor_transposed(const struct bind *b, const struct tensor *t, int64_t rows,
                              int64_t cols, struct tensor *out)
{
    float *src, *data;
    kron_status status;

    KRON_TRY(read_all(t, &src));
    if ((status = factor_new(b, rows, cols, out, &data)) == KRON_OK)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                data[i * cols + j] = src[j * rows + i];
    mem_free(src);
    return status;
}

/* out[i, j] = sum over q of x[i, q] y[q, j], where x has `step` numbers between neighbours in q
 * and y's columns go to every `spread`-th of out's. */
static void fold(const float *x, int64_t x_row, int64_t step, const float *y, int64_t rows,
                 int64_t r, int64_t cols, float *out, int64_t out_row, int64_t spread)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0;
            for (int64_t q = 0; q < r; q++)
                sum += (double)x[i * x_row + q * step] * y[q * cols + j];
            out[i * out_row + j * spread] = (float)sum;
        }
}

kron_status factor_product(const struct bind *b, const struct tensor *x, const struct tensor *y,
                           int64_t rows, int64_t r, int64_t cols, struct tensor *out)
{
    return factor_core(b, x, y, rows, r, cols, 1, out);
}

kron_status factor_core(const struct bind *b, const struct tensor *t, const struct tensor *y,
                        int64_t r1, int64_t r2, int64_t cols, int64_t ks, struct tensor *out)
{
    float *core, *right = NULL, *data;
    kron_status status;

    KRON_TRY(read_all(t, &core));
    if ((status = read_all(y, &right)) == KRON_OK &&
        (status = factor_new(b, r1, cols * ks, out, &data)) == KRON_OK)
        for (int64_t k = 0; k < ks; k++)
            fold(core + k, r2 * ks, ks, right, r1, r2, cols, data + k, cols * ks, ks);
    mem_free(core);
    mem_free(right);
    return status;
}

kron_status factor_kron(const struct bind *b, const struct tensor *w1, const struct tensor *w2,
                        const struct lokr_shape *s, struct tensor *out)
{
    float *x, *y = NULL, *data;
    kron_status status;
    int64_t k = s->uq * s->m;

    KRON_TRY(read_all(w1, &x));
    if ((status = read_all(w2, &y)) == KRON_OK &&
        (status = factor_new(b, s->up * s->vp, k, out, &data)) == KRON_OK)
        for (int64_t o = 0; o < s->up * s->vp; o++)
            for (int64_t c = 0; c < k; c++)
                data[o * k + c] = x[o / s->vp * s->uq + c / s->m] * y[o % s->vp * s->m + c % s->m];
    mem_free(x);
    mem_free(y);
    return status;
}
