/* SPDX-License-Identifier: MIT
 * Numbers as 4-bit floats (e2m1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign. All scales are halved
 * and all levels doubled, so that levels are whole.
 *
 *   mxfp4  32 numbers: a scale 2^(byte - 127), 16 bytes as in q4_0
 *   nvfp4  64 numbers: 4 scales in e4m3, their sign unused; 4 runs of 16 numbers in 8 bytes */
#include "tensor/quant.h"
#include <float.h>
#include <math.h>
#include <string.h>

enum { MX_MOST = 252 }; /* the largest exponent byte whose largest number is finite */

/* By their bits: places 8 .. 15 are negative. */
static const int8_t by_bits[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const int8_t levels[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
static const struct quant_grid grid = {.lo = -12, .hi = 12, .values = levels, .n_values = 15};

static uint8_t bits_of(float level)
{
    int i = quant_index(&grid, level);

    return (uint8_t)(i >= 7 ? i - 7 : 15 - i);
}

static void get_run(const uint8_t *p, int n, float d, float *y)
{
    for (int i = 0; i < n / 2; i++) {
        y[i] = d * (float)by_bits[p[i] & 15];
        y[i + n / 2] = d * (float)by_bits[p[i] >> 4];
    }
}

static void put_run(const float *x, const float *w, int n, float d, uint8_t *p)
{
    float q[32];

    quant_levels(&grid, n, x, w, d, q);
    for (int i = 0; i < n / 2; i++)
        p[i] = (uint8_t)(bits_of(q[i]) | bits_of(q[i + n / 2]) << 4);
}

static float largest(const float *x, int n)
{
    float most = 0;

    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

void get_mxfp4(const uint8_t *p, float *y)
{
    get_run(p + 1, 32, ldexpf(1, p[0] - 128), y);
}

/* In units that bring the largest number to 1 .. 2: squares of all f32 would not fit in f32. */
void put_mxfp4(const float *x, const float *w, uint8_t *p)
{
    float unit[32], least = INFINITY, most = largest(x, 32);
    int e = 0, best = 0;

    memset(p, 0, 17);
    if (most == 0)
        return;
    frexpf(most, &e);
    for (int i = 0; i < 32; i++)
        unit[i] = ldexpf(x[i], 1 - e);
    for (int byte = e + 123; byte <= e + 125; byte++) {
        int b = byte < 0 ? 0 : byte > MX_MOST ? MX_MOST : byte;
        float err = quant_levels(&grid, 32, unit, w, ldexpf(1, b - 127 - e), NULL).err;
        if (err < least) {
            least = err;
            best = b;
        }
    }
    p[0] = (uint8_t)best;
    put_run(unit, w, 32, ldexpf(1, best - 127 - e), p + 1);
}

/* Scale of a run, halved. The code of all ones is NaN in e4m3 and 0 here; with a sign bit, which
 * nothing writes, it counts as 480. */
static float nv_scale(uint8_t b)
{
    int e = b >> 3 & 15, m = b & 7;

    if (b == 0x7f)
        return 0;
    return e ? ldexpf((float)(8 + m), e - 11) : ldexpf((float)m, -10);
}

void get_nvfp4(const uint8_t *p, float *y)
{
    for (int r = 0; r < 4; r++)
        get_run(p + 4 + 8 * r, 16, nv_scale(p[r]), y + 16 * r);
}

/* Scales near the one that puts the largest number on the largest level. */
void put_nvfp4(const float *x, const float *w, uint8_t *p)
{
    for (int r = 0; r < 4; r++) {
        float least = INFINITY, first = largest(x + 16 * r, 16) / 6;
        int middle = f32_to_f8_e4m3(first < 448 ? first : 448), best = 0;

        for (int b = middle - 4; b <= middle + 4; b++) {
            if (b < 0 || b > 0x7e)
                continue;
            float err = quant_levels(&grid, 16, x + 16 * r, w + 16 * r, nv_scale((uint8_t)b),
                                     NULL).err;
            if (err < least) {
                least = err;
                best = b;
            }
        }
        p[r] = (uint8_t)best;
        put_run(x + 16 * r, w + 16 * r, 16, nv_scale((uint8_t)best), p + 4 + 8 * r);
    }
}
