/* SPDX-License-Identifier: MIT
 * Tensors in another type, row by row on all cores. */
#include "convert/convert.h"
#include <math.h>

struct recoding {
    const struct tensor *t;
    enum dtype type;
    int64_t rows, k;
    const float *importance;
    char *out;
};

/* Numbers of x that are finite and have none in the type: these must not be lost in silence.
 * Blocks hold the largest that they can. */
static int64_t count_lost(enum dtype type, const float *x, int64_t n, const void *bytes)
{
    enum { SOME = 1024 };
    struct tensor t = {.data = bytes, .type = type};
    int64_t lost = 0;
    float back[SOME];

    for (int64_t at = 0; at < n && dtype_is_float(type) && type != DT_F32; at += SOME) {
        int64_t m = n - at < SOME ? n - at : SOME;
        tensor_decode(&t, at, m, back);
        for (int64_t i = 0; i < m; i++)
            lost += !isfinite(back[i]) && isfinite(x[at + i]);
    }
    return lost;
}

static int64_t recode_row(const struct recoding *r, int64_t row, float *x)
{
    char *out = r->out + (size_t)row * dtype_bytes(r->type, r->k);

    tensor_decode(r->t, row * r->k, r->k, x);
    dtype_encode(r->type, x, r->k, out, r->importance);
    return count_lost(r->type, x, r->k, out);
}

static kron_status recode_rows(const struct recoding *r)
{
    enum { FEW = 1 << 14 }; /* numbers that waking the workers is not worth */
    bool memory = true;
    int64_t lost = 0;

#pragma omp parallel if (r->rows * r->k > FEW) reduction(+ : lost) reduction(&& : memory)
    {
        float *x;
        bool mine = mem_floats(&x, r->k, "a row of a tensor") == KRON_OK;
        memory = mine;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < r->rows; row++)
            lost += mine ? recode_row(r, row, x) : 0;
        if (mine)
            mem_free(x);
    }
    if (!memory)
        return err_set(KRON_ERR_MEMORY, "out of memory: a row of %lld numbers",
                       (long long)r->k);
    if (lost > 0)
        return err_set(KRON_ERR_ARGUMENT, "tensor '%s': %lld of its numbers are too large for %s",
                       r->t->name, (long long)lost, dtype_info(r->type)->name);
    return KRON_OK;
}

kron_status recode(const struct tensor *t, enum dtype type, const struct importance *im, void *out)
{
    struct recoding r = {t, type, t->n_dims > 1 ? t->dim[0] : 1, 0, NULL, out};
    float *importance = NULL;

    if (tensor_elements(t) == 0)
        return KRON_OK;
    r.k = tensor_elements(t) / r.rows;
    if (im != NULL && dtype_info(type)->block > 1) {
        KRON_TRY(mem_floats(&importance, r.k, "importance of channels"));
        if (importance_get(im, t->name, r.k, importance))
            r.importance = importance;
    }
    kron_status status = recode_rows(&r);
    mem_free(importance);
    return status;
}
