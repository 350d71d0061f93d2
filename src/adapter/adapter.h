/* SPDX-License-Identifier: MIT
 * adapter/ - LoRA-family files: what is in them, which layers of a model they change, and how.
 *
 * Four steps. adapter_open() maps a file and sorts its tensors into modules: everything whose
 * names share what stands before a known part ("lora_unet_..." of "lora_unet_....lokr_w1").
 * adapter_names_create() lists every spelling of a model's own layers, since names joined by
 * underscores cannot be split. adapter_bind() looks each module up, brings it to one of the
 * canonical forms of graph/layer.h and gives one delta_set for all active files. The report of
 * each file says what was applied, what was not, and why.
 *
 * A tensor that does not fit is skipped and reported; a file of which nothing fits, or that is
 * for another architecture, is an error. Knows no backend and no model: only the layer table. */
#ifndef ADAPTER_ADAPTER_H
#define ADAPTER_ADAPTER_H
#include "file/file.h"
#include "graph/layer.h"
#include <kron/session.h> /* KRON_BLOCKS, kron_step_point */

/* --- a file (adapter_file.c) --- */

struct adapter_file; /* immutable after open, so any number of threads may share one */

/* Opens an adapter in a format of st_open(), and adapter_config.json beside it where that is there
 * and the file has no alphas of its own (PEFT keeps alpha there).
 * Returns KRON_ERR_IO; KRON_ERR_FORMAT for a damaged file or one that holds no adapter tensor. */
kron_status adapter_open(struct adapter_file **out, const char *path);
/* The same over memory that the caller keeps. `config`: text of adapter_config.json, or NULL. */
kron_status adapter_open_memory(struct adapter_file **out, const void *data, size_t bytes,
                                const char *name, const char *config);
void adapter_close(struct adapter_file **f); /* NULL inside is fine */
const char *adapter_path(const struct adapter_file *f);

/* --- textual inversion: words that stand for vectors (adapter_embed.c) --- */

/* Which text encoder a tensor is for, by its name. ONLY: the one of a model that has one. */
enum embedding_part { EMBEDDING_ONLY, EMBEDDING_CLIP_L, EMBEDDING_CLIP_G, EMBEDDING_PARTS };
struct embedding {
    const char *word; /* as it stands in prompts */
    const struct tensor *of[EMBEDDING_PARTS]; /* [n, width] or [width], unchecked; NULL: none */
};
/* Those that an adapter's file brings with it; they live as long as the file is open. */
int adapter_embedding_count(const struct adapter_file *f);
const struct embedding *adapter_embedding(const struct adapter_file *f, int i);

struct embedding_file; /* a file that holds the vectors of one word, its name */
/* Returns KRON_ERR_IO; KRON_ERR_FORMAT for a damaged file or one without such tensors. */
kron_status embedding_open(struct embedding_file **out, const char *path);
void embedding_close(struct embedding_file **f); /* NULL inside is fine */
const struct embedding *embedding_get(const struct embedding_file *f);

/* What a file was made for, as far as its metadata, names and shapes tell. */
#define ADAPTER_ARCH_LIST(X)                                                               \
    X(UNKNOWN, "an unknown model") X(SD1, "SD 1.x") X(SD2, "SD 2.x") X(SDXL, "SDXL")       \
    X(SD3, "SD 3") X(FLUX, "FLUX") X(CASCADE, "Stable Cascade") X(QWEN, "Qwen-Image")      \
    X(ZIMAGE, "Z-Image or Lumina") X(WAN, "Wan") X(DIT, "another diffusion transformer")
enum adapter_arch {
#define ADAPTER_ARCH_ENUM(name, text) ADAPTER_ARCH_##name,
    ADAPTER_ARCH_LIST(ADAPTER_ARCH_ENUM)
#undef ADAPTER_ARCH_ENUM
};
const char *adapter_arch_text(enum adapter_arch a);

/* --- what a file says by itself (adapter_summary.c) --- */

struct adapter_range { /* of a number over modules */
    int n; /* modules that have it; 0: min and max mean nothing */
    double min, max;
};

struct adapter_summary {
    int n_modules, n_tensors, n_embeddings;
    enum adapter_arch arch;
    size_t bytes;
    unsigned types; /* of the factors: bits 1 << DT_x */
    struct adapter_range rank, factor, alpha, scale; /* factor: rows of LoKr's w1 */
    int n_whole; /* LoKr pairs without a low-rank factor, whose alpha does not count */
};
void adapter_summarise(const struct adapter_file *f, struct adapter_summary *s);
/* Adds the families in it: "LoKr", "LoRA + bias difference". */
void adapter_families(const struct adapter_file *f, struct str *out);

/* --- names of a model's layers in adapter files (adapter_names.c) --- */

struct adapter_names; /* keeps pointers into the table, which must outlive it; immutable */

/* Layers' names may or may not begin with "text_model."; VAE layers are left out. The table's
 * aliases are names too: of layers that this model holds in pieces, or as a piece of another. */
kron_status adapter_names_create(struct adapter_names **out, const struct layer_table *layers);
void adapter_names_free(struct adapter_names **n);
/* Which architecture the table itself is of: from its parts and the width of its context. */
enum adapter_arch adapter_names_arch(const struct adapter_names *n);

enum adapter_find { ADAPTER_FOUND, ADAPTER_NOT_FOUND, ADAPTER_AMBIGUOUS };
/* Rows [at, at + rows) of a layer, which are rows [from, from + rows) of a module's. */
struct adapter_target {
    const struct layer *layer;
    int64_t at, rows, from;
};
struct adapter_match {
    enum adapter_find found;
    /* FOUND: the shape that a module of this name has: a layer of the table, or one that stands
     * for an alias. NOT_FOUND: the nearest, or NULL. */
    const struct layer *layer;
    const struct adapter_target *targets; /* FOUND: what the module changes; 1 but for aliases */
    int n_targets;
    const char *naming; /* FOUND: "kohya, sgm names" and the like; static */
};
/* Looks up what stands before a tensor's part name. width: of the module's input, 0 if unknown;
 * where a name may be of either text encoder, or is of one that it does not fit, it decides. */
struct adapter_match adapter_names_find(const struct adapter_names *n, const char *prefix,
                                        int64_t width);

/* --- control: where, when and how much an adapter acts (adapter_control.c) --- */

/* Blocks of a network, numbered as A1111's sd-webui-lora-block-weight does: BASE, IN00 to IN11,
 * M00, OUT00 to OUT11. BASE is the text encoders and, of the UNet, all that stands in no block:
 * the embeddings of time and size and the last convolution. */
enum { ADAPTER_BLOCKS = KRON_BLOCKS };
int adapter_block(const struct layer *l);

/* Strengths of one file in a run: [0] text encoders, [1 + b] block b of the UNet. */
enum { ADAPTER_SLOTS = 1 + ADAPTER_BLOCKS };
int adapter_slot(const struct layer *l);

/* True if each row of the layer's input is a place of the image: not so for what reads the text
 * or the time. Only such a layer can be confined to a region. */
bool adapter_sees_image(const struct layer *l);

/* How the UNet's strength goes over the steps of a run. Step i of n, from 0, stands at i / n; by
 * numbers, at i + 1. {0}: the same at every step. */
struct adapter_steps {
    float start, stop; /* acts where start <= place < stop; stop 0: to the end */
    bool in_numbers;   /* start and stop are step numbers, from 1; else shares of the run */
    const kron_step_point *points; /* a factor along the run: straight lines between points, */
    int n_points;                  /* constant before the first and after the last; where two stand
                                    * at one place the later holds from there on */
    bool points_in_numbers;
};
/* True if the factor may differ from step to step. */
bool adapter_steps_vary(const struct adapter_steps *s);
float adapter_steps_factor(const struct adapter_steps *s, int step, int n_steps);

/* One use of a file. Zeroed after the strengths: everywhere, at every step. */
struct adapter_use {
    const struct adapter_file *file; /* must outlive the set */
    float te_strength, unet_strength;
    const float *blocks;        /* ADAPTER_BLOCKS factors; NULL: all 1 */
    struct adapter_steps steps; /* of the UNet; text is encoded once */
    float scale;                /* c, in place of what the file says; 0: the file's */
    const struct delta_region *region; /* NULL: the whole image */
};

/* The ADAPTER_SLOTS strengths of a use at step `step` (from 0) of n_steps. */
void adapter_strengths(const struct adapter_use *u, int step, int n_steps, float *out);

/* --- lists of block weights (adapter_presets.c) --- */

/* Lists by name: lines NAME:NUMBER,NUMBER,... of a file. Blank lines and lines
 * that begin with # count for nothing. */
struct adapter_presets;
/* Returns KRON_ERR_IO; KRON_ERR_FORMAT for a line without a colon, named by its number. */
kron_status adapter_presets_read(struct adapter_presets **out, const char *path);
void adapter_presets_free(struct adapter_presets **p);

/* Reads what stands after lbw=: the name of a preset, looked up in `p` (NULL: none) and then among
 * NONE ALL INS IND INALL MIDD OUTD OUTS OUTALL ALL0.5; or numbers with commas, BASE first: 17 or
 * 26 for SD 1.x and 2.x, 12, 20 or 26 for SDXL (`xl`). Blocks that a short list leaves out get 0.
 *   out  ADAPTER_BLOCKS factors.
 * KRON_ERR_ARGUMENT says which numbers or names were expected. */
kron_status adapter_blocks_read(const struct adapter_presets *p, const char *text, bool xl,
                                float *out);

/* --- binding (adapter_bind.c) --- */

/* One set of active adapters: deltas and reports. A file given twice counts twice. Immutable:
 * strengths are computed for each step by adapter_strengths() and given to a run. */
struct adapter_set;

/* strict: anything that is skipped is an error.
 * Returns KRON_ERR_SHAPE if a file fits no layer (naming it, and what it seems to be for), or
 * with `strict` for a shape or name that does not fit; KRON_ERR_UNSUPPORTED with `strict` for a
 * family that is not there, or if nothing else kept a file from being applied; KRON_ERR_MEMORY.
 * *out is NULL then. n = 0 gives a set without deltas. Deltas of file i have the strength numbers
 * ADAPTER_SLOTS * i and up. Regions are copied. */
kron_status adapter_bind(struct adapter_set **out, const struct adapter_use *uses, int n,
                         const struct adapter_names *names, bool strict);
void adapter_set_free(struct adapter_set **s);

const struct delta_set *adapter_set_deltas(const struct adapter_set *s);
int adapter_set_count(const struct adapter_set *s); /* files */
/* Writes the ADAPTER_SLOTS * count strengths of the uses that were bound, at the first step. */
void adapter_set_get_strengths(const struct adapter_set *s, float *out);
/* Bytes of factors that had to be folded and are not views of the files. */
size_t adapter_set_bytes(const struct adapter_set *s);

/* --- report (adapter_report.c) --- */

enum adapter_skip_why {
    ADAPTER_SKIP_NAME,    /* no layer of that name, or more than one */
    ADAPTER_SKIP_SHAPE,   /* does not fit its layer */
    ADAPTER_SKIP_PARTNER, /* another tensor of its module is missing, or there twice */
    ADAPTER_SKIP_FAMILY,  /* a family or part that is not supported */
    ADAPTER_SKIP_KEY      /* no adapter tensor at all */
};

struct adapter_skip {
    enum adapter_skip_why why;
    const char *name; /* of the module, or of the tensor where a single one was left out */
    const char *text; /* what is wrong, with shapes and the nearest name */
};

/* Layers of one block, and how many of them a file changes. */
struct adapter_cover {
    enum layer_part part;
    const char *block; /* "input_blocks.4", "layers.3", "time_embed" */
    int n_layers, n_changed; /* linear layers and convolutions; others only where changed */
};

/* |f(W) - W| / |W| at strength 1, of changes that are a product of factors. */
struct adapter_layer_change {
    const struct layer *layer;
    double ratio;
};
struct adapter_change {
    struct adapter_layer_change *layers; /* those looked at */
    int n;                               /* 0: the others mean nothing */
    double min, median, max;
    const struct layer *largest;
};

enum { ADAPTER_MAX_WARNINGS = 2 };

struct adapter_report {
    const char *path;
    const char *family;            /* "LoKr", "LoRA, LoHa" */
    const char *naming;            /* as adapter_match.naming; "mixed" */
    enum adapter_arch arch;        /* what the file seems to be for */
    int n_modules, n_applied;      /* modules in the file; those that changed a layer */
    int n_tensors, n_tensors_used; /* tensors in the file; those of applied modules */
    int n_outside;                 /* modules left out since a region cannot confine them */
    int n_embeddings;              /* words whose vectors the file brings */
    const char *embeddings;        /* "cat, dog"; "" for none */
    int64_t rank_min, rank_max;    /* 0: nothing is low rank */
    int64_t up_min, up_max;        /* LoKr: rows of w1, what trainers call factor; else 0 */
    struct adapter_range alpha, scale; /* over the file's modules; scale: as used */
    struct adapter_cover *cover;       /* by block, in the order of the layers */
    int n_cover;
    struct adapter_change change;      /* of a few layers spread over the file */
    const char *warnings[ADAPTER_MAX_WARNINGS]; /* what is likely wrong; one sentence each */
    int n_warnings;
    const struct adapter_skip *skips;
    int n_skips;
};
/* Of file i; lives as long as the set. */
const struct adapter_report *adapter_set_report(const struct adapter_set *s, int i);
/* Adds lines, each ending in a newline: one of summary, one of the size of the change, warnings,
 * then up to max_skips of what was left out, then how many more there were. */
void adapter_report_text(const struct adapter_report *r, int max_skips, struct str *out);

/* What is in a file, as text or as JSON: families, numbers, what it was made for, trigger words,
 * tags and settings of its training. With `names` (or NULL) also how it fits that model: layers
 * changed in each block and by how much, what is skipped and why; a file that does not fit at all
 * is no error here. `model` names the model in the text. (adapter_info.c) */
kron_status adapter_info(const struct adapter_file *f, const struct adapter_names *names,
                         const char *model, bool json, struct str *out);

/* --- what a family means (adapter_reference.c) --- */

int adapter_count(const struct adapter_file *f); /* modules */
const char *adapter_prefix(const struct adapter_file *f, int module);
/* Adds the change that a module makes of W[out, k] at strength 1 to dw, all in double, straight
 * from the file's tensors by the formula of its family: what the canonical forms are tested
 * against. A layer without data counts as zeros. KRON_ERR_SHAPE where the module does not fit,
 * KRON_ERR_UNSUPPORTED for a family that is not there. */
kron_status adapter_reference(const struct adapter_file *f, int module, const struct layer *l,
                              double *dw);

#endif
