/* SPDX-License-Identifier: MIT
 * The autoencoder (Esser et al. 2021; Rombach et al. 2022): images to latents and back. */
#include "model/blocks.h"

static const float eps = 1e-6f;

/* --- layers --- */

static struct resnet load_resnet(struct loader *ld, const struct names *n)
{
    struct resnet r = {
        .norm1 = load_sub(ld, LAYER_NORM, n, "norm1", "norm1", true),
        .conv1 = load_sub(ld, LAYER_CONV, n, "conv1", "conv1", true),
        .norm2 = load_sub(ld, LAYER_NORM, n, "norm2", "norm2", true),
        .conv2 = load_sub(ld, LAYER_CONV, n, "conv2", "conv2", true),
        .skip = load_sub(ld, LAYER_CONV, n, "nin_shortcut", "conv_shortcut", false),
    };

    return r;
}

/* Older diffusers files name the attention's layers otherwise. */
static const struct layer *attn_layer(struct loader *ld, const struct names *n, const char *native,
                                      const char *name, const char *old_name)
{
    if (!has_sub(ld, n, native, name))
        name = old_name;
    return load_sub(ld, LAYER_LINEAR, n, native, name, true);
}

static void load_middle(struct loader *ld, struct vae_side *s, const char *side)
{
    struct names base = {"", ""}, n, a;

    snprintf(base.native, sizeof base.native, "%s", side);
    snprintf(base.name, sizeof base.name, "%s", side);
    n = names_sub(&base, "mid.block_1", "mid_block.resnets.0");
    s->mid1 = load_resnet(ld, &n);
    a = names_sub(&base, "mid.attn_1", "mid_block.attentions.0");
    s->attn_norm = load_sub(ld, LAYER_NORM, &a, "norm", "group_norm", true);
    s->q = attn_layer(ld, &a, "q", "to_q", "query");
    s->k = attn_layer(ld, &a, "k", "to_k", "key");
    s->v = attn_layer(ld, &a, "v", "to_v", "value");
    s->attn_out = attn_layer(ld, &a, "proj_out", "to_out.0", "proj_attn");
    n = names_sub(&base, "mid.block_2", "mid_block.resnets.1");
    s->mid2 = load_resnet(ld, &n);
    s->conv_in = load_sub(ld, LAYER_CONV, &base, "conv_in", "conv_in", true);
    s->norm_out = load_sub(ld, LAYER_NORM, &base, "norm_out", "conv_norm_out", true);
    s->conv_out = load_sub(ld, LAYER_CONV, &base, "conv_out", "conv_out", true);
}

/* Native files count the decoder's levels from the picture, diffusers in order of computation. */
static struct names level_names(bool up, int level, int n_levels, int block)
{
    if (!up)
        return names_of("encoder.down.%d.block.%d", "encoder.down_blocks.%d.resnets.%d", level,
                        block, level, block);
    return names_of("decoder.up.%d.block.%d", "decoder.up_blocks.%d.resnets.%d",
                    n_levels - 1 - level, block, level, block);
}

static int count_levels(const struct loader *ld, bool up)
{
    int n = 0;

    /* With n_levels 2 * n + 1 the native name of level n is that of number n. */
    for (; n < UNET_MAX_LEVELS; n++) {
        struct names m = level_names(up, n, 2 * n + 1, 0);
        if (!has_sub(ld, &m, "norm1", "norm1"))
            break;
    }
    return n;
}

static void load_level(struct loader *ld, struct vae_side *s, bool up, int level)
{
    struct unet_level *lv = &s->level[level];
    int n = 0;

    for (;; n++) {
        struct names m = level_names(up, level, s->n_levels, n);
        if (!has_sub(ld, &m, "norm1", "norm1"))
            break;
    }
    lv->blocks = arena_alloc(&ld->m->mem, (size_t)(n + 1) * sizeof *lv->blocks);
    if (lv->blocks == NULL) {
        ld->status = ld->m->mem.status;
        return;
    }
    for (int j = 0; j < n; j++) {
        struct names m = level_names(up, level, s->n_levels, j);
        lv->blocks[j].res = load_resnet(ld, &m);
    }
    lv->n_blocks = n;
    if (level + 1 == s->n_levels)
        return;
    struct names m =
        up ? names_of("decoder.up.%d.upsample.conv", "decoder.up_blocks.%d.upsamplers.0.conv",
                      s->n_levels - 1 - level, 0, level, 0)
           : names_of("encoder.down.%d.downsample.conv",
                      "encoder.down_blocks.%d.downsamplers.0.conv", level, 0, level, 0);
    lv->sample = load_layer(ld, LAYER_CONV, m.native, m.name, true);
}

static void load_side(struct loader *ld, struct vae_side *s, bool up)
{
    s->n_levels = count_levels(ld, up);
    load_middle(ld, s, up ? "decoder" : "encoder");
    for (int i = 0; i < s->n_levels && ld->status == KRON_OK; i++)
        load_level(ld, s, up, i);
    s->quant = up ? load_layer(ld, LAYER_LINEAR, "post_quant_conv", "post_quant_conv", false)
                  : load_layer(ld, LAYER_LINEAR, "quant_conv", "quant_conv", false);
}

/* sd.cpp's, where it joined parts into one file. */
const char *const vae_prefixes[] = {"vae.", NULL};

kron_status vae_load(struct sd_model *m)
{
    struct loader ld = {.m = m, .part = PART_VAE, .tag = "vae", .prefix = "first_stage_model.",
                        .prefix2 = "", .others = vae_prefixes, .status = KRON_OK};
    struct vae *v = &m->vae;
    const char *config = store_config(m->store, "vae", "scaling_factor");
    double scale;

    load_side(&ld, &v->decoder, true);
    if (loader_has(&ld, "encoder.conv_in", "encoder.conv_in"))
        load_side(&ld, &v->encoder, false);
    KRON_TRY(ld.status);
    if (v->decoder.n_levels < 1 ||
        (v->encoder.conv_in != NULL && v->encoder.n_levels != v->decoder.n_levels))
        return err_set(KRON_ERR_FORMAT, "'%s': a VAE of %d levels down and %d up: expected as "
                       "many, at least 1", v->decoder.conv_in->weight.name, v->encoder.n_levels,
                       v->decoder.n_levels);
    v->latent_channels = (int)v->decoder.conv_in->in;
    v->factor = 1 << (v->decoder.n_levels - 1);
    v->scale = m->arch == KRON_ARCH_SDXL ? 0.13025f : 0.18215f;
    if (config != NULL && str_to_double(config, &scale) && scale > 0)
        v->scale = (float)scale;
    return KRON_OK;
}

/* --- graphs --- */

/* One network being built, and its norms outside the middle, counted. */
struct walk {
    struct graph *g;
    enum vae_part part;
    int n_stats;
};

/* silu(norm(x)), then a convolution. */
static gr_ref norm_conv(struct walk *w, gr_ref x, const struct layer *norm,
                        const struct layer *conv, gr_ref residual)
{
    gr_ref stats;
    char name[16];

    if (w->part == VAE_WHOLE || w->part == VAE_ENDS)
        return gr_norm_conv(w->g, x, norm, NORM_GROUPS, eps, ACT_SILU, conv, residual);
    snprintf(name, sizeof name, "stats%d", w->n_stats++);
    if (w->part == VAE_STATS) {
        stats = gr_norm_stats(w->g, x, NORM_GROUPS, eps);
        gr_output(w->g, stats, name);
    } else {
        struct gr_shape s = gr_shape_of(w->g, x);
        stats = gr_input(w->g, name, GR_F32, (struct gr_shape){s.n, 1, 2, s.c});
    }
    return gr_stats_conv(w->g, x, stats, norm, ACT_SILU, conv, residual);
}

static gr_ref resnet(struct walk *w, gr_ref x, const struct resnet *r)
{
    gr_ref skip = x; /* first: what follows may then lie over x */

    if (r->skip != NULL)
        skip = gr_conv(w->g, x, r->skip, 1, GR_NONE, GR_NONE);
    return norm_conv(w, norm_conv(w, x, r->norm1, r->conv1, GR_NONE), r->norm2, r->conv2, skip);
}

static gr_ref middle_graph(struct walk *w, gr_ref x, const struct vae_side *s)
{
    struct graph *g = w->g;
    gr_ref n, a;

    x = resnet(w, x, &s->mid1);
    n = gr_group_norm(g, x, s->attn_norm, NORM_GROUPS, eps, ACT_NONE);
    a = gr_attention(g, gr_linear(g, n, s->q, ACT_NONE, GR_NONE),
                     gr_linear(g, n, s->k, ACT_NONE, GR_NONE),
                     gr_linear(g, n, s->v, ACT_NONE, GR_NONE), 1, false);
    x = gr_linear(g, a, s->attn_out, ACT_NONE, x);
    return resnet(w, x, &s->mid2);
}

static gr_ref levels_graph(struct walk *w, gr_ref x, const struct vae_side *s, bool up)
{
    for (int i = 0; i < s->n_levels; i++) {
        const struct unet_level *lv = &s->level[i];
        for (int j = 0; j < lv->n_blocks; j++)
            x = resnet(w, x, &lv->blocks[j].res);
        if (lv->sample != NULL)
            x = up ? gr_upsample_conv(w->g, x, lv->sample)
                   : gr_conv_down_asym(w->g, x, lv->sample);
    }
    return x;
}

int64_t vae_features(const struct vae_side *s)
{
    return s->mid2.conv2->out;
}

static void decode_tail(struct walk *w, gr_ref x, const struct vae_side *s)
{
    x = levels_graph(w, x, s, true);
    gr_output(w->g, norm_conv(w, x, s->norm_out, s->conv_out, GR_NONE), "image");
}

void vae_decode_graph(struct graph *g, const struct vae *v, enum vae_part part, int64_t n,
                      int64_t h, int64_t w)
{
    const struct vae_side *s = &v->decoder;
    struct walk wk = {g, part, 0};
    gr_ref x;

    if (part == VAE_STATS || part == VAE_TILE) {
        x = gr_input(g, "features", GR_F32, (struct gr_shape){n, h, w, vae_features(s)});
        decode_tail(&wk, x, s);
        return;
    }
    x = gr_input(g, "latent", GR_F32, (struct gr_shape){n, h, w, v->latent_channels});
    if (s->quant != NULL)
        x = gr_linear(g, x, s->quant, ACT_NONE, GR_NONE);
    x = gr_conv(g, x, s->conv_in, 1, GR_NONE, GR_NONE);
    x = middle_graph(&wk, x, s);
    if (part == VAE_ENDS)
        gr_output(g, x, "features");
    else
        decode_tail(&wk, x, s);
}

static void encode_tail(struct walk *w, gr_ref x, const struct vae_side *s)
{
    x = middle_graph(w, x, s);
    x = norm_conv(w, x, s->norm_out, s->conv_out, GR_NONE);
    if (s->quant != NULL)
        x = gr_linear(w->g, x, s->quant, ACT_NONE, GR_NONE);
    gr_output(w->g, x, "moments");
}

void vae_encode_graph(struct graph *g, const struct vae *v, enum vae_part part, int64_t n,
                      int64_t h, int64_t w)
{
    const struct vae_side *s = &v->encoder;
    struct walk wk = {g, part, 0};
    gr_ref x;

    if (part == VAE_ENDS) {
        x = gr_input(g, "features", GR_F32,
                     (struct gr_shape){n, h / v->factor, w / v->factor, vae_features(s)});
        encode_tail(&wk, x, s);
        return;
    }
    x = gr_input(g, "image", GR_F32, (struct gr_shape){n, h, w, 3});
    x = gr_conv(g, x, s->conv_in, 1, GR_NONE, GR_NONE);
    x = levels_graph(&wk, x, s, false);
    if (part == VAE_WHOLE)
        encode_tail(&wk, x, s);
    else
        gr_output(g, x, "features");
}
