/* SPDX-License-Identifier: MIT
 * Layers without weights, for graphs that are built and planned but not run. */
#ifndef UNIT_GRAPH_FIXTURE_H
#define UNIT_GRAPH_FIXTURE_H
#include "graph/graph.h"

static inline struct layer fx_layer(enum layer_kind kind, const char *name, int64_t out, int64_t in,
                                    int k)
{
    struct layer l = {.id = -1, .kind = kind, .name = name, .native = name, .out = out, .in = in,
                      .kh = k, .kw = k, .is_conv = kind == LAYER_CONV};

    return l;
}

static inline struct gr_shape fx_shape(int64_t n, int64_t h, int64_t w, int64_t c)
{
    struct gr_shape s = {n, h, w, c};

    return s;
}

#endif
