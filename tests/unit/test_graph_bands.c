/* SPDX-License-Identifier: MIT
 * Convolutions in bands of rows give what they give whole, in less memory. */
#include "backend/backend.h"
#include "distance.h"
#include "graph_fixture.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { H = 202, W = 204, WIDE = 128, NARROW = 64 }; /* 21 MB: three bands, the last shorter */

enum { CONV_IN, NORM1, CONV1, SKIP, NORM2, CONV2, UP, N_LAYERS };
static struct layer layers[N_LAYERS];
static struct layer *at[N_LAYERS];
static struct layer_table table = {.at = at, .n = N_LAYERS};
static struct be_device *device;

static float noise(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*seed >> 40) / (1 << 23) - 1);
}

static float *numbers(int64_t n, double scale, double middle)
{
    static uint64_t seed = 7;
    float *p = malloc((size_t)n * sizeof *p);

    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(middle + scale * (double)noise(&seed));
    return p;
}

static void make(int i, enum layer_kind kind, int64_t out, int64_t in, int k)
{
    int64_t n = out * in * k * k;
    bool norm = kind == LAYER_NORM;

    layers[i] = fx_layer(kind, "layer", out, in, k);
    layers[i].id = i;
    layers[i].weight = (struct tensor){.type = DT_F32, .n_dims = norm ? 1 : 4,
                                       .dim = {out, in, k, k, 1, 1}, .name = "weight",
                                       .bytes = (size_t)n * 4};
    layers[i].weight.data = numbers(n, norm ? 0.5 : 1.7 / sqrt((double)(in * k * k)), norm);
    layers[i].bias = (struct tensor){.type = DT_F32, .n_dims = 1, .dim = {out, 1, 1, 1, 1, 1},
                                     .name = "bias", .bytes = (size_t)out * 4};
    layers[i].bias.data = numbers(out, 0.3, 0);
    at[i] = &layers[i];
}

static int setup(void **state)
{
    (void)state;
    make(CONV_IN, LAYER_CONV, WIDE, 4, 3);
    make(NORM1, LAYER_NORM, WIDE, 1, 1);
    make(CONV1, LAYER_CONV, NARROW, WIDE, 3);
    make(SKIP, LAYER_CONV, NARROW, WIDE, 1);
    make(NORM2, LAYER_NORM, NARROW, 1, 1);
    make(CONV2, LAYER_CONV, NARROW, NARROW, 3);
    make(UP, LAYER_CONV, 4, NARROW, 3);
    return be_open("cpu", 2, &device) == KRON_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    be_close(&device);
    for (int i = 0; i < N_LAYERS; i++) {
        free((void *)(uintptr_t)layers[i].weight.data);
        free((void *)(uintptr_t)layers[i].bias.data);
    }
    return 0;
}

static gr_ref norm_conv(struct graph *g, bool bands, gr_ref x, int norm, int conv, gr_ref residual)
{
    if (bands)
        return gr_norm_conv(g, x, &layers[norm], 32, 1e-6f, ACT_SILU, &layers[conv], residual);
    return gr_conv(g, gr_group_norm(g, x, &layers[norm], 32, 1e-6f, ACT_SILU), &layers[conv], 1,
                   GR_NONE, residual);
}

/* A residual block and an upsampling, as a VAE has them. */
static void build(struct graph *g, bool bands, int64_t n)
{
    gr_ref x, h, skip;

    gr_init(g, bands ? "bands" : "whole");
    x = gr_input(g, "x", GR_F32, fx_shape(n, H, W, 4));
    x = gr_conv(g, x, &layers[CONV_IN], 1, GR_NONE, GR_NONE);
    skip = gr_conv(g, x, &layers[SKIP], 1, GR_NONE, GR_NONE);
    h = norm_conv(g, bands, x, NORM1, CONV1, GR_NONE);
    h = norm_conv(g, bands, h, NORM2, CONV2, skip);
    if (bands)
        h = gr_upsample_conv(g, h, &layers[UP]);
    else
        h = gr_conv(g, gr_upsample(g, h, 2 * H, 2 * W), &layers[UP], 1, GR_NONE, GR_NONE);
    gr_output(g, h, "y");
    if (gr_plan(g) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

static float *run(const struct graph *g, const struct delta_set *set, const float *x)
{
    const float strength = 1;
    struct be_weights *weights;
    struct be_plan *plan;
    struct be_buf *bind[2];
    size_t nx = (size_t)H * W * 4 * 4, ny = 4 * nx;
    float *y = malloc(ny);

    assert_non_null(y);
    assert_int_equal(be_weights_create(device, &table, set, &weights), KRON_OK);
    assert_int_equal(be_plan_create(device, g, weights, &strength, &plan), KRON_OK);
    assert_int_equal(be_buf_alloc(device, nx, &bind[0]), KRON_OK);
    assert_int_equal(be_buf_alloc(device, ny, &bind[1]), KRON_OK);
    assert_int_equal(be_buf_write(bind[0], 0, x, nx), KRON_OK);
    for (int i = 0; i < 2; i++) /* again: nothing of the first run may be left in the way */
        assert_int_equal(be_plan_run(device, plan, bind, &strength), KRON_OK);
    assert_int_equal(be_buf_read(bind[1], 0, y, ny), KRON_OK);
    be_buf_free(&bind[0]);
    be_buf_free(&bind[1]);
    be_plan_free(device, &plan);
    be_weights_free(device, &weights);
    return y;
}

static void compare(const struct delta_set *set)
{
    struct graph whole, bands;
    float *x = numbers(H * W * 4, 1, 0);

    build(&whole, false, 1);
    build(&bands, true, 1);
    assert_true(bands.n_ops > 2 * whole.n_ops);
    float *a = run(&whole, set, x), *b = run(&bands, set, x);
    double d = distance(b, a, 4 * H * W * 4);
    /* Bands cut a 3x3 convolution's tiles of 4x4 pixels elsewhere; such a layer rounds to 1.5e-6
     * (winograd_tmpl.h), and there are four in each of the two runs. */
    if (!(d < 1.5e-6 * sqrt(8)))
        fail_msg("relative distance %.3g", d);
    free(x);
    free(a);
    free(b);
    gr_free(&whole);
    gr_free(&bands);
}

static void bands_give_what_the_whole_gives(void **state)
{
    (void)state;
    compare(NULL);
}

/* What is confined to a part of the picture finds the same part in every band. */
static void regions_keep_their_place(void **state)
{
    float mask[4] = {0, 1, 0.5f, 0}, *d = numbers(NARROW * NARROW * 9, 0.05, 0);
    const struct delta_region region = {.w = 2, .h = 2, .mask = mask};
    struct delta delta = {.kind = DELTA_FULL, .scale = 1, .rows = NARROW, .region = &region};
    struct delta_list lists[N_LAYERS] = {[CONV2] = {1, &delta}};
    struct delta_set set = {.by_layer = lists, .n_layers = N_LAYERS, .n_strengths = 1};

    (void)state;
    delta.d = layers[CONV2].weight;
    delta.d.data = d;
    compare(&set);
    free(d);
}

/* Whole: the wide value is normalised in its own place beside two narrow ones, and the enlarged
 * picture is four narrow ones beside the one that it is made of. In bands: the wide value, the
 * skip, and a band. */
static void bands_take_less(void **state)
{
    const size_t narrow = (size_t)H * W * NARROW * 4, band = 12 << 20;
    struct graph whole, bands;

    (void)state;
    build(&whole, false, 1);
    build(&bands, true, 1);
    assert_true(whole.arena_bytes >= 5 * narrow);
    assert_true(bands.arena_bytes >= 3 * narrow);
    assert_true(bands.arena_bytes < 3 * narrow + band);
    assert_int_equal(bands.arena_bytes, bands.lower_bound);
    gr_free(&whole);
    gr_free(&bands);
}

static void several_samples_have_no_bands(void **state)
{
    struct graph whole, bands;

    (void)state;
    build(&whole, false, 2);
    build(&bands, true, 2);
    assert_int_equal(whole.n_ops, bands.n_ops);
    gr_free(&whole);
    gr_free(&bands);
}

static void parts_that_do_not_fit_are_errors(void **state)
{
    struct graph g;

    (void)state;
    gr_init(&g, "parts");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(1, 8, 8, 4));
    gr_ref y = gr_whole(&g, fx_shape(1, 8, 8, 4));
    gr_put(&g, gr_act(&g, gr_rows(&g, x, 4, 4), ACT_SILU), y, 0);
    assert_int_equal(g.status, KRON_OK);
    gr_put(&g, gr_act(&g, gr_rows(&g, x, 4, 4), ACT_SILU), y, 5);
    assert_int_equal(g.status, KRON_ERR_SHAPE);
    gr_free(&g);
    gr_init(&g, "rows");
    x = gr_input(&g, "x", GR_F32, fx_shape(2, 8, 8, 4));
    assert_int_equal(gr_rows(&g, x, 0, 4), GR_NONE); /* two samples */
    assert_int_equal(g.status, KRON_ERR_SHAPE);
    gr_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bands_give_what_the_whole_gives),
        cmocka_unit_test(regions_keep_their_place),
        cmocka_unit_test(bands_take_less),
        cmocka_unit_test(several_samples_have_no_bands),
        cmocka_unit_test(parts_that_do_not_fit_are_errors),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
