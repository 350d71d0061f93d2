/* SPDX-License-Identifier: MIT
 * Convolution, a block of output channels at a time, from NHWC to NHWC with no copy of either.
 *
 * The weight pass writes rows in the file's order into a thread's cache and from there into
 * panels: [panel of channels][chunk of inputs][tap][input][2 * lanes channels]. Groups of output
 * pixels then run over the panels (conv_tmpl.h) and are finished while they are warm. Where a 3x3
 * window makes it worth while, winograd.c does the same with a quarter of the products. oneDNN's
 * convolution was tried first: it reaches this speed only on images in its own blocked layout, and
 * a third to a half of it on NHWC images wider than 128 pixels (AVX2, 2.6). */
#include "backend/cpu/cpu.h"
#include "backend/cpu/winograd.h"
#include <omp.h>
#include <string.h>

enum {
    WEIGHT_BYTES = 4 << 20, /* of one block's weights */
    ROWS_BYTES = 2 << 20,   /* activation route: gathered windows */
    DEPTH = 1152,           /* taps times inputs of a chunk: a panel of it stays in a cache */
};

struct conv_plan {
    int64_t block;  /* channels; a multiple of a panel's */
    int64_t panel;  /* channels of a panel */
    int64_t chunk;  /* input channels of a chunk */
    int64_t taps;
    int64_t group;  /* output pixels of a group */
    size_t zeros_at, windows_at;
    int64_t window_rows;
};

/* --- weights --- */

/* Where columns [col, col + n) of a weight row lie behind the row's first float. */
static void column_places(const struct conv_plan *cp, int64_t in, int64_t col, int64_t n,
                          int32_t *at)
{
    int64_t channel = col / cp->taps, tap = col % cp->taps;

    for (int64_t i = 0; i < n; channel++, tap = 0) {
        int64_t first = channel / cp->chunk * cp->chunk;
        int64_t depth = in - first < cp->chunk ? in - first : cp->chunk;
        int64_t place = (first * cp->taps + channel - first) * cp->panel;
        for (; tap < cp->taps && i < n; tap++)
            at[i++] = (int32_t)(place + tap * depth * cp->panel);
    }
}

/* Channels [first, first + n) of the weight as panels; channels that only fill the last panel
 * are zero. */
static void write_weights(const struct cpu_call *c, int64_t first, int64_t n, float *dst)
{
    const struct conv_plan *cp = c->o->conv;
    const struct wsource *w = &c->o->w;
    int64_t width = wpass_transpose_columns(w), last = n / cp->panel * cp->panel;
    int64_t steps = (n + TRANSPOSE_ROWS - 1) / TRANSPOSE_ROWS, parts = (w->k + width - 1) / width;

    if (n % cp->panel != 0)
        memset(dst + last * w->k, 0, (size_t)(cp->panel * w->k) * sizeof *dst);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < steps * parts; i++) {
        int64_t o = i / parts * TRANSPOSE_ROWS, col = i % parts * width;
        int64_t m = n - o < TRANSPOSE_ROWS ? n - o : TRANSPOSE_ROWS;
        int64_t n_col = w->k - col < width ? w->k - col : width;
        int32_t at[TRANSPOSE_COLUMNS];
        const struct transposed t = {at, cp->panel, cp->panel * w->k, dst};
        column_places(cp, w->layer->in, col, n_col, at);
        wpass_transpose(c, w, first + o, m, col, n_col, &t, o, cpu_thread_scratch(c));
    }
}

/* --- pixels --- */

/* The input pixel under tap (u, v) of output pixel r; NULL outside the image. */
static const float *pixel_at(const struct cpu_call *c, int64_t r, int u, int v)
{
    int64_t j = r % c->ys.w, i = r / c->ys.w % c->ys.h, n = r / c->ys.w / c->ys.h;
    int64_t h = i * c->op->stride + u - c->op->pad_top;
    int64_t w = j * c->op->stride + v - c->op->pad_left;

    if (h < 0 || h >= c->xs.h || w < 0 || w >= c->xs.w)
        return NULL;
    return c->x[0] + ((n * c->xs.h + h) * c->xs.w + w) * c->xs.c;
}

static void find_pixels(const struct cpu_call *c, int64_t at, int64_t n, const float **px)
{
    const struct layer *l = c->op->layer;
    const float *zeros = cpu_scratch(c, c->o->conv->zeros_at);

    for (int t = 0; t < l->kh * l->kw; t++)
        for (int64_t i = 0; i < CONV_GROUP; i++) {
            const float *p = i < n ? pixel_at(c, at + i, t / l->kw, t % l->kw) : NULL;
            px[t * CONV_GROUP + i] = p ? p : zeros;
        }
}

/* What is added to each pixel of a group: y holds the residual before the sums already. */
static void finish(const struct cpu_call *c, int64_t at, int64_t n, const float *bias,
                   int64_t first, int64_t n_ch)
{
    int64_t oc = c->ys.c, all = c->ys.h * c->ys.w;

    if (bias == NULL && c->x[2] == NULL)
        return;
    for (int64_t i = at; i < at + n; i++) {
        const float *vec = c->x[2] ? c->x[2] + i / all * oc + first : NULL;
        float *y = c->y + i * oc + first;
        c->k->finish(y, y, bias ? bias + first : NULL, vec, NULL, ACT_NONE, n_ch);
    }
}

/* Pixels [at, at + n) of channels [from, from + n_ch) of the block that starts at `first`. */
static void run_group(const struct cpu_call *c, const float *weights, const float *bias,
                      int64_t first, int64_t from, int64_t n_ch, int64_t at, int64_t n)
{
    const struct conv_plan *cp = c->o->conv;
    int64_t in = c->xs.c, oc = c->ys.c, k = c->o->w.k;
    const float **px = cpu_thread_scratch(c);
    float *y = c->y + at * oc + first + from;
    const float *res = c->x[1] ? c->x[1] + at * oc + first + from : NULL;

    find_pixels(c, at, n, px);
    for (int64_t i = 0; res != NULL && res != y && i < n; i++)
        memcpy(y + i * oc, res + i * oc, (size_t)n_ch * sizeof *y);
    for (int64_t i = 0; i < in; i += cp->chunk)
        for (int64_t o = 0; o < n_ch; o += cp->panel) {
            struct conv_panel p = {.px = px, .y = y + o, .taps = cp->taps, .n_px = n, .off = i,
                                   .ldy = oc, .add = i > 0 || res != NULL};
            p.kc = in - i < cp->chunk ? in - i : cp->chunk;
            p.cols = n_ch - o < cp->panel ? n_ch - o : cp->panel;
            p.w = weights + (from + o) * k + i * cp->taps * cp->panel;
            c->k->conv(&p);
        }
    finish(c, at, n, bias, first + from, n_ch);
}

static void run_block(const struct cpu_call *c, const float *bias, int64_t first, int64_t n)
{
    const struct conv_plan *cp = c->o->conv;
    float *w = cpu_scratch(c, c->o->block_at);
    int64_t m = c->ys.n * c->ys.h * c->ys.w, groups = (m + cp->group - 1) / cp->group;
    int64_t panels = (n + cp->panel - 1) / cp->panel;
    int64_t splits = (8 * c->threads + groups - 1) / groups; /* of channels, if pixels are few */

    write_weights(c, first, n, w);
    splits = splits < panels ? splits : panels;
    int64_t step = (panels + splits - 1) / splits * cp->panel;
    splits = (n + step - 1) / step;
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t i = 0; i < groups * splits; i++) {
        int64_t at = i / splits * cp->group, from = i % splits * step;
        run_group(c, w, bias, first, from, n - from < step ? n - from : step, at,
                  m - at < cp->group ? m - at : cp->group);
    }
}

/* --- activation route --- */

/* The window of output pixel r, in the order of a weight row: [in][kh][kw]. */
static void gather_window(const struct cpu_call *c, int64_t r, float *to)
{
    const struct layer *l = c->op->layer;
    int taps = l->kh * l->kw;

    for (int t = 0; t < taps; t++) {
        const float *x = pixel_at(c, r, t / l->kw, t % l->kw);
        for (int64_t p = 0; p < l->in; p++)
            to[p * taps + t] = x ? x[p] : 0;
    }
}

static void run_deltas(const struct cpu_call *c)
{
    const struct conv_plan *cp = c->o->conv;
    int64_t m = c->ys.n * c->ys.h * c->ys.w, k = c->o->w.k;
    float *windows = cpu_scratch(c, cp->windows_at);

    for (int64_t at = 0; at < m; at += cp->window_rows) {
        int64_t n = m - at < cp->window_rows ? m - at : cp->window_rows;
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (int64_t r = 0; r < n; r++)
            gather_window(c, at + r, windows + r * k);
        delta_apply(c, windows, n, c->y + at * c->ys.c, at);
    }
}

static void run_blocks(const struct cpu_call *c, const float *bias)
{
    int64_t block = c->o->conv->block, out = c->o->w.out;

    if (c->o->wino != NULL) {
        wino_run(c, bias);
        return;
    }
    memset(cpu_scratch(c, c->o->conv->zeros_at), 0, (size_t)c->xs.c * sizeof(float));
    for (int64_t at = 0; at < out; at += block)
        run_block(c, bias, at, out - at < block ? out - at : block);
}

/* What turns the product comes before anything is added to it: the plain product stands in
 * scratch until then. */
static void run_turned(const struct cpu_call *c, const float *bias)
{
    int64_t m = c->ys.n * c->ys.h * c->ys.w, out = c->o->w.out, all = c->ys.h * c->ys.w;
    struct cpu_call plain = *c;

    plain.y = cpu_scratch(c, c->o->temp_at);
    plain.x[1] = plain.x[2] = NULL;
    run_blocks(&plain, NULL);
    run_deltas(&plain);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < m; i++)
        c->k->finish(c->y + i * out, plain.y + i * out, bias,
                     c->x[2] ? c->x[2] + i / all * out : NULL,
                     c->x[1] ? c->x[1] + i * out : NULL, ACT_NONE, out);
}

static void conv_run(struct cpu_call *c)
{
    const struct cpu_op *o = c->o;
    const float *bias = cpu_bias(c);

    wpass_prepare(c, &o->w);
    if (delta_turns(&o->w) && delta_active(c)) {
        run_turned(c, bias);
        return;
    }
    run_blocks(c, bias);
    if (delta_active(c))
        run_deltas(c);
}

/* --- compiling --- */

/* Channels of a block, evenly split; with many threads and few pixels up to four times as many,
 * so that all find work in it. */
static int64_t block_of(const struct wsource *w, int64_t panel, int64_t pixels, int threads)
{
    int64_t most = WEIGHT_BYTES / 4 / w->k / panel * panel;
    int64_t wanted = up_to(panel * 4 * threads * CONV_GROUP / (pixels + CONV_GROUP), panel);

    most = wanted < most ? most : wanted < 4 * most ? wanted : 4 * most;
    most = most < panel ? panel : most;
    int64_t blocks = (w->out + most - 1) / most;
    return up_to((w->out + blocks - 1) / blocks, panel);
}

/* Input channels of a chunk, evenly split, and odd: the weight pass writes each tap this many
 * panel rows apart, and a power of two would put them all in one set of the cache. */
static int64_t chunk_of(int64_t in, int64_t taps)
{
    int64_t most = DEPTH / taps < 1 ? 1 : DEPTH / taps, chunks = (in + most - 1) / most;

    return (in + chunks - 1) / chunks | 1;
}

/* Blocks and groups of the plain sums over taps. */
static void direct_compile(struct be_plan *p, struct cpu_op *o, int64_t m)
{
    const struct layer *l = o->op->layer;
    struct conv_plan *cp = o->conv;
    int64_t groups = (m + CONV_GROUP - 1) / CONV_GROUP;

    cp->taps = (int64_t)l->kh * l->kw;
    cp->panel = 2 * p->device->k->lanes;
    cp->chunk = chunk_of(l->in, cp->taps);
    cp->group = up_to((m + groups - 1) / groups, 24); /* whole tiles at every level */
    cp->block = block_of(&o->w, cp->panel, m, p->device->n_threads);
    o->block_at = cpu_take(o, (size_t)(cp->block * o->w.k) * sizeof(float));
    cp->zeros_at = cpu_take(o, (size_t)l->in * sizeof(float));
    size_t pixels = (size_t)(cp->taps * CONV_GROUP) * sizeof(float *);
    size_t pass = wpass_transpose_bytes(&o->w), turn = delta_thread_bytes(&o->w);
    pass = pass > turn ? pass : turn;
    cpu_take_threads(p, o, pixels > pass ? pixels : pass);
}

static kron_status conv_compile(struct be_plan *p, struct cpu_op *o)
{
    const struct layer *l = o->op->layer;
    struct gr_shape y = gr_shape_of(p->g, o->op->out);
    int64_t m = y.n * y.h * y.w;
    struct conv_plan *cp = o->conv = arena_alloc(&p->mem, sizeof *o->conv);

    KRON_TRY(p->mem.status);
    KRON_TRY(wpass_compile(p, o, l, o->op->route));
    if (wino_suits(p->g, o->op))
        KRON_TRY(wino_compile(p, o));
    else
        direct_compile(p, o, m);
    if (delta_turns(&o->w))
        o->temp_at = cpu_take(o, (size_t)(m * l->out) * sizeof(float));
    if (delta_on_rows(&o->w)) {
        int64_t rows = ROWS_BYTES / 4 / o->w.k;
        cp->window_rows = rows < 16 ? 16 : rows;
        cp->window_rows = cp->window_rows < m ? cp->window_rows : m;
        cp->windows_at = cpu_take(o, (size_t)(cp->window_rows * o->w.k) * sizeof(float));
        delta_compile(p, o);
    }
    return KRON_OK;
}

const struct cpu_op_fns cpu_conv2d = {conv_compile, conv_run};
