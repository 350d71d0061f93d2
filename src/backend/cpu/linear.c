/* SPDX-License-Identifier: MIT
 * y = act(W x + b) + residual, and the gated form.
 *
 * Weight rows are written a block at a time into scratch that stays in the last cache, multiplied
 * at once into a strided part of the output, and that part is finished while it is warm. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum {
    BLOCK_BYTES = 1 << 20, /* of decoded weight rows */
    MANY_ROWS = 1024,      /* activations: from here twice that pays, 2 to 5 % of the product */
    TEMP_BYTES = 2 << 20,  /* of products that are not written straight to the output */
    FEW_ROWS = 4,          /* activations: up to here each weight is used as it is decoded */
    FEW_STEP = 8,          /* weight rows that a thread decodes at a time then */
    SOME_ROWS = 96,        /* activations: up to here a product packs nothing (dots_tmpl.h) */
    SOME_STEP = 8,         /* weight rows that a thread decodes at a time then, */
    SOME_DEPTH = 640,      /* of at most so many columns, for its first cache */
    SOME_LD = SOME_DEPTH + 16, /* rows apart: no multiple of a page's sets */
    SOME_TASK = 64,        /* most weight rows that are finished together */
    SOME_GROUP = 6,        /* activations between two looks ahead */
};

/* Weight rows of a block for m rows of activations: a multiple of 16, split evenly. */
static int64_t block_rows(int64_t m, int64_t out, int64_t k, int threads)
{
    int64_t most = BLOCK_BYTES / 4 / k * (m < MANY_ROWS ? 1 : 2);
    int64_t least = 16 * threads < 64 ? 64 : 16 * threads;

    most = most < least ? least : most;
    int64_t blocks = (out + most - 1) / most;
    int64_t rows = (out + blocks - 1) / blocks;
    return (rows + 15) / 16 * 16;
}

/* Columns [col, col + n) of row r of y, which is as wide as res. */
static void finish_row(const struct cpu_call *c, float *y, const float *x, const float *bias,
                       const float *res, int64_t r, int64_t col, int64_t n)
{
    int64_t at = r * c->ys.c + col;

    c->k->finish(y + at, x, bias ? bias + col : NULL, NULL, res ? res + at : NULL, c->op->act, n);
}

/* y = act(x + bias) + res for columns [col, col + n) of `rows` rows; y and res ldy wide. */
static void finish(const struct cpu_call *c, float *y, const float *x, int64_t ldx,
                   const float *bias, const float *res, int64_t rows, int64_t col, int64_t n)
{
    if (bias == NULL && res == NULL && c->op->act == ACT_NONE && x == y + col)
        return;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        finish_row(c, y, x + r * ldx, bias, res, r, col, n);
}

/* --- few rows: each weight row is decoded by the thread that uses it --- */

static void few_rows(const struct cpu_call *c, float *y, int64_t ldy)
{
    const struct wsource *w = &c->o->w;
    int64_t m = rows_of(c->xs), pieces = (w->out + FEW_STEP - 1) / FEW_STEP;
    const float *direct = wpass_direct(c, w);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t p = 0; p < pieces; p++) {
        int64_t row = p * FEW_STEP, n = w->out - row < FEW_STEP ? w->out - row : FEW_STEP;
        float *mem = cpu_thread_scratch(c);
        const float *rows = direct ? direct + row * w->k : mem;
        if (!direct)
            wpass_rows(c, w, row, n, 0, w->k, mem, w->k, mem + FEW_STEP * w->k);
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < m; r++)
                y[r * ldy + row + i] = c->k->dot(rows + i * w->k, c->x[0] + r * w->k, w->k);
    }
}

/* --- some rows: as few, but each weight row is used by tiles of rows while it is in the first
 * cache. One parallel region for the whole product, where blocks take several each. --- */

/* Bytes of the weight that will be decoded next: asked for a few lines at a time between products,
 * since all at once would wait for memory. */
struct ahead {
    const char *row, *at;
    int64_t step, bytes, rows;
};

static struct ahead look_ahead(const struct wsource *w, int64_t row, int64_t n, int64_t col,
                               int64_t n_col)
{
    const struct dtype_info *info = dtype_info(w->base.type);
    struct ahead a = {.step = w->k / info->block * info->bytes, .rows = n,
                      .bytes = n_col / info->block * info->bytes};

    a.at = a.row = (const char *)w->base.data + (row * w->k + col) / info->block * info->bytes;
    return a;
}

static void fetch_some(struct ahead *a, int64_t lines)
{
    for (; lines > 0 && a->rows > 0; lines--) {
        __builtin_prefetch(a->at, 0, 2);
        a->at += 64;
        if (a->at >= a->row + a->bytes) {
            a->at = a->row += a->step;
            a->rows--;
        }
    }
}

/* Columns of a piece, evenly split; whole blocks of every type where rows are. */
static int64_t some_depth(const struct wsource *w)
{
    int64_t most = dtype_info(w->base.type)->block > 32 ? 512 : SOME_DEPTH;

    return most == 512 ? most : up_to(ceil_div(w->k, ceil_div(w->k, most)), 32);
}

/* y (+)= x times columns [col, col + n_col) of weight rows [row, row + n). */
static void some_piece(const struct cpu_call *c, int64_t row, int64_t n, int64_t col,
                       int64_t n_col, struct ahead a, bool add)
{
    const struct wsource *w = &c->o->w;
    float *mem = cpu_thread_scratch(c);
    const float *rows = wpass_direct(c, w), *x = c->x[0] + col;
    int64_t m = rows_of(c->xs), ld = w->k, groups = ceil_div(m, SOME_GROUP);
    int64_t lines = ceil_div(ceil_div(a.bytes, 64) * a.rows, groups);

    if (rows == NULL) {
        wpass_rows(c, w, row, n, col, n_col, mem, SOME_LD, mem + SOME_STEP * SOME_LD);
        ld = SOME_LD;
    }
    rows = rows == NULL ? mem : rows + row * w->k + col;
    for (int64_t i = 0; i < m; i += SOME_GROUP) {
        fetch_some(&a, lines);
        c->k->dots(m - i < SOME_GROUP ? m - i : SOME_GROUP, n, n_col, x + i * w->k, w->k, rows,
                   ld, c->y + i * c->ys.c + row, c->ys.c, add);
    }
}

/* Weight rows [first, end) of one thread's task. */
static void some_task(const struct cpu_call *c, int64_t first, int64_t end)
{
    const struct wsource *w = &c->o->w;
    int64_t depth = some_depth(w);

    for (int64_t row = first; row < end; row += SOME_STEP) {
        int64_t n = end - row < SOME_STEP ? end - row : SOME_STEP, next = row + n;
        for (int64_t col = 0; col < w->k; col += depth) {
            int64_t n_col = w->k - col < depth ? w->k - col : depth, then = col + n_col;
            struct ahead a = {0};
            if (then < w->k)
                a = look_ahead(w, row, n, then, w->k - then < depth ? w->k - then : depth);
            else if (next < end)
                a = look_ahead(w, next, end - next < n ? end - next : n, 0, n_col);
            some_piece(c, row, n, col, n_col, a, col > 0 || c->o->res_in_place);
        }
    }
}

/* Deltas of activations come between the sums and the rest. */
static void some_rows(const struct cpu_call *c, const float *bias)
{
    int64_t m = rows_of(c->xs), out = c->o->w.out;
    int64_t task = up_to(ceil_div(out, 4 * c->threads), SOME_STEP);
    const float *res = c->o->res_in_place ? NULL : c->x[1];
    bool deltas = delta_active(c), plain = bias == NULL && res == NULL && c->op->act == ACT_NONE;

    task = task < SOME_TASK ? task : SOME_TASK;
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t at = 0; at < out; at += task) {
        int64_t end = at + task < out ? at + task : out;
        some_task(c, at, end);
        if (!deltas && !plain)
            for (int64_t r = 0; r < m; r++)
                finish_row(c, c->y, c->y + r * out + at, bias, res, r, at, end - at);
    }
    if (!deltas)
        return;
    struct delta_ranks ranks = delta_ranks(c, c->x[0], m);
    delta_add_ranks(&ranks, 0, m, 0, out, c->y, out);
    if (ranks.r == 0)
        delta_apply(c, c->x[0], m, c->y, 0);
    finish(c, c->y, c->y, out, bias, res, m, 0, out);
}

/* --- many rows --- */

/* Weight rows [row, row + n) as f32, ready to multiply. */
static const float *block_of(const struct cpu_call *c, int64_t row, int64_t n, float *mem)
{
    const float *direct = wpass_direct(c, &c->o->w);

    if (direct)
        return direct + row * c->o->w.k;
    wpass_block(c, &c->o->w, row, n, mem);
    return mem;
}

/* One block of output columns. With an activation after the sum of base and deltas, finishing
 * waits (`raw`). A residual in the output's place is added by the product itself, but where an
 * activation comes between: then the product goes through scratch. */
static void linear_block(const struct cpu_call *c, const struct delta_ranks *ranks,
                         const float *bias, int64_t row, int64_t n, bool raw)
{
    const struct cpu_op *o = c->o;
    const float *w = block_of(c, row, n, cpu_scratch(c, o->block_at)), *res = c->x[1];
    int64_t m = rows_of(c->xs), k = o->w.k, ldy = c->ys.c;
    bool in_place = o->res_in_place, through = in_place && c->op->act != ACT_NONE;
    float *temp = cpu_scratch(c, o->temp_at);

    for (int64_t at = 0; at < m; at += o->m_chunk) {
        int64_t rows = m - at < o->m_chunk ? m - at : o->m_chunk;
        const float *x = c->x[0] + at * k;
        float *y = c->y + at * ldy;
        if (through) {
            onednn_gemm(true, rows, n, k, 1, x, k, w, k, 0, temp, n);
            delta_add_ranks(ranks, at, rows, row, n, temp, n);
            finish(c, y, temp, n, bias, y, rows, row, n);
            continue;
        }
        onednn_gemm(true, rows, n, k, 1, x, k, w, k, in_place ? 1 : 0, y + row, ldy);
        delta_add_ranks(ranks, at, rows, row, n, y + row, ldy);
        if (!raw)
            finish(c, y, y + row, ldy, bias, in_place || !res ? NULL : res + at * ldy, rows, row,
                   n);
    }
}

/* Whole rows through scratch, a chunk at a time: for what turns the product before anything is
 * added to it, and for an activation of base and deltas before a residual in the output's place. */
static void linear_rows(const struct cpu_call *c, const float *bias, int64_t at, int64_t rows)
{
    const struct cpu_op *o = c->o;
    int64_t k = o->w.k, out = o->w.out;
    float *temp = cpu_scratch(c, o->temp_at);
    const float *x = c->x[0] + at * k;

    for (int64_t row = 0; row < out; row += o->block) {
        int64_t n = out - row < o->block ? out - row : o->block;
        const float *w = block_of(c, row, n, cpu_scratch(c, o->block_at));
        onednn_gemm(true, rows, n, k, 1, x, k, w, k, 0, temp + row, out);
    }
    delta_apply(c, x, rows, temp, at);
    finish(c, c->y + at * out, temp, out, bias, c->x[1] ? c->x[1] + at * out : NULL, rows, 0, out);
}

static void linear_run(struct cpu_call *c)
{
    const struct cpu_op *o = c->o;
    const float *bias = cpu_bias(c), *res = c->x[1];
    int64_t m = rows_of(c->xs), out = o->w.out;
    bool deltas = delta_active(c), raw = deltas && c->op->act != ACT_NONE;

    wpass_prepare(c, &o->w);
    if (m <= FEW_ROWS && !deltas) {
        float *temp = cpu_scratch(c, o->temp_at);
        few_rows(c, temp, out);
        finish(c, c->y, temp, out, bias, res, m, 0, out);
        return;
    }
    if (o->by_dots) {
        some_rows(c, bias);
        return;
    }
    struct delta_ranks ranks = delta_ranks(c, c->x[0], m);
    raw = raw && ranks.r == 0;
    if (o->by_rows && deltas && ranks.r == 0) {
        for (int64_t at = 0; at < m; at += o->m_chunk)
            linear_rows(c, bias, at, m - at < o->m_chunk ? m - at : o->m_chunk);
        return;
    }
    for (int64_t row = 0; row < out; row += o->block)
        linear_block(c, &ranks, bias, row, out - row < o->block ? out - row : o->block, raw);
    if (deltas && ranks.r == 0)
        delta_apply(c, c->x[0], m, c->y, 0);
    if (raw)
        finish(c, c->y, c->y, out, bias, res, m, 0, out);
}

/* Rows of `width` floats that temp_at holds. */
static void take_temp(struct cpu_op *o, int64_t m, int64_t width)
{
    o->m_chunk = TEMP_BYTES / 4 / width < 32 ? 32 : TEMP_BYTES / 4 / width;
    o->m_chunk = o->m_chunk < m ? o->m_chunk : m;
    o->temp_floats = o->m_chunk * width;
    o->temp_at = cpu_take(o, (size_t)o->temp_floats * 4);
}

/* Scratch of each worker for the weight pass, behind `more`, or for turning. */
static void take_threads(struct be_plan *p, struct cpu_op *o, size_t more)
{
    size_t pass = more + wpass_thread_bytes(&o->w), turn = delta_thread_bytes(&o->w);

    cpu_take_threads(p, o, pass > turn ? pass : turn);
}

static kron_status linear_compile(struct be_plan *p, struct cpu_op *o)
{
    const struct gr_op *op = o->op;
    int64_t m = rows_of(gr_shape_of(p->g, op->in[0])), k = op->layer->in, out = op->layer->out;

    KRON_TRY(wpass_compile(p, o, op->layer, op->route));
    bool deltas = delta_on_rows(&o->w), few = m <= FEW_ROWS;
    bool through = o->res_in_place && op->act != ACT_NONE;
    o->m_chunk = m;
    o->by_rows = delta_turns(&o->w) || (deltas && through);
    o->by_dots = m <= SOME_ROWS && !o->by_rows && !through;
    int64_t some = o->by_dots ? SOME_STEP * SOME_LD : 0, rows = few ? FEW_STEP * k : 0;
    take_threads(p, o, (size_t)(rows > some ? rows : some) * 4);
    if (few)
        o->temp_at = cpu_take(o, (size_t)(m * out) * 4);
    if (deltas)
        delta_compile(p, o);
    if (o->by_dots || (few && !deltas))
        return KRON_OK;
    o->block = block_rows(m, out, k, p->device->n_threads);
    o->block_at = cpu_take(o, (size_t)(o->block * k) * 4);
    if (!few && (o->by_rows || through))
        take_temp(o, m, o->by_rows ? out : o->block);
    return KRON_OK;
}

const struct cpu_op_fns cpu_linear = {linear_compile, linear_run};

/* --- gated --- */

static void gate(const struct cpu_call *c, float *y, const float *value, const float *gates,
                 int64_t ld, const float *bias, int64_t rows, int64_t col, int64_t n)
{
    int64_t half = c->ys.c;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        c->k->geglu(y + r * half + col, value + r * ld, bias + col, gates + r * ld,
                    bias + half + col, n);
}

/* Columns [col, col + n) of values and of gates, in chunks of activations. */
static void geglu_block(const struct cpu_call *c, const struct delta_ranks *ranks,
                        const float *bias, int64_t col, int64_t n)
{
    const struct cpu_op *o = c->o;
    int64_t m = rows_of(c->xs), k = o->w.k, half = c->ys.c, chunk = o->temp_floats / (2 * n);
    float *mem = cpu_scratch(c, o->block_at), *temp = cpu_scratch(c, o->temp_at);
    const float *wv = block_of(c, col, n, mem);
    const float *wg = block_of(c, half + col, n, mem + n * k);
    bool apart = wg != wv + n * k; /* else one product for both */

    for (int64_t at = 0; at < m; at += chunk) {
        int64_t rows = m - at < chunk ? m - at : chunk;
        const float *x = c->x[0] + at * k;
        onednn_gemm(true, rows, apart ? n : 2 * n, k, 1, x, k, wv, k, 0, temp, 2 * n);
        if (apart)
            onednn_gemm(true, rows, n, k, 1, x, k, wg, k, 0, temp + n, 2 * n);
        delta_add_ranks(ranks, at, rows, col, n, temp, 2 * n);
        delta_add_ranks(ranks, at, rows, half + col, n, temp + n, 2 * n);
        gate(c, c->y + at * half, temp, temp + n, 2 * n, bias, rows, col, n);
    }
}

/* Activation route: values and gates of a chunk of rows, whole, so that deltas add to them. */
static void geglu_rows(const struct cpu_call *c, const float *bias, int64_t at, int64_t rows)
{
    const struct cpu_op *o = c->o;
    int64_t k = o->w.k, out = o->w.out, half = c->ys.c;
    float *temp = cpu_scratch(c, o->temp_at);
    const float *x = c->x[0] + at * k;

    for (int64_t row = 0; row < out; row += o->block) {
        int64_t n = out - row < o->block ? out - row : o->block;
        const float *w = block_of(c, row, n, cpu_scratch(c, o->block_at));
        onednn_gemm(true, rows, n, k, 1, x, k, w, k, 0, temp + row, out);
    }
    delta_apply(c, x, rows, temp, at);
    gate(c, c->y + at * half, temp, temp + half, out, bias, rows, 0, half);
}

static void geglu_run(struct cpu_call *c)
{
    const struct cpu_op *o = c->o;
    int64_t m = rows_of(c->xs), half = c->ys.c;
    const float *bias = cpu_bias(c);

    wpass_prepare(c, &o->w);
    if (bias == NULL) { /* the layer has none: zeros stand at bias_at */
        float *zero = cpu_scratch(c, o->bias_at);
        memset(zero, 0, (size_t)o->w.out * sizeof *zero);
        bias = zero;
    }
    bool deltas = delta_active(c);
    struct delta_ranks ranks = delta_ranks(c, c->x[0], m);
    if (deltas && ranks.r == 0)
        for (int64_t at = 0; at < m; at += o->m_chunk)
            geglu_rows(c, bias, at, m - at < o->m_chunk ? m - at : o->m_chunk);
    else
        for (int64_t col = 0; col < half; col += o->block)
            geglu_block(c, &ranks, bias, col, half - col < o->block ? half - col : o->block);
}

static kron_status geglu_compile(struct be_plan *p, struct cpu_op *o)
{
    const struct layer *l = o->op->layer;
    int64_t m = rows_of(gr_shape_of(p->g, o->op->in[0])), k = l->in;

    KRON_TRY(wpass_compile(p, o, l, o->op->route));
    bool deltas = delta_on_rows(&o->w);
    if (!o->has_bias)
        o->bias_at = cpu_take(o, (size_t)l->out * 4);
    take_threads(p, o, 0);
    o->block = block_rows(m, l->out / 2, 2 * k, p->device->n_threads);
    o->block_at = cpu_take(o, (size_t)(2 * o->block * k) * 4);
    take_temp(o, m, deltas ? l->out : 2 * o->block);
    if (deltas)
        delta_compile(p, o);
    return KRON_OK;
}

const struct cpu_op_fns cpu_geglu = {geglu_compile, geglu_run};
