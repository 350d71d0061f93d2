/* SPDX-License-Identifier: MIT
 * Convolution by oneDNN, a block of output channels at a time.
 *
 * The weight pass writes rows in the file's order into a thread's cache and from there into the
 * blocked layout that the primitive wants. Where all channels fit one block the primitive writes
 * the output itself, bias and (in place) residual included; else it writes a dense block of
 * channels, in strips of rows so that the block stays small, which is then finished into place. */
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum {
    WEIGHT_BYTES = 6 << 20, /* of one block's weights */
    TEMP_BYTES = 4 << 20,   /* of one strip of a block's output */
    ROWS_BYTES = 2 << 20,   /* activation route: gathered windows */
    STEP = 32,              /* weight rows that a thread writes at a time */
    CHUNK = 576,            /* and columns: both fit its cache, 576 = 64 windows of 3 x 3 */
};

struct conv_list {
    struct onednn_conv *conv;
    struct conv_list *next;
};

/* Output rows [y, y + rows) of samples [n, n + n_count). */
struct strip {
    int64_t n, n_count, y, rows, from; /* from: first input row */
    const struct onednn_conv *full, *tail; /* for whole blocks of channels, and the last */
};

struct conv_plan {
    bool direct;
    int64_t block; /* channels; a multiple of 8 */
    int n_strips;
    struct strip *strips;
    size_t conv_scratch_at, windows_at;
    int64_t window_rows;
};

void conv_list_free(struct conv_list **l)
{
    while (*l != NULL) {
        struct conv_list *next = (*l)->next;
        onednn_conv_free(&(*l)->conv);
        mem_free(*l);
        *l = next;
    }
}

static bool same_conv(const struct conv_shape *a, const struct conv_shape *b)
{
    return a->n == b->n && a->ih == b->ih && a->iw == b->iw && a->ic == b->ic && a->oh == b->oh &&
           a->ow == b->ow && a->oc == b->oc && a->kh == b->kh && a->kw == b->kw &&
           a->stride == b->stride && a->pad_top == b->pad_top && a->pad_left == b->pad_left &&
           a->pad_bottom == b->pad_bottom && a->pad_right == b->pad_right && a->bias == b->bias &&
           a->sum == b->sum;
}

static kron_status find_conv(struct be_plan *p, const struct conv_shape *s,
                             const struct onednn_conv **out)
{
    void *m;

    for (struct conv_list *l = p->convs; l != NULL; l = l->next)
        if (same_conv(&l->conv->shape, s)) {
            *out = l->conv;
            return KRON_OK;
        }
    KRON_TRY(mem_alloc(&m, sizeof *p->convs, "a convolution"));
    struct conv_list *l = m;
    kron_status status = onednn_conv_create(p->dnn, s, &l->conv);
    if (status != KRON_OK) {
        mem_free(l);
        return status;
    }
    l->next = p->convs;
    p->convs = l;
    *out = l->conv;
    return KRON_OK;
}

/* --- weights --- */

/* Rows [o, o + n) of the block that starts at `first`, columns [col, col + n_col), from src. */
static void scatter(const struct cpu_kernels *k, const struct onednn_conv *conv, const float *src,
                    int64_t ld, int64_t o, int64_t n, int64_t col, int64_t n_col, float *dst)
{
    int64_t i = 0;

    for (; conv->runs_of_8 && i + 8 <= n; i += 8)
        k->scatter8(src + i * ld, ld, n_col, conv->col + col, dst + conv->row[o + i]);
    for (; i < n; i++)
        for (int64_t c = 0; c < n_col; c++)
            dst[conv->row[o + i] + conv->col[col + c]] = src[i * ld + c];
}

/* Channels [first, first + n) of the weight in the primitive's layout. Channels that the
 * primitive has beyond the layer's are zero. */
static void write_weights(const struct cpu_call *c, const struct onednn_conv *conv, int64_t first,
                          int64_t n, float *dst)
{
    const struct wsource *w = &c->o->w;
    const float *direct = wpass_direct(c, w);
    int64_t steps = (n + STEP - 1) / STEP, chunks = (w->k + CHUNK - 1) / CHUNK;

    if (conv->padded || conv->shape.oc != n)
        memset(dst, 0, conv->weight_bytes);
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < steps * chunks; i++) {
        int64_t o = i / chunks * STEP, col = i % chunks * CHUNK;
        int64_t m = n - o < STEP ? n - o : STEP, n_col = w->k - col < CHUNK ? w->k - col : CHUNK;
        float *rows = cpu_thread_scratch(c);
        if (direct) {
            scatter(c->k, conv, direct + (first + o) * w->k + col, w->k, o, m, col, n_col, dst);
            continue;
        }
        wpass_rows(c, w, first + o, m, col, n_col, rows, CHUNK, rows + STEP * CHUNK);
        scatter(c->k, conv, rows, CHUNK, o, m, col, n_col, dst);
    }
}

static bool same_layout(const struct onednn_conv *a, const struct onednn_conv *b)
{
    size_t k = (size_t)(a->shape.ic * a->shape.kh * a->shape.kw);

    if (a == b)
        return true;
    return a != NULL && b != NULL && a->shape.oc == b->shape.oc &&
           a->weight_bytes == b->weight_bytes &&
           memcmp(a->row, b->row, (size_t)a->shape.oc * sizeof *a->row) == 0 &&
           memcmp(a->col, b->col, k * sizeof *a->col) == 0;
}

/* --- running --- */

/* The strip's dense block of n channels to y, with all that is added. */
static void finish(const struct cpu_call *c, const struct strip *s, const float *block,
                   int64_t ld, const float *bias, int64_t first, int64_t n)
{
    int64_t oc = c->ys.c, pixels = s->rows * c->ys.w, all = c->ys.h * c->ys.w;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < s->n_count * pixels; i++) {
        int64_t sample = s->n + i / pixels;
        int64_t at = (sample * all + s->y * c->ys.w + i % pixels) * oc + first;
        c->k->finish(c->y + at, block + i * ld, bias ? bias + first : NULL,
                     c->x[2] ? c->x[2] + sample * oc + first : NULL, c->x[1] ? c->x[1] + at : NULL,
                     ACT_NONE, n);
    }
}

static kron_status run_block(const struct cpu_call *c, const float *bias, int64_t first,
                             int64_t n)
{
    const struct conv_plan *cp = c->o->conv;
    const struct onednn_conv *written = NULL;
    float *w = cpu_scratch(c, c->o->block_at), *temp = cpu_scratch(c, c->o->temp_at);

    for (int i = 0; i < cp->n_strips; i++) {
        const struct strip *s = &cp->strips[i];
        const struct onednn_conv *conv = n == cp->block ? s->full : s->tail;
        if (!same_layout(conv, written))
            write_weights(c, conv, first, n, w);
        written = conv;
        const float *x = c->x[0] + (s->n * c->xs.h + s->from) * c->xs.w * c->xs.c;
        KRON_TRY(onednn_conv_run(c->p->dnn, conv, x, w, NULL, temp,
                                 cpu_scratch(c, cp->conv_scratch_at)));
        finish(c, s, temp, conv->shape.oc, bias, first, n);
    }
    return KRON_OK;
}

static void add_residual(const struct cpu_call *c)
{
    int64_t oc = c->ys.c;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->ys.n * c->ys.h * c->ys.w; r++)
        c->k->finish(c->y + r * oc, c->y + r * oc, NULL, NULL, c->x[1] + r * oc, ACT_NONE, oc);
}

/* The primitive writes y: its bias is the layer's and the sample's vector together. */
static kron_status run_direct(const struct cpu_call *c, const float *bias)
{
    const struct conv_plan *cp = c->o->conv;
    int64_t oc = c->ys.c;
    float *w = cpu_scratch(c, c->o->block_at), *sum = cpu_scratch(c, c->o->temp_at);

    write_weights(c, cp->strips[0].full, 0, oc, w);
    for (int i = 0; i < cp->n_strips; i++) {
        const struct strip *s = &cp->strips[i];
        memset(sum, 0, (size_t)oc * sizeof *sum);
        c->k->finish(sum, sum, bias, c->x[2] ? c->x[2] + s->n * oc : NULL, NULL, ACT_NONE, oc);
        KRON_TRY(onednn_conv_run(c->p->dnn, s->full, c->x[0] + s->n * c->xs.h * c->xs.w * c->xs.c,
                                 w, sum, c->y + s->n * c->ys.h * c->ys.w * oc,
                                 cpu_scratch(c, cp->conv_scratch_at)));
    }
    if (c->x[1] && !c->o->res_in_place)
        add_residual(c);
    return KRON_OK;
}

/* The window of output pixel r, in the order of a weight row: [in][kh][kw]. */
static void gather_window(const struct cpu_call *c, int64_t r, float *to)
{
    const struct layer *l = c->op->layer;
    int64_t j = r % c->ys.w, i = r / c->ys.w % c->ys.h, n = r / c->ys.w / c->ys.h;
    int64_t ks = (int64_t)l->kh * l->kw;

    for (int u = 0; u < l->kh; u++)
        for (int v = 0; v < l->kw; v++) {
            int64_t h = i * c->op->stride + u - c->op->pad_top;
            int64_t w = j * c->op->stride + v - c->op->pad_left;
            float *at = to + u * l->kw + v;
            bool inside = h >= 0 && h < c->xs.h && w >= 0 && w < c->xs.w;
            const float *x = inside ? c->x[0] + ((n * c->xs.h + h) * c->xs.w + w) * l->in : NULL;
            for (int64_t p = 0; p < l->in; p++)
                at[p * ks] = inside ? x[p] : 0;
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
        delta_apply(c, windows, n, c->y + at * c->ys.c);
    }
}

static void conv_run(struct cpu_call *c)
{
    const struct cpu_op *o = c->o;
    const float *bias = cpu_bias(c, c->op->layer);

    wpass_prepare(c, &o->w);
    if (o->conv->direct)
        c->status = run_direct(c, bias);
    for (int64_t at = 0; !o->conv->direct && at < o->w.out && c->status == KRON_OK;
         at += o->conv->block)
        c->status = run_block(c, bias, at, o->w.out - at < o->conv->block ? o->w.out - at
                                                                          : o->conv->block);
    if (c->status == KRON_OK && !o->w.in_weight && o->w.deltas.n > 0)
        run_deltas(c);
}

/* --- compiling --- */

static int64_t up_to(int64_t v, int64_t unit)
{
    return (v + unit - 1) / unit * unit;
}

/* Channels of a block, evenly split; a single block if the weights allow. */
static int64_t block_of(const struct wsource *w)
{
    int64_t most = WEIGHT_BYTES / 4 / w->k / 16 * 16;

    most = most < 16 ? 16 : most;
    if (up_to(w->out, 8) <= most)
        return up_to(w->out, 8);
    int64_t blocks = (w->out + most - 1) / most;
    return up_to((w->out + blocks - 1) / blocks, 16);
}

/* The strip as a convolution of its own: its input rows, and the padding that they miss. A strip
 * of whole samples takes all input rows, used or not: samples lie that far apart. */
static struct conv_shape shape_of(const struct gr_op *op, struct gr_shape x, struct gr_shape y,
                                  const struct strip *s)
{
    int64_t top = s->y * op->stride - op->pad_top;
    int64_t end = (s->y + s->rows - 1) * op->stride - op->pad_top + op->layer->kh;
    int64_t right = (y.w - 1) * op->stride + op->layer->kw - x.w - op->pad_left;
    struct conv_shape c = {.n = s->n_count, .iw = x.w, .ic = x.c, .oh = s->rows, .ow = y.w,
                           .kh = op->layer->kh, .kw = op->layer->kw, .stride = op->stride,
                           .pad_left = op->pad_left};

    c.pad_top = top < 0 ? (int)-top : 0;
    c.pad_bottom = end > x.h ? (int)(end - x.h) : 0;
    c.ih = s->rows == y.h ? x.h : end - top - c.pad_top - c.pad_bottom;
    c.pad_right = right > 0 ? (int)right : 0;
    return c;
}

/* Cuts the output into strips whose block of channels stays small. */
static kron_status make_strips(struct be_plan *p, struct cpu_op *o, struct gr_shape y,
                               bool by_sample)
{
    struct conv_plan *cp = o->conv;
    int64_t rows = y.h, count = by_sample ? 1 : y.n, row_bytes = y.w * cp->block * 4;

    if (!cp->direct && y.n * y.h * row_bytes > TEMP_BYTES) {
        count = 1;
        rows = TEMP_BYTES / row_bytes < y.h ? TEMP_BYTES / row_bytes : y.h;
        rows = rows < 1 ? 1 : rows;
    }
    int64_t n_rows = (y.h + rows - 1) / rows;
    rows = (y.h + n_rows - 1) / n_rows;
    cp->n_strips = (int)(n_rows * (y.n / count));
    cp->strips = arena_alloc(&p->mem, (size_t)cp->n_strips * sizeof *cp->strips);
    KRON_TRY(p->mem.status);
    int i = 0;
    for (int64_t n = 0; n < y.n; n += count)
        for (int64_t at = 0; at < y.h; at += rows)
            cp->strips[i++] = (struct strip){.n = n, .n_count = count, .y = at,
                                             .rows = y.h - at < rows ? y.h - at : rows};
    cp->n_strips = i;
    return KRON_OK;
}

/* Primitives of all strips; the largest weight, temporary and scratch that they need. */
static kron_status make_convs(struct be_plan *p, struct cpu_op *o, struct gr_shape x,
                              struct gr_shape y)
{
    struct conv_plan *cp = o->conv;
    int64_t tail = up_to(o->w.out % cp->block, 8);
    size_t weight = 0, scratch = 0, temp = 0;

    for (int i = 0; i < cp->n_strips; i++) {
        struct strip *s = &cp->strips[i];
        struct conv_shape shape = shape_of(o->op, x, y, s);
        s->from = s->y * o->op->stride - o->op->pad_top + shape.pad_top;
        shape.bias = cp->direct;
        shape.sum = cp->direct && o->res_in_place;
        shape.oc = cp->block;
        if (o->w.out >= cp->block)
            KRON_TRY(find_conv(p, &shape, &s->full));
        shape.oc = tail;
        if (tail > 0)
            KRON_TRY(find_conv(p, &shape, &s->tail));
        const struct onednn_conv *made[] = {s->full, s->tail};
        for (int j = 0; j < 2; j++) {
            if (made[j] == NULL)
                continue;
            size_t out = (size_t)(s->n_count * s->rows * y.w * made[j]->shape.oc) * 4;
            weight = made[j]->weight_bytes > weight ? made[j]->weight_bytes : weight;
            scratch = made[j]->scratch_bytes > scratch ? made[j]->scratch_bytes : scratch;
            temp = out > temp ? out : temp;
        }
    }
    o->block_at = cpu_take(o, weight);
    o->temp_at = cpu_take(o, cp->direct ? (size_t)o->w.out * 4 : temp);
    cp->conv_scratch_at = cpu_take(o, scratch);
    return KRON_OK;
}

static kron_status conv_compile(struct be_plan *p, struct cpu_op *o)
{
    const struct gr_op *op = o->op;
    struct gr_shape x = gr_shape_of(p->g, op->in[0]), y = gr_shape_of(p->g, op->out);
    int64_t m = y.n * y.h * y.w;

    o->conv = arena_alloc(&p->mem, sizeof *o->conv);
    KRON_TRY(p->mem.status);
    KRON_TRY(wpass_compile(p, o, op->layer, op->route));
    cpu_take_threads(p, o, (size_t)(STEP * CHUNK) * 4 + wpass_thread_bytes(&o->w));
    o->conv->block = block_of(&o->w);
    o->conv->direct = o->conv->block == o->w.out;
    KRON_TRY(make_strips(p, o, y, o->conv->direct && op->in[2] != GR_NONE));
    KRON_TRY(make_convs(p, o, x, y));
    if (!o->w.in_weight && o->w.deltas.n > 0) {
        int64_t rows = ROWS_BYTES / 4 / o->w.k;
        o->conv->window_rows = rows < 16 ? 16 : rows < m ? rows : m;
        o->conv->windows_at = cpu_take(o, (size_t)(o->conv->window_rows * o->w.k) * 4);
        delta_compile(p, o);
    }
    return KRON_OK;
}

const struct cpu_op_fns cpu_conv2d = {conv_compile, conv_run};
