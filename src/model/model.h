/* SPDX-License-Identifier: MIT
 * model/ - what layers a checkpoint has, and the graphs that they make.
 *
 * A model is found out from tensor names and shapes: each network walks its own structure and
 * looks every layer up under its single-file (ldm / sgm / OpenCLIP) and its diffusers /
 * transformers name, so that both kinds of checkpoint, tiny and pruned ones too, load by one
 * path. Only what shapes cannot tell comes from the family: head counts, the VAE's scale, which
 * hidden state of a text encoder is used. Metadata of a file overrides these ("unet.heads",
 * "unet.head_dim", "te0.heads", "te1.heads", "prediction"). */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H
#include "file/file.h"
#include "graph/graph.h"
#include <kron/model.h>

/* --- layers of each network --- */

struct resnet {
    const struct layer *norm1, *conv1, *emb, *norm2, *conv2, *skip; /* emb, skip: may be NULL */
};

struct transformer_block {
    const struct layer *norm1, *q1, *k1, *v1, *out1;
    const struct layer *norm2, *q2, *k2, *v2, *out2;
    const struct layer *norm3, *ff1, *ff2;
};

struct transformer {
    const struct layer *norm, *proj_in, *proj_out;
    struct transformer_block *blocks;
    int n_blocks; /* 0: the level has no attention */
    int heads;
};

struct unet_block { /* one resnet and what follows it */
    struct resnet res;
    struct transformer attn;
};

enum { UNET_MAX_LEVELS = 8 };

struct unet_level {
    struct unet_block *blocks;
    int n_blocks;
    const struct layer *sample; /* downsampling or upsampling convolution; NULL at the end */
};

struct unet {
    const struct layer *time1, *time2, *label1, *label2; /* label: SDXL's sizes and pooled text */
    const struct layer *conv_in, *norm_out, *conv_out;
    struct unet_level down[UNET_MAX_LEVELS], up[UNET_MAX_LEVELS];
    struct unet_block mid;       /* its resnet and transformer, then mid2 */
    struct resnet mid2;
    int n_levels;
    int in_channels;   /* 4; 9 for inpainting checkpoints */
    int context_width; /* of the text encoders' output */
    int pooled_width;  /* SDXL: of the pooled text; else 0 */
    int size_dim;      /* SDXL: width of one embedded size number; else 0 */
};

struct vae_side { /* encoder or decoder; levels in the order of computation */
    const struct layer *conv_in, *norm_out, *conv_out;
    struct resnet mid1, mid2;
    const struct layer *attn_norm, *q, *k, *v, *attn_out;
    struct unet_level level[UNET_MAX_LEVELS];
    int n_levels;
    const struct layer *quant; /* quant_conv / post_quant_conv; may be NULL */
};

struct vae {
    struct vae_side encoder, decoder; /* encoder.conv_in NULL: the file has no encoder */
    int latent_channels;
    float scale; /* UNet latent = scale * VAE latent */
    int factor;  /* pixels per latent pixel: 8 */
};

struct clip_layer {
    const struct layer *norm1, *q, *k, *v, *out, *norm2, *fc1, *fc2;
};

struct clip {
    const struct layer *token, *position, *norm;
    struct clip_layer *layers;
    int n_layers, heads, width;
    enum gr_act act;
    struct tensor projection; /* of the pooled output; data NULL: none */
    bool projection_in_out;   /* stored [in, out] (OpenCLIP), else [out, in] */
    int pad_id;
    int default_skip; /* hidden state, counted from the end (1 = last layer) */
    bool final_norm;  /* applied to the hidden state that makes the context */
};

struct sd_model {
    struct store *store;
    struct arena mem;
    struct layer_table layers;
    int cap_layers, cap_aliases;
    kron_arch arch;
    kron_prediction prediction; /* DETECT: to be found by a test call (SD2 without metadata) */
    struct unet unet;
    struct vae vae;
    struct clip te[2];
    int n_te;
};

/* Finds the networks in the store and takes it over (also on failure). */
kron_status model_load(struct sd_model *m, struct store *store);
void model_free(struct sd_model *m);
const char *arch_name(kron_arch arch);

/* --- graphs --- */

/* Inputs x[n, h, w, in_channels], t[n,1,1,1] (0..999, may have a fraction), context[n, 1, tokens,
 * context_width]; SDXL: pooled[n,1,1,pooled_width], sizes[n,1,1,6]. Output out[n, h, w, 4], the
 * raw prediction. `taps` adds outputs on the way, named as reference/README.md's points. */
void unet_graph(struct graph *g, const struct unet *u, int64_t n, int64_t h, int64_t w,
                int64_t tokens, bool taps);
/* A VAE can be cut where its pictures are smallest and hold `features` [n, h/8, w/8, c], c of
 * vae_features(): the end on the latent's side, with the attention over the whole picture, and
 * the large rest, which runs in tiles. A tile's own statistics are not those of the picture, so
 * its norms take them from inputs "stats0", "stats1", ... [n, 1, 2, channels], which VAE_STATS, the
 * same on a smaller picture, gives as outputs. */
enum vae_part { VAE_WHOLE, VAE_ENDS, VAE_STATS, VAE_TILE };
int64_t vae_features(const struct vae_side *s);
/* latent[n, h, w, latent_channels], not scaled -> image[n, 8h, 8w, 3] in about [-1, 1]. */
void vae_decode_graph(struct graph *g, const struct vae *v, enum vae_part part, int64_t n,
                      int64_t h, int64_t w);
/* image[n, h, w, 3] in [-1, 1] -> moments[n, h/8, w/8, 2 * latent_channels]: mean, log variance.
 * h and w are the picture's in every part. */
void vae_encode_graph(struct graph *g, const struct vae *v, enum vae_part part, int64_t n,
                      int64_t h, int64_t w);
/* ids[n, 1, 77, 1] (int32), extra[1, 1, extra, width] where that is not 0 (rows of ids past the
 * token table) -> context[n, 1, 77, width]: hidden state `skip` from the end, with the
 * final norm where the family has it. `final` adds final[n, 1, 77, width]: last state with the
 * final norm; layers that neither needs are left out. `taps` adds hidden0 .. hiddenN. */
void clip_graph(struct graph *g, const struct clip *c, int64_t n, int skip, int64_t extra,
                bool final, bool taps);
/* Pooled output from a row of `final`: projected where the encoder has a projection.
 * out has clip_pooled_width() numbers. */
void clip_pool(const struct clip *c, const float *row, float *out);
int clip_pooled_width(const struct clip *c);

/* --- for the loaders of this room --- */

struct loader {
    struct sd_model *m;
    enum layer_part part;
    const char *tag;      /* source that holds only this part: "unet", "vae", ... */
    const char *prefix;   /* before native names in a single file */
    const char *prefix2;  /* before diffusers / transformers names in a part's own file */
    const char *const *others; /* before either, in any file: ends with NULL, or is NULL */
    kron_status status;   /* first failure */
};

/* loader.others of a VAE. */
extern const char *const vae_prefixes[];

/* The layer of that name, or NULL with loader.status set (`needed`) or untouched (not needed).
 * native and name are complete but for the part's prefix and ".weight". */
const struct layer *load_layer(struct loader *ld, enum layer_kind kind, const char *native,
                               const char *name, bool needed);
bool loader_has(const struct loader *ld, const char *native, const char *name);
/* A tensor by its complete names (with .weight or the like); NULL if absent. */
const struct tensor *loader_tensor(const struct loader *ld, const char *native, const char *name);
/* A layer whose weight and bias are given, not looked up. */
const struct layer *add_layer(struct loader *ld, enum layer_kind kind, const char *native,
                              const char *name, const struct tensor *weight,
                              const struct tensor *bias);
/* Another name of rows of layers, for adapter files; it is not made where a layer is NULL or
 * they do not read the same input. Rows of several layers follow each other. */
void add_alias(struct loader *ld, const char *native, const char *name,
               const struct layer *const *layers, int n);
/* An integer of the part's metadata or config; `otherwise` if absent. */
int loader_int(const struct loader *ld, const char *meta_key, const char *config_key,
               int otherwise);

kron_status unet_load(struct sd_model *m);
kron_status vae_load(struct sd_model *m);
kron_status clip_load(struct sd_model *m);

#endif
