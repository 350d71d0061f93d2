/* SPDX-License-Identifier: MIT
 * Blocks of 256 numbers in runs with scales of their own, which are integers times an f16:
 *
 *   q2_K  16 bytes: scale and minimum of a run of 16, four bits each; 64 bytes of 2-bit numbers;
 *         d, dmin                                   x = d scale q - dmin min
 *   q3_K  32 bytes of third bits (clear: 4 less), 64 bytes of 2-bit numbers, 12 bytes of 16 6-bit
 *         scales, d                                 x = d (scale - 32) (q - 4)
 *   q4_K  d, dmin, 12 bytes of 8 6-bit scales and minima, 128 bytes of 4-bit numbers
 *   q5_K  the same with 32 bytes of fifth bits before the numbers
 *   q6_K  128 bytes of four bits, 64 of two more, 16 signed byte scales, d
 *                                                   x = d scale (q - 32) */
#include "tensor/quant.h"
#include <string.h>

enum { N = DTYPE_BLOCK_MOST };

static const struct quant_grid grid3 = {.lo = -4, .hi = 3, .tries = 4, .step = 0.055f};
static const struct quant_grid grid6 = {.lo = -32, .hi = 31, .tries = 2, .step = 0.006f};

/* --- fields of numbers: where number i lies --- */

/* Two bits each: 32 bytes hold 128 numbers. */
static unsigned two_bits(const uint8_t *p, int i)
{
    return p[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3u;
}

static void put_two_bits(uint8_t *p, int i, unsigned q)
{
    uint8_t *b = p + i / 128 * 32 + i % 32;

    *b = (uint8_t)(*b | (q & 3) << i % 128 / 32 * 2);
}

/* Four bits each: `half` numbers in the low halves of as many bytes, then as many in the high. */
static unsigned four_bits(const uint8_t *p, int i, int half)
{
    return p[i / (2 * half) * half + i % half] >> i / half % 2 * 4 & 15u;
}

static void put_four_bits(uint8_t *p, int i, int half, unsigned q)
{
    uint8_t *b = p + i / (2 * half) * half + i % half;

    *b = (uint8_t)(*b | (q & 15) << i / half % 2 * 4);
}

/* One bit each: bit i / 32 of byte i % 32. */
static unsigned one_bit(const uint8_t *p, int i)
{
    return p[i % 32] >> i / 32 & 1u;
}

static void put_one_bit(uint8_t *p, int i, unsigned q)
{
    p[i % 32] = (uint8_t)(p[i % 32] | (q & 1) << i / 32);
}

/* --- q2_K --- */

void get_q2_K(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p + 80), dmin = quant_get_f16(p + 82);

    for (int i = 0; i < N; i++) {
        float scale = d * (float)(p[i / 16] & 15), min = dmin * (float)(p[i / 16] >> 4);
        y[i] = scale * (float)two_bits(p + 16, i) - min;
    }
}

void put_q2_K(const float *x, const float *w, uint8_t *p)
{
    static const struct quant_super_min super = {.n = 16, .len = 16, .most = 15, .hi = 3};
    int scale[16], min[16];
    float q[N];

    memset(p, 0, 84);
    quant_super_mins(&super, x, w, p + 80, scale, min, q);
    for (int r = 0; r < 16; r++)
        p[r] = (uint8_t)(scale[r] | min[r] << 4);
    for (int i = 0; i < N; i++)
        put_two_bits(p + 16, i, (unsigned)q[i]);
}

/* --- q3_K --- */

void get_q3_K(const uint8_t *p, float *y)
{
    const uint8_t *s = p + 96;
    float d = quant_get_f16(p + 108);

    for (int r = 0; r < 16; r++) {
        unsigned scale = (s[r % 8] >> r / 8 * 4 & 15u) | (s[8 + r % 4] >> r / 4 * 2 & 3u) << 4;
        float dr = d * (float)((int)scale - 32);
        for (int i = r * 16; i < r * 16 + 16; i++)
            y[i] = dr * (float)((int)(two_bits(p + 32, i) | one_bit(p, i) << 2) - 4);
    }
}

void put_q3_K(const float *x, const float *w, uint8_t *p)
{
    static const struct quant_super super = {16, 16, -32, 31, &grid3};
    int scale[16];
    float q[N];

    memset(p, 0, 110);
    quant_super_scales(&super, x, w, p + 108, scale, q);
    for (int r = 0; r < 16; r++) {
        unsigned s = (unsigned)(scale[r] + 32);
        put_four_bits(p + 96, r, 8, s);
        p[104 + r % 4] = (uint8_t)(p[104 + r % 4] | s >> 4 << r / 4 * 2);
    }
    for (int i = 0; i < N; i++) {
        unsigned v = (unsigned)(q[i] + 4);
        put_two_bits(p + 32, i, v);
        put_one_bit(p, i, v >> 2);
    }
}

/* --- q4_K, q5_K --- */

static const struct quant_super_min super4 = {.n = 8, .len = 32, .most = 63, .hi = 15};
static const struct quant_super_min super5 = {.n = 8, .len = 32, .most = 63, .hi = 31};

/* Scale and minimum of run r: six bits of a byte for the first four; of the others four bits are
 * in the last four bytes, and two at the top of the first eight. */
static void get_pair(const uint8_t *s, int r, unsigned *scale, unsigned *min)
{
    if (r < 4) {
        *scale = s[r] & 63u;
        *min = s[r + 4] & 63u;
    } else {
        *scale = (s[r + 4] & 15u) | s[r - 4] >> 6 << 4;
        *min = s[r + 4] >> 4 | s[r] >> 6 << 4;
    }
}

static void put_pairs(uint8_t *s, const int *scale, const int *min)
{
    for (int r = 0; r < 4; r++) {
        s[r] = (uint8_t)(scale[r] | scale[r + 4] >> 4 << 6);
        s[r + 4] = (uint8_t)(min[r] | min[r + 4] >> 4 << 6);
        s[r + 8] = (uint8_t)((scale[r + 4] & 15) | (min[r + 4] & 15) << 4);
    }
}

/* high: fifth bits, or NULL. */
static void get_k45(const uint8_t *p, const uint8_t *high, const uint8_t *low, float *y)
{
    float d = quant_get_f16(p), dmin = quant_get_f16(p + 2);

    for (int r = 0; r < 8; r++) {
        unsigned scale, min;
        get_pair(p + 4, r, &scale, &min);
        float dr = d * (float)scale, mr = dmin * (float)min;
        for (int i = r * 32; i < r * 32 + 32; i++) {
            unsigned q = four_bits(low, i, 32) | (high ? one_bit(high, i) << 4 : 0);
            y[i] = dr * (float)q - mr;
        }
    }
}

void get_q4_K(const uint8_t *p, float *y)
{
    get_k45(p, NULL, p + 16, y);
}

void get_q5_K(const uint8_t *p, float *y)
{
    get_k45(p, p + 16, p + 48, y);
}

static void put_k45(const struct quant_super_min *super, const float *x, const float *w,
                    uint8_t *p, uint8_t *high, uint8_t *low)
{
    int scale[8], min[8];
    float q[N];

    quant_super_mins(super, x, w, p, scale, min, q);
    put_pairs(p + 4, scale, min);
    for (int i = 0; i < N; i++) {
        put_four_bits(low, i, 32, (unsigned)q[i]);
        if (high != NULL)
            put_one_bit(high, i, (unsigned)q[i] >> 4);
    }
}

void put_q4_K(const float *x, const float *w, uint8_t *p)
{
    memset(p, 0, 144);
    put_k45(&super4, x, w, p, NULL, p + 16);
}

void put_q5_K(const float *x, const float *w, uint8_t *p)
{
    memset(p, 0, 176);
    put_k45(&super5, x, w, p, p + 16, p + 48);
}

/* --- q6_K --- */

void get_q6_K(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p + 208);

    for (int i = 0; i < N; i++) {
        float scale = d * (float)(int8_t)p[192 + i / 16];
        y[i] = scale * (float)((int)(four_bits(p, i, 64) | two_bits(p + 128, i) << 4) - 32);
    }
}

void put_q6_K(const float *x, const float *w, uint8_t *p)
{
    static const struct quant_super super = {16, 16, -128, 127, &grid6};
    int scale[16];
    float q[N];

    memset(p, 0, 210);
    quant_super_scales(&super, x, w, p + 208, scale, q);
    for (int r = 0; r < 16; r++)
        p[192 + r] = (uint8_t)scale[r];
    for (int i = 0; i < N; i++) {
        unsigned v = (unsigned)(q[i] + 32);
        put_four_bits(p, i, 64, v);
        put_two_bits(p + 128, i, v >> 4);
    }
}
