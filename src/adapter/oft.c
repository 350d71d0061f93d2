/* SPDX-License-Identifier: MIT
 * Orthogonal finetuning: the weight is turned by rotations R of blocks of rows or columns.
 *
 *   OFT (Qiu et al. 2023), LyCORIS and kohya: oft_blocks[n, b, b], Q = B - B', |Q| over all blocks
 *     at most alpha * out (0: no limit), R = (I + Q) (I - Q)^-1, rows W' = R' W. LyCORIS' first
 *     files hold R itself as oft_diag.
 *   BOFT (Liu et al. 2023), LyCORIS: oft_blocks[m, n, b, b], R as above, m stages of R W on rows
 *     that lie 2^i b/2 apart.
 *   OFT of PEFT: oft_R[n, b(b-1)/2], Q's upper triangle row by row, R = (I - Q) (I + Q)^-1,
 *     x' = x R: columns W' = W R'. One block may stand for all.
 *
 * `rescale` multiplies rows at the end. Rotations are small: they are worked out here, in double,
 * and what is kept of each is the M of x + s x M (graph/layer.h). */
#include "adapter/family.h"
#include <math.h>
#include <string.h>

/* Rows of [a | c], both b x b, so that a becomes the identity: c is then a^-1 c. False if a is
 * singular, which I +- Q never is. */
static bool solve(double *a, double *c, int64_t b)
{
    for (int64_t p = 0; p < b; p++) {
        int64_t best = p;
        for (int64_t r = p + 1; r < b; r++)
            best = fabs(a[r * b + p]) > fabs(a[best * b + p]) ? r : best;
        if (!(fabs(a[best * b + p]) > 0))
            return false;
        for (int64_t i = 0; i < b; i++) {
            double x = a[p * b + i], y = c[p * b + i];
            a[p * b + i] = a[best * b + i], a[best * b + i] = x;
            c[p * b + i] = c[best * b + i], c[best * b + i] = y;
        }
        double inverse = 1 / a[p * b + p];
        for (int64_t i = 0; i < b; i++)
            a[p * b + i] *= inverse, c[p * b + i] *= inverse;
        for (int64_t r = 0; r < b; r++) {
            double f = a[r * b + p];
            for (int64_t i = 0; r != p && f != 0 && i < b; i++)
                a[r * b + i] -= f * a[p * b + i], c[r * b + i] -= f * c[p * b + i];
        }
    }
    return true;
}

/* (I + Q) (I - Q)^-1 into r; both factors commute. work: [b, b]. */
static bool cayley(const double *q, int64_t b, double *work, double *r)
{
    for (int64_t i = 0; i < b * b; i++) {
        double one = i / b == i % b;
        work[i] = one - q[i];
        r[i] = one + q[i];
    }
    return solve(work, r, b);
}

/* m = R - I, or its transpose. */
static void keep(const double *r, int64_t b, bool transposed, float *m)
{
    for (int64_t i = 0; i < b; i++)
        for (int64_t j = 0; j < b; j++)
            m[i * b + j] = (float)(r[transposed ? j * b + i : i * b + j] - (i == j));
}

/* Q = B - B' of `n` blocks in place, shrunk to the limit. */
static void skew(double *q, int64_t n, int64_t b, double limit)
{
    double norm = 0;

    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < b; i++)
            for (int64_t j = 0; j <= i; j++) {
                double v = q[(k * b + i) * b + j] - q[(k * b + j) * b + i];
                q[(k * b + i) * b + j] = v;
                q[(k * b + j) * b + i] = -v;
                norm += 2 * v * v;
            }
    norm = sqrt(norm) + 1e-8;
    for (int64_t i = 0; limit > 0 && norm > limit && i < n * b * b; i++)
        q[i] *= limit / norm;
}

/* PEFT's triangles as skew blocks. */
static void unfold(const float *t, int64_t n, int64_t b, double *q)
{
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < b; i++)
            for (int64_t j = i + 1; j < b; j++, t++) {
                q[(k * b + i) * b + j] = -(double)*t; /* R is (I - Q) (I + Q)^-1 here */
                q[(k * b + j) * b + i] = (double)*t;
            }
}

static kron_status turn_all(const double *q, int64_t n, int64_t b, bool transposed, float *mix)
{
    double *r;
    void *mem;
    bool ok = true;

    KRON_TRY(mem_alloc_n(&mem, (size_t)(2 * b * b), sizeof *r, "a rotation"));
    r = mem;
    for (int64_t k = 0; k < n && ok; k++) {
        ok = cayley(q + k * b * b, b, r + b * b, r);
        keep(r, b, transposed, mix + k * b * b);
    }
    mem_free(mem);
    return ok ? KRON_OK : err_set(KRON_ERR_FORMAT, "its blocks are no rotation");
}

/* Blocks of LyCORIS or kohya as d->mix. */
static kron_status from_blocks(const struct bind *b, const struct tensor *t, struct delta *d)
{
    int64_t n = d->stages * d->n_blocks, size = n * d->block * d->block;
    const struct tensor *alpha = b->m->part[AP_ALPHA];
    const float *from;
    float limit = 0, *mix;
    double *q;
    void *mem;

    KRON_TRY(factor_floats(b, t, size, &from));
    KRON_TRY(factor_zeros(b, size, &mix));
    d->mix = mix;
    if (alpha != NULL && tensor_elements(alpha) == 1)
        tensor_decode(alpha, 0, 1, &limit);
    KRON_TRY(mem_alloc_n(&mem, (size_t)size, sizeof *q, "rotations"));
    q = mem;
    for (int64_t i = 0; i < size; i++)
        q[i] = (double)from[i];
    skew(q, n, d->block, (double)limit * (double)b->l->out);
    kron_status status = turn_all(q, n, d->block, d->butterfly, mix);
    mem_free(mem);
    return status;
}

/* Rotations that are stored as they are. */
static kron_status from_diag(const struct bind *b, const struct tensor *t, struct delta *d)
{
    int64_t size = d->n_blocks * d->block * d->block;
    const float *from;
    float *mix;

    KRON_TRY(factor_floats(b, t, size, &from));
    KRON_TRY(factor_zeros(b, size, &mix));
    d->mix = mix;
    for (int64_t i = 0; i < size; i++)
        mix[i] = from[i] - (i % (d->block * d->block) / d->block == i % d->block ? 1 : 0);
    return KRON_OK;
}

static kron_status bind_left(const struct bind *b, const struct tensor *t, bool is_rotation,
                             struct delta *d)
{
    const struct layer *l = b->l;
    bool butterfly = t->n_dims == 4;
    const int64_t *dim = t->dim + (butterfly ? 1 : 0);
    const struct tensor *rescale = b->m->part[AP_RESCALE];

    d->kind = DELTA_LEFT;
    d->butterfly = butterfly;
    d->stages = butterfly ? (int)t->dim[0] : 1;
    d->n_blocks = dim[0];
    d->block = dim[1];
    if (t->n_dims < 3 || t->n_dims > (is_rotation ? 3 : 4) || d->block < 1 || d->n_blocks < 1 ||
        dim[2] != d->block || l->out % d->block != 0 || l->out / d->block != d->n_blocks)
        return misfit(b, t);
    /* Stage i takes rows 2^i b/2 apart in pairs. */
    if (butterfly && (d->stages > 30 || d->block % 2 != 0 || d->stages < 1 ||
                      l->out % (d->block << (d->stages - 1)) != 0))
        return misfit(b, t);
    if (rescale != NULL && tensor_elements(rescale) != l->out)
        return misfit(b, rescale);
    if (rescale != NULL)
        KRON_TRY(factor_floats(b, rescale, l->out, &d->rescale));
    return is_rotation ? from_diag(b, t, d) : from_blocks(b, t, d);
}

static kron_status bind_right(const struct bind *b, const struct tensor *t, struct delta *d)
{
    int64_t k = layer_k(b->l), n = t->dim[0], bb = 1, size;
    const float *from;
    float *mix;
    void *q;

    while (bb <= k && bb * (bb - 1) / 2 < t->dim[1])
        bb++;
    d->kind = DELTA_RIGHT;
    d->stages = 1;
    d->block = bb;
    d->n_blocks = k / bb;
    if (n < 1 || !shape_is(t, n, bb * (bb - 1) / 2, 1, 1) || k % bb != 0 ||
        (n != 1 && n != d->n_blocks))
        return misfit(b, t);
    size = bb * bb;
    KRON_TRY(factor_floats(b, t, tensor_elements(t), &from));
    KRON_TRY(factor_zeros(b, d->n_blocks * size, &mix));
    d->mix = mix;
    KRON_TRY(mem_alloc_n(&q, (size_t)(n * size), sizeof(double), "rotations"));
    unfold(from, n, bb, q);
    kron_status status = turn_all(q, n, bb, true, mix);
    mem_free(q);
    for (int64_t i = 1; n == 1 && i < d->n_blocks; i++)
        memcpy(mix + i * size, mix, (size_t)size * sizeof *mix);
    return status;
}

kron_status oft_bind(const struct bind *b, struct delta *d)
{
    const struct tensor *const *p = b->m->part;

    if (p[AP_OFT_R] != NULL)
        return bind_right(b, p[AP_OFT_R], d);
    if (p[AP_OFT_BLOCKS] != NULL)
        return bind_left(b, p[AP_OFT_BLOCKS], false, d);
    if (p[AP_OFT_DIAG] != NULL)
        return bind_left(b, p[AP_OFT_DIAG], true, d);
    return err_set(KRON_ERR_FORMAT, "has rescale but no oft_blocks");
}
