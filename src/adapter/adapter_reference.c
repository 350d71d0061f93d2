/* SPDX-License-Identifier: MIT
 * The families by their definitions: number by number from the file's own tensors, in double,
 * sharing nothing with the canonical forms but the scale. Slow; for tests. */
#include "adapter/family.h"
#include <math.h>

static double at(const struct tensor *t, int64_t i)
{
    float v;

    tensor_decode(t, i, 1, &v);
    return v;
}

/* sum over p, q of core[p, q, w] a[p, o] b[q, i] of a Tucker form, where a's rows are p. */
static double tucker_at(const struct tensor *core, const struct tensor *a, const struct tensor *b,
                        int64_t ks, int64_t o, int64_t i, int64_t w)
{
    int64_t r1 = core->dim[0], r2 = core->dim[1];
    double sum = 0;

    for (int64_t p = 0; p < r1; p++)
        for (int64_t q = 0; q < r2; q++)
            sum += at(core, (p * r2 + q) * ks + w) * at(a, p * a->dim[1] + o) *
                   at(b, q * b->dim[1] + i);
    return sum;
}

/* (a b)[o, c] where b has `width` columns in all. */
static double pair_at(const struct tensor *a, const struct tensor *b, int64_t width, int64_t o,
                      int64_t c)
{
    int64_t r = a->dim[1];
    double sum = 0;

    for (int64_t q = 0; q < r; q++)
        sum += at(a, o * r + q) * at(b, q * width + c);
    return sum;
}

struct place { /* of a number of W[out, in, kh*kw] */
    int64_t o, i, w, c, ks, k;
};

static double lora_at(const struct adapter_module *m, const struct place *x)
{
    const struct tensor *up = m->part[AP_LORA_UP], *down = m->part[AP_LORA_DOWN];
    const struct tensor *mid = m->part[AP_LORA_MID];
    double sum = 0;

    if (mid == NULL)
        return pair_at(up, down, x->k, x->o, x->c);
    for (int64_t p = 0; p < mid->dim[0]; p++)
        for (int64_t q = 0; q < mid->dim[1]; q++)
            sum += at(up, x->o * mid->dim[0] + p) *
                   at(mid, (p * mid->dim[1] + q) * x->ks + x->w) *
                   at(down, q * down->dim[1] + x->i);
    return sum;
}

static double loha_at(const struct adapter_module *m, const struct place *x)
{
    const struct tensor *const *p = m->part;

    if (p[AP_HADA_T1] != NULL)
        return tucker_at(p[AP_HADA_T1], p[AP_HADA_W1_A], p[AP_HADA_W1_B], x->ks, x->o, x->i,
                         x->w) *
               tucker_at(p[AP_HADA_T2], p[AP_HADA_W2_A], p[AP_HADA_W2_B], x->ks, x->o, x->i, x->w);
    return pair_at(p[AP_HADA_W1_A], p[AP_HADA_W1_B], x->k, x->o, x->c) *
           pair_at(p[AP_HADA_W2_A], p[AP_HADA_W2_B], x->k, x->o, x->c);
}

static double lokr_at(const struct adapter_module *m, const struct lokr_shape *s,
                      const struct place *x)
{
    const struct tensor *const *p = m->part;
    int64_t i = x->o / s->vp, j = x->o % s->vp, l = x->c / s->m, n = x->c % s->m;
    double w1 = p[AP_LOKR_W1] != NULL
                    ? at(p[AP_LOKR_W1], i * s->uq + l)
                    : pair_at(p[AP_LOKR_W1_A], p[AP_LOKR_W1_B], s->uq, i, l);

    if (p[AP_LOKR_W2] != NULL)
        return w1 * at(p[AP_LOKR_W2], j * s->m + n);
    if (p[AP_LOKR_T2] != NULL)
        return w1 * tucker_at(p[AP_LOKR_T2], p[AP_LOKR_W2_A], p[AP_LOKR_W2_B], x->ks, j,
                              n / x->ks, n % x->ks);
    return w1 * pair_at(p[AP_LOKR_W2_A], p[AP_LOKR_W2_B], s->m, j, n);
}

/* Whether the module fits: asks the family itself, whose factors are dropped at once. */
static kron_status check_fit(const struct adapter_file *f, const struct adapter_module *m,
                             const struct layer *l, kron_status (*ask)(const struct bind *,
                                                                       struct delta *))
{
    struct factor_pool pool = {0};
    struct bind b = {f, m, l, &pool};
    struct delta d = {0};
    kron_status status = ask(&b, &d);

    factor_pool_free(&pool);
    return status;
}

static kron_status add_product(const struct adapter_file *f, const struct adapter_module *m,
                               const struct layer *l, enum fam fam, double *dw)
{
    struct lokr_shape s = {0};
    struct place x = {.ks = (int64_t)l->kh * l->kw, .k = layer_k(l)};
    double scale = 1;

    KRON_TRY(check_fit(f, m, l, fam == FAM_LORA   ? lora_bind
                                : fam == FAM_LOHA ? loha_bind
                                : fam == FAM_LOKR ? lokr_bind
                                                  : full_bind));
    if (fam == FAM_LORA)
        scale = module_scale(f, m, m->part[AP_LORA_DOWN]->dim[0], 0);
    if (fam == FAM_LOHA)
        scale = module_scale(f, m, m->part[AP_HADA_W1_B]->dim[0], 0);
    if (fam == FAM_LOKR) {
        KRON_TRY(lokr_shape(m, l, &s));
        scale = module_scale(f, m, s.rank, s.uq);
    }
    for (x.o = 0; x.o < l->out; x.o++)
        for (x.c = 0; x.c < x.k; x.c++) {
            double v;
            x.i = x.c / x.ks;
            x.w = x.c % x.ks;
            v = fam == FAM_LORA   ? lora_at(m, &x)
                : fam == FAM_LOHA ? loha_at(m, &x)
                : fam == FAM_LOKR ? lokr_at(m, &s, &x)
                                  : at(m->part[AP_DIFF], x.o * x.k + x.c);
            dw[x.o * x.k + x.c] += scale * v;
        }
    return KRON_OK;
}

/* --- families that look at W --- */

/* dw, the change without DoRA, becomes the change with it. */
static kron_status rescale(const struct adapter_file *f, const struct adapter_module *m,
                           const struct layer *l, const double *w, double *dw)
{
    const struct tensor *t = m->part[AP_DORA_SCALE];
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    struct delta d = {0};
    struct factor_pool pool = {0};
    struct bind b = {f, m, l, &pool};
    kron_status status = dora_bind(&b, &d);

    factor_pool_free(&pool);
    KRON_TRY(status);
    bool by_row = d.axis == GAIN_OUT;
    for (int64_t i = 0; i < (by_row ? l->out : l->in); i++) {
        double sum = 0;
        for (int64_t j = 0; j < l->out * k; j++)
            if ((by_row ? j / k : j % k / ks) == i)
                sum += (w[j] + dw[j]) * (w[j] + dw[j]);
        for (int64_t j = 0; j < l->out * k; j++)
            if ((by_row ? j / k : j % k / ks) == i)
                dw[j] = at(t, i) * (w[j] + dw[j]) / sqrt(sum) - w[j];
    }
    return KRON_OK;
}

static kron_status add_ia3(const struct adapter_file *f, const struct adapter_module *m,
                           const struct layer *l, const double *w, double *dw)
{
    const struct tensor *t = m->part[AP_IA3_L] ? m->part[AP_IA3_L] : m->part[AP_IA3_WEIGHT];
    double less = m->part[AP_IA3_L] ? 1 : 0;
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    bool input;

    KRON_TRY(check_fit(f, m, l, ia3_bind));
    if (m->part[AP_IA3_L] != NULL)
        input = !shape_is(t, l->out, 1, 1, 1) && !(l->is_conv && shape_is(t, 1, l->out, 1, 1));
    else
        input = at(m->part[AP_IA3_ON_INPUT], 0) != 0;
    for (int64_t j = 0; j < l->out * k; j++)
        dw[j] += w[j] * (at(t, input ? j % k / ks : j / k) - less);
    return KRON_OK;
}

static kron_status add_glora(const struct adapter_file *f, const struct adapter_module *m,
                             const struct layer *l, const double *w, double *dw)
{
    struct bind b = {f, m, l, NULL};
    struct glora_parts g;
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;

    KRON_TRY(glora_parts(&b, &g));
    double c = module_scale(f, m, g.rank, 0);
    for (int64_t o = 0; o < l->out; o++)
        for (int64_t col = 0; col < k; col++) {
            double sum = 0;
            for (int64_t i = 0; i < l->in; i++)
                sum += w[o * k + i * ks + col % ks] * pair_at(g.left, g.right, l->in, i, col / ks);
            if (m->part[AP_GLORA_BM] == NULL)
                sum += pair_at(g.up, g.down, k, o, col);
            for (int64_t p = 0; m->part[AP_GLORA_BM] != NULL && p < g.rank; p++)
                for (int64_t q = 0; q < g.rank; q++)
                    sum += at(g.up, o * g.rank + p) *
                           at(m->part[AP_GLORA_BM], (p * g.rank + q) * ks + col % ks) *
                           at(g.down, q * l->in + col / ks);
            dw[o * k + col] += c * sum;
        }
    return KRON_OK;
}

/* --- rotations --- */

/* r = (I + Q) (I - Q)^-1, the inverse by Newton's iteration x <- x (2 I - a x), which starts from
 * a' / |a|^2 and doubles its digits each time. work: three blocks. */
static void rotation(const double *q, int64_t b, double *r, double *work)
{
    double *a = work, *x = a + b * b, *ax = x + b * b, norm = 0;

    for (int64_t i = 0; i < b * b; i++) {
        a[i] = (i / b == i % b) - q[i];
        norm += a[i] * a[i];
    }
    for (int64_t i = 0; i < b * b; i++)
        x[i] = a[i % b * b + i / b] / norm;
    for (int step = 0; step < 60; step++) {
        for (int64_t i = 0; i < b * b; i++) {
            ax[i] = i / b == i % b ? 2 : 0;
            for (int64_t j = 0; j < b; j++)
                ax[i] -= a[i / b * b + j] * x[j * b + i % b];
        }
        for (int64_t i = 0; i < b * b; i++) {
            r[i] = 0;
            for (int64_t j = 0; j < b; j++)
                r[i] += x[i / b * b + j] * ax[j * b + i % b];
        }
        for (int64_t i = 0; i < b * b; i++)
            x[i] = r[i];
    }
    for (int64_t i = 0; i < b * b; i++) {
        r[i] = x[i];
        for (int64_t j = 0; j < b; j++)
            r[i] += q[i / b * b + j] * x[j * b + i % b];
    }
}

/* One stage of turning: rows [n, width] of w, of which block k's rows are row(k, e). */
struct turning {
    const struct adapter_module *m;
    const struct layer *l;
    int64_t b, n;
    double shrink; /* what alpha leaves of Q */
    double *block, *rows; /* five blocks; b rows */
};

static double q_at(const struct turning *t, const struct tensor *blocks, int64_t k, int64_t i,
                   int64_t j)
{
    return t->shrink *
           (at(blocks, (k * t->b + i) * t->b + j) - at(blocks, (k * t->b + j) * t->b + i));
}

static double shrink_of(const struct turning *t, const struct tensor *blocks, int64_t n)
{
    const struct tensor *alpha = t->m->part[AP_ALPHA];
    double limit = alpha != NULL ? at(alpha, 0) * (double)t->l->out : 0, sum = 0;

    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < t->b * t->b; i++)
            sum += q_at(t, blocks, k, i / t->b, i % t->b) * q_at(t, blocks, k, i / t->b, i % t->b);
    return limit > 0 && sqrt(sum) + 1e-8 > limit ? limit / (sqrt(sum) + 1e-8) : 1;
}

static void turn_block(const struct turning *t, int64_t (*row)(int stage, int64_t p, int64_t b),
                       int stage, int64_t k, bool transposed, double *w)
{
    int64_t width = layer_k(t->l);

    for (int64_t e = 0; e < t->b; e++)
        for (int64_t c = 0; c < width; c++) {
            double sum = 0;
            for (int64_t i = 0; i < t->b; i++)
                sum += t->block[transposed ? i * t->b + e : e * t->b + i] *
                       w[row(stage, k * t->b + i, t->b) * width + c];
            t->rows[e * width + c] = sum;
        }
    for (int64_t e = 0; e < t->b; e++)
        for (int64_t c = 0; c < width; c++)
            w[row(stage, k * t->b + e, t->b) * width + c] = t->rows[e * width + c];
}

static int64_t follow_on(int stage, int64_t p, int64_t b)
{
    (void)stage, (void)b;
    return p;
}

/* Row numbers as [-1, 2, 2^stage b/2], the last two axes swapped. */
static int64_t butterfly(int stage, int64_t p, int64_t b)
{
    int64_t apart = ((int64_t)1 << stage) * b / 2;

    return p / (2 * apart) * 2 * apart + p % 2 * apart + p % (2 * apart) / 2;
}

static void turn_left(struct turning *t, double *w)
{
    const struct tensor *blocks = t->m->part[AP_OFT_BLOCKS], *diag = t->m->part[AP_OFT_DIAG];
    const struct tensor *scale = t->m->part[AP_RESCALE];
    bool many = blocks != NULL && blocks->n_dims == 4;
    int stages = many ? (int)blocks->dim[0] : 1;

    if (blocks != NULL)
        t->shrink = shrink_of(t, blocks, stages * t->n);
    for (int64_t k = 0; k < stages * t->n; k++) {
        for (int64_t i = 0; i < t->b * t->b; i++) {
            if (diag != NULL)
                t->block[i] = at(diag, k * t->b * t->b + i);
            else
                t->block[t->b * t->b + i] = q_at(t, blocks, k, i / t->b, i % t->b);
        }
        if (diag == NULL)
            rotation(t->block + t->b * t->b, t->b, t->block, t->block + 2 * t->b * t->b);
        turn_block(t, many ? butterfly : follow_on, (int)(k / t->n), k % t->n, !many, w);
    }
    for (int64_t i = 0; scale != NULL && i < t->l->out * layer_k(t->l); i++)
        w[i] *= at(scale, i / layer_k(t->l));
}

/* PEFT's: columns of each row, W' = W R', R of -Q. */
static void turn_right(struct turning *t, double *w)
{
    const struct tensor *tri = t->m->part[AP_OFT_R];
    int64_t b = t->b, k = layer_k(t->l), each = b * (b - 1) / 2;

    for (int64_t j = 0; j < t->n; j++) {
        int64_t from = tri->dim[0] == 1 ? 0 : j * each;
        for (int64_t p = 0; p < b; p++)
            for (int64_t q = p; q < b; q++) {
                double v = p == q ? 0 : at(tri, from++);
                t->block[b * b + p * b + q] = -v;
                t->block[b * b + q * b + p] = v;
            }
        rotation(t->block + b * b, b, t->block, t->block + 2 * b * b);
        for (int64_t o = 0; o < t->l->out; o++) {
            for (int64_t e = 0; e < b; e++) {
                t->rows[e] = 0;
                for (int64_t i = 0; i < b; i++)
                    t->rows[e] += w[o * k + j * b + i] * t->block[e * b + i];
            }
            for (int64_t e = 0; e < b; e++)
                w[o * k + j * b + e] = t->rows[e];
        }
    }
}

static kron_status add_turned(const struct adapter_file *f, const struct adapter_module *m,
                              const struct layer *l, const double *w, double *dw)
{
    struct factor_pool pool = {0};
    struct bind b = {f, m, l, &pool};
    struct delta d = {0};
    struct turning t = {.m = m, .l = l, .shrink = 1};
    int64_t all = l->out * layer_k(l);
    double *mem;
    void *p;
    kron_status status = oft_bind(&b, &d); /* checks the shapes */

    factor_pool_free(&pool);
    KRON_TRY(status);
    t.b = d.block;
    t.n = d.n_blocks;
    KRON_TRY(mem_alloc_n(&p, (size_t)(all + 5 * t.b * t.b + t.b * layer_k(l)), sizeof *mem,
                         l->name));
    mem = p;
    t.block = mem + all;
    t.rows = t.block + 5 * t.b * t.b;
    for (int64_t i = 0; i < all; i++)
        mem[i] = w[i];
    (d.kind == DELTA_LEFT ? turn_left : turn_right)(&t, mem);
    for (int64_t i = 0; i < all; i++)
        dw[i] += mem[i] - w[i];
    mem_free(p);
    return KRON_OK;
}

/* --- a module --- */

static kron_status add_norm(const struct adapter_file *f, const struct adapter_module *m,
                            const struct layer *l, double *dw)
{
    KRON_TRY(check_fit(f, m, l, norm_bind));
    for (int64_t i = 0; m->part[AP_W_NORM] != NULL && i < l->out; i++)
        dw[i] += at(m->part[AP_W_NORM], i);
    return KRON_OK;
}

static kron_status add_set(const struct adapter_file *f, const struct adapter_module *m,
                           const struct layer *l, const double *w, double *dw)
{
    KRON_TRY(check_fit(f, m, l, set_bind));
    for (int64_t i = 0; i < l->out * layer_k(l); i++)
        dw[i] += at(m->part[AP_SET_WEIGHT], i) - w[i];
    return KRON_OK;
}

/* One family of a module, w being the plain weight. */
static kron_status add_family(const struct adapter_file *f, const struct adapter_module *m,
                              const struct layer *l, enum fam fam, const double *w, double *dw)
{
    switch (fam) {
    case FAM_LORA:
    case FAM_LOHA:
    case FAM_LOKR:
    case FAM_FULL:
        KRON_TRY(add_product(f, m, l, fam, dw));
        return m->part[AP_DORA_SCALE] != NULL ? rescale(f, m, l, w, dw) : KRON_OK;
    case FAM_OFT:
    case FAM_BOFT:
        return add_turned(f, m, l, w, dw);
    case FAM_IA3:
        return add_ia3(f, m, l, w, dw);
    case FAM_GLORA:
        return add_glora(f, m, l, w, dw);
    case FAM_NORM:
        return add_norm(f, m, l, dw);
    case FAM_SET:
        return add_set(f, m, l, w, dw);
    default:
        return KRON_OK;
    }
}

/* Each family starts from the plain weight: its change is made on its own and added. */
static kron_status add_families(const struct adapter_file *f, const struct adapter_module *m,
                                const struct layer *l, const double *w, double *one, double *dw)
{
    unsigned fams = module_families(m);
    int64_t n = l->out * layer_k(l);

    for (int i = 0; i < FAM_COUNT; i++) {
        if (!(fams & 1u << i))
            continue;
        for (int64_t j = 0; j < n; j++)
            one[j] = 0;
        KRON_TRY(add_family(f, m, l, (enum fam)i, w, one));
        for (int64_t j = 0; j < n; j++)
            dw[j] += one[j];
    }
    return KRON_OK;
}

kron_status adapter_reference(const struct adapter_file *f, int module, const struct layer *l,
                              double *dw)
{
    const struct adapter_module *m = &f->modules[module];
    int64_t n = l->out * layer_k(l);
    double *w;
    void *p;

    for (int i = 0; i < AP_COUNT; i++)
        if (m->part[i] != NULL && fam_kind(part_family((enum ap)i)) == FAM_WHOLE)
            return err_set(KRON_ERR_UNSUPPORTED, "%s: %s is not supported", m->prefix,
                           fam_text(part_family((enum ap)i)));
    KRON_TRY(mem_alloc_n(&p, 2 * (size_t)n, sizeof *w, l->name));
    w = p;
    for (int64_t i = 0; l->weight.data != NULL && i < n; i++)
        w[i] = at(&l->weight, i);
    kron_status status = add_families(f, m, l, w, w + n, dw);
    mem_free(p);
    return status;
}
