/* SPDX-License-Identifier: MIT
 * Finding out what a checkpoint is, or saying what it seems to be instead. */
#include "model/model.h"
#include <string.h>

const char *arch_name(kron_arch arch)
{
    switch (arch) {
    case KRON_ARCH_SD1:
        return "SD 1.x";
    case KRON_ARCH_SD2:
        return "SD 2.x";
    case KRON_ARCH_SDXL:
        return "SDXL";
    }
    return "unknown";
}

/* What tells a checkpoint of another kind: a piece of a tensor's name. First match counts. */
static const struct {
    const char *piece, *kind;
} others[] = {
    {"joint_blocks.", "Stable Diffusion 3"},
    {"double_stream_modulation", "FLUX.2"},
    {"double_blocks.", "FLUX"},
    {"single_transformer_blocks.", "FLUX (diffusers)"},
    {"down_blocks.0.channel_mapper", "Stable Cascade"},
    {"img_in.", "a Qwen-Image-like transformer"},
    {"cap_embedder.", "a Lumina- or Z-Image-like transformer"},
    {"temporal_", "a video model"},
    {"control_model.", "a ControlNet"},
    {"lora_down.", "an adapter (LoRA): use <lora:name:strength> in the prompt"},
    {"lora_A.", "an adapter (LoRA): use <lora:name:strength> in the prompt"},
    {"lokr_w", "an adapter (LoKr): use <lora:name:strength> in the prompt"},
    {"hada_w", "an adapter (LoHa): use <lora:name:strength> in the prompt"},
    {"model.layers.", "a language model"},
    {"decoder.conv_in.", "a VAE: give it beside a checkpoint (--vae)"},
    {"input_blocks.0.0.", "a UNet alone: give it as --diffusion-model, beside the other parts"},
    {"down_blocks.0.resnets.0.", "a UNet alone: give it as --diffusion-model, beside the other "
                                 "parts"},
    {"text_model.encoder.layers.0.", "a text encoder alone: give it as --clip_l or --clip_g"},
};

static const char *other_kind(const struct store *s)
{
    const char *tag;

    for (size_t k = 0; k < sizeof others / sizeof *others; k++)
        for (int64_t i = 0; i < store_count(s); i++)
            if (strstr(store_at(s, i, &tag)->name, others[k].piece) != NULL)
                return others[k].kind;
    return NULL;
}

struct parts {
    bool unet, te, vae;
};

static bool find_part(struct sd_model *m, const char *tag, const char *prefix, const char *native,
                      const char *name)
{
    struct loader ld = {.m = m, .tag = tag, .prefix = prefix, .prefix2 = "",
                        .others = vae_prefixes, .status = KRON_OK};

    return loader_has(&ld, native, name);
}

static struct parts find_parts(struct sd_model *m)
{
    struct parts p;

    p.unet = find_part(m, "unet", "model.diffusion_model.", "input_blocks.0.0", "conv_in");
    p.te = store_has_tag(m->store, "text_encoder") || store_has_tag(m->store, "text_encoder_2") ||
           find_part(m, "", "cond_stage_model.", "model.ln_final", "") ||
           find_part(m, "", "cond_stage_model.transformer.", "text_model.final_layer_norm", "") ||
           find_part(m, "", "cond_stage_model.transformer.", "final_layer_norm", "") ||
           find_part(m, "", "conditioner.embedders.1.", "model.ln_final", "") ||
           find_part(m, "", "text_encoders.clip_l.transformer.", "text_model.final_layer_norm", "");
    p.vae = find_part(m, "vae", "first_stage_model.", "decoder.conv_in", "decoder.conv_in");
    return p;
}

static kron_status check_parts(struct sd_model *m)
{
    struct parts p = find_parts(m);
    const char *tag, *kind, *path = store_path(m->store, "");

    if (path == NULL && store_count(m->store) > 0) {
        store_at(m->store, 0, &tag);
        path = store_path(m->store, tag);
    }
    path = path != NULL ? path : "the model";
    if (p.unet && p.te && p.vae)
        return KRON_OK;
    kind = p.unet || p.te ? NULL : other_kind(m->store);
    if (kind != NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: this looks like %s; expected a Stable Diffusion "
                       "1, 2 or XL checkpoint", path, kind);
    return err_set(KRON_ERR_UNSUPPORTED, "%s: not a whole Stable Diffusion 1, 2 or XL checkpoint: "
                   "UNet %s, text encoder %s, VAE %s (among %lld tensors)", path,
                   p.unet ? "found" : "missing", p.te ? "found" : "missing",
                   p.vae ? "found" : "missing", (long long)store_count(m->store));
}

/* SDXL: label_emb takes the pooled text and six embedded sizes. */
static kron_status check_widths(struct sd_model *m)
{
    struct unet *u = &m->unet;
    int context = m->te[0].width + (m->n_te > 1 ? m->te[1].width : 0);

    if (u->context_width != context)
        return err_set(KRON_ERR_SHAPE, "the UNet takes text of width %d, the text encoders give %d",
                       u->context_width, context);
    if (u->conv_out->out != 4 || m->vae.latent_channels != 4 ||
        (u->in_channels != 4 && u->in_channels != 9))
        return err_set(KRON_ERR_UNSUPPORTED, "the UNet has %d channels in and %lld out with a VAE "
                       "of %d latent channels: expected 4 (9 for inpainting), 4 and 4",
                       u->in_channels, (long long)u->conv_out->out, m->vae.latent_channels);
    if (u->label1 == NULL)
        return KRON_OK;
    u->pooled_width = clip_pooled_width(&m->te[1]);
    u->size_dim = (int)(u->label1->in - u->pooled_width) / 6;
    if (u->size_dim < 2 || u->size_dim * 6 + u->pooled_width != u->label1->in)
        return err_set(KRON_ERR_SHAPE, "'%s' takes %lld numbers: expected the pooled text's %d and "
                       "six embedded sizes", u->label1->weight.name, (long long)u->label1->in,
                       u->pooled_width);
    return KRON_OK;
}

static const char *meta_any(const struct sd_model *m, const char *key)
{
    const char *v = store_meta(m->store, "", key);

    return v != NULL ? v : store_meta(m->store, "unet", key);
}

/* eps unless something says v; an SD2 file that says nothing is left to a test call. */
static kron_prediction find_prediction(const struct sd_model *m)
{
    static const char *const keys[] = {"prediction", "modelspec.prediction_type",
                                       "ss_prediction_type"};
    const char *v = store_config(m->store, "scheduler", "prediction_type");

    for (size_t i = 0; v == NULL && i < sizeof keys / sizeof *keys; i++)
        v = meta_any(m, keys[i]);
    if (v != NULL)
        return v[0] == 'v' ? KRON_PREDICTION_V : KRON_PREDICTION_EPS;
    if (store_find(m->store, "", "v_pred") != NULL)
        return KRON_PREDICTION_V;
    return m->arch == KRON_ARCH_SD2 ? KRON_PREDICTION_DETECT : KRON_PREDICTION_EPS;
}

kron_status model_load(struct sd_model *m, struct store *store)
{
    memset(m, 0, sizeof *m);
    m->store = store;
    KRON_TRY(check_parts(m));
    KRON_TRY(unet_load(m));
    KRON_TRY(clip_load(m));
    KRON_TRY(vae_load(m));
    KRON_TRY(check_widths(m));
    m->prediction = find_prediction(m);
    return KRON_OK;
}

void model_free(struct sd_model *m)
{
    store_free(&m->store);
    mem_free(m->layers.at);
    mem_free(m->layers.aliases);
    arena_free(&m->mem);
    memset(m, 0, sizeof *m);
}
