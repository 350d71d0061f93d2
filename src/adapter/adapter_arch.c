/* SPDX-License-Identifier: MIT
 * What a file was made for. Names and shapes come first, since tools that resize or merge
 * adapters copy metadata; metadata decides where they leave it open. */
#include "adapter/family.h"
#include <string.h>

const char *adapter_arch_text(enum adapter_arch a)
{
    static const char *const text[] = {
#define ARCH_TEXT(name, txt) txt,
        ADAPTER_ARCH_LIST(ARCH_TEXT)
#undef ARCH_TEXT
    };
    return text[a];
}

struct clue {
    const char *text;
    enum adapter_arch arch;
};

/* Pieces of module names, dots written as underscores. The first that any name has decides. */
static const struct clue name_clues[] = {
    {"lora_prior_", ADAPTER_ARCH_CASCADE},
    {"joint_blocks_", ADAPTER_ARCH_SD3},
    {"double_blocks_", ADAPTER_ARCH_FLUX},
    {"single_transformer_blocks_", ADAPTER_ARCH_FLUX},
    {"single_blocks_", ADAPTER_ARCH_FLUX},
    {"img_mlp", ADAPTER_ARCH_QWEN},
    {"feed_forward_w1", ADAPTER_ARCH_ZIMAGE},
    {"attention_qkv", ADAPTER_ARCH_ZIMAGE},
    {"attention_to_q", ADAPTER_ARCH_ZIMAGE},
    {"blocks_0_cross_attn", ADAPTER_ARCH_WAN},
    {"blocks_0_self_attn", ADAPTER_ARCH_WAN},
    {"blocks_0_ffn_", ADAPTER_ARCH_WAN},
};

/* The same for files of the UNet kind: SDXL has two text encoders and transformers of two and
 * ten blocks on three levels, the others one block on four. */
static const struct clue unet_clues[] = {
    {"lora_te2_", ADAPTER_ARCH_SDXL},
    {"text_encoder_2_", ADAPTER_ARCH_SDXL},
    {"clip_g_", ADAPTER_ARCH_SDXL},
    {"add_embedding_", ADAPTER_ARCH_SDXL},
    {"label_emb_", ADAPTER_ARCH_SDXL},
    {"1_transformer_blocks_1_", ADAPTER_ARCH_SDXL},
    {"attentions_0_transformer_blocks_1_", ADAPTER_ARCH_SDXL},
    {"attentions_1_transformer_blocks_1_", ADAPTER_ARCH_SDXL},
};

static const struct clue metadata_clues[] = {
    {"sdxl", ADAPTER_ARCH_SDXL},
    {"stable-diffusion-xl", ADAPTER_ARCH_SDXL},
    {"sd_v1", ADAPTER_ARCH_SD1},
    {"stable-diffusion-v1", ADAPTER_ARCH_SD1},
    {"sd_v2", ADAPTER_ARCH_SD2},
    {"stable-diffusion-v2", ADAPTER_ARCH_SD2},
    {"sd3", ADAPTER_ARCH_SD3},
    {"stable-diffusion-3", ADAPTER_ARCH_SD3},
    {"flux", ADAPTER_ARCH_FLUX},
    {"Flux", ADAPTER_ARCH_FLUX},
    {"stable-cascade", ADAPTER_ARCH_CASCADE},
    {"qwen", ADAPTER_ARCH_QWEN},
    {"Qwen", ADAPTER_ARCH_QWEN},
    {"lumina", ADAPTER_ARCH_ZIMAGE},
    {"zimage", ADAPTER_ARCH_ZIMAGE},
    {"wan", ADAPTER_ARCH_WAN},
};

/* Finds `piece` in a name, '_' standing for a dot as well. */
static bool has_piece(const char *name, const char *piece)
{
    for (; *name != '\0'; name++) {
        size_t i = 0;
        while (piece[i] != '\0' &&
               (name[i] == piece[i] || (piece[i] == '_' && name[i] == '.')))
            i++;
        if (piece[i] == '\0')
            return true;
    }
    return false;
}

static enum adapter_arch by_names(const struct adapter_file *f, const struct clue *clues, size_t n)
{
    for (size_t c = 0; c < n; c++)
        for (int i = 0; i < f->n_modules; i++)
            if (has_piece(f->modules[i].prefix, clues[c].text))
                return clues[c].arch;
    return ADAPTER_ARCH_UNKNOWN;
}

int64_t module_width(const struct adapter_module *m)
{
    const struct tensor *const *p = m->part;

    if (p[AP_LORA_DOWN] != NULL)
        return p[AP_LORA_DOWN]->dim[1];
    if (p[AP_HADA_W1_B] != NULL)
        return p[AP_HADA_W1_B]->dim[1];
    if (p[AP_DIFF] != NULL)
        return p[AP_DIFF]->dim[1];
    if ((p[AP_LOKR_W1] != NULL || p[AP_LOKR_W1_B] != NULL) &&
        (p[AP_LOKR_W2] != NULL || p[AP_LOKR_W2_B] != NULL)) {
        int64_t uq = (p[AP_LOKR_W1] ? p[AP_LOKR_W1] : p[AP_LOKR_W1_B])->dim[1];
        int64_t vq = (p[AP_LOKR_W2] ? p[AP_LOKR_W2] : p[AP_LOKR_W2_B])->dim[1];
        return vq > 0 && uq <= INT64_MAX / vq ? uq * vq : 0;
    }
    return 0;
}

/* The width of the text that cross-attention reads, in the real models. */
static enum adapter_arch by_context(const struct adapter_file *f)
{
    for (int i = 0; i < f->n_modules; i++) {
        const struct adapter_module *m = &f->modules[i];
        if (!has_piece(m->prefix, "attn2_to_k") && !has_piece(m->prefix, "attn2_to_v"))
            continue;
        switch (module_width(m)) {
        case 768:
            return ADAPTER_ARCH_SD1;
        case 1024:
            return ADAPTER_ARCH_SD2;
        case 2048:
            return ADAPTER_ARCH_SDXL;
        default:
            break;
        }
    }
    return ADAPTER_ARCH_UNKNOWN;
}

static enum adapter_arch by_metadata(const struct adapter_file *f)
{
    static const char *const keys[] = {"ss_base_model_version", "modelspec.architecture"};

    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const char *v = st_meta(f->st, keys[k]);
        for (size_t i = 0; v != NULL && i < sizeof metadata_clues / sizeof *metadata_clues; i++)
            if (strstr(v, metadata_clues[i].text) != NULL)
                return metadata_clues[i].arch;
    }
    return ADAPTER_ARCH_UNKNOWN;
}

/* Diffusion transformers under diffusers' names, where nothing else told: attention of a
 * two-stream block. SD 3's two widths are its own; only Qwen-Image has sixty blocks. */
static enum adapter_arch by_transformer(const struct adapter_file *f)
{
    static const struct clue sixty = {"transformer_blocks_59_attn_", ADAPTER_ARCH_QWEN};
    static const char *const pieces[] = {"_attn_to_q", "_attn_to_k", "_attn_to_v",
                                         "_attn_add_q_proj", "_attn_add_k_proj",
                                         "_attn_add_v_proj"};
    bool any = false;

    for (int i = 0; i < f->n_modules; i++) {
        const struct adapter_module *m = &f->modules[i];
        for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
            if (!has_piece(m->prefix, "transformer_blocks_") || !has_piece(m->prefix, pieces[k]))
                continue;
            if (module_width(m) == 1536 || module_width(m) == 2432)
                return ADAPTER_ARCH_SD3;
            any = true;
        }
    }
    if (by_names(f, &sixty, 1) != ADAPTER_ARCH_UNKNOWN)
        return ADAPTER_ARCH_QWEN;
    return any ? ADAPTER_ARCH_DIT : ADAPTER_ARCH_UNKNOWN;
}

enum adapter_arch arch_guess(const struct adapter_file *f)
{
    enum adapter_arch a = by_names(f, name_clues, sizeof name_clues / sizeof *name_clues);

    if (a == ADAPTER_ARCH_UNKNOWN)
        a = by_context(f);
    if (a == ADAPTER_ARCH_UNKNOWN)
        a = by_names(f, unet_clues, sizeof unet_clues / sizeof *unet_clues);
    if (a == ADAPTER_ARCH_UNKNOWN)
        a = by_metadata(f);
    return a == ADAPTER_ARCH_UNKNOWN ? by_transformer(f) : a;
}
