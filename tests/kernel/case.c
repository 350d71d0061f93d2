/* SPDX-License-Identifier: MIT
 * Random cases and the shapes to time. */
#include "case.h"
#include <math.h>
#include <string.h>

/* --- numbers --- */

struct gen {
    uint64_t state;
    bool absolute;
    struct test_case *t;
};

static uint64_t next(struct gen *r) /* SplitMix64 */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int64_t below(struct gen *r, int64_t n)
{
    return (int64_t)(next(r) % (uint64_t)n);
}

static bool chance(struct gen *r, int percent)
{
    return below(r, 100) < percent;
}

/* About normal, in -3..3. */
static float number(struct gen *r)
{
    double s = 0;

    for (int i = 0; i < 3; i++)
        s += (double)(next(r) >> 40) * 0x1p-23 - 1;
    return (float)(r->absolute ? fabs(s) : s);
}

/* One of the sizes where kernels change their way, or any. */
static int64_t size(struct gen *r, int64_t most)
{
    static const int64_t edges[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 48, 63,
                                    64, 65, 95, 96, 97, 127, 128, 129, 255, 256, 257};
    int64_t v = edges[below(r, sizeof edges / sizeof *edges)];

    if (chance(r, 40))
        v = 1 + below(r, most);
    return v <= most ? v : 1 + below(r, most);
}

static int64_t divisor(struct gen *r, int64_t n)
{
    int64_t d = 1 + below(r, n);

    while (n % d != 0)
        d--;
    return d;
}

/* --- tensors --- */

static enum dtype any_type(struct gen *r)
{
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F8_E5M2};

    return types[below(r, sizeof types / sizeof *types)];
}

/* Random bits of an 8-bit number between 2^-4 and 4, or a zero or subnormal. */
static uint8_t f8_bits(struct gen *r, enum dtype type)
{
    int mantissa = type == DT_F8_E4M3 ? 3 : 2, bias = type == DT_F8_E4M3 ? 7 : 15;
    int exponent = chance(r, 5) ? 0 : bias - 4 + (int)below(r, 6);
    uint8_t sign = chance(r, 50) && !r->absolute ? 0x80 : 0;

    return (uint8_t)(sign | exponent << mantissa | below(r, 1 << mantissa));
}

/* A tensor in memory that ends where it ends, so that sanitizers see an overrun. */
static struct tensor tensor_of(struct gen *r, enum dtype type, int64_t n)
{
    struct tensor t = {.type = type, .n_dims = 1, .dim = {n, 1, 1, 1, 1, 1}, .name = "random"};

    t.bytes = dtype_bytes(type, n);
    uint8_t *p = arena_alloc(&r->t->mem, t.bytes + 1);
    t.data = p;
    for (int64_t i = 0; p != NULL && i < n; i++) {
        float v = number(r);
        uint16_t h = type == DT_F16 ? f32_to_f16(v) : f32_to_bf16(v);
        if (type == DT_F32)
            memcpy(p + 4 * i, &v, 4);
        else if (type == DT_F16 || type == DT_BF16)
            memcpy(p + 2 * i, &h, 2);
        else
            p[i] = f8_bits(r, type);
    }
    return t;
}

/* Blocks of any levels, their f16 scales small numbers and no power of two too far off. The twin
 * has the size of each number, as f32. */
static struct tensor blocks_of(struct gen *r, enum dtype type, int64_t n)
{
    static const short halves[DT_COUNT][2] = { /* bytes of a block where an f16 is; 0, 0: one */
        [DT_Q4_1] = {0, 2},   [DT_Q5_1] = {0, 2},    [DT_Q2_K] = {80, 82}, [DT_Q3_K] = {108, 108},
        [DT_Q4_K] = {0, 2},   [DT_Q5_K] = {0, 2},    [DT_Q6_K] = {208, 208},
        [DT_TQ1_0] = {52, 52}, [DT_TQ2_0] = {64, 64},
    };
    const struct dtype_info *info = dtype_info(type);
    struct tensor t = {.type = type, .n_dims = 1, .dim = {n, 1, 1, 1, 1, 1}, .name = "random"};
    struct gen plain = *r; /* the same numbers in both twins */

    plain.absolute = false;
    t.bytes = dtype_bytes(type, n);
    uint8_t *p = arena_alloc(&r->t->mem, t.bytes + 1);
    float *sizes = r->absolute ? arena_alloc(&r->t->mem, (size_t)n * 4 + 1) : NULL;
    if (r->t->mem.status != KRON_OK)
        return t;
    for (size_t i = 0; i < t.bytes; i++)
        p[i] = (uint8_t)below(&plain, 256);
    for (uint8_t *b = p; b < p + t.bytes; b += info->bytes) {
        for (int i = 0; i < 2 && type != DT_MXFP4 && type != DT_NVFP4; i++) {
            uint16_t h = f32_to_f16(number(&plain) / 16);
            memcpy(b + halves[type][i], &h, 2);
        }
        for (int i = 0; i < (type == DT_NVFP4 ? 4 : type == DT_MXFP4 ? 1 : 0); i++)
            b[i] = (uint8_t)(type == DT_MXFP4 ? 122 + below(&plain, 8) : below(&plain, 80));
    }
    r->state = plain.state;
    t.data = p;
    if (r->absolute) {
        info->decode(p, n, sizes);
        for (int64_t i = 0; i < n; i++)
            sizes[i] = fabsf(sizes[i]);
        t.type = DT_F32;
        t.bytes = (size_t)n * 4;
        t.data = sizes;
    }
    return t;
}

/* A layer's weight: a whole number of blocks may be of any block type, and rows begin within one.
 * Such types, and f8, may have scales. */
static struct tensor weight_of(struct gen *r, int64_t rows, int64_t width)
{
    enum dtype type = any_type(r);

    if (chance(r, 70))
        type = (enum dtype)(DT_BOOL + 1 + below(r, DT_COUNT - DT_BOOL - 1));
    while (rows * width % dtype_info(type)->block != 0)
        type = any_type(r);
    struct tensor t = dtype_info(type)->block > 1 ? blocks_of(r, type, rows * width)
                                                  : tensor_of(r, type, rows * width);
    if (dtype_is_quantised(type) && chance(r, 50)) {
        t.n_dims = 2;
        t.dim[0] = rows;
        t.dim[1] = width;
        t.scale_step = chance(r, 50);
        t.scale = tensor_of(r, DT_F32, t.scale_step > 0 ? rows : 1).data;
    }
    return t;
}

/* n, or the next whole number of blocks. */
static int64_t row_length(struct gen *r, int64_t n)
{
    int64_t block = chance(r, 60) ? 1 : chance(r, 50) ? 256 : 32;

    return (n + block - 1) / block * block;
}

/* --- layers and deltas --- */

static int64_t any_rank(struct gen *r)
{
    static const int64_t ranks[] = {1, 2, 4, 8, 13, 32, 130};

    return ranks[below(r, chance(r, 10) ? 7 : 5)];
}

static float *floats(struct gen *r, int64_t n)
{
    return (float *)(uintptr_t)tensor_of(r, DT_F32, n).data;
}

/* Gains about 1. The twin's are 1 + |g - 1|: both what is added of W and of D is larger then. */
static float *any_gains(struct gen *r, int64_t n)
{
    float *g = floats(r, n);

    for (int64_t i = 0; g != NULL && i < n; i++)
        g[i] += 1;
    return g;
}

static void make_factors(struct gen *r, struct delta *d, const struct layer *l, int64_t rows)
{
    enum dtype type = any_type(r);
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;

    if (d->kind == DELTA_FULL) {
        d->d = tensor_of(r, type, rows * k);
        return;
    }
    d->rank = any_rank(r);
    if (d->kind == DELTA_INPUT) {
        d->rank = 1 + below(r, 5);
        d->a = tensor_of(r, type, l->in * d->rank);
        d->b = tensor_of(r, any_type(r), d->rank * l->in);
        return;
    }
    if (d->kind != DELTA_KRON) {
        d->a = tensor_of(r, type, rows * d->rank);
        d->b = tensor_of(r, type, d->rank * k);
    }
    if (d->kind == DELTA_HADAMARD) {
        d->c = tensor_of(r, any_type(r), rows * d->rank);
        d->d = tensor_of(r, any_type(r), d->rank * k);
    }
    if (d->kind != DELTA_KRON)
        return;
    d->up = divisor(r, rows);
    d->uq = divisor(r, l->in);
    d->vp = rows / d->up;
    d->vq = l->in / d->uq;
    d->w1 = tensor_of(r, any_type(r), d->up * d->uq);
    if (chance(r, 50)) {
        d->rank = 0;
        d->w2 = tensor_of(r, type, d->vp * d->vq * ks);
        return;
    }
    d->a = tensor_of(r, type, d->vp * d->rank);
    d->b = tensor_of(r, type, d->rank * d->vq * ks);
}

static void make_turn(struct gen *r, struct delta *d, const struct layer *l)
{
    int64_t n = d->kind == DELTA_LEFT ? d->rows : layer_k(l);

    d->stages = 1;
    d->block = divisor(r, n < 40 ? n : 40);
    while (n % d->block != 0)
        d->block--;
    d->n_blocks = n / d->block;
    if (d->kind == DELTA_LEFT && d->block % 2 == 0 && chance(r, 60)) {
        d->butterfly = true;
        while (d->stages < 3 && n % (((int64_t)1 << d->stages) * d->block) == 0)
            d->stages++;
    }
    d->mix = floats(r, d->stages * d->n_blocks * d->block * d->block);
    if (d->kind == DELTA_LEFT && chance(r, 30))
        d->rescale = any_gains(r, d->rows);
}

/* Part of the layer, by part of a larger D. */
static int64_t make_window(struct gen *r, struct delta *d, const struct layer *l)
{
    d->rows = l->out;
    if (d->kind > DELTA_INPUT || l->kind != LAYER_LINEAR || chance(r, 70))
        return l->out;
    d->at = below(r, l->out);
    d->rows = 1 + below(r, l->out - d->at);
    d->from = chance(r, 50) ? 0 : below(r, 50);
    return d->from + d->rows + (chance(r, 50) ? 0 : below(r, 50));
}

static void make_region(struct gen *r, struct delta *d)
{
    struct delta_region *region = arena_alloc(&r->t->mem, sizeof *region);
    float *mask;

    if (region == NULL)
        return;
    region->w = 1 + (int)below(r, 20);
    region->h = 1 + (int)below(r, 20);
    mask = arena_alloc(&r->t->mem, (size_t)(region->w * region->h) * sizeof *mask);
    for (int i = 0; mask != NULL && i < region->w * region->h; i++)
        mask[i] = (float)below(r, 5) / 4;
    region->mask = mask;
    d->region = region;
}

static void make_delta(struct gen *r, struct delta *d, const struct layer *l, int strength)
{
    int64_t rows;

    *d = (struct delta){.kind = (enum delta_kind)below(r, 8), .strength = strength};
    d->scale = number(r);
    if (chance(r, 30))
        d->kind = DELTA_KRON;
    if (l->kind == LAYER_NORM)
        d->kind = DELTA_FULL;
    rows = make_window(r, d, l);
    if (d->kind == DELTA_LEFT || d->kind == DELTA_RIGHT)
        make_turn(r, d, l);
    else if (d->kind != DELTA_NONE)
        make_factors(r, d, l, rows);
    if (chance(r, 25))
        d->bias = floats(r, d->rows);
    if (l->kind == LAYER_NORM || d->kind >= DELTA_LEFT || d->kind == DELTA_INPUT)
        return;
    if (chance(r, 20)) {
        d->axis = chance(r, 50) ? GAIN_OUT : GAIN_IN;
        const float *g = any_gains(r, d->axis == GAIN_OUT ? d->rows : l->in);
        *(chance(r, 50) ? &d->gain : &d->magnitude) = g;
    } else if (d->kind == DELTA_FULL && chance(r, 20)) {
        d->replace = !r->absolute; /* the twin adds D to W */
    } else if (chance(r, 15)) {
        make_region(r, d);
        d->bias = NULL;
    }
}

static void make_deltas(struct gen *r, struct test_case *t, int n)
{
    static const float strengths[] = {1, 0.7f, -0.5f, 0};

    for (int i = 0; i < n; i++) {
        make_delta(r, &t->delta[i], &t->layer[0], i);
        t->strengths[i] = strengths[below(r, 4)];
        if (r->absolute) /* what replaces W does so whole */
            t->strengths[i] = t->delta[i].kind == DELTA_FULL && t->strengths[i] != 0
                                  ? 1 : fabsf(t->strengths[i]);
    }
    t->list[0] = (struct delta_list){.n = n, .at = t->delta};
    t->set = (struct delta_set){.by_layer = t->list, .n_layers = 2, .n_strengths = CASE_DELTAS};
}

static struct layer *make_layer(struct gen *r, int i, enum layer_kind kind, int64_t out,
                                int64_t in, int kh, int kw)
{
    struct layer *l = &r->t->layer[i];

    *l = (struct layer){.id = i, .kind = kind, .name = "layer", .native = "layer", .out = out,
                        .in = in, .kh = kh, .kw = kw, .is_conv = kind == LAYER_CONV};
    l->weight = kind == LAYER_NORM ? tensor_of(r, any_type(r), out) : weight_of(r, out, layer_k(l));
    if (kind != LAYER_EMBED && chance(r, 75))
        l->bias = tensor_of(r, any_type(r), out);
    return l;
}

static void begin(struct gen *r, struct test_case *t, uint64_t seed, bool absolute)
{
    memset(t, 0, sizeof *t);
    *r = (struct gen){.state = seed, .absolute = absolute, .t = t};
    gr_init(&t->g, "case");
    t->at[0] = &t->layer[0];
    t->at[1] = &t->layer[1];
    t->table = (struct layer_table){.at = t->at, .n = 2};
    for (int i = 0; i < 4; i++) /* nearby seeds begin alike */
        next(r);
}

/* --- values --- */

/* An input of the graph with random numbers. `through`: copied to a temporary first, so that an
 * operation may write over it. */
static gr_ref input(struct gen *r, struct gr_shape s, bool through)
{
    struct test_case *t = r->t;
    int bind = t->g.n_binds;
    int64_t n = gr_elements(s);
    float offset = chance(r, 20) ? 8 : 0, *x = arena_alloc(&t->mem, (size_t)n * 4 + 1);
    gr_ref v = gr_input(&t->g, "in", GR_F32, s);

    for (int64_t i = 0; x != NULL && i < n; i++)
        x[i] = number(r) + offset;
    t->bind_data[bind] = x;
    t->bind_bytes[bind] = (size_t)n * 4;
    return through ? gr_act(&t->g, v, ACT_NONE) : v;
}

static void output(struct test_case *t, gr_ref v, bool through)
{
    t->op = t->g.n_ops - 1;
    if (t->g.status != KRON_OK)
        return;
    if (through)
        v = gr_act(&t->g, v, ACT_NONE);
    gr_output(&t->g, v, "out");
    t->out_bind = t->g.n_binds - 1;
    t->out_shape = gr_shape_of(&t->g, v);
    t->bind_bytes[t->out_bind] = (size_t)gr_elements(t->out_shape) * 4;
    gr_plan(&t->g);
}

static struct gr_shape shape(int64_t n, int64_t h, int64_t w, int64_t c)
{
    struct gr_shape s = {n, h, w, c};

    return s;
}

static enum gr_act any_act(struct gen *r)
{
    enum gr_act a = chance(r, 40) ? ACT_NONE : (enum gr_act)below(r, 4);

    return r->absolute ? ACT_NONE : a;
}

static int any_deltas(struct gen *r)
{
    return chance(r, 30) ? 0 : 1 + (int)below(r, CASE_DELTAS - 1);
}

/* Sets the route of the operation under test, and says what the case is. */
static void set_route(struct gen *r)
{
    struct test_case *t = r->t;
    enum gr_route route = (enum gr_route)below(r, ROUTE_COUNT);

    if (t->g.status != KRON_OK)
        return;
    size_t at = strlen(t->text);
    snprintf(t->text + at, sizeof t->text - at, ", %s", dtype_info(t->layer[0].weight.type)->name);
    if (t->list[0].n == 0)
        return;
    route = gr_route_allowed(t->list[0], route);
    t->g.ops[t->op].route = route;
    at = strlen(t->text);
    snprintf(t->text + at, sizeof t->text - at, ", %s route:", gr_route_name(route));
    for (int i = 0; i < t->list[0].n; i++) {
        static const char *const kinds[] = {"low rank", "hadamard", "kronecker", "full",
                                            "input", "none", "left", "right"};
        static const char *const axes[] = {"", ", out", ", in"};
        const struct delta *d = &t->list[0].at[i];
        at = strlen(t->text);
        snprintf(t->text + at, sizeof t->text - at,
                 " %s(%d+%d from %d, rank %d, up %d, uq %d, block %d, s %g%s%s%s%s%s)",
                 kinds[d->kind], (int)d->at, (int)d->rows, (int)d->from, (int)d->rank, (int)d->up,
                 (int)d->uq, (int)d->block, (double)t->strengths[d->strength], axes[d->axis],
                 d->magnitude ? " dora" : "", d->region ? " region" : "", d->bias ? " bias" : "",
                 d->replace ? " replace" : "");
    }
}

static void describe(struct test_case *t, uint64_t seed, const char *op, int64_t n, int64_t h,
                     int64_t w, int64_t in, int64_t out, const char *more)
{
    snprintf(t->text, sizeof t->text, "--op %s --seed %llu --cases 1: n %d, h %d, w %d, %d -> %d%s",
             op, (unsigned long long)seed, (int)n, (int)h, (int)w, (int)in, (int)out, more);
}

/* --- one builder for each operation --- */

/* Now and then a layer of several blocks, or one with a W2 too large to keep. */
static void layer_sizes(struct gen *r, int64_t *rows, int64_t *in, int64_t *out)
{
    *rows = size(r, 130);
    *in = size(r, 300);
    *out = size(r, 200);
    if (chance(r, 3)) {
        *rows = 1 + below(r, 9);
        *in = 4096 + below(r, 100);
        *out = 130 + 2 * below(r, 100);
    }
    *in = row_length(r, *in);
}

static void build_linear(struct gen *r, uint64_t seed)
{
    int64_t rows, in, out, n = 1 + below(r, 2);
    bool through = chance(r, 50), residual = chance(r, 50);

    layer_sizes(r, &rows, &in, &out);
    struct layer *l = make_layer(r, 0, LAYER_LINEAR, out, in, 1, 1);
    make_deltas(r, r->t, any_deltas(r));
    gr_ref x = input(r, shape(n, 1, rows, in), chance(r, 50));
    gr_ref res = residual ? input(r, shape(n, 1, rows, out), through) : GR_NONE;
    output(r->t, gr_linear(&r->t->g, x, l, any_act(r), res), through);
    describe(r->t, seed, "linear", n, 1, rows, in, out, residual ? ", residual" : "");
    set_route(r);
}

static void build_geglu(struct gen *r, uint64_t seed)
{
    int64_t rows, in, out, n = 1 + below(r, 2);

    layer_sizes(r, &rows, &in, &out);
    out = (out + 1) / 2 * 2;
    struct layer *l = make_layer(r, 0, LAYER_LINEAR, out, in, 1, 1);
    make_deltas(r, r->t, any_deltas(r));
    gr_ref x = input(r, shape(n, 1, rows, in), chance(r, 50));
    output(r->t, r->absolute ? gr_linear(&r->t->g, x, l, ACT_NONE, GR_NONE)
                             : gr_geglu(&r->t->g, x, l), false);
    describe(r->t, seed, "geglu", n, 1, rows, in, out, "");
    set_route(r);
}

static void build_conv(struct gen *r, uint64_t seed)
{
    static const int sides[][2] = {{3, 3}, {3, 3}, {3, 3}, {1, 1}, {1, 3}, {5, 5}};
    const int *side = sides[below(r, 6)];
    int64_t n = 1 + below(r, 3), h = 3 + below(r, 14), w = 3 + below(r, 14);
    int64_t in = row_length(r, chance(r, 30) ? 8 * (1 + below(r, 6)) : size(r, 40));
    int64_t out = chance(r, 30) ? 8 * (1 + below(r, 6)) : size(r, 40);
    bool vec = chance(r, 40), residual = chance(r, 50), through = chance(r, 50);
    bool asym = chance(r, 10);
    int stride = 1 + (int)below(r, 2);

    if (chance(r, 15)) { /* enough channels for transformed tiles: few of them, or many */
        side = sides[0], stride = 1;
        in = row_length(r, 32 + below(r, 100)), out = 32 + below(r, 60);
        if (chance(r, 20))
            n = 1, h = 38 + below(r, 4), w = 41 + below(r, 4);
    } else if (chance(r, 2)) { /* several blocks of channels */
        n = 1, h = w = 3, in = 256, out = 600 + below(r, 300);
    } else if (chance(r, 2)) { /* several strips of rows */
        n = 2, h = w = 128, in = 1, out = 65 + below(r, 8);
    }
    struct layer *l = make_layer(r, 0, LAYER_CONV, out, in, asym ? 3 : side[0], asym ? 3 : side[1]);
    make_deltas(r, r->t, any_deltas(r));
    gr_ref x = input(r, shape(n, h, w, in), chance(r, 50)), v = GR_NONE, res = GR_NONE;
    int64_t oh = (h + l->kh / 2 * 2 - l->kh) / stride + 1;
    int64_t ow = (w + l->kw / 2 * 2 - l->kw) / stride + 1;
    if (vec && !asym)
        v = input(r, shape(n, 1, 1, out), false);
    if (residual && !asym)
        res = input(r, shape(n, oh, ow, out), through);
    output(r->t, asym ? gr_conv_down_asym(&r->t->g, x, l)
                      : gr_conv(&r->t->g, x, l, stride, v, res), through);
    describe(r->t, seed, "conv2d", n, h, w, in, out, residual ? ", residual" : "");
    size_t at = strlen(r->t->text);
    snprintf(r->t->text + at, sizeof r->t->text - at, ", %dx%d stride %d%s%s", l->kh, l->kw, stride,
             vec ? ", vec" : "", asym ? ", asym" : "");
    set_route(r);
}

/* What norm bounds need: sizes of the effective weight's parts. */
static void norm_sizes(struct test_case *t)
{
    const struct layer *l = &t->layer[0];
    float v;

    t->weight_abs = arena_alloc(&t->mem, (size_t)l->out * sizeof(double));
    t->bias_abs = arena_alloc(&t->mem, (size_t)l->out * sizeof(double));
    for (int64_t i = 0; t->mem.status == KRON_OK && i < l->out; i++) {
        tensor_decode(&l->weight, i, 1, &v);
        t->weight_abs[i] = fabs((double)v);
        for (int j = 0; j < t->list[0].n; j++) {
            const struct delta *d = &t->list[0].at[j];
            tensor_decode(&d->d, i, 1, &v);
            t->weight_abs[i] += fabs((double)(t->strengths[d->strength] * d->scale * v));
        }
        v = 0;
        if (l->bias.data != NULL)
            tensor_decode(&l->bias, i, 1, &v);
        t->bias_abs[i] = fabs((double)v);
        for (int j = 0; j < t->list[0].n; j++) {
            const struct delta *d = &t->list[0].at[j];
            if (d->bias != NULL)
                t->bias_abs[i] += fabs((double)(t->strengths[d->strength] * d->bias[i]));
        }
    }
}

static void build_group_norm(struct gen *r, uint64_t seed)
{
    int64_t groups = size(r, 33), c = groups * (1 + below(r, 12)), n = 1 + below(r, 3);
    int64_t h = size(r, 40), w = size(r, 40);
    bool through = chance(r, 50);

    while (n * h * w * c > 2000000)
        h = (h + 1) / 2;
    struct layer *l = make_layer(r, 0, LAYER_NORM, c, 1, 1, 1);
    make_deltas(r, r->t, chance(r, 25) ? 1 + (int)below(r, 2) : 0);
    gr_ref x = input(r, shape(n, h, w, c), through);
    output(r->t, gr_group_norm(&r->t->g, x, l, (int)groups, 1e-5f, any_act(r)), through);
    describe(r->t, seed, "group_norm", n, h, w, groups, c, "");
    norm_sizes(r->t);
}

static void build_norm_stats(struct gen *r, uint64_t seed)
{
    int64_t groups = size(r, 33), c = groups * (1 + below(r, 12)), n = 1 + below(r, 3);
    int64_t h = size(r, 40), w = size(r, 40);

    while (n * h * w * c > 2000000)
        h = (h + 1) / 2;
    gr_ref x = input(r, shape(n, h, w, c), false);
    output(r->t, gr_norm_stats(&r->t->g, x, (int)groups, 1e-5f), false);
    describe(r->t, seed, "norm_stats", n, h, w, groups, c, "");
}

static void build_norm_apply(struct gen *r, uint64_t seed)
{
    int64_t c = size(r, 700), n = 1 + below(r, 3), h = size(r, 20), w = size(r, 20);
    bool through = chance(r, 50);

    struct layer *l = make_layer(r, 0, LAYER_NORM, c, 1, 1, 1);
    make_deltas(r, r->t, chance(r, 25) ? 1 + (int)below(r, 2) : 0);
    gr_ref x = input(r, shape(n, h, w, c), through), stats = input(r, shape(n, 1, 2, c), false);
    output(r->t, gr_norm_apply(&r->t->g, x, stats, l, any_act(r)), through);
    describe(r->t, seed, "norm_apply", n, h, w, c, c, "");
    norm_sizes(r->t);
}

static void build_layer_norm(struct gen *r, uint64_t seed)
{
    int64_t c = size(r, 1500), n = 1 + below(r, 2), rows = size(r, 100);
    bool through = chance(r, 50);

    struct layer *l = make_layer(r, 0, LAYER_NORM, c, 1, 1, 1);
    make_deltas(r, r->t, chance(r, 25) ? 1 + (int)below(r, 2) : 0);
    gr_ref x = input(r, shape(n, 1, rows, c), through);
    output(r->t, gr_layer_norm(&r->t->g, x, l, 1e-5f), through);
    describe(r->t, seed, "layer_norm", n, 1, rows, c, c, "");
    norm_sizes(r->t);
}

static void build_attention(struct gen *r, uint64_t seed)
{
    static const int64_t wide[] = {4, 8, 12, 16, 20, 40, 64, 80, 160};
    int64_t heads = 1 + below(r, 4), n = 1 + below(r, 2), d = wide[below(r, 9)];
    int64_t tq = size(r, 300), tk = chance(r, 20) ? 77 : size(r, 600);
    bool causal = chance(r, 30);

    if (chance(r, 20))
        d = 1 + below(r, 100);
    if (chance(r, 5))
        d = 512, heads = 1;
    if (causal)
        tk = tq;
    while (n * heads * tq * tk * d > 8000000 && tq > 1)
        tq = (tq + 1) / 2, tk = causal ? tq : tk;
    gr_ref q = input(r, shape(n, 1, tq, heads * d), false);
    gr_ref k = input(r, shape(n, 1, tk, heads * d), false);
    gr_ref v = input(r, shape(n, 1, tk, heads * d), false);
    output(r->t, gr_attention(&r->t->g, q, k, v, (int)heads, causal), false);
    describe(r->t, seed, "attention", n, tq, tk, heads, d, causal ? ", causal" : "");
}

static void build_act(struct gen *r, uint64_t seed)
{
    static const enum gr_act acts[] = {ACT_SILU, ACT_GELU, ACT_QUICK_GELU};
    struct gr_shape s = shape(1 + below(r, 2), size(r, 60), size(r, 60), size(r, 20));
    enum gr_act act = acts[below(r, 3)];
    bool through = chance(r, 50);
    gr_ref x = input(r, s, through);
    float *data = r->t->bind_data[0], wide = (float)(1 + below(r, 30));

    for (int64_t i = 0; data != NULL && i < gr_elements(s); i++)
        data[i] *= wide;
    output(r->t, gr_act(&r->t->g, x, act), through);
    describe(r->t, seed, "act", s.n, s.h, s.w, s.c, act, "");
}

static void build_add(struct gen *r, uint64_t seed)
{
    struct gr_shape s = shape(1 + below(r, 2), size(r, 60), size(r, 60), size(r, 20));
    bool through = chance(r, 50);
    gr_ref a = input(r, s, through && chance(r, 50)), b = input(r, s, through);

    output(r->t, gr_add(&r->t->g, a, chance(r, 10) ? a : b), through);
    describe(r->t, seed, "add", s.n, s.h, s.w, s.c, s.c, "");
}

static void build_concat(struct gen *r, uint64_t seed)
{
    struct gr_shape s = shape(1 + below(r, 2), size(r, 30), size(r, 30), size(r, 40)), t = s;

    t.c = size(r, 40);
    gr_ref a = input(r, s, chance(r, 50)), b = input(r, t, chance(r, 50));
    output(r->t, gr_concat(&r->t->g, a, b), false);
    describe(r->t, seed, "concat", s.n, s.h, s.w, s.c, t.c, "");
}

static void build_upsample(struct gen *r, uint64_t seed)
{
    struct gr_shape s = shape(1 + below(r, 2), size(r, 20), size(r, 20), size(r, 40));
    int64_t h = 2 * s.h - (s.h > 1 ? below(r, 2) : 0), w = 2 * s.w - (s.w > 1 ? below(r, 2) : 0);

    output(r->t, gr_upsample(&r->t->g, input(r, s, false), h, w), false);
    describe(r->t, seed, "upsample", s.n, s.h, s.w, s.c, s.c, "");
}

static void build_embed(struct gen *r, uint64_t seed)
{
    int64_t rows = size(r, 300), width = row_length(r, size(r, 200)), places = 1 + below(r, 90);
    int64_t n = 1 + below(r, 3), t = 1 + below(r, places);
    struct layer *token = make_layer(r, 0, LAYER_EMBED, rows, width, 1, 1);
    struct layer *pos = make_layer(r, 1, LAYER_EMBED, places, width, 1, 1);
    struct gr_shape s = shape(n, 1, t, 1);
    int32_t *ids = arena_alloc(&r->t->mem, (size_t)(n * t) * sizeof *ids);
    gr_ref v = gr_input(&r->t->g, "ids", GR_I32, s);
    int64_t more = chance(r, 50) ? 1 + below(r, 20) : 0; /* rows beside the table */
    gr_ref extra = more > 0 ? input(r, shape(1, 1, more, width), false) : GR_NONE;

    for (int64_t i = 0; ids != NULL && i < n * t; i++)
        ids[i] = (int32_t)below(r, rows + more);
    r->t->bind_data[0] = ids;
    r->t->bind_bytes[0] = (size_t)(n * t) * sizeof *ids;
    output(r->t, gr_embed(&r->t->g, v, extra, token, pos), false);
    describe(r->t, seed, "embed", n, 1, t, rows, width, more > 0 ? ", extra rows" : "");
}

static void build_timestep(struct gen *r, uint64_t seed)
{
    int64_t n = 1 + below(r, 3), m = 1 + below(r, 6);
    int dim = 2 * (int)size(r, 170);
    gr_ref x = input(r, shape(n, 1, 1, m), false);
    float *data = r->t->bind_data[0];

    for (int64_t i = 0; data != NULL && i < n * m; i++)
        data[i] = (float)below(r, 1000) + (chance(r, 50) ? 0.25f : 0);
    output(r->t, gr_timestep(&r->t->g, x, dim), false);
    describe(r->t, seed, "timestep", n, 1, 1, m, dim, "");
}

typedef void (*build_fn)(struct gen *r, uint64_t seed);

static const build_fn builders[OP_COUNT] = {
    [OP_LINEAR] = build_linear,         [OP_GEGLU] = build_geglu,
    [OP_CONV2D] = build_conv,           [OP_GROUP_NORM] = build_group_norm,
    [OP_NORM_STATS] = build_norm_stats, [OP_NORM_APPLY] = build_norm_apply,
    [OP_LAYER_NORM] = build_layer_norm, [OP_ATTENTION] = build_attention,
    [OP_ACT] = build_act,               [OP_ADD] = build_add,
    [OP_CONCAT] = build_concat,         [OP_UPSAMPLE] = build_upsample,
    [OP_EMBED] = build_embed,           [OP_TIMESTEP] = build_timestep,
};

void case_build(struct test_case *t, enum gr_op_kind kind, uint64_t seed, bool absolute)
{
    struct gen r;

    begin(&r, t, seed, absolute);
    builders[kind](&r, seed);
    if (t->mem.status != KRON_OK && t->g.status == KRON_OK)
        t->g.status = t->mem.status;
}

/* 1 + |g - 1| of each row or input channel of W + c D, w[rows, k]. */
static void gains_of(const struct delta *d, const struct layer *l, const double *w, double *sum,
                     float *g)
{
    int64_t k = layer_k(l), ks = (int64_t)l->kh * l->kw;
    int64_t n = d->axis == GAIN_OUT ? d->rows : l->in;

    for (int64_t at = 0; at < d->rows * k; at++)
        sum[d->axis == GAIN_OUT ? at / k : at % k / ks] += w[at] * w[at];
    for (int64_t i = 0; i < n; i++)
        g[i] = (float)(1 + fabs((sum[i] > 0 ? (double)d->magnitude[i] / sqrt(sum[i]) : 1) - 1));
}

static void settle_gain(const struct test_case *t, struct test_case *twin, int i)
{
    const struct layer *l = &t->layer[0];
    struct delta d = t->delta[i];
    size_t n = (size_t)(l->out * layer_k(l));
    double *w = arena_alloc(&twin->mem, n * sizeof *w);
    double *sum = arena_alloc(&twin->mem, (size_t)(l->in + l->out) * sizeof *sum);
    double *plain = arena_alloc(&twin->mem, n * sizeof *plain);
    float *g = arena_alloc(&twin->mem, (size_t)(l->in + l->out) * sizeof *g), v;

    if (twin->mem.status != KRON_OK)
        return;
    for (size_t at = 0; at < n; at++) {
        tensor_decode(&l->weight, (int64_t)at, 1, &v);
        w[at] = plain[at] = v;
    }
    d.axis = GAIN_NONE;
    delta_add_ref(&d, l, 1, plain, w);
    gains_of(&t->delta[i], l, w + d.at * layer_k(l), sum, g);
    twin->delta[i].gain = g;
}

void case_settle_gains(const struct test_case *t, struct test_case *twin)
{
    for (int i = 0; i < t->list[0].n; i++)
        if (t->delta[i].magnitude != NULL)
            settle_gain(t, twin, i);
}

void case_free(struct test_case *t)
{
    gr_free(&t->g);
    arena_free(&t->mem);
}
