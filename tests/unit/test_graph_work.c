/* SPDX-License-Identifier: MIT
 * What operations have to do, against numbers worked out by hand. */
#include "graph_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static struct layer stored(enum layer_kind kind, int64_t out, int64_t in, int k, size_t bytes)
{
    struct layer l = fx_layer(kind, "layer", out, in, k);

    l.weight.bytes = bytes;
    l.bias.bytes = (size_t)out * 2;
    return l;
}

static void expect_work(const struct graph *g, int op, double flops, double weight, double values)
{
    struct gr_work w = gr_op_work(g, &g->ops[op]);

    assert_int_equal(g->status, KRON_OK);
    assert_true(w.flops == flops);
    assert_true(w.weight_bytes == weight);
    assert_true(w.value_bytes == values);
}

static void a_linear_layer_reads_its_weight_once(void **state)
{
    struct layer l = stored(LAYER_LINEAR, 30, 20, 1, 30 * 20 * 2);
    struct graph g;

    (void)state;
    gr_init(&g, "net");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(2, 1, 7, 20));
    gr_ref y = gr_linear(&g, x, &l, ACT_SILU, GR_NONE);
    gr_linear(&g, x, &l, ACT_NONE, y);
    expect_work(&g, 0, 2.0 * 14 * 30 * 20, 1200 + 60, 4.0 * 14 * (20 + 30));
    expect_work(&g, 1, 2.0 * 14 * 30 * 20, 1200 + 60, 4.0 * 14 * (20 + 30 + 30));
    g.ops[0].route = ROUTE_MERGED; /* its own copy in f32 */
    expect_work(&g, 0, 2.0 * 14 * 30 * 20, 2400 + 60, 4.0 * 14 * (20 + 30));
    g.ops[1].compute = COMPUTE_INT8;
    expect_work(&g, 1, 2.0 * 14 * 30 * 20, 1200 + 60, 4.0 * 14 * (20 + 30 + 30));
    g.ops[1].keep = true; /* a byte for each number */
    expect_work(&g, 1, 2.0 * 14 * 30 * 20, 600 + 60, 4.0 * 14 * (20 + 30 + 30));
    gr_free(&g);
}

static void both_halves_of_a_geglu_count(void **state)
{
    struct layer l = stored(LAYER_LINEAR, 40, 10, 1, 800);
    struct graph g;

    (void)state;
    gr_init(&g, "net");
    gr_geglu(&g, gr_input(&g, "x", GR_F32, fx_shape(1, 3, 5, 10)), &l);
    expect_work(&g, 0, 2.0 * 15 * 40 * 10, 800 + 80, 4.0 * 15 * (10 + 20));
    gr_free(&g);
}

static void a_convolution_counts_its_whole_window(void **state)
{
    struct layer l = stored(LAYER_CONV, 8, 4, 3, 8 * 4 * 9 * 2);
    struct graph g;

    (void)state;
    gr_init(&g, "net");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(2, 6, 10, 4));
    gr_ref vec = gr_input(&g, "vec", GR_F32, fx_shape(2, 1, 1, 8));
    gr_conv(&g, x, &l, 2, vec, GR_NONE);
    expect_work(&g, 0, 2.0 * (2 * 3 * 5) * 8 * 36, 576 + 16, 4.0 * (2 * 60 * 4 + 2 * 8 + 30 * 8));
    gr_free(&g);
}

static void attention_counts_pairs_of_tokens(void **state)
{
    struct graph g;

    (void)state;
    gr_init(&g, "net");
    gr_ref q = gr_input(&g, "q", GR_F32, fx_shape(2, 3, 4, 16));
    gr_ref k = gr_input(&g, "k", GR_F32, fx_shape(2, 1, 77, 16));
    gr_attention(&g, q, k, k, 4, false);
    gr_attention(&g, k, k, k, 4, true);
    expect_work(&g, 0, 2.0 * 2 * 12 * 77 * 16 * 2, 0, 4.0 * 2 * 16 * (12 + 77 + 77 + 12));
    expect_work(&g, 1, 2.0 * 2 * (77 * 78 / 2) * 16 * 2, 0, 4.0 * 2 * 16 * 4 * 77);
    gr_free(&g);
}

static void what_is_no_product_has_no_flops(void **state)
{
    struct layer norm = stored(LAYER_NORM, 16, 1, 1, 32);
    struct layer token = stored(LAYER_EMBED, 100, 6, 1, 1200);
    struct layer pos = stored(LAYER_EMBED, 77, 6, 1, 924);
    struct graph g;

    (void)state;
    gr_init(&g, "net");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(1, 4, 4, 16));
    gr_ref ids = gr_input(&g, "ids", GR_I32, fx_shape(1, 1, 5, 1));
    gr_group_norm(&g, x, &norm, 4, 1e-5f, ACT_SILU);
    gr_concat(&g, x, x);
    gr_upsample(&g, x, 8, 8);
    gr_embed(&g, ids, GR_NONE, &token, &pos);
    expect_work(&g, 0, 0, 32 + 32, 4.0 * 2 * 256);
    expect_work(&g, 1, 0, 0, 4.0 * 4 * 256);
    expect_work(&g, 2, 0, 0, 4.0 * 5 * 256);
    expect_work(&g, 3, 0, 5 * 12, 4.0 * (5 + 30));
    gr_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_linear_layer_reads_its_weight_once),
        cmocka_unit_test(both_halves_of_a_geglu_count),
        cmocka_unit_test(a_convolution_counts_its_whole_window),
        cmocka_unit_test(attention_counts_pairs_of_tokens),
        cmocka_unit_test(what_is_no_product_has_no_flops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
