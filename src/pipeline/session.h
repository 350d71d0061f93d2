/* SPDX-License-Identifier: MIT
 * pipeline/ - from a prompt to pictures: loads a model, keeps its planned graphs, encodes text,
 * runs the sampler, decodes. Knows no HTTP and no argv; may see all of src/.
 *
 *   generate.c   a job from start to end          text.c     prompts -> conditions
 *   denoise.c    one guided network call          latent.c   floats to pictures, previews
 *   tiles.c      images <-> latents, in tiles
 *   net.c        planned graphs, cached by shape  engine.c   what sessions of one model share
 *   session.c    binding a session's adapters     metadata.c the "parameters" text
 *   adapters.c   lists of them, from API and tags adapter_cache.c their files
 *   words.c      words that stand for vectors  quantise.c weights of another type
 *   checkpoint.c a model as tensors of one file    profile.c operations as callers see them */
#ifndef PIPELINE_SESSION_H
#define PIPELINE_SESSION_H
#include "adapter/adapter.h"
#include "backend/backend.h"
#include "model/model.h"
#include "model/prompt.h"
#include <kron/profile.h>
#include <kron/session.h>
#include <pthread.h>

/* --- what sessions of one model share; immutable (engine.c) --- */

struct engine {
    struct sd_model model;
    struct be_device *device;
    struct tokenizer *tokenizer;
    struct adapter_names *names;
    struct adapter_cache *adapters; /* changes, in its own lock */
    kron_prediction prediction; /* EPS or V */
    struct quantiser *quantiser; /* weights that are not in the model's own files; NULL: none */
    /* Collected while sessions run; NULL: nothing is. */
    struct importance *importance;
    kron_status importance_status; /* first failure */
    pthread_mutex_t importance_lock;
};

/* The public handle of an engine. */
struct kron_model {
    struct engine engine;
};

/* The files of a model and its layers, without a device; free with model_free(). */
kron_status model_open(struct sd_model *m, const kron_model_params *p);
kron_status engine_open(struct engine *e, const kron_model_params *p);
void engine_close(struct engine *e);

/* --- weights of another type (quantise.c) --- */

/* Gives the layers the types that are asked for. Before anything runs. */
kron_status engine_quantise(struct engine *e, const kron_model_params *p);
/* Makes the weights that a graph reads and that are not there yet. Before it is compiled; calls may
 * come from any thread. */
kron_status engine_make_weights(struct engine *e, const struct graph *g);
/* Keeps in the cache folder, if there is one, what was made, and lets go of it. */
void engine_quantise_end(struct engine *e);
/* True if a converted weight lies in the mapped cache of an earlier run. */
bool engine_quantised_maps(const struct engine *e, const void *data);
/* Collects squares of inputs from now on, if asked to. */
kron_status engine_collect(struct engine *e, const kron_model_params *p);
kron_status engine_save_importance(struct engine *e, const char *path);

/* --- adapter files (adapter_cache.c) --- */

/* A counted adapter file, so that sessions keep what a caller has closed. */
struct kron_adapter {
    struct adapter_file *file;
    int refs; /* changed atomically */
};
kron_status adapter_open_counted(kron_adapter **out, const char *path);
kron_adapter *adapter_ref(kron_adapter *a);
void adapter_unref(kron_adapter **a);

/* The model's files; calls may come from any thread. */
struct adapter_cache;
kron_status cache_create(struct adapter_cache **out);
void cache_free(struct adapter_cache **c);
kron_status cache_open(struct adapter_cache *c, const char *path, kron_adapter **out);
void cache_trim(struct adapter_cache *c); /* after files were let go */
void cache_set_budget(struct adapter_cache *c, size_t bytes);
kron_adapter_cache cache_stats(struct adapter_cache *c);

/* --- lists of adapters in use (adapters.c) --- */

/* One use, in the form that the adapter room takes; all it points to is the list's. */
struct use {
    kron_adapter *adapter; /* counted */
    struct adapter_use u;
    kron_image mask;       /* grey; pixels NULL: none */
    float region[4];       /* all 0: none */
};
struct use_list { /* {0} is empty */
    struct use *at;
    size_t n, cap;
    struct arena mem;
};
void use_list_free(struct use_list *l);
/* Each adds at the end; after a failure the list must still be freed. */
kron_status use_list_add(struct use_list *l, const kron_adapter_use *use);
kron_status use_list_add_all(struct use_list *l, const struct use_list *from);
kron_status use_list_add_one(struct use_list *l, const struct use *from);
/* What a text or a tag says. dir: the folder of its files, which it cannot leave; NULL: names are
 * paths. */
struct session;
kron_status use_list_add_tag(struct use_list *l, const struct session *s,
                             const struct prompt_adapter *tag, const char *dir);
/* True where the same deltas serve both: only strengths may differ. */
bool use_lists_alike(const struct use_list *a, const struct use_list *b);
void use_to_public(const struct use *u, kron_adapter_use *out);

/* --- planned graphs (net.c) --- */

enum net_kind { NET_TE0, NET_TE1, NET_UNET, NET_DECODE, NET_ENCODE };

struct net_key {
    enum net_kind kind;
    enum vae_part part;
    int64_t n, h, w; /* latent size; NET_ENCODE: pixels; text encoders: windows, vectors,
                      * 1 where the pooled text is wanted */
    int64_t tokens;  /* NET_UNET: of the context; text encoders: clip skip */
    bool taps;
    bool hold;       /* NET_UNET: text and sizes are mostly those of the call before: what depends
                      * on nothing else is held */
};

struct net {
    struct net_key key;
    struct graph g;
    struct be_plan *plan;
    struct be_buf **bind;
    unsigned long used; /* for dropping the one longest unused */
};

enum { MAX_NETS = 8 };

struct session {
    struct engine *e;
    kron_session_params params;
    struct adapter_presets *presets; /* block weights of the user's; NULL: none */
    bool busy;                   /* a job runs: no change of adapters */

    struct use_list own;         /* those of the kron_session_ functions */

    /* What is bound now: the above and those of the last job's prompt. */
    struct use_list bound;
    struct adapter_set *set;     /* NULL: no adapters */
    float *strengths;            /* of a run: ADAPTER_SLOTS for each; NULL where set is */
    struct be_weights *weights;
    struct str report;

    struct net *nets[MAX_NETS];
    unsigned long clock;
    kron_buffers buffers;

    kron_profile_fn profile;     /* told of each operation; NULL: nobody asks */
    void *profile_user;
};

/* The net of that key, planned and compiled, from the cache where it is there. Valid until the
 * next net_get() or change of adapters. */
kron_status net_get(struct session *s, const struct net_key *key, struct net **out);
/* Writes an input, reads an output, by name; n floats or int32s must be the value's size. */
kron_status net_write(struct net *net, const char *name, const void *data, int64_t n);
kron_status net_read(struct net *net, const char *name, float *data, int64_t n);
kron_status net_run(struct session *s, struct net *net);
/* Drops all planned graphs. */
void nets_drop_all(struct session *s);
/* Gives pages of the mapped files back that hold weights of a part, where memory is short. */
void session_done_with(struct session *s, enum layer_part part);
/* Bytes that the compute buffer of one part may take. */
size_t session_room(const struct session *s);
/* Bytes of the compute buffer that a net of this key would take, held values included, without
 * making it. */
kron_status net_estimate(struct session *s, const struct net_key *key, size_t *bytes);

/* --- sessions and their adapters (session.c) --- */

kron_status session_create(struct session **out, struct engine *e, const kron_session_params *p);
void session_free(struct session **s);
kron_status session_set_adapters(struct session *s, const kron_adapter_use *uses, size_t n);
kron_status session_add_adapter(struct session *s, const kron_adapter_use *use);
kron_status session_add_adapter_text(struct session *s, const char *text);
kron_status session_remove_adapter(struct session *s, size_t i);
void session_set_strength(struct session *s, size_t i, float te, float unet);
kron_status session_read_blocks(const struct session *s, const char *text, float *out);
/* Fills the strengths for step `step` (from 0) of n_steps. */
void session_fill_strengths(struct session *s, int step, int n_steps);
/* Binds the session's own adapters and those that `prompt` names in `lora_dir`. */
kron_status session_bind_prompt(struct session *s, const struct prompt *prompt,
                                const char *lora_dir);

/* --- profile.c --- */

/* A be_timer's function; user: the session, which has a profile. */
void session_profile(void *user, const struct graph *g, const struct gr_op *op, double start,
                     double end);

/* --- textual inversion (words.c) --- */

/* Words that stand for vectors, of those that two prompts have. */
struct words {
    struct prompt_word *at; /* ids TOK_COUNT + i: row i of the vectors */
    size_t n;
    float *vectors[2];      /* for each text encoder [n_vectors, width] */
    int64_t n_vectors;
    struct arena mem;
};
/* From the adapters that are bound and, if it is not NULL, the folder `dir` of .safetensors files
 * called after their words. Vectors that do not fit the model's text encoders: KRON_ERR_SHAPE,
 * naming the file. b may be NULL. */
kron_status words_collect(struct words *out, struct session *s, const char *dir,
                          const struct prompt *a, const struct prompt *b);
void words_free(struct words *w); /* {0} is fine */

/* --- text (text.c) --- */

/* What the UNet gets of a prompt. Owned arrays; free with condition_free(). */
struct condition {
    float *context; /* [tokens, context_width] */
    float *pooled;  /* [pooled_width]; NULL but for SDXL */
    int64_t tokens;
};
void condition_free(struct condition *c);
/* Encodes both prompts to the same number of windows. negative NULL: only the first is made.
 * An empty negative prompt of SDXL gives zeros, as its training and diffusers have it.
 * embd_dir: as words_collect(). */
kron_status encode_prompts(struct session *s, const struct prompt *positive,
                           const struct prompt *negative, const char *embd_dir, int clip_skip,
                           struct condition *pos, struct condition *neg);
/* --- one guided call (denoise.c) --- */

struct denoise {
    struct session *s;
    const struct condition *pos, *neg; /* neg NULL: no guidance */
    float cfg;
    int64_t h, w;        /* latent */
    bool both;           /* both halves in one batch */
    bool hold;           /* there is room for what is the same at each step */
    int step, n_steps;   /* where the run stands, for strengths that change; n_steps 0: nowhere */
    float sizes[6];      /* SDXL: height, width, crop top, left, target height, width */
    const float *extra;  /* inpainting checkpoints: [h, w, in_channels - 4]; else NULL */
    float *in, *out;     /* scratch: 2 samples each */
};
kron_status denoise_init(struct denoise *d, struct session *s, const struct condition *pos,
                         const struct condition *neg, float cfg, int64_t h, int64_t w);
void denoise_fini(struct denoise *d);
/* Raw guided prediction u + cfg (c - u) for x[h, w, 4] (already scaled) at timestep t. */
kron_status denoise_raw(struct denoise *d, const float *x, double t, float *out);
/* EPS or V, by one call of the network, for SD2 files that do not say. */
kron_status detect_prediction(struct engine *e, kron_prediction *out);

/* --- images and latents (tiles.c, latent.c): NHWC floats --- */

struct tiling {
    bool on;        /* else only where memory is short */
    int w, h;       /* of a tile, in latent pixels; 0: as large as memory allows, at most 32 */
    double overlap; /* share of a tile */
};
/* latent[h, w, 4] as the UNet sees it -> image[8h, 8w, 3] in [-1, 1], not clamped. */
kron_status latent_decode(struct session *s, const float *latent, int64_t h, int64_t w,
                          const struct tiling *t, float *image);
/* image[8h, 8w, 3] in [-1, 1] -> latent[h, w, 4] as the UNet sees it (the mean). */
kron_status latent_encode(struct session *s, const float *image, int64_t h, int64_t w,
                          const struct tiling *t, float *latent);
/* A small picture [h, w] from a linear projection of the latent. */
kron_status latent_preview(const struct session *s, const float *latent, int64_t h, int64_t w,
                           kron_image *out);
kron_status image_from_floats(const float *image, int64_t h, int64_t w, kron_image *out);
void nchw_to_nhwc(const float *in, int64_t c, int64_t h, int64_t w, float *out);

/* --- jobs (generate.c, metadata.c) --- */

kron_status session_generate(struct session *s, const kron_job *job, kron_image *images);
void job_parameters(const struct session *s, const kron_job *job, int image_index,
                    const char *model_name, struct str *out);

#endif
