/* SPDX-License-Identifier: MIT
 * 3x3 convolution of stride 1 by F(4x4, 3x3) (winograd_tmpl.h): a quarter of the multiplications.
 *
 * A tile is 4x4 output pixels. For each of 36 numbers x of a transformed tile,
 *   M[x][tile][out] = sum over in of V[x][tile][in] U[x][in][out].
 * V holds a block of tiles with all inputs, U a block of output channels with all inputs, both in
 * scratch shared by the workers; M is a worker's own, for a group of tiles by a few panels of
 * channels, and is turned into finished pixels while it is in its cache. Weights come from the
 * weight pass as everywhere, so that a quantised base or an adapter costs what it costs there. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/winograd.h"
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
    size_t v_at, u_at, zeros_at;
    size_t own_u;                /* floats of a worker's part before U, M behind it */
};

/* A step at which 36 streams fall into 36 sets of a first cache instead of one. */
static int64_t step_of(int64_t floats)
{
    return up_to(floats, 1024) + 16;
}

/* --- transforms --- */

static void transform_tile(const struct cpu_call *c, int64_t tile, int64_t from, int64_t n,
                           float *v)
{
    const struct wino_plan *wp = c->o->wino;
    const float *px[POINTS], *zeros = cpu_scratch(c, wp->zeros_at);
    int64_t image = tile / (wp->across * wp->down), in_image = tile % (wp->across * wp->down);
    int64_t h0 = in_image / wp->across * SIDE - c->op->pad_top;
    int64_t w0 = in_image % wp->across * SIDE - c->op->pad_left;

    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++) {
            int64_t h = h0 + i, w = w0 + j;
            bool inside = h >= 0 && h < c->xs.h && w >= 0 && w < c->xs.w;
            px[i * 6 + j] = inside ? c->x[0] + ((image * c->xs.h + h) * c->xs.w + w) * c->xs.c
                                   : zeros;
        }
    c->k->wino_input(px, from, n, v, wp->v_step);
}

/* V of tiles [first, first + n). */
static void make_v(const struct cpu_call *c, int64_t first, int64_t n)
{
    const struct wino_plan *wp = c->o->wino;
    int64_t in = c->xs.c, width = n >= 4 * c->threads ? in : CHANNELS, parts = ceil_div(in, width);
    float *v = cpu_scratch(c, wp->v_at);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < n * parts; i++) {
        int64_t tile = i / parts, from = i % parts * width;
        transform_tile(c, first + tile, from, in - from < width ? in - from : width,
                       v + tile * in);
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
        c->k->wino_weights(mem, n_in, u + p * POINTS * wp->u_step + from * wp->panel,
                           wp->u_step);
    }
}

/* --- products --- */

/* M (+)= V U for n tiles at v, all points, `in` inputs and one panel; V of the next product is
 * that of the next point. */
static void multiply(const struct cpu_call *c, const float *v, int64_t n, const float *u,
                     int64_t in, float *m, int64_t ldm, bool add)
{
    const struct wino_plan *wp = c->o->wino;

    for (int x = 0; x < POINTS; x++) {
        bool last = x + 1 == POINTS;
        struct wino_product a = {.v = v, .u = u, .m = m, .ldv = c->xs.c, .ldm = ldm, .n = n,
                                 .k = in, .add = add, .next_v = last ? v : v + wp->v_step,
                                 .next_u = last ? u : u + wp->u_step};
        c->k->wino_product(&a);
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

    c->k->wino_output(&t, n);
}

/* The block of tiles from `tile` by the block of channels from `first`. */
static void run_block(const struct cpu_call *c, const float *bias, int64_t tile, int64_t n_tiles,
                      int64_t first, int64_t n)
{
    const struct wino_plan *wp = c->o->wino;
    const float *v = cpu_scratch(c, wp->v_at), *u = cpu_scratch(c, wp->u_at);
    int64_t groups = ceil_div(n_tiles, GROUP), panels = ceil_div(n, wp->panel), in = c->xs.c;
    int64_t each = groups * ceil_div(panels, wp->group_panels) < 2 * c->threads
                       ? 1 : wp->group_panels;
    int64_t splits = ceil_div(panels, each), depth = ceil_div(in, ceil_div(in, DEPTH));

#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t i = 0; i < groups * splits; i++) {
        int64_t at = i / splits * GROUP, panel = i % splits * each, from = panel * wp->panel;
        int64_t tiles = n_tiles - at < GROUP ? n_tiles - at : GROUP;
        int64_t some = panels - panel < each ? panels - panel : each;
        int64_t channels = n - from < some * wp->panel ? n - from : some * wp->panel;
        int64_t ldm = some * wp->panel;
        float *m = cpu_thread_scratch(c);
        for (int64_t p = 0; p < some; p++)
            for (int64_t k = 0; k < in; k += depth)
                multiply(c, v + at * in + k, tiles,
                         u + (panel + p) * POINTS * wp->u_step + k * wp->panel,
                         in - k < depth ? in - k : depth, m + p * wp->panel, ldm, k > 0);
        for (int64_t t = 0; t < tiles; t++)
            finish_tile(c, bias, tile + at + t, first + from, channels, m + t * ldm);
    }
}

/* Few tiles: a worker turns a panel's weights a piece at a time and uses each at once. */
static void run_stream(const struct cpu_call *c, const float *bias)
{
    const struct wino_plan *wp = c->o->wino;
    const float *v = cpu_scratch(c, wp->v_at);
    int64_t in = c->xs.c, out = c->o->w.out, panels = ceil_div(out, wp->panel);

    make_v(c, 0, wp->tiles);
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t p = 0; p < panels; p++) {
        int64_t first = p * wp->panel, n = out - first < wp->panel ? out - first : wp->panel;
        float *mem = cpu_thread_scratch(c), *u = mem + wp->own_u, *m = u + POINTS * wp->u_step;
        for (int64_t k = 0; k < in; k += wp->inputs) {
            int64_t n_in = in - k < wp->inputs ? in - k : wp->inputs;
            gather_weights(c, first, k, n_in, mem);
            for (int64_t i = 0; i < n_in; i += STREAM_INPUTS) {
                int64_t some = n_in - i < STREAM_INPUTS ? n_in - i : STREAM_INPUTS;
                c->k->wino_weights(mem + i * 9 * wp->panel, some, u, wp->u_step);
                multiply(c, v + k + i, wp->tiles, u, some, m, wp->panel, k + i > 0);
            }
        }
        for (int64_t t = 0; t < wp->tiles; t++)
            finish_tile(c, bias, t, first, n, m + t * wp->panel);
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
    cpu_take_threads(p, o, most > turn ? most : turn);
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
    wp->panel = 2 * p->device->k->lanes;
    wp->group_panels = GROUP_CHANNELS / wp->panel;
    wp->stream = wp->tiles <= STREAM_TILES && wp->tiles * in * POINTS * 4 <= STREAM_BYTES;
    bool whole = wpass_transpose_columns(&o->w) < TRANSPOSE_COLUMNS;
    wp->inputs = whole ? INPUTS_WHOLE : wp->stream ? STREAM_INPUTS : INPUTS;
    if (wp->stream) {
        wp->v_step = step_of(wp->tiles * in);
        wp->u_step = STREAM_INPUTS * wp->panel + 16;
        wp->m_step = wp->tiles * wp->panel + 16;
    } else {
        choose_blocks(wp, in, o->w.out, p->device->n_threads);
        wp->v_step = step_of(wp->v_tiles * in);
        wp->u_step = step_of(in * wp->panel);
        wp->m_step = GROUP * GROUP_CHANNELS + 16;
    }
    take_scratch(p, o);
    return KRON_OK;
}
