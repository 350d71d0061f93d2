/* SPDX-License-Identifier: MIT
 * Blocks of 32 with one f16 scale d, and a minimum m where the name ends in 1:
 *
 *   q4_0  d, 16 bytes: number i in the low half of byte i, number i + 16 in the high half
 *   q4_1  d, m, the same            x = d q + m, q 0 .. 15;  q4_0: x = d (q - 8)
 *   q5_0  d, 32 fifth bits, the same            q5_1  d, m, fifth bits, the same
 *   q8_0  d, 32 signed bytes        x = d q */
#include "tensor/quant.h"
#include <string.h>

enum { N = 32, HALF = N / 2 };

static const struct quant_grid grid4 = {.lo = -8, .hi = 7, .tries = 4, .step = 0.025f};
static const struct quant_grid grid5 = {.lo = -16, .hi = 15, .tries = 3, .step = 0.012f};
static const struct quant_grid grid8 = {.lo = -127, .hi = 127, .tries = 1, .step = 0.002f};

/* Number i's four bits. */
static unsigned low_bits(const uint8_t *p, int i)
{
    return i < HALF ? p[i] & 15u : p[i - HALF] >> 4;
}

static void put_low_bits(uint8_t *p, const unsigned *q)
{
    for (int i = 0; i < HALF; i++)
        p[i] = (uint8_t)((q[i] & 15) | (q[i + HALF] & 15) << 4);
}

static unsigned fifth_bit(const uint8_t *p, int i)
{
    return (p[i / 8] >> i % 8 & 1u) << 4;
}

static void put_fifth_bits(uint8_t *p, const unsigned *q)
{
    memset(p, 0, N / 8);
    for (int i = 0; i < N; i++)
        p[i / 8] = (uint8_t)(p[i / 8] | (q[i] >> 4 & 1) << i % 8);
}

void get_q4_0(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)((int)low_bits(p + 2, i) - 8);
}

void get_q4_1(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p), m = quant_get_f16(p + 2);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)low_bits(p + 4, i) + m;
}

void get_q5_0(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)((int)(low_bits(p + 6, i) | fifth_bit(p + 2, i)) - 16);
}

void get_q5_1(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p), m = quant_get_f16(p + 2);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)(low_bits(p + 8, i) | fifth_bit(p + 4, i)) + m;
}

void get_q8_0(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)(int8_t)p[2 + i];
}

/* The scale as stored goes to p, the places of the levels that fit it to q. */
static void fit(const struct quant_grid *g, const float *x, const float *w, uint8_t *p,
                unsigned *q)
{
    uint16_t d = quant_f16(quant_scale(g, N, x, w));
    float level[N];

    quant_put_f16(p, d);
    quant_levels(g, N, x, w, f16_to_f32(d), level);
    for (int i = 0; i < N; i++)
        q[i] = (unsigned)quant_index(g, level[i]);
}

/* The same for levels 0 .. hi and a minimum behind the scale. */
static void fit_min(int hi, const float *x, const float *w, uint8_t *p, unsigned *q)
{
    float d, m, level[N];

    quant_scale_min(hi, N, x, w, true, &d, &m);
    quant_put_f16(p, quant_f16(d));
    quant_put_f16(p + 2, quant_f16(-m));
    quant_levels_min(hi, N, x, w, quant_get_f16(p), -quant_get_f16(p + 2), level);
    for (int i = 0; i < N; i++)
        q[i] = (unsigned)level[i];
}

void put_q4_0(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit(&grid4, x, w, p, q);
    put_low_bits(p + 2, q);
}

void put_q4_1(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit_min(15, x, w, p, q);
    put_low_bits(p + 4, q);
}

void put_q5_0(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit(&grid5, x, w, p, q);
    put_fifth_bits(p + 2, q);
    put_low_bits(p + 6, q);
}

void put_q5_1(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit_min(31, x, w, p, q);
    put_fifth_bits(p + 4, q);
    put_low_bits(p + 8, q);
}

void put_q8_0(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit(&grid8, x, w, p, q);
    for (int i = 0; i < N; i++)
        p[2 + i] = (uint8_t)(q[i] - 127u);
}
