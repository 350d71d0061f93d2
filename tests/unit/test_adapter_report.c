/* SPDX-License-Identifier: MIT
 * What a user is told: modules that were applied, tensors that were not and why, files for
 * another architecture. And what a set holds: strengths, several files, no memory. */
#include "adapter_fixture.h"

struct bound {
    struct fx_file file;
    struct adapter_file *f;
    struct adapter_set *set;
};

static void add_lora(struct fx_file *f, const char *prefix, int64_t out, int64_t in)
{
    uint64_t seed = 7;
    char name[400];

    snprintf(name, sizeof name, "%s.lora_down.weight", prefix);
    fx_add(f, name, DT_F16, &seed, FX_DIMS(1, in));
    snprintf(name, sizeof name, "%s.lora_up.weight", prefix);
    fx_add(f, name, DT_F16, &seed, FX_DIMS(out, 1));
}

static kron_status bind(struct bound *b, const struct adapter_names *names, bool strict)
{
    if (b->f == NULL)
        assert_int_equal(fx_open(&b->file, &b->f, NULL), KRON_OK);
    return adapter_bind(&b->set, &(struct adapter_use){b->f, 0.25f, 0.75f}, 1, names, strict);
}

static void release(struct bound *b)
{
    adapter_set_free(&b->set);
    adapter_close(&b->f);
    fx_free(&b->file);
}

static void expect_skip(const struct adapter_report *r, enum adapter_skip_why why,
                        const char *name, const char *text)
{
    for (int i = 0; i < r->n_skips; i++)
        if (strcmp(r->skips[i].name, name) == 0) {
            assert_int_equal(r->skips[i].why, why);
            if (strstr(r->skips[i].text, text) == NULL)
                fail_msg("%s: '%s' does not say '%s'", name, r->skips[i].text, text);
            return;
        }
    fail_msg("%s is not among the skipped", name);
}

/* One file with everything that can be wrong, and two modules that are right. */
static void fill_mixed(struct fx_file *f)
{
    uint64_t seed = 8;

    add_lora(f, "lora_unet_conv_in", 32, 36);
    add_lora(f, "lora_te_text_model_encoder_layers_0_mlp_fc1", 64, 16);
    add_lora(f, "lora_te_text_model_encoder_layers_0_mlp_fc9", 64, 16);
    add_lora(f, "lora_unet_conv_out", 4, 7);
    fx_add(f, "lora_unet_conv_norm_out.bias_size", DT_F16, &seed, FX_DIMS(2));
    fx_add(f, "lora_unet_time_embedding_linear_1.lokr_w1", DT_F16, &seed, FX_DIMS(4, 4));
    fx_add_scalar(f, "lora_unet_time_embedding_linear_2.alpha", DT_F32, 1);
    add_lora(f, "lora_unet_mid_block_resnets_0_conv1", 64, 64 * 9);
    fx_add(f, "lora_unet_mid_block_resnets_0_conv1.reshape_weight", DT_F16, &seed, FX_DIMS(2));
    fx_add(f, "lora_unet_conv_in.lora_A.weight", DT_F16, &seed, FX_DIMS(1, 36));
    fx_add(f, "lora_unet_conv_in.bias_values", DT_F16, &seed, FX_DIMS(32));
    fx_add(f, "some.other.weight", DT_F16, &seed, FX_DIMS(3));
    fx_add(f, "bundle_emb.cat.string_to_param", DT_F16, &seed, FX_DIMS(2, 16));
}

static void each_module_is_applied_or_explained(void **state)
{
    struct fx_table t;
    struct adapter_names *n;
    struct bound b = {0};
    const struct adapter_report *r;
    struct str text = {0};

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    fill_mixed(&b.file);
    assert_int_equal(bind(&b, n, false), KRON_OK);
    r = adapter_set_report(b.set, 0);
    assert_int_equal(r->n_modules, 8);
    assert_int_equal(r->n_applied, 2);
    assert_int_equal(r->n_tensors, 17);
    assert_int_equal(r->n_tensors_used, 4);
    assert_int_equal(r->n_embeddings, 1);
    assert_string_equal(r->naming, "kohya, diffusers names");
    assert_string_equal(r->family, "LoRA + LoKr + a weight of another shape + a sparse rest");
    assert_int_equal(r->rank_min + r->rank_max, 2);
    assert_int_equal(r->n_skips, 9);
    expect_skip(r, ADAPTER_SKIP_NAME, "lora_te_text_model_encoder_layers_0_mlp_fc9",
                "the nearest is the text encoder's encoder.layers.0.mlp.fc");
    expect_skip(r, ADAPTER_SKIP_SHAPE, "lora_unet_conv_out",
                "lora_down.weight is [1, 7], which does not fit the layer's [4, 32, 3, 3]");
    expect_skip(r, ADAPTER_SKIP_FAMILY, "lora_unet_conv_norm_out.bias_size", "not supported");
    expect_skip(r, ADAPTER_SKIP_PARTNER, "lora_unet_time_embedding_linear_1", "has no lokr_w2");
    expect_skip(r, ADAPTER_SKIP_PARTNER, "lora_unet_time_embedding_linear_2", "no factors");
    expect_skip(r, ADAPTER_SKIP_FAMILY, "lora_unet_mid_block_resnets_0_conv1", "another shape");
    expect_skip(r, ADAPTER_SKIP_PARTNER, "lora_unet_conv_in.lora_A.weight", "already");
    expect_skip(r, ADAPTER_SKIP_FAMILY, "lora_unet_conv_in.bias_values", "sparse");
    expect_skip(r, ADAPTER_SKIP_KEY, "some.other.weight", "not the name");
    adapter_report_text(r, 2, &text);
    assert_non_null(strstr(str_get(&text), "test.safetensors: LoRA + LoKr"));
    assert_non_null(strstr(str_get(&text), "applied 2 of 8 modules, 4 of 17 tensors; brings the "
                                           "word cat\n"));
    assert_non_null(strstr(str_get(&text), "  and 7 more\n"));
    str_free(&text);
    adapter_set_free(&b.set);
    assert_int_equal(bind(&b, n, true), KRON_ERR_UNSUPPORTED); /* the first that is skipped */
    assert_null(b.set);
    assert_non_null(strstr(kron_error_detail(), "test.safetensors: lora_unet_conv_in.bias_values: "));
    release(&b);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* A LoRA on every linear layer of one model's UNet, in one naming. */
static void add_whole_unet(struct fx_file *f, const char *arch, bool native)
{
    struct fx_table t;
    char prefix[400];

    fx_table_read(&t, arch);
    for (int i = 0; i < t.table.n; i++) {
        const struct layer *l = t.table.at[i];
        if (l->part != PART_UNET || l->kind != LAYER_LINEAR)
            continue;
        snprintf(prefix, sizeof prefix, "lora_unet_%s", native ? l->native : l->name);
        for (char *p = prefix; *p != '\0'; p++)
            *p = *p == '.' ? '_' : *p;
        add_lora(f, prefix, l->out, l->in);
    }
    fx_table_free(&t);
}

static void adapters_for_another_architecture_are_refused(void **state)
{
    static const struct {
        const char *model, *file, *meta, *want;
        bool native;
    } cases[] = {
        {"sd15", "sdxl", NULL, "the adapter is for SDXL, the model is SD 1.x", true},
        {"sd15", "sdxl", NULL, "the adapter is for SDXL, the model is SD 1.x", false},
        {"sdxl", "sd15", "{\"ss_base_model_version\":\"sd_v1\"}",
         "the adapter is for SD 1.x, the model is SDXL", false},
        {"sdxl", "sd2", "{\"modelspec.architecture\":\"stable-diffusion-v2-768-v/lora\"}",
         "the adapter is for SD 2.x, the model is SDXL", true},
        {"sd2", "sd15", "{\"ss_base_model_version\":\"sd_v1\"}",
         "the adapter is for SD 1.x, the model is SD 2.x", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fx_table t;
        struct adapter_names *n;
        struct bound b = {0};

        fx_table_read(&t, cases[i].model);
        assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
        add_whole_unet(&b.file, cases[i].file, cases[i].native);
        if (cases[i].meta != NULL)
            fx_add_meta(&b.file, cases[i].meta);
        assert_int_equal(bind(&b, n, false), KRON_ERR_SHAPE);
        assert_non_null(strstr(kron_error_detail(), "test.safetensors: applied 0 of "));
        if (strstr(kron_error_detail(), cases[i].want) == NULL)
            fail_msg("case %zu: %s", i, kron_error_detail());
        release(&b);
        adapter_names_free(&n);
        fx_table_free(&t);
    }
}

/* The guess from names and shapes alone, of files that fit nothing here. */
static void foreign_files_are_named(void **state)
{
    static const struct {
        const char *prefix, *want;
        int64_t in;
    } cases[] = {
        {"lora_unet_double_blocks_0_img_attn_qkv", "the adapter is for FLUX", 3072},
        {"transformer.single_transformer_blocks.0.attn.to_q", "the adapter is for FLUX", 3072},
        {"lora_unet_joint_blocks_0_x_block_attn_qkv", "the adapter is for SD 3", 1536},
        {"diffusion_model.layers.0.attention.to_q", "the adapter is for Z-Image", 3840},
        {"lora_prior_unet_down_blocks_0_0", "the adapter is for Stable Cascade", 2048},
        {"transformer_blocks.0.attn.to_q", "another diffusion transformer", 3072},
        {"lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn2_to_k",
         "the adapter is for SDXL", 2048},
        {"lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn2_to_k",
         "the adapter is for SD 2.x", 1024},
        {"what.ever", "the adapter seems to be for an unknown model", 4},
    };
    struct fx_table t;
    struct adapter_names *n;

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bound b = {0};

        add_lora(&b.file, cases[i].prefix, 8, cases[i].in);
        assert_int_equal(bind(&b, n, false), KRON_ERR_SHAPE);
        assert_non_null(strstr(kron_error_detail(), "applied 0 of 1 modules"));
        if (strstr(kron_error_detail(), cases[i].want) == NULL)
            fail_msg("%s: %s", cases[i].prefix, kron_error_detail());
        assert_null(strchr(kron_error_detail(), '\n'));
        release(&b);
    }
    adapter_names_free(&n);
    fx_table_free(&t);
}

static void a_checkpoint_is_no_adapter(void **state)
{
    struct bound b = {0};
    uint64_t seed = 1;

    (void)state;
    fx_add(&b.file, "model.diffusion_model.input_blocks.0.0.weight", DT_F16, &seed,
           FX_DIMS(4, 4, 3, 3));
    fx_add(&b.file, "model.diffusion_model.input_blocks.0.0.bias", DT_F16, &seed, FX_DIMS(4));
    assert_int_equal(fx_open(&b.file, &b.f, NULL), KRON_ERR_FORMAT);
    assert_null(b.f);
    assert_non_null(strstr(kron_error_detail(), "test.safetensors: none of its 2 tensors"));
    fx_free(&b.file);
    assert_int_equal(adapter_open(&b.f, "/nonexistent/a.safetensors"), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "/nonexistent/a.safetensors"));
}

static void only_unsupported_families_say_so(void **state)
{
    struct bound b = {0};
    struct fx_one o;
    uint64_t seed = 1;

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    fx_add(&b.file, "lora_unet_conv_in.lora_up", DT_F16, &seed, FX_DIMS(8, 1));
    fx_add(&b.file, "lora_unet_conv_in.lora_down", DT_F16, &seed, FX_DIMS(1, 6));
    assert_int_equal(bind(&b, o.names, false), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(),
                           "applied 0 of 1 modules: lora_unet_conv_in: Nunchaku's packed LoRA"));
    release(&b);
    fx_add(&b.file, "lora_unet_conv_in.reshape_weight", DT_F16, &seed, FX_DIMS(2));
    assert_int_equal(bind(&b, o.names, false), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "another shape"));
    release(&b);
    adapter_names_free(&o.names);
}

static void strengths_are_one_for_each_block(void **state)
{
    struct fx_table t;
    struct adapter_names *n;
    struct bound b = {0};
    struct adapter_use uses[2];
    struct adapter_set *set;
    const struct delta_set *d;
    float s[2 * ADAPTER_SLOTS], blocks[ADAPTER_BLOCKS] = {[0] = 2, [1] = 3};

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    fill_mixed(&b.file);
    assert_int_equal(fx_open(&b.file, &b.f, NULL), KRON_OK);
    uses[0] = (struct adapter_use){b.f, 0.1f, 0.2f};
    uses[1] = (struct adapter_use){b.f, 0.3f, 0.5f, .blocks = blocks};
    assert_int_equal(adapter_bind(&set, uses, 2, n, false), KRON_OK);
    d = adapter_set_deltas(set);
    assert_int_equal(d->n_strengths, 2 * ADAPTER_SLOTS);
    adapter_set_get_strengths(set, s);
    for (int i = 0; i < ADAPTER_SLOTS; i++)
        assert_true(s[i] == (i == 0 ? 0.1f : 0.2f));
    assert_true(s[ADAPTER_SLOTS] == 0.3f * 2 && s[ADAPTER_SLOTS + 1] == 1.0f);
    assert_true(s[ADAPTER_SLOTS + 2] == 1.5f && s[ADAPTER_SLOTS + 3] == 0);
    for (int i = 0; i < t.table.n; i++) {
        const struct layer *l = t.table.at[i];
        struct delta_list list = delta_set_list(d, l);
        bool unet = strcmp(l->name, "conv_in") == 0;
        bool te = strcmp(l->name, "encoder.layers.0.mlp.fc1") == 0;
        assert_int_equal(list.n, unet || te ? 2 : 0);
        for (int k = 0; k < list.n; k++)
            assert_int_equal(list.at[k].strength, k * ADAPTER_SLOTS + (unet ? 2 : 0));
    }
    adapter_set_free(&set);
    assert_int_equal(adapter_bind(&set, NULL, 0, n, false), KRON_OK);
    assert_int_equal(adapter_set_deltas(set)->n_strengths, 0);
    adapter_set_free(&set);
    release(&b);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* Every allocation in turn fails: an error each time, and nothing is lost. */
static void no_memory_is_an_error(void **state)
{
    struct fx_table t;
    struct fx_file file = {0};
    struct adapter_file *f = NULL;
    int failures = 0;
    uint64_t seed = 1;

    (void)state;
    fx_table_read(&t, "sd15");
    fill_mixed(&file);
    fx_add(&file, "lora_unet_time_embedding_linear_1.lokr_w2", DT_F16, &seed, FX_DIMS(32, 8));
    fx_add_meta(&file,
                "{\"lora_adapter_metadata\":\"{\\\"unet.alpha_pattern\\\":{\\\"a\\\":1}}\"}");
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK); /* makes file.bytes */
    adapter_close(&f);
    for (long n = 1;; n++) {
        struct adapter_names *names = NULL;
        struct adapter_set *set = NULL;
        kron_status status;

        mem_fail_after(n);
        status = adapter_open_memory(&f, file.bytes,
                                     8 + file.header.len + file.data.len, "test", NULL);
        if (status == KRON_OK)
            status = adapter_names_create(&names, &t.table);
        if (status == KRON_OK)
            status = adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, names, false);
        mem_fail_after(0);
        assert_true(status == KRON_OK || status == KRON_ERR_MEMORY);
        failures += status != KRON_OK;
        assert_true((set != NULL) == (status == KRON_OK));
        adapter_set_free(&set);
        adapter_names_free(&names);
        adapter_close(&f);
        if (status == KRON_OK)
            break;
    }
    assert_true(failures > 20);
    fx_free(&file);
    fx_table_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_module_is_applied_or_explained),
        cmocka_unit_test(adapters_for_another_architecture_are_refused),
        cmocka_unit_test(foreign_files_are_named),
        cmocka_unit_test(a_checkpoint_is_no_adapter),
        cmocka_unit_test(only_unsupported_families_say_so),
        cmocka_unit_test(strengths_are_one_for_each_block),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
