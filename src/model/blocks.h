/* SPDX-License-Identifier: MIT
 * model/blocks.h - what UNet and VAE share: the residual block. */
#ifndef MODEL_BLOCKS_H
#define MODEL_BLOCKS_H
#include "model/model.h"

enum { NORM_GROUPS = 32 };

/* A pair of complete names of one thing: in a single file, and in diffusers. */
struct names {
    char native[160], name[160];
};
/* base + ".suffix" on each side; an empty base gives the suffix alone. */
struct names names_sub(const struct names *base, const char *native, const char *name);
struct names names_of(const char *native_fmt, const char *name_fmt, int native_a, int native_b,
                      int name_a, int name_b);

const struct layer *load_sub(struct loader *ld, enum layer_kind kind, const struct names *base,
                             const char *native, const char *name, bool needed);
bool has_sub(const struct loader *ld, const struct names *base, const char *native,
             const char *name);

/* time_silu: silu of the time embedding [n, 1, 1, c], or GR_NONE. */
gr_ref resnet_graph(struct graph *g, gr_ref x, const struct resnet *r, gr_ref time_silu, float eps);

#endif
