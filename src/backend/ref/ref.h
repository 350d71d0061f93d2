/* SPDX-License-Identifier: MIT
 * backend/ref - every operation in plain C: the definition that other backends are tested
 * against. One accumulation order, sums in double, no threads, no layout but the file's. */
#ifndef BACKEND_REF_REF_H
#define BACKEND_REF_REF_H
#include "backend/backend.h"

/* A delta that is confined to a region: its own weight, and a factor for each pixel. */
struct ref_region {
    double *w; /* [out, k] */
    float *mask;
};

/* What an operation works on: its values as host memory, its layer's effective weight. */
struct ref_call {
    const struct graph *g;
    const struct gr_op *op;
    const float *x[GR_MAX_IN];  /* inputs; NULL where absent */
    const int32_t *ids;         /* embed: the input as integers */
    float *y;
    const double *w;            /* effective weight [out, k]; NULL where op->layer is none */
    const double *b;            /* bias [out]; zeros where the layer has none */
    const struct ref_region *regions;
    int n_regions;
    struct gr_shape xs, ys;     /* shapes of x[0] and y */
};

typedef void (*ref_fn)(const struct ref_call *c);
extern const ref_fn ref_ops[OP_COUNT];

#endif
