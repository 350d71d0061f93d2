/* SPDX-License-Identifier: MIT
 * Rows of linear layers in whole numbers of 16 bits: of a group of INT8_GROUP inputs at most
 * ROW_MOST either side, so that its products add up in 32 bits. After attention16_tmpl.h. */

enum { ROW_MOST = 4095 };

static void linear16_quantise(const float *x, int64_t k, float *most, void *q, float *scale,
                              float *zero)
{
    int16_t last[INT8_GROUP];
    bool odd = false;

    (void)most; /* no outliers: 12 bits leave the others enough */
    for (int64_t g = 0, at = 0; at < k; g++, at += INT8_GROUP) {
        int64_t n = k - at < INT8_GROUP ? k - at : INT8_GROUP, whole = n / (2 * VL) * (2 * VL);
        int16_t *to = (int16_t *)q + at;
        scale[g] = quantise_row16(x + at, n, ROW_MOST, whole == n ? to : last);
        zero[g] = 0;
        odd = odd || !(scale[g] < INFINITY);
        if (whole != n)
            memcpy(to, last, (size_t)int8_depth(n) * sizeof *to);
    }
    if (odd)
        scale[0] = NAN;
}

static void linear16_pack(const float *w, int64_t n, int64_t k, int64_t ld, void *q, float *scale,
                          float *sum)
{
    int32_t pairs[INT8_GROUP / 2], *to = q;

    for (int64_t at = 0; at < k; at += INT8_GROUP, scale += PANEL, sum += PANEL) {
        int64_t m = k - at < INT8_GROUP ? k - at : INT8_GROUP;
        for (int64_t r = 0; r < PANEL; r++) {
            sum[r] = scale[r] = 0;
            if (r >= n)
                continue;
            scale[r] = quantise_row16(w + r * ld + at, m, ROW_MOST, (int16_t *)(void *)pairs);
            for (int64_t p = 0; p < int8_depth(m) / 2; p++)
                to[p * PANEL + r] = pairs[p];
        }
        to += int8_depth(m) / 2 * PANEL;
    }
}

/* Whole tiles of rows are multiplied, those that exist stored. */
INLINE void linear16_rows(const struct int8_tile *t, int64_t at)
{
    const struct int8_tile c = *t; /* y may not lie in it */
    int64_t n = c.rows - at < PAIRS_TILE ? c.rows - at : PAIRS_TILE;
    vi s[PAIRS_TILE][2];

    for (int64_t g = 0; g < c.groups; g++) {
        int64_t first = g * INT8_GROUP, left = c.depth - first;
        tile16(2, (left < INT8_GROUP ? left : INT8_GROUP) / 2,
               (const int16_t *)c.x + at * c.depth + first, c.depth,
               (const int32_t *)c.w + first / 2 * PANEL, PANEL, s);
        vf w0 = vload(c.w_scale + g * PANEL), w1 = vload(c.w_scale + g * PANEL + VL);
#pragma GCC unroll 16
        for (int i = 0; i < PAIRS_TILE; i++) {
            float *y = c.y + (at + i) * c.ldy;
            if (i >= n)
                break;
            vf by = vset(c.x_scale[(at + i) * c.groups + g]);
            vf a = VFLOATS(s[i][0]) * (w0 * by), b = VFLOATS(s[i][1]) * (w1 * by);
            vstore(y, g > 0 ? a + vload(y) : a);
            vstore(y + VL, g > 0 ? b + vload(y + VL) : b);
        }
    }
}

static void linear16_product(const struct int8_tile *t)
{
    for (int64_t at = 0; at < t->rows; at += PAIRS_TILE)
        linear16_rows(t, at);
}
