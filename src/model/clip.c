/* SPDX-License-Identifier: MIT
 * CLIP's text encoders: CLIP-L (Radford et al. 2021), OpenCLIP-H and -bigG. */
#include "model/blocks.h"
#include <string.h>

static const float eps = 1e-5f;

/* --- layers --- */

/* OpenCLIP files stack q, k and v in one tensor: each becomes a layer of its own on a window of
 * rows, so that adapters trained on either layout find their layers. */
static const struct layer *load_qkv(struct loader *ld, const struct names *n, bool open_clip,
                                    int which)
{
    static const char *const native[3] = {"attn.q_proj", "attn.k_proj", "attn.v_proj"};
    static const char *const name[3] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    struct names own = names_sub(n, open_clip ? native[which] : name[which], name[which]);
    char fused[192], fused2[192];
    const struct tensor *w, *b;
    struct tensor weight, bias;

    snprintf(fused, sizeof fused, "%s.attn.in_proj_weight", n->native);
    snprintf(fused2, sizeof fused2, "%s.self_attn.in_proj.weight", n->name);
    w = loader_tensor(ld, fused, fused2);
    if (w == NULL)
        return load_layer(ld, LAYER_LINEAR, own.native, own.name, true);
    snprintf(fused, sizeof fused, "%s.attn.in_proj_bias", n->native);
    snprintf(fused2, sizeof fused2, "%s.self_attn.in_proj.bias", n->name);
    b = loader_tensor(ld, fused, fused2);
    if (w->n_dims != 2 || w->dim[0] != 3 * w->dim[1] || b == NULL ||
        tensor_elements(b) != w->dim[0]) {
        ld->status = err_set(KRON_ERR_SHAPE, "tensor '%s': expected [3 * width, width] and a bias "
                             "of as many rows", w->name);
        return NULL;
    }
    weight = tensor_rows(w, which * w->dim[1], w->dim[1]);
    bias = tensor_rows(b, which * w->dim[1], w->dim[1]);
    return add_layer(ld, LAYER_LINEAR, own.native, own.name, &weight, &bias);
}

/* The three under the names that they have as one projection. */
static void alias_qkv(struct loader *ld, const struct names *n, const struct clip_layer *l)
{
    static const char *const ends[2] = {"in_proj", "in_proj_weight"};
    const struct layer *qkv[3] = {l->q, l->k, l->v};
    char native[192], name[192];

    for (int i = 0; i < 2; i++) {
        snprintf(native, sizeof native, "%s.attn.%s", n->native, ends[i]);
        snprintf(name, sizeof name, "%s.self_attn.%s", n->name, ends[i]);
        add_alias(ld, native, name, qkv, 3);
    }
}

/* OpenCLIP has names of its own; CLIP-L's are transformers' in single files too. */
static struct names block_names(bool open_clip, int i)
{
    return names_of(open_clip ? "transformer.resblocks.%d" : "encoder.layers.%d",
                    "encoder.layers.%d", i, 0, i, 0);
}

static const struct layer *load_part(struct loader *ld, enum layer_kind kind,
                                     const struct names *n, bool open_clip, const char *native,
                                     const char *name)
{
    return load_sub(ld, kind, n, open_clip ? native : name, name, true);
}

static struct clip_layer load_clip_layer(struct loader *ld, bool open, int i)
{
    struct names n = block_names(open, i);
    struct clip_layer l = {
        .norm1 = load_part(ld, LAYER_NORM, &n, open, "ln_1", "layer_norm1"),
        .q = load_qkv(ld, &n, open, 0),
        .k = load_qkv(ld, &n, open, 1),
        .v = load_qkv(ld, &n, open, 2),
        .out = load_part(ld, LAYER_LINEAR, &n, open, "attn.out_proj", "self_attn.out_proj"),
        .norm2 = load_part(ld, LAYER_NORM, &n, open, "ln_2", "layer_norm2"),
        .fc1 = load_part(ld, LAYER_LINEAR, &n, open, "mlp.c_fc", "mlp.fc1"),
        .fc2 = load_part(ld, LAYER_LINEAR, &n, open, "mlp.c_proj", "mlp.fc2"),
    };

    alias_qkv(ld, &n, &l);
    return l;
}

static int count_layers(const struct loader *ld, bool open_clip)
{
    int n = 0;

    for (;; n++) {
        struct names l = block_names(open_clip, n);
        if (!has_sub(ld, &l, open_clip ? "ln_1" : "layer_norm1", "layer_norm1"))
            return n;
    }
}

static void load_position(struct loader *ld, struct clip *c)
{
    const char *name = "embeddings.position_embedding";
    const struct tensor *bare = loader_tensor(ld, "positional_embedding", "positional_embedding");

    if (bare != NULL)
        c->position = add_layer(ld, LAYER_EMBED, "positional_embedding", name, bare, NULL);
    else
        c->position = load_layer(ld, LAYER_EMBED, name, name, true);
}

static void load_projection(struct loader *ld, struct clip *c)
{
    const struct tensor *open = loader_tensor(ld, "text_projection", "text_projection");
    /* In transformers' files it stands beside text_model, not in it. */
    const struct tensor *hf = store_find(ld->m->store, ld->tag, "text_projection.weight");

    if (hf == NULL)
        hf = store_find(ld->m->store, "",
                        "text_encoders.clip_g.transformer.text_projection.weight");
    c->projection_in_out = open != NULL;
    if (open != NULL && open->n_dims == 2 && open->dim[0] == c->width)
        c->projection = *open;
    else if (open == NULL && hf != NULL && hf->n_dims == 2 && hf->dim[1] == c->width)
        c->projection = *hf;
}

static kron_status check_widths(const struct clip *c)
{
    if (c->width % c->heads != 0 || c->position->in != c->width)
        return err_set(KRON_ERR_SHAPE, "text encoder '%s' of width %d: does not fit %d heads or "
                       "the position table of width %lld", c->token->weight.name, c->width,
                       c->heads, (long long)c->position->in);
    if (c->token->out < 49408 || c->position->out < 77)
        return err_set(KRON_ERR_SHAPE, "text encoder '%s': %lld tokens and %lld positions, "
                       "expected at least 49408 and 77", c->token->weight.name,
                       (long long)c->token->out, (long long)c->position->out);
    return KRON_OK;
}

static kron_status load_one(struct loader *ld, struct clip *c, bool open_clip,
                            const char *heads_key)
{
    c->token = load_layer(ld, LAYER_EMBED,
                          open_clip ? "token_embedding" : "embeddings.token_embedding",
                          "embeddings.token_embedding", true);
    load_position(ld, c);
    c->n_layers = count_layers(ld, open_clip);
    c->layers = arena_alloc(&ld->m->mem, (size_t)(c->n_layers + 1) * sizeof *c->layers);
    if (c->layers == NULL)
        return ld->m->mem.status;
    for (int i = 0; i < c->n_layers && ld->status == KRON_OK; i++)
        c->layers[i] = load_clip_layer(ld, open_clip, i);
    c->norm = load_layer(ld, LAYER_NORM, open_clip ? "ln_final" : "final_layer_norm",
                         "final_layer_norm", true);
    KRON_TRY(ld->status);
    if (c->n_layers < 1)
        return err_set(KRON_ERR_FORMAT, "%s: a text encoder without layers",
                       c->token->weight.name);
    c->width = (int)c->token->in;
    c->heads = loader_int(ld, heads_key, "num_attention_heads", (c->width + 63) / 64);
    c->act = open_clip ? ACT_GELU : ACT_QUICK_GELU;
    c->pad_id = open_clip ? 0 : 49407;
    load_projection(ld, c);
    return check_widths(c);
}

/* Before transformers' names, in files that sd.cpp converted: whole, or joined from parts. */
static const char *const names_l[] = {"cond_stage_model.transformer.text_model.",
                                      "text_encoders.clip_l.transformer.text_model.", NULL};
static const char *const names_g[] = {"cond_stage_model.1.transformer.text_model.",
                                      "text_encoders.clip_g.transformer.text_model.", NULL};

static kron_status load_sd1(struct sd_model *m)
{
    struct loader ld = {.m = m, .part = PART_TE0, .tag = "text_encoder",
                        .prefix = "cond_stage_model.transformer.text_model.",
                        .prefix2 = "text_model.", .others = names_l, .status = KRON_OK};

    /* Some tools leave out text_model. */
    if (store_find(m->store, "", "cond_stage_model.transformer.final_layer_norm.weight") != NULL)
        ld.prefix = "cond_stage_model.transformer.";
    m->n_te = 1;
    m->te[0].default_skip = 1;
    m->te[0].final_norm = true;
    return load_one(&ld, &m->te[0], false, "te0.heads");
}

static kron_status load_sd2(struct sd_model *m)
{
    struct loader ld = {.m = m, .part = PART_TE0, .tag = "text_encoder",
                        .prefix = "cond_stage_model.model.", .prefix2 = "text_model.",
                        .others = names_l, .status = KRON_OK};

    m->n_te = 1;
    m->te[0].default_skip = 2;
    m->te[0].final_norm = true;
    KRON_TRY(load_one(&ld, &m->te[0], true, "te0.heads"));
    /* A diffusers folder holds SD2's encoder without its last layer, which is never used, and so
     * may what is converted. */
    if (m->te[0].n_layers == 23)
        m->te[0].default_skip = 1;
    return KRON_OK;
}

static kron_status load_sdxl(struct sd_model *m)
{
    struct loader l = {.m = m, .part = PART_TE0, .tag = "text_encoder",
                       .prefix = "conditioner.embedders.0.transformer.text_model.",
                       .prefix2 = "text_model.", .others = names_l, .status = KRON_OK};
    struct loader g = {.m = m, .part = PART_TE1, .tag = "text_encoder_2",
                       .prefix = "conditioner.embedders.1.model.", .prefix2 = "text_model.",
                       .others = names_g, .status = KRON_OK};

    m->n_te = 2;
    m->te[0].default_skip = m->te[1].default_skip = 2;
    KRON_TRY(load_one(&l, &m->te[0], false, "te0.heads"));
    KRON_TRY(load_one(&g, &m->te[1], true, "te1.heads"));
    if (m->te[1].projection.data == NULL)
        return err_set(KRON_ERR_FORMAT, "%s: tensor 'text_projection' is missing or not of the "
                       "text encoder's width %d", m->te[1].token->weight.name, m->te[1].width);
    return KRON_OK;
}

kron_status clip_load(struct sd_model *m)
{
    switch (m->arch) {
    case KRON_ARCH_SD1:
        return load_sd1(m);
    case KRON_ARCH_SD2:
        return load_sd2(m);
    case KRON_ARCH_SDXL:
        break;
    }
    return load_sdxl(m);
}

/* --- graph --- */

static gr_ref layer_graph(struct graph *g, gr_ref x, const struct clip *c,
                          const struct clip_layer *l)
{
    gr_ref n = gr_layer_norm(g, x, l->norm1, eps), a;

    a = gr_attention(g, gr_linear(g, n, l->q, ACT_NONE, GR_NONE),
                     gr_linear(g, n, l->k, ACT_NONE, GR_NONE),
                     gr_linear(g, n, l->v, ACT_NONE, GR_NONE), c->heads, true);
    x = gr_linear(g, a, l->out, ACT_NONE, x);
    n = gr_layer_norm(g, x, l->norm2, eps);
    return gr_linear(g, gr_linear(g, n, l->fc1, c->act, GR_NONE), l->fc2, ACT_NONE, x);
}

void clip_graph(struct graph *g, const struct clip *c, int64_t n, int skip, int64_t extra,
                bool final, bool taps)
{
    gr_ref ids = gr_input(g, "ids", GR_I32, (struct gr_shape){n, 1, 77, 1});
    gr_ref more = extra == 0 ? GR_NONE
                             : gr_input(g, "extra", GR_F32,
                                        (struct gr_shape){1, 1, extra, c->token->in});
    gr_ref x = gr_embed(g, ids, more, c->token, c->position), context = GR_NONE;
    int wanted = c->n_layers - (skip < 1 ? c->default_skip : skip) + 1;
    char name[24];

    wanted = wanted < 0 ? 0 : wanted; /* skipping all layers leaves the embeddings */
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, "hidden%d", i);
        if (taps)
            gr_output(g, x, name);
        if (i == wanted)
            context = x;
        if (i == (final || taps ? c->n_layers : wanted))
            break;
        x = layer_graph(g, x, c, &c->layers[i]);
    }
    if (c->final_norm) {
        context = gr_layer_norm(g, context, c->norm, eps);
        gr_output(g, context, "context");
    } else if (!taps) {
        gr_output(g, context, "context");
    }
    if (final)
        gr_output(g, gr_layer_norm(g, x, c->norm, eps), "final");
}

int clip_pooled_width(const struct clip *c)
{
    if (c->projection.data == NULL)
        return c->width;
    return (int)c->projection.dim[c->projection_in_out ? 1 : 0];
}

enum { POOL_STEP = 256 }; /* numbers of the projection that are decoded at a time */

/* Outputs [at, at + n) of a projection [out, in]: a dot product of each row. */
static void pool_rows(const struct clip *c, const float *x, int at, int n, double *sum)
{
    float p[POOL_STEP];

    for (int o = 0; o < n; o++) {
        sum[o] = 0;
        for (int i = 0; i < c->width; i += POOL_STEP) {
            int m = c->width - i < POOL_STEP ? c->width - i : POOL_STEP;
            tensor_decode(&c->projection, (int64_t)(at + o) * c->width + i, m, p);
            for (int j = 0; j < m; j++)
                sum[o] += (double)p[j] * x[i + j];
        }
    }
}

/* The same of one [in, out], in the order of its bytes. */
static void pool_columns(const struct clip *c, const float *x, int at, int n, double *sum)
{
    int64_t width = clip_pooled_width(c);
    float p[POOL_STEP];

    for (int o = 0; o < n; o++)
        sum[o] = 0;
    for (int i = 0; i < c->width; i++) {
        tensor_decode(&c->projection, i * width + at, n, p);
        for (int o = 0; o < n; o++)
            sum[o] += (double)p[o] * x[i];
    }
}

void clip_pool(const struct clip *c, const float *row, float *out)
{
    int width = clip_pooled_width(c);
    double sum[POOL_STEP];

    if (c->projection.data == NULL) {
        memcpy(out, row, (size_t)width * sizeof *out);
        return;
    }
    for (int at = 0; at < width; at += POOL_STEP) {
        int n = width - at < POOL_STEP ? width - at : POOL_STEP;
        (c->projection_in_out ? pool_columns : pool_rows)(c, row, at, n, sum);
        for (int o = 0; o < n; o++)
            out[at + o] = (float)sum[o];
    }
}
