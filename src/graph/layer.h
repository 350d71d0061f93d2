/* SPDX-License-Identifier: MIT
 * graph/layer.h - a layer's weight, and what adapters change of it.
 *
 * A layer owns views of its base weight and bias, mapped and never written. A delta is one
 * adapter's change f(W) - W of one layer, over the matrix view W[out, k], k = in * kh * kw (the
 * file's own order, so a convolution row is [in][kh][kw]). Most add a product D of factors:
 *
 *   low rank   A B            A[rows, r]   B[r, k]
 *   Hadamard   (A B) * (C D)  A, C[rows, r] B, D[r, k], elementwise product
 *   Kronecker  W1 (x) W2      W1[up, uq]   W2[vp, vq*kh*kw], up*vp rows, in = uq*vq;
 *                             W2 whole, or as A[vp, r] B[r, vq*kh*kw]
 *   full       D              D[rows, k]
 *   input      W (A B)        A[in, r]     B[r, in]: mixes W's input channels (GLoRA)
 *   none       0
 *
 * and change W by s ((g - 1) W + g c D), where c comes from the file (alpha / rank), s, the
 * strength, is an input of each run, and the gain g, of each row or each input channel, is 1 but
 * for IA3 (given) and DoRA (magnitude / norm of W + c D: backends work it out once for a set).
 * The others turn W: with x a vector of b numbers and M a block's matrix [b, b],
 *
 *   left    every column, block by block of rows:   x + s x M, in one or more stages, then rows
 *           times 1 + s (rescale - 1) (OFT, BOFT)
 *   right   every row, block by block of columns:   x + s x M (PEFT's OFT)
 *
 * The adapter room brings every family and layout (lora_mid, Tucker cores, split w1, flat w2) to
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

/* A name that adapter files give to rows of layers that this model lays out otherwise: q, k and v
 * trained as one projection (three entries of one name), or as three where the layer holds them
 * stacked (one entry each). Rows [at, at + rows) of the layer are rows [from, from + rows) of
 * what the name means. Entries of one name stand together, `from` rising from 0 without gaps, on
 * layers that read the same input. */
struct layer_alias {
    const char *name, *native; /* as a layer's; native may be NULL */
    const struct layer *layer;
    int64_t at, rows, from;
};

/* All layers of a loaded model. Layers never move: graphs and adapters keep pointers. */
struct layer_table {
    struct layer **at;
    int n;
    struct layer_alias *aliases;
    int n_aliases;
};

enum delta_kind {
    DELTA_LOW_RANK,
    DELTA_HADAMARD,
    DELTA_KRON,
    DELTA_FULL,
    DELTA_INPUT,
    DELTA_NONE,
    DELTA_LEFT,
    DELTA_RIGHT
};

enum gain_axis { GAIN_NONE, GAIN_OUT, GAIN_IN };

/* Where in the picture a delta counts: a factor of 0..1 for each pixel of a grid that is scaled
 * to the layer's own. Layers whose rows are no pixels do not have such deltas. */
struct delta_region {
    int w, h;
    const float *mask; /* [h, w] */
};

/* Factors are views: of the mapped adapter file in its own type where its layout is already
 * canonical, else of f32 memory that the set owns, as all float arrays are. Absent factors have
 * data NULL, absent arrays are NULL. */
struct delta {
    enum delta_kind kind;
    int strength; /* index into the strengths of a run */
    bool varying; /* the strength changes within a job: not to be merged */
    bool replace; /* f(W) = D whatever the strength, unless that is 0 */
    float scale;  /* c */
    int64_t rank; /* r; 0 where nothing is low rank */
    struct tensor a, b; /* low rank, Hadamard, input; Kronecker: the parts of a low-rank W2 */
    struct tensor c, d; /* Hadamard: second pair; full: d alone */
    struct tensor w1, w2;
    int64_t up, uq, vp, vq; /* Kronecker */
    /* It changes rows [at, at + rows) of the layer, by rows [from, from + rows) of D: less than
     * all where a file has q, k and v as one and the layers have not, or the reverse. */
    int64_t at, rows, from;
    enum gain_axis axis;
    const float *gain;      /* g: [rows] or [in] by axis; or NULL and */
    const float *magnitude; /* the same shape: g = magnitude / norm(W + c D) */
    const float *bias;      /* [rows]: the bias gains s times this */
    /* left, right */
    int stages;
    int64_t n_blocks, block;
    bool butterfly;         /* stage i pairs rows 2^i b/2 apart (BOFT); else blocks follow on */
    const float *mix;       /* M: [stages, n_blocks, block, block] */
    const float *rescale;   /* [rows], or NULL */
    const struct delta_region *region; /* NULL: everywhere */
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

/* True if a strength of the list changes within a job. */
bool delta_list_varies(struct delta_list list);
/* s of a delta in a run. */
float delta_strength(const struct delta *d, const float *strengths);
/* The mask of a region as w x h pixels: means of what each covers; [h, w]. */
void delta_region_scale(const struct delta_region *r, int64_t w, int64_t h, float *out);
/* True if the delta changes the weight, not just the bias. */
bool delta_has_weight(const struct delta *d);
/* Row that element e of block j holds at a stage of a left delta, from `at` on. */
int64_t delta_left_row(const struct delta *d, int stage, int64_t j, int64_t e);

/* The definition, in double, slow. plain is W[out, k] as the file has it; w, which may not be the
 * same memory, gains what the delta changes at strength s. KRON_ERR_MEMORY. */
kron_status delta_add_ref(const struct delta *d, const struct layer *l, float strength,
                          const double *plain, double *w);
/* The effective weight and bias ([out]; zeros where the layer has none) of a layer; deltas that
 * are confined to a region are no part of it. */
kron_status layer_weight_ref(const struct layer *l, struct delta_list list,
                             const float *strengths, double *w);
void layer_bias_ref(const struct layer *l, struct delta_list list, const float *strengths,
                    double *b);

/* Multiply-adds that writing the delta into the whole weight costs. */
double delta_weight_cost(const struct delta *d, const struct layer *l);
/* Multiply-adds per row of activations on the activation route. */
double delta_row_cost(const struct delta *d, const struct layer *l);

#endif
