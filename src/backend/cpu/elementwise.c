/* SPDX-License-Identifier: MIT
 * Operations that move or map numbers one by one. */
#include "backend/cpu/cpu.h"
#include <math.h>
#include <omp.h>
#include <string.h>

enum { PIECE = 16384 }; /* numbers a thread takes at a time */

static kron_status nothing(struct be_plan *p, struct cpu_op *o)
{
    (void)p, (void)o;
    return KRON_OK;
}

static void act_run(struct cpu_call *c)
{
    int64_t all = gr_elements(c->ys);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < all; i += PIECE)
        c->k->finish(c->y + i, c->x[0] + i, NULL, NULL, NULL, c->op->act,
                     all - i < PIECE ? all - i : PIECE);
}

const struct cpu_op_fns cpu_act = {nothing, act_run};

static void add_run(struct cpu_call *c)
{
    int64_t all = gr_elements(c->ys);

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < all; i += PIECE)
        c->k->finish(c->y + i, c->x[0] + i, NULL, NULL, c->x[1] + i, ACT_NONE,
                     all - i < PIECE ? all - i : PIECE);
}

const struct cpu_op_fns cpu_add = {nothing, add_run};

static void concat_run(struct cpu_call *c)
{
    int64_t a = c->xs.c, b = c->ys.c - a;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->ys.n * c->ys.h * c->ys.w; r++) {
        memcpy(c->y + r * (a + b), c->x[0] + r * a, (size_t)a * sizeof(float));
        memcpy(c->y + r * (a + b) + a, c->x[1] + r * b, (size_t)b * sizeof(float));
    }
}

const struct cpu_op_fns cpu_concat = {nothing, concat_run};

static void upsample_run(struct cpu_call *c)
{
    int64_t ch = c->ys.c;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->ys.n * c->ys.h; r++) {
        int64_t n = r / c->ys.h, u = r % c->ys.h * c->xs.h / c->ys.h;
        const float *x = c->x[0] + (n * c->xs.h + u) * c->xs.w * ch;
        for (int64_t j = 0; j < c->ys.w; j++)
            memcpy(c->y + (r * c->ys.w + j) * ch, x + j * c->xs.w / c->ys.w * ch,
                   (size_t)ch * sizeof(float));
    }
}

const struct cpu_op_fns cpu_upsample = {nothing, upsample_run};

/* Rows of both tables are decoded where they are used. */
static void embed_run(struct cpu_call *c)
{
    const int32_t *ids = (const void *)c->x[0];
    int64_t width = c->ys.c, t = c->ys.w, rows = c->op->layer->out;

#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->ys.n * t; r++) {
        float *mem = cpu_thread_scratch(c), *y = c->y + r * width;
        const float *token =
            ids[r] < rows ? cpu_floats(c->k, &c->op->layer->weight, ids[r] * width, width, mem)
                          : c->x[1] + (ids[r] - rows) * width;
        const float *pos =
            cpu_floats(c->k, &c->op->layer2->weight, r % t * width, width, mem + width);
        c->k->finish(y, token, NULL, NULL, pos, ACT_NONE, width);
    }
}

static kron_status embed_compile(struct be_plan *p, struct cpu_op *o)
{
    cpu_take_threads(p, o, (size_t)(2 * o->op->layer->in) * sizeof(float));
    return KRON_OK;
}

const struct cpu_op_fns cpu_embed = {embed_compile, embed_run};

/* A few thousand numbers at most: in double, where cos of a large angle is exact. */
static void timestep_run(struct cpu_call *c)
{
    int half = c->op->dim / 2;

    for (int64_t r = 0; r < c->xs.n * c->xs.c; r++)
        for (int i = 0; i < half; i++) {
            double a = (double)c->x[0][r] * exp(-log(10000.0) * i / half);
            c->y[r * c->op->dim + i] = (float)cos(a);
            c->y[r * c->op->dim + half + i] = (float)sin(a);
        }
}

const struct cpu_op_fns cpu_timestep = {nothing, timestep_run};
