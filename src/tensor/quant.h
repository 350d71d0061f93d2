/* SPDX-License-Identifier: MIT
 * tensor/quant.h - block types, in the layouts of GGML: what the table of tensor.c points at.
 *
 *   quant_simple.c   q4_0 q4_1 q5_0 q5_1 q8_0     32 numbers, a scale, perhaps a minimum
 *   quant_k.c        q2_K ... q6_K                 256 numbers, scales that are integers themselves
 *   quant_iq.c       iq4_nl iq4_xs                 levels that are not evenly spaced
 *   quant_fp4.c      mxfp4 nvfp4                   levels of a 4-bit float
 *   quant_ternary.c  tq1_0 tq2_0                   -1, 0, 1
 *   quant_search.c   finding scales and levels       quant_super.c   scales that are integers
 *
 * Decoding is defined to the bit by the `gguf` package: one product, or a product and a sum, each
 * rounded to f32. Encoding looks for what decodes to the least error; the type alone says what a
 * block may hold, so any other encoder's blocks are as good a file. */
#ifndef TENSOR_QUANT_H
#define TENSOR_QUANT_H
#include "tensor/tensor.h"

/* Name, numbers of a block, bytes of a block, the largest number to be encoded: more than any
 * scale reaches, yet its square is finite (mxfp4 scales what it is given). In the order of enum
 * dtype. */
#define QUANT_TYPES(X) \
    X(q4_0, 32, 18, 1e9f)     \
    X(q4_1, 32, 20, 1e9f)     \
    X(q5_0, 32, 22, 1e9f)     \
    X(q5_1, 32, 24, 1e9f)     \
    X(q8_0, 32, 34, 1e9f)     \
    X(q2_K, 256, 84, 1e9f)    \
    X(q3_K, 256, 110, 1e9f)   \
    X(q4_K, 256, 144, 1e9f)   \
    X(q5_K, 256, 176, 1e9f)   \
    X(q6_K, 256, 210, 1e9f)   \
    X(iq4_nl, 32, 18, 1e9f)   \
    X(iq4_xs, 256, 136, 1e9f) \
    X(mxfp4, 32, 17, 3e38f)   \
    X(nvfp4, 64, 36, 1e9f)    \
    X(tq1_0, 256, 54, 1e9f)   \
    X(tq2_0, 256, 66, 1e9f)

/* One block at p <-> its numbers. put: x is finite and w, the weight of each number's squared
 * error, is >= 0 and not all zero (quant_take()). */
#define QUANT_BLOCK_DECL(name, n, bytes, most)   \
    void get_##name(const uint8_t *p, float *y); \
    void put_##name(const float *x, const float *w, uint8_t *p);
QUANT_TYPES(QUANT_BLOCK_DECL)
#undef QUANT_BLOCK_DECL

/* --- quant_search.c --- */

/* The levels of a number, evenly spaced (lo, lo + 1 .. hi; values is NULL) or listed in rising
 * order. tries, step: scales that are tried, relative to those that put the largest number on
 * lo or hi: 1 - tries * step, .., 1 + tries * step. */
struct quant_grid {
    int lo, hi;
    const int8_t *values;
    int n_values;
    int tries;
    float step;
};

/* Sums over a run of numbers and their nearest levels q at some scale: w x q, w q q, w q, and
 * the error w (x - d q)^2, or w (x - d q + m)^2. */
struct quant_sums {
    float xq, qq, q, err;
};

/* The levels nearest to x[i] / d; q may be NULL. n is a multiple of 4. */
struct quant_sums quant_levels(const struct quant_grid *g, int n, const float *x, const float *w,
                               float d, float *q);
/* The levels 0 .. hi nearest to (x[i] + m) / d. */
struct quant_sums quant_levels_min(int hi, int n, const float *x, const float *w, float d, float m,
                                   float *q);
/* A scale of about the least error; quant_levels() with it, rounded or not, gives the levels. */
float quant_scale(const struct quant_grid *g, int n, const float *x, const float *w);
/* The same for x = d q - m, levels 0 .. hi; m >= 0 unless `free_m`. */
void quant_scale_min(int hi, int n, const float *x, const float *w, bool free_m, float *d,
                     float *m);
/* Place of a level that quant_levels() gave. */
int quant_index(const struct quant_grid *g, float q);

/* --- quant_super.c: runs of `len` numbers whose scales are integers --- */

/* x = d scale[r] q in run r; scales lo .. hi. */
struct quant_super {
    int n, len, lo, hi;
    const struct quant_grid *g;
};
/* Writes d, as f16, to p, the scales, and the levels if q is not NULL; returns d. */
float quant_super_scales(const struct quant_super *s, const float *x, const float *w, uint8_t *p,
                         int *scale, float *q);

/* x = d scale[r] q - dmin min[r]; scales and minima 0 .. most, levels 0 .. hi. */
struct quant_super_min {
    int n, len, most, hi;
};
/* Writes d and dmin, as f16, to p, scales, minima and levels. */
void quant_super_mins(const struct quant_super_min *s, const float *x, const float *w, uint8_t *p,
                      int *scale, int *min, float *q);

/* --- storing --- */

/* To f16; what is too large becomes the largest number. */
uint16_t quant_f16(float v);
static inline float quant_get_f16(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}
static inline void quant_put_f16(uint8_t *p, uint16_t h)
{
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

/* A block to be encoded: NaN becomes 0, what is larger than `most` is cut to it. Weights are all 1
 * without importance, or where it says nothing; else at most 1. */
void quant_take(const float *src, const float *importance, int n, float most, float *x, float *w);

#endif
