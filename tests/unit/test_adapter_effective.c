/* SPDX-License-Identifier: MIT
 * Whole layers as deltas make them, in f32, against the definition in graph/layer.c: every kind,
 * gains on either axis, windows of rows, several at once. */
#include "adapter/product.h"
#include "adapter_fixture.h"

enum { OUT = 24, IN = 16, RANK = 3 };

struct scene {
    struct layer l;
    float *w;
    struct delta d[3];
    float *made[64];
    int n_made;
    uint64_t seed;
};

static float *numbers(struct scene *s, int64_t n, float scale)
{
    float *x = malloc((size_t)n * sizeof *x);

    assert_non_null(x);
    assert_true(s->n_made < 64);
    s->made[s->n_made++] = x;
    for (int64_t i = 0; i < n; i++)
        x[i] = scale * fx_unit(&s->seed);
    return x;
}

static struct tensor matrix(struct scene *s, int64_t rows, int64_t cols)
{
    return (struct tensor){.data = numbers(s, rows * cols, 0.5f),
                           .bytes = (size_t)(rows * cols) * 4, .type = DT_F32, .n_dims = 2, .dim = {rows, cols, 1, 1, 1, 1},
                           .name = "m"};
}

/* Numbers around 1, as gains and magnitudes are. */
static const float *near_one(struct scene *s, int64_t n)
{
    float *x = numbers(s, n, 0.3f);

    for (int64_t i = 0; i < n; i++)
        x[i] += 1;
    return x;
}

/* A delta of that kind on rows [at, at + rows), by rows from `from` on of `all`. */
static void make(struct scene *s, int i, enum delta_kind kind, int64_t at, int64_t rows,
                 int64_t from, int64_t all)
{
    int64_t k = layer_k(&s->l), ks = (int64_t)s->l.kh * s->l.kw;
    struct delta *d = &s->d[i];

    *d = (struct delta){.kind = kind, .strength = i, .scale = 0.75f, .at = at, .rows = rows,
                        .from = from};
    if (kind == DELTA_LOW_RANK || kind == DELTA_HADAMARD) {
        d->rank = RANK;
        d->a = matrix(s, all, RANK);
        d->b = matrix(s, RANK, k);
    }
    if (kind == DELTA_HADAMARD) {
        d->c = matrix(s, all, RANK);
        d->d = matrix(s, RANK, k);
    } else if (kind == DELTA_KRON) {
        d->up = 4;
        d->uq = 2;
        d->vp = all / 4;
        d->vq = IN / 2;
        d->w1 = matrix(s, 4, 2);
        d->w2 = matrix(s, d->vp, d->vq * ks);
    } else if (kind == DELTA_FULL) {
        d->d = matrix(s, all, k);
    } else if (kind == DELTA_INPUT) {
        d->rank = RANK;
        d->a = matrix(s, IN, RANK);
        d->b = matrix(s, RANK, IN);
    } else if (kind == DELTA_LEFT || kind == DELTA_RIGHT) {
        d->block = 4;
        d->n_blocks = (kind == DELTA_LEFT ? rows : k) / 4;
        d->stages = 1;
        d->mix = numbers(s, d->n_blocks * 16, 0.3f);
    }
}

static void scene_open(struct scene *s, int kh, uint64_t seed)
{
    *s = (struct scene){.seed = seed};
    s->l = (struct layer){.part = PART_UNET, .kind = kh > 1 ? LAYER_CONV : LAYER_LINEAR,
                          .name = "layer", .out = OUT, .in = IN, .kh = kh, .kw = kh,
                          .is_conv = kh > 1};
    s->l.weight = matrix(s, OUT, layer_k(&s->l));
}

/* The first n deltas together at strengths 0.7, -0.4, 1. Frees the scene. */
static void expect_definition(struct scene *s, int n, const char *what)
{
    static const float strengths[3] = {0.7f, -0.4f, 1};
    struct delta_list list = {n, s->d};
    int64_t size = OUT * layer_k(&s->l);
    double *want = calloc((size_t)size, sizeof *want), *got = calloc((size_t)size, sizeof *got);
    float *w = calloc((size_t)size, sizeof *w), *change = calloc((size_t)size, sizeof *change);

    assert_int_equal(layer_weight_ref(&s->l, list, strengths, want), KRON_OK);
    assert_int_equal(effective_weight(&s->l, list, strengths, w), KRON_OK);
    assert_int_equal(effective_change(&s->l, list, strengths, change), KRON_OK);
    for (int64_t i = 0; i < size; i++)
        got[i] = w[i];
    double rel = fx_rel(got, want, size);
    if (!(rel < 1e-6)) /* a few roundings of f32 */
        fail_msg("%s is %g from the definition", what, rel);
    for (int64_t i = 0; i < size; i++)
        got[i] = (double)((const float *)s->l.weight.data)[i] + change[i];
    rel = fx_rel(got, want, size);
    if (!(rel < 1e-6))
        fail_msg("%s: its change alone is %g from the definition", what, rel);
    free(want);
    free(got);
    free(w);
    free(change);
    for (int i = 0; i < s->n_made; i++)
        free(s->made[i]);
}

static const char *const names[] = {"low rank", "Hadamard", "Kronecker", "full", "input", "none",
                                    "left", "right"};

static void every_kind_on_all_rows_and_on_some(void **state)
{
    struct scene s;

    (void)state;
    for (int kind = DELTA_LOW_RANK; kind <= DELTA_RIGHT; kind++)
        for (int kh = 1; kh <= 3; kh += 2) {
            scene_open(&s, kh, 10 + (uint64_t)kind);
            make(&s, 0, (enum delta_kind)kind, 0, OUT, 0, OUT);
            expect_definition(&s, 1, names[kind]);
            scene_open(&s, kh, 20 + (uint64_t)kind);
            make(&s, 0, (enum delta_kind)kind, 8, 8, 0, 8);
            expect_definition(&s, 1, names[kind]);
            if (kind <= DELTA_FULL) {
                scene_open(&s, kh, 30 + (uint64_t)kind);
                make(&s, 0, (enum delta_kind)kind, 3, 7, 5, 24);
                expect_definition(&s, 1, names[kind]);
            }
        }
}

static void gains_on_either_axis(void **state)
{
    static const enum delta_kind kinds[] = {DELTA_LOW_RANK, DELTA_KRON, DELTA_INPUT, DELTA_NONE};
    struct scene s;

    (void)state;
    for (int i = 0; i < 4; i++)
        for (int kh = 1; kh <= 3; kh += 2)
            for (int axis = GAIN_OUT; axis <= GAIN_IN; axis++)
                for (int magnitude = 0; magnitude < 2; magnitude++) {
                    int64_t n = axis == GAIN_OUT ? 12 : IN;
                    scene_open(&s, kh, 40 + (uint64_t)i);
                    make(&s, 0, kinds[i], 4, 12, 0, 12);
                    s.d[0].axis = (enum gain_axis)axis;
                    *(magnitude ? &s.d[0].magnitude : &s.d[0].gain) = near_one(&s, n);
                    expect_definition(&s, 1, names[kinds[i]]);
                }
}

static void turns_in_stages_with_a_rescale(void **state)
{
    struct scene s;

    (void)state;
    for (int butterfly = 0; butterfly < 2; butterfly++) {
        scene_open(&s, 3, 60);
        make(&s, 0, DELTA_LEFT, 8, 16, 0, 16);
        s.d[0].stages = 2;
        s.d[0].butterfly = butterfly;
        s.d[0].mix = numbers(&s, 2 * s.d[0].n_blocks * 16, 0.3f);
        s.d[0].rescale = near_one(&s, 16);
        expect_definition(&s, 1, butterfly ? "a butterfly" : "two stages");
    }
}

static void several_start_from_the_plain_weight(void **state)
{
    static const float mask[1] = {1};
    static const struct delta_region region = {1, 1, mask};
    struct scene s;

    (void)state;
    scene_open(&s, 1, 70);
    make(&s, 0, DELTA_FULL, 4, 8, 0, 8);
    s.d[0].replace = true;
    make(&s, 1, DELTA_LOW_RANK, 0, OUT, 0, OUT);
    s.d[1].axis = GAIN_OUT;
    s.d[1].magnitude = near_one(&s, OUT);
    make(&s, 2, DELTA_RIGHT, 0, OUT, 0, OUT);
    expect_definition(&s, 3, "three deltas");
    scene_open(&s, 1, 71);
    make(&s, 0, DELTA_LOW_RANK, 0, OUT, 0, OUT);
    s.d[0].region = &region; /* no part of the weight */
    make(&s, 1, DELTA_KRON, 0, OUT, 0, OUT);
    expect_definition(&s, 2, "a region");
}

static void biases_add_up_in_their_rows(void **state)
{
    struct scene s;
    static const float strengths[3] = {0.5f, 2, 1};
    float b[OUT] = {0};
    double want[OUT];

    (void)state;
    scene_open(&s, 1, 80);
    make(&s, 0, DELTA_NONE, 4, 8, 0, 8);
    make(&s, 1, DELTA_LOW_RANK, 0, OUT, 0, OUT);
    s.d[0].bias = numbers(&s, 8, 1);
    s.d[1].bias = numbers(&s, OUT, 1);
    struct delta_list list = {2, s.d};
    effective_bias(list, strengths, b);
    layer_bias_ref(&s.l, list, strengths, want);
    for (int i = 0; i < OUT; i++)
        assert_true(fabs(b[i] - want[i]) < 1e-6);
    assert_true(b[0] != 0 && b[4] != 2 * s.d[1].bias[4]);
    for (int i = 0; i < s.n_made; i++)
        free(s.made[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_on_all_rows_and_on_some),
        cmocka_unit_test(gains_on_either_axis),
        cmocka_unit_test(turns_in_stages_with_a_rescale),
        cmocka_unit_test(several_start_from_the_plain_weight),
        cmocka_unit_test(biases_add_up_in_their_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
