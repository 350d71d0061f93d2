/* SPDX-License-Identifier: MIT
 * adapter/product.h - what deltas change, in f32 and fast enough for whole files: for reports and
 * for the tools in convert/. The definition is graph/layer.h's. */
#ifndef ADAPTER_PRODUCT_H
#define ADAPTER_PRODUCT_H
#include "graph/layer.h"

/* Factors of one delta, decoded. Those that its form lacks are NULL. */
struct product {
    const struct delta *d;
    int64_t rows, k; /* of D that are used */
    float *a, *b;   /* low rank, Hadamard: [rows, r], [r, k]; a low-rank w2: [vp, r], [r, m] */
    float *c, *e;   /* Hadamard: the second pair */
    float *w1, *w2; /* Kronecker; w2 multiplied out if it is low rank */
};

/* True where D is one of the four products. */
bool product_has(const struct delta *d);
/* True if that is all: s c D is added to the weight, everywhere, and the bias stays. Such a change
 * needs no weight to be known. */
bool product_is_all(const struct delta *d);
kron_status product_open(struct product *p, const struct delta *d, const struct layer *l);
void product_close(struct product *p); /* {0} is fine */
/* Rows [row, row + n) of those of D that the delta uses, without scale. May be called by many
 * threads at once. */
kron_status product_rows(const struct product *p, int64_t row, int64_t n, float *out);
/* |D| of the rows used, without scale: from the factors where the form allows it, else row by row;
 * of some rows spread over D, scaled up, where `most` is not 0 and D has more numbers than that. */
kron_status product_norm(const struct product *p, int64_t most, double *out);
/* |W| of a layer, looked at likewise. */
kron_status layer_norm(const struct layer *l, int64_t most, double *out);

/* --- what deltas make of a whole layer (effective.c) --- */

/* w[out, k] = the layer's weight with its deltas. Those confined to a region have no part in it. */
kron_status effective_weight(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w);
/* The change alone; a layer without a weight counts as zeros. */
kron_status effective_change(const struct layer *l, struct delta_list list,
                             const float *strengths, float *w);
/* b[out] += the change of the bias. */
void effective_bias(struct delta_list list, const float *strengths, float *b);

#endif
