/* SPDX-License-Identifier: MIT
 * Products in whole numbers, beyond single runs (those: kron-kernels --op linear_int8 and others):
 * what is kept, what is left out, what is no number. */
#include "backend/cpu/int8.h"
#include "graph_fixture.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 9, IN = 160, OUT = 50 };

/* A layer of OUT x IN with a Kronecker delta in its rows. */
struct net {
    struct graph g;
    struct layer layer;
    struct layer *at[1];
    struct layer_table table;
    struct delta delta;
    struct delta_list list;
    struct delta_set set;
    float w[OUT * IN], w1[2 * 2], w2[OUT / 2 * IN / 2], x[ROWS * IN];
};

static void fill(float *x, int64_t n, uint32_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1;
    }
}

static struct tensor tensor_of(const float *data, int64_t n)
{
    struct tensor t = {.data = data, .bytes = (size_t)n * 4, .type = DT_F32, .n_dims = 1,
                       .dim = {n, 1, 1, 1, 1, 1}, .name = "numbers"};

    return t;
}

static void net_make(struct net *n, bool keep)
{
    memset(n, 0, sizeof *n);
    fill(n->w, OUT * IN, 1);
    fill(n->w1, 4, 2);
    fill(n->w2, OUT / 2 * IN / 2, 3);
    fill(n->x, ROWS * IN, 4);
    n->layer = fx_layer(LAYER_LINEAR, "layer", OUT, IN, 1);
    n->layer.id = 0;
    n->layer.weight = tensor_of(n->w, OUT * IN);
    n->layer.bias.data = NULL;
    n->at[0] = &n->layer;
    n->table = (struct layer_table){.at = n->at, .n = 1};
    n->delta = (struct delta){.kind = DELTA_KRON, .scale = 1, .up = 2, .uq = 2, .vp = OUT / 2,
                              .vq = IN / 2, .rows = OUT, .w1 = tensor_of(n->w1, 4),
                              .w2 = tensor_of(n->w2, OUT / 2 * IN / 2)};
    n->list = (struct delta_list){1, &n->delta};
    n->set = (struct delta_set){&n->list, 1, 1};
    gr_init(&n->g, "net");
    gr_ref x = gr_input(&n->g, "x", GR_F32, fx_shape(1, 1, ROWS, IN));
    gr_output(&n->g, gr_linear(&n->g, x, &n->layer, ACT_NONE, GR_NONE), "y");
    n->g.ops[0].compute = COMPUTE_INT8;
    n->g.ops[0].keep = keep;
    assert_int_equal(gr_plan(&n->g), KRON_OK);
}

/* One way to run the net: plans share the weights. */
struct runner {
    struct be_device *d;
    struct be_weights *weights;
    struct be_buf *bind[2];
};

static void runner_open(struct runner *r, struct net *n)
{
    assert_int_equal(be_open("cpu", 2, &r->d), KRON_OK);
    assert_int_equal(be_weights_create(r->d, &n->table, &n->set, &r->weights), KRON_OK);
    assert_int_equal(be_buf_alloc(r->d, sizeof n->x, &r->bind[0]), KRON_OK);
    assert_int_equal(be_buf_alloc(r->d, ROWS * OUT * 4, &r->bind[1]), KRON_OK);
}

static void runner_close(struct runner *r)
{
    be_buf_free(&r->bind[0]);
    be_buf_free(&r->bind[1]);
    be_weights_free(r->d, &r->weights);
    be_close(&r->d);
}

static struct be_plan *plan_of(struct runner *r, struct net *n)
{
    struct be_plan *p;

    assert_int_equal(be_plan_create(r->d, &n->g, r->weights, NULL, &p), KRON_OK);
    return p;
}

static void run(struct runner *r, struct net *n, struct be_plan *p, float strength, float *y)
{
    assert_int_equal(be_buf_write(r->bind[0], 0, n->x, sizeof n->x), KRON_OK);
    assert_int_equal(be_plan_run(r->d, p, r->bind, &strength), KRON_OK);
    assert_int_equal(be_buf_read(r->bind[1], 0, y, ROWS * OUT * 4), KRON_OK);
}

static void kept_weights_follow_the_strength(void **state)
{
    static const float strengths[] = {1, 1, 0.5f, 0, 1};
    struct net kept, plain;
    struct runner a, b;
    float x[ROWS * OUT], y[ROWS * OUT], first[ROWS * OUT];

    (void)state;
    net_make(&kept, true);
    net_make(&plain, false);
    runner_open(&a, &kept);
    runner_open(&b, &plain);
    struct be_plan *p = plan_of(&a, &kept), *second = plan_of(&a, &kept), *q = plan_of(&b, &plain);
    for (size_t i = 0; i < sizeof strengths / sizeof *strengths; i++) {
        run(&a, &kept, i % 2 ? second : p, strengths[i], x);
        run(&b, &plain, q, strengths[i], y);
        assert_memory_equal(x, y, sizeof x);
        if (i == 0)
            memcpy(first, x, sizeof x);
        assert_int_equal(memcmp(first, x, sizeof x) == 0, strengths[i] == 1);
    }
    be_plan_free(a.d, &p);
    be_plan_free(a.d, &second);
    be_plan_free(b.d, &q);
    runner_close(&a);
    runner_close(&b);
    gr_free(&kept.g);
    gr_free(&plain.g);
}

static void a_row_with_no_number_spoils_itself_alone(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    struct net n;
    struct runner r;
    float y[ROWS * OUT];

    (void)state;
    net_make(&n, true);
    runner_open(&r, &n);
    struct be_plan *p = plan_of(&r, &n);
    for (int i = 0; i < 6; i++) {
        if (i == 3) { /* again in 16 bits */
            be_plan_free(r.d, &p);
            n.g.ops[0].compute = COMPUTE_INT16;
            n.g.ops[0].keep = false;
            p = plan_of(&r, &n);
        }
        n.x[2 * IN + 140] = odd[i % 3];
        run(&r, &n, p, 1, y);
        for (int e = 0; e < ROWS * OUT; e++)
            assert_int_equal(isfinite(y[e]) != 0, e / OUT != 2);
    }
    be_plan_free(r.d, &p);
    runner_close(&r);
    gr_free(&n.g);
}

/* Runs the only operation of g, in 16 bits, on n_in inputs of n numbers each. */
static void run_whole(struct graph *g, const struct layer_table *table, float *const *in, int n_in,
                      int64_t n, float *y, int64_t n_out)
{
    struct delta_set none = {0};
    struct be_weights *weights;
    struct be_buf *bind[4];
    struct be_device *d;
    struct be_plan *p;
    float strength = 1;

    g->ops[0].compute = COMPUTE_INT16;
    assert_int_equal(gr_plan(g), KRON_OK);
    assert_int_equal(be_open("cpu", 2, &d), KRON_OK);
    assert_int_equal(be_weights_create(d, table, &none, &weights), KRON_OK);
    assert_int_equal(be_plan_create(d, g, weights, &strength, &p), KRON_OK);
    for (int i = 0; i <= n_in; i++)
        assert_int_equal(be_buf_alloc(d, (size_t)(i < n_in ? n : n_out) * 4, &bind[i]), KRON_OK);
    for (int i = 0; i < n_in; i++)
        assert_int_equal(be_buf_write(bind[i], 0, in[i], (size_t)n * 4), KRON_OK);
    assert_int_equal(be_plan_run(d, p, bind, &strength), KRON_OK);
    assert_int_equal(be_buf_read(bind[n_in], 0, y, (size_t)n_out * 4), KRON_OK);
    for (int i = 0; i <= n_in; i++)
        be_buf_free(&bind[i]);
    be_plan_free(d, &p);
    be_weights_free(d, &weights);
    be_close(&d);
    gr_free(g);
}

enum { TOKENS = 300, HEAD = 24, HEADS = 2, WIDTH = HEAD * HEADS };

/* No number in a query spoils its row of the head, in a key or a value the head. */
static void attention_with_no_number_shows_it(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    static float x[3][TOKENS * WIDTH], y[TOKENS * WIDTH];
    float *const in[3] = {x[0], x[1], x[2]};
    const struct layer_table none = {0};

    (void)state;
    for (int i = 0; i < 9; i++) {
        struct graph g;
        gr_ref v[3];
        for (int j = 0; j < 3; j++)
            fill(x[j], TOKENS * WIDTH, (uint32_t)j);
        x[i / 3][290 * WIDTH + HEAD + 3] = odd[i % 3];
        gr_init(&g, "net");
        for (int j = 0; j < 3; j++)
            v[j] = gr_input(&g, "in", GR_F32, fx_shape(1, 1, TOKENS, WIDTH));
        gr_output(&g, gr_attention(&g, v[0], v[1], v[2], HEADS, false), "y");
        run_whole(&g, &none, in, 3, TOKENS * WIDTH, y, TOKENS * WIDTH);
        for (int e = 0; e < TOKENS * WIDTH; e++) {
            int head = e % WIDTH / HEAD, channel = e % HEAD;
            bool spoilt = head == 1 && (i >= 6 ? channel == 3 : i >= 3 || e / WIDTH == 290);
            assert_int_equal(isfinite(y[e]) == 0, spoilt);
        }
    }
}

enum { SIDE = 12, CHANNELS = 32 };

/* Tiles are 4 x 4 pixels by windows of 6 x 6: pixel (5, 5) belongs to the four around (4, 4). */
static void a_convolution_with_no_number_shows_it(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    static float x[SIDE * SIDE * CHANNELS], y[SIDE * SIDE * CHANNELS], w[9 * CHANNELS * CHANNELS];
    struct layer l = fx_layer(LAYER_CONV, "layer", CHANNELS, CHANNELS, 3), *at[1] = {&l};
    const struct layer_table table = {.at = at, .n = 1};
    float *const in[1] = {x};

    (void)state;
    fill(w, 9 * CHANNELS * CHANNELS, 5);
    l.id = 0;
    l.weight = tensor_of(w, 9 * CHANNELS * CHANNELS);
    l.bias.data = NULL;
    for (int i = 0; i < 3; i++) {
        struct graph g;
        fill(x, SIDE * SIDE * CHANNELS, 6);
        x[(5 * SIDE + 5) * CHANNELS + 7] = odd[i];
        gr_init(&g, "net");
        gr_ref v = gr_input(&g, "x", GR_F32, fx_shape(1, SIDE, SIDE, CHANNELS));
        gr_output(&g, gr_conv(&g, v, &l, 1, GR_NONE, GR_NONE), "y");
        run_whole(&g, &table, in, 1, SIDE * SIDE * CHANNELS, y, SIDE * SIDE * CHANNELS);
        for (int e = 0; e < SIDE * SIDE * CHANNELS; e++) {
            int row = e / CHANNELS / SIDE, col = e / CHANNELS % SIDE;
            bool touched = row >= 4 && row <= 6 && col >= 4 && col <= 6;
            bool near = row < 8 && col < 8;
            assert_true(isfinite(y[e]) ? !touched : near);
        }
    }
}

static void outliers_are_few_channels_far_beyond_the_others(void **state)
{
    float most[1280];
    int32_t at[INT8_OUTLIERS];

    (void)state;
    for (int i = 0; i < 1280; i++)
        most[i] = 1 + (float)(i % 7) / 10;
    assert_int_equal(int8_outliers(most, 1280, at), 0);
    most[900] = 20;
    most[3] = 60;
    assert_int_equal(int8_outliers(most, 1280, at), 2);
    assert_int_equal(at[0], 3);
    assert_int_equal(at[1], 900);
    for (int i = 0; i < 40; i++) /* more than there is room for, and as large: no gain */
        most[10 + 20 * i] = 59;
    assert_int_equal(int8_outliers(most, 1280, at), 0);
    for (int i = 0; i < 15; i++)
        most[i] = 1;
    most[4] = 100;
    assert_int_equal(int8_outliers(most, 15, at), 0); /* too few channels to leave any out */
    most[15] = 1;
    assert_int_equal(int8_outliers(most, 16, at), 1);
    assert_int_equal(at[0], 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_weights_follow_the_strength),
        cmocka_unit_test(a_row_with_no_number_spoils_itself_alone),
        cmocka_unit_test(attention_with_no_number_shows_it),
        cmocka_unit_test(a_convolution_with_no_number_shows_it),
        cmocka_unit_test(outliers_are_few_channels_far_beyond_the_others),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
