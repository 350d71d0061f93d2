/* SPDX-License-Identifier: MIT
 * Which scale and strength count: every rule and exception of FIELD.md section 3.5, each a test by
 * its name. */
#include "adapter_scene.h"

/* --- LoRA, LoHa --- */

static void lora(struct fx_maker *m)
{
    FX_PART(m, "lora_down.weight", m->r, m->in * m->kh * m->kw);
    FX_PART(m, "lora_up.weight", m->out, m->r);
}

BESIDE(lora_alpha, lora, SCALAR("alpha", DT_F16, 2))
BESIDE(lora_scale, lora, (SCALAR("alpha", DT_F16, 2), SCALAR("scale", DT_F32, 0.3f)))
BESIDE(lora_scalar, lora, (SCALAR("alpha", DT_F16, 2), SCALAR("scalar", DT_F32, 0.5f)))
BESIDE(lora_inf, lora, SCALAR("alpha", DT_F16, INFINITY))

static void lora_mid(struct fx_maker *m)
{
    FX_PART(m, "lora_down.weight", m->r, m->in, 1, 1);
    FX_PART(m, "lora_up.weight", m->out, 2 * m->r, 1, 1);
    FX_PART(m, "lora_mid.weight", 2 * m->r, m->r, m->kh, m->kw);
}

BESIDE(lora_mid_alpha, lora_mid, SCALAR("alpha", DT_F16, 2))

static void loha(struct fx_maker *m)
{
    FX_PART(m, "hada_w1_a", m->out, m->r);
    FX_PART(m, "hada_w1_b", m->r, m->in * m->kh * m->kw);
    FX_PART(m, "hada_w2_a", m->out, m->r);
    FX_PART(m, "hada_w2_b", m->r, m->in * m->kh * m->kw);
}

BESIDE(loha_alpha, loha, SCALAR("alpha", DT_F16, 2))

/* A linear layer's file at strength 1 is the bare factors at c. */
static void linear_scale(void (*add)(struct fx_maker *), const char *meta, const char *config,
                         int64_t r, void (*bare)(struct fx_maker *), float c)
{
    struct scene s;

    linear_scene(&s);
    assert_scale(
        &s, &(struct recipe){.add = add, .meta = meta, .config = config, .r = r, .up = 4, .uq = 4},
        &(struct recipe){.add = bare, .r = r, .up = 4, .uq = 4}, c);
    scene_close(&s);
}

static void lora_scale_is_alpha_over_rank(void **state)
{
    (void)state;
    linear_scale(lora_alpha, NULL, NULL, 4, lora, 0.5f);
}

static void lora_without_alpha_has_scale_one(void **state)
{
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_defined(&s, &(struct recipe){.add = lora, .r = 4}, 1);
    linear_scale(lora_alpha, NULL, NULL, 2, lora, 1);
    scene_close(&s);
}

static void scale_tensor_overrides_alpha(void **state)
{
    (void)state;
    linear_scale(lora_scale, NULL, NULL, 4, lora, 0.3f);
}

static void scalar_tensor_multiplies(void **state)
{
    (void)state;
    linear_scale(lora_scalar, NULL, NULL, 4, lora, 0.25f);
}

static void rank_of_a_lora_with_mid_is_that_of_down(void **state)
{
    struct scene s;

    (void)state;
    conv_scene(&s, 3, 3, 1);
    assert_scale(&s, &(struct recipe){.add = lora_mid_alpha, .r = 4},
                 &(struct recipe){.add = lora_mid, .r = 4}, 0.5f);
    scene_close(&s);
}

static void loha_scale_is_alpha_over_rank_once(void **state)
{
    (void)state;
    linear_scale(loha_alpha, NULL, NULL, 4, loha, 0.5f);
}

static void infinite_alpha_of_a_low_rank_counts_as_absent(void **state)
{
    (void)state;
    linear_scale(lora_inf, NULL, NULL, 4, lora, 1);
}

/* --- LoKr --- */

BESIDE(split_alpha, split_w2, SCALAR("alpha", DT_F16, 2))
BESIDE(split_w1_alpha, split_w1, SCALAR("alpha", DT_F16, 2))
BESIDE(both_alpha, both, SCALAR("alpha", DT_F16, 2))
BESIDE(tucker_alpha, tucker, SCALAR("alpha", DT_F16, 2))

/* w1 of rank r, w2 of rank 2 r. */
static void two_ranks(struct fx_maker *m)
{
    fx_w1_pair(m);
    FX_PART(m, "lokr_w2_a", m->vp, 2 * m->r);
    FX_PART(m, "lokr_w2_b", 2 * m->r, m->vq);
}

BESIDE(two_ranks_alpha, two_ranks, SCALAR("alpha", DT_F16, 2))

static void lokr_rank_is_that_of_w2_before_w1(void **state)
{
    (void)state;
    linear_scale(split_alpha, NULL, NULL, 4, split_w2, 0.5f);
    linear_scale(split_w1_alpha, NULL, NULL, 4, split_w1, 0.5f);
    linear_scale(two_ranks_alpha, NULL, NULL, 4, two_ranks, 0.25f);
}

static void lokr_tucker_rank_is_that_of_the_core(void **state)
{
    struct scene s;

    (void)state;
    conv_scene(&s, 3, 3, 1); /* vp 6: what reading the columns of w2_a would give */
    assert_scale(&s, &(struct recipe){.add = tucker_alpha, .r = 4, .up = 4, .uq = 4},
                 &(struct recipe){.add = tucker, .r = 4, .up = 4, .uq = 4}, 0.5f);
    scene_close(&s);
}

static void lokr_full_pair_ignores_alpha(void **state)
{
    (void)state;
    linear_scale(whole_alpha, NULL, NULL, 1, whole, 1);
}

BESIDE(whole_one, whole, SCALAR("alpha", DT_F32, 1))

/* Files with alpha 1 and dim 32 on whole pairs were trained either way: 1 like everywhere else. */
static void lokr_exception_1_alpha_that_is_not_dim(void **state)
{
    static const char *const meta = "{\"ss_network_dim\":\"32\",\"ss_network_alpha\":\"1\"}";
    struct scene s;

    (void)state;
    linear_scale(whole_one, meta, NULL, 1, whole, 1);
    linear_scene(&s); /* the user knows that it was trained with 1 / 32 */
    assert_scale(&s,
                 &(struct recipe){
                     .add = whole_one, .meta = meta, .up = 4, .uq = 4, .scale = 1 / 32.0f},
                 &(struct recipe){.add = whole, .up = 4, .uq = 4}, 1 / 32.0f);
    scene_close(&s);
}

static void lokr_exception_2_kohya_cdka_and_krona(void **state)
{
    static const char *const krona =
        "{\"ss_network_module\":\"networks.krona\",\"ss_network_args\":\"{\\\"krona_alpha\\\":"
        "\\\"6\\\",\\\"use_cdka_scale\\\":\\\"True\\\"}\"}";
    static const char *const plain_krona = "{\"ss_network_module\":\"networks.krona\"}";

    (void)state;
    linear_scale(whole_alpha, cdka, NULL, 1, whole, 3); /* 6 / sqrt(uq = 4) */
    linear_scale(whole_alpha, krona, NULL, 1, whole, 3);
    linear_scale(whole_alpha, plain_krona, NULL, 1, whole, 1);
}

BESIDE(whole_10000, whole, SCALAR("alpha", DT_F16, 10000))
BESIDE(whole_100000, whole, SCALAR("alpha", DT_F16, 100000)) /* infinite in f16 */

static void lokr_exception_3_alpha_of_10000_and_100000(void **state)
{
    (void)state;
    linear_scale(whole_10000, NULL, NULL, 1, whole, 1);
    linear_scale(whole_100000, NULL, NULL, 1, whole, 1);
}

static void lokr_exception_4_scale_counts_once(void **state)
{
    (void)state;
    linear_scale(both_alpha, NULL, NULL, 4, both, 0.5f);
}

/* The activation route keeps the scale: LyCORIS 3's bypass forgot it. */
static void lokr_exception_5_activation_route_keeps_the_scale(void **state)
{
    struct scene s;
    const struct recipe r = {.add = split_alpha, .r = 4, .up = 4, .uq = 4};

    (void)state;
    linear_scene(&s); /* with_files() holds the routes to each other */
    assert_defined(&s, &r, 1);
    scene_close(&s);
    conv_scene(&s, 3, 3, 2);
    assert_defined(&s, &r, 1);
    scene_close(&s);
}

/* --- rs-LoRA, PEFT --- */

BESIDE(lora_rs, lora, SCALAR("alpha", DT_F32, 8)) /* alpha' = 4 * rank / sqrt(rank), rank 4 */

static void rslora_of_lycoris_is_in_its_alpha(void **state)
{
    (void)state;
    linear_scale(lora_rs, "{\"ss_network_args\":\"{\\\"rs_lora\\\":\\\"True\\\"}\"}", NULL, 4, lora,
                 2);
}

static void rslora_of_peft_is_in_its_config(void **state)
{
    (void)state;
    linear_scale(lora, NULL, "{\"r\":4,\"lora_alpha\":4}", 4, lora, 1);
    linear_scale(lora, NULL, "{\"r\":4,\"lora_alpha\":4,\"use_rslora\":true}", 4, lora, 2);
    linear_scale(lora,
                 "{\"lora_adapter_metadata\":\"{\\\"unet.lora_alpha\\\":4,\\\"unet.r\\\":4,"
                 "\\\"unet.use_rslora\\\":true}\"}",
                 NULL, 4, lora, 2);
}

static void peft_scales_whole_pairs_too(void **state)
{
    (void)state;
    linear_scale(whole, NULL, "{\"r\":64,\"alpha\":32}", 1, whole, 0.5f);
}

/* --- DoRA, OFT, GLoRA, IA3, replacement --- */

/* Holds that a file at strength s is on the line from the plain output to that at strength 1. */
static void assert_line(const struct recipe *r, float s)
{
    struct scene scene;

    linear_scene(&scene);
    float *some = with_files(&scene, r, s, 1), *one = with_files(&scene, r, 1, 1);
    float *base = plain(&scene);
    assert_memory_not_equal(one, base, (size_t)scene.n * sizeof *one);
    for (int64_t i = 0; i < scene.n; i++)
        one[i] = base[i] + s * (one[i] - base[i]);
    assert_same(some, one, scene.n, "interpolation");
    free(some);
    free(one);
    free(base);
    scene_close(&scene);
}

static void dora_strength_zero_is_the_base(void **state)
{
    (void)state;
    for (int dora = FX_DORA_OUT; dora <= FX_DORA_IN; dora++) {
        assert_line(&(struct recipe){.add = lora_alpha, .r = 4, .dora = (enum fx_dora)dora}, 0);
        assert_line(&(struct recipe){.add = whole, .up = 4, .uq = 4, .dora = (enum fx_dora)dora},
                    0);
    }
}

static void dora_strength_interpolates(void **state)
{
    (void)state;
    assert_line(&(struct recipe){.add = lora_alpha, .r = 4, .dora = FX_DORA_OUT}, 0.3f);
    assert_line(&(struct recipe){.add = loha_alpha, .r = 4, .dora = FX_DORA_IN}, 1.5f);
}

/* Lengths are those of W + c D, c being alpha / rank. */
static void dora_scales_before_it_measures(void **state)
{
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_defined(&s, &(struct recipe){.add = lora_alpha, .r = 4, .dora = FX_DORA_OUT}, 1);
    assert_defined(&s, &(struct recipe){.add = lora_alpha, .r = 4, .dora = FX_DORA_IN}, 1);
    scene_close(&s);
}

/* A square layer's axis is told by the shape alone. */
static void dora_axis_of_a_square_layer_is_its_shape(void **state)
{
    struct scene s;

    (void)state;
    scene_open(&s, 20, 20, 1, 1, (struct gr_shape){1, 1, 5, 20});
    float *out = with_files(&s, &(struct recipe){.add = lora, .r = 4, .dora = FX_DORA_OUT}, 1, 1);
    float *in = with_files(&s, &(struct recipe){.add = lora, .r = 4, .dora = FX_DORA_IN}, 1, 1);
    assert_memory_not_equal(out, in, (size_t)s.n * sizeof *out);
    assert_defined(&s, &(struct recipe){.add = lora, .r = 4, .dora = FX_DORA_OUT}, 1);
    assert_defined(&s, &(struct recipe){.add = lora, .r = 4, .dora = FX_DORA_IN}, 1);
    free(out);
    free(in);
    scene_close(&s);
}

BESIDE(oft_loose, fx_row_oft, SCALAR("alpha", DT_F32, 1000))
BESIDE(oft_no_limit, fx_row_oft, SCALAR("alpha", DT_F32, 0))

/* alpha limits |Q|: neither a large one nor 0 does anything. */
static void oft_alpha_is_a_limit_and_no_scale(void **state)
{
    const struct recipe bare = {.add = fx_row_oft, .up = 6, .uq = 4};
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_scale(&s, &(struct recipe){.add = oft_loose, .up = 6, .uq = 4}, &bare, 1);
    assert_scale(&s, &(struct recipe){.add = oft_no_limit, .up = 6, .uq = 4}, &bare, 1);
    assert_defined(&s, &(struct recipe){.add = fx_row_oft_limit, .up = 6, .uq = 4}, 1);
    scene_close(&s);
}

static void oft_strength_counts_once(void **state)
{
    (void)state;
    assert_line(&(struct recipe){.add = fx_row_oft, .up = 6, .uq = 4}, 0.5f);
    assert_line(&(struct recipe){.add = fx_row_oft_peft, .up = 6, .uq = 5}, 0.5f);
    assert_line(&(struct recipe){.add = fx_row_boft}, 0);
}

static void glora_layouts_are_told_by_shape(void **state)
{
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_defined(&s, &(struct recipe){.add = fx_row_glora, .r = 3}, 0.5f);
    assert_defined(&s, &(struct recipe){.add = fx_row_glora_old, .r = 3}, 0.5f);
    scene_close(&s);
}

static void ia3_adds_to_one_where_on_input_says(void **state)
{
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_defined(&s, &(struct recipe){.add = fx_row_ia3_out}, 0.5f);
    assert_defined(&s, &(struct recipe){.add = fx_row_ia3_in}, 0.5f);
    scene_close(&s);
}

static void replacement_ignores_the_strength_but_for_zero(void **state)
{
    const struct recipe r = {.add = fx_row_set};
    struct scene s;

    (void)state;
    linear_scene(&s);
    float *some = with_files(&s, &r, 0.3f, 1), *one = with_files(&s, &r, 1, 1);
    assert_same(some, one, s.n, "replacement");
    free(some);
    free(one);
    scene_close(&s);
    assert_line(&r, 0);
}

/* --- strengths --- */

static void strength_zero_is_the_base(void **state)
{
    static const struct recipe recipes[] = {{.add = lora_alpha, .r = 4},
                                            {.add = loha_alpha, .r = 4},
                                            {.add = whole, .up = 4, .uq = 4},
                                            {.add = split_alpha, .r = 4, .up = 4, .uq = 4},
                                            {.add = fx_row_full}};
    struct scene s;

    (void)state;
    linear_scene(&s);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        float *y = with_files(&s, &recipes[i], 0, 1), *want = plain(&s);
        assert_same(y, want, s.n, "strength 0");
        free(y);
        free(want);
    }
    scene_close(&s);
}

static void the_same_file_twice_adds_up(void **state)
{
    const struct recipe r = {.add = split_alpha, .r = 4, .up = 4, .uq = 4};
    struct scene s;

    (void)state;
    linear_scene(&s);
    float *twice = with_files(&s, &r, 0.4f, 2), *want = with_files(&s, &r, 0.8f, 1);
    assert_same(twice, want, s.n, "twice");
    free(twice);
    free(want);
    scene_close(&s);
}

/* y(-s) is as far from the plain output as y(s), on the other side. */
static void negative_strength_is_the_other_side(void **state)
{
    const struct recipe r = {.add = whole, .up = 4, .uq = 4};
    struct scene s;

    (void)state;
    linear_scene(&s);
    float *minus = with_files(&s, &r, -0.5f, 1), *plus = with_files(&s, &r, 0.5f, 1);
    float *base = plain(&s);
    for (int64_t i = 0; i < s.n; i++)
        minus[i] = 2 * base[i] - minus[i];
    assert_same(minus, plus, s.n, "mirrored");
    free(minus);
    free(plus);
    free(base);
    scene_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lora_scale_is_alpha_over_rank),
        cmocka_unit_test(lora_without_alpha_has_scale_one),
        cmocka_unit_test(scale_tensor_overrides_alpha),
        cmocka_unit_test(scalar_tensor_multiplies),
        cmocka_unit_test(rank_of_a_lora_with_mid_is_that_of_down),
        cmocka_unit_test(loha_scale_is_alpha_over_rank_once),
        cmocka_unit_test(infinite_alpha_of_a_low_rank_counts_as_absent),
        cmocka_unit_test(lokr_rank_is_that_of_w2_before_w1),
        cmocka_unit_test(lokr_tucker_rank_is_that_of_the_core),
        cmocka_unit_test(lokr_full_pair_ignores_alpha),
        cmocka_unit_test(lokr_exception_1_alpha_that_is_not_dim),
        cmocka_unit_test(lokr_exception_2_kohya_cdka_and_krona),
        cmocka_unit_test(lokr_exception_3_alpha_of_10000_and_100000),
        cmocka_unit_test(lokr_exception_4_scale_counts_once),
        cmocka_unit_test(lokr_exception_5_activation_route_keeps_the_scale),
        cmocka_unit_test(rslora_of_lycoris_is_in_its_alpha),
        cmocka_unit_test(rslora_of_peft_is_in_its_config),
        cmocka_unit_test(peft_scales_whole_pairs_too),
        cmocka_unit_test(dora_strength_zero_is_the_base),
        cmocka_unit_test(dora_strength_interpolates),
        cmocka_unit_test(dora_scales_before_it_measures),
        cmocka_unit_test(dora_axis_of_a_square_layer_is_its_shape),
        cmocka_unit_test(oft_alpha_is_a_limit_and_no_scale),
        cmocka_unit_test(oft_strength_counts_once),
        cmocka_unit_test(glora_layouts_are_told_by_shape),
        cmocka_unit_test(ia3_adds_to_one_where_on_input_says),
        cmocka_unit_test(replacement_ignores_the_strength_but_for_zero),
        cmocka_unit_test(strength_zero_is_the_base),
        cmocka_unit_test(the_same_file_twice_adds_up),
        cmocka_unit_test(negative_strength_is_the_other_side),
    };

    return SCENE_TESTS(tests);
}
