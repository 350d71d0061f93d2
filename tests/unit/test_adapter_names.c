/* SPDX-License-Identifier: MIT
 * Names: every spelling of every layer finds it; spellings of other models and of two layers at
 * once do not; how tensor names are split. */
#include "adapter_fixture.h"
#include "adapter/family.h"

/* "x.y" as "PREFIXx_y" where `joined`, else as "PREFIXx.y". */
static void spell(char *out, size_t n, const char *prefix, const char *name, bool joined)
{
    snprintf(out, n, "%s%s", prefix, name);
    for (char *p = out + strlen(prefix); joined && *p != '\0'; p++)
        if (*p == '.')
            *p = '_';
}

static void expect(const struct adapter_names *n, const char *prefix, const struct layer *want)
{
    struct adapter_match m = adapter_names_find(n, prefix, 0);

    if (m.found != ADAPTER_FOUND || m.layer != want)
        fail_msg("%s: expected %s", prefix, want->name);
    assert_non_null(m.naming);
}

struct style {
    const char *prefix; /* for the UNet; text encoders: see te_prefix() */
    bool joined, native;
};

static const struct style styles[] = {
    {"lora_unet_", true, false},        {"lora_unet_", true, true},
    {"lycoris_", true, false},          {"unet.", false, false},
    {"unet.", false, true},             {"base_model.model.", false, false},
    {"diffusion_model.", false, true},  {"model.diffusion_model.", false, true},
    {"", false, false},                 {"", false, true},
    {"unet.base_model.model.", false, false},
};

static void check_text_encoder(const struct adapter_names *n, const struct layer *l, bool two)
{
    static const char *const joined[] = {"lora_te_", "lora_te1_", "lora_te2_"};
    const char *kohya = two ? joined[1 + (l->part == PART_TE1)] : joined[0];
    const char *dotted = l->part == PART_TE1 ? "text_encoder_2." : "text_encoder.";
    char name[300], spelt[400];

    snprintf(name, sizeof name, "text_model.%s", l->name);
    spell(spelt, sizeof spelt, kohya, name, true);
    expect(n, spelt, l);
    spell(spelt, sizeof spelt, dotted, name, false);
    expect(n, spelt, l);
    spell(spelt, sizeof spelt, dotted, l->name, false);
    expect(n, spelt, l);
    spell(spelt, sizeof spelt, l->part == PART_TE1 ? "clip_g." : "clip_l.", name, false);
    expect(n, spelt, l);
    spell(spelt, sizeof spelt,
          l->part == PART_TE1 ? "text_encoders.clip_g.transformer."
                              : "text_encoders.clip_l.transformer.",
          name, false);
    expect(n, spelt, l);
    /* Without a word on which encoder is meant, a model of two has no answer. */
    spell(spelt, sizeof spelt, "lycoris_", name, true);
    if (!two)
        expect(n, spelt, l);
    else if (strstr(l->name, "layers.3") == NULL && strstr(l->name, "final") == NULL)
        assert_int_equal(adapter_names_find(n, spelt, 0).found, ADAPTER_AMBIGUOUS);
}

static void every_spelling_finds_its_layer(void **state)
{
    static const char *const archs[] = {"sd15", "sd2", "sdxl"};
    static const enum adapter_arch want[] = {ADAPTER_ARCH_SD1, ADAPTER_ARCH_SD2,
                                             ADAPTER_ARCH_SDXL};

    (void)state;
    for (int a = 0; a < 3; a++) {
        struct fx_table t;
        struct adapter_names *n;
        char spelt[400];

        fx_table_read(&t, archs[a]);
        assert_true(t.table.n > 400);
        assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
        assert_int_equal(adapter_names_arch(n), want[a]);
        for (int i = 0; i < t.table.n; i++) {
            const struct layer *l = t.table.at[i];
            if (l->part != PART_UNET) {
                check_text_encoder(n, l, a == 2);
                continue;
            }
            for (size_t s = 0; s < sizeof styles / sizeof *styles; s++) {
                spell(spelt, sizeof spelt, styles[s].prefix,
                      styles[s].native ? l->native : l->name, styles[s].joined);
                expect(n, spelt, l);
            }
        }
        adapter_names_free(&n);
        fx_table_free(&t);
    }
}

static void names_in_the_wild(void **state)
{
    static const struct {
        const char *prefix, *layer, *naming;
    } known[] = {
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
         "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "kohya, sgm names"},
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
         "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
         "kohya, diffusers names"},
        {"lora_unet_time_embed_2", "time_embedding.linear_2", "kohya, sgm names"},
        {"lora_unet_label_emb_0_0", "add_embedding.linear_1", "kohya, sgm names"},
        {"lora_unet_out_2", "conv_out", "kohya, sgm names"},
        {"lycoris_down_blocks_1_attentions_0_proj_in", "down_blocks.1.attentions.0.proj_in",
         "LyCORIS, diffusers names"},
        {"unet.input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1", "OMI"},
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k",
         "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "diffusers"},
        {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out",
         "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0", "diffusers, bare"},
        {"lora_te2_text_model_encoder_layers_3_mlp_fc1", "encoder.layers.3.mlp.fc1", "kohya"},
        {"text_encoder.text_model.encoder.layers.0.self_attn.to_q",
         "encoder.layers.0.self_attn.q_proj", "diffusers"},
        {"text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj",
         "encoder.layers.0.self_attn.out_proj", "diffusers"},
    };
    static const char *const strangers[] = {
        "lora_unet_double_blocks_0_img_attn_qkv", "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q", "", "lora_unet_", "unet.",
        "lora_unet_down_blocks_9_attentions_0_proj_in", "text_encoder_2.",
        "lora_te1_text_model_encoder_layers_11_mlp_fc1", "base_model.model.base_model.model."};
    struct fx_table t;
    struct adapter_names *n;
    char long_name[2000];

    (void)state;
    fx_table_read(&t, "sdxl");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct adapter_match m = adapter_names_find(n, known[i].prefix, 0);
        assert_int_equal(m.found, ADAPTER_FOUND);
        assert_string_equal(m.layer->name, known[i].layer);
        assert_string_equal(m.naming, known[i].naming);
    }
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        assert_int_not_equal(adapter_names_find(n, strangers[i], 0).found, ADAPTER_FOUND);
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_int_equal(adapter_names_find(n, long_name, 0).found, ADAPTER_NOT_FOUND);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* An SD1 model has one text encoder: the first of an SDXL file is not for it. */
static void second_encoders_are_not_taken_for_the_only_one(void **state)
{
    struct fx_table t;
    struct adapter_names *n;

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    assert_int_equal(adapter_names_find(n, "lora_te1_text_model_encoder_layers_0_mlp_fc1", 0).found,
                     ADAPTER_NOT_FOUND);
    assert_int_equal(
        adapter_names_find(n, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 0).found,
        ADAPTER_NOT_FOUND);
    adapter_names_free(&n);
    fx_table_free(&t);
}

static void the_nearest_name_is_told(void **state)
{
    struct fx_table t;
    struct adapter_names *n;
    struct adapter_match m;

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    m = adapter_names_find(
        n, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q", 0);
    assert_int_equal(m.found, ADAPTER_NOT_FOUND);
    assert_non_null(m.layer);
    assert_true(str_starts(m.layer->name, "down_blocks.0.attentions.0.transformer_blocks.0.attn"));
    assert_true(str_ends(m.layer->name, ".to_q"));
    m = adapter_names_find(n, "lora_te_text_model_encoder_layers_0_mlp_fc3", 0);
    assert_non_null(m.layer);
    assert_int_equal(m.layer->part, PART_TE0);
    assert_true(str_starts(m.layer->name, "encoder.layers.0.mlp.fc"));
    assert_null(adapter_names_find(n, "lora_unet_zzz", 0).layer);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* Text encoders of different widths, as the real SDXL has. */
static void the_width_tells_text_encoders_apart(void **state)
{
    static const char name[] = "encoder.layers.0.mlp.fc1";
    static const char *const spelt[2] = {"lora_te1_text_model_encoder_layers_0_mlp_fc1",
                                         "lora_te2_text_model_encoder_layers_0_mlp_fc1"};
    static const char unnamed[] = "base_model.model.text_model.encoder.layers.0.mlp.fc1";
    struct layer l[2] = {{.id = 0, .part = PART_TE0, .name = name, .in = 768},
                         {.id = 1, .part = PART_TE1, .name = name, .in = 1280}};
    struct layer *at[2] = {&l[0], &l[1]};
    struct layer_table table = {.at = at, .n = 2};
    struct adapter_names *n;

    (void)state;
    assert_int_equal(adapter_names_create(&n, &table), KRON_OK);
    for (int i = 0; i < 2; i++) {
        assert_ptr_equal(adapter_names_find(n, spelt[i], 0).layer, &l[i]);
        assert_ptr_equal(adapter_names_find(n, spelt[i], 4).layer, &l[i]); /* fits neither */
        assert_ptr_equal(adapter_names_find(n, spelt[i], 768).layer, &l[0]);
        assert_ptr_equal(adapter_names_find(n, spelt[i], 1280).layer, &l[1]);
    }
    assert_int_equal(adapter_names_find(n, unnamed, 0).found, ADAPTER_AMBIGUOUS);
    assert_int_equal(adapter_names_find(n, unnamed, 4).found, ADAPTER_AMBIGUOUS);
    assert_ptr_equal(adapter_names_find(n, unnamed, 768).layer, &l[0]);
    assert_ptr_equal(adapter_names_find(n, unnamed, 1280).layer, &l[1]);
    l[1].in = 768; /* as wide: the name alone tells */
    assert_ptr_equal(adapter_names_find(n, spelt[0], 768).layer, &l[0]);
    assert_ptr_equal(adapter_names_find(n, spelt[1], 768).layer, &l[1]);
    adapter_names_free(&n);
}

/* "a.b_c" and "a_b.c" cannot be told apart once they are joined. */
static void names_that_fall_together_are_ambiguous(void **state)
{
    struct layer l[2] = {{.id = 0, .name = "a.b_c"}, {.id = 1, .name = "a_b.c"}};
    struct layer *at[2] = {&l[0], &l[1]};
    struct layer_table table = {.at = at, .n = 2};
    struct adapter_names *n;

    (void)state;
    assert_int_equal(adapter_names_create(&n, &table), KRON_OK);
    assert_int_equal(adapter_names_find(n, "lora_unet_a_b_c", 0).found, ADAPTER_AMBIGUOUS);
    adapter_names_free(&n);
}

static void tensor_names_are_split_at_their_part(void **state)
{
    static const struct {
        const char *name, *prefix;
        enum ap part;
    } cases[] = {
        {"lora_unet_conv_in.lora_up.weight", "lora_unet_conv_in", AP_LORA_UP},
        {"unet.conv_in.lora.down.weight", "unet.conv_in", AP_LORA_DOWN},
        {"a.attn1.processor.to_q_lora.up.weight", "a.attn1.processor.to_q", AP_LORA_UP},
        {"a.to_q.lora_linear_layer.down.weight", "a.to_q", AP_LORA_DOWN},
        {"a.lora_A.default.weight", "a", AP_LORA_DOWN},
        {"a.lora_B", "a", AP_LORA_UP},
        {"a.lora_down", "a", AP_PACKED_DOWN},
        {"a.lora_B.bias", "a", AP_LORA_BIAS},
        {"a.lokr_w2_a", "a", AP_LOKR_W2_A},
        {"a.lokr_w2", "a", AP_LOKR_W2},
        {"a.hada_t1", "a", AP_HADA_T1},
        {"a.diff_b", "a", AP_DIFF_B},
        {"a.alpha", "a", AP_ALPHA},
        {"a.lora_magnitude_vector.weight", "a", AP_DORA_SCALE},
        {"a.a1.weight", "a", AP_GLORA_A1},
        {"a.weight", "a", AP_IA3_WEIGHT},
        {".alpha", ".alpha", AP_COUNT},
        {"lokr_w1", "lokr_w1", AP_COUNT},
        {"", "", AP_COUNT},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t len;
        assert_int_equal(ap_split(cases[i].name, &len), cases[i].part);
        assert_int_equal(len, strlen(cases[i].prefix));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spelling_finds_its_layer),
        cmocka_unit_test(names_in_the_wild),
        cmocka_unit_test(second_encoders_are_not_taken_for_the_only_one),
        cmocka_unit_test(the_nearest_name_is_told),
        cmocka_unit_test(the_width_tells_text_encoders_apart),
        cmocka_unit_test(names_that_fall_together_are_ambiguous),
        cmocka_unit_test(tensor_names_are_split_at_their_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
