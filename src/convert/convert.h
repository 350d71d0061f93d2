/* SPDX-License-Identifier: MIT
 * convert/ - adapter files made from others, and adapters baked into a checkpoint.
 *
 * Works on what adapter/ binds: layers and deltas. Knows no backend and no network. What a tool
 * writes is opened again before it gets its name, bound like any other file and held against what
 * was asked for: the distances in the report are of the bytes written. */
#ifndef CONVERT_CONVERT_H
#define CONVERT_CONVERT_H
#include "adapter/adapter.h"
#include <kron/adapter.h>

/* --- distances (distance.c) --- */

/* |x - y| / |y| of two changes of a layer's weight and bias, and |y|. KRON_ERR_UNSUPPORTED where
 * they depend on a weight that the layer does not have. */
kron_status change_distance(const struct layer *l, struct delta_list x, const float *xs,
                            struct delta_list y, const float *ys, double *distance,
                            double *size);

/* --- names (naming.c) --- */

/* What stands before a tensor's part in files of a naming; checked to be found again. */
kron_status naming_prefix(const struct adapter_names *names, kron_naming naming,
                          const struct layer *l, struct str *out);

/* --- layers that files themselves tell of (own_layers.c) --- */

/* A table made from the names and shapes of the first file that has each; layers have no weights.
 * Modules whose shapes do not tell their layer are left out. */
struct own_layers {
    struct arena mem;
    struct layer_table table;
    struct adapter_names *names;
};
kron_status own_layers_create(struct own_layers *o, struct adapter_file *const *files, int n);
void own_layers_free(struct own_layers *o);

/* --- tensors on their way into a file (writing.c) --- */

struct out_tensors {
    struct arena mem;   /* names */
    struct tensor *at;
    bool *owned;        /* its data were allocated */
    size_t n, cap;
};
void out_free(struct out_tensors *o);
/* A tensor as it lies in another file. */
kron_status out_view(struct out_tensors *o, const char *name, const struct tensor *t);
/* Numbers in `type`. name: a printf pattern of prefix and ending. */
kron_status out_numbers(struct out_tensors *o, const char *prefix, const char *ending,
                        enum dtype type, int n_dims, const int64_t *dim, const float *x);
enum dtype dtype_of(kron_type t, enum dtype keep);

/* --- which tensor gets which type (type_rules.c) --- */

struct type_rules { /* {0} is none */
    struct type_rule *at;
    int n;
};
/* "pattern=type,pattern=type": POSIX extended regular expressions; NULL or "": none. What cannot
 * be read is KRON_ERR_ARGUMENT. Free also after a failure. */
kron_status type_rules_parse(struct type_rules *r, const char *text);
void type_rules_free(struct type_rules *r);
/* The type of t, found by its name, shape and type, where `type` is asked for: that of the first
 * rule whose pattern is found in the name, else `type`, where t can have it; else t's own.
 * Integers stay. f8 is for two axes and more; blocks for two, in rows of whole blocks, and without
 * a rule not for embeddings of words, time and sizes. */
enum dtype type_rules_choose(const struct type_rules *r, kron_type type, const struct tensor *t);

/* --- the squares of input channels (importance.c) --- */

/* Sums by the name of the weight. Additions of several threads are its caller's to order. */
struct importance;
kron_status importance_create(struct importance **out);
void importance_free(struct importance **im);
/* Adds rows of inputs x[rows, k]. */
kron_status importance_add(struct importance *im, const char *name, const float *x, int64_t rows,
                           int64_t k);
/* Adds what a file holds. */
kron_status importance_read(struct importance *im, const char *path);
kron_status importance_write(const struct importance *im, const char *path);
/* Mean squares of k channels, all above 0, into out; false if there are none of that name and
 * size. im may be NULL. */
bool importance_get(const struct importance *im, const char *name, int64_t k, float *out);

/* --- numbers in another type (recode.c) --- */

/* Writes t in `type` to out, row by row on all threads of OpenMP. KRON_ERR_ARGUMENT if a finite
 * number has no finite one in the type. im may be NULL. */
kron_status recode(const struct tensor *t, enum dtype type, const struct importance *im,
                   void *out);

/* --- the tools --- */

struct convert_job {
    const kron_adapter_convert_params *params;
    const struct adapter_use *uses; /* the inputs, opened; params->n_inputs */
    const struct adapter_names *names; /* the model's, or of own_layers */
};
/* report: lines are added. */
kron_status convert_adapter(const struct convert_job *job, struct str *report);

struct bake_job {
    const kron_convert_params *params;
    const struct st_file *checkpoint;  /* whose metadata are kept; NULL: none */
    const struct layer_table *layers;
    const struct adapter_set *set;
    const struct adapter_use *uses;    /* for the metadata; params->n_adapters */
    const struct tensor *tensors;      /* what is written, in this order: the layers' weights lie in
                                          them. NULL: all of the checkpoint */
    int64_t n_tensors;
    const char *const *meta;           /* added to the metadata: key, value, key ... */
    int64_t n_meta;                    /* pairs */
};
kron_status bake(const struct bake_job *job, struct str *report);

#endif
