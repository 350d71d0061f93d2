/* SPDX-License-Identifier: MIT
 * backend/cpu/int8.h - linear layers as products of whole numbers (gr_op.compute).
 *
 *   x[r, i] ~ s_r (q[r, i] - z_r)      q in 0 .. x_most: each row of activations by its own range
 *   W[o, i] ~ s_o v[o, i]              v in -w_most .. w_most: each row of the weight likewise
 *   y[r, o] = s_r s_o (sum over i of q v - z_r sum over i of v) + what stays f32
 *
 * The sums are exact. Rows of the effective weight come from the weight pass, deltas added, and
 * are quantised as they come; what is left to activations (low ranks, regions, what turns the
 * product) is added in f32, as are input channels that would spoil the range of every row.
 *
 * How many bits there are is a matter of the instructions. With VNNI q and v have 8 bits. AVX2
 * adds products of u8 and s8 in pairs in 16 bits, with saturation; 7 bits let two pairs be added
 * there before they are widened, which is a quarter fewer multiplications and never saturates. */
#ifndef BACKEND_CPU_INT8_H
#define BACKEND_CPU_INT8_H
#include "backend/cpu/cpu.h"

/* Weight rows stand in panels of `panel`: of each in turn four numbers of 4 input channels, and so
 * on; zeros up to whole panels and to int8_depth() channels. */
struct int8_tile {
    const uint8_t *x; /* [rows, ldx], `k` of them used */
    const float *x_scale;
    const int32_t *x_zero;
    const int8_t *w;  /* one panel */
    const float *w_scale;
    const int32_t *w_sum;
    float *y;         /* [rows, panel], rows ldy apart */
    int64_t rows, k, ldx, ldy;
};

struct int8_kernels {
    const char *name;
    int x_most, w_most;
    int panel;  /* weight rows of one panel */
    int tile;   /* activation rows that are fastest at a time */
    /* The range of x[n] in lo, hi; most[i] becomes max(most[i], |x[i]|). Returns the sum of
     * squares. */
    double (*extent)(const float *x, int64_t n, float *most, float *lo, float *hi);
    /* q[i] = x[i] * inv + zero, each step rounded to f32, the result to a whole number (ties to
     * even) of 0 .. x_most. */
    void (*quantise)(const float *x, int64_t n, float inv, float zero, uint8_t *q);
    /* One panel from rows w[n, k], ld apart, n <= panel. */
    void (*pack)(const float *w, int64_t n, int64_t k, int64_t ld, int8_t *q, float *scale,
                 int32_t *sum);
    void (*product)(const struct int8_tile *t);
};

/* Input channels with the zeros behind them. */
static inline int64_t int8_depth(int64_t k)
{
    return (k + 7) / 8 * 8;
}

/* The best set that this machine has and KRON_CPU_MASK allows ("avxvnni": without AVX-512). */
const struct int8_kernels *int8_kernels_best(void);

extern const struct int8_kernels int8_kernels_c;
#ifdef KRON_X86
extern const struct int8_kernels int8_kernels_avx2, int8_kernels_avxvnni,
    int8_kernels_avx512vnni;
#endif

/* Scale and zero of a row of activations with that range. */
struct int8_range {
    float scale, inv;
    int32_t zero;
};
struct int8_range int8_range_of(float lo, float hi, int most);

/* Input channels that leave the whole numbers: at most `room` of those whose largest number,
 * most[k], is over INT8_OUTLIER times the mean of all; none if what remains is not at most half
 * of what was there. Rising, in at[]. Returns how many. */
enum { INT8_OUTLIER = 4, INT8_OUTLIERS = 32 };
int int8_outliers(const float *most, int64_t k, int32_t at[INT8_OUTLIERS]);

#endif
