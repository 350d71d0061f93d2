/* SPDX-License-Identifier: MIT
 * Attention: heads and blocks of queries over threads; the block itself is a kernel. */
#include "backend/cpu/cpu.h"
#include <omp.h>

static void attention_run(struct cpu_call *c)
{
    struct gr_shape ks = gr_shape_of(c->p->g, c->op->in[1]);
    int64_t tq = c->xs.h * c->xs.w, tk = ks.h * ks.w, ch = c->xs.c, heads = c->op->heads;
    int64_t d = ch / heads, most = attention_queries(d);
    while (most > 96 && c->xs.n * heads * (tq + most - 1) / most < 4 * c->threads)
        most /= 2; /* all workers shall find work */
    int64_t blocks = (tq + most - 1) / most;
    int64_t each = (tq + blocks - 1) / blocks; /* evenly: no short last block */

    /* Causal blocks differ in work, so threads take them as they come. */
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (int64_t i = 0; i < c->xs.n * heads * blocks; i++) {
        int64_t b = i % blocks, h = i / blocks % heads, n = i / blocks / heads, q = b * each;
        struct attention_tile t = {
            .q = c->x[0] + (n * tq + q) * ch + h * d,
            .k = c->x[1] + n * tk * ch + h * d,
            .v = c->x[2] + n * tk * ch + h * d,
            .y = c->y + (n * tq + q) * ch + h * d,
            .ldq = ch, .ldk = ch, .first = q, .n_q = tq - q < each ? tq - q : each, .n_k = tk,
            .d = d, .causal = c->op->causal, .scratch = cpu_thread_scratch(c)};
        if (t.n_q > 0)
            c->k->attention(&t);
    }
}

static kron_status attention_compile(struct be_plan *p, struct cpu_op *o)
{
    int64_t d = gr_shape_of(p->g, o->op->out).c / o->op->heads;

    cpu_take_threads(p, o, (size_t)attention_floats(d) * sizeof(float));
    return KRON_OK;
}

const struct cpu_op_fns cpu_attention = {attention_compile, attention_run};
