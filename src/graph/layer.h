/* SPDX-License-Identifier: MIT
 * graph/layer.h - a layer's weight, and what adapters change of it.
 *
 * A layer owns views of its base weight and bias, mapped and never written. A delta is one
 * adapter's change of one layer, in one of four canonical forms over the matrix view
 * W[out, k], k = in * kh * kw (the file's own order, so a convolution row is [in][kh][kw]):
 *
 *   low rank   s c A B            A[out, r]    B[r, k]
 *   Hadamard   s c (A B) * (C D)  A, C[out, r] B, D[r, k], elementwise product
 *   Kronecker  s c W1 (x) W2      W1[up, uq]   W2[vp, vq*kh*kw], out = up*vp, in = uq*vq;
 *                                 W2 whole, or as A[vp, r] B[r, vq*kh*kw]
 *   full       s D                D[out, k]
 *
 * where c comes from the file (alpha / rank) and s, the strength, is an input of each run. The
 * adapter room brings every family and layout (lora_mid, Tucker cores, split w1, flat w2) to
 * these forms; backends know only these. Each delta starts from the plain W, so deltas add up.
 * With a Kronecker row o = i*vp + j, W row o gains s c sum_l W1[i, l] W2[j, :] at column
 * l*vq*kh*kw: one pass over the row in cache, and the product is never stored. */
#ifndef GRAPH_LAYER_H
#define GRAPH_LAYER_H
#include "tensor/tensor.h"

enum layer_kind { LAYER_LINEAR, LAYER_CONV, LAYER_NORM, LAYER_EMBED };
enum layer_part { PART_UNET, PART_TE0, PART_TE1, PART_VAE, PART_COUNT };

struct layer {
    int id;           /* index in its layer_table */
    enum layer_part part;
    enum layer_kind kind;
    const char *name;   /* diffusers / transformers name without part: "conv_in" */
    const char *native; /* name in a single file, without prefix: "input_blocks.0.0" */
    int64_t out, in;    /* norm: out = channels, in = 1; embedding: out = rows, in = width */
    int kh, kw;         /* 1 for all but k x k convolutions */
    bool is_conv;       /* weight is 4-D in the file: a 1x1 convolution runs as a linear layer */
    struct tensor weight; /* out * k elements; may be a row window of a fused tensor */
    struct tensor bias;   /* out elements, or data NULL */
};

static inline int64_t layer_k(const struct layer *l)
{
    return l->in * l->kh * l->kw;
}

/* All layers of a loaded model. Layers never move: graphs and adapters keep pointers. */
struct layer_table {
    struct layer **at;
    int n;
};

enum delta_kind { DELTA_LOW_RANK, DELTA_HADAMARD, DELTA_KRON, DELTA_FULL };

/* Factors are views: of the mapped adapter file in its own type where its layout is already
 * canonical, else of f32 memory that the set owns. Absent factors have data NULL. */
struct delta {
    enum delta_kind kind;
    int strength; /* index into the strengths of a run */
    float scale;  /* c */
    int64_t rank; /* r; 0 where nothing is low rank */
    struct tensor a, b; /* low rank, Hadamard; Kronecker: the two parts of a low-rank W2 */
    struct tensor c, d; /* Hadamard: second pair; full: d alone */
    struct tensor w1, w2;
    int64_t up, uq, vp, vq; /* Kronecker */
};

struct delta_list {
    int n;
    struct delta *at;
};

/* The deltas of all active adapters. Immutable once bound; any number of runs may share it. */
struct delta_set {
    struct delta_list *by_layer; /* by layer id */
    int n_layers;
    int n_strengths;
};

/* The deltas of a layer; a list of none where the set is NULL. */
struct delta_list delta_set_list(const struct delta_set *set, const struct layer *l);

/* Adds a delta's change of rows [row, row + n) to w[n, k], in double where sums are taken: the
 * definition, slow. strength is s. */
void delta_add_ref(const struct delta *d, const struct layer *l, float strength, int64_t row,
                   int64_t n, double *w);

/* Multiply-adds that writing the delta into the whole weight costs. */
double delta_weight_cost(const struct delta *d, const struct layer *l);
/* Multiply-adds per row of activations on the activation route. */
double delta_row_cost(const struct delta *d, const struct layer *l);

#endif
