/* SPDX-License-Identifier: MIT
 * Lifetimes to offsets: every temporary value gets a place in one arena.
 *
 * A value lives from the operation that writes it to the last that reads it. Values are placed
 * largest first, each at the lowest offset where no value with an overlapping life is in the way
 * (greedy by size, Pisarchyk and Lee 2020): within a few percent of the lower bound on UNets.
 * An operation that runs in place shares its input's bytes: both are one block for placement, and
 * so are a value in parts and the one that it may lie over. */
#include "graph/graph.h"
#include <stdlib.h>

enum { ALIGN = 64 };

struct block {
    int first, last; /* operations; inclusive */
    int64_t bytes;
    int64_t offset;
    int value; /* breaks ties: the same plan on every machine */
};

struct lives {
    int *first, *last; /* by value; those that are rows of another count as that one */
    int *done;         /* by value: the last operation that writes to it */
    int *block;        /* by value: index into blocks, -1 for bindings */
    struct block *blocks;
    struct block **order, **near;
    int n_blocks;
};

bool gr_op_in_place(const struct gr_op *op, int i)
{
    switch (op->kind) {
    case OP_LINEAR: /* the residual is read where it is written; x is read again and again */
    case OP_CONV2D:
        return i == 1;
    case OP_GROUP_NORM:
    case OP_NORM_APPLY:
    case OP_LAYER_NORM:
    case OP_ACT:
        return i == 0;
    case OP_ADD:
        return true;
    default:
        return false;
    }
}

static void find_lives(const struct graph *g, struct lives *lv)
{
    for (int v = 0; v < g->n_values; v++)
        lv->first[v] = lv->last[v] = lv->done[v] = -1;
    for (int o = 0; o < g->n_ops; o++) {
        const struct gr_op *op = &g->ops[o];
        gr_ref out = gr_root(g, op->out);
        if (lv->first[out] < 0)
            lv->first[out] = o;
        lv->last[out] = lv->done[out] = o;
        for (int i = 0; i < GR_MAX_IN; i++)
            if (op->in[i] != GR_NONE)
                lv->last[gr_root(g, op->in[i])] = o;
    }
}

static int64_t value_bytes(const struct gr_value *v)
{
    int64_t bytes = gr_elements(v->shape) * 4;

    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* The block that op's output can take over from an input that dies there; -1 if none. */
static int dying_input(const struct graph *g, const struct lives *lv, int o)
{
    const struct gr_op *op = &g->ops[o];

    for (int i = 0; i < GR_MAX_IN; i++) {
        gr_ref v = op->in[i];
        bool dies = v != GR_NONE && g->values[v].role == GR_TEMP && lv->last[v] == o &&
                    g->values[v].base == GR_NONE && !g->values[v].held;
        for (int j = 0; dies && j < GR_MAX_IN; j++) /* not if it is also read as another input */
            dies = j == i || op->in[j] != v;
        if (dies && gr_op_in_place(op, i) &&
            value_bytes(&g->values[v]) == value_bytes(&g->values[op->out]))
            return lv->block[v];
    }
    return -1;
}

/* The block that a value in parts may lie over, if it is not needed any more by then. */
static int block_below(const struct graph *g, const struct lives *lv, gr_ref v)
{
    gr_ref x = g->values[v].over;

    if (x == GR_NONE || lv->block[x] < 0 || lv->last[x] > lv->done[v] ||
        value_bytes(&g->values[v]) > value_bytes(&g->values[x]))
        return -1;
    return lv->block[x];
}

static void make_blocks(const struct graph *g, struct lives *lv)
{
    for (int v = 0; v < g->n_values; v++)
        lv->block[v] = -1;
    for (int o = 0; o < g->n_ops; o++) {
        gr_ref v = gr_root(g, g->ops[o].out);
        if (g->values[v].role != GR_TEMP || g->values[v].held || lv->block[v] >= 0)
            continue;
        int b = v == g->ops[o].out ? dying_input(g, lv, o) : block_below(g, lv, v);
        if (b < 0) {
            b = lv->n_blocks++;
            lv->blocks[b] = (struct block){o, o, value_bytes(&g->values[v]), 0, v};
        }
        lv->block[v] = b;
        if (lv->blocks[b].last < lv->last[v])
            lv->blocks[b].last = lv->last[v];
    }
}

static int by_size(const void *a, const void *b)
{
    const struct block *x = *(struct block *const *)a, *y = *(struct block *const *)b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->value - y->value;
}

static int by_offset(const void *a, const void *b)
{
    const struct block *x = *(struct block *const *)a, *y = *(struct block *const *)b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->value - y->value;
}

/* Lowest offset where b overlaps none of the n placed blocks whose lives cross its own. */
static void place(struct block *b, struct block **placed, int n, struct block **near)
{
    int n_near = 0;
    int64_t at = 0;

    for (int i = 0; i < n; i++)
        if (placed[i]->first <= b->last && b->first <= placed[i]->last)
            near[n_near++] = placed[i];
    qsort(near, (size_t)n_near, sizeof *near, by_offset);
    for (int i = 0; i < n_near && near[i]->offset < at + b->bytes; i++)
        if (near[i]->offset + near[i]->bytes > at)
            at = near[i]->offset + near[i]->bytes;
    b->offset = at;
}

static size_t most_alive(const struct graph *g, const struct lives *lv)
{
    int64_t most = 0;

    for (int o = 0; o < g->n_ops; o++) {
        int64_t sum = 0;
        for (int b = 0; b < lv->n_blocks; b++)
            if (lv->blocks[b].first <= o && o <= lv->blocks[b].last)
                sum += lv->blocks[b].bytes;
        if (sum > most)
            most = sum;
    }
    return (size_t)most;
}

static kron_status alloc_lives(struct lives *lv, struct arena *a, const struct graph *g)
{
    size_t n = (size_t)g->n_values + 1;

    lv->first = arena_alloc(a, n * sizeof *lv->first);
    lv->last = arena_alloc(a, n * sizeof *lv->last);
    lv->done = arena_alloc(a, n * sizeof *lv->done);
    lv->block = arena_alloc(a, n * sizeof *lv->block);
    lv->blocks = arena_alloc(a, n * sizeof *lv->blocks);
    lv->order = arena_alloc(a, n * sizeof *lv->order);
    lv->near = arena_alloc(a, n * sizeof *lv->near);
    return a->status;
}

/* Held values one behind the other. Returns their bytes. */
static int64_t place_held(struct graph *g)
{
    int64_t end = 0;

    for (int v = 0; v < g->n_values; v++)
        if (g->values[v].held) {
            g->values[v].offset = end;
            end += value_bytes(&g->values[v]);
        }
    return end;
}

static void place_all(struct graph *g, struct lives *lv)
{
    int64_t held = place_held(g), end = 0;

    for (int b = 0; b < lv->n_blocks; b++)
        lv->order[b] = &lv->blocks[b];
    qsort(lv->order, (size_t)lv->n_blocks, sizeof *lv->order, by_size);
    for (int i = 0; i < lv->n_blocks; i++) {
        place(lv->order[i], lv->order, i, lv->near);
        if (lv->order[i]->offset + lv->order[i]->bytes > end)
            end = lv->order[i]->offset + lv->order[i]->bytes;
    }
    for (int v = 0; v < g->n_values; v++) {
        struct gr_value *x = &g->values[v];
        gr_ref root = gr_root(g, v);
        int b = lv->block[root];
        int64_t first = b >= 0 ? held + lv->blocks[b].offset : -1;
        if (g->values[root].held)
            first = g->values[root].offset;
        x->offset = first < 0 ? -1 : first + x->row * x->shape.w * x->shape.c * 4;
    }
    g->held_bytes = (size_t)held;
    g->arena_bytes = (size_t)(held + end);
}

kron_status gr_plan(struct graph *g)
{
    struct lives lv = {0};
    struct arena a = {0};

    KRON_TRY(g->status);
    kron_status status = alloc_lives(&lv, &a, g);
    if (status == KRON_OK) {
        find_lives(g, &lv);
        make_blocks(g, &lv);
        place_all(g, &lv);
        g->lower_bound = g->held_bytes + most_alive(g, &lv);
    }
    arena_free(&a);
    return status;
}
