/* SPDX-License-Identifier: MIT
 * The cost model: which route a layer with deltas gets, and what deltas cost and are. */
#include "graph_fixture.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static const struct gr_rates rates = {50e9, 5e9, 5e9, 10e9};

enum { N_LAYERS = 2 };

/* Two linear layers of 1024 x 1024 with one delta each, the second without in some cases. */
struct net {
    struct graph g;
    struct layer layer[N_LAYERS];
    struct delta delta[N_LAYERS];
    struct delta_list list[N_LAYERS];
    struct delta_set set;
};

static struct tensor present(void)
{
    static const float one = 1;
    struct tensor t = {.data = &one, .bytes = 4, .type = DT_F32, .dim = {1, 1, 1, 1, 1, 1},
                       .name = "factor"};

    return t;
}

static struct delta kron_delta(int64_t out, int64_t in, int64_t factor)
{
    struct delta d = {.kind = DELTA_KRON, .scale = 1, .w1 = present(), .w2 = present(),
                      .up = factor, .uq = factor, .vp = out / factor, .vq = in / factor,
                      .rows = out};

    return d;
}

static struct delta low_rank_delta(int64_t rank)
{
    struct delta d = {.kind = DELTA_LOW_RANK, .scale = 1, .rank = rank, .a = present(),
                      .b = present(), .rows = 1024};

    return d;
}

static void start(struct net *n, int64_t rows, struct delta d)
{
    memset(n, 0, sizeof *n);
    gr_init(&n->g, "net");
    gr_ref x = gr_input(&n->g, "x", GR_F32, fx_shape(1, 1, rows, 1024));
    for (int i = 0; i < N_LAYERS; i++) {
        n->layer[i] = fx_layer(LAYER_LINEAR, i ? "second" : "first", 1024, 1024, 1);
        n->layer[i].id = i;
        n->delta[i] = d;
        n->list[i] = (struct delta_list){1, &n->delta[i]};
        x = gr_linear(&n->g, x, &n->layer[i], ACT_NONE, GR_NONE);
    }
    gr_output(&n->g, gr_act(&n->g, x, ACT_SILU), "y");
    n->set = (struct delta_set){n->list, N_LAYERS, 2};
}

/* Routes of the two layers as text: w, a, m or x (mixed) each. */
static const char *routes(struct net *n, enum gr_apply mode, size_t budget)
{
    static char text[N_LAYERS + 1];

    gr_choose_routes(&n->g, &n->set, mode, &rates, budget);
    for (int i = 0; i < N_LAYERS; i++)
        text[i] = "wamx"[n->g.ops[i].route];
    return text;
}

static void few_rows_take_activations_many_the_weight(void **state)
{
    struct delta kinds[] = {kron_delta(1024, 1024, 4), low_rank_delta(16), low_rank_delta(128)};
    struct net n;

    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        start(&n, 1, kinds[k]);
        assert_string_equal(routes(&n, APPLY_AT_RUNTIME, 0), "aa");
        gr_free(&n.g);
        start(&n, 16384, kinds[k]);
        assert_string_equal(routes(&n, APPLY_AT_RUNTIME, 0), "ww");
        gr_free(&n.g);
    }
}

/* At 256 rows a LoRA of rank 16 is cheaper on activations, a LoKr in the weight. */
static void each_delta_takes_its_own_way(void **state)
{
    struct delta two[] = {kron_delta(1024, 1024, 8), low_rank_delta(16)};
    struct net n;

    (void)state;
    start(&n, 256, two[0]);
    assert_true(gr_delta_in_rows(&two[0], &n.layer[0], 256, &rates));
    assert_false(gr_delta_in_rows(&two[1], &n.layer[0], 256, &rates));
    n.list[0] = (struct delta_list){2, two};
    assert_string_equal(routes(&n, APPLY_AT_RUNTIME, 0), "xw");
    gr_free(&n.g);
}

/* One change of mind at most between one row and many. */
static void the_choice_turns_once(void **state)
{
    struct net n;
    char last = 'a';
    int turns = 0;

    (void)state;
    for (int64_t rows = 1; rows <= 16384; rows += rows / 8 + 1) {
        start(&n, rows, kron_delta(1024, 1024, 8));
        char now = routes(&n, APPLY_AT_RUNTIME, SIZE_MAX)[0];
        turns += now != last;
        last = now;
        gr_free(&n.g);
    }
    assert_int_equal(turns, 1);
    assert_int_equal(last, 'w');
}

static void modes_are_obeyed(void **state)
{
    static const int64_t rows[] = {1, 77, 4096, 16384};
    struct net n;

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < 2; k++) {
            start(&n, rows[i], k ? low_rank_delta(64) : kron_delta(1024, 1024, 16));
            assert_string_equal(routes(&n, APPLY_IMMEDIATELY, 0), "mm"); /* whatever the budget */
            assert_null(strchr(routes(&n, APPLY_AT_RUNTIME, SIZE_MAX), 'm'));
            assert_null(strchr(routes(&n, APPLY_AUTO, 0), 'm'));
            gr_free(&n.g);
        }
}

/* With 77 rows the weight pass costs more than 3 % of the product: merging pays where there is
 * room. With 4096 rows it does not. */
static void merging_keeps_to_its_budget(void **state)
{
    const size_t one = 1024 * 1024 * 4;
    struct net n;

    (void)state;
    start(&n, 77, kron_delta(1024, 1024, 4));
    assert_string_equal(routes(&n, APPLY_AUTO, 2 * one), "mm");
    assert_string_equal(routes(&n, APPLY_AUTO, 2 * one - 1), "mw");
    assert_string_equal(routes(&n, APPLY_AUTO, one), "mw");
    assert_string_equal(routes(&n, APPLY_AUTO, one - 1), "ww");
    gr_free(&n.g);
    start(&n, 4096, kron_delta(1024, 1024, 4));
    assert_string_equal(routes(&n, APPLY_AUTO, SIZE_MAX), "ww");
    gr_free(&n.g);
}

static void layers_without_deltas_are_left_alone(void **state)
{
    static const enum gr_apply modes[] = {APPLY_AUTO, APPLY_IMMEDIATELY, APPLY_AT_RUNTIME};
    struct net n;

    (void)state;
    start(&n, 1, low_rank_delta(4));
    n.list[1].n = 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        assert_int_equal(routes(&n, modes[i], SIZE_MAX)[1], 'w');
        assert_true(n.g.ops[0].route != ROUTE_WEIGHT); /* the other one is not */
    }
    assert_int_equal(delta_set_list(NULL, &n.layer[0]).n, 0);
    gr_choose_routes(&n.g, NULL, APPLY_IMMEDIATELY, &rates, SIZE_MAX); /* no adapters at all */
    assert_true(n.g.ops[0].route == ROUTE_WEIGHT && n.g.ops[1].route == ROUTE_WEIGHT);
    n.set.n_layers = 1; /* a layer that the set does not know */
    assert_string_equal(routes(&n, APPLY_IMMEDIATELY, 0), "mw");
    gr_free(&n.g);
}

static void keep_line(kron_log_level level, const char *line, void *user)
{
    if (level == KRON_LOG_DEBUG)
        snprintf(user, 256, "%s", line);
}

static void each_choice_is_logged(void **state)
{
    char line[256] = "";
    struct net n;

    (void)state;
    start(&n, 1, low_rank_delta(4));
    kron_log_set(keep_line, line);
    routes(&n, APPLY_AT_RUNTIME, 0);
    kron_log_set(NULL, NULL);
    assert_true(str_starts(line, "net: route activation second (1 deltas, 1 rows: weight "));
    gr_free(&n.g);
}

/* --- whole numbers --- */

/* For both layers: "-" where f32 stays, "i" for 8 bits, "k" where the weight is kept too, "s" and
 * "t" the same for 16. */
static const char *computes(struct net *n, int bits, size_t budget, size_t *left)
{
    static char text[N_LAYERS + 1];

    *left = budget;
    for (int i = 0; i < N_LAYERS; i++) {
        n->g.ops[i].compute = COMPUTE_F32;
        n->g.ops[i].keep = false;
    }
    gr_choose_int8(&n->g, &n->set, bits, left);
    for (int i = 0; i < N_LAYERS; i++)
        text[i] = "- ikst"[2 * n->g.ops[i].compute + n->g.ops[i].keep];
    return text;
}

static void whole_numbers_are_for_many_rows(void **state)
{
    struct net n;
    size_t left;

    (void)state;
    start(&n, 4, kron_delta(1024, 1024, 4));
    assert_string_equal(computes(&n, 8, SIZE_MAX, &left), "--");
    gr_free(&n.g);
    start(&n, 5, kron_delta(1024, 1024, 4));
    assert_string_equal(computes(&n, 8, SIZE_MAX, &left), "kk");
    n.g.ops[1].trunk = true;
    assert_string_equal(computes(&n, 8, SIZE_MAX, &left), "kk");
    assert_string_equal(computes(&n, 7, SIZE_MAX, &left), "kt");
    assert_string_equal(computes(&n, 7, 1100000, &left), "is");
    n.layer[0].out = 31; /* tiny: not worth a range of its own */
    assert_string_equal(computes(&n, 7, SIZE_MAX, &left), "-t");
    gr_free(&n.g);
}

/* What one operation is computed in. */
static enum gr_compute compute_of(struct graph *g)
{
    size_t none = 0;

    gr_choose_int8(g, NULL, 8, &none);
    return g->ops[g->n_ops - 1].compute;
}

static void convolutions_and_attention_take_16_bits(void **state)
{
    static const struct {
        int64_t in, out;
        int window, stride;
        enum gr_compute want;
    } convs[] = {{64, 64, 3, 1, COMPUTE_INT16}, {33, 64, 3, 1, COMPUTE_F32},
                 {64, 31, 3, 1, COMPUTE_F32},   {64, 64, 1, 1, COMPUTE_INT8 /* linear */},
                 {64, 64, 3, 2, COMPUTE_F32}};
    static const struct {
        int64_t keys, channels;
        bool causal;
        enum gr_compute want;
    } heads[] = {{192, 40, false, COMPUTE_INT16}, {191, 40, false, COMPUTE_F32},
                 {192, 200, false, COMPUTE_F32},  {192, 40, true, COMPUTE_F32}};
    struct graph g;

    (void)state;
    for (size_t i = 0; i < sizeof convs / sizeof *convs; i++) {
        struct layer l = fx_layer(LAYER_CONV, "c", convs[i].out, convs[i].in, convs[i].window);
        gr_init(&g, "net");
        gr_ref x = gr_input(&g, "x", GR_F32, (struct gr_shape){1, 16, 16, convs[i].in});
        gr_conv(&g, x, &l, convs[i].stride, GR_NONE, GR_NONE);
        assert_int_equal(compute_of(&g), convs[i].want);
        gr_free(&g);
    }
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        gr_init(&g, "net");
        gr_ref x = gr_input(&g, "x", GR_F32,
                            (struct gr_shape){1, 1, heads[i].keys, 2 * heads[i].channels});
        gr_attention(&g, x, x, x, 2, heads[i].causal);
        assert_int_equal(compute_of(&g), heads[i].want);
        gr_free(&g);
    }
}

static void weights_are_kept_within_the_budget(void **state)
{
    const size_t each = 1024 * 1024 / 16 * 17;
    struct net n;
    size_t left;

    (void)state;
    start(&n, 64, low_rank_delta(16));
    assert_string_equal(computes(&n, 8, each - 1, &left), "ii");
    assert_int_equal(left, each - 1);
    assert_string_equal(computes(&n, 8, 2 * each - 1, &left), "ki");
    assert_int_equal(left, each - 1);
    assert_string_equal(routes(&n, APPLY_AT_RUNTIME, 0), "wa"); /* kept: in its rows, once */
    assert_string_equal(computes(&n, 8, 2 * each, &left), "kk");
    assert_int_equal(left, 0);
    n.delta[0].varying = true;
    assert_string_equal(computes(&n, 8, 2 * each, &left), "ik");
    gr_free(&n.g);
}

/* --- what a delta is: the definition against sums written out --- */

static struct tensor matrix(const float *data, int64_t rows, int64_t cols)
{
    struct tensor t = {.data = data, .bytes = (size_t)(rows * cols) * 4, .type = DT_F32,
                       .n_dims = 2, .dim = {rows, cols, 1, 1, 1, 1}, .name = "m"};

    return t;
}

/* The delta over all rows, and over all but the first of the layer by all but the first of its
 * own. */
static void expect_delta(const struct delta *d, const struct layer *l, const double *want)
{
    double w[24], part[24], plain[24];
    struct delta whole = *d, window = *d;
    int64_t k = layer_k(l);

    assert_true(l->out * k <= 24);
    for (int i = 0; i < 24; i++)
        w[i] = part[i] = 100, plain[i] = 7;
    whole.rows = l->out;
    window.at = window.from = 1;
    window.rows = l->out - 1;
    assert_int_equal(delta_add_ref(&whole, l, 0.5f, plain, w), KRON_OK);
    for (int64_t i = 0; i < l->out * k; i++)
        assert_true(fabs(w[i] - (100 + 0.5 * d->scale * want[i])) < 1e-12);
    assert_int_equal(delta_add_ref(&window, l, 0.5f, plain, part), KRON_OK);
    for (int64_t i = 0; i < k; i++)
        assert_true(part[i] == 100);
    assert_memory_equal(part + k, w + k, (size_t)((l->out - 1) * k) * sizeof *w);
}

static void deltas_are_what_they_say(void **state)
{
    static const float a[4] = {1, 2, 3, 4}, b[3] = {1, -1, 2}, c[4] = {2, 0, 1, -1};
    static const float e[3] = {3, 1, 1};
    static const float w1[4] = {1, 2, 3, -1}, w2[2] = {5, 7};
    static const float full[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    const struct layer l = fx_layer(LAYER_LINEAR, "l", 4, 3, 1);
    const struct layer k = fx_layer(LAYER_LINEAR, "k", 2, 4, 1); /* W1[2, 2] (x) W2[1, 2] */
    struct delta d = {.kind = DELTA_LOW_RANK, .scale = 2, .rank = 1, .a = matrix(a, 4, 1),
                      .b = matrix(b, 1, 3)};
    double want[12];

    (void)state;
    for (int i = 0; i < 12; i++)
        want[i] = (double)a[i / 3] * b[i % 3];
    expect_delta(&d, &l, want);
    d.kind = DELTA_HADAMARD;
    d.c = matrix(c, 4, 1), d.d = matrix(e, 1, 3);
    for (int i = 0; i < 12; i++)
        want[i] *= (double)c[i / 3] * e[i % 3];
    expect_delta(&d, &l, want);
    d = (struct delta){.kind = DELTA_FULL, .scale = -1, .d = matrix(full, 4, 3)};
    for (int i = 0; i < 12; i++)
        want[i] = full[i];
    expect_delta(&d, &l, want);
    d = (struct delta){.kind = DELTA_KRON, .scale = 1, .up = 2, .uq = 2, .vp = 1, .vq = 2,
                       .w1 = matrix(w1, 2, 2), .w2 = matrix(w2, 1, 2)};
    expect_delta(&d, &k, (const double[]){5, 7, 10, 14, 15, 21, -5, -7});
    d.rank = 1; /* the same W2 as a product */
    d.a = matrix(a, 1, 1), d.b = d.w2;
    d.w2 = (struct tensor){0};
    expect_delta(&d, &k, (const double[]){5, 7, 10, 14, 15, 21, -5, -7});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(few_rows_take_activations_many_the_weight),
        cmocka_unit_test(each_delta_takes_its_own_way),
        cmocka_unit_test(the_choice_turns_once),
        cmocka_unit_test(modes_are_obeyed),
        cmocka_unit_test(merging_keeps_to_its_budget),
        cmocka_unit_test(layers_without_deltas_are_left_alone),
        cmocka_unit_test(each_choice_is_logged),
        cmocka_unit_test(whole_numbers_are_for_many_rows),
        cmocka_unit_test(convolutions_and_attention_take_16_bits),
        cmocka_unit_test(weights_are_kept_within_the_budget),
        cmocka_unit_test(deltas_are_what_they_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
