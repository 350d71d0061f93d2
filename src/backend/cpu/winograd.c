/* SPDX-License-Identifier: MIT
 * 3x3 convolution of stride 1 by F(4x4, 3x3) (winograd_tmpl.h): a quarter of the multiplications.
 *
 * A tile is 4x4 output pixels. For each of 36 numbers x of a transformed tile,
 *   M[x][tile][out] = sum over in of V[x][tile][in] U[x][in][out].
 * V holds a block of tiles with all inputs, U a block of output channels with all inputs, both in
 * scratch shared by the workers; M is a worker's own, for a group of tiles by a few panels of
 * channels, and is turned into finished pixels while it is in its cache. Weights come from the
 * weight pass as everywhere, so that a quantised base or an adapter costs what it costs there.
 *
 * In whole numbers (winograd16_tmpl.h) V and U hold two inputs in the place of a float. Inputs go in
 * groups with scales from sums of squares, which bound those of what is transformed: of a tile's
 * pixels, found in each run, and of each tap of an output channel's weights, kept. */
#include "backend/cpu/int8.h"
#include "backend/cpu/winograd.h"
#include <math.h>
#include <omp.h>
#include <string.h>

enum {
    SIDE = 4,              /* of a tile, in output pixels */
    POINTS = 36,           /* numbers of a transformed tile */
    U_BYTES = 8 << 20,     /* of one block of transformed weights */
    V_BYTES = 12 << 20,    /* of one block of transformed tiles */
    GROUP = 24,            /* tiles of a group: whole register tiles at every level */
    GROUP_CHANNELS = 64,   /* and its channels: its M is 220 kB */
    DEPTH = 1152,          /* inputs of one product: a panel of them stays in a cache */
    STREAM_TILES = 96,     /* few tiles: M of all of them by a panel stays in a worker's cache */
    STREAM_BYTES = 24 << 20, /* and V of all of them in the last one */
    STREAM_INPUTS = 64,    /* inputs of one U of a worker's own */
    INPUTS = 32,           /* weights turned by one task: whole calls of the weight pass */
    INPUTS_WHOLE = 256,    /* where its calls are 256 columns */
    CHANNELS = 128,        /* inputs of one task of the input transform, where tiles are few */
};

struct wino_plan {
    int64_t across, down, tiles; /* tiles of an image's row and column, of all images */
    int64_t panel;               /* channels: 2 * lanes */
    int64_t v_tiles, u_channels; /* of one block */
    int64_t group_panels;        /* panels of channels of one M */
    int64_t v_step, u_step, m_step; /* floats between the same place of two points */
    int64_t inputs;              /* of one task of the weight pass */
    bool stream;                 /* U is a worker's own, and used at once */
    bool tiles_first;            /* blocks of tiles are the outer loop */
    const struct wino_kernels *k;
    int64_t together;            /* inputs in the place of a float */
    /* Of whole numbers: */
    struct packed *kept;         /* scales [panels][groups][panel] of U, and what makes it whole;
                                  * NULL: f32 */
    int64_t groups;              /* of inputs */
    size_t size_at;              /* [pixels][groups] roots of sums of squares */
    size_t scale_at;             /* [tiles][groups] of V */
    size_t v_at, u_at, zeros_at;
    size_t own_u;                /* floats of a worker's part before U, M behind it */
};

/* A step at which 36 streams fall into 36 sets of a first cache instead of one. */
static int64_t step_of(int64_t floats)
{
    return up_to(floats, 1024) + 16;
}

/* --- transforms --- */

/* Whole numbers whose squares' sum has at most this root: products of two such rows are under
 * 2^31, each of their numbers is under 2^15. */
static const float most_size = 32700;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void measure_pixels(const struct cpu_call *c)
{
    const struct wino_plan *wp = c->o->wino;
    float *size = cpu_scratch(c, wp->size_at);
    int64_t in = c->xs.c;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < rows_of(c->xs); i++)
        for (int64_t g = 0; g < wp->groups; g++) {
            const float *x = c->x[0] + i * in + g * WINO_GROUP;
            int64_t n = least(WINO_GROUP, in - g * WINO_GROUP);
            size[i * wp->groups + g] = sqrtf(c->k->dot(x, x, n));
        }
}

/* The scale of numbers of such a size, and what makes them whole. Those that are none, or infinite,
 * shall not come out as numbers. */
static float scale_of(float size, float *inv)
{
    bool finite = size < INFINITY;

    *inv = finite && size > 1e-30f ? most_size / size : 0;
    return finite ? size / most_size : NAN;
}

/* That of group g of a tile with these pixels. */
static float tile_scale(const struct cpu_call *c, const float *const *px, int64_t g, float *inv)
{
    const struct wino_plan *wp = c->o->wino;
    const float *size = cpu_scratch(c, wp->size_at), *zeros = cpu_scratch(c, wp->zeros_at);
    float most = 0;

    for (int i = 0; i < POINTS; i++) {
        float v = px[i] == zeros ? 0 : size[(px[i] - c->x[0]) / c->xs.c * wp->groups + g];
        most = v <= most ? most : v < INFINITY ? v : INFINITY;
    }
    return scale_of(most, inv);
}

/* Channels [from, from + n) of tile `tile` of all, the one at `at` of a block. */
static void transform_tile(const struct cpu_call *c, int64_t tile, int64_t at, int64_t from,
                           int64_t n)
{
    const struct wino_plan *wp = c->o->wino;
    const float *px[POINTS], *zeros = cpu_scratch(c, wp->zeros_at);
    int64_t image = tile / (wp->across * wp->down), in_image = tile % (wp->across * wp->down);
    int64_t h0 = in_image / wp->across * SIDE - c->op->pad_top;
    int64_t w0 = in_image % wp->across * SIDE - c->op->pad_left;
    float *v = (float *)cpu_scratch(c, wp->v_at) + at * c->xs.c / wp->together, inv;

    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++) {
            int64_t h = h0 + i, w = w0 + j;
            bool inside = h >= 0 && h < c->xs.h && w >= 0 && w < c->xs.w;
            px[i * 6 + j] = inside ? c->x[0] + ((image * c->xs.h + h) * c->xs.w + w) * c->xs.c
                                   : zeros;
        }
    if (wp->kept == NULL) {
        wp->k->input(px, from, n, 1, v, wp->v_step);
        return;
    }
    for (int64_t i = from; i < from + n; i += WINO_GROUP) {
        float *scale = (float *)cpu_scratch(c, wp->scale_at) + at * wp->groups + i / WINO_GROUP;
        *scale = tile_scale(c, px, i / WINO_GROUP, &inv);
        wp->k->input(px, i, least(WINO_GROUP, from + n - i), inv, v, wp->v_step);
    }
}

/* V of tiles [first, first + n). */
static void make_v(const struct cpu_call *c, int64_t first, int64_t n)
{
    int64_t in = c->xs.c, width = n >= 4 * c->threads ? in : CHANNELS, parts = ceil_div(in, width);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < n * parts; i++) {
        int64_t tile = i / parts, from = i % parts * width;
        transform_tile(c, first + tile, tile, from, in - from < width ? in - from : width);
    }
}

/* The 3x3 weights of the panel from `row` for inputs [from, from + n): [n][9][panel], to `to`, with
 * scratch behind them. */
static void gather_weights(const struct cpu_call *c, int64_t row, int64_t from, int64_t n,
                           float *to)
{
    const struct wino_plan *wp = c->o->wino;
    const struct wsource *w = &c->o->w;
    int64_t out = w->out - row < wp->panel ? w->out - row : wp->panel;
    int64_t width = wpass_transpose_columns(w);
    float *scratch = to + wp->inputs * 9 * wp->panel;

    if (out < wp->panel)
        memset(to, 0, (size_t)(n * 9 * wp->panel) * sizeof *to);
    for (int64_t col = 0; col < n * 9; col += width) {
        int64_t n_col = n * 9 - col < width ? n * 9 - col : width;
        int32_t at[TRANSPOSE_COLUMNS];
        const struct transposed t = {at, wp->panel, 0, to};
        for (int64_t j = 0; j < n_col; j++)
            at[j] = (int32_t)((col + j) * wp->panel);
        for (int64_t o = 0; o < out; o += TRANSPOSE_ROWS) {
            int64_t rows = out - o < TRANSPOSE_ROWS ? out - o : TRANSPOSE_ROWS;
            wpass_transpose(c, w, row + o, rows, from * 9 + col, n_col, &t, o, scratch);
        }
    }
}

/* The largest root of a tap's sum of squares of n inputs: their taps lie side by side. */
static float size_of_taps(const struct cpu_call *c, const float *w, int64_t n)
{
    float sum[72] = {0}, most = 0; /* 8 inputs at a time */

    for (int64_t i = 0; i < 9 * n; i += 72)
        c->k->axpy_mul(sum, w + i, w + i, 1, least(72, 9 * n - i));
    for (int t = 0; t < 9; t++) {
        float tap = 0;
        for (int i = t; i < 72; i += 9)
            tap += sum[i];
        most = tap <= most ? most : tap < INFINITY ? tap : INFINITY;
    }
    return sqrtf(most);
}

/* Where the scale of channel `o` and group g stands. */
static int64_t scale_place(const struct wino_plan *wp, int64_t o, int64_t g)
{
    return (o / wp->panel * wp->groups + g) * wp->panel + o % wp->panel;
}

static void measure_row(const struct cpu_call *c, int64_t o)
{
    const struct wino_plan *wp = c->o->wino;
    const struct wsource *w = &c->o->w;
    const float *row = wpass_direct(c, w);
    float *mem = cpu_thread_scratch(c);

    if (row == NULL)
        wpass_rows(c, w, o, 1, 0, w->k, mem, w->k, mem + w->k);
    row = row != NULL ? row + o * w->k : mem;
    for (int64_t g = 0; g < wp->groups; g++) {
        int64_t n = least(WINO_GROUP, c->xs.c - g * WINO_GROUP), at = scale_place(wp, o, g);
        wp->kept->scale[at] = scale_of(size_of_taps(c, row + 9 * g * WINO_GROUP, n),
                                       &wp->kept->sum[at]);
    }
}

static void measure_weights(const struct cpu_call *c)
{
    const struct wino_plan *wp = c->o->wino;

    if (packed_holds(c, wp->kept))
        return;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t o = 0; o < c->o->w.out; o++)
        measure_row(c, o);
    packed_filled(c, wp->kept);
}

/* n inputs from `from` on, all in one group or in groups from their beginning, of the panel from
 * `row`, to u. */
static void transform_weights(const struct wino_plan *wp, const float *w, int64_t row,
                              int64_t from, int64_t n, float *u)
{
    if (wp->kept == NULL) {
        wp->k->weights(w, n, NULL, u, wp->u_step);
        return;
    }
    for (int64_t i = 0; i < n; i += WINO_GROUP)
        wp->k->weights(w + i * 9 * wp->panel, least(WINO_GROUP, n - i),
                       wp->kept->sum + scale_place(wp, row, (from + i) / WINO_GROUP),
                       u + i / wp->together * wp->panel, wp->u_step);
}

/* U of output channels [first, first + n): [panel][point][in][channel]. */
static void make_u(const struct cpu_call *c, int64_t first, int64_t n)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t in = c->xs.c, parts = ceil_div(in, wp->inputs), panels = ceil_div(n, wp->panel);
    float *u = cpu_scratch(c, wp->u_at);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < panels * parts; i++) {
        int64_t p = i / parts, from = i % parts * wp->inputs;
        int64_t n_in = in - from < wp->inputs ? in - from : wp->inputs;
        float *mem = cpu_thread_scratch(c);
        gather_weights(c, first + p * wp->panel, from, n_in, mem);
        transform_weights(wp, mem, first + p * wp->panel, from, n_in,
                          u + p * POINTS * wp->u_step + from / wp->together * wp->panel);
    }
}

/* --- products --- */

/* n tiles from the one at `tile` of a block, by the panel of channels from `row`. */
struct part {
    int64_t tile, n, row;
    float *m;
    int64_t ldm;
};

/* M (+)= V U of all points for `n` inputs from `from` on, of which u is the transformed weight; V
 * of the next product is that of the next point. */
static void multiply(const struct cpu_call *c, const struct part *t, int64_t from, int64_t n,
                     const float *u)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t ldv = c->xs.c / wp->together, group = from / WINO_GROUP;
    const float *v = (const float *)cpu_scratch(c, wp->v_at) + t->tile * ldv + from / wp->together;
    const float *v_scale = NULL, *u_scale = NULL;
    float *m = t->m;

    if (wp->kept != NULL) {
        v_scale = (const float *)cpu_scratch(c, wp->scale_at) + t->tile * wp->groups + group;
        u_scale = wp->kept->scale + scale_place(wp, t->row, group);
    }
    for (int x = 0; x < POINTS; x++) {
        bool last = x + 1 == POINTS;
        struct wino_product a = {.v = v, .u = u, .m = m, .ldv = ldv, .ldm = t->ldm, .n = t->n,
                                 .k = n / wp->together, .add = from > 0,
                                 .next_v = last ? v : v + wp->v_step,
                                 .next_u = last ? u : u + wp->u_step,
                                 .v_scale = v_scale, .u_scale = u_scale,
                                 .v_scale_step = wp->groups};
        wp->k->product(&a);
        v += wp->v_step;
        u += wp->u_step;
        m += wp->m_step;
    }
}

/* Tile `tile` of all, from its M at m, to channels [first, first + n) of the output. */
static void finish_tile(const struct cpu_call *c, const float *bias, int64_t tile, int64_t first,
                        int64_t n, const float *m)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t image = tile / (wp->across * wp->down), in_image = tile % (wp->across * wp->down);
    int64_t h = in_image / wp->across * SIDE, w = in_image % wp->across * SIDE, oc = c->ys.c;
    int64_t at = ((image * c->ys.h + h) * c->ys.w + w) * oc + first;
    struct wino_tile t = {
        .m = m, .step = wp->m_step, .y = c->y + at, .res = c->x[1] ? c->x[1] + at : NULL,
        .bias = bias ? bias + first : NULL, .vec = c->x[2] ? c->x[2] + image * oc + first : NULL,
        .ld_row = c->ys.w * oc, .ld_px = oc,
        .rows = c->ys.h - h < SIDE ? c->ys.h - h : SIDE,
        .cols = c->ys.w - w < SIDE ? c->ys.w - w : SIDE};

    wp->k->output(&t, n);
}

/* The block of tiles from `tile` by the block of channels from `first`. */
static void run_block(const struct cpu_call *c, const float *bias, int64_t tile, int64_t n_tiles,
                      int64_t first, int64_t n)
{
    const struct wino_plan *wp = c->o->wino;
    const float *u = cpu_scratch(c, wp->u_at);
    int64_t groups = ceil_div(n_tiles, GROUP), panels = ceil_div(n, wp->panel), in = c->xs.c;
    int64_t each = groups * ceil_div(panels, wp->group_panels) < 2 * c->threads
                       ? 1 : wp->group_panels;
    int64_t splits = ceil_div(panels, each), depth = wp->kept ? WINO_GROUP : ceil_div(in, ceil_div(in, DEPTH));

#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t i = 0; i < groups * splits; i++) {
        int64_t at = i / splits * GROUP, panel = i % splits * each, from = panel * wp->panel;
        int64_t tiles = n_tiles - at < GROUP ? n_tiles - at : GROUP;
        int64_t some = panels - panel < each ? panels - panel : each;
        int64_t channels = n - from < some * wp->panel ? n - from : some * wp->panel;
        int64_t ldm = some * wp->panel;
        float *m = cpu_thread_scratch(c);
        for (int64_t p = 0; p < some; p++) {
            const struct part t = {at, tiles, first + from + p * wp->panel, m + p * wp->panel, ldm};
            for (int64_t k = 0; k < in; k += depth)
                multiply(c, &t, k, least(depth, in - k),
                         u + (panel + p) * POINTS * wp->u_step + k / wp->together * wp->panel);
        }
        for (int64_t t = 0; t < tiles; t++)
            finish_tile(c, bias, tile + at + t, first + from, channels, m + t * ldm);
    }
}

/* Few tiles: a worker turns a panel's weights a piece at a time and uses each at once. */
static void run_stream(const struct cpu_call *c, const float *bias)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t in = c->xs.c, out = c->o->w.out, panels = ceil_div(out, wp->panel);
    int64_t depth = wp->kept ? WINO_GROUP : STREAM_INPUTS;

    make_v(c, 0, wp->tiles);
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t p = 0; p < panels; p++) {
        int64_t first = p * wp->panel, n = out - first < wp->panel ? out - first : wp->panel;
        float *mem = cpu_thread_scratch(c), *u = mem + wp->own_u;
        const struct part t = {0, wp->tiles, first, u + POINTS * wp->u_step, wp->panel};
        for (int64_t k = 0; k < in; k += wp->inputs) {
            int64_t n_in = in - k < wp->inputs ? in - k : wp->inputs;
            gather_weights(c, first, k, n_in, mem);
            for (int64_t i = 0; i < n_in; i += depth) {
                int64_t some = least(depth, n_in - i);
                transform_weights(wp, mem + i * 9 * wp->panel, first, k + i, some, u);
                multiply(c, &t, k + i, some, u);
            }
        }
        for (int64_t i = 0; i < wp->tiles; i++)
            finish_tile(c, bias, i, first, n, t.m + i * wp->panel);
    }
}

static void run_blocks(const struct cpu_call *c, const float *bias)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t out = c->o->w.out, nt = ceil_div(wp->tiles, wp->v_tiles);
    int64_t nc = ceil_div(out, wp->u_channels), have_v = -1, have_u = -1;

    for (int64_t i = 0; i < nt * nc; i++) {
        int64_t vb = wp->tiles_first ? i / nc : i % nt, ub = wp->tiles_first ? i % nc : i / nt;
        int64_t tile = vb * wp->v_tiles, first = ub * wp->u_channels;
        int64_t tiles = wp->tiles - tile < wp->v_tiles ? wp->tiles - tile : wp->v_tiles;
        int64_t n = out - first < wp->u_channels ? out - first : wp->u_channels;
        if (vb != have_v)
            make_v(c, tile, tiles);
        if (ub != have_u)
            make_u(c, first, n);
        have_v = vb;
        have_u = ub;
        run_block(c, bias, tile, tiles, first, n);
    }
}

void wino_run(const struct cpu_call *c, const float *bias)
{
    memset(cpu_scratch(c, c->o->wino->zeros_at), 0, (size_t)c->xs.c * sizeof(float));
    if (c->o->wino->kept != NULL) {
        measure_pixels(c);
        measure_weights(c);
    }
    if (c->o->wino->stream)
        run_stream(c, bias);
    else
        run_blocks(c, bias);
}

/* --- compiling --- */

/* Cycles of one core with 8 floats to a vector, for each input by output channel, as measured on
 * AVX2: a product of 36 a tile against one of 9 a pixel; what turning a weight costs more. */
static bool worth_it(const struct gr_op *op, struct gr_shape x, struct gr_shape y)
{
    const struct layer *l = op->layer;
    int64_t tiles = y.n * ceil_div(y.h, SIDE) * ceil_div(y.w, SIDE);
    double wino = 36.0 * (double)up_to(tiles, 6) / 16 + 8;
    double direct = 9.0 * (double)up_to(y.n * y.h * y.w, 6) / 16 + 2;

    return x.c >= 32 && l->out >= 32 && wino < direct;
}

bool wino_suits(const struct graph *g, const struct gr_op *op)
{
    const struct layer *l = op->layer;
    struct gr_shape x = gr_shape_of(g, op->in[0]), y = gr_shape_of(g, op->out);

    return l->kh == 3 && l->kw == 3 && op->stride == 1 && worth_it(op, x, y);
}

/* Blocks of even size within the limits; many workers and few tiles get up to four times as many
 * channels, so that all find work. */
static void choose_blocks(struct wino_plan *wp, int64_t in, int64_t out, int threads)
{
    in /= wp->together;
    int64_t u_most = U_BYTES / 4 / POINTS / in / wp->panel * wp->panel;
    int64_t v_most = V_BYTES / 4 / POINTS / in / GROUP * GROUP;
    int64_t wanted = up_to(wp->panel * 2 * threads / ceil_div(wp->tiles, GROUP), wp->panel);

    u_most = wanted < u_most ? u_most : wanted < 4 * u_most ? wanted : 4 * u_most;
    u_most = u_most < wp->panel ? wp->panel : u_most;
    v_most = v_most < GROUP ? GROUP : v_most;
    wp->u_channels = up_to(ceil_div(out, ceil_div(out, u_most)), wp->panel);
    wp->v_tiles = ceil_div(wp->tiles, ceil_div(wp->tiles, v_most));
    if (wp->tiles > v_most)
        wp->v_tiles = up_to(wp->v_tiles, GROUP);
    /* What is turned again for each block of the other: weights cost as much as tiles do. */
    int64_t nt = ceil_div(wp->tiles, wp->v_tiles), nc = ceil_div(out, wp->u_channels);
    wp->tiles_first = (nt - 1) * out < (nc - 1) * wp->tiles;
}

/* Scratch: V, and U shared by the workers or a worker's own. */
static void take_scratch(struct be_plan *p, struct cpu_op *o)
{
    struct wino_plan *wp = o->wino;
    int64_t in = o->op->layer->in, u = POINTS * wp->u_step, m = POINTS * wp->m_step;
    size_t row = wp->kept ? (size_t)o->w.k * 4 + wpass_thread_bytes(&o->w) : 0;
    size_t gather = (size_t)(wp->inputs * 9 * wp->panel) * 4 + wpass_transpose_bytes(&o->w);
    size_t turn = delta_thread_bytes(&o->w), most;

    gather = (size_t)up_to((int64_t)gather, 64);
    wp->own_u = gather / 4;
    if (wp->stream) {
        most = gather + (size_t)(u + m) * 4;
    } else {
        wp->u_at = cpu_take(o, (size_t)(wp->u_channels / wp->panel * u) * 4);
        most = gather > (size_t)m * 4 ? gather : (size_t)m * 4;
    }
    wp->v_at = cpu_take(o, (size_t)(POINTS * wp->v_step) * 4);
    wp->zeros_at = cpu_take(o, (size_t)in * 4);
    if (wp->kept != NULL) {
        int64_t pixels = rows_of(gr_shape_of(p->g, o->op->in[0]));
        wp->size_at = cpu_take(o, (size_t)(pixels * wp->groups) * 4);
        int64_t tiles = wp->stream ? wp->tiles : wp->v_tiles;
        wp->scale_at = cpu_take(o, (size_t)(tiles * wp->groups) * 4);
    }
    most = most > turn ? most : turn;
    cpu_take_threads(p, o, most > row ? most : row);
}

/* In f32, or in whole numbers where that is asked for and inputs come in twos. */
static kron_status choose_kernels(struct be_plan *p, struct cpu_op *o)
{
    struct wino_plan *wp = o->wino;
    const struct layer *l = o->op->layer;

    wp->k = &p->device->k->wino;
    wp->panel = 2 * p->device->k->lanes;
    wp->together = 1;
    if (o->op->compute != COMPUTE_INT16 || l->in % 2 != 0)
        return KRON_OK;
    wp->k = &p->device->int8->wino;
    wp->panel = p->device->int8->panel;
    wp->together = 2;
    wp->groups = ceil_div(l->in, WINO_GROUP);
    return weights_packed(p, l, up_to(l->out, wp->panel), 0, wp->groups, &wp->kept);
}

kron_status wino_compile(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape y = gr_shape_of(p->g, o->op->out);
    int64_t in = o->op->layer->in;
    struct wino_plan *wp = o->wino = arena_alloc(&p->mem, sizeof *o->wino);

    KRON_TRY(p->mem.status);
    wp->across = ceil_div(y.w, SIDE);
    wp->down = ceil_div(y.h, SIDE);
    wp->tiles = y.n * wp->across * wp->down;
    KRON_TRY(choose_kernels(p, o));
    wp->group_panels = GROUP_CHANNELS / wp->panel;
    int64_t places = in / wp->together;
    wp->stream = wp->tiles <= STREAM_TILES && wp->tiles * places * POINTS * 4 <= STREAM_BYTES;
    bool whole = wpass_transpose_columns(&o->w) < TRANSPOSE_COLUMNS;
    wp->inputs = whole ? INPUTS_WHOLE : !wp->stream ? INPUTS : wp->kept ? WINO_GROUP : STREAM_INPUTS;
    if (wp->stream) {
        wp->v_step = step_of(wp->tiles * places);
        wp->u_step = (wp->kept ? WINO_GROUP / 2 : STREAM_INPUTS) * wp->panel + 16;
        wp->m_step = wp->tiles * wp->panel + 16;
    } else {
        choose_blocks(wp, in, o->w.out, p->device->n_threads);
        wp->v_step = step_of(wp->v_tiles * places);
        wp->u_step = step_of(places * wp->panel);
        wp->m_step = GROUP * GROUP_CHANNELS + 16;
    }
    take_scratch(p, o);
    return KRON_OK;
}
