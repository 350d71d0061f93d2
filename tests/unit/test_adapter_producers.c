/* SPDX-License-Identifier: MIT
 * What each program that trains adapters calls its tensors: one test a producer, with keys as
 * they stand in its files. Every key must be split, found, bound and reported under its naming;
 * files for models that Kron does not have must be told by name. */
#include "adapter_fixture.h"

enum { MAX_KEYS = 16 };

/* How the parts of a module are called. */
enum endings {
    KOHYA, PEFT, PEFT_DEFAULT, PEFT_BARE, DIFFUSERS, UNDERSCORE, LINEAR_LAYER, LOKR, LOHA, OFT
};

static const struct {
    const char *down, *up, *alpha;
} low_rank[] = {
    [KOHYA] = {".lora_down.weight", ".lora_up.weight", ".alpha"},
    [PEFT] = {".lora_A.weight", ".lora_B.weight", NULL},
    [PEFT_DEFAULT] = {".lora_A.default.weight", ".lora_B.default.weight", NULL},
    [PEFT_BARE] = {".lora_A", ".lora_B", NULL},
    [DIFFUSERS] = {".lora.down.weight", ".lora.up.weight", ".alpha"},
    [UNDERSCORE] = {"_lora.down.weight", "_lora.up.weight", "_lora.alpha"},
    [LINEAR_LAYER] = {".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", NULL},
};

struct producer {
    const char *name, *arch, *naming;
    struct key {
        const char *module;
        enum endings endings;
        enum layer_part part;
        const char *layer; /* for a fused projection: of its q */
    } keys[MAX_KEYS];
};

#define U PART_UNET
#define T0 PART_TE0
#define T1 PART_TE1
#define BLOCK "transformer_blocks.0."

static const struct producer producers[] = {
    {"kohya_sd1", "sd15", "kohya, diffusers names", {
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", KOHYA, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_q"},
        {"lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", KOHYA, U,
         "mid_block.attentions.0." BLOCK "ff.net.0.proj"},
        {"lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0", KOHYA, U,
         "up_blocks.1.attentions.2." BLOCK "attn2.to_out.0"},
        {"lora_unet_down_blocks_0_attentions_0_proj_in", KOHYA, U,
         "down_blocks.0.attentions.0.proj_in"},
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj", KOHYA, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"lora_te_text_model_encoder_layers_2_mlp_fc2", KOHYA, T0, "encoder.layers.2.mlp.fc2"}}},
    {"kohya_sd2", "sd2", "kohya, diffusers names", {
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", KOHYA, U,
         "down_blocks.0.attentions.0." BLOCK "attn2.to_k"},
        {"lora_unet_down_blocks_0_attentions_0_proj_out", KOHYA, U,
         "down_blocks.0.attentions.0.proj_out"},
        {"lora_te_text_model_encoder_layers_1_self_attn_v_proj", KOHYA, T0,
         "encoder.layers.1.self_attn.v_proj"},
        {"lora_te_text_model_encoder_layers_1_self_attn_out_proj", KOHYA, T0,
         "encoder.layers.1.self_attn.out_proj"}}},
    {"kohya_sdxl", "sdxl", "kohya, sgm names", {
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", KOHYA, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"lora_unet_middle_block_1_transformer_blocks_1_ff_net_2", KOHYA, U,
         "mid_block.attentions.0.transformer_blocks.1.ff.net.2"},
        {"lora_unet_output_blocks_0_1_proj_out", KOHYA, U, "up_blocks.0.attentions.0.proj_out"},
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA, T0, "encoder.layers.0.mlp.fc1"},
        {"lora_te2_text_model_encoder_layers_3_mlp_fc1", KOHYA, T1, "encoder.layers.3.mlp.fc1"},
        {"lora_te2_text_model_encoder_layers_0_self_attn_k_proj", KOHYA, T1,
         "encoder.layers.0.self_attn.k_proj"}}},
    {"kohya_sdxl_all_layers", "sdxl", "kohya, sgm names", {
        {"lora_unet_input_blocks_0_0", KOHYA, U, "conv_in"},
        {"lora_unet_out_2", KOHYA, U, "conv_out"},
        {"lora_unet_time_embed_0", KOHYA, U, "time_embedding.linear_1"},
        {"lora_unet_label_emb_0_2", KOHYA, U, "add_embedding.linear_2"},
        {"lora_unet_input_blocks_1_0_emb_layers_1", KOHYA, U,
         "down_blocks.0.resnets.0.time_emb_proj"},
        {"lora_unet_input_blocks_4_0_skip_connection", KOHYA, U,
         "down_blocks.1.resnets.0.conv_shortcut"},
        {"lora_unet_input_blocks_3_0_op", KOHYA, U, "down_blocks.0.downsamplers.0.conv"},
        {"lora_unet_output_blocks_2_2_conv", KOHYA, U, "up_blocks.0.upsamplers.0.conv"}}},
    {"lycoris_in_kohya", "sdxl", "kohya, sgm names", {
        {"lora_unet_input_blocks_1_0_in_layers_2", LOKR, U, "down_blocks.0.resnets.0.conv1"},
        {"lora_unet_input_blocks_1_0_out_layers_3", LOHA, U, "down_blocks.0.resnets.0.conv2"},
        {"lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v", LOKR, U,
         "mid_block.attentions.0." BLOCK "attn2.to_v"},
        {"lora_te1_text_model_encoder_layers_1_self_attn_out_proj", LOHA, T0,
         "encoder.layers.1.self_attn.out_proj"}}},
    {"lycoris_in_kohya_sd1", "sd15", "kohya, diffusers names", {
        {"lora_unet_conv_in", LOKR, U, "conv_in"},
        {"lora_unet_conv_out", LOHA, U, "conv_out"},
        {"lora_unet_time_embedding_linear_1", LOKR, U, "time_embedding.linear_1"},
        {"lora_unet_down_blocks_0_resnets_0_conv1", LOKR, U, "down_blocks.0.resnets.0.conv1"},
        {"lora_unet_up_blocks_1_resnets_0_conv_shortcut", LOKR, U,
         "up_blocks.1.resnets.0.conv_shortcut"},
        {"lora_unet_down_blocks_0_resnets_0_time_emb_proj", LOHA, U,
         "down_blocks.0.resnets.0.time_emb_proj"},
        {"lora_unet_up_blocks_0_upsamplers_0_conv", LOKR, U, "up_blocks.0.upsamplers.0.conv"}}},
    {"kohya_oft", "sdxl", "kohya, sgm names", {
        {"oft_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", OFT, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"oft_unet_output_blocks_0_1_transformer_blocks_1_attn2_to_out_0", OFT, U,
         "up_blocks.0.attentions.0.transformer_blocks.1.attn2.to_out.0"}}},
    {"kohya_oft_sd1", "sd15", "kohya, diffusers names", {
        {"oft_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", OFT, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_q"},
        {"oft_te_text_model_encoder_layers_0_mlp_fc1", OFT, T0, "encoder.layers.0.mlp.fc1"}}},
    {"diffusers_attention_processors", "sd15", "diffusers", {
        {"unet.down_blocks.0.attentions.0." BLOCK "attn1.processor.to_q", UNDERSCORE, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_q"},
        {"unet.up_blocks.1.attentions.2." BLOCK "attn2.processor.to_out", UNDERSCORE, U,
         "up_blocks.1.attentions.2." BLOCK "attn2.to_out.0"},
        {"text_encoder.text_model.encoder.layers.0.self_attn.to_q", LINEAR_LAYER, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"text_encoder.text_model.encoder.layers.1.self_attn.to_out", UNDERSCORE, T0,
         "encoder.layers.1.self_attn.out_proj"},
        {"text_encoder.text_model.encoder.layers.1.mlp.fc1", LINEAR_LAYER, T0,
         "encoder.layers.1.mlp.fc1"}}},
    {"diffusers_processors_without_prefix", "sd15", "diffusers, bare", {
        {"mid_block.attentions.0." BLOCK "attn1.processor.to_k", UNDERSCORE, U,
         "mid_block.attentions.0." BLOCK "attn1.to_k"},
        {"down_blocks.0.attentions.0." BLOCK "attn2.processor.to_v", UNDERSCORE, U,
         "down_blocks.0.attentions.0." BLOCK "attn2.to_v"}}},
    {"diffusers_sdxl", "sdxl", "diffusers", {
        {"unet.down_blocks.1.attentions.0." BLOCK "attn1.to_q", DIFFUSERS, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"unet.mid_block.attentions.0.proj_in", DIFFUSERS, U, "mid_block.attentions.0.proj_in"},
        {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj", LINEAR_LAYER, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"text_encoder_2.text_model.encoder.layers.2.self_attn.k_proj", LINEAR_LAYER, T1,
         "encoder.layers.2.self_attn.k_proj"}}},
    {"diffusers_with_peft", "sdxl", "diffusers", {
        {"unet.down_blocks.1.attentions.0." BLOCK "attn2.to_out.0", PEFT, U,
         "down_blocks.1.attentions.0." BLOCK "attn2.to_out.0"},
        {"unet.up_blocks.0.resnets.1.conv2", PEFT, U, "up_blocks.0.resnets.1.conv2"},
        {"text_encoder.text_model.encoder.layers.1.self_attn.v_proj", PEFT, T0,
         "encoder.layers.1.self_attn.v_proj"},
        {"text_encoder_2.text_model.encoder.layers.3.mlp.fc2", PEFT, T1,
         "encoder.layers.3.mlp.fc2"}}},
    {"peft", "sd15", "PEFT", {
        {"base_model.model.down_blocks.0.attentions.0." BLOCK "attn1.to_v", PEFT, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_v"},
        {"base_model.model.conv_in", PEFT, U, "conv_in"},
        {"base_model.model.mid_block.resnets.0.conv1", LOKR, U, "mid_block.resnets.0.conv1"},
        {"base_model.model.time_embedding.linear_2", LOHA, U, "time_embedding.linear_2"}}},
    {"peft_text_encoder", "sd15", "PEFT", {
        {"base_model.model.text_model.encoder.layers.0.self_attn.q_proj", PEFT, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"base_model.model.text_model.encoder.layers.2.mlp.fc1", PEFT_DEFAULT, T0,
         "encoder.layers.2.mlp.fc1"}}},
    {"peft_below_a_pipeline", "sdxl", "diffusers", {
        {"unet.base_model.model.down_blocks.1.attentions.0." BLOCK "attn1.to_k", PEFT, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_k"},
        {"text_encoder_2.base_model.model.text_model.encoder.layers.0.mlp.fc2", PEFT_DEFAULT, T1,
         "encoder.layers.0.mlp.fc2"}}},
    {"peft_without_weight", "sd2", "diffusers", {
        {"unet.down_blocks.0.attentions.0." BLOCK "attn1.to_q", PEFT_BARE, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_q"},
        {"unet.mid_block.attentions.0." BLOCK "ff.net.2", PEFT_BARE, U,
         "mid_block.attentions.0." BLOCK "ff.net.2"}}},
    {"simpletuner", "sdxl", "LyCORIS, diffusers names", {
        {"lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", LOKR, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"lycoris_mid_block_attentions_0_transformer_blocks_1_ff_net_0_proj", LOKR, U,
         "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj"},
        {"lycoris_up_blocks_0_resnets_0_conv1", LOKR, U, "up_blocks.0.resnets.0.conv1"},
        {"lycoris_add_embedding_linear_1", LOHA, U, "add_embedding.linear_1"}}},
    {"ai_toolkit", "sdxl", "ComfyUI", {
        {"diffusion_model.input_blocks.4.1." BLOCK "attn1.to_q", LOKR, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"diffusion_model.output_blocks.2.0.in_layers.2", PEFT, U, "up_blocks.0.resnets.2.conv1"}}},
    {"ai_toolkit_diffusers_names", "sd15", "ComfyUI, diffusers names", {
        {"diffusion_model.down_blocks.0.attentions.0." BLOCK "attn1.to_q", PEFT, U,
         "down_blocks.0.attentions.0." BLOCK "attn1.to_q"},
        {"diffusion_model.mid_block.attentions.0." BLOCK "attn2.to_out.0", LOKR, U,
         "mid_block.attentions.0." BLOCK "attn2.to_out.0"}}},
    {"onetrainer_legacy", "sdxl", "kohya, diffusers names", {
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", KOHYA, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"lora_unet_add_embedding_linear_2", KOHYA, U, "add_embedding.linear_2"},
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA, T0, "encoder.layers.0.mlp.fc1"},
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1", KOHYA, T1, "encoder.layers.0.mlp.fc1"}}},
    {"onetrainer_omi", "sdxl", "OMI", {
        {"unet.input_blocks.1.0.in_layers.2", KOHYA, U, "down_blocks.0.resnets.0.conv1"},
        {"unet.middle_block.1." BLOCK "attn1.to_out.0", KOHYA, U,
         "mid_block.attentions.0." BLOCK "attn1.to_out.0"},
        {"unet.label_emb.0.0", KOHYA, U, "add_embedding.linear_1"},
        {"clip_l.text_model.encoder.layers.0.self_attn.q_proj", KOHYA, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"clip_g.text_model.encoder.layers.2.mlp.fc2", KOHYA, T1, "encoder.layers.2.mlp.fc2"}}},
    {"comfyui", "sdxl", "ComfyUI", {
        {"diffusion_model.input_blocks.4.1." BLOCK "attn2.to_k", PEFT, U,
         "down_blocks.1.attentions.0." BLOCK "attn2.to_k"},
        {"diffusion_model.time_embed.2", PEFT, U, "time_embedding.linear_2"},
        {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", PEFT, T0,
         "encoder.layers.0.mlp.fc1"},
        {"text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.v_proj", PEFT, T1,
         "encoder.layers.3.self_attn.v_proj"},
        {"clip_g.transformer.text_model.encoder.layers.1.mlp.fc1", PEFT, T1,
         "encoder.layers.1.mlp.fc1"}}},
    {"comfyui_sd2", "sd2", "ComfyUI", {
        {"diffusion_model.middle_block.0.out_layers.3", PEFT, U, "mid_block.resnets.0.conv2"},
        {"text_encoders.clip_h.transformer.text_model.encoder.layers.2.mlp.fc2", PEFT, T0,
         "encoder.layers.2.mlp.fc2"}}},
    {"checkpoint_names", "sdxl", "checkpoint", {
        {"model.diffusion_model.input_blocks.1.0.in_layers.2", PEFT, U,
         "down_blocks.0.resnets.0.conv1"},
        {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1", PEFT, T0,
         "encoder.layers.0.mlp.fc1"},
        {"conditioner.embedders.1.model.transformer.resblocks.2.mlp.c_fc", PEFT, T1,
         "encoder.layers.2.mlp.fc1"},
        {"conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj", PEFT, T1,
         "encoder.layers.0.self_attn.q_proj"}}},
    {"diffsynth_bare_names", "sdxl", "diffusers, bare", {
        {"down_blocks.1.attentions.0." BLOCK "attn1.to_q", PEFT_DEFAULT, U,
         "down_blocks.1.attentions.0." BLOCK "attn1.to_q"},
        {"up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_v", PEFT_DEFAULT, U,
         "up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_v"}}},
    {"openclip_fused_projection", "sd2", "mixed names", {
        {"lora_te_text_model_encoder_layers_0_self_attn_in_proj", KOHYA, T0,
         "encoder.layers.0.self_attn.q_proj"},
        {"clip_h.transformer.resblocks.1.attn.in_proj", LOKR, T0,
         "encoder.layers.1.self_attn.q_proj"},
        {"text_encoder.text_model.encoder.layers.2.self_attn.in_proj", PEFT, T0,
         "encoder.layers.2.self_attn.q_proj"}}},
    {"openclip_fused_projection_sdxl", "sdxl", "mixed names", {
        {"lora_te2_transformer_resblocks_0_attn_in_proj", LOHA, T1,
         "encoder.layers.0.self_attn.q_proj"},
        {"text_encoder_2.text_model.encoder.layers.1.self_attn.in_proj", PEFT, T1,
         "encoder.layers.1.self_attn.q_proj"},
        {"text_encoders.clip_g.transformer.resblocks.3.attn.in_proj", PEFT, T1,
         "encoder.layers.3.self_attn.q_proj"}}},
};

static void add(struct fx_file *f, const char *module, const char *ending, int n_dims,
                const int64_t *dim)
{
    static uint64_t seed = 5;
    char name[300];

    snprintf(name, sizeof name, "%s%s", module, ending);
    fx_add(f, name, DT_F16, &seed, n_dims, dim);
}

static void add_alpha(struct fx_file *f, const char *module, const char *ending)
{
    char name[300];

    snprintf(name, sizeof name, "%s%s", module, ending);
    fx_add_scalar(f, name, DT_F32, 1);
}

/* A module of rank 1 for a layer of `out` rows. */
static void add_module(struct fx_file *f, const struct key *key, const struct layer *l,
                       int64_t out)
{
    const char *m = key->module;
    int64_t k = layer_k(l);

    switch (key->endings) {
    case LOKR:
        add(f, m, ".lokr_w1", FX_DIMS(1, 1));
        add(f, m, ".lokr_w2_a", FX_DIMS(out, 1));
        add(f, m, ".lokr_w2_b", FX_DIMS(1, k));
        add_alpha(f, m, ".alpha");
        break;
    case LOHA:
        add(f, m, ".hada_w1_a", FX_DIMS(out, 1));
        add(f, m, ".hada_w1_b", FX_DIMS(1, k));
        add(f, m, ".hada_w2_a", FX_DIMS(out, 1));
        add(f, m, ".hada_w2_b", FX_DIMS(1, k));
        add_alpha(f, m, ".alpha");
        break;
    case OFT:
        add(f, m, ".oft_blocks", FX_DIMS(2, out / 2, out / 2));
        add_alpha(f, m, ".alpha");
        break;
    default:
        add(f, m, low_rank[key->endings].down, FX_DIMS(1, l->in, l->kh, l->kw));
        add(f, m, low_rank[key->endings].up, FX_DIMS(out, 1, 1, 1));
        if (low_rank[key->endings].alpha != NULL)
            add_alpha(f, m, low_rank[key->endings].alpha);
        break;
    }
}

static bool is_fused(const struct key *key)
{
    return str_ends(key->module, "in_proj");
}

static void check_names(const struct producer *p, const struct fx_table *t,
                        const struct adapter_names *n, const struct adapter_file *f)
{
    for (int i = 0; i < adapter_count(f); i++) {
        const struct key *key = &p->keys[i];
        const struct layer *want = fx_find(t, key->part, key->layer);
        struct adapter_match m = adapter_names_find(n, adapter_prefix(f, i), 0);
        assert_string_equal(adapter_prefix(f, i), key->module);
        if (m.found != ADAPTER_FOUND)
            fail_msg("%s is not found", key->module);
        assert_int_equal(m.n_targets, is_fused(key) ? 3 : 1);
        assert_ptr_equal(m.targets[0].layer, want);
        assert_true(m.layer == want || is_fused(key));
        assert_int_equal(m.layer->out, m.n_targets * want->out);
    }
}

/* Binds the file; each layer that a key names must have got a delta. */
static void check_bound(const struct producer *p, const struct fx_table *t,
                        const struct adapter_names *n, const struct adapter_file *f)
{
    const struct adapter_report *r;
    struct adapter_set *set;

    if (adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, n, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    r = adapter_set_report(set, 0);
    assert_int_equal(r->n_applied, adapter_count(f));
    assert_int_equal(r->n_tensors_used, r->n_tensors);
    assert_string_equal(r->naming, p->naming);
    for (int i = 0; i < adapter_count(f); i++) {
        const struct layer *l = fx_find(t, p->keys[i].part, p->keys[i].layer);
        assert_int_equal(delta_set_list(adapter_set_deltas(set), l).n, 1);
    }
    adapter_set_free(&set);
}

static void files_of_this_producer_apply(void **state)
{
    const struct producer *p = *state;
    struct fx_file file = {0};
    struct fx_table t;
    struct adapter_names *n;
    struct adapter_file *f;
    int n_keys = 0;

    fx_table_read(&t, p->arch);
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    for (; n_keys < MAX_KEYS && p->keys[n_keys].module != NULL; n_keys++) {
        const struct key *key = &p->keys[n_keys];
        const struct layer *l = fx_find(&t, key->part, key->layer);
        add_module(&file, key, l, is_fused(key) ? 3 * l->out : l->out);
    }
    if (fx_open(&file, &f, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(adapter_count(f), n_keys);
    check_names(p, &t, n, f);
    check_bound(p, &t, n, f);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* --- files for models that are not there: the error must name what they are for --- */

struct stranger {
    const char *name, *want;
    struct foreign {
        const char *tensor;
        int64_t rows, cols;
    } tensors[6];
};

static const struct stranger strangers[] = {
    {"kohya_sd3", "the adapter is for SD 3,", {
        {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", 4, 1536},
        {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", 4608, 4},
        {"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", 4, 4096}}},
    {"peft_sd3", "the adapter is for SD 3,", {
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight", 4, 1536},
        {"transformer.transformer_blocks.0.attn.to_q.lora_B.weight", 1536, 4}}},
    {"peft_sd35_large", "the adapter is for SD 3,", {
        {"transformer.transformer_blocks.37.attn.add_k_proj.lora_A.weight", 4, 2432},
        {"transformer.transformer_blocks.37.attn.add_k_proj.lora_B.weight", 2432, 4}}},
    {"kohya_flux", "the adapter is for FLUX,", {
        {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight", 4, 3072},
        {"lora_unet_single_blocks_0_linear1.lora_down.weight", 4, 3072},
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 4, 768}}},
    {"kohya_oft_flux", "the adapter is for FLUX,", {
        {"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0", 4, 4},
        {"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.1", 4, 4},
        {"oft_unet_double_blocks_0_img_attn_qkv.alpha", 1, 1}}},
    {"peft_flux", "the adapter is for FLUX,", {
        {"transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight", 12288, 4},
        {"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight", 4, 3072}}},
    {"simpletuner_flux", "the adapter is for FLUX,", {
        {"lycoris_single_transformer_blocks_3_proj_out.lokr_w1", 4, 4},
        {"lycoris_single_transformer_blocks_3_proj_out.lokr_w2", 768, 3840}}},
    {"ai_toolkit_flux", "the adapter is for FLUX,", {
        {"diffusion_model.double_blocks.3.img_attn.qkv.lokr_w1", 4, 4},
        {"diffusion_model.double_blocks.3.img_attn.qkv.lokr_w2", 2304, 768}}},
    {"onetrainer_flux", "the adapter is for FLUX,", {
        {"lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight", 4, 3072}}},
    {"onetrainer_flux_omi", "the adapter is for FLUX,", {
        {"transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight", 4, 3072}}},
    {"xlabs_flux", "the adapter is for FLUX,", {
        {"double_blocks.0.processor.qkv_lora1.down.weight", 4, 3072},
        {"double_blocks.0.processor.qkv_lora1.up.weight", 9216, 4},
        {"double_blocks.0.processor.qkv_lora2.down.weight", 4, 3072},
        {"double_blocks.0.processor.qkv_lora2.up.weight", 9216, 4}}},
    {"bfl_control_flux", "the adapter is for FLUX,", {
        {"double_blocks.0.img_attn.qkv.lora_A.weight", 4, 3072},
        {"double_blocks.0.img_attn.qkv.lora_B.weight", 9216, 4},
        {"double_blocks.0.img_attn.qkv.lora_B.bias", 9216, 1},
        {"double_blocks.0.img_attn.norm.query_norm.scale", 128, 1}}},
    {"fal_kontext", "the adapter is for FLUX,", {
        {"base_model.model.single_transformer_blocks.0.attn.to_q.lora_A.weight", 4, 3072}}},
    {"nunchaku_flux", "modules of Nunchaku's packed LoRA", {
        {"single_transformer_blocks.0.mlp_fc1.lora_down", 3072, 16},
        {"single_transformer_blocks.0.mlp_fc1.lora_up", 12288, 16}}},
    {"diffsynth_qwen", "the adapter is for Qwen-Image,", {
        {"transformer_blocks.59.attn.to_q.lora_A.default.weight", 4, 3072},
        {"transformer_blocks.59.attn.to_q.lora_B.default.weight", 3072, 4}}},
    {"musubi_qwen", "the adapter is for Qwen-Image,", {
        {"lora_unet_transformer_blocks_0_img_mlp_net_0_proj.lora_down.weight", 4, 3072}}},
    {"musubi_wan", "the adapter is for Wan,", {
        {"lora_unet_blocks_0_cross_attn_k.lora_down.weight", 4, 1536}}},
    {"diffsynth_wan", "the adapter is for Wan,", {
        {"blocks.0.self_attn.q.lora_A.default.weight", 4, 1536}}},
    {"diffusers_wan", "the adapter is for Wan,", {
        {"transformer.blocks.0.attn2.to_k.lora_A.weight", 4, 1536},
        {"transformer.blocks.0.ffn.net.0.proj.lora_A.weight", 4, 1536}}},
    {"ai_toolkit_zimage", "the adapter is for Z-Image", {
        {"diffusion_model.layers.0.attention.to_q.lokr_w1", 16, 16},
        {"diffusion_model.layers.0.attention.to_q.lokr_w2", 240, 240}}},
    {"musubi_zimage", "the adapter is for Z-Image", {
        {"lora_unet_layers_0_attention_qkv.lora_down.weight", 4, 3840}}},
    {"bare_zimage", "the adapter is for Z-Image", {
        {"layers.13.feed_forward.w1.lokr_w1", 16, 16}}},
    {"stable_cascade", "the adapter is for Stable Cascade,", {
        {"lora_prior_unet_down_blocks_0_1_attention_attn_in_proj.lora_down.weight", 4, 2048},
        {"lora_prior_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 4, 1280}}},
};

static void this_file_is_named(void **state)
{
    const struct stranger *s = *state;
    struct fx_file file = {0};
    struct fx_table t;
    struct adapter_names *n;
    struct adapter_file *f;
    struct adapter_set *set;

    fx_table_read(&t, "sdxl");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    for (int i = 0; i < 6 && s->tensors[i].tensor != NULL; i++)
        add(&file, s->tensors[i].tensor, "", FX_DIMS(s->tensors[i].rows, s->tensors[i].cols));
    if (fx_open(&file, &f, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, n, false),
                     KRON_ERR_SHAPE);
    if (strstr(kron_error_detail(), s->want) == NULL ||
        strstr(kron_error_detail(), "the model is SDXL") == NULL)
        fail_msg("%s", kron_error_detail());
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&n);
    fx_table_free(&t);
}

int main(void)
{
    enum {
        N = sizeof producers / sizeof *producers,
        N_STRANGE = sizeof strangers / sizeof *strangers
    };
    static struct CMUnitTest tests[N + N_STRANGE];

    for (int i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){.name = producers[i].name,
                                       .test_func = files_of_this_producer_apply,
                                       .initial_state = (void *)(uintptr_t)&producers[i]};
    for (int i = 0; i < N_STRANGE; i++)
        tests[N + i] = (struct CMUnitTest){.name = strangers[i].name,
                                           .test_func = this_file_is_named,
                                           .initial_state = (void *)(uintptr_t)&strangers[i]};
    return _cmocka_run_group_tests("producers", tests, N + N_STRANGE, NULL, NULL);
}
