/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/model.h - a loaded checkpoint, and adapter files.
 *
 * Opening a model maps its files and reads headers: weights are not copied. */
#ifndef KRON_MODEL_H
#define KRON_MODEL_H
#include <kron/status.h>
#include <stddef.h>
#include <stdint.h>
KRON_API_BEGIN

/* Opaque. Immutable after open: any number of sessions and threads may share one. It must
 * outlive its sessions. */
typedef struct kron_model kron_model;

typedef enum kron_arch { KRON_ARCH_SD1 = 1, KRON_ARCH_SD2 = 2, KRON_ARCH_SDXL = 3 } kron_arch;

/* What the network predicts. DETECT: from metadata; for an SD2 file without any, from one test
 * call of the network. */
typedef enum kron_prediction {
    KRON_PREDICTION_DETECT = 0,
    KRON_PREDICTION_EPS = 1,
    KRON_PREDICTION_V = 2
} kron_prediction;

/* Storage of numbers. KEEP: as each tensor has it. From Q4_0 on: GGML's blocks, only for weights
 * of two axes whose rows are whole blocks (docs/types.md). */
typedef enum kron_type {
    KRON_TYPE_KEEP = 0,
    KRON_TYPE_F32 = 1,
    KRON_TYPE_F16 = 2,
    KRON_TYPE_BF16 = 3,
    KRON_TYPE_F8_E4M3 = 4,
    KRON_TYPE_F8_E5M2 = 5,
    KRON_TYPE_Q4_0 = 6,
    KRON_TYPE_Q4_1 = 7,
    KRON_TYPE_Q5_0 = 8,
    KRON_TYPE_Q5_1 = 9,
    KRON_TYPE_Q8_0 = 10,
    KRON_TYPE_Q2_K = 11,
    KRON_TYPE_Q3_K = 12,
    KRON_TYPE_Q4_K = 13,
    KRON_TYPE_Q5_K = 14,
    KRON_TYPE_Q6_K = 15,
    KRON_TYPE_IQ4_NL = 16,
    KRON_TYPE_IQ4_XS = 17,
    KRON_TYPE_MXFP4 = 18,
    KRON_TYPE_NVFP4 = 19,
    KRON_TYPE_TQ1_0 = 20,
    KRON_TYPE_TQ2_0 = 21
} kron_type;

/* A zeroed struct means defaults; paths are UTF-8 and not kept. */
typedef struct kron_model_params {
    const char *model;           /* checkpoint (docs/files.md), or a diffusers folder */
    const char *diffusion_model; /* UNet alone; NULL: in `model` */
    const char *clip_l;          /* first text encoder alone; NULL: in `model` */
    const char *clip_g;          /* SD2's or SDXL's OpenCLIP encoder alone; NULL: in `model` */
    const char *vae;             /* replaces the VAE of `model`; NULL: none */
    const char *backend;         /* "cpu", "ref" (slow, plain C); NULL: the best there is */
    /* Workers on the CPU; 0: one per core. On a machine with several nodes of memory or kinds of
     * core they and the calling thread are bound to some of its processors while a job computes, and
     * free again afterwards; KRON_CPU_BIND=none in the environment, or OpenMP's own OMP_PROC_BIND,
     * prevents that. */
    int n_threads;
    kron_prediction prediction;
    /* Other storage of the layers' weights than the files': converted by all workers when a network
     * is first used, into memory of the model; biases and norms stay. Adapters act on it as on any
     * other type. Numbers that the type cannot hold fail that first job: KRON_ERR_ARGUMENT. */
    kron_type type;              /* KEEP: as the files have them */
    const char *type_rules;      /* "pattern=type,pattern=type": extended regular expressions over
                                    names of tensors, the first that is found in a name tells its
                                    type in place of `type`; NULL: none */
    const char *importance;      /* file of kron_model_save_importance(): which input channels
                                    block types must keep best; NULL: all alike */
    const char *quant_cache;     /* folder where what was converted is kept, when the model is
                                    closed, as a file that is mapped the next time; known by the
                                    files' paths, devices, inodes, sizes and times of change, type
                                    and rules; NULL: none */
    int collect_importance;      /* nonzero: see kron_model_save_importance(); a little slower */
} kron_model_params;

/* Opens a checkpoint and finds out what it is from its tensor names and shapes.
 *   out  the model, or NULL on failure. Caller owns it: kron_model_close().
 * Errors: KRON_ERR_IO; KRON_ERR_FORMAT for a damaged file; KRON_ERR_UNSUPPORTED for a
 * checkpoint of another kind, with what was recognised and what is missing; KRON_ERR_SHAPE for
 * tensors that do not fit each other. */
KRON_API kron_status kron_model_open(kron_model **out, const kron_model_params *params);

/* Whether type_rules can be read: KRON_ERR_ARGUMENT, naming the rule, if not. */
KRON_API kron_status kron_type_rules_check(const char *rules);

/* Writes the mean squares of each linear layer's input channels, over all that sessions of a model
 * opened with collect_importance computed so far, with those of its `importance` file added: GGUF
 * in llama.cpp's form (docs/files.md). Under a temporary name, renamed when whole.
 * Errors: KRON_ERR_ARGUMENT if the model does not collect; those of files and memory. */
KRON_API kron_status kron_model_save_importance(const kron_model *m, const char *path);

/* Sets *m to NULL. *m may be NULL already. All its sessions must be gone. */
KRON_API void kron_model_close(kron_model **m);

typedef struct kron_model_info {
    kron_arch arch;
    const char *arch_name;        /* "SD 1.x", "SD 2.x", "SDXL"; static */
    kron_prediction prediction;   /* EPS or V */
    int64_t unet_parameters, text_parameters, vae_parameters; /* numbers in each part */
    int64_t weight_bytes;         /* of all tensors used, as stored */
    const char *backend;          /* name of the device, valid as long as the model */
} kron_model_info;

KRON_API kron_model_info kron_model_get_info(const kron_model *m);

/* An adapter: a parsed LoRA, LoCon, LoHa or LoKr file. Opaque, immutable after open, shared
 * freely. It owns its factors and knows no model. */
typedef struct kron_adapter kron_adapter;

/* Opens an adapter file, of the formats that models have: maps it and sorts its tensors into
 * modules.
 * Errors: KRON_ERR_IO; KRON_ERR_FORMAT if the file is damaged or holds no adapter tensor. */
KRON_API kron_status kron_adapter_open(kron_adapter **out, const char *path);

/* Drops the caller's reference and sets *a to NULL; sessions that use it keep their own. */
KRON_API void kron_adapter_close(kron_adapter **a);

/* The path that it was opened by; valid as long as the adapter. */
KRON_API const char *kron_adapter_path(const kron_adapter *a);

/* --- the adapter files that a model keeps --- */

/* A model keeps the adapter files that its sessions opened by name, so that coming back to one
 * costs no reading. A file is known by its path, device, inode, size and time of change: one that
 * was replaced is read anew. Files that a session or a caller still holds are never dropped. */
typedef struct kron_adapter_cache {
    size_t budget;          /* bytes of files to keep; more only while they are in use */
    size_t bytes;           /* of those kept now */
    int files;              /* kept now */
    uint64_t hits, misses;  /* openings that found the file kept, and that read it */
    uint64_t dropped;       /* files dropped to keep to the budget */
} kron_adapter_cache;

#define KRON_ADAPTER_CACHE_BYTES ((size_t)1 << 30) /* the budget of a new model */

/* Opens a file as kron_adapter_open() does, through the model's cache. Any thread. */
KRON_API kron_status kron_model_open_adapter(kron_model *m, kron_adapter **out, const char *path);

/* Sets the budget, and drops what is over it at once; 0: keep nothing that is not in use. */
KRON_API void kron_model_set_adapter_cache(kron_model *m, size_t bytes);
KRON_API kron_adapter_cache kron_model_get_adapter_cache(const kron_model *m);

KRON_API_END
#endif
