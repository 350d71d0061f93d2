/* SPDX-License-Identifier: MIT
 * Tensors in another type, row by row on all cores. */
#include "convert/convert.h"
#include <math.h>

struct recoding {
    const struct tensor *t;
    enum dtype type;
    int64_t n, k; /* numbers in all, and of one piece: whole blocks, the last may be shorter */
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

static int64_t recode_piece(const struct recoding *r, int64_t at, float *x)
{
    char *out = r->out + dtype_bytes(r->type, at);
    int64_t n = r->n - at < r->k ? r->n - at : r->k;

    tensor_decode(r->t, at, n, x);
    dtype_encode(r->type, x, n, out, r->importance);
    return count_lost(r->type, x, n, out);
}

static kron_status recode_pieces(const struct recoding *r)
{
    enum { FEW = 1 << 14 }; /* numbers that waking the workers is not worth */
    bool memory = true;
    int64_t lost = 0;

#pragma omp parallel if (r->n > FEW) reduction(+ : lost) reduction(&& : memory)
    {
        float *x;
        bool mine = mem_floats(&x, r->k, "a row of a tensor") == KRON_OK;
        memory = mine;
#pragma omp for schedule(static)
        for (int64_t at = 0; at < r->n; at += r->k)
            lost += mine ? recode_piece(r, at, x) : 0;
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

/* Importance of a piece: that of a row's channels, over and over. */
static kron_status take_importance(struct recoding *r, const struct importance *im, int64_t row,
                                   float **own)
{
    KRON_TRY(mem_floats(own, r->k, "importance of channels"));
    if (!importance_get(im, r->t->name, row, *own))
        return KRON_OK;
    for (int64_t i = row; i < r->k; i++)
        (*own)[i] = (*own)[i - row];
    r->importance = *own;
    return KRON_OK;
}

kron_status recode(const struct tensor *t, enum dtype type, const struct importance *im, void *out)
{
    struct recoding r = {t, type, tensor_elements(t), 0, NULL, out};
    float *importance = NULL;
    kron_status status = KRON_OK;

    if (r.n == 0)
        return KRON_OK;
    int64_t row = t->n_dims > 1 ? r.n / t->dim[0] : r.n;
    for (r.k = row; r.k % dtype_info(type)->block != 0 && r.k < r.n;) /* blocks may span rows */
        r.k += row;
    if (im != NULL && dtype_info(type)->block > 1)
        status = take_importance(&r, im, row, &importance);
    if (status == KRON_OK)
        status = recode_pieces(&r);
    mem_free(importance);
    return status;
}
