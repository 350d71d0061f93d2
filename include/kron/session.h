/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/session.h - drawing pictures.
 *
 * A session is one mutable line of work on a model: its adapters, its planned graphs and their
 * compute buffers. One thread at a time per session; sessions of one model run side by side. */
#ifndef KRON_SESSION_H
#define KRON_SESSION_H
#include <kron/image.h>
#include <kron/model.h>
KRON_API_BEGIN

typedef struct kron_session kron_session;

/* How adapters are applied. AUTO chooses per layer from a cost model; IMMEDIATELY computes merged
 * weights into memory when the set changes; AT_RUNTIME never merges. */
typedef enum kron_apply {
    KRON_APPLY_AUTO = 0,
    KRON_APPLY_IMMEDIATELY = 1,
    KRON_APPLY_AT_RUNTIME = 2
} kron_apply;

typedef struct kron_session_params { /* zeroed: defaults */
    kron_apply apply;
    int strict;              /* nonzero: an adapter tensor that does not fit is an error */
    int64_t max_memory;      /* bytes for compute buffers and merged weights; 0: from free memory */
} kron_session_params;

/* Errors: KRON_ERR_MEMORY. The model must outlive the session. params may be NULL. */
KRON_API kron_status kron_session_create(kron_session **out, kron_model *m,
                                         const kron_session_params *params);
KRON_API void kron_session_free(kron_session **s);

typedef struct kron_adapter_use {
    kron_adapter *adapter;
    float te_strength;   /* text encoders; no unit, 0 = off, may be negative */
    float unet_strength; /* UNet */
} kron_adapter_use;

/* Replaces the session's adapters; those of earlier calls are dropped. A file given twice counts
 * twice. n = 0 takes all off. The base weights are never changed, so taking off is exact.
 * Only strengths differ from the present set: costs nothing (except with IMMEDIATELY).
 * The session takes its own references.
 * Errors: KRON_ERR_SHAPE if a file fits no layer of the model at all (the detail names the
 * architecture that it seems to be for), or with `strict` if any tensor does not fit; the session
 * is then as it was. */
KRON_API kron_status kron_session_set_adapters(kron_session *s, const kron_adapter_use *uses,
                                               size_t n);

/* What was applied and what was not, and why: lines of text about each file of the present set.
 * Owned by the session, valid until its adapters change. */
KRON_API const char *kron_session_adapter_report(const kron_session *s);

typedef enum kron_rng { KRON_RNG_CUDA = 0, KRON_RNG_CPU = 1 } kron_rng;

typedef struct kron_progress {
    int image, n_images;       /* which picture of the batch, from 0 */
    int step, n_steps;         /* sampling steps done and in all; step == 0: starting */
    const char *phase;         /* "text", "sampling", "decoding", "encoding" */
    double step_seconds;       /* duration of the last sampling step */
    const kron_image *preview; /* a rough picture of the present state, or NULL */
} kron_progress;

/* Called after each step and phase. Nonzero stops the job: KRON_ERR_CANCELLED. */
typedef int (*kron_progress_fn)(const kron_progress *p, void *user);

/* One job. Strings are UTF-8 and need only live during the call. Start from
 * kron_job_default(): zero is a meaningful value of several fields. */
typedef struct kron_job {
    const char *prompt;          /* A1111 attention syntax, BREAK, <lora:name:strength> */
    const char *negative_prompt; /* NULL: "" */
    const char *lora_dir;        /* where <lora:name> files are; NULL: tags are an error */
    const char *embd_dir;        /* folder of WORD.safetensors files (textual inversion): WORD in a
                                    prompt stands for the file's vectors; NULL: none */
    int width, height;           /* pixels, multiples of 8 */
    int batch_count;             /* pictures, seeds seed, seed + 1, ... */
    int64_t seed;                /* 0..2^63-1; negative: random, written back by the caller */
    int steps;
    float cfg_scale;             /* guidance; 1: the negative prompt has no effect */
    const char *sampler;         /* kron_sampler_name(); NULL: "euler_a" */
    const char *schedule;        /* kron_schedule_name(); NULL: "discrete" */
    const double *sigmas;        /* own noise levels, falling, the last 0; NULL: by schedule */
    int n_sigmas;                /* steps + 1 numbers */
    float eta;                   /* noise added by ancestral samplers; negative: the sampler's own */
    kron_rng rng;                /* start noise: as torch on a GPU (A1111) or a CPU (ComfyUI) */
    kron_rng sampler_rng;        /* noise of samplers that add some */
    int clip_skip;               /* 1: last layer, 2: the one before; <= 0: the model's own */
    const kron_image *init_image; /* image to image; NULL: text to image. RGB, scaled if needed */
    const kron_image *mask;      /* inpainting: white is redrawn. Grey; needs init_image */
    float strength;              /* share of the steps that image to image runs, 0..1 */
    int vae_tiling;              /* nonzero: the VAE runs in tiles, less memory */
    int vae_tile;                /* side of a tile in latent pixels; 0: 32 */
    float vae_tile_overlap;      /* share of a tile, 0..0.5 */
    int preview_interval;        /* steps between previews in progress; 0: none */
    int preview_vae;             /* nonzero: previews through the VAE instead of a projection */
    kron_progress_fn progress;   /* NULL: none */
    void *progress_user;
} kron_job;

KRON_API kron_job kron_job_default(void);

/* Draws job->batch_count pictures.
 *   images  array of batch_count zeroed structs; filled in order, caller frees each. After a
 *           failure those already drawn remain; the rest are zero.
 * Adapters named in the prompt are added to those of kron_session_set_adapters() for this job.
 * Errors: KRON_ERR_ARGUMENT (which field, what was expected), KRON_ERR_CANCELLED, and those of
 * adapters, files and memory. */
KRON_API kron_status kron_generate(kron_session *s, const kron_job *job, kron_image *images);

/* Compute buffer of the last call of each part, bytes; 0 if it has not run. */
typedef struct kron_buffers {
    size_t text_encoder, unet, vae;
} kron_buffers;
KRON_API kron_buffers kron_session_buffers(const kron_session *s);

/* Names that jobs take, in the order to show them; NULL past the end. */
KRON_API const char *kron_sampler_name(int i);
KRON_API const char *kron_schedule_name(int i);

/* "parameters" text of a picture, as A1111 writes it.
 *   image_index  adds to the seed.  model_name: file name without folder and ending.
 * Freed with kron_string_free(); NULL without memory. */
KRON_API char *kron_job_parameters(const kron_session *s, const kron_job *job, int image_index,
                                   const char *model_name);

KRON_API_END
#endif
