/* SPDX-License-Identifier: MIT
 * adapter/family.h - what the files of this room share: parts, modules, and what a family gets
 * to bring a module to canonical form. */
#ifndef ADAPTER_FAMILY_H
#define ADAPTER_FAMILY_H
#include "adapter/adapter.h"

/* --- names (adapter_names.c) --- */

const struct layer_table *names_layers(const struct adapter_names *n);

/* --- parts of a module and families (adapter_parts.c) --- */

/* BOUND families are brought to canonical form; DoRA changes what others of its module make. Of
 * those that are not there, WHOLE ones keep their module from being applied at all, SINGLE ones
 * only leave out their own tensor. */
#define FAM_LIST(X)                                                                            \
    X(LORA, BOUND, "LoRA") X(LOHA, BOUND, "LoHa") X(LOKR, BOUND, "LoKr")                       \
    X(FULL, BOUND, "full difference") X(DORA, BOUND, "DoRA") X(OFT, BOUND, "OFT")              \
    X(BOFT, BOUND, "BOFT") X(GLORA, BOUND, "GLoRA") X(IA3, BOUND, "IA3")                       \
    X(SET, BOUND, "weight replacement") X(NORM, BOUND, "norm difference")                      \
    X(BIAS, BOUND, "bias difference") X(RESHAPE, WHOLE, "a weight of another shape")           \
    X(PACKED, WHOLE, "Nunchaku's packed LoRA") X(SPARSE, SINGLE, "a sparse rest")              \
    X(NONE, BOUND, "no family")
enum fam {
#define FAM_ENUM(name, kind, text) FAM_##name,
    FAM_LIST(FAM_ENUM)
#undef FAM_ENUM
        FAM_COUNT
};
enum fam_kind { FAM_BOUND, FAM_WHOLE, FAM_SINGLE };
const char *fam_text(enum fam f);
enum fam_kind fam_kind(enum fam f);

#define AP_LIST(X)                                                                             \
    X(LORA_UP, LORA) X(LORA_DOWN, LORA) X(LORA_MID, LORA) X(LORA_BIAS, BIAS) X(ALPHA, NONE)    \
    X(SCALE, NONE) X(SCALAR, NONE) X(LOKR_W1, LOKR) X(LOKR_W1_A, LOKR) X(LOKR_W1_B, LOKR)      \
    X(LOKR_W2, LOKR) X(LOKR_W2_A, LOKR) X(LOKR_W2_B, LOKR) X(LOKR_T2, LOKR) X(HADA_W1_A, LOHA) \
    X(HADA_W1_B, LOHA) X(HADA_W2_A, LOHA) X(HADA_W2_B, LOHA) X(HADA_T1, LOHA) X(HADA_T2, LOHA) \
    X(DIFF, FULL) X(DIFF_B, BIAS) X(SPARSE_INDICES, SPARSE) X(SPARSE_VALUES, SPARSE)           \
    X(SPARSE_SIZE, SPARSE) X(W_NORM, NORM) X(B_NORM, NORM) X(DORA_SCALE, DORA)                   \
    X(OFT_BLOCKS, OFT) X(OFT_DIAG, OFT) X(OFT_R, OFT) X(RESCALE, OFT) X(GLORA_A1, GLORA)       \
    X(GLORA_A2, GLORA) X(GLORA_B1, GLORA) X(GLORA_B2, GLORA) X(GLORA_BM, GLORA)                \
    X(IA3_WEIGHT, IA3) X(IA3_ON_INPUT, IA3) X(IA3_L, IA3) X(SET_WEIGHT, SET)                   \
    X(RESHAPE_WEIGHT, RESHAPE) X(PACKED_UP, PACKED) X(PACKED_DOWN, PACKED)
enum ap {
#define AP_ENUM(name, fam) AP_##name,
    AP_LIST(AP_ENUM)
#undef AP_ENUM
        AP_COUNT
};
enum fam part_family(enum ap part);
/* Splits "prefix.part": the part that the longest known ending names and the prefix's length;
 * AP_COUNT if no ending is known. A bare ".weight" is IA3_WEIGHT, which the caller must confirm. */
enum ap ap_split(const char *name, size_t *prefix_len);

/* --- a file (adapter_file.c) --- */

struct adapter_module {
    const char *prefix;
    const struct tensor *part[AP_COUNT]; /* NULL where absent */
    int n_parts;
};

struct adapter_leftover {
    const struct tensor *t;
    bool twice; /* its part is there already; else its name is not of an adapter tensor */
};

/* PEFT's numbers for one network: adapter_config.json, or metadata that diffusers writes. */
struct adapter_config {
    double alpha, r; /* NAN: not given */
    bool rslora;
    struct adapter_pattern {
        const char *key; /* end of a module's name */
        double alpha;
    } *patterns;
    int n_patterns;
};
enum { CONFIG_UNET, CONFIG_TE0, CONFIG_TE1, CONFIG_COUNT };

struct adapter_file {
    struct st_file *st;
    struct arena mem;
    struct adapter_module *modules;
    int n_modules;
    struct adapter_leftover *leftovers;
    int n_leftovers, n_tensors;
    struct embedding *embeddings;
    int n_embeddings;
    bool has_config;
    struct adapter_config config[CONFIG_COUNT];
    bool cdka; /* full Kronecker pairs are scaled by alpha / sqrt(uq): kohya's CDKA, KronA */
    enum adapter_arch arch;
};

/* Width of the input that a module is for; 0 if its tensors do not tell (adapter_arch.c). */
int64_t module_width(const struct adapter_module *m);
unsigned module_families(const struct adapter_module *m); /* bits 1 << FAM_x, NONE left out */
enum adapter_arch arch_guess(const struct adapter_file *f); /* adapter_arch.c */

/* --- bundled embeddings (adapter_embed.c) --- */

bool embedding_bundled(const char *name); /* of a tensor */
/* *known: whether the tensor was taken; not, if its end says nothing or its place is taken. */
kron_status embedding_add(struct adapter_file *f, const struct tensor *t, bool *known);

/* --- metadata and PEFT's config (adapter_config.c) --- */

/* Reads f's metadata, and `config` if it is not NULL. What cannot be read counts as absent. */
kron_status config_read(struct adapter_file *f, const char *config);

/* --- scale (adapter_scale.c) --- */

/* What stands before the product of a module's factors.
 *   rank  of the low-rank factor, from its tensor's shape; 0 where every factor is whole
 *   uq    LoKr: columns of w1; else 0 */
double module_scale(const struct adapter_file *f, const struct adapter_module *m, int64_t rank,
                    int64_t uq);

/* --- bringing a module to canonical form --- */

/* f32 memory that a set owns. */
struct factor_pool {
    void **at;
    size_t n, cap;
    size_t bytes;
};
void factor_pool_free(struct factor_pool *p);

struct bind {
    const struct adapter_file *file;
    const struct adapter_module *m;
    const struct layer *l;
    struct factor_pool *pool;
    float scale; /* replaces what module_scale() gives; 0: it does not */
};
double bind_scale(const struct bind *b, int64_t rank, int64_t uq); /* as module_scale() */

/* Each fills d, which changes the whole layer, from a module that has its family. KRON_ERR_SHAPE:
 * does not fit; KRON_ERR_FORMAT: a partner is missing; KRON_ERR_UNSUPPORTED: a storage type; all
 * with a sentence. */
kron_status lora_bind(const struct bind *b, struct delta *d);
kron_status loha_bind(const struct bind *b, struct delta *d);
kron_status lokr_bind(const struct bind *b, struct delta *d);
kron_status full_bind(const struct bind *b, struct delta *d);
kron_status set_bind(const struct bind *b, struct delta *d);
kron_status norm_bind(const struct bind *b, struct delta *d);
kron_status bias_bind(const struct bind *b, struct delta *d);
kron_status ia3_bind(const struct bind *b, struct delta *d);
kron_status oft_bind(const struct bind *b, struct delta *d); /* BOFT too */
kron_status glora_bind_input(const struct bind *b, struct delta *d);
kron_status glora_bind_sum(const struct bind *b, struct delta *d);
/* Adds DoRA's magnitude to a delta that another family of the module made. */
kron_status dora_bind(const struct bind *b, struct delta *d);

/* GLoRA's four factors by their roles, whichever of its two layouts the file has: the change is
 * c (W left right + up down). KRON_ERR_FORMAT, KRON_ERR_SHAPE. */
struct glora_parts {
    const struct tensor *left, *right, *up, *down; /* [in, r] [r, in] [out, r] [r, k] */
    int64_t rank;
};
kron_status glora_parts(const struct bind *b, struct glora_parts *g);

/* Confines a delta that was bound for match.layer to one of its targets (adapter_window.c).
 * KRON_ERR_UNSUPPORTED, with a sentence, where rows of different targets depend on each other. */
kron_status delta_window(struct delta *d, const struct adapter_target *t);

/* The four numbers of a LoKr module, and whether w2's columns run across channels and kernel
 * positions in a way that no Kronecker product over channels has (uq does not divide in). */
struct lokr_shape {
    int64_t up, uq, vp, m; /* w1[up, uq], w2[vp, m]: out = up*vp, in*kh*kw = uq*m */
    int64_t rank;          /* that the scale is taken from; 0: both whole */
    bool across;
};
kron_status lokr_shape(const struct adapter_module *m, const struct layer *l,
                       struct lokr_shape *s);

/* --- factors (factor.c) --- */

/* True if t is [a, b, c, d], missing and trailing axes counting as 1. */
bool shape_is(const struct tensor *t, int64_t a, int64_t b, int64_t c, int64_t d);
/* As [a, in, kh, kw], or flat as [a, in*kh*kw]. */
bool shape_is_kernel(const struct tensor *t, int64_t a, int64_t in, int kh, int kw);
/* "[320, 4, 3, 3]" of a layer's weight; as tensor_shape_text(). */
const char *layer_shape_text(const struct layer *l, char *buf, size_t n);
/* KRON_ERR_SHAPE: "lora_down.weight is [4, 768], which does not fit the layer's [320, 1024]". */
kron_status misfit(const struct bind *b, const struct tensor *t);
/* KRON_ERR_FORMAT unless both or neither are there. */
kron_status need_both(const struct adapter_module *m, enum ap a, enum ap b, const char *a_text,
                      const char *b_text);

/* n numbers of t as f32. */
kron_status factor_floats(const struct bind *b, const struct tensor *t, int64_t n,
                          const float **out);
/* n zeros, to be filled. */
kron_status factor_zeros(const struct bind *b, int64_t n, float **out);
/* t as [rows, cols], a view where its type and alignment suit kernels, else copied to f32. */
kron_status factor_view(const struct bind *b, const struct tensor *t, int64_t rows, int64_t cols,
                        struct tensor *out);
/* t[cols, rows] as [rows, cols]. */
kron_status factor_transposed(const struct bind *b, const struct tensor *t, int64_t rows,
                              int64_t cols, struct tensor *out);
/* a[rows, r] b[r, cols] as one factor. */
kron_status factor_product(const struct bind *b, const struct tensor *x, const struct tensor *y,
                           int64_t rows, int64_t r, int64_t cols, struct tensor *out);
/* Core t[r1, r2, ks] contracted with b[r2, cols]: out[r1, cols*ks]. */
kron_status factor_core(const struct bind *b, const struct tensor *t, const struct tensor *y,
                        int64_t r1, int64_t r2, int64_t cols, int64_t ks, struct tensor *out);
/* kron(w1[up, uq], w2[vp, m]) as one factor [up*vp, uq*m]. */
kron_status factor_kron(const struct bind *b, const struct tensor *w1, const struct tensor *w2,
                        const struct lokr_shape *s, struct tensor *out);

#endif
