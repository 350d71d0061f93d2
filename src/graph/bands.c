/* SPDX-License-Identifier: MIT
 * Convolutions whose input is made on the way, in bands of rows.
 *
 * A norm needs its whole input once, for its statistics; after that each row can be normalised
 * when the convolution comes to it. So the normalised picture, as large as the one it is made of,
 * never stands in memory as a whole, nor does an enlarged one. A band has the rows that the
 * convolution's window reaches into above and below; these few are made twice. */
#include "graph/graph.h"

enum {
    BAND_BYTES = 8 << 20, /* of what is made for a band: small beside the picture, but work for */
    MAX_BANDS = 32,       /* all threads, and a weight is laid out anew for each */
    WINDOW_ROWS = 5,      /* of larger windows no bands are made */
};

/* Rows of each band of a picture whose rows have so many bytes: evenly cut, even in number. */
static int64_t rows_of_band(int64_t h, int64_t row_bytes)
{
    int64_t n = h * row_bytes / BAND_BYTES;

    n = n < 1 ? 1 : n > MAX_BANDS ? MAX_BANDS : n;
    return (h + 2 * n - 1) / (2 * n) * 2;
}

static int64_t at_most(int64_t v, int64_t most)
{
    return v < most ? v : most;
}

/* Rows of a picture of h rows that the window of output rows [row, row + n) covers. */
struct window {
    int64_t from, n;
    int above, below; /* of zeros, outside the picture */
};

static struct window window_of(int64_t row, int64_t n, int64_t h, int reach)
{
    int64_t from = row - reach, to = row + n + reach;
    struct window w = {.above = (int)(from < 0 ? -from : 0), .below = (int)(to > h ? to - h : 0)};

    w.from = from + w.above;
    w.n = to - w.below - w.from;
    return w;
}

static bool in_bands(struct gr_shape s, const struct layer *conv, int64_t rows)
{
    return s.n == 1 && rows < s.h && conv->kh % 2 == 1 && conv->kw % 2 == 1 &&
           conv->kh <= WINDOW_ROWS;
}

/* Rows below a band's end stay as they are while its own are written over x: y has fewer bytes
 * in a row, or none of x is needed but the same row. */
static bool stays_behind(struct gr_shape x, const struct layer *conv, int64_t rows)
{
    return rows * conv->out <= (rows - conv->kh / 2) * x.c;
}

static int64_t norm_rows(struct gr_shape s)
{
    return rows_of_band(s.h, s.w * s.c * 4);
}

gr_ref gr_norm_conv(struct graph *g, gr_ref x, const struct layer *norm, int groups, float eps,
                    enum gr_act act, const struct layer *conv, gr_ref residual)
{
    struct gr_shape s = gr_shape_of(g, x);

    if (g->status != KRON_OK || !in_bands(s, conv, norm_rows(s)))
        return gr_conv(g, gr_group_norm(g, x, norm, groups, eps, act), conv, 1, GR_NONE, residual);
    return gr_stats_conv(g, x, gr_norm_stats(g, x, groups, eps), norm, act, conv, residual);
}

gr_ref gr_stats_conv(struct graph *g, gr_ref x, gr_ref stats, const struct layer *norm,
                     enum gr_act act, const struct layer *conv, gr_ref residual)
{
    struct gr_shape s = gr_shape_of(g, x);
    int64_t rows = norm_rows(s);

    if (g->status != KRON_OK || !in_bands(s, conv, rows))
        return gr_conv(g, gr_norm_apply(g, x, stats, norm, act), conv, 1, GR_NONE, residual);
    gr_ref y = gr_whole(g, (struct gr_shape){1, s.h, s.w, conv->out});
    if (residual != GR_NONE)
        gr_over(g, y, residual);
    else if (stays_behind(s, conv, rows))
        gr_over(g, y, x);
    for (int64_t row = 0; row < s.h; row += rows) {
        int64_t n = at_most(rows, s.h - row);
        struct window w = window_of(row, n, s.h, conv->kh / 2);
        gr_ref part = gr_norm_apply(g, gr_rows(g, x, w.from, w.n), stats, norm, act);
        gr_ref more = residual != GR_NONE ? gr_rows(g, residual, row, n) : GR_NONE;
        gr_put(g, gr_conv_band(g, part, conv, w.above, w.below, more), y, row);
    }
    return y;
}

gr_ref gr_upsample_conv(struct graph *g, gr_ref x, const struct layer *conv)
{
    struct gr_shape s = gr_shape_of(g, x);
    int64_t h = 2 * s.h, rows = rows_of_band(h, 2 * s.w * s.c * 4);

    if (g->status != KRON_OK || !in_bands((struct gr_shape){s.n, h, s.w, s.c}, conv, rows))
        return gr_conv(g, gr_upsample(g, x, h, 2 * s.w), conv, 1, GR_NONE, GR_NONE);
    gr_ref y = gr_whole(g, (struct gr_shape){1, h, 2 * s.w, conv->out});
    for (int64_t row = 0; row < h; row += rows) {
        int64_t n = at_most(rows, h - row);
        struct window w = window_of(row, n, h, conv->kh / 2);
        int64_t from = w.from / 2, to = (w.from + w.n + 1) / 2; /* rows of x, each two of y */
        gr_ref up = gr_upsample(g, gr_rows(g, x, from, to - from), 2 * (to - from), 2 * s.w);
        gr_ref part = gr_rows(g, up, w.from - 2 * from, w.n);
        gr_put(g, gr_conv_band(g, part, conv, w.above, w.below, GR_NONE), y, row);
    }
    return y;
}
