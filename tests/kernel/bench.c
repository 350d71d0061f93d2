/* SPDX-License-Identifier: MIT
 * The shapes that a UNet and a VAE of Stable Diffusion spend their time on. */
#include "case.h"
#include <string.h>

#define L(text, rows, in, out, type, lokr, route) \
    {OP_LINEAR, text, {1, 1, rows, in}, out, 1, 1, type, lokr, route}
#define G(text, rows, in, out, type, lokr, route) \
    {OP_GEGLU, text, {1, 1, rows, in}, out, 1, 1, type, lokr, route}
#define C(text, side, in, out, stride, type, lokr, route) \
    {OP_CONV2D, text, {1, side, side, in}, out, 3, stride, type, lokr, route}
#define A(text, tq, tk, heads, d) \
    {OP_ATTENTION, text, {1, 1, tq, (heads) * (d)}, tk, heads, 1, DT_F32, 0, ROUTE_WEIGHT}
#define N(kind, text, side, c) {kind, text, {1, side, side, c}, c, 1, 1, DT_F32, 0, ROUTE_WEIGHT}

const struct bench_shape bench_shapes[] = {
    L("linear 4096x320x320 f16", 4096, 320, 320, DT_F16, 0, 0),
    L("linear 4096x320x320 f16 lokr 8", 4096, 320, 320, DT_F16, 8, 0),
    L("linear 4096x320x320 f16 lokr 8 activation", 4096, 320, 320, DT_F16, 8, ROUTE_ACTIVATION),
    L("linear 1024x640x640 f16", 1024, 640, 640, DT_F16, 0, 0),
    L("linear 1024x640x640 f16 lokr 8", 1024, 640, 640, DT_F16, 8, 0),
    L("linear 256x1280x1280 f16", 256, 1280, 1280, DT_F16, 0, 0),
    L("linear 256x1280x1280 f16 lokr 8", 256, 1280, 1280, DT_F16, 8, 0),
    L("linear 256x1280x1280 f32", 256, 1280, 1280, DT_F32, 0, 0),
    L("linear 256x1280x1280 q8_0", 256, 1280, 1280, DT_Q8_0, 0, 0),
    L("linear 256x1280x1280 q8_0 lokr 8", 256, 1280, 1280, DT_Q8_0, 8, 0),
    L("linear 256x1280x1280 q4_0 lokr 8", 256, 1280, 1280, DT_Q4_0, 8, 0),
    L("linear 256x1280x1280 q4_K", 256, 1280, 1280, DT_Q4_K, 0, 0),
    L("linear 256x1280x1280 q4_K lokr 8", 256, 1280, 1280, DT_Q4_K, 8, 0),
    L("linear 256x5120x1280 f16", 256, 5120, 1280, DT_F16, 0, 0),
    L("linear 1024x5120x1280 f16", 1024, 5120, 1280, DT_F16, 0, 0),
    L("linear 1024x5120x1280 f16 lokr 8", 1024, 5120, 1280, DT_F16, 8, 0),
    L("linear 77x768x320 f16", 77, 768, 320, DT_F16, 0, 0),
    L("linear 77x768x768 f16", 77, 768, 768, DT_F16, 0, 0),
    L("linear 77x1280x1280 f16", 77, 1280, 1280, DT_F16, 0, 0),
    L("linear 77x1280x5120 f16", 77, 1280, 5120, DT_F16, 0, 0),
    L("linear 77x5120x1280 f16", 77, 5120, 1280, DT_F16, 0, 0),
    L("linear 77x1280x1280 q8_0", 77, 1280, 1280, DT_Q8_0, 0, 0),
    L("linear 77x1280x1280 q4_K", 77, 1280, 1280, DT_Q4_K, 0, 0),
    L("linear 77x1280x1280 f16 lokr 8", 77, 1280, 1280, DT_F16, 8, 0),
    L("linear 154x2048x1280 f16", 154, 2048, 1280, DT_F16, 0, 0),
    L("linear 1x1280x1280 f16", 1, 1280, 1280, DT_F16, 0, 0),
    L("linear 1x1280x1280 f16 lokr 8", 1, 1280, 1280, DT_F16, 8, 0),
    L("linear 1x1280x1280 q8_0", 1, 1280, 1280, DT_Q8_0, 0, 0),
    L("linear 1x1280x1280 q8_0 lokr 8", 1, 1280, 1280, DT_Q8_0, 8, 0),
    L("linear 1x1280x1280 q4_0", 1, 1280, 1280, DT_Q4_0, 0, 0),
    L("linear 1x1280x1280 q4_0 lokr 8", 1, 1280, 1280, DT_Q4_0, 8, 0),
    L("linear 1x1280x1280 f16 lokr 8 activation", 1, 1280, 1280, DT_F16, 8, ROUTE_ACTIVATION),
    G("geglu 4096x320x2560 f16", 4096, 320, 2560, DT_F16, 0, 0),
    G("geglu 1024x640x5120 f16", 1024, 640, 5120, DT_F16, 0, 0),
    G("geglu 1024x1280x10240 f16", 1024, 1280, 10240, DT_F16, 0, 0),
    G("geglu 1024x1280x10240 f16 lokr 8", 1024, 1280, 10240, DT_F16, 8, 0),
    G("geglu 64x1280x10240 f16", 64, 1280, 10240, DT_F16, 0, 0),
    G("geglu 64x1280x10240 f16 lokr 8", 64, 1280, 10240, DT_F16, 8, 0),
    C("conv 4->320 64x64 f16", 64, 4, 320, 1, DT_F16, 0, 0),
    C("conv 320->320 64x64 f16", 64, 320, 320, 1, DT_F16, 0, 0),
    C("conv 320->320 64x64 f16 lokr 8", 64, 320, 320, 1, DT_F16, 8, 0),
    C("conv 320->320 64x64 stride 2 f16", 64, 320, 320, 2, DT_F16, 0, 0),
    C("conv 960->320 64x64 f16", 64, 960, 320, 1, DT_F16, 0, 0),
    C("conv 640->640 32x32 f16", 32, 640, 640, 1, DT_F16, 0, 0),
    C("conv 1920->640 32x32 f16", 32, 1920, 640, 1, DT_F16, 0, 0),
    C("conv 1920->640 32x32 f16 lokr 8", 32, 1920, 640, 1, DT_F16, 8, 0),
    C("conv 1280->1280 16x16 f16", 16, 1280, 1280, 1, DT_F16, 0, 0),
    C("conv 2560->1280 16x16 f16", 16, 2560, 1280, 1, DT_F16, 0, 0),
    C("conv 2560->1280 16x16 f16 lokr 8", 16, 2560, 1280, 1, DT_F16, 8, 0),
    C("conv 2560->1280 8x8 f16", 8, 2560, 1280, 1, DT_F16, 0, 0),
    C("conv 2560->1280 8x8 f16 lokr 8", 8, 2560, 1280, 1, DT_F16, 8, 0),
    C("conv 2560->1280 8x8 f16 lokr 8 activation", 8, 2560, 1280, 1, DT_F16, 8, ROUTE_ACTIVATION),
    C("conv 320->4 64x64 f16", 64, 320, 4, 1, DT_F16, 0, 0),
    C("conv 512->512 64x64 f32", 64, 512, 512, 1, DT_F32, 0, 0),
    C("conv 512->512 128x128 f32", 128, 512, 512, 1, DT_F32, 0, 0),
    C("conv 256->256 256x256 f32", 256, 256, 256, 1, DT_F32, 0, 0),
    C("conv 128->128 512x512 f32", 512, 128, 128, 1, DT_F32, 0, 0),
    C("conv 128->3 512x512 f32", 512, 128, 3, 1, DT_F32, 0, 0),
    A("attention 4096x4096 8 heads of 40", 4096, 4096, 8, 40),
    A("attention 4096x77 8 heads of 40", 4096, 77, 8, 40),
    A("attention 1024x1024 8 heads of 80", 1024, 1024, 8, 80),
    A("attention 256x256 8 heads of 160", 256, 256, 8, 160),
    A("attention 1024x1024 10 heads of 64", 1024, 1024, 10, 64),
    A("attention 4096x4096 10 heads of 64", 4096, 4096, 10, 64),
    A("attention 4096x4096 1 head of 512", 4096, 4096, 1, 512),
    N(OP_GROUP_NORM, "group norm + silu 64x64x320", 64, 320),
    N(OP_GROUP_NORM, "group norm + silu 512x512x128", 512, 128),
    N(OP_NORM_STATS, "norm statistics 512x512x128", 512, 128),
    N(OP_NORM_APPLY, "norm applied + silu 512x512x128", 512, 128),
    N(OP_LAYER_NORM, "layer norm 64x64x320", 64, 320),
    N(OP_ACT, "gelu 64x64x1280", 64, 1280),
    N(OP_ADD, "add 64x64x320", 64, 320),
    N(OP_CONCAT, "concat 64x64x640", 64, 640),
    N(OP_UPSAMPLE, "upsample 32x32x640", 32, 640),
    {OP_EMBED, "embed 77 x 768", {1, 1, 77, 1}, 768, 1, 1, DT_F16, 0, 0},
    {OP_TIMESTEP, "timestep 320", {1, 1, 1, 1}, 320, 1, 1, DT_F32, 0, 0},
};
const int n_bench_shapes = sizeof bench_shapes / sizeof *bench_shapes;

static struct tensor zeros(struct test_case *t, enum dtype type, int64_t n)
{
    struct tensor x = {.type = type, .n_dims = 1, .dim = {n, 1, 1, 1, 1, 1}, .name = "bench"};

    x.bytes = dtype_bytes(type, n);
    uint8_t *p = arena_alloc(&t->mem, x.bytes);
    x.data = p;
    if (p == NULL)
        return x;
    for (int64_t i = 0; i < n && type == DT_F16; i++) { /* 0.004 .. 0.008, either sign */
        uint16_t h = (uint16_t)((i * 40503 & 0x83ff) | 0x1c00);
        memcpy(p + 2 * i, &h, 2);
    }
    for (int64_t i = 0; i < n && type == DT_F32; i++) {
        float v = (float)(i * 40503 % 1024 - 512) * 1e-5f;
        memcpy(p + 4 * i, &v, 4);
    }
    if (dtype_info(type)->block > 1) {
        float pattern[DTYPE_BLOCK_MOST];
        size_t bytes = dtype_bytes(type, DTYPE_BLOCK_MOST);
        for (int i = 0; i < DTYPE_BLOCK_MOST; i++)
            pattern[i] = (float)(i * 40503 % 1024 - 512) * 1e-5f;
        tensor_encode(type, pattern, DTYPE_BLOCK_MOST, p);
        for (size_t at = bytes; at < x.bytes; at += bytes)
            memcpy(p + at, p, at + bytes <= x.bytes ? bytes : x.bytes - at);
    }
    return x;
}

static void make_layer(struct test_case *t, int i, enum layer_kind kind, int64_t out, int64_t in,
                       int k, enum dtype type)
{
    struct layer *l = &t->layer[i];

    *l = (struct layer){.id = i, .kind = kind, .name = "layer", .native = "layer", .out = out,
                        .in = in, .kh = k, .kw = k, .is_conv = kind == LAYER_CONV};
    l->weight = zeros(t, type, out * layer_k(l));
    l->bias = zeros(t, dtype_is_float(type) ? type : DT_F32, out);
}

/* A LoKr as LyCORIS makes it with `factor`, both parts whole, in f16. */
static void make_lokr(struct test_case *t, int factor)
{
    const struct layer *l = &t->layer[0];
    struct delta *d = &t->delta[0];

    t->set = (struct delta_set){.by_layer = t->list, .n_layers = 2, .n_strengths = 1};
    t->strengths[0] = 0.8f;
    if (factor == 0)
        return;
    *d = (struct delta){.kind = DELTA_KRON, .scale = 1, .up = factor, .uq = factor, .rows = l->out,
                        .vp = l->out / factor, .vq = l->in / factor};
    d->w1 = zeros(t, DT_F16, d->up * d->uq);
    d->w2 = zeros(t, DT_F16, d->vp * d->vq * l->kh * l->kw);
    t->list[0] = (struct delta_list){.n = 1, .at = d};
}

static gr_ref input(struct test_case *t, struct gr_shape s, enum gr_type type)
{
    int bind = t->g.n_binds;
    int64_t n = gr_elements(s);

    if (type == GR_F32)
        t->bind_data[bind] = (void *)(uintptr_t)zeros(t, DT_F32, n).data;
    else
        t->bind_data[bind] = arena_alloc(&t->mem, (size_t)n * 4);
    t->bind_bytes[bind] = (size_t)n * 4;
    return gr_input(&t->g, "in", type, s);
}

static gr_ref operation(struct test_case *t, const struct bench_shape *b, gr_ref x)
{
    struct gr_shape s = b->x;
    struct layer *l = &t->layer[0];

    switch (b->kind) {
    case OP_LINEAR:
        return gr_linear(&t->g, x, l, ACT_NONE, GR_NONE);
    case OP_GEGLU:
        return gr_geglu(&t->g, x, l);
    case OP_CONV2D:
        return gr_conv(&t->g, x, l, b->stride, GR_NONE, GR_NONE);
    case OP_GROUP_NORM:
        return gr_group_norm(&t->g, x, l, 32, 1e-5f, ACT_SILU);
    case OP_NORM_STATS:
        return gr_norm_stats(&t->g, x, 32, 1e-5f);
    case OP_NORM_APPLY:
        return gr_norm_apply(&t->g, x, input(t, (struct gr_shape){s.n, 1, 2, s.c}, GR_F32), l,
                             ACT_SILU);
    case OP_LAYER_NORM:
        return gr_layer_norm(&t->g, x, l, 1e-5f);
    case OP_ATTENTION:
        s.w = b->out;
        gr_ref k = input(t, s, GR_F32), v = input(t, s, GR_F32);
        return gr_attention(&t->g, x, k, v, b->k, false);
    case OP_ACT:
        return gr_act(&t->g, x, ACT_GELU);
    case OP_ADD:
        return gr_add(&t->g, x, input(t, s, GR_F32));
    case OP_CONCAT:
        return gr_concat(&t->g, x, input(t, s, GR_F32));
    case OP_UPSAMPLE:
        return gr_upsample(&t->g, x, 2 * s.h, 2 * s.w);
    case OP_EMBED:
        return gr_embed(&t->g, x, GR_NONE, l, &t->layer[1]);
    case OP_TIMESTEP:
        return gr_timestep(&t->g, x, (int)b->out);
    case OP_COUNT:
        break;
    }
    return GR_NONE;
}

static void bench_layers(struct test_case *t, const struct bench_shape *b)
{
    if (b->kind == OP_LINEAR || b->kind == OP_GEGLU)
        make_layer(t, 0, LAYER_LINEAR, b->out, b->x.c, 1, b->type);
    if (b->kind == OP_CONV2D)
        make_layer(t, 0, LAYER_CONV, b->out, b->x.c, b->k, b->type);
    if (b->kind == OP_GROUP_NORM || b->kind == OP_LAYER_NORM || b->kind == OP_NORM_APPLY)
        make_layer(t, 0, LAYER_NORM, b->x.c, 1, 1, b->type);
    if (b->kind == OP_EMBED) {
        make_layer(t, 0, LAYER_EMBED, 100, b->out, 1, b->type);
        make_layer(t, 1, LAYER_EMBED, 77, b->out, 1, b->type);
    }
}

void bench_build(struct test_case *t, const struct bench_shape *b)
{
    memset(t, 0, sizeof *t);
    gr_init(&t->g, "bench");
    t->at[0] = &t->layer[0];
    t->at[1] = &t->layer[1];
    t->table = (struct layer_table){.at = t->at, .n = 2};
    bench_layers(t, b);
    make_lokr(t, b->lokr);
    gr_ref y = operation(t, b, input(t, b->x, b->kind == OP_EMBED ? GR_I32 : GR_F32));
    t->op = t->g.n_ops - 1;
    if (t->g.status != KRON_OK)
        return;
    t->g.ops[t->op].route = b->route;
    gr_output(&t->g, y, "out");
    t->out_bind = t->g.n_binds - 1;
    t->out_shape = gr_shape_of(&t->g, y);
    t->bind_bytes[t->out_bind] = (size_t)gr_elements(t->out_shape) * 4;
    gr_plan(&t->g);
}

double bench_work(const struct bench_shape *b)
{
    double rows = (double)(b->x.n * b->x.h * b->x.w), c = (double)b->x.c, out = (double)b->out;

    switch (b->kind) {
    case OP_LINEAR:
    case OP_GEGLU:
        return 2 * rows * c * out;
    case OP_CONV2D:
        return 2 * rows * c * out * b->k * b->k / (b->stride * b->stride);
    case OP_ATTENTION:
        return 4 * rows * c * out;
    case OP_CONCAT:
        return rows * c * 16;
    case OP_UPSAMPLE:
        return rows * c * 20;
    case OP_ADD:
        return rows * c * 12;
    case OP_EMBED:
    case OP_TIMESTEP:
        return rows * out * 4;
    default:
        return rows * c * 8;
    }
}

const char *bench_unit(const struct bench_shape *b)
{
    return b->kind == OP_LINEAR || b->kind == OP_GEGLU || b->kind == OP_CONV2D ||
                   b->kind == OP_ATTENTION ? "GF/s" : "GB/s";
}
