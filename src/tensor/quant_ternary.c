/* SPDX-License-Identifier: MIT
 * 256 numbers of -d, 0 or d.
 *
 *   tq2_0  64 bytes of four numbers at two bits, 32 bytes for each 128 numbers; f16 d behind
 *   tq1_0  48 bytes of five numbers, 4 of four: digits of a number in base 3, as a fraction of
 *          256, so that each multiplication by 3 brings one digit to the top; f16 d behind */
#include "tensor/quant.h"
#include <string.h>

enum { N = DTYPE_BLOCK_MOST };

static const struct quant_grid grid = {.lo = -1, .hi = 1, .tries = 10, .step = 0.06f};

/* The bytes of tq1_0: `n` side by side, each of `digits` numbers n apart, the first at `first`. */
static const struct digit_run {
    int at, n, digits, first;
} runs[] = {{0, 32, 5, 0}, {32, 16, 5, 160}, {48, 4, 4, 240}};

void get_tq1_0(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p + 52);

    for (int r = 0; r < 3; r++)
        for (int i = 0; i < runs[r].n; i++) {
            uint8_t fraction = p[runs[r].at + i];
            for (int j = 0; j < runs[r].digits; j++, fraction = (uint8_t)(fraction * 3))
                y[runs[r].first + j * runs[r].n + i] = d * (float)((fraction * 3 >> 8) - 1);
        }
}

void get_tq2_0(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p + 64);

    for (int i = 0; i < N; i++)
        y[i] = d * (float)((p[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
}

/* Digits 0 .. 2. */
static void fit(const float *x, const float *w, uint8_t *d, unsigned *q)
{
    float level[N];

    quant_put_f16(d, quant_f16(quant_scale(&grid, N, x, w)));
    quant_levels(&grid, N, x, w, quant_get_f16(d), level);
    for (int i = 0; i < N; i++)
        q[i] = (unsigned)quant_index(&grid, level[i]);
}

void put_tq1_0(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit(x, w, p + 52, q);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < runs[r].n; i++) {
            unsigned v = 0;
            for (int j = 0; j < 5; j++)
                v = v * 3 + (j < runs[r].digits ? q[runs[r].first + j * runs[r].n + i] : 0);
            p[runs[r].at + i] = (uint8_t)((v * 256 + 242) / 243); /* up: no digit is lost */
        }
}

void put_tq2_0(const float *x, const float *w, uint8_t *p)
{
    unsigned q[N];

    fit(x, w, p + 64, q);
    memset(p, 0, 64);
    for (int i = 0; i < N; i++)
        p[i / 128 * 32 + i % 32] =
            (uint8_t)(p[i / 128 * 32 + i % 32] | q[i] << i % 128 / 32 * 2);
}
