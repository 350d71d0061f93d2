/* SPDX-License-Identifier: MIT
 * Names and shapes of all tensors of a full-size checkpoint (Rombach et al. 2022, Podell et al.
 * 2023; Radford et al. 2021), derived from a handful of numbers. */
#include "bench.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unet_config {
    int levels, channels[4], depth[4], mid_depth, context, vector; /* vector: SDXL's label_emb */
    bool linear; /* proj_in and proj_out are linear, not 1x1 convolutions */
};

static const struct unet_config unets[] = {
    [BENCH_SD15] = {4, {320, 640, 1280, 1280}, {1, 1, 1, 0}, 1, 768, 0, false},
    [BENCH_SDXL] = {3, {320, 640, 1280}, {0, 2, 10}, 10, 2048, 2816, true},
};

/* In front of a full VAE, so that a run is little more than decoding. */
static const struct unet_config small_unet = {4, {32, 32, 32, 32}, {0, 0, 1, 0}, 1, 768, 0, false};

enum { BLOCKS = 2, VAE_LEVELS = 4, TOKENS = 49408, WINDOW = 77 };
static const int vae_channels[VAE_LEVELS] = {128, 256, 512, 512};

const char *bench_arch_name(enum bench_arch a)
{
    return a == BENCH_SDXL ? "sdxl" : "sd15";
}

int64_t shape_numbers(const struct shape *s)
{
    int64_t n = 1;
    for (int i = 0; i < s->n_dims; i++)
        n *= s->dim[i];
    return n;
}

static struct shape *room_for_one(struct shape_list *list)
{
    static struct shape spare;
    if (list->n == list->cap) {
        int cap = list->cap > 0 ? 2 * list->cap : 1024;
        struct shape *more = realloc(list->at, (size_t)cap * sizeof *more);
        if (more == NULL) {
            list->failed = true;
            return &spare;
        }
        list->at = more;
        list->cap = cap;
    }
    return &list->at[list->n++];
}

static void fill_in(struct shape *s, enum fill fill, int n_dims, const int64_t *dim)
{
    memset(s, 0, sizeof *s);
    s->fill = fill;
    s->n_dims = n_dims;
    for (int i = 0; i < n_dims; i++)
        s->dim[i] = dim[i];
}

struct shape *shapes_add(struct shape_list *list, enum fill fill, int n_dims, const int64_t *dim,
                         const char *fmt, ...)
{
    struct shape *s = room_for_one(list);
    va_list args;
    fill_in(s, fill, n_dims, dim);
    va_start(args, fmt);
    vsnprintf(s->name, sizeof s->name, fmt, args);
    va_end(args);
    return s;
}

void shapes_free(struct shape_list *list)
{
    free(list->at);
    *list = (struct shape_list){0};
}

/* --- layers --- */

/* Where a network's tensors go: prefix of all names, and whether adapters are made for them. */
struct writer {
    struct shape_list *list;
    const char *prefix;
    bool unet;
};

static void bias(const struct writer *w, const char *name, int out)
{
    shapes_add(w->list, FILL_SMALL, 1, &(int64_t){out}, "%s%s.bias", w->prefix, name);
}

static void linear(const struct writer *w, const char *name, int out, int in, bool with_bias)
{
    int64_t dim[2] = {out, in};
    shapes_add(w->list, FILL_WEIGHT, 2, dim, "%s%s.weight", w->prefix, name)->unet_layer = w->unet;
    if (with_bias)
        bias(w, name, out);
}

static void conv(const struct writer *w, const char *name, int out, int in, int kernel)
{
    int64_t dim[4] = {out, in, kernel, kernel};
    shapes_add(w->list, FILL_WEIGHT, 4, dim, "%s%s.weight", w->prefix, name)->unet_layer = w->unet;
    bias(w, name, out);
}

static void norm(const struct writer *w, const char *name, int channels)
{
    shapes_add(w->list, FILL_NORM, 1, &(int64_t){channels}, "%s%s.weight", w->prefix, name);
    bias(w, name, channels);
}

enum { NAME = 96 };

/* base.sub, in one of a few buffers that take turns. */
static const char *join(const char *base, const char *sub)
{
    static char ring[4][NAME];
    static int next;
    char *out = ring[next++ & 3];
    snprintf(out, NAME, "%.60s.%.30s", base, sub);
    return out;
}

/* --- UNet --- */

static void unet_resnet(const struct writer *w, const struct unet_config *c, const char *name,
                        int in, int out)
{
    norm(w, join(name, "in_layers.0"), in);
    conv(w, join(name, "in_layers.2"), out, in, 3);
    linear(w, join(name, "emb_layers.1"), out, 4 * c->channels[0], true);
    norm(w, join(name, "out_layers.0"), out);
    conv(w, join(name, "out_layers.3"), out, out, 3);
    if (in != out)
        conv(w, join(name, "skip_connection"), out, in, 1);
}

static void attention(const struct writer *w, const char *block, const char *name, int width,
                      int context)
{
    char base[NAME];
    snprintf(base, sizeof base, "%s.%s", block, name);
    linear(w, join(base, "to_q"), width, width, false);
    linear(w, join(base, "to_k"), width, context, false);
    linear(w, join(base, "to_v"), width, context, false);
    linear(w, join(base, "to_out.0"), width, width, true);
}

static void transformer(const struct writer *w, const struct unet_config *c, const char *name,
                        int width, int depth)
{
    char block[NAME];
    norm(w, join(name, "norm"), width);
    if (c->linear)
        linear(w, join(name, "proj_in"), width, width, true);
    else
        conv(w, join(name, "proj_in"), width, width, 1);
    for (int i = 0; i < depth; i++) {
        snprintf(block, sizeof block, "%.60s.transformer_blocks.%d", name, i);
        attention(w, block, "attn1", width, width);
        attention(w, block, "attn2", width, c->context);
        linear(w, join(block, "ff.net.0.proj"), 8 * width, width, true);
        linear(w, join(block, "ff.net.2"), width, 4 * width, true);
        norm(w, join(block, "norm1"), width);
        norm(w, join(block, "norm2"), width);
        norm(w, join(block, "norm3"), width);
    }
    if (c->linear)
        linear(w, join(name, "proj_out"), width, width, true);
    else
        conv(w, join(name, "proj_out"), width, width, 1);
}

/* Channels of the outputs on the way down, which the way up takes back. */
struct skips {
    int channels[16], n;
};

static int unet_down(const struct writer *w, const struct unet_config *c, struct skips *skips)
{
    char name[NAME];
    int in = c->channels[0], index = 1;
    skips->channels[skips->n++] = in;
    for (int i = 0; i < c->levels; i++) {
        for (int j = 0; j < BLOCKS; j++, index++) {
            snprintf(name, sizeof name, "input_blocks.%d.0", index);
            unet_resnet(w, c, name, in, c->channels[i]);
            in = c->channels[i];
            snprintf(name, sizeof name, "input_blocks.%d.1", index);
            if (c->depth[i] > 0)
                transformer(w, c, name, in, c->depth[i]);
            skips->channels[skips->n++] = in;
        }
        if (i + 1 == c->levels)
            break;
        snprintf(name, sizeof name, "input_blocks.%d.0.op", index++);
        conv(w, name, in, in, 3);
        skips->channels[skips->n++] = in;
    }
    return in;
}

static void unet_up(const struct writer *w, const struct unet_config *c, struct skips *skips,
                    int in)
{
    char name[NAME];
    int index = 0;
    for (int i = c->levels - 1; i >= 0; i--)
        for (int j = 0; j <= BLOCKS; j++, index++) {
            snprintf(name, sizeof name, "output_blocks.%d.0", index);
            unet_resnet(w, c, name, in + skips->channels[--skips->n], c->channels[i]);
            in = c->channels[i];
            snprintf(name, sizeof name, "output_blocks.%d.1", index);
            if (c->depth[i] > 0)
                transformer(w, c, name, in, c->depth[i]);
            snprintf(name, sizeof name, "output_blocks.%d.%d.conv", index, c->depth[i] > 0 ? 2 : 1);
            if (j == BLOCKS && i > 0)
                conv(w, name, in, in, 3);
        }
}

static void unet(struct shape_list *list, const struct unet_config *c)
{
    struct writer w = {list, "model.diffusion_model.", true};
    struct skips skips = {{0}, 0};
    int base = c->channels[0], in;
    linear(&w, "time_embed.0", 4 * base, base, true);
    linear(&w, "time_embed.2", 4 * base, 4 * base, true);
    if (c->vector > 0) {
        linear(&w, "label_emb.0.0", 4 * base, c->vector, true);
        linear(&w, "label_emb.0.2", 4 * base, 4 * base, true);
    }
    conv(&w, "input_blocks.0.0", base, 4, 3);
    in = unet_down(&w, c, &skips);
    unet_resnet(&w, c, "middle_block.0", in, in);
    transformer(&w, c, "middle_block.1", in, c->mid_depth);
    unet_resnet(&w, c, "middle_block.2", in, in);
    unet_up(&w, c, &skips, in);
    norm(&w, "out.0", base);
    conv(&w, "out.2", 4, base, 3);
}

/* --- VAE --- */

static void vae_resnet(const struct writer *w, const char *name, int in, int out)
{
    norm(w, join(name, "norm1"), in);
    conv(w, join(name, "conv1"), out, in, 3);
    norm(w, join(name, "norm2"), out);
    conv(w, join(name, "conv2"), out, out, 3);
    if (in != out)
        conv(w, join(name, "nin_shortcut"), out, in, 1);
}

static void vae_middle(const struct writer *w, int channels)
{
    vae_resnet(w, "mid.block_1", channels, channels);
    norm(w, "mid.attn_1.norm", channels);
    conv(w, "mid.attn_1.q", channels, channels, 1);
    conv(w, "mid.attn_1.k", channels, channels, 1);
    conv(w, "mid.attn_1.v", channels, channels, 1);
    conv(w, "mid.attn_1.proj_out", channels, channels, 1);
    vae_resnet(w, "mid.block_2", channels, channels);
}

static void vae_encoder(struct shape_list *list)
{
    struct writer w = {list, "first_stage_model.encoder.", false};
    char name[NAME];
    int in = vae_channels[0];
    conv(&w, "conv_in", in, 3, 3);
    for (int i = 0; i < VAE_LEVELS; i++) {
        for (int j = 0; j < BLOCKS; j++) {
            snprintf(name, sizeof name, "down.%d.block.%d", i, j);
            vae_resnet(&w, name, in, vae_channels[i]);
            in = vae_channels[i];
        }
        snprintf(name, sizeof name, "down.%d.downsample.conv", i);
        if (i + 1 < VAE_LEVELS)
            conv(&w, name, in, in, 3);
    }
    vae_middle(&w, in);
    norm(&w, "norm_out", in);
    conv(&w, "conv_out", 8, in, 3);
}

static void vae_decoder(struct shape_list *list)
{
    struct writer w = {list, "first_stage_model.decoder.", false};
    char name[NAME];
    int in = vae_channels[VAE_LEVELS - 1];
    conv(&w, "conv_in", in, 4, 3);
    vae_middle(&w, in);
    for (int i = VAE_LEVELS - 1; i >= 0; i--) {
        for (int j = 0; j <= BLOCKS; j++) {
            snprintf(name, sizeof name, "up.%d.block.%d", i, j);
            vae_resnet(&w, name, in, vae_channels[i]);
            in = vae_channels[i];
        }
        snprintf(name, sizeof name, "up.%d.upsample.conv", i);
        if (i > 0)
            conv(&w, name, in, in, 3);
    }
    norm(&w, "norm_out", in);
    conv(&w, "conv_out", 3, in, 3);
}

static void vae(struct shape_list *list)
{
    struct writer w = {list, "first_stage_model.", false};
    vae_encoder(list);
    vae_decoder(list);
    conv(&w, "quant_conv", 8, 8, 1);
    conv(&w, "post_quant_conv", 4, 4, 1);
}

/* --- text encoders --- */

static void table(const struct writer *w, const char *name, int rows, int width)
{
    int64_t dim[2] = {rows, width};
    shapes_add(w->list, FILL_SMALL, 2, dim, "%s%s", w->prefix, name);
}

static void clip_l(struct shape_list *list, const char *prefix)
{
    static const char *const parts[] = {"k_proj", "v_proj", "q_proj", "out_proj"};
    struct writer w = {list, prefix, false};
    const int width = 768;
    char layer[NAME];
    table(&w, "embeddings.token_embedding.weight", TOKENS, width);
    table(&w, "embeddings.position_embedding.weight", WINDOW, width);
    for (int i = 0; i < 12; i++) {
        snprintf(layer, sizeof layer, "encoder.layers.%d.self_attn", i);
        for (int p = 0; p < 4; p++)
            linear(&w, join(layer, parts[p]), width, width, true);
        snprintf(layer, sizeof layer, "encoder.layers.%d", i);
        norm(&w, join(layer, "layer_norm1"), width);
        linear(&w, join(layer, "mlp.fc1"), 4 * width, width, true);
        linear(&w, join(layer, "mlp.fc2"), width, 4 * width, true);
        norm(&w, join(layer, "layer_norm2"), width);
    }
    norm(&w, "final_layer_norm", width);
}

static void clip_bigg(struct shape_list *list, const char *prefix)
{
    struct writer w = {list, prefix, false};
    const int width = 1280;
    int64_t qkv[2] = {3 * width, width}, square[2] = {width, width};
    char layer[NAME];
    table(&w, "positional_embedding", WINDOW, width);
    table(&w, "token_embedding.weight", TOKENS, width);
    shapes_add(list, FILL_WEIGHT, 2, square, "%stext_projection", prefix);
    for (int i = 0; i < 32; i++) {
        snprintf(layer, sizeof layer, "transformer.resblocks.%d", i);
        norm(&w, join(layer, "ln_1"), width);
        shapes_add(list, FILL_WEIGHT, 2, qkv, "%s%s.attn.in_proj_weight", prefix, layer);
        shapes_add(list, FILL_SMALL, 1, qkv, "%s%s.attn.in_proj_bias", prefix, layer);
        linear(&w, join(layer, "attn.out_proj"), width, width, true);
        norm(&w, join(layer, "ln_2"), width);
        linear(&w, join(layer, "mlp.c_fc"), 4 * width, width, true);
        linear(&w, join(layer, "mlp.c_proj"), width, 4 * width, true);
    }
    norm(&w, "ln_final", width);
}

static bool made(struct shape_list *list)
{
    if (!list->failed)
        return true;
    shapes_free(list);
    return complain("out of memory for the list of tensors");
}

bool shapes_make(struct shape_list *list, enum bench_arch arch)
{
    *list = (struct shape_list){0};
    unet(list, &unets[arch]);
    vae(list);
    if (arch == BENCH_SDXL) {
        clip_l(list, "conditioner.embedders.0.transformer.text_model.");
        clip_bigg(list, "conditioner.embedders.1.model.");
    } else {
        clip_l(list, "cond_stage_model.transformer.text_model.");
    }
    return made(list);
}

bool shapes_make_vae(struct shape_list *list)
{
    *list = (struct shape_list){0};
    unet(list, &small_unet);
    vae(list);
    clip_l(list, "cond_stage_model.transformer.text_model.");
    return made(list);
}
