/* SPDX-License-Identifier: MIT
 * Transforms of F(4x4, 3x3): 16 pixels of a 3x3 convolution by 36 products instead of 144 (Lavin
 * and Gray 2015), for vectors of VL channels. The polynomials are evaluated at 0, +-a, +-2a and
 * infinity with a = 3/4: of these sets it rounds least, to six times the error of plain sums and
 * half of that with the usual a = 1. A set of 36 numbers lies in 36 places `step` floats apart.
 *
 * For whole numbers, `whole`, each row of B' and G is divided by the sum of its sizes, so that what
 * is transformed has no larger sums of squares than its largest part; A' makes up for both. */

#define A1 0.75f
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define A4 (A2 * A2)
/* Sums of sizes: rows 0 and 5, 1 and 2, 3 and 4. */
#define B0 (4 * A4 + 5 * A2 + 1)
#define B1 (1 + 4 * A2 + 4 * A3 + A1)
#define B3 (1 + A2 + 2 * A3 + 2 * A1)
#define G0 (1 / (4 * A4))
#define G1 (1 / (6 * A2) + 1 / (6 * A4) + 1 / (6 * A3))
#define G3 (1 / (6 * A2) + 1 / (24 * A4) + 1 / (12 * A3))

/* to = B' d, 6 numbers from 6. */
INLINE void wino_in6(const bool whole, const vf *d, int64_t s, vf *to, int64_t t)
{
    const float p = whole ? 1 / B0 : 1, q = whole ? 1 / B1 : 1, r = whole ? 1 / B3 : 1;
    vf e = VFMA(d[2 * s], vset(-4 * A2 * q), d[4 * s] * q);
    vf f = VFMA(d[s], vset(-4 * A3 * q), d[3 * s] * (A1 * q));
    vf g = VFMA(d[2 * s], vset(-A2 * r), d[4 * s] * r);
    vf h = VFMA(d[s], vset(-2 * A3 * r), d[3 * s] * (2 * A1 * r));

    to[0] = VFMA(d[0], vset(4 * A4 * p), VFMA(d[2 * s], vset(-5 * A2 * p), d[4 * s] * p));
    to[t] = e + f;
    to[2 * t] = e - f;
    to[3 * t] = g + h;
    to[4 * t] = g - h;
    to[5 * t] = VFMA(d[s], vset(4 * A4 * p), VFMA(d[3 * s], vset(-5 * A2 * p), d[5 * s] * p));
}

/* to = G w, 6 numbers from 3. */
INLINE void wino_weight6(const bool whole, const vf *w, int64_t s, vf *to, int64_t t)
{
    const float p = whole ? 1 / G0 : 1, q = whole ? 1 / G1 : 1, r = whole ? 1 / G3 : 1;
    vf even1 = VFMA(w[2 * s], vset(-q / (6 * A2)), w[0] * (-q / (6 * A4)));
    vf even2 = VFMA(w[2 * s], vset(r / (6 * A2)), w[0] * (r / (24 * A4)));
    vf odd1 = w[s] * (-q / (6 * A3)), odd2 = w[s] * (r / (12 * A3));

    to[0] = w[0] * (G0 * p);
    to[t] = even1 + odd1;
    to[2 * t] = even1 - odd1;
    to[3 * t] = even2 + odd2;
    to[4 * t] = even2 - odd2;
    to[5 * t] = w[2 * s];
}

/* to = A' m, 4 numbers from 6. */
INLINE void wino_out4(const bool whole, const vf *m, int64_t s, vf *to, int64_t t)
{
    const float q = whole ? B1 * G1 : 1, r = whole ? B3 * G3 : 1;
    vf s1 = m[s] + m[2 * s], d1 = m[s] - m[2 * s];
    vf s2 = m[3 * s] + m[4 * s], d2 = m[3 * s] - m[4 * s];

    to[0] = whole ? VFMA(m[0], vset(B0 * G0), VFMA(s1, vset(q), s2 * r)) : m[0] + (s1 + s2);
    to[t] = VFMA(d2, vset(2 * A1 * r), d1 * (A1 * q));
    to[2 * t] = VFMA(s2, vset(4 * A2 * r), s1 * (A2 * q));
    to[3 * t] = VFMA(d2, vset(8 * A3 * r), VFMA(d1, vset(A3 * q), m[5 * s] * (whole ? B0 : 1)));
}

#undef A1
#undef A2
#undef A3
#undef A4
#undef B0
#undef B1
#undef B3
#undef G0
#undef G1
#undef G3

/* to = B' of n channels of 6x6 pixels. */
INLINE void wino_input_vector(const bool whole, const float *const *px, int64_t at, int64_t n,
                              vf *to)
{
    vf d[36];

#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
        vf column[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            column[i] = load_part(px[i * 6 + j] + at, n);
        wino_in6(whole, column, 1, d + j, 6);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++)
        wino_in6(whole, d + i * 6, 1, to + i * 6, 1);
}

/* to = G of one input's 3x3 weights of a vector of channels, `step` floats apart. */
INLINE void wino_weight_vector(const bool whole, const float *w, int64_t step, vf *to)
{
    vf g[9], d[18];

#pragma GCC unroll 9
    for (int t = 0; t < 9; t++)
        g[t] = vload(w + t * step);
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++)
        wino_weight6(whole, g + j, 3, d + j, 3);
#pragma GCC unroll 6
    for (int r = 0; r < 6; r++)
        wino_weight6(whole, d + r * 3, 1, to + r * 6, 1);
}

/* One vector of channels of one tile. */
INLINE void wino_output_vector(const bool whole, const struct wino_tile *t, int64_t at, int64_t n)
{
    vf d[24], e[4], add = {0};

#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
        vf m[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            m[i] = vload(t->m + (i * 6 + j) * t->step + at);
        wino_out4(whole, m, 1, d + j, 6);
    }
    if (t->bias != NULL)
        add += load_part(t->bias + at, n);
    if (t->vec != NULL)
        add += load_part(t->vec + at, n);
    for (int64_t i = 0; i < t->rows; i++) {
        wino_out4(whole, d + i * 6, 1, e, 1);
        for (int64_t j = 0; j < t->cols; j++) {
            int64_t place = i * t->ld_row + j * t->ld_px + at;
            vf y = e[j] + add;
            if (t->res != NULL)
                y += load_part(t->res + place, n);
            store_part(t->y + place, y, n);
        }
    }
}

INLINE void wino_output(const bool whole, const struct wino_tile *t, int64_t n)
{
    int64_t at = 0;

    for (; at + VL <= n; at += VL)
        wino_output_vector(whole, t, at, VL);
    if (at < n)
        wino_output_vector(whole, t, at, n - at);
}
