/* SPDX-License-Identifier: MIT
 * A layer with an input, and what files make of its output: for tests that go through the library,
 * from a file in memory to the cpu backend's output by each route, which must agree. What is
 * expected is the family's definition (adapter_reference()), or the same factors in a file that
 * has no scale of its own, at another strength. */
#ifndef UNIT_ADAPTER_SCENE_H
#define UNIT_ADAPTER_SCENE_H
#include "adapter_rows.h"
#include "layer_run.h"

static struct be_device *cpu; /* scene_tests() opens and closes it */

/* --- a layer with an input, and what it gives --- */

struct scene {
    struct fx_one o;
    float *weight, *bias, *x;
    struct layer_call call;
    int64_t n; /* numbers of the output */
};

static inline float *numbers(int64_t n, uint64_t seed)
{
    float *v = malloc((size_t)n * sizeof *v);

    assert_non_null(v);
    for (int64_t i = 0; i < n; i++)
        v[i] = fx_unit(&seed);
    return v;
}

static inline struct tensor view(const float *v, int64_t n)
{
    struct tensor t = {.data = v,
                       .bytes = (size_t)n * sizeof *v,
                       .type = DT_F32,
                       .n_dims = 1,
                       .dim = {n, 1, 1, 1, 1, 1},
                       .name = "base"};

    return t;
}

/* A convolution if kh * kw > 1 or h > 1; else a linear layer on w tokens. */
static inline void scene_open(struct scene *s, int64_t out, int64_t in, int kh, int kw,
                              struct gr_shape x)
{
    struct layer *l = &s->o.layer;

    fx_one_create(&s->o, out, in, kh, kw, kh * kw > 1 || x.h > 1);
    s->weight = numbers(out * in * kh * kw, 1);
    s->bias = numbers(out, 2);
    s->x = numbers(gr_elements(x), 3);
    l->weight = view(s->weight, out * in * kh * kw);
    l->bias = view(s->bias, out);
    s->call = (struct layer_call){x, 1, 0, ROUTE_WEIGHT};
    s->n = x.n * x.h * x.w * out;
}

static inline void scene_close(struct scene *s)
{
    adapter_names_free(&s->o.names);
    free(s->weight);
    free(s->bias);
    free(s->x);
}

static inline void assert_same(const float *got, const float *want, int64_t n, const char *what)
{
    double diff = 0, norm = 0;

    for (int64_t i = 0; i < n; i++) {
        diff += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    if (!(sqrt(diff) <= 1e-6 * sqrt(norm))) /* f32 over short sums */
        fail_msg("%s: %g off", what, sqrt(diff / norm));
}

static inline void run_route(struct scene *s, const struct adapter_set *set, enum gr_route route,
                             float *y)
{
    float strengths[3 * ADAPTER_SLOTS];

    if (set != NULL)
        adapter_set_get_strengths(set, strengths);
    s->call.route = route;
    if (layer_run(cpu, &s->o.table, &s->o.layer, set ? adapter_set_deltas(set) : NULL, strengths,
                  &s->call, s->x, y) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

/* The plain layer's output; the caller frees it. */
static inline float *plain(struct scene *s)
{
    float *y = numbers(s->n, 4);

    run_route(s, NULL, ROUTE_WEIGHT, y);
    return y;
}

/* The output with a set, by every route. */
static inline float *with_set(struct scene *s, const struct adapter_set *set)
{
    float *y = numbers(s->n, 4), *other = numbers(s->n, 5);

    run_route(s, set, ROUTE_WEIGHT, y);
    run_route(s, set, ROUTE_ACTIVATION, other);
    assert_same(other, y, s->n, "activation route against weight route");
    run_route(s, set, ROUTE_MERGED, other);
    assert_same(other, y, s->n, "merged against weight route");
    free(other);
    return y;
}

/* What makes a file: its tensors, metadata (JSON object) and PEFT config; NULL where absent. */
struct recipe {
    void (*add)(struct fx_maker *m);
    const char *meta, *config;
    int64_t r;
    int64_t up, uq; /* LoKr; OFT: up blocks of rows, uq of columns */
    float scale;    /* the user's, in place of the file's; 0: the file's */
    enum fx_dora dora;
};

static inline void write_file(const struct scene *s, const struct recipe *r, struct fx_file *file)
{
    const struct layer *l = &s->o.layer;
    uint64_t seed = 7;
    struct fx_maker m = {.file = file,
                         .seed = &seed,
                         .type = DT_F32,
                         .r = r->r,
                         .out = l->out,
                         .in = l->in,
                         .kh = l->kh,
                         .kw = l->kw};

    if (r->up > 0) {
        m.up = r->up;
        m.uq = r->uq;
        m.vp = l->out / r->up;
        m.vq = l->in / r->uq;
    }
    if (r->meta != NULL)
        fx_add_meta(file, r->meta);
    r->add(&m);
    if (r->dora != FX_NO_DORA)
        fx_add_dora(&m, r->dora);
}

/* The output with a file `times` times over, each at `strength`, by every route. */
static inline float *with_files(struct scene *s, const struct recipe *r, float strength, int times)
{
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    struct adapter_use uses[3];
    float *y;

    write_file(s, r, &file);
    if (fx_open(&file, &f, r->config) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    for (int i = 0; i < times; i++)
        uses[i] = (struct adapter_use){
            .file = f, .te_strength = 9, .unet_strength = strength, .scale = r->scale};
    if (adapter_bind(&set, uses, times, s->o.names, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    y = with_set(s, set);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    return y;
}

/* Holds a file's output, every route, against W + s dW, dW by the family's definition. */
static inline void assert_defined(struct scene *s, const struct recipe *r, float strength)
{
    struct fx_file file = {0};
    struct adapter_file *f;
    struct layer *l = &s->o.layer;
    int64_t n = l->out * layer_k(l);
    double *dw = calloc((size_t)n, sizeof *dw);
    float *merged = numbers(n, 1), *y = with_files(s, r, strength, 1), *want;

    write_file(s, r, &file);
    assert_int_equal(fx_open(&file, &f, r->config), KRON_OK);
    assert_non_null(dw);
    if (adapter_reference(f, 0, l, dw) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    for (int64_t i = 0; i < n; i++)
        merged[i] = (float)((double)s->weight[i] + (double)strength * dw[i]);
    l->weight = view(merged, n);
    want = plain(s);
    l->weight = view(s->weight, n);
    assert_same(y, want, s->n, "against the definition");
    free(y);
    free(want);
    free(dw);
    free(merged);
    adapter_close(&f);
    fx_free(&file);
}

/* Holds that a file at strength 1 is what other factors give at strength c. */
static inline void assert_scale(struct scene *s, const struct recipe *r,
                                const struct recipe *unscaled, float c)
{
    float *y = with_files(s, r, 1, 1), *want = with_files(s, unscaled, c, 1);
    float *other = with_files(s, unscaled, c == 0 ? 1 : 0.9f * c, 1);

    assert_same(y, want, s->n, "scale");
    assert_memory_not_equal(other, want, (size_t)s->n * sizeof *want);
    free(y);
    free(want);
    free(other);
}

static inline void linear_scene(struct scene *s) /* 24 x 20, five tokens */
{
    scene_open(s, 24, 20, 1, 1, (struct gr_shape){1, 1, 5, 20});
}

static inline void conv_scene(struct scene *s, int kh, int kw, int64_t batch) /* 24 x 20 */
{
    scene_open(s, 24, 20, kh, kw, (struct gr_shape){batch, 6, 5, 20});
}

/* --- recipes: the factors of adapter_rows.h without a scale, and what is put beside them --- */

#define NO_SCALE(name, w1, w2)                  \
    static inline void name(struct fx_maker *m) \
    {                                           \
        w1(m);                                  \
        w2(m);                                  \
    }
NO_SCALE(whole, fx_w1, fx_w2)
NO_SCALE(flat, fx_w1, fx_w2_flat)
NO_SCALE(split_w2, fx_w1, fx_w2_pair)
NO_SCALE(split_w1, fx_w1_pair, fx_w2)
NO_SCALE(both, fx_w1_pair, fx_w2_pair)
NO_SCALE(tucker, fx_w1, fx_w2_tucker)

/* The same factors after alpha (or what `put` says). */
#define BESIDE(name, factors, put)              \
    static inline void name(struct fx_maker *m) \
    {                                           \
        put;                                    \
        factors(m);                             \
    }
#define SCALAR(part, type, v) fx_add_scalar(m->file, FX_PREFIX part, type, v)

BESIDE(whole_alpha, whole, SCALAR("alpha", DT_F32, 6))

/* Kohya's CDKA with an alpha of its own. */
static const char *const cdka = "{\"ss_network_module\":\"networks.cdka\","
                                "\"ss_network_args\":\"{\\\"cdka_alpha\\\":\\\"6\\\"}\"}";

#define SCENE_TESTS(tests) scene_tests(tests, sizeof tests / sizeof *tests)
static inline int scene_tests(const struct CMUnitTest *tests, size_t n)
{
    int failed;

    if (be_open("cpu", 2, &cpu) != KRON_OK) {
        fprintf(stderr, "%s\n", kron_error_detail());
        return 1;
    }
    failed = _cmocka_run_group_tests("adapters", tests, n, NULL, NULL);
    be_close(&cpu);
    return failed;
}

#endif
