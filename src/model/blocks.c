/* SPDX-License-Identifier: MIT
 * Names of sub-layers, and the residual block. */
#include "model/blocks.h"
#include <string.h>

/* Names are made of our own words and small numbers, so that too long a one is our fault. */
static void join(char out[160], const char *base, const char *sub)
{
    size_t n = strlen(base), m = strlen(sub);
    bool dot = n > 0 && m > 0;

    KRON_ASSERT(n + m + dot < 160);
    memcpy(out, base, n);
    if (dot)
        out[n] = '.';
    memcpy(out + n + dot, sub, m + 1);
}

struct names names_sub(const struct names *base, const char *native, const char *name)
{
    struct names n;

    join(n.native, base->native, native);
    join(n.name, base->name, name);
    return n;
}

struct names names_of(const char *native_fmt, const char *name_fmt, int native_a, int native_b,
                      int name_a, int name_b)
{
    struct names n;

    snprintf(n.native, sizeof n.native, native_fmt, native_a, native_b);
    snprintf(n.name, sizeof n.name, name_fmt, name_a, name_b);
    return n;
}

const struct layer *load_sub(struct loader *ld, enum layer_kind kind, const struct names *base,
                             const char *native, const char *name, bool needed)
{
    struct names n = names_sub(base, native, name);

    return load_layer(ld, kind, n.native, n.name, needed);
}

bool has_sub(const struct loader *ld, const struct names *base, const char *native,
             const char *name)
{
    struct names n = names_sub(base, native, name);

    return loader_has(ld, n.native, n.name);
}

gr_ref resnet_graph(struct graph *g, gr_ref x, const struct resnet *r, gr_ref time_silu, float eps)
{
    gr_ref skip = x, h, vec = GR_NONE;

    /* First, so that nothing needs x behind its norm, which can then lie over it. */
    if (r->skip != NULL) {
        skip = gr_conv(g, x, r->skip, 1, GR_NONE, GR_NONE);
        gr_trunk(g);
    }
    h = gr_group_norm(g, x, r->norm1, NORM_GROUPS, eps, ACT_SILU);
    if (r->emb != NULL)
        vec = gr_linear(g, time_silu, r->emb, ACT_NONE, GR_NONE);
    h = gr_conv(g, h, r->conv1, 1, vec, GR_NONE);
    h = gr_group_norm(g, h, r->norm2, NORM_GROUPS, eps, ACT_SILU);
    return gr_conv(g, h, r->conv2, 1, GR_NONE, skip);
}
