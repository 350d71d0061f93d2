/* SPDX-License-Identifier: MIT
 * backend/cpu/kernels.h - the inner loops of this backend, one table for each instruction set.
 *
 * Every kernel runs on one thread and touches only what its arguments name. Matrices are
 * row-major with a distance between rows in floats ("ld"). No pointer needs an alignment beyond
 * that of float. Reading which level sets which pointer: cpu_kernels_for(). */
#ifndef BACKEND_CPU_KERNELS_H
#define BACKEND_CPU_KERNELS_H
#include "graph/graph.h"

/* One block of queries of one head. q is scaled by 1 / sqrt(d); sizes and scratch are in
 * attention_tmpl.h. */
struct attention_tile {
    const float *q, *k, *v; /* first channel of the head; rows ldq or ldk floats apart */
    float *packed;          /* in whole numbers: the head's blocks of keys and values */
    float *y;
    int64_t ldq, ldk;
    int64_t first;       /* index of the first query, for causal attention */
    int64_t n_q, n_k, d;
    bool causal;
    float *scratch;      /* attention_floats(d) */
};

/* One group of output pixels by one panel of 2 * lanes channels, over a chunk of kc input
 * channels: y[p][o] (+)= sum over taps t, channels k of px[t][p][off + k] w[t][k][o]. */
enum { CONV_GROUP = 96 }; /* most pixels of a group; their table has that width always */
struct conv_panel {
    const float *const *px; /* [taps][CONV_GROUP]; all point at numbers, past n_px too */
    const float *w;         /* [taps][kc][2 * lanes] */
    float *y;
    int64_t taps, n_px, off, kc, ldy;
    int64_t cols; /* channels that exist, 1 .. 2 * lanes */
    bool add;
};

/* m[n, 2 * lanes] (+)= v[n, k] u[k, 2 * lanes]: one of the 36 products of a group of tiles by a
 * panel of channels. next_v and next_u: where the product after this one will read. Whole numbers
 * have a scale for each row of v, v_scale_step apart, and each column of u. */
struct wino_product {
    const float *v, *u, *next_v, *next_u;
    const float *v_scale, *u_scale;
    int64_t v_scale_step;
    float *m;
    int64_t ldv, ldm, n, k;
    bool add;
};

/* One tile of a 3x3 convolution, transformed: 36 numbers of each channel, `step` floats apart;
 * and the rows x cols <= 4 x 4 pixels that become of it: y = pixels + bias + vec + res, of which
 * bias, vec and res may be NULL, and y may be res. */
struct wino_tile {
    const float *m; /* readable to whole vectors of channels */
    int64_t step;
    float *y;
    const float *res, *bias, *vec;
    int64_t ld_row, ld_px, rows, cols; /* of y and res */
};

/* In f32, or in whole numbers of 16 bits (winograd16_tmpl.h), two in the place of a float. */
struct wino_kernels {
    /* Channels [from, from + n) of a tile of 6x6 pixels px, transformed, to v + point * step. inv
     * is what makes them whole. */
    void (*input)(const float *const *px, int64_t from, int64_t n, float inv, float *v,
                  int64_t step);
    /* w[n][9][panel] transformed: u[point * step][n][panel]; inv[panel] as above. */
    void (*weights)(const float *w, int64_t n, const float *inv, float *u, int64_t step);
    void (*product)(const struct wino_product *a);
    void (*output)(const struct wino_tile *t, int64_t n); /* n channels */
};

struct cpu_kernels {
    const char *name;
    int lanes; /* floats of one vector */

    /* dst[i] = src[i] as f32, n elements of type t. */
    void (*decode)(enum dtype t, const void *src, int64_t n, float *dst);
    /* dst[i] = src[i] as f32, plus a x[i]: base and Kronecker delta of a row in one pass. */
    void (*decode_axpy)(enum dtype t, const void *src, int64_t n, float *dst, float a,
                        const float *x);
    void (*axpy)(float *y, const float *x, float a, int64_t n);              /* y += a x */
    void (*axpy_mul)(float *y, const float *x, const float *z, float a, int64_t n); /* += a x z */
    float (*dot)(const float *x, const float *y, int64_t n);
    /* y[m, n] = x[m, k] times the rows of w[n, k], plus y if `add`. For a few rows of w that stay
     * in the first cache, and as much of x as fits the second. */
    void (*dots)(int64_t m, int64_t n, int64_t k, const float *x, int64_t ldx, const float *w,
                 int64_t ldw, float *y, int64_t ldy, bool add);
    /* c[m, n] = a[m, k] b[k, n], plus c if `add`. For panels that stay in cache. */
    void (*gemm)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                 int64_t ldb, float *c, int64_t ldc, bool add);
    void (*conv)(const struct conv_panel *c);
    struct wino_kernels wino;
    /* For each column c < n: the 8 numbers src[0..7][c] go to dst + at[c]. */
    void (*scatter8)(const float *src, int64_t ld, int64_t n, const int32_t *at, float *dst);
    /* y[i] = act(x[i] + bias[i]) + vec[i] + res[i]; bias, vec, res may be NULL; y may be x, res. */
    void (*finish)(float *y, const float *x, const float *bias, const float *vec,
                   const float *res, enum gr_act act, int64_t n);
    /* y[i] = (x[i] + bx[i]) gelu(gate[i] + bg[i]); y may be x. */
    void (*geglu)(float *y, const float *x, const float *bx, const float *gate, const float *bg,
                  int64_t n);
    /* Sums over rows of x[rows, n]: sum[n] += x, and with a mean: sum[n] += (x - mean)^2. */
    void (*column_sums)(const float *x, int64_t rows, int64_t ld, int64_t n, const float *mean,
                        float *sum);
    /* y[i] = act((x[i] - mean[i]) scale[i] + shift[i]); y may be x. */
    void (*normalise)(float *y, const float *x, const float *mean, const float *scale,
                      const float *shift, enum gr_act act, int64_t n);
    void (*layer_norm)(float *y, const float *x, const float *w, const float *b, float eps,
                       int64_t n);
    void (*attention)(const struct attention_tile *t);
};

enum { ATTENTION_ROWS = 24 }; /* queries whose scores exist at once */
/* Most queries of one tile: packing a block of keys is shared by so many, and all stay in a
 * 512 kB cache. */
static inline int64_t attention_queries(int64_t d)
{
    return d <= 64 ? 384 : d <= 192 ? 192 : 96;
}
/* Keys of one block: what keeps a block's panels in a 512 kB cache. */
static inline int64_t attention_keys(int64_t d)
{
    return d <= 64 ? 256 : d <= 192 ? 128 : 64;
}
/* Floats of scratch that a tile needs at any level. */
int64_t attention_floats(int64_t d);

/* The best level that this machine has and KRON_CPU_MASK ("none", "avx2", "avxvnni", "avx512")
 * allows; int8.h has more of it. */
const struct cpu_kernels *cpu_kernels_best(void);

extern const struct cpu_kernels cpu_kernels_c;
#if defined(__x86_64__)
#define KRON_X86 1
bool cpu_has_avx2(void); /* with FMA and F16C */
bool cpu_has_avx512(void); /* F, BW, VL, DQ */
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

#endif
