/* SPDX-License-Identifier: MIT
 * Building a graph: shapes are checked here, once, so that backends need not. */
#include "graph/graph.h"
#include <string.h>

static const char *const op_names[OP_COUNT] = {
#define OP_TEXT(name, text) text,
    GR_OP_LIST(OP_TEXT)
#undef OP_TEXT
};

const char *gr_op_name(enum gr_op_kind k)
{
    return op_names[k];
}

int64_t gr_elements(struct gr_shape s)
{
    return s.n * s.h * s.w * s.c;
}

void gr_init(struct graph *g, const char *name)
{
    memset(g, 0, sizeof *g);
    g->name = name;
}

void gr_free(struct graph *g)
{
    mem_free(g->values);
    mem_free(g->ops);
    arena_free(&g->mem);
    memset(g, 0, sizeof *g);
}

static gr_ref fail(struct graph *g, kron_status status)
{
    if (g->status == KRON_OK)
        g->status = status;
    return GR_NONE;
}

/* Room for one more element of either list; lists double, so that building is linear. */
static bool reserve(struct graph *g, void **list, int n, int *cap, size_t size)
{
    int want = *cap ? *cap * 2 : 256;

    if (n < *cap)
        return true;
    kron_status status = mem_grow(list, (size_t)*cap, (size_t)want, size, "a graph");
    if (status != KRON_OK) {
        fail(g, status);
        return false;
    }
    *cap = want;
    return true;
}

static gr_ref add_value(struct graph *g, struct gr_shape shape, enum gr_type type)
{
    void *list = g->values;

    if (g->status != KRON_OK || !reserve(g, &list, g->n_values, &g->cap_values, sizeof *g->values))
        return GR_NONE;
    g->values = list;
    g->values[g->n_values] = (struct gr_value){
        .shape = shape, .type = type, .role = GR_TEMP, .bind = -1, .name = "", .base = GR_NONE,
        .over = GR_NONE, .offset = -1};
    return g->n_values++;
}

static gr_ref add_op(struct graph *g, struct gr_op op, struct gr_shape out)
{
    void *list = g->ops;

    if (g->status != KRON_OK || !reserve(g, &list, g->n_ops, &g->cap_ops, sizeof *g->ops))
        return GR_NONE;
    g->ops = list;
    op.out = add_value(g, out, GR_F32);
    g->ops[g->n_ops++] = op;
    return op.out;
}

static struct gr_op new_op(enum gr_op_kind kind, gr_ref x)
{
    struct gr_op op = {.kind = kind, .out = GR_NONE, .in = {x, GR_NONE, GR_NONE}};

    return op;
}

static bool same_shape(struct gr_shape a, struct gr_shape b)
{
    return a.n == b.n && a.h == b.h && a.w == b.w && a.c == b.c;
}

struct gr_shape gr_shape_of(const struct graph *g, gr_ref v)
{
    static const struct gr_shape none = {0, 0, 0, 0};

    return v >= 0 && v < g->n_values ? g->values[v].shape : none;
}

/* False (and the first message kept) if the graph is already broken or `ok` does not hold. */
static bool expect(struct graph *g, bool ok, const char *op, const struct layer *l, gr_ref a,
                   gr_ref b)
{
    struct gr_shape x = gr_shape_of(g, a), y = gr_shape_of(g, b);

    if (g->status != KRON_OK)
        return false;
    if (ok)
        return true;
    if (l != NULL)
        fail(g, err_set(KRON_ERR_SHAPE, "%s: %s '%s' [%lld, %lld, %d, %d] does not take an input "
                        "of %lld channels", g->name, op, l->name, (long long)l->out,
                        (long long)l->in, l->kh, l->kw, (long long)x.c));
    else
        fail(g, err_set(KRON_ERR_SHAPE, "%s: %s of [%lld, %lld, %lld, %lld] and [%lld, %lld, %lld, "
                        "%lld] does not fit", g->name, op, (long long)x.n, (long long)x.h,
                        (long long)x.w, (long long)x.c, (long long)y.n, (long long)y.h,
                        (long long)y.w, (long long)y.c));
    return false;
}

gr_ref gr_input(struct graph *g, const char *name, enum gr_type type, struct gr_shape shape)
{
    gr_ref v = add_value(g, shape, type);

    if (v == GR_NONE)
        return GR_NONE;
    g->values[v].role = GR_INPUT;
    g->values[v].bind = g->n_binds++;
    g->values[v].name = arena_strdup(&g->mem, name);
    if (g->values[v].name == NULL)
        return fail(g, g->mem.status);
    return v;
}

void gr_output(struct graph *g, gr_ref v, const char *name)
{
    if (g->status != KRON_OK)
        return;
    KRON_ASSERT(g->values[v].role == GR_TEMP);
    g->values[v].role = GR_OUTPUT;
    g->values[v].bind = g->n_binds++;
    g->values[v].name = arena_strdup(&g->mem, name);
    if (g->values[v].name == NULL)
        fail(g, g->mem.status);
}

int gr_bind(const struct graph *g, const char *name)
{
    for (int i = 0; i < g->n_values; i++)
        if (g->values[i].bind >= 0 && strcmp(g->values[i].name, name) == 0)
            return g->values[i].bind;
    return -1;
}

/* --- values in parts --- */

gr_ref gr_root(const struct graph *g, gr_ref v)
{
    return v != GR_NONE && g->values[v].base != GR_NONE ? g->values[v].base : v;
}

gr_ref gr_whole(struct graph *g, struct gr_shape shape)
{
    return add_value(g, shape, GR_F32);
}

/* Whether rows [row, row + n) of v are there, and one behind the other in memory. */
static bool rows_fit(struct graph *g, gr_ref v, gr_ref part, int64_t row, int64_t n)
{
    struct gr_shape s = gr_shape_of(g, v);

    return expect(g, s.n == 1 && row >= 0 && n > 0 && row + n <= s.h, "part", NULL, v, part);
}

void gr_put(struct graph *g, gr_ref part, gr_ref whole, int64_t row)
{
    struct gr_shape s = gr_shape_of(g, whole), p = gr_shape_of(g, part);

    if (!rows_fit(g, whole, part, row, p.h) ||
        !expect(g, p.n == 1 && p.w == s.w && p.c == s.c, "part", NULL, whole, part))
        return;
    g->values[part].base = gr_root(g, whole);
    g->values[part].row = g->values[whole].row + row;
}

gr_ref gr_rows(struct graph *g, gr_ref v, int64_t row, int64_t n)
{
    struct gr_shape s = gr_shape_of(g, v);

    if (!rows_fit(g, v, v, row, n))
        return GR_NONE;
    s.h = n;
    gr_ref rows = add_value(g, s, g->values[v].type);
    if (rows == GR_NONE)
        return GR_NONE;
    g->values[rows].base = gr_root(g, v);
    g->values[rows].row = g->values[v].row + row;
    return rows;
}

void gr_over(struct graph *g, gr_ref v, gr_ref x)
{
    if (g->status == KRON_OK)
        g->values[v].over = gr_root(g, x);
}

gr_ref gr_linear(struct graph *g, gr_ref x, const struct layer *l, enum gr_act act,
                 gr_ref residual)
{
    struct gr_op op = new_op(OP_LINEAR, x);
    struct gr_shape s = gr_shape_of(g, x);

    if (!expect(g, s.c == l->in && l->kh == 1 && l->kw == 1, "linear layer", l, x, GR_NONE))
        return GR_NONE;
    s.c = l->out;
    if (residual != GR_NONE &&
        !expect(g, same_shape(s, gr_shape_of(g, residual)), "residual sum", NULL, x, residual))
        return GR_NONE;
    op.layer = l;
    op.act = act;
    op.in[1] = residual;
    return add_op(g, op, s);
}

void gr_trunk(struct graph *g)
{
    if (g->status == KRON_OK)
        g->ops[g->n_ops - 1].trunk = true;
}

gr_ref gr_geglu(struct graph *g, gr_ref x, const struct layer *l)
{
    struct gr_op op = new_op(OP_GEGLU, x);
    struct gr_shape s = gr_shape_of(g, x);

    if (!expect(g, s.c == l->in && l->out % 2 == 0 && l->kh == 1, "geglu layer", l, x, GR_NONE))
        return GR_NONE;
    s.c = l->out / 2;
    op.layer = l;
    return add_op(g, op, s);
}

static gr_ref add_conv(struct graph *g, struct gr_op op, gr_ref vec, gr_ref residual)
{
    const struct layer *l = op.layer;
    struct gr_shape s = gr_shape_of(g, op.in[0]), v = gr_shape_of(g, vec);

    if (!expect(g, s.c == l->in, "convolution", l, op.in[0], GR_NONE))
        return GR_NONE;
    s.h += op.pad_top + op.pad_bottom - l->kh;
    s.w += op.pad_left + op.pad_right - l->kw;
    if (s.h < 0 || s.w < 0)
        return fail(g, err_set(KRON_ERR_SHAPE, "%s: convolution '%s' has a window of %d x %d, "
                               "larger than its padded input", g->name, l->name, l->kh, l->kw));
    s.h = s.h / op.stride + 1;
    s.w = s.w / op.stride + 1;
    s.c = l->out;
    if (vec != GR_NONE &&
        !expect(g, v.n == s.n && v.h * v.w == 1 && v.c == s.c, "channel sum", NULL, op.in[0], vec))
        return GR_NONE;
    if (residual != GR_NONE && !expect(g, same_shape(s, gr_shape_of(g, residual)), "residual sum",
                                       NULL, op.in[0], residual))
        return GR_NONE;
    op.in[1] = residual;
    op.in[2] = vec;
    return add_op(g, op, s);
}

gr_ref gr_conv(struct graph *g, gr_ref x, const struct layer *l, int stride, gr_ref vec,
               gr_ref residual)
{
    struct gr_op op = new_op(OP_CONV2D, x);

    if (l->kh == 1 && l->kw == 1 && stride == 1 && vec == GR_NONE)
        return gr_linear(g, x, l, ACT_NONE, residual);
    op.layer = l;
    op.stride = stride;
    op.pad_top = op.pad_bottom = l->kh / 2;
    op.pad_left = op.pad_right = l->kw / 2;
    return add_conv(g, op, vec, residual);
}

gr_ref gr_conv_band(struct graph *g, gr_ref x, const struct layer *l, int above, int below,
                    gr_ref residual)
{
    struct gr_op op = new_op(OP_CONV2D, x);

    op.layer = l;
    op.stride = 1;
    op.pad_top = above;
    op.pad_bottom = below;
    op.pad_left = op.pad_right = l->kw / 2;
    return add_conv(g, op, GR_NONE, residual);
}

gr_ref gr_conv_down_asym(struct graph *g, gr_ref x, const struct layer *l)
{
    struct gr_op op = new_op(OP_CONV2D, x);

    op.layer = l;
    op.stride = 2;
    op.pad_bottom = op.pad_right = 1;
    return add_conv(g, op, GR_NONE, GR_NONE);
}

gr_ref gr_group_norm(struct graph *g, gr_ref x, const struct layer *l, int groups, float eps,
                     enum gr_act act)
{
    struct gr_op op = new_op(OP_GROUP_NORM, x);
    struct gr_shape s = gr_shape_of(g, x);

    if (!expect(g, s.c == l->out && s.c % groups == 0, "group norm", l, x, GR_NONE))
        return GR_NONE;
    op.layer = l;
    op.groups = groups;
    op.eps = eps;
    op.act = act;
    return add_op(g, op, s);
}

gr_ref gr_norm_stats(struct graph *g, gr_ref x, int groups, float eps)
{
    struct gr_op op = new_op(OP_NORM_STATS, x);
    struct gr_shape s = gr_shape_of(g, x);

    if (!expect(g, groups > 0 && s.c % groups == 0, "group norm", NULL, x, GR_NONE))
        return GR_NONE;
    op.groups = groups;
    op.eps = eps;
    return add_op(g, op, (struct gr_shape){s.n, 1, 2, s.c});
}

gr_ref gr_norm_apply(struct graph *g, gr_ref x, gr_ref stats, const struct layer *l,
                     enum gr_act act)
{
    struct gr_op op = new_op(OP_NORM_APPLY, x);
    struct gr_shape s = gr_shape_of(g, x), t = gr_shape_of(g, stats);

    if (!expect(g, s.c == l->out, "group norm", l, x, GR_NONE) ||
        !expect(g, t.n == s.n && t.h * t.w == 2 && t.c == s.c, "group norm", NULL, x, stats))
        return GR_NONE;
    op.in[1] = stats;
    op.layer = l;
    op.act = act;
    return add_op(g, op, s);
}

gr_ref gr_layer_norm(struct graph *g, gr_ref x, const struct layer *l, float eps)
{
    struct gr_op op = new_op(OP_LAYER_NORM, x);

    if (!expect(g, gr_shape_of(g, x).c == l->out, "layer norm", l, x, GR_NONE))
        return GR_NONE;
    op.layer = l;
    op.eps = eps;
    return add_op(g, op, gr_shape_of(g, x));
}

gr_ref gr_attention(struct graph *g, gr_ref q, gr_ref k, gr_ref v, int heads, bool causal)
{
    struct gr_op op = new_op(OP_ATTENTION, q);
    struct gr_shape s = gr_shape_of(g, q), t = gr_shape_of(g, k);
    bool ok = heads > 0 && s.n == t.n && s.c == t.c && s.c % heads == 0;

    ok = ok && same_shape(t, gr_shape_of(g, v)) && (!causal || s.h * s.w == t.h * t.w);
    if (!expect(g, ok, "attention", NULL, q, k))
        return GR_NONE;
    op.in[1] = k;
    op.in[2] = v;
    op.heads = heads;
    op.causal = causal;
    return add_op(g, op, s);
}

gr_ref gr_act(struct graph *g, gr_ref x, enum gr_act act)
{
    struct gr_op op = new_op(OP_ACT, x);

    op.act = act;
    return add_op(g, op, gr_shape_of(g, x));
}

gr_ref gr_add(struct graph *g, gr_ref a, gr_ref b)
{
    struct gr_op op = new_op(OP_ADD, a);

    if (!expect(g, same_shape(gr_shape_of(g, a), gr_shape_of(g, b)), "sum", NULL, a, b))
        return GR_NONE;
    op.in[1] = b;
    return add_op(g, op, gr_shape_of(g, a));
}

gr_ref gr_concat(struct graph *g, gr_ref a, gr_ref b)
{
    struct gr_op op = new_op(OP_CONCAT, a);
    struct gr_shape s = gr_shape_of(g, a), t = gr_shape_of(g, b);

    if (!expect(g, s.n == t.n && s.h == t.h && s.w == t.w, "concatenation", NULL, a, b))
        return GR_NONE;
    op.in[1] = b;
    s.c += t.c;
    return add_op(g, op, s);
}

gr_ref gr_upsample(struct graph *g, gr_ref x, int64_t h, int64_t w)
{
    struct gr_shape s = gr_shape_of(g, x);

    s.h = h;
    s.w = w;
    return add_op(g, new_op(OP_UPSAMPLE, x), s);
}

gr_ref gr_embed(struct graph *g, gr_ref ids, gr_ref extra, const struct layer *token,
                const struct layer *pos)
{
    struct gr_op op = new_op(OP_EMBED, ids);
    struct gr_shape s = gr_shape_of(g, ids), e = gr_shape_of(g, extra);

    if (!expect(g, s.h == 1 && s.c == 1 && s.w <= pos->out && pos->in == token->in, "embedding",
                token, ids, GR_NONE))
        return GR_NONE;
    if (extra != GR_NONE &&
        !expect(g, e.n == 1 && e.h == 1 && e.c == token->in, "embedding", token, extra, GR_NONE))
        return GR_NONE;
    op.in[1] = extra;
    op.layer = token;
    op.layer2 = pos;
    s.c = token->in;
    return add_op(g, op, s);
}

gr_ref gr_timestep(struct graph *g, gr_ref t, int dim)
{
    struct gr_op op = new_op(OP_TIMESTEP, t);
    struct gr_shape s = gr_shape_of(g, t);

    if (!expect(g, s.h * s.w == 1 && dim > 0 && dim % 2 == 0, "time embedding", NULL, t, GR_NONE))
        return GR_NONE;
    op.dim = dim;
    s.c *= dim;
    return add_op(g, op, s);
}
