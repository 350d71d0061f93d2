/* SPDX-License-Identifier: MIT
 * Route = route = reference, from a file to the layer's output, over the product of family and
 * layout (adapter_rows.h), kind of layer, rank 1 and odd, batch, rows, and both storage types.
 *
 * What is expected comes from adapter_reference(): the family's formula, straight from the file,
 * in double. Each output of `ref` and of each route of `cpu` is held to the bound of
 * docs/numerics.md: the same file and layer with every number replaced by its size gives the sum
 * of |parts| that roundings are a share of. A case is made from its own seed; a failure prints
 * all that made it. Under sanitizers each case takes one pair of types in turn, not all. */
#include "adapter_rows.h"
#include "layer_run.h"

static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F8_E5M2};
enum { N_TYPES = sizeof types / sizeof *types, N_PAIRS = N_TYPES * N_TYPES };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { THIN = N_PAIRS };
#else
enum { THIN = 1 };
#endif

static const double unit = 0x1p-24;

static struct be_device *ref, *cpu;
static double worst; /* largest error as a share of its bound */

/* --- a case --- */

/* A layer with its file, as it is or with the size of every number. */
struct made {
    struct fx_one o;
    struct fx_file file;
    struct adapter_file *f;
    uint8_t *weight, *bias;
    double *w, *b; /* weight and bias with the change, by definition */
};

struct prop {
    const struct fx_row *row;
    enum fx_kind kind;
    int64_t r, uq;
    enum dtype base, factor;
    uint64_t seed;
    float strength;
    struct made one, sizes;
    struct adapter_set *set;
    struct layer_call call;
};

static void describe(const struct prop *p, char *buf, size_t n)
{
    static const char *const kinds[] = {"linear", "1x1", "3x3", "3x3 stride 2", "1x3"};
    const struct layer *l = &p->one.o.layer;

    snprintf(buf, n,
             "%s, %s [%d, %d], rank %d, %s layer, %s factors, strength %g, seed %llu, "
             "batch %d of %d x %d",
             p->row->name, kinds[p->kind], (int)l->out, (int)l->in, (int)p->r,
             dtype_info(p->base)->name, dtype_info(p->factor)->name, (double)p->strength,
             (unsigned long long)p->seed, (int)p->call.x.n, (int)p->call.x.h, (int)p->call.x.w);
}

static void fail_case(const struct prop *p, const char *what)
{
    char text[256];

    describe(p, text, sizeof text);
    fail_msg("%s: %s", text, what);
}

/* Random numbers of a storage type. */
static uint8_t *fill(enum dtype t, int64_t n, bool absolute, uint64_t *seed, struct tensor *out)
{
    size_t width = (size_t)dtype_info(t)->bytes;
    uint8_t *data = malloc((size_t)n * width);

    assert_non_null(data);
    for (int64_t i = 0; i < n; i++) {
        float v = fx_unit(seed);
        fx_encode(t, absolute ? fabsf(v) : v, data + (size_t)i * width);
    }
    *out = (struct tensor){.data = data,
                           .bytes = (size_t)n * width,
                           .type = t,
                           .n_dims = 1,
                           .dim = {n, 1, 1, 1, 1, 1},
                           .name = "base"};
    return data;
}

static double *decode(const struct tensor *t)
{
    int64_t n = tensor_elements(t);
    double *out = malloc((size_t)n * sizeof *out);

    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) {
        float v;
        tensor_decode(t, i, 1, &v);
        out[i] = v;
    }
    return out;
}

/* bare: without DoRA. */
static void make(struct prop *p, struct made *m, bool absolute, bool bare)
{
    uint64_t seed = p->seed;
    struct fx_maker maker = {.file = &m->file, .seed = &seed, .type = p->factor, .r = p->r};

    memset(m, 0, sizeof *m);
    fx_draw_sizes(p->row, p->kind, &maker);
    p->uq = maker.uq;
    fx_one_create(&m->o, maker.out, maker.in, maker.kh, maker.kw, p->kind != FX_LINEAR);
    m->weight =
        fill(p->base, maker.out * layer_k(&m->o.layer), absolute, &seed, &m->o.layer.weight);
    m->bias = fill(p->base, maker.out, absolute, &seed, &m->o.layer.bias);
    m->file.absolute = absolute;
    if (bare)
        p->row->add(&maker);
    else
        fx_row_add(p->row, &maker);
    if (fx_open(&m->file, &m->f, NULL) != KRON_OK)
        fail_case(p, kron_error_detail());
    m->w = decode(&m->o.layer.weight);
    m->b = decode(&m->o.layer.bias);
}

static void made_free(struct made *m)
{
    adapter_close(&m->f);
    fx_free(&m->file);
    adapter_names_free(&m->o.names);
    free(m->weight);
    free(m->bias);
    free(m->w);
    free(m->b);
}

/* Adds the change of the weight by its definition to m->w, times s. */
static void add_change(struct prop *p, struct made *m, double s)
{
    int64_t n = m->o.layer.out * layer_k(&m->o.layer);
    double *dw = calloc((size_t)n, sizeof *dw);

    assert_non_null(dw);
    if (adapter_reference(m->f, 0, &m->o.layer, dw) != KRON_OK)
        fail_case(p, kron_error_detail());
    for (int64_t i = 0; i < n; i++)
        m->w[i] += s * dw[i];
    free(dw);
}

/* The same for the bias, which adapter_reference() leaves out. */
static void add_bias(struct prop *p, struct made *m, double s)
{
    static const char *const parts[] = {"diff_b", "lora_up.bias", "ia3_l"};
    struct st_file *st;
    float alpha = 1, v;

    assert_int_equal(st_open_memory(&st, m->file.bytes, 8 + m->file.header.len + m->file.data.len,
                                    "test.safetensors"),
                     KRON_OK);
    for (int part = 0; part < 3; part++) {
        char name[64];
        snprintf(name, sizeof name, FX_PREFIX "%s", parts[part]);
        const struct tensor *t = st_find(st, name), *a = st_find(st, FX_PREFIX "alpha");
        if (t == NULL || (part == 2 && (t->dim[0] != m->o.layer.out || t->dim[1] != 1)))
            continue;
        if (part == 1)
            tensor_decode(a, 0, 1, &alpha);
        for (int64_t i = 0; i < m->o.layer.out; i++) {
            tensor_decode(t, i, 1, &v);
            m->b[i] += s * (part == 0   ? (double)v
                            : part == 1 ? (double)(alpha * v) / (double)p->r
                                        : m->b[i] * ((double)v - 1));
        }
    }
    st_close(&st);
}

/* --- sizes: what roundings of the effective weight are a share of --- */

/* A row of R - I is no longer than 2 and turning keeps the length of a column (or row), so that a
 * stage adds numbers of no more than twice that. */
static void add_turned(struct prop *p, double s)
{
    const struct layer *l = &p->one.o.layer;
    int64_t k = layer_k(l);
    bool rows = p->row->sum == FX_TURNS_ROWS;
    double *all = calloc((size_t)(l->out + k), sizeof *all), *w = p->sizes.w;

    assert_non_null(all);
    for (int64_t i = 0; i < l->out * k; i++)
        all[rows ? i % k : i / k] += w[i] * w[i];
    for (int64_t i = 0; i < l->out * k; i++)
        w[i] += 2 * s * p->row->stages * sqrt(all[rows ? i % k : i / k]);
    free(all);
}

/* DoRA: with V = W + c D, S its size, a row of W' = m / |V| V is off by m / |V| of what V is, and
 * by what |V| is off. Before: one.w is W + s (W' - W), sizes.w is S. */
static void add_lengths(struct prop *p, double s)
{
    const struct layer *l = &p->one.o.layer;
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw, n = l->out * k;
    bool columns = p->row->dora == FX_DORA_IN;
    double *sums = calloc((size_t)(l->out + l->in) * 3, sizeof *sums);
    struct made plain;

    assert_non_null(sums);
    make(p, &plain, false, true); /* becomes V, and first W' */
    for (int64_t i = 0; i < n; i++) {
        double turned = plain.w[i] + (p->one.w[i] - plain.w[i]) / (double)p->strength;
        sums[3 * (columns ? i % k / ks : i / k)] += turned * turned;
    }
    add_change(p, &plain, 1);
    for (int64_t i = 0; i < n; i++) {
        double *sum = sums + 3 * (columns ? i % k / ks : i / k);
        sum[1] += plain.w[i] * plain.w[i];
        sum[2] += p->sizes.w[i] * p->sizes.w[i];
    }
    for (int64_t i = 0; i < n; i++) {
        const double *sum = sums + 3 * (columns ? i % k / ks : i / k);
        double gain = sqrt(sum[0] / sum[1]);
        p->sizes.w[i] = (1 + s) * p->sizes.w[i] +
                        s * gain * (p->sizes.w[i] + fabs(plain.w[i]) * sqrt(sum[2] / sum[1]));
    }
    made_free(&plain);
    free(sums);
}

static void add_sizes(struct prop *p)
{
    const struct layer *l = &p->one.o.layer;
    double s = fabs((double)p->strength);
    int64_t n = l->out * layer_k(l);

    make(p, &p->sizes, true, true);
    if (p->row->sum == FX_TURNS_ROWS || p->row->sum == FX_TURNS_COLUMNS)
        add_turned(p, s);
    else if (p->row->sum != FX_GAINS)
        add_change(p, &p->sizes, p->row->dora != FX_NO_DORA ? 1 : s);
    if (p->row->dora != FX_NO_DORA)
        add_lengths(p, s);
    if (p->row->sum != FX_GAINS)
        add_bias(p, &p->sizes, s);
    for (int64_t i = 0; i < n; i++) /* gains of up to 1, less 1 */
        p->sizes.w[i] *= p->row->sum == FX_GAINS ? 1 + 2 * s : 1;
    for (int64_t i = 0; i < l->out; i++)
        p->sizes.b[i] *= p->row->sum == FX_GAINS ? 1 + 2 * s : 1;
}

static void open_case(struct prop *p)
{
    static const float strengths[] = {1, 0.7f, -0.5f};
    uint64_t seed = p->seed;

    p->strength = p->row->unit ? 1 : strengths[fx_random(&seed) % 3];
    make(p, &p->one, false, false);
    add_change(p, &p->one, (double)p->strength);
    add_bias(p, &p->one, (double)p->strength);
    add_sizes(p);
    if (adapter_bind(&p->set, &(struct adapter_use){p->one.f, 0, p->strength}, 1, p->one.o.names,
                     true) != KRON_OK)
        fail_case(p, kron_error_detail());
}

static void close_case(struct prop *p)
{
    adapter_set_free(&p->set);
    made_free(&p->one);
    made_free(&p->sizes);
}

/* --- outputs --- */

/* One output number: sum over the window of w x, and of sizes[] |x|. */
static void output_at(const struct prop *p, const float *x, int64_t at, int64_t ow, int64_t o,
                      double *want, double *size)
{
    const struct layer *l = &p->one.o.layer;
    const struct gr_shape s = p->call.x;
    const double *w = p->one.w + o * layer_k(l), *sizes = p->sizes.w + o * layer_k(l);
    int64_t oh = (s.h + l->kh / 2 * 2 - l->kh) / p->call.stride + 1;
    int64_t n = at / (oh * ow), top = at / ow % oh * p->call.stride - l->kh / 2;
    int64_t left = at % ow * p->call.stride - l->kw / 2;

    *want = p->one.b[o];
    *size = p->sizes.b[o];
    for (int64_t h = top < 0 ? 0 : top; h < s.h && h < top + l->kh; h++)
        for (int64_t v = left < 0 ? 0 : left; v < s.w && v < left + l->kw; v++)
            for (int64_t i = 0; i < l->in; i++) {
                int64_t k = (i * l->kh + h - top) * l->kw + v - left;
                double xi = (double)x[((n * s.h + h) * s.w + v) * s.c + i];
                *want += w[k] * xi;
                *size += sizes[k] * fabs(xi);
            }
}

static void compare(const struct prop *p, const char *who, const float *got, const double *want,
                    const double *bound, int64_t n)
{
    char what[160];

    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)got[i] - want[i]);
        worst = fmax(worst, error / bound[i]);
        if (error <= bound[i])
            continue;
        snprintf(what, sizeof what, "%s: output %lld is %.9g, not %.9g; bound %.3g", who,
                 (long long)i, (double)got[i], want[i], bound[i]);
        fail_case(p, what);
    }
}

static void check_device(struct prop *p, struct be_device *d, enum gr_route route, const float *x,
                         const double *want, const double *bound, int64_t n)
{
    static const char *const names[] = {"weight route", "activation route", "merged"};
    float *got = malloc((size_t)n * sizeof *got), strengths[ADAPTER_SLOTS];
    char who[64];

    assert_non_null(got);
    for (int64_t i = 0; i < n; i++)
        got[i] = NAN;
    snprintf(who, sizeof who, "%s, %s", d->name, names[route]);
    adapter_set_get_strengths(p->set, strengths);
    p->call.route = route;
    if (layer_run(d, &p->one.o.table, &p->one.o.layer, adapter_set_deltas(p->set), strengths,
                  &p->call, x, got) != KRON_OK)
        fail_case(p, kron_error_detail());
    compare(p, who, got, want, bound, n);
    free(got);
}

/* All routes on one input. `rows`: output pixels of a sample, h x w. */
static void check_input(struct prop *p, int64_t batch, int64_t h, int64_t w)
{
    const struct layer *l = &p->one.o.layer;
    uint64_t seed = p->seed ^ (uint64_t)(batch * 1000 + h * w);
    int stride = p->kind == FX_CONV3_STRIDED ? 2 : 1;
    int64_t n = batch * h * w * l->out, nx;
    double *want = malloc((size_t)n * sizeof *want), *bound = malloc((size_t)n * sizeof *bound);
    double terms = sqrt((double)layer_k(l)) + 2 + 2 * sqrt((double)p->r) + sqrt((double)p->uq) + 6;
    float *x;

    p->call = (struct layer_call){
        {batch, stride * (h - 1) + 1, stride * (w - 1) + 1, l->in}, stride, 0, ROUTE_WEIGHT};
    nx = gr_elements(p->call.x);
    x = malloc((size_t)nx * sizeof *x);
    assert_true(want != NULL && bound != NULL && x != NULL);
    for (int64_t i = 0; i < nx; i++)
        x[i] = fx_unit(&seed);
    for (int64_t i = 0; i < n; i++) {
        output_at(p, x, i / l->out, w, i % l->out, &want[i], &bound[i]);
        bound[i] = unit * (terms * bound[i] + 4 * fabs(want[i]));
    }
    check_device(p, ref, ROUTE_WEIGHT, x, want, bound, n);
    for (int route = ROUTE_WEIGHT; route <= ROUTE_MERGED; route++)
        check_device(p, cpu, (enum gr_route)route, x, want, bound, n);
    free(x);
    free(want);
    free(bound);
}

/* One row, kind of layer, rank and pair of types on every batch and number of rows. */
static void check_case(struct prop *p)
{
    /* 1, 77 and a prime: the last has no shape but a line */
    static const int64_t images[][2] = {{1, 1}, {7, 11}, {1, 101}};

    open_case(p);
    for (int64_t batch = 1; batch <= 3; batch += 2)
        for (int i = 0; i < 3; i++)
            if (p->kind == FX_LINEAR)
                check_input(p, batch, 1, images[i][0] * images[i][1]);
            else
                check_input(p, batch, images[i][0], images[i][1]);
    close_case(p);
}

static void routes_are_the_reference(void **state)
{
    const struct fx_row *row = *state;
    uint64_t number = (uint64_t)(row - fx_rows) * 10000;
    int turn = (int)(row - fx_rows);

    worst = 0;
    for (int kind = 0; kind < FX_KINDS; kind++)
        for (int64_t r = 1; r <= (row->ranked ? 3 : 1) && row->kinds >> kind & 1; r += 2)
            for (int pair = turn++ % THIN; pair < N_PAIRS; pair += THIN) {
                struct prop p = {.row = row,
                                 .kind = (enum fx_kind)kind,
                                 .r = r,
                                 .base = types[pair / N_TYPES],
                                 .factor = types[pair % N_TYPES],
                                 .seed = ++number};
                check_case(&p);
            }
    print_message("%s: the worst error is %.2f of its bound\n", row->name, worst);
}

int main(void)
{
    struct CMUnitTest tests[FX_ROWS];
    int failed;

    if (be_open("ref", 1, &ref) != KRON_OK || be_open("cpu", 2, &cpu) != KRON_OK) {
        fprintf(stderr, "%s\n", kron_error_detail());
        return 1;
    }
    for (int i = 0; i < FX_ROWS; i++)
        tests[i] = (struct CMUnitTest){.name = fx_rows[i].name,
                                       .test_func = routes_are_the_reference,
                                       .initial_state = (void *)(uintptr_t)&fx_rows[i]};
    failed = _cmocka_run_group_tests("adapter properties", tests, FX_ROWS, NULL, NULL);
    be_close(&cpu);
    be_close(&ref);
    return failed;
}
