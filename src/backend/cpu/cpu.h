/* SPDX-License-Identifier: MIT
 * backend/cpu - the host's cores: oneDNN for large products (onednn.h), own kernels
 * (kernels.h) for all else, OpenMP for threads.
 *
 *   device.c       opening, buffers, rates          weights.c   merged weights
 *   topology.c     which processors there are       places.c    who runs where
 *   once.c         what a plan holds from run to run
 *   plan.c         graph -> list of prepared operations, one scratch shared by all
 *   wpass.c        rows of a layer's effective weight, on the fly
 *   linear.c conv.c winograd.c delta.c attention.c norm.c elementwise.c    the operations
 *   int8.c         linear layers in whole numbers (int8.h)
 *
 * An operation is compiled once: its sizes and its share of the scratch are settled
 * then. A run only computes. Weights are decoded a block at a time into scratch that stays in
 * cache, and used at once, so that a quantised base or an adapter costs a pass over cache. */
#ifndef BACKEND_CPU_CPU_H
#define BACKEND_CPU_CPU_H
#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/onednn.h"

struct cpu_device {
    struct be_device base;
    const struct cpu_kernels *k;
    const struct int8_kernels *int8;
    struct places *places; /* where workers run (places.h); NULL: anywhere */
    int n_threads;
};

struct be_weights {
    const struct layer_table *table;
    const struct delta_set *set;
    const struct places *places; /* the device's */
    struct kept *kept; /* by layer id */
    char *work;        /* the compute buffer of all plans; NULL: given back */
    size_t work_bytes; /* of the largest */
    unsigned long n_plans; /* made so far */
    unsigned long holder;  /* number of the plan whose held values are right; 0: none */
    size_t held_bytes;     /* that they take, at the beginning of `work` */
};

/* A delta as an op applies it. Its factors D go into the weight's rows or are applied to
 * activations; what it does to W itself (gains, turning rows) always goes into the rows, but for
 * left deltas, which turn the product, before anything else is added to it. */
struct wdelta {
    struct delta d;      /* gains worked out; the input form brought to low rank */
    bool in_rows;
    size_t w2_at;        /* where in the op's scratch its W2 is kept as f32, or NONE_AT */
    size_t w1_at;        /* Kronecker: and s c W1 */
    const float *mask;   /* region: a factor for each pixel of the op, or NULL */
};
#define NONE_AT ((size_t)-1)

/* Where a layer's weight comes from: its base, and the deltas that change it. */
struct wsource {
    const struct layer *layer;
    struct tensor base; /* [out, k]: the file's, or the merged one */
    struct wdelta *at;
    int n;
    bool gains;         /* some delta scales rows or columns of the base */
    bool temp;          /* some delta needs a worker's room for rows of its own */
    int64_t out, k;
};

/* One op of a plan. Scratch parts are byte offsets into the plan's one scratch. */
struct cpu_op {
    const struct gr_op *op;
    struct wsource w;
    struct conv_plan *conv;
    struct wino_plan *wino;        /* NULL: plain sums over taps */
    struct int8_plan *int8;
    size_t scratch_bytes;          /* all that this op needs */
    bool has_bias, own_bias;       /* there is one; it must be written to bias_at */
    size_t bias_at, threads_at, block_at, temp_at, delta_at;
    size_t thread_bytes;           /* of one worker, from threads_at */
    int64_t block;                 /* linear: weight rows of one block */
    int64_t m_chunk;               /* linear: activation rows of one product */
    int64_t temp_floats;           /* of temp_at */
    bool by_rows;                  /* linear: whole rows go through scratch */
    bool by_dots;                  /* linear: some rows, see there */
    int64_t delta_rows;            /* activation route: rows of one chunk */
    int64_t mask_rows;             /* and of scaled activations, at mask_at */
    size_t mask_at;
    bool res_in_place;             /* the residual's memory is the output's */
};

struct be_plan {
    struct cpu_device *device;
    struct be_weights *weights;
    const struct graph *g;
    struct arena mem; /* of what compiling leaves */
    struct cpu_op *ops;
    const float *merge_strengths; /* while compiling */
    char *arena, *scratch; /* in a run: parts of weights->work */
    size_t scratch_bytes;
    unsigned long number;  /* of its weights' plans, from 1 */
    char *made_of;         /* what the held values were made of: steady inputs, strengths */
};

/* What running one op needs. */
struct cpu_call {
    const struct be_plan *p;
    const struct cpu_op *o;
    const struct gr_op *op;
    const struct cpu_kernels *k;
    int threads;
    const float *strengths;
    const float *x[GR_MAX_IN]; /* NULL where absent */
    float *y;
    struct gr_shape xs, ys;
    kron_status status;
};

/* Pixels or tokens of all samples: the rows of a matrix of channels. */
static inline int64_t rows_of(struct gr_shape s)
{
    return s.n * s.h * s.w;
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t up_to(int64_t v, int64_t unit)
{
    return ceil_div(v, unit) * unit;
}

/* Scratch layout while compiling: a part of `bytes`, aligned to a cache line. */
size_t cpu_take(struct cpu_op *o, size_t bytes);
/* A part for each worker. */
void cpu_take_threads(struct be_plan *p, struct cpu_op *o, size_t bytes);
static inline void *cpu_scratch(const struct cpu_call *c, size_t at)
{
    return c->p->scratch + at;
}
void *cpu_thread_scratch(const struct cpu_call *c); /* of the calling OpenMP thread */

/* Each operation: compile fills o, run computes. */
struct cpu_op_fns {
    kron_status (*compile)(struct be_plan *p, struct cpu_op *o);
    void (*run)(struct cpu_call *c);
};
extern const struct cpu_op_fns cpu_linear, cpu_geglu, cpu_conv2d, cpu_group_norm, cpu_norm_stats,
    cpu_norm_apply, cpu_layer_norm, cpu_attention, cpu_act, cpu_add, cpu_concat, cpu_upsample,
    cpu_embed, cpu_timestep;
extern const struct cpu_op_fns cpu_int8; /* linear and geglu with that compute */

/* --- weights.c --- */

kron_status weights_create(struct be_device *d, const struct layer_table *table,
                           const struct delta_set *set, struct be_weights **out);
void weights_free(struct be_weights *w);
void weights_trim(struct be_weights *w);
/* A compute buffer for a run of p, which begins at *at: beside what another plan holds there if p
 * holds nothing and both fit, else over it. */
kron_status weights_reserve(struct be_weights *w, const struct be_plan *p, char **at);
/* The f32 effective weight of a layer, made at the first call; deltas of a region left out. */
kron_status weights_merged(struct be_plan *p, const struct layer *l, struct tensor *out);
/* Room for what is made of a layer's weight, kept for all plans of these weights: whole numbers
 * q[rows], of `depth` bytes, none if that is 0, and two numbers for each of `groups` parts of a
 * row. It is taken at the first call, filled by what runs first, and again when its key differs. */
struct packed {
    int8_t *q;
    float *scale, *sum;
    float *key; /* [deltas of the layer]: strengths of those that changed the rows */
    const void *base;
    bool filled;
};
kron_status weights_packed(struct be_plan *p, const struct layer *l, int64_t rows, int64_t depth,
                           int64_t groups, struct packed **out);
/* Whether it holds the weight of this run; that it does now. */
bool packed_holds(const struct cpu_call *c, const struct packed *k);
void packed_filled(const struct cpu_call *c, struct packed *k);
/* Delta i of a layer with its gain worked out and its input form brought to low rank: what that
 * takes is kept with the weights, made at the first call. */
kron_status weights_delta(struct be_plan *p, const struct layer *l, int i, struct delta *out);

/* --- once.c --- */

kron_status once_compile(struct be_plan *p);
/* True if operations marked `once` must run, and notes what they read: held values are not there,
 * or were made of something else. Call once_made() when they have run. */
bool once_needed(struct be_plan *p, struct be_buf *const *bind, const float *strengths);
void once_made(struct be_plan *p);

/* --- wpass.c --- */

enum { WPASS_ROWS = 64 }; /* most rows of one call */

/* Sets o->w for the op's layer and route, and takes scratch for prepared factors. */
kron_status wpass_compile(struct be_plan *p, struct cpu_op *o, const struct layer *l,
                          enum gr_route route);
/* The same over n given deltas, as they are, all into the rows. */
kron_status wpass_compile_list(struct be_plan *p, struct cpu_op *o, const struct layer *l,
                               const struct delta *deltas, int n);
/* Scratch that one worker needs in wpass_rows. */
size_t wpass_thread_bytes(const struct wsource *w);
/* Readies factors for this run; before any wpass_rows or delta_apply of it. */
void wpass_prepare(const struct cpu_call *c, const struct wsource *w);
/* Writes columns [col, col + n_col) of rows [row, row + n) of the effective weight to dst. */
void wpass_rows(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                int64_t col, int64_t n_col, float *dst, int64_t ld, float *scratch);
/* Rows [row, row + n), whole, by all threads; each worker's scratch from its thread part. */
void wpass_block(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                 float *dst);
/* How convolutions take the weight: a few rows by columns, transposed into panels of rows. */
enum { TRANSPOSE_ROWS = 16, TRANSPOSE_COLUMNS = 288 }; /* the most of one call */
struct transposed {
    const int32_t *at;   /* [n_col]: where a column begins */
    int64_t panel, step; /* rows of a panel lie side by side; floats from panel to panel */
    float *dst;
};
/* Columns of a call: such that blocks of the base are decoded once. */
int64_t wpass_transpose_columns(const struct wsource *w);
/* Scratch that one worker needs in wpass_transpose. */
size_t wpass_transpose_bytes(const struct wsource *w);
/* Columns [col, col + n_col) of rows [row, row + n), the first of which is row i of t. */
void wpass_transpose(const struct cpu_call *c, const struct wsource *w, int64_t row, int64_t n,
                     int64_t col, int64_t n_col, const struct transposed *t, int64_t i,
                     float *scratch);
/* As wpass_block, of s g c D of a single delta, without what it does to the base. */
void wpass_delta_block(const struct cpu_call *c, const struct wsource *w, int i, int64_t row,
                       int64_t n, float *dst);
/* Rows [row, row + n) of a Kronecker delta's W2 [vp, vq * kh * kw] as f32: where they are, or
 * written to dst. */
const float *wpass_w2(const struct cpu_call *c, const struct wsource *w, int i, int64_t row,
                      int64_t n, float *dst);
/* Base memory usable as rows of f32 as it is; NULL if it must be decoded or changed. */
const float *wpass_direct(const struct cpu_call *c, const struct wsource *w);
/* The strength at which delta i changes the rows; 0 where it does not. */
float wpass_delta_strength(const struct cpu_call *c, const struct wsource *w, int i);
/* s c of a delta in this run. */
float wpass_strength(const struct cpu_call *c, const struct delta *d);
/* The op's bias as f32, deltas added; NULL if it has none. */
const float *cpu_bias(const struct cpu_call *c);
/* n numbers of t from `at` as f32: in place if they are, else decoded to dst. */
const float *cpu_floats(const struct cpu_kernels *k, const struct tensor *t, int64_t at, int64_t n,
                        float *dst);

/* --- delta.c: the activation route --- */

/* True if some delta is applied to activations, or turns the product. */
bool delta_on_rows(const struct wsource *w);
/* The same at the strengths of this run: without any the op runs as if it had no deltas. */
bool delta_active(const struct cpu_call *c);
bool delta_turns(const struct wsource *w);
/* Takes scratch for adding the op's deltas to y[.., out]. */
void delta_compile(struct be_plan *p, struct cpu_op *o);
/* Scratch that one worker needs for left deltas. */
size_t delta_thread_bytes(const struct wsource *w);
/* Low ranks that can be added to each part of a product while it is warm, if nothing else is left
 * to do on activations: t[m, r] and a[out, r] of y += t a'. */
struct delta_ranks {
    int64_t r; /* 0: not so */
    const float *t, *a;
};
struct delta_ranks delta_ranks(const struct cpu_call *c, const float *x, int64_t m);
/* Columns [col, col + n) of rows [row, row + rows), at y. */
void delta_add_ranks(const struct delta_ranks *k, int64_t row, int64_t rows, int64_t col,
                     int64_t n, float *y, int64_t ld);
/* y[m, out] = W x, dense, without bias: turned by left deltas, plus the deltas of x[m, k]. The
 * first row is that of pixel `first` of the op's output. */
void delta_apply(const struct cpu_call *c, const float *x, int64_t m, float *y, int64_t first);

#endif
