/* SPDX-License-Identifier: MIT
 * adapter/product.h - a delta's product of factors, in f32 and fast enough for whole files: for
 * reports and for the tools in convert/. The definition is graph/layer.h's. */
#ifndef ADAPTER_PRODUCT_H
#define ADAPTER_PRODUCT_H
#include "graph/layer.h"

/* Factors of one delta, decoded. Those that its form lacks are NULL. */
struct product {
    const struct delta *d;
    int64_t rows, k; /* D[rows, k] */
    float *a, *b;   /* low rank, Hadamard: [rows, r], [r, k]; a low-rank w2: [vp, r], [r, m] */
    float *c, *e;   /* Hadamard: the second pair */
    float *w1, *w2; /* Kronecker; w2 multiplied out if it is low rank */
};

/* True for deltas that only add s c D, D one of the four products: what the functions here take. */
bool product_has(const struct delta *d);
kron_status product_open(struct product *p, const struct delta *d, const struct layer *l);
void product_close(struct product *p); /* {0} is fine */
/* Rows [row, row + n) of D, without scale. May be called by many threads at once. */
kron_status product_rows(const struct product *p, int64_t row, int64_t n, float *out);
/* |D|, without scale: from the factors where the form allows it, else row by row; of some rows
 * spread over D, scaled up, where `most` is not 0 and D has more numbers than that. */
kron_status product_norm(const struct product *p, int64_t most, double *out);
/* |W| of a layer, looked at likewise. */
kron_status layer_norm(const struct layer *l, int64_t most, double *out);

#endif
