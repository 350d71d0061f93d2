/* SPDX-License-Identifier: MIT
 * Attention: heads and blocks of queries over threads; the block itself is a kernel. */
#include "backend/cpu/int8.h"
#include <omp.h>

static bool whole(const struct gr_op *op)
{
    return op->compute == COMPUTE_INT16;
}

/* Where head h of sample n begins. */
static struct attention_tile tile_of(const struct cpu_call *c, int64_t n, int64_t h)
{
    struct gr_shape ks = gr_shape_of(c->p->g, c->op->in[1]);
    int64_t tq = c->xs.h * c->xs.w, tk = ks.h * ks.w, ch = c->xs.c, d = ch / c->op->heads;

    return (struct attention_tile){
        .q = c->x[0] + n * tq * ch + h * d,
        .k = c->x[1] + n * tk * ch + h * d,
        .v = c->x[2] + n * tk * ch + h * d,
        .y = c->y + n * tq * ch + h * d,
        .ldq = ch, .ldk = ch, .n_q = tq, .n_k = tk, .d = d, .causal = c->op->causal};
}

/* The blocks of a head, in whole numbers. */
static float *blocks_of(const struct cpu_call *c, const struct attention_tile *t, int64_t head)
{
    return (float *)cpu_scratch(c, c->o->block_at) +
           head * ceil_div(t->n_k, ATTENTION16_KEYS) * attention16_block_floats(t->d);
}

/* Keys of a block lie far apart, those of its neighbours in between: heads go first. */
static void pack(const struct cpu_call *c)
{
    int64_t heads = c->op->heads, tk = tile_of(c, 0, 0).n_k, n = ceil_div(tk, ATTENTION16_KEYS);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < c->xs.n * n * heads; i++) {
        int64_t h = i % heads, b = i / heads % n, s = i / heads / n;
        struct attention_tile t = tile_of(c, s, h);
        c->p->device->int8->attention_pack(&t, b * ATTENTION16_KEYS,
                                           blocks_of(c, &t, s * heads + h) +
                                               b * attention16_block_floats(t.d));
    }
}

static void attention_run(struct cpu_call *c)
{
    int64_t heads = c->op->heads, tq = c->xs.h * c->xs.w, most = attention_queries(c->xs.c / heads);

    while (most > 96 && c->xs.n * heads * (tq + most - 1) / most < 4 * c->threads)
        most /= 2; /* all workers shall find work */
    int64_t blocks = ceil_div(tq, most);
    int64_t each = ceil_div(tq, blocks); /* evenly: no short last block */

    if (whole(c->op))
        pack(c);
    /* Causal blocks differ in work, so threads take them as they come. */
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t i = 0; i < c->xs.n * heads * blocks; i++) {
        int64_t head = i / blocks, q = i % blocks * each;
        struct attention_tile t = tile_of(c, head / heads, head % heads);
        t.q += q * t.ldq;
        t.y += q * t.ldq;
        t.first = q;
        t.n_q = tq - q < each ? tq - q : each;
        t.scratch = cpu_thread_scratch(c);
        if (t.n_q <= 0)
            continue;
        if (whole(c->op)) {
            t.packed = blocks_of(c, &t, head);
            c->p->device->int8->attention(&t);
        } else {
            c->k->attention(&t);
        }
    }
}

static kron_status attention_compile(struct be_plan *p, struct cpu_op *o)
{
    struct gr_shape ks = gr_shape_of(p->g, o->op->in[1]);
    int64_t d = ks.c / o->op->heads, blocks = ceil_div(ks.h * ks.w, ATTENTION16_KEYS);

    if (!whole(o->op)) {
        cpu_take_threads(p, o, (size_t)attention_floats(d) * sizeof(float));
        return KRON_OK;
    }
    o->block_at = cpu_take(o, (size_t)(ks.n * o->op->heads * blocks *
                                       attention16_block_floats(d)) * sizeof(float));
    cpu_take_threads(p, o, (size_t)attention16_floats(d) * sizeof(float));
    return KRON_OK;
}

const struct cpu_op_fns cpu_attention = {attention_compile, attention_run};
