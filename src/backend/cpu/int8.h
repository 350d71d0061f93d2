/* SPDX-License-Identifier: MIT
 * backend/cpu/int8.h - linear layers as products of whole numbers (gr_op.compute).
 *
 * Input channels go in groups g of INT8_GROUP, each with a range of its own:
 *
 *   x[r, i] ~ s_rg (q[r, i] - z_rg)    q in 0 .. x_most, of a row of activations
 *   W[o, i] ~ s_og v[o, i]             v in -w_most .. w_most, of a row of the weight
 *   y[r, o] = sum over g of s_rg s_og (sum over i in g of q v - z_rg sum over i in g of v)
 *             + what stays f32
 *
 * The inner sums are exact. Rows of the effective weight come from the weight pass, deltas added,
 * and are quantised as they come; what is left to activations (low ranks, regions, what turns the
 * product) is added in f32, as are input channels that would spoil the range of every row.
 *
 * In 16 bits (linear16_tmpl.h) there is no z, and v and q are 12 bits with a sign.
 *
 * How many bits int8 has is a matter of the instructions. With VNNI q and v have 8 bits. AVX2
 * adds products of u8 and s8 in pairs in 16 bits, with saturation; 7 bits let two pairs be added
 * there before they are widened, which is a quarter fewer multiplications and never saturates. */
#ifndef BACKEND_CPU_INT8_H
#define BACKEND_CPU_INT8_H
#include "backend/cpu/cpu.h"

enum { INT8_GROUP = 128, INT8_DEPTH = 1 << 15 /* most channels: gr_choose_int8() */ };

/* Input channels with the zeros behind them, and their groups. */
static inline int64_t int8_depth(int64_t k)
{
    return (k + 7) / 8 * 8;
}
static inline int64_t int8_groups(int64_t k)
{
    return (k + INT8_GROUP - 1) / INT8_GROUP;
}

/* Weight rows stand in panels of `panel`: of each in turn the numbers of 4 input channels (16 bits:
 * of 2), and so on; zeros up to whole panels and to int8_depth() channels. */
struct int8_tile {
    const void *x;         /* [rows, depth]; readable to whole tiles of rows */
    const float *x_scale;  /* [rows, groups] s */
    const float *x_zero;   /* [rows, groups] -z */
    const void *w;         /* one panel */
    const float *w_scale;  /* [groups, panel] s */
    const float *w_sum;    /* [groups, panel] s times the sum of v */
    float *y;              /* [rows, panel], rows ldy apart */
    int64_t rows, depth, groups, ldy;
};

/* How rows are multiplied. */
struct int8_way {
    int bytes;  /* of a number */
    int panel;  /* weight rows of one panel */
    int tile;   /* activation rows that are fastest at a time */
    /* One row of activations; zero is -z. most[i] becomes max(most[i], |x[i]|). scale[0] is NaN
     * if a number is none or infinite: it must not come out as if it had been one. */
    void (*quantise)(const float *x, int64_t k, float *most, void *q, float *scale, float *zero);
    /* One panel from rows w[n, k], ld apart, n <= panel. */
    void (*pack)(const float *w, int64_t n, int64_t k, int64_t ld, void *q, float *scale,
                 float *sum);
    void (*product)(const struct int8_tile *t);
};

struct int8_kernels {
    const char *name;
    int x_most, w_most;
    int panel;                      /* channels of one panel, of convolutions too */
    struct int8_way eight, sixteen; /* COMPUTE_INT8, COMPUTE_INT16 */
    /* The block of keys and values from key `at` on. */
    void (*attention_pack)(const struct attention_tile *t, int64_t at, float *block);
    /* A tile by the blocks at t->packed; not causal; attention16_floats(d) of scratch. */
    void (*attention)(const struct attention_tile *t);
    struct wino_kernels wino; /* panels as above */
};

/* Inputs of a 3x3 convolution with scales of their own (winograd16_tmpl.h). */
enum { WINO_GROUP = 128 };

/* Attention in 16 bits (attention16_tmpl.h): keys of a block, most channels of a head. */
enum { ATTENTION16_KEYS = 256, ATTENTION16_DEPTH = 192 };
static inline int64_t attention16_block_floats(int64_t d)
{
    int64_t dp = up_to(d, 16);

    return ATTENTION16_KEYS * (1 + up_to(d, 2) / 2) + 16 + dp + ATTENTION16_KEYS / 2 * dp;
}
static inline int64_t attention16_floats(int64_t d)
{
    int64_t q = attention_queries(d);

    return q * up_to(d, 16) + 3 * q + ATTENTION_ROWS * ATTENTION16_KEYS * 3 / 2 +
           q * up_to(d, 32) / 2;
}

/* The best set that this machine has and KRON_CPU_MASK allows ("avxvnni": without AVX-512). */
const struct int8_kernels *int8_kernels_best(void);

extern const struct int8_kernels int8_kernels_c;
#ifdef KRON_X86
extern const struct int8_kernels int8_kernels_avx2, int8_kernels_avxvnni,
    int8_kernels_avx512vnni;
#endif

/* What a group with that range, lo <= 0 <= hi, becomes: q = x inv + zero, each step rounded to
 * f32, then the nearest of 0 .. most, ties to even. */
struct int8_range {
    float scale, inv, zero;
};
static inline struct int8_range int8_range_of(float lo, float hi, int most)
{
    struct int8_range r = {0, 0, 0};

    if (hi - lo < 1e-30f) /* zeros */
        return r;
    r.inv = (float)most / (hi - lo);
    r.scale = (hi - lo) / (float)most;
    r.zero = -lo * r.inv + 12582912.0f - 12582912.0f; /* rounded: 1.5 2^23 takes the rest */
    return r;
}

/* Input channels that leave the whole numbers: at most `room` of those whose largest number,
 * most[k], is over INT8_OUTLIER times the mean of all; none if what remains is not at most half
 * of what was there. Rising, in at[]. Returns how many. */
enum { INT8_OUTLIER = 4, INT8_OUTLIERS = 32 };
int int8_outliers(const float *most, int64_t k, int32_t at[INT8_OUTLIERS]);

#endif
