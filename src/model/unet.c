/* SPDX-License-Identifier: MIT
 * The UNet of Stable Diffusion 1, 2 and XL (Rombach et al. 2022, Podell et al. 2023): read from
 * a checkpoint, written as a graph. */
#include "model/blocks.h"
#include <string.h>

static const float eps_resnet = 1e-5f, eps_transformer = 1e-6f;

/* --- layers --- */

static struct resnet load_resnet(struct loader *ld, const struct names *n)
{
    struct resnet r = {
        .norm1 = load_sub(ld, LAYER_NORM, n, "in_layers.0", "norm1", true),
        .conv1 = load_sub(ld, LAYER_CONV, n, "in_layers.2", "conv1", true),
        .emb = load_sub(ld, LAYER_LINEAR, n, "emb_layers.1", "time_emb_proj", true),
        .norm2 = load_sub(ld, LAYER_NORM, n, "out_layers.0", "norm2", true),
        .conv2 = load_sub(ld, LAYER_CONV, n, "out_layers.3", "conv2", true),
        .skip = load_sub(ld, LAYER_CONV, n, "skip_connection", "conv_shortcut", false),
    };

    return r;
}

static bool is_resnet(const struct loader *ld, const struct names *n)
{
    return has_sub(ld, n, "in_layers.0", "norm1");
}

static const struct layer *same(struct loader *ld, enum layer_kind kind, const struct names *n,
                                const char *name)
{
    return load_sub(ld, kind, n, name, name, true);
}

static struct transformer_block load_block(struct loader *ld, const struct names *n)
{
    struct transformer_block b = {
        .norm1 = same(ld, LAYER_NORM, n, "norm1"),
        .q1 = same(ld, LAYER_LINEAR, n, "attn1.to_q"),
        .k1 = same(ld, LAYER_LINEAR, n, "attn1.to_k"),
        .v1 = same(ld, LAYER_LINEAR, n, "attn1.to_v"),
        .out1 = same(ld, LAYER_LINEAR, n, "attn1.to_out.0"),
        .norm2 = same(ld, LAYER_NORM, n, "norm2"),
        .q2 = same(ld, LAYER_LINEAR, n, "attn2.to_q"),
        .k2 = same(ld, LAYER_LINEAR, n, "attn2.to_k"),
        .v2 = same(ld, LAYER_LINEAR, n, "attn2.to_v"),
        .out2 = same(ld, LAYER_LINEAR, n, "attn2.to_out.0"),
        .norm3 = same(ld, LAYER_NORM, n, "norm3"),
        .ff1 = same(ld, LAYER_LINEAR, n, "ff.net.0.proj"),
        .ff2 = same(ld, LAYER_LINEAR, n, "ff.net.2"),
    };

    return b;
}

static bool block_names(const struct loader *ld, const struct names *n, int i, struct names *out)
{
    char sub[48];

    snprintf(sub, sizeof sub, "transformer_blocks.%d", i);
    *out = names_sub(n, sub, sub);
    return has_sub(ld, out, "norm1", "norm1");
}

/* A transformer where the checkpoint has one of that name; n_blocks 0 where it has none. */
static struct transformer load_transformer(struct loader *ld, const struct names *n)
{
    struct transformer t = {0};
    struct names b;

    while (block_names(ld, n, t.n_blocks, &b))
        t.n_blocks++;
    if (t.n_blocks == 0 || ld->status != KRON_OK)
        return t;
    t.norm = same(ld, LAYER_NORM, n, "norm");
    t.proj_in = same(ld, LAYER_LINEAR, n, "proj_in");
    t.blocks = arena_alloc(&ld->m->mem, (size_t)t.n_blocks * sizeof *t.blocks);
    if (t.blocks == NULL) {
        ld->status = ld->m->mem.status;
        return t;
    }
    for (int i = 0; i < t.n_blocks; i++) {
        block_names(ld, n, i, &b);
        t.blocks[i] = load_block(ld, &b);
    }
    t.proj_out = same(ld, LAYER_LINEAR, n, "proj_out");
    return t;
}

/* The blocks of a level: native names count on through all levels in *index. */
static void load_blocks(struct loader *ld, struct unet_level *lv, const char *native,
                        const char *side, int level, int *index)
{
    char res_fmt[64], attn_fmt[64], a[64], b[64];
    int n = 0;

    snprintf(res_fmt, sizeof res_fmt, "%s.%%d.resnets.%%d", side);
    snprintf(attn_fmt, sizeof attn_fmt, "%s.%%d.attentions.%%d", side);
    snprintf(a, sizeof a, "%s.%%d.0", native);
    snprintf(b, sizeof b, "%s.%%d.1", native);
    for (;; n++) {
        struct names r = names_of(a, res_fmt, *index + n, 0, level, n);
        if (!is_resnet(ld, &r))
            break;
    }
    lv->blocks = arena_alloc(&ld->m->mem, (size_t)(n + 1) * sizeof *lv->blocks);
    if (lv->blocks == NULL) {
        ld->status = ld->m->mem.status;
        return;
    }
    for (int j = 0; j < n && ld->status == KRON_OK; j++, (*index)++) {
        struct names r = names_of(a, res_fmt, *index, 0, level, j);
        struct names t = names_of(b, attn_fmt, *index, 0, level, j);
        lv->blocks[j].res = load_resnet(ld, &r);
        lv->blocks[j].attn = load_transformer(ld, &t);
    }
    lv->n_blocks = n;
}

static void load_down(struct loader *ld, struct unet *u)
{
    int index = 1;

    for (int i = 0; i < UNET_MAX_LEVELS && ld->status == KRON_OK; i++) {
        struct unet_level *lv = &u->down[i];
        load_blocks(ld, lv, "input_blocks", "down_blocks", i, &index);
        if (lv->n_blocks == 0)
            break;
        u->n_levels = i + 1;
        struct names s = names_of("input_blocks.%d.0.op", "down_blocks.%d.downsamplers.0.conv",
                                  index, 0, i, 0);
        lv->sample = load_layer(ld, LAYER_CONV, s.native, s.name, false);
        if (lv->sample == NULL)
            break;
        index++;
    }
}

/* The way up has one block more a level; the native file does not mark where a level ends, except
 * by the upsampling in its last block. */
static void load_up(struct loader *ld, struct unet *u)
{
    int index = 0;

    for (int i = 0; i < u->n_levels && ld->status == KRON_OK; i++) {
        struct unet_level *lv = &u->up[i];
        int n = u->down[u->n_levels - 1 - i].n_blocks + 1;
        lv->blocks = arena_alloc(&ld->m->mem, (size_t)n * sizeof *lv->blocks);
        if (lv->blocks == NULL) {
            ld->status = ld->m->mem.status;
            return;
        }
        for (int j = 0; j < n; j++, index++) {
            struct names r =
                names_of("output_blocks.%d.0", "up_blocks.%d.resnets.%d", index, 0, i, j);
            struct names t =
                names_of("output_blocks.%d.1", "up_blocks.%d.attentions.%d", index, 0, i, j);
            lv->blocks[j].res = load_resnet(ld, &r);
            lv->blocks[j].attn = load_transformer(ld, &t);
        }
        lv->n_blocks = n;
        if (i + 1 == u->n_levels)
            break;
        struct names s =
            names_of("output_blocks.%d.%d.conv", "up_blocks.%d.upsamplers.0.conv", index - 1,
                     lv->blocks[n - 1].attn.n_blocks > 0 ? 2 : 1, i, 0);
        lv->sample = load_layer(ld, LAYER_CONV, s.native, s.name, true);
    }
}

static void load_middle(struct loader *ld, struct unet *u)
{
    struct names r1 = names_of("middle_block.0", "mid_block.resnets.0", 0, 0, 0, 0);
    struct names t = names_of("middle_block.1", "mid_block.attentions.0", 0, 0, 0, 0);
    struct names r2 = names_of("middle_block.2", "mid_block.resnets.1", 0, 0, 0, 0);

    u->mid.res = load_resnet(ld, &r1);
    u->mid.attn = load_transformer(ld, &t);
    u->mid2 = load_resnet(ld, &r2);
}

static void load_ends(struct loader *ld, struct unet *u)
{
    u->time1 = load_layer(ld, LAYER_LINEAR, "time_embed.0", "time_embedding.linear_1", true);
    u->time2 = load_layer(ld, LAYER_LINEAR, "time_embed.2", "time_embedding.linear_2", true);
    u->label1 = load_layer(ld, LAYER_LINEAR, "label_emb.0.0", "add_embedding.linear_1", false);
    if (u->label1 != NULL)
        u->label2 = load_layer(ld, LAYER_LINEAR, "label_emb.0.2", "add_embedding.linear_2", true);
    u->conv_in = load_layer(ld, LAYER_CONV, "input_blocks.0.0", "conv_in", true);
    u->norm_out = load_layer(ld, LAYER_NORM, "out.0", "conv_norm_out", true);
    u->conv_out = load_layer(ld, LAYER_CONV, "out.2", "conv_out", true);
}

/* --- heads --- */

static const struct transformer *first_transformer(const struct unet *u)
{
    for (int i = 0; i < u->n_levels; i++)
        for (int j = 0; j < u->down[i].n_blocks; j++)
            if (u->down[i].blocks[j].attn.n_blocks > 0)
                return &u->down[i].blocks[j].attn;
    return u->mid.attn.n_blocks > 0 ? &u->mid.attn : NULL;
}

static kron_status set_heads(struct transformer *t, int heads, int head_dim)
{
    int64_t width;

    if (t->n_blocks == 0)
        return KRON_OK;
    width = t->blocks[0].q1->out;
    t->heads = heads > 0 ? heads : (int)(width / head_dim);
    if (t->heads < 1 || width % t->heads != 0)
        return err_set(KRON_ERR_SHAPE, "attention of width %lld ('%s') cannot be cut into heads: "
                       "%s is %d", (long long)width, t->blocks[0].q1->name,
                       heads > 0 ? "unet.heads" : "unet.head_dim", heads > 0 ? heads : head_dim);
    return KRON_OK;
}

/* SD1 has 8 heads on every level, SD2 and SDXL 64 channels a head. */
static kron_status find_heads(const struct loader *ld, struct unet *u)
{
    bool sd1 = ld->m->arch == KRON_ARCH_SD1;
    int dim = loader_int(ld, "unet.head_dim", NULL, sd1 ? 0 : 64);
    int heads = loader_int(ld, "unet.heads", NULL, dim ? 0 : 8);

    for (int i = 0; i < u->n_levels; i++) {
        for (int j = 0; j < u->down[i].n_blocks; j++)
            KRON_TRY(set_heads(&u->down[i].blocks[j].attn, heads, dim));
        for (int j = 0; j < u->up[i].n_blocks; j++)
            KRON_TRY(set_heads(&u->up[i].blocks[j].attn, heads, dim));
    }
    return set_heads(&u->mid.attn, heads, dim);
}

static kron_arch find_arch(const struct unet *u)
{
    const struct transformer *t = first_transformer(u);

    if (u->label1 != NULL)
        return KRON_ARCH_SDXL;
    /* The width of the text first: converters make proj_in a convolution or a matrix at will. */
    if (u->context_width == 768 || u->context_width == 1024)
        return u->context_width == 768 ? KRON_ARCH_SD1 : KRON_ARCH_SD2;
    return t != NULL && !t->proj_in->is_conv ? KRON_ARCH_SD2 : KRON_ARCH_SD1;
}

kron_status unet_load(struct sd_model *m)
{
    struct loader ld = {.m = m, .part = PART_UNET, .tag = "unet",
                        .prefix = "model.diffusion_model.", .prefix2 = "", .status = KRON_OK};
    struct unet *u = &m->unet;
    const struct transformer *t;

    load_ends(&ld, u);
    load_down(&ld, u);
    load_middle(&ld, u);
    load_up(&ld, u);
    KRON_TRY(ld.status);
    t = first_transformer(u);
    if (u->n_levels < 1 || t == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "the UNet has %d levels and %s attention: not a "
                       "Stable Diffusion 1, 2 or XL network", u->n_levels, t ? "some" : "no");
    u->in_channels = (int)u->conv_in->in;
    u->context_width = (int)t->blocks[0].k2->in;
    m->arch = find_arch(u);
    return find_heads(&ld, u);
}

/* --- graph --- */

struct walk {
    struct graph *g;
    gr_ref context, time_silu;
    bool taps, seen_attention;
};

static void tap(struct walk *w, gr_ref v, const char *name)
{
    if (w->taps)
        gr_output(w->g, v, name);
}

static gr_ref attention(struct walk *w, gr_ref x, gr_ref norm, gr_ref kv, int heads,
                        const struct layer *q, const struct layer *k, const struct layer *v,
                        const struct layer *out)
{
    struct graph *g = w->g;
    gr_ref a = gr_linear(g, norm, q, ACT_NONE, GR_NONE);
    gr_ref b = gr_linear(g, kv, k, ACT_NONE, GR_NONE);
    gr_ref c = gr_linear(g, kv, v, ACT_NONE, GR_NONE);

    return gr_linear(g, gr_attention(g, a, b, c, heads, false), out, ACT_NONE, x);
}

static gr_ref block_graph(struct walk *w, gr_ref x, const struct transformer_block *b, int heads)
{
    struct graph *g = w->g;
    gr_ref n = gr_layer_norm(g, x, b->norm1, 1e-5f);

    x = attention(w, x, n, n, heads, b->q1, b->k1, b->v1, b->out1);
    n = gr_layer_norm(g, x, b->norm2, 1e-5f);
    x = attention(w, x, n, w->context, heads, b->q2, b->k2, b->v2, b->out2);
    n = gr_layer_norm(g, x, b->norm3, 1e-5f);
    return gr_linear(g, gr_geglu(g, n, b->ff1), b->ff2, ACT_NONE, x);
}

static gr_ref transformer_graph(struct walk *w, gr_ref x, const struct transformer *t)
{
    struct graph *g = w->g;
    gr_ref h = gr_group_norm(g, x, t->norm, NORM_GROUPS, eps_transformer, ACT_NONE);

    h = gr_linear(g, h, t->proj_in, ACT_NONE, GR_NONE);
    gr_trunk(g);
    for (int i = 0; i < t->n_blocks; i++)
        h = block_graph(w, h, &t->blocks[i], t->heads);
    h = gr_linear(g, h, t->proj_out, ACT_NONE, x);
    gr_trunk(g);
    if (!w->seen_attention)
        tap(w, h, "first_attention");
    w->seen_attention = true;
    return h;
}

static gr_ref unet_block_graph(struct walk *w, gr_ref x, const struct unet_block *b)
{
    x = resnet_graph(w->g, x, &b->res, w->time_silu, eps_resnet);
    return b->attn.n_blocks > 0 ? transformer_graph(w, x, &b->attn) : x;
}

/* silu of the embedding of time step and, SDXL, of sizes and pooled text */
static gr_ref time_graph(struct walk *w, const struct unet *u, int64_t n)
{
    struct graph *g = w->g;
    gr_ref t = gr_input(g, "t", GR_F32, (struct gr_shape){n, 1, 1, 1});
    gr_ref e = gr_linear(g, gr_timestep(g, t, (int)u->time1->in), u->time1, ACT_SILU, GR_NONE);

    e = gr_linear(g, e, u->time2, ACT_NONE, GR_NONE);
    tap(w, e, "time");
    if (u->label1 != NULL) {
        gr_ref pooled = gr_input(g, "pooled", GR_F32, (struct gr_shape){n, 1, 1, u->pooled_width});
        gr_ref sizes = gr_input(g, "sizes", GR_F32, (struct gr_shape){n, 1, 1, 6});
        gr_steady(g, pooled);
        gr_steady(g, sizes);
        gr_ref y = gr_concat(g, pooled, gr_timestep(g, sizes, u->size_dim));
        y = gr_linear(g, y, u->label1, ACT_SILU, GR_NONE);
        y = gr_linear(g, y, u->label2, ACT_NONE, GR_NONE);
        tap(w, y, "label");
        e = gr_add(g, e, y);
    }
    return gr_act(g, e, ACT_SILU);
}

enum { MAX_SKIPS = 128 };

struct skips {
    gr_ref at[MAX_SKIPS];
    int n;
};

static void push(struct skips *s, gr_ref v)
{
    if (s->n < MAX_SKIPS)
        s->at[s->n++] = v;
}

static gr_ref down_graph(struct walk *w, const struct unet *u, gr_ref h, struct skips *skips)
{
    char name[16];

    for (int i = 0; i < u->n_levels; i++) {
        const struct unet_level *lv = &u->down[i];
        for (int j = 0; j < lv->n_blocks; j++)
            push(skips, h = unet_block_graph(w, h, &lv->blocks[j]));
        if (lv->sample != NULL)
            push(skips, h = gr_conv(w->g, h, lv->sample, 2, GR_NONE, GR_NONE));
        snprintf(name, sizeof name, "down%d", i);
        tap(w, h, name);
    }
    return h;
}

static gr_ref up_graph(struct walk *w, const struct unet *u, gr_ref h, struct skips *skips)
{
    char name[16];

    for (int i = 0; i < u->n_levels; i++) {
        const struct unet_level *lv = &u->up[i];
        for (int j = 0; j < lv->n_blocks; j++) {
            gr_ref skip = skips->n > 0 ? skips->at[--skips->n] : GR_NONE;
            h = unet_block_graph(w, gr_concat(w->g, h, skip), &lv->blocks[j]);
        }
        if (lv->sample != NULL && skips->n > 0) {
            /* To the size of the next skip, which is odd where the input was. */
            struct gr_shape s = gr_shape_of(w->g, skips->at[skips->n - 1]);
            h = gr_upsample(w->g, h, s.h, s.w);
            h = gr_conv(w->g, h, lv->sample, 1, GR_NONE, GR_NONE);
        }
        snprintf(name, sizeof name, "up%d", i);
        tap(w, h, name);
    }
    return h;
}

void unet_graph(struct graph *g, const struct unet *u, int64_t n, int64_t h, int64_t w,
                int64_t tokens, bool taps)
{
    struct walk wk = {.g = g, .taps = taps};
    struct skips skips = {.n = 0};
    gr_ref x = gr_input(g, "x", GR_F32, (struct gr_shape){n, h, w, u->in_channels});

    wk.context = gr_input(g, "context", GR_F32, (struct gr_shape){n, 1, tokens, u->context_width});
    gr_steady(g, wk.context);
    wk.time_silu = time_graph(&wk, u, n);
    x = gr_conv(g, x, u->conv_in, 1, GR_NONE, GR_NONE);
    tap(&wk, x, "conv_in");
    push(&skips, x);
    x = down_graph(&wk, u, x, &skips);
    x = unet_block_graph(&wk, x, &u->mid);
    x = resnet_graph(g, x, &u->mid2, wk.time_silu, eps_resnet);
    tap(&wk, x, "mid");
    x = up_graph(&wk, u, x, &skips);
    x = gr_group_norm(g, x, u->norm_out, NORM_GROUPS, eps_resnet, ACT_SILU);
    x = gr_conv(g, x, u->conv_out, 1, GR_NONE, GR_NONE);
    gr_output(g, x, "out");
}
