/* SPDX-License-Identifier: MIT
 * Small floating-point formats, by their bits. */
#include "base/base.h"
#include <math.h>
#include <string.h>

static float from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, 4);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    return u;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;

    if (e == 31)
        return from_bits(sign | 0x7f800000 | m << 13);
    if (e != 0)
        return from_bits(sign | (e + 112) << 23 | m << 13);
    /* Subnormal: m * 2^-24, exact in f32. */
    return from_bits(sign | to_bits((float)m * 0x1p-24f));
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = to_bits(f), a = u & 0x7fffffff;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);

    if (a > 0x7f800000) /* NaN: keep the top of its payload, and quiet */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) /* 65520 and up round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) { /* under 2^-14: a multiple of 2^-24, rounded by the addition */
        uint32_t r = to_bits(from_bits(a) + 0.5f);
        return (uint16_t)(sign | (r - to_bits(0.5f)));
    }
    a += 0xfff + (a >> 13 & 1); /* to nearest, ties to even */
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

float bf16_to_f32(uint16_t h)
{
    return from_bits((uint32_t)h << 16);
}

uint16_t f32_to_bf16(float f)
{
    uint32_t u = to_bits(f);

    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float f8_e4m3_to_f32(uint8_t b)
{
    int e = b >> 3 & 15, m = b & 7;
    float v = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);

    if (e == 15 && m == 7)
        v = NAN;
    return b & 0x80 ? -v : v;
}

float f8_e5m2_to_f32(uint8_t b)
{
    return f16_to_f32((uint16_t)(b << 8)); /* the upper half of an f16 */
}

/* To `m_bits` of mantissa with the exponent bias `bias`, ties to even; what is over `max` becomes
 * `over`, NaN `nan`. |f|'s bits are rounded as an integer: a carry moves into the exponent. */
static uint8_t to_f8(float f, int m_bits, int bias, float max, uint8_t over, uint8_t nan)
{
    uint32_t u = to_bits(f), a = u & 0x7fffffff, drop = 23u - (uint32_t)m_bits;
    uint8_t sign = (uint8_t)(u >> 24 & 0x80);
    float tiny = from_bits((uint32_t)(128 - bias) << 23); /* the least normal number */

    if (a > 0x7f800000)
        return (uint8_t)(sign | nan);
    if (from_bits(a) < tiny) { /* a multiple of tiny / 2^m_bits, rounded by the addition */
        float one = from_bits((uint32_t)(128 - bias + (int)drop) << 23);
        return (uint8_t)(sign | (to_bits(from_bits(a) + one) - to_bits(one)));
    }
    a += (1u << (drop - 1)) - 1 + (a >> drop & 1);
    a &= ~((1u << drop) - 1);
    if (from_bits(a) > max)
        return (uint8_t)(sign | over);
    return (uint8_t)(sign | ((a >> drop) - ((uint32_t)(127 - bias) << m_bits)));
}

uint8_t f32_to_f8_e4m3(float f)
{
    return to_f8(f, 3, 7, 448, 0x7f, 0x7f);
}

uint8_t f32_to_f8_e5m2(float f)
{
    return to_f8(f, 2, 15, 57344, 0x7c, 0x7f);
}
