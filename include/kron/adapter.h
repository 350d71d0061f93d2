/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/adapter.h - looking into adapter files, changing them, and baking them
 * into a checkpoint. Nothing here needs a session or a device; to draw with an
 * adapter see kron/session.h. */
#ifndef KRON_ADAPTER_H
#define KRON_ADAPTER_H
#include <kron/model.h>
KRON_API_BEGIN

/* --- what is in a file --- */

/* Everything that can be said of an adapter file: families, rank, factor, alpha
 * and scale, what it was made for, trigger words, tags and settings of its
 * training; with a model also which layers of each block it changes and by how
 * much of their weights, and which tensors are skipped and why.
 *   out    lines of text, or a JSON object; freed with kron_string_free().
 *   model  checkpoint to hold it against; NULL: what the file says by itself.
 *          The JSON's "model" is then absent. That the adapter does not fit the
 *          model is part of the answer, no error.
 *   json   nonzero: JSON. Members stay what they are; later versions add some.
 * Errors: those of kron_adapter_open() and kron_model_open(). */
KRON_API kron_status kron_adapter_info(char **out, const char *path, const kron_model_params *model,
                                       int json);

/* --- changing files --- */

/* How modules are called. KEEP: as they are; with several inputs, as the first has it.
 *   KOHYA      lora_unet_ with diffusers' block names, lora_te_ or lora_te1_ and lora_te2_
 *   KOHYA_SGM  the same with the single file's block names: what sd-scripts writes for SDXL
 *   LYCORIS    lycoris_ with diffusers' block names; text encoders as KOHYA
 *   DIFFUSERS  unet. and text_encoder., dots, lora_A and lora_B: diffusers and PEFT
 *   COMFY      diffusion_model. and text_encoders., dots, single-file names: ComfyUI */
typedef enum kron_naming {
    KRON_NAMING_KEEP = 0,
    KRON_NAMING_KOHYA = 1,
    KRON_NAMING_KOHYA_SGM = 2,
    KRON_NAMING_LYCORIS = 3,
    KRON_NAMING_DIFFUSERS = 4,
    KRON_NAMING_COMFY = 5
} kron_naming;

/* What a layer's change is written as. KEEP: as it is where that is one of the three or a LoHa. */
typedef enum kron_form {
    KRON_FORM_KEEP = 0,
    KRON_FORM_LORA = 1, /* up times down, by singular values */
    KRON_FORM_LOKR = 2, /* the nearest Kronecker product; w2 whole, or of the rank asked for */
    KRON_FORM_FULL = 3  /* the difference itself, as large as the weight */
} kron_form;

/* A file and the strength that it enters with; no unit. */
typedef struct kron_adapter_source {
    const char *path;
    float te_strength, unet_strength; /* text encoders; UNet */
} kron_adapter_source;

typedef struct kron_adapter_convert_params { /* zeroed: a copy */
    const kron_adapter_source *inputs; /* strengths are multiplied into what is written */
    int n_inputs;                /* 1 or more; several are added up into one file */
    const char *output;          /* written under a temporary name and renamed */
    const kron_model_params *model; /* whose layers are named; NULL: by the file's own names,
                                       which a naming other than KEEP does not allow */
    kron_naming naming;
    kron_form form;
    kron_type type;              /* of factors; alphas stay f32 */
    int rank;                    /* most ranks of a LoRA, or of a LoKr's w2; 0: no limit */
    double energy;               /* in (0, 1]: no more ranks than hold this share of the squared
                                    singular values; 0: not asked for */
    int factor;                  /* LOKR: most rows and columns of w1; 0: 8 */
} kron_adapter_convert_params;

/* Writes one adapter from one or several. With one input at strength 1 and nothing asked for but
 * names and type, tensors of every family are carried over; else the change of each layer is
 * worked out anew, and families that depend on the weight itself (DoRA, OFT, IA3 ...) are refused.
 * Several LoRAs on a layer become one whose rank is the sum, exactly; other sums become a full
 * difference, or what `form` and `rank` ask for. Metadata of the first file are kept, what would
 * be false is left out, and how the file came about is added ("kron.made_from").
 *   report  lines: each layer with the relative Frobenius distance of what was written, in its
 *           storage type, from what was asked for; a summary. NULL: not wanted. Freed with
 *           kron_string_free().
 * Errors: KRON_ERR_ARGUMENT; KRON_ERR_UNSUPPORTED for a family that cannot be changed so;
 * KRON_ERR_SHAPE if an input fits nothing of the model; those of files and memory. The output is
 * then as it was. */
KRON_API kron_status kron_adapter_convert(const kron_adapter_convert_params *params,
                                          char **report);

/* Called before the first tensor and after each: bytes of the output written so far and in all.
 * Nonzero stops: KRON_ERR_CANCELLED. */
typedef int (*kron_convert_fn)(uint64_t done, uint64_t all, void *user);

typedef struct kron_convert_params {
    const char *model;           /* a file in any format that models have, or a diffusers folder */
    const char *output;          /* ends in .safetensors or .gguf: the format */
    const kron_adapter_source *adapters;
    int n_adapters;              /* 0: none */
    kron_type type;              /* KEEP: each tensor as it is; else of all weights of the model.
                                    f8 leaves tensors of one axis as they are; block types are for
                                    what stable-diffusion.cpp gives them to (docs/files.md) */
    int strict;                  /* nonzero: an adapter tensor that does not fit is an error */
    const char *type_rules;      /* as in kron_model_params */
    const char *importance;      /* likewise */
    const char *diffusion_model, *clip_l, *clip_g, *vae; /* parts, likewise */
    kron_convert_fn progress;    /* NULL: none */
    void *progress_user;
} kron_convert_params;

/* Writes a checkpoint in another format or type, or with adapters baked in. From a single file: the
 * same tensors by the same names, those that nothing changes bit for bit, the others worked out in
 * f32 and rounded once. From a folder, or with parts: the layers of the model by the names of a
 * single file. One tensor is in memory at a time. Metadata are kept, less hashes that are no
 * longer true. The file gets its name when it is whole; what a killed run left beside it is taken
 * away by the next.
 *   report  lines about each adapter and the tensors changed; NULL: not wanted. Freed with
 *           kron_string_free().
 * Errors: KRON_ERR_SHAPE if an adapter does not fit; KRON_ERR_ARGUMENT if a number does not fit the
 * type, or a rule cannot be read; KRON_ERR_UNSUPPORTED if the format has not got the type;
 * KRON_ERR_CANCELLED; those of files and memory. The output is then as it was. */
KRON_API kron_status kron_convert(const kron_convert_params *params, char **report);

KRON_API_END
#endif
