/* SPDX-License-Identifier: MIT
 * Building graphs: the shapes that operations give, and errors that stick and name the layer. */
#include "graph_fixture.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void expect_shape(const struct graph *g, gr_ref v, int64_t n, int64_t h, int64_t w,
                         int64_t c)
{
    struct gr_shape s = gr_shape_of(g, v);

    assert_int_equal(g->status, KRON_OK);
    if (s.n != n || s.h != h || s.w != w || s.c != c)
        fail_msg("shape [%d, %d, %d, %d], expected [%d, %d, %d, %d]", (int)s.n, (int)s.h, (int)s.w,
                 (int)s.c, (int)n, (int)h, (int)w, (int)c);
}

static void operations_give_shapes(void **state)
{
    const struct layer lin = fx_layer(LAYER_LINEAR, "lin", 16, 8, 1);
    const struct layer conv = fx_layer(LAYER_CONV, "conv", 12, 8, 3);
    const struct layer one = fx_layer(LAYER_CONV, "one", 12, 8, 1);
    const struct layer norm = fx_layer(LAYER_NORM, "norm", 8, 1, 1);
    const struct layer tok = fx_layer(LAYER_EMBED, "tok", 100, 8, 1);
    const struct layer pos = fx_layer(LAYER_EMBED, "pos", 77, 8, 1);
    struct graph g;

    (void)state;
    gr_init(&g, "test");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(2, 9, 6, 8));
    gr_ref t = gr_input(&g, "t", GR_F32, fx_shape(2, 1, 1, 6));
    gr_ref ids = gr_input(&g, "ids", GR_I32, fx_shape(2, 1, 77, 1));
    expect_shape(&g, gr_linear(&g, x, &lin, ACT_SILU, GR_NONE), 2, 9, 6, 16);
    expect_shape(&g, gr_geglu(&g, x, &lin), 2, 9, 6, 8);
    gr_ref y = gr_conv(&g, x, &conv, 1, GR_NONE, GR_NONE);
    expect_shape(&g, y, 2, 9, 6, 12);
    expect_shape(&g, gr_conv(&g, x, &conv, 1, GR_NONE, y), 2, 9, 6, 12);
    expect_shape(&g, gr_conv(&g, x, &conv, 2, GR_NONE, GR_NONE), 2, 5, 3, 12);
    expect_shape(&g, gr_conv_down_asym(&g, x, &conv), 2, 4, 3, 12);
    expect_shape(&g, gr_conv(&g, x, &one, 1, GR_NONE, GR_NONE), 2, 9, 6, 12);
    assert_int_equal(g.ops[g.n_ops - 1].kind, OP_LINEAR); /* a 1x1 convolution is one */
    expect_shape(&g, gr_conv(&g, x, &one, 2, GR_NONE, GR_NONE), 2, 5, 3, 12);
    assert_int_equal(g.ops[g.n_ops - 1].kind, OP_CONV2D);
    expect_shape(&g, gr_group_norm(&g, x, &norm, 4, 1e-5f, ACT_SILU), 2, 9, 6, 8);
    expect_shape(&g, gr_layer_norm(&g, x, &norm, 1e-5f), 2, 9, 6, 8);
    gr_ref k = gr_embed(&g, ids, GR_NONE, &tok, &pos);
    expect_shape(&g, k, 2, 1, 77, 8);
    expect_shape(&g, gr_attention(&g, x, k, k, 2, false), 2, 9, 6, 8);
    expect_shape(&g, gr_act(&g, x, ACT_GELU), 2, 9, 6, 8);
    expect_shape(&g, gr_add(&g, x, x), 2, 9, 6, 8);
    expect_shape(&g, gr_concat(&g, x, y), 2, 9, 6, 20);
    expect_shape(&g, gr_upsample(&g, x, 18, 11), 2, 18, 11, 8);
    expect_shape(&g, gr_timestep(&g, t, 320), 2, 1, 1, 1920);
    gr_output(&g, y, "y");
    assert_int_equal(gr_bind(&g, "x"), 0);
    assert_int_equal(gr_bind(&g, "ids"), 2);
    assert_int_equal(gr_bind(&g, "y"), 3);
    assert_int_equal(gr_bind(&g, "z"), -1);
    assert_int_equal(g.values[y].role, GR_OUTPUT);
    assert_int_equal(gr_plan(&g), KRON_OK);
    assert_true(g.values[y].offset == -1 && g.values[x].offset == -1);
    gr_free(&g);
}

/* One broken operation each, on x[1, 8, 8, 8] and context[1, 1, 77, 12]. */
struct net {
    struct graph g;
    gr_ref x, context, vec, ids;
    struct layer lin, conv, norm, tok, pos;
};

typedef gr_ref (*broken)(struct net *n);

#define BROKEN(name, expr)                \
    static gr_ref name(struct net *n)     \
    {                                     \
        return expr;                      \
    }
BROKEN(linear_in, gr_linear(&n->g, n->context, &n->lin, ACT_NONE, GR_NONE))
BROKEN(linear_of_conv, gr_linear(&n->g, n->x, &n->conv, ACT_NONE, GR_NONE))
BROKEN(linear_residual, gr_linear(&n->g, n->x, &n->lin, ACT_NONE, n->x))
BROKEN(geglu_in, gr_geglu(&n->g, n->context, &n->lin))
BROKEN(geglu_odd, (n->lin.out = 15, gr_geglu(&n->g, n->x, &n->lin)))
BROKEN(conv_in, gr_conv(&n->g, n->context, &n->conv, 1, GR_NONE, GR_NONE))
BROKEN(conv_vec, gr_conv(&n->g, n->x, &n->conv, 1, n->x, GR_NONE))
BROKEN(conv_vec_width, (n->conv.out = 13, gr_conv(&n->g, n->x, &n->conv, 1, n->vec, GR_NONE)))
BROKEN(conv_residual, gr_conv(&n->g, n->x, &n->conv, 2, GR_NONE, n->x))
BROKEN(conv_window, gr_conv_down_asym(
    &n->g, gr_input(&n->g, "row", GR_F32, fx_shape(1, 1, 8, 8)), &n->conv))
BROKEN(group_norm_width, gr_group_norm(&n->g, n->context, &n->norm, 4, 1e-5f, ACT_NONE))
BROKEN(group_norm_groups, gr_group_norm(&n->g, n->x, &n->norm, 3, 1e-5f, ACT_NONE))
BROKEN(layer_norm_width, gr_layer_norm(&n->g, n->context, &n->norm, 1e-5f))
BROKEN(attention_width, gr_attention(&n->g, n->x, n->context, n->context, 2, false))
BROKEN(attention_heads, gr_attention(&n->g, n->x, n->x, n->x, 3, false))
BROKEN(attention_no_heads, gr_attention(&n->g, n->x, n->x, n->x, 0, false))
BROKEN(attention_values, gr_attention(&n->g, n->context, n->context, n->vec, 2, false))
BROKEN(attention_causal, gr_attention(&n->g, n->vec, n->context, n->context, 2, true))
BROKEN(sum, gr_add(&n->g, n->x, n->context))
BROKEN(concatenation, gr_concat(&n->g, n->x, n->context))
BROKEN(embed_ids, gr_embed(&n->g, n->context, GR_NONE, &n->tok, &n->pos))
BROKEN(embed_length, (n->pos.out = 76, gr_embed(&n->g, n->ids, GR_NONE, &n->tok, &n->pos)))
BROKEN(embed_width, (n->pos.in = 9, gr_embed(&n->g, n->ids, GR_NONE, &n->tok, &n->pos)))
BROKEN(embed_extra_width, gr_embed(&n->g, n->ids, n->vec, &n->tok, &n->pos))
BROKEN(embed_extra_rows, gr_embed(&n->g, n->ids, gr_input(&n->g, "two", GR_F32,
                                                          fx_shape(2, 1, 1, 8)), &n->tok, &n->pos))
BROKEN(time_of_image, gr_timestep(&n->g, n->x, 320))
BROKEN(time_odd, gr_timestep(&n->g, n->vec, 321))

static const struct {
    const char *name;
    broken build;
    const char *want;
} broken_ops[] = {
    {"linear_in", linear_in, "linear layer 'a.linear' [16, 8, 1, 1] does not take an input of 12"},
    {"linear_of_conv", linear_of_conv, "'a.conv'"},
    {"linear_residual", linear_residual, "residual sum of [1, 8, 8, 8]"},
    {"geglu_in", geglu_in, "geglu layer 'a.linear'"},
    {"geglu_odd", geglu_odd, "geglu layer 'a.linear' [15, 8, 1, 1]"},
    {"conv_in", conv_in,
     "convolution 'a.conv' [12, 8, 3, 3] does not take an input of 12 channels"},
    {"conv_vec", conv_vec, "channel sum of [1, 8, 8, 8] and [1, 8, 8, 8]"},
    {"conv_vec_width", conv_vec_width, "channel sum"},
    {"conv_residual", conv_residual, "residual sum"},
    {"conv_window", conv_window, "convolution 'a.conv' has a window of 3 x 3"},
    {"group_norm_width", group_norm_width, "group norm 'a.norm'"},
    {"group_norm_groups", group_norm_groups, "group norm 'a.norm'"},
    {"layer_norm_width", layer_norm_width, "layer norm 'a.norm'"},
    {"attention_width", attention_width, "attention of [1, 8, 8, 8] and [1, 1, 77, 12]"},
    {"attention_heads", attention_heads, "attention"},
    {"attention_no_heads", attention_no_heads, "attention"},
    {"attention_values", attention_values, "attention"},
    {"attention_causal", attention_causal, "attention of [1, 1, 1, 12] and [1, 1, 77, 12]"},
    {"sum", sum, "sum of [1, 8, 8, 8] and [1, 1, 77, 12]"},
    {"concatenation", concatenation, "concatenation"},
    {"embed_ids", embed_ids, "embedding 'a.tokens'"},
    {"embed_length", embed_length, "embedding 'a.tokens'"},
    {"embed_width", embed_width, "embedding 'a.tokens'"},
    {"embed_extra_width", embed_extra_width, "embedding 'a.tokens'"},
    {"embed_extra_rows", embed_extra_rows, "embedding 'a.tokens'"},
    {"time_of_image", time_of_image, "time embedding of [1, 8, 8, 8]"},
    {"time_odd", time_odd, "time embedding"},
};

static void start(struct net *n)
{
    gr_init(&n->g, "net");
    n->lin = fx_layer(LAYER_LINEAR, "a.linear", 16, 8, 1);
    n->conv = fx_layer(LAYER_CONV, "a.conv", 12, 8, 3);
    n->norm = fx_layer(LAYER_NORM, "a.norm", 8, 1, 1);
    n->tok = fx_layer(LAYER_EMBED, "a.tokens", 100, 8, 1);
    n->pos = fx_layer(LAYER_EMBED, "a.positions", 77, 8, 1);
    n->x = gr_input(&n->g, "x", GR_F32, fx_shape(1, 8, 8, 8));
    n->context = gr_input(&n->g, "context", GR_F32, fx_shape(1, 1, 77, 12));
    n->vec = gr_input(&n->g, "vec", GR_F32, fx_shape(1, 1, 1, 12));
    n->ids = gr_input(&n->g, "ids", GR_I32, fx_shape(1, 1, 77, 1));
}

static void shape_errors_stick_and_say_where(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof broken_ops / sizeof *broken_ops; i++) {
        struct net n;
        char first[1024];

        start(&n);
        assert_int_equal(n.g.status, KRON_OK);
        if (broken_ops[i].build(&n) != GR_NONE || n.g.status != KRON_ERR_SHAPE)
            fail_msg("%s: was built", broken_ops[i].name);
        snprintf(first, sizeof first, "%s", kron_error_detail());
        if (strstr(first, broken_ops[i].want) == NULL || !str_starts(first, "net: "))
            fail_msg("%s: '%s' does not say '%s'", broken_ops[i].name, first, broken_ops[i].want);
        /* Whatever comes after changes neither the graph nor the sentence. */
        int ops = n.g.n_ops;
        gr_ref y = gr_linear(&n.g, n.x, &n.lin, ACT_NONE, GR_NONE);
        assert_int_equal(y, GR_NONE);
        y = gr_add(&n.g, y, gr_concat(&n.g, y, y));
        gr_output(&n.g, gr_upsample(&n.g, gr_act(&n.g, y, ACT_SILU), 2, 2), "y");
        assert_int_equal(gr_input(&n.g, "more", GR_F32, fx_shape(1, 1, 1, 1)), GR_NONE);
        assert_int_equal(n.g.n_ops, ops);
        assert_int_equal(gr_plan(&n.g), KRON_ERR_SHAPE);
        assert_string_equal(kron_error_detail(), first);
        gr_free(&n.g);
    }
}

static kron_status build_long(struct graph *g)
{
    gr_init(g, "long");
    gr_ref x = gr_input(g, "x", GR_F32, fx_shape(1, 4, 4, 8));
    gr_ref y = x;

    for (int i = 0; i < 600; i++) /* past the first size of the lists */
        y = gr_add(g, gr_act(g, y, ACT_SILU), x);
    gr_output(g, y, "y");
    return gr_plan(g);
}

static void no_memory_is_an_error(void **state)
{
    int failures = 0;

    (void)state;
    for (long n = 1;; n++, failures++) {
        struct graph g;
        mem_fail_after(n);
        kron_status status = build_long(&g);
        mem_fail_after(0);
        gr_free(&g);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
    }
    assert_true(failures > 8);
}

static void dump_line(kron_log_level level, const char *line, void *user)
{
    assert_int_equal(level, KRON_LOG_DEBUG);
    str_add(user, line);
    str_add(user, "\n");
}

static void a_graph_is_shown_as_text(void **state)
{
    struct net n;
    struct str text = {0};

    (void)state;
    start(&n);
    gr_ref y = gr_linear(&n.g, n.x, &n.lin, ACT_NONE, GR_NONE);
    gr_output(&n.g, gr_act(&n.g, y, ACT_SILU), "y");
    assert_int_equal(gr_plan(&n.g), KRON_OK);
    kron_log_set(dump_line, &text);
    gr_dump(&n.g);
    kron_log_set(NULL, NULL);
    assert_string_equal(str_get(&text),
                        "net 0: linear %0[1,8,8,8]=x -> %4[1,8,8,16]@0 'a.linear'\n"
                        "net 1: act %4[1,8,8,16]@0 -> %5[1,8,8,16]=y\n"
                        "net: arena 4096 bytes, lower bound 4096\n");
    str_free(&text);
    gr_free(&n.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_give_shapes),
        cmocka_unit_test(shape_errors_stick_and_say_where),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(a_graph_is_shown_as_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
