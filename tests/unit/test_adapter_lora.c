/* SPDX-License-Identifier: MIT
 * LoRA and LoCon, and full differences: the canonical form is the definition, over layouts,
 * layers, ranks and storage types; which scale a file asks for. */
#include "adapter_fixture.h"

static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64, DT_F8_E4M3, DT_F8_E5M2};

static const struct {
    int64_t out, in;
    int kh, kw;
    bool is_conv;
} shapes[] = {{12, 8, 1, 1, false}, {7, 5, 1, 1, true},  {6, 10, 3, 3, true},
              {9, 4, 1, 3, true},   {1, 3, 1, 1, false}, {16, 3, 3, 3, true}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_TYPES = sizeof types / sizeof *types };

static void lora_is_its_definition(void **state)
{
    uint64_t seed = 1;

    (void)state;
    for (int s = 0; s < N_SHAPES; s++)
        for (int64_t r = 1; r <= 5; r += 2)
            for (int layout = 0; layout < 3; layout++)
                for (int t = 0; t < N_TYPES; t++) {
                    struct fx_one o;
                    struct fx_file f = {0};
                    int64_t out = shapes[s].out, in = shapes[s].in;
                    int kh = shapes[s].kh, kw = shapes[s].kw;
                    char what[96];

                    fx_one_create(&o, out, in, kh, kw, shapes[s].is_conv);
                    snprintf(what, sizeof what, "lora shape %d rank %d layout %d type %d", s,
                             (int)r, layout, t);
                    fx_add_scalar(&f, "lora_unet_conv_in.alpha", DT_F16, 3);
                    if (layout == 0) { /* flat, as linear layers have it */
                        fx_add(&f, "lora_unet_conv_in.lora_down.weight", types[t], &seed,
                               FX_DIMS(r, in * kh * kw));
                        fx_add(&f, "lora_unet_conv_in.lora_up.weight", types[t], &seed,
                               FX_DIMS(out, r));
                    } else if (layout == 1) {
                        fx_add(&f, "lora_unet_conv_in.lora_down.weight", types[t], &seed,
                               FX_DIMS(r, in, kh, kw));
                        fx_add(&f, "lora_unet_conv_in.lora_up.weight", types[t], &seed,
                               FX_DIMS(out, r, 1, 1));
                    } else {
                        fx_add(&f, "lora_unet_conv_in.lora_mid.weight", types[t], &seed,
                               FX_DIMS(r, r, kh, kw));
                        fx_add(&f, "lora_unet_conv_in.lora_down.weight", types[t], &seed,
                               FX_DIMS(r, in, 1, 1));
                        fx_add(&f, "lora_unet_conv_in.lora_up.weight", types[t], &seed,
                               FX_DIMS(out, r, 1, 1));
                    }
                    fx_check_module(&f, &o, NULL, what);
                    adapter_names_free(&o.names);
                }
}

/* GGUF has no axes of 1 at the front: what is left of a file of rank 1. */
static void rank_one_without_its_axis(void **state)
{
    uint64_t seed = 5;

    (void)state;
    for (int s = 0; s < N_SHAPES; s++)
        for (int layout = 0; layout < 3; layout++) {
            struct fx_one o;
            struct fx_file f = {0};
            int64_t out = shapes[s].out, in = shapes[s].in;
            int kh = shapes[s].kh, kw = shapes[s].kw;
            char what[96];

            fx_one_create(&o, out, in, kh, kw, shapes[s].is_conv);
            snprintf(what, sizeof what, "rank 1, shape %d layout %d", s, layout);
            if (layout == 0)
                fx_add(&f, "lora_unet_conv_in.lora_down.weight", DT_F32, &seed,
                       FX_DIMS(in * kh * kw));
            else if (layout == 1)
                fx_add(&f, "lora_unet_conv_in.lora_down.weight", DT_F32, &seed,
                       FX_DIMS(in, kh, kw));
            else
                fx_add(&f, "lora_unet_conv_in.lora_down.weight", DT_F32, &seed,
                       FX_DIMS(in, 1, 1));
            if (layout == 2)
                fx_add(&f, "lora_unet_conv_in.lora_mid.weight", DT_F32, &seed, FX_DIMS(kh, kw));
            fx_add(&f, "lora_unet_conv_in.lora_up.weight", DT_F32, &seed, FX_DIMS(out, 1));
            fx_check_module(&f, &o, NULL, what);
            adapter_names_free(&o.names);
        }
}

static void full_difference_is_itself(void **state)
{
    uint64_t seed = 2;

    (void)state;
    for (int s = 0; s < N_SHAPES; s++)
        for (int t = 0; t < N_TYPES; t++) {
            struct fx_one o;
            struct fx_file f = {0};

            fx_one_create(&o, shapes[s].out, shapes[s].in, shapes[s].kh, shapes[s].kw,
                          shapes[s].is_conv);
            fx_add(&f, "diffusion_model.input_blocks.0.0.diff", types[t], &seed,
                   FX_DIMS(shapes[s].out, shapes[s].in, shapes[s].kh, shapes[s].kw));
            fx_check_module(&f, &o, NULL, "full");
            adapter_names_free(&o.names);
        }
}

/* The scale of a rank-4 LoRA with what `add` puts beside its factors. */
static float scale_of(void (*add)(struct fx_file *), const char *config, const char *prefix)
{
    uint64_t seed = 3;
    struct fx_file file = {0};
    struct fx_one o;
    struct adapter_file *f;
    struct adapter_set *set;
    char name[128];
    float scale;

    fx_one_create(&o, 6, 8, 1, 1, false);
    snprintf(name, sizeof name, "%s.lora_A.weight", prefix);
    fx_add(&file, name, DT_F32, &seed, FX_DIMS(4, 8));
    snprintf(name, sizeof name, "%s.lora_B.weight", prefix);
    fx_add(&file, name, DT_F32, &seed, FX_DIMS(6, 4));
    if (add != NULL)
        add(&file);
    assert_int_equal(fx_open(&file, &f, config), KRON_OK);
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, o.names, true),
                     KRON_OK);
    scale = delta_set_list(adapter_set_deltas(set), &o.layer).at[0].scale;
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&o.names);
    return scale;
}

static void alpha_bf16(struct fx_file *f)
{
    fx_add_scalar(f, "unet.conv_in.alpha", DT_BF16, 2);
}

static void alpha_f64(struct fx_file *f)
{
    fx_add_scalar(f, "unet.conv_in.alpha", DT_F64, 2);
}

static void alpha_of_one_element(struct fx_file *f)
{
    uint8_t data[4];

    fx_encode(DT_F32, 2, data);
    fx_add_raw(f, "unet.conv_in.alpha", "F32", FX_DIMS(1), data, 4);
}

static void alpha_infinite(struct fx_file *f)
{
    fx_add_scalar(f, "unet.conv_in.alpha", DT_F16, INFINITY);
}

static void alpha_and_scale(struct fx_file *f)
{
    alpha_f64(f);
    fx_add_scalar(f, "unet.conv_in.scale", DT_F32, 0.125f);
}

static void diffusers_metadata(struct fx_file *f)
{
    fx_add_meta(f, "{\"lora_adapter_metadata\":\"{\\\"unet.r\\\": 4, \\\"unet.lora_alpha\\\": 8,"
                   " \\\"text_encoder.lora_alpha\\\": 1}\"}");
}

static void alpha_is_divided_by_the_rank(void **state)
{
    (void)state;
    assert_float_equal(scale_of(NULL, NULL, "unet.conv_in"), 1, 0);
    assert_float_equal(scale_of(alpha_bf16, NULL, "unet.conv_in"), 0.5, 0);
    assert_float_equal(scale_of(alpha_f64, NULL, "unet.conv_in"), 0.5, 0);
    assert_float_equal(scale_of(alpha_of_one_element, NULL, "unet.conv_in"), 0.5, 0);
    assert_float_equal(scale_of(alpha_infinite, NULL, "unet.conv_in"), 1, 0);
    assert_float_equal(scale_of(alpha_and_scale, NULL, "unet.conv_in"), 0.125, 0);
}

static void peft_keeps_alpha_in_its_config(void **state)
{
    const char *peft = "base_model.model.conv_in";

    (void)state;
    assert_float_equal(scale_of(NULL, "{\"r\": 4, \"lora_alpha\": 2}", peft), 0.5, 0);
    assert_float_equal(scale_of(NULL, "{\"lora_alpha\": 6, \"use_rslora\": true}", peft), 3, 0);
    assert_float_equal(scale_of(NULL, "{\"lora_alpha\":2,\"alpha_pattern\":{\"conv_in\":16}}",
                                peft),
                       4, 0);
    assert_float_equal(scale_of(NULL, "{\"lora_alpha\":2,\"alpha_pattern\":{\"onv_in\":16}}", peft),
                       0.5, 0);
    assert_float_equal(scale_of(NULL, "{\"lora_alpha\": null}", peft), 1, 0);
    assert_float_equal(scale_of(NULL, "this is not JSON", peft), 1, 0);
    assert_float_equal(scale_of(diffusers_metadata, NULL, "unet.conv_in"), 2, 0);
    /* An alpha of the file itself is nearer than a config that lies beside it. */
    assert_float_equal(scale_of(alpha_f64, "{\"r\": 4, \"lora_alpha\": 64}", "unet.conv_in"), 0.5,
                       0);
}

/* Kernels read factors where they lie: no type that they do not know, no odd address. */
static void factors_are_fit_for_kernels(void **state)
{
    const struct {
        enum dtype type, want;
        int64_t before; /* bytes in front of the factors */
        bool is_view;
    } cases[] = {{DT_F16, DT_F16, 2, true},
                 {DT_F16, DT_F32, 1, false},
                 {DT_F32, DT_F32, 2, false},
                 {DT_F8_E4M3, DT_F8_E4M3, 1, true},
                 {DT_F64, DT_F32, 8, false}};
    uint64_t seed = 9;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fx_file file = {0};
        struct fx_one o;
        struct adapter_file *f;
        struct adapter_set *set;
        struct delta d;
        int64_t out = 6;

        fx_one_create(&o, out, 8, 1, 1, false);
        fx_add(&file, "bundle_emb.filler.clip_l", DT_F8_E4M3, &seed, FX_DIMS(cases[i].before));
        fx_add(&file, "lora_unet_conv_in.lora_down.weight", cases[i].type, &seed, FX_DIMS(2, 8));
        fx_add(&file, "lora_unet_conv_in.lora_up.weight", cases[i].type, &seed, FX_DIMS(out, 2));
        assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
        assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, o.names, true),
                         KRON_OK);
        d = delta_set_list(adapter_set_deltas(set), &o.layer).at[0];
        assert_int_equal(d.a.type, cases[i].want);
        assert_int_equal(d.b.type, cases[i].want);
        assert_int_equal((uintptr_t)d.b.data % (size_t)dtype_info(d.b.type)->bytes, 0);
        assert_int_equal(adapter_set_bytes(set), cases[i].is_view ? 0 : 4 * (2 * 8 + 6 * 2));
        adapter_set_free(&set);
        adapter_close(&f);
        fx_free(&file);
        adapter_names_free(&o.names);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lora_is_its_definition),
        cmocka_unit_test(rank_one_without_its_axis),
        cmocka_unit_test(full_difference_is_itself),
        cmocka_unit_test(factors_are_fit_for_kernels),
        cmocka_unit_test(alpha_is_divided_by_the_rank),
        cmocka_unit_test(peft_keeps_alpha_in_its_config),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
