/* SPDX-License-Identifier: MIT
 * Sixteen levels that lie closer together where weights are many.
 *
 *   iq4_nl  32 numbers: f16 d, 16 bytes as in q4_0               x = d level[q]
 *   iq4_xs  256 numbers: f16 d, 8 scales of 6 bits (the high two bits of all in 16 bits, then the
 *           low four), 8 runs of 32 numbers as in q4_0            x = d (scale - 32) level[q] */
#include "tensor/quant.h"
#include <string.h>

enum { RUN = 32, RUNS = DTYPE_BLOCK_MOST / RUN };

static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
static const struct quant_grid grid = {.lo = -127, .hi = 113, .values = levels, .n_values = 16,
                                       .tries = 3, .step = 0.04f};

static void get_run(const uint8_t *p, float d, float *y)
{
    for (int i = 0; i < RUN / 2; i++) {
        y[i] = d * (float)levels[p[i] & 15];
        y[i + RUN / 2] = d * (float)levels[p[i] >> 4];
    }
}

static void put_run(const float *x, const float *w, float d, uint8_t *p)
{
    float q[RUN];

    quant_levels(&grid, RUN, x, w, d, q);
    for (int i = 0; i < RUN / 2; i++)
        p[i] = (uint8_t)(quant_index(&grid, q[i]) | quant_index(&grid, q[i + RUN / 2]) << 4);
}

void get_iq4_nl(const uint8_t *p, float *y)
{
    get_run(p + 2, quant_get_f16(p), y);
}

void put_iq4_nl(const float *x, const float *w, uint8_t *p)
{
    quant_put_f16(p, quant_f16(quant_scale(&grid, RUN, x, w)));
    put_run(x, w, quant_get_f16(p), p + 2);
}

void get_iq4_xs(const uint8_t *p, float *y)
{
    float d = quant_get_f16(p);
    unsigned high = p[2] | (unsigned)p[3] << 8;

    for (int r = 0; r < RUNS; r++) {
        unsigned s = (p[4 + r / 2] >> r % 2 * 4 & 15u) | (high >> 2 * r & 3) << 4;
        get_run(p + 8 + r * RUN / 2, d * (float)((int)s - 32), y + r * RUN);
    }
}

void put_iq4_xs(const float *x, const float *w, uint8_t *p)
{
    static const struct quant_super super = {RUNS, RUN, -32, 31, &grid};
    int scale[RUNS];
    float d = quant_super_scales(&super, x, w, p, scale, NULL);
    unsigned high = 0;

    memset(p + 4, 0, RUNS / 2);
    for (int r = 0; r < RUNS; r++) {
        unsigned s = (unsigned)(scale[r] + 32);
        high |= s >> 4 << 2 * r;
        p[4 + r / 2] = (uint8_t)(p[4 + r / 2] | (s & 15) << r % 2 * 4);
        put_run(x + r * RUN, w + r * RUN, d * (float)scale[r], p + 8 + r * RUN / 2);
    }
    quant_put_f16(p + 2, (uint16_t)high);
}
