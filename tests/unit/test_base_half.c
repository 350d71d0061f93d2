/* SPDX-License-Identifier: MIT
 * Number formats: every code of the small ones against its definition, and rounding against the
 * exact neighbours. */
#include "base/base.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static uint32_t bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    return u;
}

static float from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, 4);
    return f;
}

/* A code of e_bits exponent and m_bits mantissa bits as IEEE 754 defines it. `inf`: the highest
 * exponent holds infinity and NaN (else only its last code is NaN, as in OCP's e4m3fn). */
static double define(unsigned code, int e_bits, int m_bits, bool inf)
{
    int e = (int)(code >> m_bits) & ((1 << e_bits) - 1), m = (int)code & ((1 << m_bits) - 1);
    int top = (1 << e_bits) - 1, bias = (1 << (e_bits - 1)) - 1;
    double sign = code >> (e_bits + m_bits) & 1 ? -1 : 1;

    if (inf && e == top)
        return m != 0 ? (double)NAN : sign * (double)INFINITY;
    if (!inf && e == top && m == (1 << m_bits) - 1)
        return (double)NAN;
    if (e == 0)
        return sign * ldexp(m, 1 - bias - m_bits);
    return sign * ldexp((1 << m_bits) + m, e - bias - m_bits);
}

static void expect_code(float got, double want, unsigned code, unsigned sign_bit)
{
    if (isnan(want) ? !isnan(got) : (double)got != want)
        fail_msg("code 0x%x is %g, expected %g", code, (double)got, want);
    if (!isnan(want)) /* of zeros too */
        assert_int_equal(signbit(got) != 0, (code & sign_bit) != 0);
}

static void all_codes_decode(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 65536; c++) {
        expect_code(f16_to_f32((uint16_t)c), define(c, 5, 10, true), c, 0x8000);
        expect_code(bf16_to_f32((uint16_t)c), define(c, 8, 7, true), c, 0x8000);
    }
    for (unsigned c = 0; c < 256; c++) {
        expect_code(f8_e4m3_to_f32((uint8_t)c), define(c, 4, 3, false), c, 0x80);
        expect_code(f8_e5m2_to_f32((uint8_t)c), define(c, 5, 2, true), c, 0x80);
    }
    assert_true(f8_e4m3_to_f32(0x7e) == 448.0f); /* the largest, by OCP's table */
    assert_true(f8_e5m2_to_f32(0x7b) == 57344.0f);
    assert_true(f16_to_f32(0x7bff) == 65504.0f);
}

static void codes_survive_a_round_trip(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 65536; c++) {
        float h = f16_to_f32((uint16_t)c), b = bf16_to_f32((uint16_t)c);
        unsigned back = f32_to_f16(h), back_b = f32_to_bf16(b);
        if (isnan(h))
            assert_int_equal(back, c | 0x200); /* payload kept, quiet */
        else
            assert_int_equal(back, c);
        assert_int_equal(back_b, isnan(b) ? (c | 0x40) : c);
    }
}

struct format {
    const char *name;
    uint16_t (*encode)(float);
    double (*value)(unsigned code); /* of a code without sign */
    unsigned inf;                   /* the code of infinity */
    double limit;                   /* the largest number plus half a unit: rounds to infinity */
};

static double f16_value(unsigned code)
{
    return define(code, 5, 10, true);
}

static double bf16_value(unsigned code)
{
    return define(code, 8, 7, true);
}

static double e4m3_value(unsigned code)
{
    return define(code, 4, 3, false);
}

static double e5m2_value(unsigned code)
{
    return define(code, 5, 2, true);
}

/* Codes of the 8-bit formats with their sign where the 16-bit ones have it. */
static uint16_t e4m3_encode(float x)
{
    uint8_t c = f32_to_f8_e4m3(x);
    return (uint16_t)((c & 0x80) << 8 | (c & 0x7f));
}

static uint16_t e5m2_encode(float x)
{
    uint8_t c = f32_to_f8_e5m2(x);
    return (uint16_t)((c & 0x80) << 8 | (c & 0x7f));
}

/* e4m3fn has NaN where the others have infinity; 464, halfway to what would be 480, still rounds
 * to the even 448. */
static const struct format formats[] = {
    {"f16", f32_to_f16, f16_value, 0x7c00, 65520},
    {"bf16", f32_to_bf16, bf16_value, 0x7f80, 0x1.ffp127},
    {"e4m3", e4m3_encode, e4m3_value, 0x7f, 0x1.d000001p8},
    {"e5m2", e5m2_encode, e5m2_value, 0x7c, 61440},
};

/* The code nearest to |x| by exact comparison in double, which holds both neighbours, x and their
 * midpoint without rounding; at a tie the even code. */
static unsigned nearest(const struct format *f, double x)
{
    unsigned low = 0, high = f->inf - 1;

    if (x >= f->limit)
        return f->inf;
    while (low < high) { /* the last code that is not above x */
        unsigned mid = (low + high + 1) / 2;
        if (f->value(mid) <= x)
            low = mid;
        else
            high = mid - 1;
    }
    if (low == f->inf - 1)
        return low;
    double below = x - f->value(low), above = f->value(low + 1) - x;
    if (below != above)
        return below < above ? low : low + 1;
    return low & 1 ? low + 1 : low;
}

static void expect_rounding(const struct format *f, float x)
{
    for (int s = 0; s < 2; s++, x = -x) {
        unsigned want = nearest(f, fabs((double)x)) | (signbit(x) ? 0x8000u : 0);
        unsigned got = f->encode(x);
        if (got != want)
            fail_msg("%s of %a is 0x%04x, expected 0x%04x", f->name, (double)x, got, want);
    }
}

/* Around each code: itself, the tie above it, and the floats on both sides of the tie. */
static void ties_go_to_even(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof formats / sizeof *formats; k++) {
        const struct format *f = &formats[k];
        for (unsigned c = 0; c + 1 < f->inf; c++) {
            float tie = (float)((f->value(c) + f->value(c + 1)) / 2);
            assert_true((double)tie == (f->value(c) + f->value(c + 1)) / 2);
            expect_rounding(f, tie);
            expect_rounding(f, nextafterf(tie, 0));
            expect_rounding(f, nextafterf(tie, INFINITY));
            assert_int_equal(f->encode(tie), c & 1 ? c + 1 : c);
        }
    }
}

static void all_magnitudes_round(void **state)
{
    uint32_t u = 1;

    (void)state;
    for (int i = 0; i < 300000; i++) { /* bits at random: every exponent alike */
        u = u * 1664525u + 1013904223u;
        float x = from_bits((u ^ u >> 15) & 0x7fffffff);
        if (isnan(x))
            continue;
        for (size_t k = 0; k < sizeof formats / sizeof *formats; k++)
            expect_rounding(&formats[k], x);
    }
}

static void the_ends_of_the_range(void **state)
{
    (void)state;
    assert_int_equal(f32_to_f16(65504), 0x7bff);
    assert_int_equal(f32_to_f16(nextafterf(65520, 0)), 0x7bff);
    assert_int_equal(f32_to_f16(65520), 0x7c00);
    assert_int_equal(f32_to_f16(-65520), 0xfc00);
    assert_int_equal(f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(f32_to_f16(0x1p-24f), 1);
    assert_int_equal(f32_to_f16(0x1p-25f), 0); /* a tie with zero: even */
    assert_int_equal(f32_to_f16(nextafterf(0x1p-25f, 1)), 1);
    assert_int_equal(f32_to_f16(0x1p-149f), 0);
    assert_int_equal(f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(f32_to_f16(nextafterf(0x1p-14f, 0)), 0x0400); /* rounds up into the normals */
    assert_int_equal(f32_to_bf16(from_bits(0x7f7fffff)), 0x7f80);
    assert_int_equal(f32_to_bf16(-INFINITY), 0xff80);
    assert_int_equal(f32_to_bf16(from_bits(1)), 0);
    assert_int_equal(f32_to_bf16(from_bits(0x8001)), 1);
}

static void nan_stays_nan(void **state)
{
    static const uint32_t nans[] = {0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffffffff,
                                    0x7f80ffff, 0x7f9fffff};

    (void)state;
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++) {
        float x = from_bits(nans[i]);
        uint16_t h = f32_to_f16(x), b = f32_to_bf16(x);
        assert_true(isnan(f8_e4m3_to_f32(f32_to_f8_e4m3(x))));
        assert_true(isnan(f8_e5m2_to_f32(f32_to_f8_e5m2(x))));
        assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0);
        assert_true((b & 0x7f80) == 0x7f80 && (b & 0x7f) != 0);
        assert_int_equal(h >> 15, bits(x) >> 31);
        assert_int_equal(b >> 15, bits(x) >> 31);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_codes_decode),
        cmocka_unit_test(codes_survive_a_round_trip),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(all_magnitudes_round),
        cmocka_unit_test(the_ends_of_the_range),
        cmocka_unit_test(nan_stays_nan),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
