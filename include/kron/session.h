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

/* How adapters are applied. AUTO chooses per layer from a cost model, and merges nothing of a model
 * that has quantised weights (f8 or blocks); IMMEDIATELY computes merged weights, as f32, into
 * memory when the set changes; AT_RUNTIME never merges. */
typedef enum kron_apply {
    KRON_APPLY_AUTO = 0,
    KRON_APPLY_IMMEDIATELY = 1,
    KRON_APPLY_AT_RUNTIME = 2
} kron_apply;

/* What the products of the UNet's linear layers are made of. INT8: whole numbers of 7 or 8 bits
 * (docs/int8.md says which, and how near that comes), a range for each row of weights and of
 * activations, found as it runs; adapters act as ever. Two to three times as fast, and in exchange
 * a picture that differs a little. A matter of computing alone: how weights are stored is another
 * (kron_model_params.type). Devices without it, such as "ref", compute in F32. */
typedef enum kron_compute {
    KRON_COMPUTE_F32 = 0,
    KRON_COMPUTE_INT8 = 1
} kron_compute;

typedef struct kron_session_params { /* zeroed: defaults */
    kron_apply apply;
    int strict;              /* nonzero: an adapter tensor that does not fit is an error */
    int64_t max_memory;      /* bytes to keep within: weights of files that are in memory, at most
                              * half for the compute buffer, merged weights and those that INT8
                              * makes; 0: by the free memory */
    const char *block_presets; /* file of named block weights, lines NAME:NUMBER,NUMBER,...; read
                                * here and not kept; NULL: only those that A1111's users know */
    kron_compute compute;
} kron_session_params;

/* Errors: KRON_ERR_MEMORY; KRON_ERR_IO and KRON_ERR_FORMAT for the presets. The model must outlive
 * the session. params may be NULL. */
KRON_API kron_status kron_session_create(kron_session **out, kron_model *m,
                                         const kron_session_params *params);
KRON_API void kron_session_free(kron_session **s);

/* Blocks of a UNet in the order of A1111's block weights (sd-webui-lora-block-weight):
 * BASE, IN00 to IN11, M00, OUT00 to OUT11. BASE is the text encoders and, of the UNet, all that
 * stands in no block. SDXL has IN00 to IN08 and OUT00 to OUT08. */
enum { KRON_BLOCKS = 26 };

typedef struct kron_step_point {
    float at;     /* place in the run; points are given in rising order */
    float factor; /* no unit; may be negative */
} kron_step_point;

/* One use of an adapter. Everything after the strengths may be zero: it then acts in the whole
 * image at every step. Pointers are read during the call that is given them.
 *
 * Places in a run: step i of n, from 0, stands at i / n, so that 0 is the first step and 1 is
 * never reached; where `..._in_numbers` is set a place is the number of a step, from 1. Image to
 * image counts the steps that it runs. */
typedef struct kron_adapter_use {
    kron_adapter *adapter;
    float te_strength;   /* text encoders; no unit, 0 = off, may be negative */
    float unet_strength; /* UNet */
    const float *blocks; /* KRON_BLOCKS factors of the strengths; NULL: all 1 */
    float start, stop;   /* the UNet's part acts where start <= place < stop; stop 0: to the end.
                          * Text is encoded before the first step, with the strength for it */
    int range_in_numbers;         /* nonzero: start and stop are numbers of steps */
    const kron_step_point *curve; /* factor of the UNet's strength over the steps: straight lines
                                   * between points, constant before the first and after the last;
                                   * at equal places it jumps. NULL: 1 */
    size_t n_curve;
    int curve_in_numbers;
    float scale;         /* replaces alpha / rank of every module, for files that state it wrongly;
                          * 0: the file's own. Full differences have none */
    const kron_image *mask; /* confines it to the white of a grey picture, grey in part; the picture
                             * is stretched over the image. NULL: the whole image */
    float region[4];     /* confines it to a rectangle: left, top, right, bottom, in shares of the
                          * image; all 0: none. With a mask: to what both leave */
} kron_adapter_use;

/* What a region leaves out: layers that read the text or the time have no place in the image, so
 * a confined adapter does not act on them, nor on the text encoders; the report counts them. */

/* Replaces the session's adapters; those of earlier calls are dropped. A file given twice counts
 * twice. n = 0 takes all off. The base weights are never changed, so taking off is exact.
 * If only strengths, block weights, or numbers of a range or curve differ from the present set it
 * costs nothing (except merged layers, which are made again).
 * The session takes its own references.
 * Errors: KRON_ERR_ARGUMENT (which adapter, which field); KRON_ERR_SHAPE if a file fits no layer
 * of the model at all (the detail names the architecture that it seems to be for), or with
 * `strict` if any tensor does not fit. After any error the session is as it was. A job's adapters
 * do not change while it runs: calls from its progress function are KRON_ERR_ARGUMENT. This
 * holds for all functions here that change adapters. */
KRON_API kron_status kron_session_set_adapters(kron_session *s, const kron_adapter_use *uses,
                                               size_t n);

/* Adds one at the end of the list; removes number i; takes all off. */
KRON_API kron_status kron_session_add_adapter(kron_session *s, const kron_adapter_use *use);
KRON_API kron_status kron_session_remove_adapter(kron_session *s, size_t i);
KRON_API kron_status kron_session_clear_adapters(kron_session *s);

/* Adds an adapter given as text, the way that a prompt's tag would:
 * FILE[:STRENGTH[:UNET]][:KEY=VALUE...]. FILE and mask= are paths, opened through the model's
 * cache. Keys: te unet lbw start stop step scale mask region (docs/adapters.md). */
KRON_API kron_status kron_session_add_adapter_text(kron_session *s, const char *text);
/* Whether such a text can be read. Opens no file. */
KRON_API kron_status kron_adapter_check_text(const char *text);

/* Other strengths for adapter i; all else of it stays. Costs nothing, and cannot fail but for
 * arguments. */
KRON_API kron_status kron_session_set_strength(kron_session *s, size_t i, float te_strength,
                                               float unet_strength);

/* The present list: how many, and number i. What it points to is the session's, valid until its
 * adapters change; the mask is grey and may be smaller than the one that was given. */
KRON_API size_t kron_session_adapter_count(const kron_session *s);
KRON_API kron_status kron_session_get_adapter(const kron_session *s, size_t i,
                                              kron_adapter_use *out);

/* Block weights from what stands after lbw= in a tag: the name of a preset (NONE ALL INS IND INALL
 * MIDD OUTD OUTS OUTALL ALL0.5, or one of the session's own), or numbers with commas, BASE first:
 * 17 or 26 for SD 1.x and 2.x; 12, 20 or 26 for SDXL. Blocks that a short list leaves out get 0.
 *   out  KRON_BLOCKS numbers. */
KRON_API kron_status kron_session_read_blocks(const kron_session *s, const char *text, float *out);

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
    const char *prompt;          /* A1111 attention syntax, BREAK, <lora:name:strength:key=...> */
    const char *negative_prompt; /* NULL: "" */
    const char *lora_dir;        /* where files that tags name are; NULL: tags are an error */
    const char *embd_dir;        /* folder of WORD.safetensors or WORD.pt files (textual
                                    inversion): WORD in a prompt stands for the file's vectors;
                                    NULL: none */
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
    int vae_tiling;              /* nonzero: the VAE runs in tiles, less memory; 0: only where its
                                    buffers would not fit half of max_memory */
    int vae_tile_width;          /* of a tile in latent pixels; 0: 32, or what fits */
    int vae_tile_height;
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

/* Compute buffer of the last call of each part, bytes; 0 if it has not run. unet_kept: beside
 * unet, what is the same at all steps of a prompt (keys and values of the text) and was kept from
 * call to call; 0 where there is no room for it. The parts take turns in one piece of memory, as
 * large as the largest of text_encoder, unet + unet_kept and vae. */
typedef struct kron_buffers {
    size_t text_encoder, unet, vae;
    size_t unet_kept;
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
