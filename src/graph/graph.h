/* SPDX-License-Identifier: MIT
 * graph/graph.h - a model as a list of layer-level operations on values.
 *
 * Values are NHWC: an image [n, h, w, c] and its tokens [n, h*w, c] are the same bytes. Token
 * sequences have h = 1. A graph is built once for given shapes, planned once (graph/plan.h), and
 * given to a backend, which compiles it. Nothing here knows diffusion.
 *
 * Building cannot fail half-way: the first error sticks in graph.status and later calls return
 * GR_NONE, so that a model reads as a model. Check the status once at the end. */
#ifndef GRAPH_GRAPH_H
#define GRAPH_GRAPH_H
#include "graph/layer.h"

typedef int gr_ref; /* index of a value in its graph */
#define GR_NONE (-1)

struct gr_shape {
    int64_t n, h, w, c;
};

enum gr_role { GR_TEMP, GR_INPUT, GR_OUTPUT };
enum gr_type { GR_F32, GR_I32 };

struct gr_value {
    struct gr_shape shape;
    enum gr_type type;
    enum gr_role role;
    int bind;         /* inputs and outputs: index into the bindings of a run */
    const char *name; /* inputs and outputs; "" otherwise */
    gr_ref base;      /* these are rows of that value, from `row` on; GR_NONE: its own */
    int64_t row;
    gr_ref over;      /* may lie over the first bytes of that value (gr_over); or GR_NONE */
    bool steady;      /* inputs: seldom another from run to run (gr_steady) */
    bool held;        /* written by gr_hold(): outlives a run */
    /* Written by gr_plan(): first byte in the arena; -1 for inputs, outputs and their rows. */
    int64_t offset;
};

#define GR_OP_LIST(X)                                                                       \
    X(LINEAR, "linear")         /* in: x, residual?                 y = act(W x + b) + res */ \
    X(GEGLU, "geglu")           /* in: x          y = (W x + b)[:C] * gelu((W x + b)[C:])  */ \
    X(CONV2D, "conv2d")         /* in: x, residual?, vec?    y = conv(x) + b + vec + res   */ \
    X(GROUP_NORM, "group_norm") /* in: x                        then act                   */ \
    X(NORM_STATS, "norm_stats") /* in: x       mean, 1 / deviation of groups [n, 1, 2, c]   */ \
    X(NORM_APPLY, "norm_apply") /* in: x, stats                then act                   */ \
    X(LAYER_NORM, "layer_norm") /* in: x                                                   */ \
    X(ATTENTION, "attention")   /* in: q, k, v                                             */ \
    X(ACT, "act")               /* in: x                                                   */ \
    X(ADD, "add")               /* in: a, b (same shape)                                   */ \
    X(CONCAT, "concat")         /* in: a, b       along channels                           */ \
    X(UPSAMPLE, "upsample")     /* in: x  y[i,j] = x[i*xh/yh, j*xw/yw]: nearest          */ \
    X(EMBED, "embed")           /* in: ids (I32 [n, 1, t, 1]), extra?  y = token[id] + pos[t] */ \
    X(TIMESTEP, "timestep")     /* in: t [n, 1, 1, m]   y[n, 1, 1, m*dim] = cos.. sin..    */

enum gr_op_kind {
#define GR_OP_ENUM(name, text) OP_##name,
    GR_OP_LIST(GR_OP_ENUM)
#undef GR_OP_ENUM
        OP_COUNT
};

/* gelu: exact, 0.5 x (1 + erf(x / sqrt 2)); quick_gelu: x sigmoid(1.702 x) (CLIP-L). */
enum gr_act { ACT_NONE, ACT_SILU, ACT_GELU, ACT_QUICK_GELU };

/* How a layer with deltas is computed (DESIGN.md section 1). Mixed: each delta by the cheaper of
 * the first two, as gr_delta_in_rows() says. */
enum gr_route { ROUTE_WEIGHT, ROUTE_ACTIVATION, ROUTE_MERGED, ROUTE_MIXED, ROUTE_COUNT };
const char *gr_route_name(enum gr_route r);

/* What products are made of: f32, or whole numbers of so many bits, quantised by row
 * (docs/int8.md). */
enum gr_compute { COMPUTE_F32, COMPUTE_INT8, COMPUTE_INT16 };

enum { GR_MAX_IN = 3 };

struct gr_op {
    enum gr_op_kind kind;
    gr_ref out;
    gr_ref in[GR_MAX_IN]; /* GR_NONE where absent */
    const struct layer *layer; /* linear, geglu, conv2d, norms; embed: the token table */
    const struct layer *layer2; /* embed: the position table */
    enum gr_act act;
    enum gr_route route;
    enum gr_compute compute; /* linear: any; geglu: not int16; conv2d, attention: not int8 */
    bool trunk;              /* what residuals are added to passes through it */
    bool keep;               /* linear, geglu: its weight may stay in memory as whole numbers */
    bool pages; /* its weight lies in a mapped file, whose pages are given back when it has run */
    bool once;  /* written by gr_hold(): need not run while what it reads is what it was */
    int stride;                                       /* conv2d */
    int pad_top, pad_left, pad_bottom, pad_right;     /* conv2d; zeros */
    int groups;                                       /* group_norm, norm_stats */
    float eps;                                        /* norms but norm_apply */
    int heads;                                        /* attention */
    bool causal;                                      /* attention */
    int dim;                                          /* timestep: width of one number */
};

struct graph {
    const char *name; /* "unet": names the compute buffer in messages */
    struct arena mem;
    kron_status status;
    struct gr_value *values;
    int n_values, cap_values;
    struct gr_op *ops;
    int n_ops, cap_ops;
    int n_binds;
    /* Written by gr_plan(). */
    size_t arena_bytes;  /* the part of the compute buffer that holds values */
    size_t held_bytes;   /* of these, at its beginning, those that are held */
    size_t lower_bound;  /* the largest sum of values alive at once, held ones always */
};

/* --- building (build.c) --- */

void gr_init(struct graph *g, const char *name);
void gr_free(struct graph *g);

gr_ref gr_input(struct graph *g, const char *name, enum gr_type type, struct gr_shape shape);
/* Marks an input whose numbers are mostly those of the run before. */
void gr_steady(struct graph *g, gr_ref input);
/* Marks the operation that was added last as part of the trunk. */
void gr_trunk(struct graph *g);
/* Marks a value as an output of that name: it lives in a binding, not in the arena. */
void gr_output(struct graph *g, gr_ref v, const char *name);
/* Index into a run's bindings of an input or output; -1 if there is none of that name. */
int gr_bind(const struct graph *g, const char *name);
struct gr_shape gr_shape_of(const struct graph *g, gr_ref v);

/* y = act(W x + b), plus residual (GR_NONE: none). x[..., in] -> [..., out]. */
gr_ref gr_linear(struct graph *g, gr_ref x, const struct layer *l, enum gr_act act,
                 gr_ref residual);
/* x[..., in] -> [..., out / 2]: first half of the rows times gelu of the second half. */
gr_ref gr_geglu(struct graph *g, gr_ref x, const struct layer *l);
/* Same-padded (kh/2) convolution of stride 1 or 2. vec [n, 1, 1, out] is added to every pixel of
 * its sample. A 1x1 layer becomes a linear operation. */
gr_ref gr_conv(struct graph *g, gr_ref x, const struct layer *l, int stride, gr_ref vec,
               gr_ref residual);
/* Stride 1; above and below x only so many rows of zeros, at its sides kw / 2. */
gr_ref gr_conv_band(struct graph *g, gr_ref x, const struct layer *l, int above, int below,
                    gr_ref residual);
/* The VAE encoder's downsampling: stride 2, one zero row below and one column to the right. */
gr_ref gr_conv_down_asym(struct graph *g, gr_ref x, const struct layer *l);
gr_ref gr_group_norm(struct graph *g, gr_ref x, const struct layer *l, int groups, float eps,
                     enum gr_act act);
/* A group norm in two steps, so that rows of x can be normalised by themselves: stats [n, 1, 2, c]
 * are the mean and 1 / sqrt(variance + eps) of each channel's group. */
gr_ref gr_norm_stats(struct graph *g, gr_ref x, int groups, float eps);
gr_ref gr_norm_apply(struct graph *g, gr_ref x, gr_ref stats, const struct layer *l,
                     enum gr_act act);
gr_ref gr_layer_norm(struct graph *g, gr_ref x, const struct layer *l, float eps);
/* softmax(q k' / sqrt(c / heads)) v per head; q[n, .., c], k and v[n, .., c] of one token count.
 * Causal: token i sees tokens 0..i. */
gr_ref gr_attention(struct graph *g, gr_ref q, gr_ref k, gr_ref v, int heads, bool causal);
gr_ref gr_act(struct graph *g, gr_ref x, enum gr_act act);
gr_ref gr_add(struct graph *g, gr_ref a, gr_ref b);
gr_ref gr_concat(struct graph *g, gr_ref a, gr_ref b);
/* Nearest neighbour to h x w pixels; 2x but for odd sizes on the way up a UNet. */
gr_ref gr_upsample(struct graph *g, gr_ref x, int64_t h, int64_t w);
/* Row of the token table for each id, plus that of the position. extra[1, 1, m, width] (GR_NONE:
 * none) are m rows more: an id of token->out + i, i < m, is row i of them. */
gr_ref gr_embed(struct graph *g, gr_ref ids, gr_ref extra, const struct layer *token,
                const struct layer *pos);
/* Sinusoidal embedding of each of the m numbers of t[n, 1, 1, m]: [cos, sin], frequencies
 * exp(-ln(10000) i / (dim / 2)) (Ho et al. 2020, in the order that Stable Diffusion uses). */
gr_ref gr_timestep(struct graph *g, gr_ref t, int dim);

/* --- values in parts, of one sample (n = 1) --- */

/* A value that gr_put() fills; every row of it must be put before it is read. */
gr_ref gr_whole(struct graph *g, struct gr_shape shape);
/* Makes `part`, which an operation just gave, rows [row, row + its h) of `whole`. */
void gr_put(struct graph *g, gr_ref part, gr_ref whole, int64_t row);
/* Rows [row, row + n) of v, to read. */
gr_ref gr_rows(struct graph *g, gr_ref v, int64_t row, int64_t n);
/* v may be written over x from x's first byte on if nothing reads x after v's last part: whoever
 * builds the graph promises that no part of v destroys rows of x that a later part needs. */
void gr_over(struct graph *g, gr_ref v, gr_ref x);
/* The value that v is rows of: v itself mostly. */
gr_ref gr_root(const struct graph *g, gr_ref v);

/* --- operations in bands of rows (bands.c): less memory than a value of the whole picture --- */

/* conv(act(norm(x))) + residual (GR_NONE: none), of stride 1: what the norm gives is only ever
 * there for a band of rows, where x is large and of one sample. The result lies over the residual,
 * or, without one and if it fits, over x, where those are not needed any more. */
gr_ref gr_norm_conv(struct graph *g, gr_ref x, const struct layer *norm, int groups, float eps,
                    enum gr_act act, const struct layer *conv, gr_ref residual);
/* The same with statistics that are there already. */
gr_ref gr_stats_conv(struct graph *g, gr_ref x, gr_ref stats, const struct layer *norm,
                     enum gr_act act, const struct layer *conv, gr_ref residual);
/* conv(x of twice the height and width), likewise. */
gr_ref gr_upsample_conv(struct graph *g, gr_ref x, const struct layer *conv);

const char *gr_op_name(enum gr_op_kind k);
int64_t gr_elements(struct gr_shape s);
/* One line an operation, with shapes, offsets and routes, through log_debug(). */
void gr_dump(const struct graph *g);

/* --- what an operation costs (work.c) --- */

struct gr_work {
    double flops;        /* of the layer's or the attention's own products, by their definition; a
                          * multiply-add counts two. Deltas, norms and activations: none */
    double weight_bytes; /* weight and bias as they are stored or kept, read once */
    double value_bytes;  /* each input read and the output written once */
};
struct gr_work gr_op_work(const struct graph *g, const struct gr_op *op);

/* --- what need not be made at each run (hold.c) --- */

/* Marks operations that read nothing but steady inputs, and each other, as `once`, and what the
 * others read of them as held; layers with a strength that changes within a job are left out.
 * Before gr_plan(). Held values cost memory for as long as they are used. */
void gr_hold(struct graph *g, const struct delta_set *set);

/* --- planning (plan.c) --- */

/* Gives every temporary value an offset in one arena, by lifetime, held ones first; operations
 * that may run in place do. Offsets are multiples of 64 bytes. Without a plan no backend takes a
 * graph. */
kron_status gr_plan(struct graph *g);
/* True if `op` may write its output over input i: backends must allow exactly this. */
bool gr_op_in_place(const struct gr_op *op, int i);

/* --- routes (route.c) --- */

enum gr_apply { APPLY_AUTO, APPLY_IMMEDIATELY, APPLY_AT_RUNTIME };

/* What the cost model knows of a device; measured by its backend. */
struct gr_rates {
    double product;  /* multiply-adds a second of a large matrix product */
    double small;    /* of products with a side under 64, as adapters' factors make */
    double pass;     /* multiply-adds a second of a pass over weights in cache */
    double bandwidth; /* bytes a second to and from memory */
};

/* Sets op->route of every linear, geglu and conv2d that has deltas. merge_budget: bytes that
 * resident merged weights (f32) may take; used by APPLY_AUTO only. Logs each choice and why. */
void gr_choose_routes(struct graph *g, const struct delta_set *set, enum gr_apply mode,
                      const struct gr_rates *rates, size_t merge_budget);

/* Marks what gains by whole numbers of `bits`: the products of more than four rows with layers
 * that are not tiny. Under 8 bits not the trunk: nothing comes beside it that would make its
 * error smaller. Where a layer's strengths do not change within a job and `budget` allows, its
 * weight as whole numbers is kept from call to call: what that takes is subtracted. Of operations
 * that run once nothing is kept. Before
 * gr_choose_routes(): deltas of what is kept go into its rows. Logs what it did. */
void gr_choose_int8(struct graph *g, const struct delta_set *set, int bits, size_t *budget);

/* True if a delta costs less in the rows of the layer's weight than on `rows` activations. */
bool gr_delta_in_rows(const struct delta *d, const struct layer *l, int64_t rows,
                      const struct gr_rates *rates);
/* What a list of deltas allows instead of `route`: left deltas turn the plain product, so nothing
 * else may have changed the rows by then; where both are asked for, only a merged weight serves. */
enum gr_route gr_route_allowed(struct delta_list list, enum gr_route route);

#endif
