/* SPDX-License-Identifier: MIT
 * A plain model of linear layers in whole numbers, and its bounds. */
#include "int8.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double unit = 0x1p-24;

/* --- cases --- */

enum { MOST_WORK = 4000000 }; /* the model is slow */

/* "--op linear ..." becomes "--op linear_int8 ...". */
static void name_case(struct test_case *t, uint64_t seed)
{
    char text[sizeof t->text];
    const char *name = gr_op_name(t->g.ops[t->op].kind);

    memcpy(text, t->text, sizeof text);
    snprintf(t->text, sizeof t->text, "--op %s_int8%.*s%s%s", name,
             (int)(sizeof text - 50), text + strlen("--op ") + strlen(name),
             t->g.ops[t->op].keep ? ", kept" : "", seed % 4 == 0 ? ", outliers" : "");
}

bool int8_case(struct test_case *t, struct test_case *twin, uint64_t seed)
{
    const struct layer *l = &t->layer[0];
    int64_t k = l->in, rows = (int64_t)(t->bind_bytes[0] / 4) / k;

    if (t->g.status != KRON_OK || twin->g.status != KRON_OK)
        return false;
    struct gr_op *op = &t->g.ops[t->op];
    op->compute = COMPUTE_INT8;
    op->keep = seed % 3 == 0;
    if (rows * l->out * k > MOST_WORK)
        return false;
    for (int64_t i = 0; seed % 4 == 0 && i < k; i += 37) /* columns far beyond the others */
        for (int64_t r = 0; r < rows; r++) {
            ((float *)t->bind_data[0])[r * k + i] *= 40;
            ((float *)twin->bind_data[0])[r * k + i] *= 40;
        }
    name_case(t, seed);
    return true;
}

/* --- the model --- */

/* A matrix of whole numbers with what each group of each row means. */
struct whole {
    double *v, *scale, *zero;
};

struct model {
    const struct test_case *t, *twin;
    const struct int8_kernels *k;
    int64_t rows, in, out, groups;
    const float *x;
    double *in_rows, *beside;   /* weights [out, in]: quantised, and added in f32 */
    double *bias;
    struct whole a, w;          /* a: activations */
    double *size, *size_scale;  /* sums of |parts| of the weight: whichever part is in its rows */
    double *doubt;              /* [out, in]: 1 where a weight may round either way */
    bool *outlier;
};

static kron_status doubles(struct test_case *t, double **out, int64_t n)
{
    *out = arena_alloc(&t->mem, (size_t)n * sizeof **out + 1);
    return t->mem.status;
}

static kron_status model_take(struct model *m)
{
    struct test_case *t = (struct test_case *)m->t;
    int64_t all = m->out * m->in;

    KRON_TRY(doubles(t, &m->in_rows, all));
    KRON_TRY(doubles(t, &m->beside, all));
    KRON_TRY(doubles(t, &m->bias, m->out));
    KRON_TRY(doubles(t, &m->size, all));
    KRON_TRY(doubles(t, &m->size_scale, m->out * m->groups));
    KRON_TRY(doubles(t, &m->doubt, all));
    KRON_TRY(doubles(t, &m->w.v, all));
    KRON_TRY(doubles(t, &m->w.scale, m->out * m->groups));
    KRON_TRY(doubles(t, &m->a.v, m->rows * m->in));
    KRON_TRY(doubles(t, &m->a.scale, m->rows * m->groups));
    KRON_TRY(doubles(t, &m->a.zero, m->rows * m->groups));
    m->outlier = arena_alloc(&t->mem, (size_t)m->in + 1);
    return t->mem.status;
}

/* Which deltas go into the rows: all, or none; false where it depends. */
static bool split_weight(struct model *m)
{
    const struct layer *l = &m->t->layer[0];
    struct delta_list list = m->t->list[0];
    enum gr_route route = m->t->g.ops[m->t->op].route;
    bool plain = true, exact = true;
    float v;

    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        exact = exact && d->region == NULL && d->kind != DELTA_LEFT;
        plain = plain && d->axis == GAIN_NONE && !d->replace && d->kind != DELTA_RIGHT;
    }
    layer_weight_ref(l, list, m->t->strengths, m->in_rows);
    layer_weight_ref(&m->twin->layer[0], m->twin->list[0], m->twin->strengths, m->size);
    layer_bias_ref(l, list, m->t->strengths, m->bias);
    if (list.n == 0 || route == ROUTE_WEIGHT || route == ROUTE_MERGED)
        return exact;
    for (int64_t i = 0; i < m->out * m->in; i++) {
        tensor_decode(&l->weight, i, 1, &v);
        m->beside[i] = m->in_rows[i] - (double)v;
        m->in_rows[i] = (double)v;
    }
    return exact && plain && route == ROUTE_ACTIVATION;
}

/* The steps of int8.h for one group of a row, each rounded to f32 as said there. */
static void model_group(struct model *m, int64_t r, int64_t g)
{
    int64_t first = g * INT8_GROUP, end = first + INT8_GROUP < m->in ? first + INT8_GROUP : m->in;
    double *v = m->a.v + r * m->in;
    float lo = 0, hi = 0;

    for (int64_t i = first; i < end; i++) {
        float x = m->outlier[i] ? 0 : m->x[r * m->in + i];
        lo = fminf(lo, x);
        hi = fmaxf(hi, x);
    }
    float span = hi - lo, inv = span > 0 ? (float)m->k->x_most / span : 0;
    float zero = (float)rint((double)(-lo * inv));
    m->a.scale[r * m->groups + g] = (double)(span / (float)m->k->x_most);
    m->a.zero[r * m->groups + g] = (double)zero;
    for (int64_t i = first; i < end; i++) {
        float x = (m->outlier[i] ? 0 : m->x[r * m->in + i]) * inv;
        x = x + zero;
        v[i] = rint(fmin(fmax((double)x, 0), m->k->x_most));
    }
}

static void model_activations(struct model *m)
{
    float *most = arena_alloc(&((struct test_case *)m->t)->mem, (size_t)m->in * sizeof *most + 1);
    int32_t out[INT8_OUTLIERS];

    for (int64_t i = 0; most != NULL && i < m->rows * m->in; i++)
        most[i % m->in] = fmaxf(most[i % m->in], fabsf(m->x[i]));
    int n = most ? int8_outliers(most, m->in, out) : 0;
    for (int i = 0; i < n; i++)
        m->outlier[out[i]] = true;
    for (int64_t e = 0; e < m->rows * m->groups; e++)
        model_group(m, e / m->groups, e % m->groups);
}

/* Where f32's roundings of a weight may show: within `terms` of them of a half. */
static void model_weights(struct model *m, double terms)
{
    for (int64_t e = 0; e < m->out * m->groups; e++) {
        int64_t o = e / m->groups, first = e % m->groups * INT8_GROUP;
        int64_t end = first + INT8_GROUP < m->in ? first + INT8_GROUP : m->in;
        const double *row = m->in_rows + o * m->in;
        double most = 0, size = 0, all = 0;
        for (int64_t i = first; i < end; i++) {
            most = fmax(most, fabs((double)(float)row[i]));
            size = fmax(size, m->size[o * m->in + i]);
        }
        for (int64_t i = 0; i < m->in; i++)
            all = fmax(all, m->size[o * m->in + i]);
        m->w.scale[e] = most / m->k->w_most;
        m->size_scale[e] = size / m->k->w_most;
        double inv = most > 0 ? m->k->w_most / most : 0;
        for (int64_t i = first; i < end; i++) {
            double v = row[i] * inv, from_half = fabs(fabs(v - rint(v)) - 0.5);
            m->w.v[o * m->in + i] = rint(v);
            m->doubt[o * m->in + i] = from_half < 4 * unit * terms * (m->k->w_most + all * inv);
        }
    }
}

/* --- one product --- */

struct sums {
    double value, near, far;
};

static struct sums product_of(const struct model *m, int64_t r, int64_t o, double abs_want,
                              double terms)
{
    const double *w = m->in_rows + o * m->in, *b = m->beside + o * m->in;
    const double *size = m->size + o * m->in;
    double plain = 0, flips = 0, far = 0;

    for (int64_t i = 0; i < m->in; i++) {
        int64_t g = i / INT8_GROUP, ag = r * m->groups + g, wg = o * m->groups + g;
        double sa = m->a.scale[ag], sw = m->w.scale[wg], sf = m->size_scale[wg];
        double x = (double)m->x[r * m->in + i], q = m->a.v[r * m->in + i] - m->a.zero[ag];
        plain += b[i] * x;
        if (m->outlier[i]) {
            plain += w[i] * x;
            continue;
        }
        plain += sa * sw * q * m->w.v[o * m->in + i];
        flips += m->doubt[o * m->in + i] * fabs(q * sa) * sw;
        far += (fabs(x) * sf + size[i] * sa + sf * sa) * 0.51;
    }
    return (struct sums){plain + m->bias[o], 2 * unit * terms * abs_want + flips, far};
}

/* Left deltas mix the errors of a row's numbers with each other. */
static double turn_of(const struct test_case *t)
{
    double factor = 1;

    for (int i = 0; i < t->list[0].n; i++) {
        const struct delta *d = &t->list[0].at[i];
        double s = fabs((double)t->strengths[d->strength]), most = 0, scale = 0;
        if (d->kind != DELTA_LEFT)
            continue;
        for (int64_t e = 0; e < d->stages * d->n_blocks * d->block * d->block; e++)
            most = fmax(most, fabs((double)d->mix[e]));
        for (int64_t e = 0; d->rescale != NULL && e < d->rows; e++)
            scale = fmax(scale, fabs((double)d->rescale[e] - 1));
        factor *= pow(1 + s * most * (double)d->block, d->stages) * (1 + s * scale);
    }
    return factor;
}

static double act_of(enum gr_act a, double x)
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

enum { STEEPEST = 2 }; /* over 1.13, the slope of any activation */

static void bound_linear(const struct model *m, struct int8_bounds *b, const float *abs_want,
                         double terms)
{
    const struct gr_op *op = &m->t->g.ops[m->t->op];
    const float *res = op->in[1] != GR_NONE ? m->t->bind_data[1] : NULL;

    double turn = turn_of(m->t);

    for (int64_t i = 0; i < m->rows * m->out; i++) {
        struct sums s = product_of(m, i / m->out, i % m->out, (double)abs_want[i], terms);
        b->model[i] = act_of(op->act, s.value) + (res ? (double)res[i] : 0);
        b->near[i] = STEEPEST * s.near + 4 * unit * fabs(b->model[i]);
        b->far[i] = STEEPEST * (s.far * turn + s.near) + 4 * unit * fabs(b->model[i]);
    }
}

static void bound_geglu(const struct model *m, struct int8_bounds *b, const float *abs_want,
                        double terms)
{
    int64_t half = m->out / 2;
    double turn = turn_of(m->t);

    for (int64_t i = 0; i < m->rows * half; i++) {
        int64_t r = i / half, o = i % half;
        const float *row = abs_want + r * m->out;
        struct sums v = product_of(m, r, o, (double)row[o], terms);
        struct sums g = product_of(m, r, half + o, (double)row[half + o], terms);
        double gate = act_of(ACT_GELU, g.value), near = STEEPEST * g.near;
        double far = STEEPEST * (g.far * turn + g.near);
        b->model[i] = v.value * gate;
        b->near[i] = v.near * (fabs(gate) + near) + fabs(v.value) * (near + 8 * unit * fabs(gate)) +
                     8 * unit * fabs(b->model[i]);
        b->far[i] = (v.far * turn + v.near) * ((double)row[half + o] + far) + (double)row[o] * far;
    }
}

kron_status int8_bounds_make(struct int8_bounds *b, const struct test_case *t,
                             const struct test_case *twin, const struct int8_kernels *k,
                             const float *abs_want, double terms)
{
    const struct layer *l = &t->layer[0];
    size_t n = (size_t)gr_elements(t->out_shape);
    struct model m = {.t = t, .twin = twin, .k = k, .in = l->in, .out = l->out,
                      .x = t->bind_data[0]};
    void *p;

    m.rows = (int64_t)(t->bind_bytes[0] / 4) / l->in;
    m.groups = int8_groups(l->in);
    KRON_TRY(mem_alloc_n(&p, 3 * n, sizeof(double), "a test"));
    b->model = p;
    b->near = b->model + n;
    b->far = b->near + n;
    KRON_TRY(model_take(&m));
    b->exact = split_weight(&m);
    model_activations(&m);
    model_weights(&m, terms);
    (t->g.ops[t->op].kind == OP_GEGLU ? bound_geglu : bound_linear)(&m, b, abs_want, terms + 4);
    return t->mem.status;
}

void int8_bounds_free(struct int8_bounds *b)
{
    mem_free(b->model);
}

/* --- extremes --- */

enum { EXTREME_K = 200, EXTREME_ROWS = 13 };

/* The sums are over 2^24: compared to the precision of f32. */
static bool set_is_right(const struct int8_kernels *k)
{
    static uint8_t x[EXTREME_ROWS * EXTREME_K];
    static int8_t q[64 * EXTREME_K];
    static float w[64 * EXTREME_K], y[EXTREME_ROWS * 64];
    float scale[2 * 64], sum[2 * 64], x_scale[2 * EXTREME_ROWS], zero[2 * EXTREME_ROWS] = {0};
    struct int8_tile t = {.x = x, .x_scale = x_scale, .x_zero = zero, .w = q, .w_scale = scale,
                          .w_sum = sum, .y = y, .rows = EXTREME_ROWS, .depth = EXTREME_K,
                          .groups = 2, .ldy = k->panel};
    double want = (double)k->x_most * k->w_most * EXTREME_K;
    bool right = true;

    memset(x, k->x_most, sizeof x);
    for (int64_t i = 0; i < k->panel * EXTREME_K; i++)
        w[i] = i / EXTREME_K % 2 == 0 ? 3.0f : -3.0f;
    for (int r = 0; r < 2 * EXTREME_ROWS; r++)
        x_scale[r] = 1;
    k->eight.pack(w, k->panel, EXTREME_K, EXTREME_K, q, scale, sum);
    for (int o = 0; o < 2 * k->panel; o++)
        scale[o] = 1;
    k->eight.product(&t);
    for (int i = 0; i < EXTREME_ROWS * k->panel; i++)
        right = right && fabs((double)y[i] - (i % k->panel % 2 == 0 ? want : -want)) <= want * unit;
    return right;
}

const char *int8_extremes(void)
{
    static const char *const masks[] = {"none", "avx2", "avxvnni", "avx512"};

    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        setenv("KRON_CPU_MASK", masks[i], 1);
        if (!set_is_right(int8_kernels_best()))
            return int8_kernels_best()->name;
    }
    unsetenv("KRON_CPU_MASK");
    return NULL;
}
