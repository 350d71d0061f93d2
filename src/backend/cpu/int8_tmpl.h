/* SPDX-License-Identifier: MIT
 * Integer products, for vectors of VL numbers. Before it: int8.h, simd.h, INT8_TILE, X_MOST,
 * W_MOST, int8_bytes(): the low bytes of 4 vectors, and int8_step(): s[r][j] += 8 input channels of
 * `rows` activations times vector j of a panel's columns. */

enum { PANEL = 2 * VL, STRIP = 4 * VL };

/* v with lane i + w, round about, in lane i. */
INLINE vf turned(vf v, int w)
{
    vi from;

#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
        from[i] = (i + w) % VL;
    return __builtin_shuffle(v, from);
}

INLINE float top_of(vf v)
{
#pragma GCC unroll 4
    for (int w = VL / 2; w > 0; w /= 2)
        v = VMAX(v, turned(v, w));
    return v[0];
}

INLINE float sum_of(vf v)
{
#pragma GCC unroll 4
    for (int w = VL / 2; w > 0; w /= 2)
        v = v + turned(v, w);
    return v[0];
}

/* dst[i] = the whole number nearest to x[i] inv + zero in low .. high, as a byte: 1.5 2^23 is
 * added, and leaves it in the low bits. Adds them to sum. */
INLINE void to_bytes(const float *x, float inv, float zero, float low, float high, uint8_t *dst,
                     vi *sum)
{
    vi v[4];

#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        vf t = vload(x + j * VL) * vset(inv) + vset(zero);
        v[j] = (vi)(VMIN(VMAX(t, vset(low)), vset(high)) + 12582912.0f);
        *sum += v[j] - 0x4b400000;
    }
    int8_bytes(dst, v);
}

/* Ones where v is infinite or no number. */
INLINE vi odd_of(vf v)
{
    return ((vi)v & 0x7fffffff) > 0x7f7fffff;
}

/* The range of x[n], zero included. */
INLINE void range_of(const float *x, int64_t n, float *most, float *lo, float *hi, vi *odd)
{
    vf low = {0}, high = {0};
    int64_t i = 0;

    for (; i + VL <= n; i += VL) {
        vf v = vload(x + i);
        low = VMIN(low, v);
        high = VMAX(high, v);
        *odd |= odd_of(v);
        vstore(most + i, VMAX(vload(most + i), VMAX(v, -v)));
    }
    if (i < n) {
        vf v = vload_n(x + i, n - i);
        low = VMIN(low, v);
        high = VMAX(high, v);
        *odd |= odd_of(v);
        vstore_n(most + i, VMAX(vload_n(most + i, n - i), VMAX(v, -v)), n - i);
    }
    *lo = -top_of(-low);
    *hi = top_of(high);
}

/* One group by its range. */
INLINE void quantise_group(const float *x, int64_t n, struct int8_range r, uint8_t *q)
{
    uint8_t bytes[STRIP];
    float last[STRIP];
    vi sum = {0};
    int64_t i = 0;

    for (; i + STRIP <= n; i += STRIP)
        to_bytes(x + i, r.inv, r.zero, 0, X_MOST, q + i, &sum);
    if (i == n)
        return;
    memset(last, 0, sizeof last);
    memcpy(last, x + i, (size_t)(n - i) * sizeof *last);
    to_bytes(last, r.inv, r.zero, 0, X_MOST, bytes, &sum);
    memcpy(q + i, bytes, (size_t)(n - i));
}

/* All ranges first: each is a chain of steps that wait for one another, and chains of several
 * groups run side by side. */
static void int8_quantise(const float *x, int64_t k, float *most, void *q, float *scale,
                          float *zero)
{
    struct int8_range r[INT8_DEPTH / INT8_GROUP];
    vi odd = {0};

    for (int64_t g = 0; g * INT8_GROUP < k; g++) {
        int64_t at = g * INT8_GROUP, n = k - at < INT8_GROUP ? k - at : INT8_GROUP;
        float lo, hi;
        range_of(x + at, n, most + at, &lo, &hi, &odd);
        r[g] = int8_range_of(lo, hi, X_MOST);
        scale[g] = r[g].scale;
        zero[g] = -r[g].zero;
    }
    for (int64_t g = 0; g * INT8_GROUP < k; g++) {
        int64_t at = g * INT8_GROUP, n = k - at < INT8_GROUP ? k - at : INT8_GROUP;
        quantise_group(x + at, n, r[g], (uint8_t *)q + at);
    }
    for (int i = 0; i < VL; i++)
        if (odd[i] != 0)
            scale[0] = NAN;
}

/* n numbers of a row of a weight, a group of it, to a panel. Returns s times their sum. */
INLINE float pack_group(const float *w, int64_t n, int8_t *q, float *scale)
{
    float most = 0, last[STRIP];
    vf top = {0};
    int64_t i = 0;
    vi sum = {0};
    uint8_t bytes[STRIP];

    for (; i + VL <= n; i += VL)
        top = VMAX(top, VMAX(vload(w + i), -vload(w + i)));
    most = top_of(top);
    for (; i < n; i++)
        most = w[i] > most ? w[i] : -w[i] > most ? -w[i] : most;
    float inv = most > 1e-30f ? W_MOST / most : 0;
    *scale = most / W_MOST;
    for (i = 0; i < n; i += STRIP) {
        const float *from = w + i;
        int64_t m = n - i < STRIP ? n - i : STRIP;
        if (m < STRIP) {
            memset(last, 0, sizeof last);
            memcpy(last, from, (size_t)m * sizeof *last);
            from = last;
        }
        to_bytes(from, inv, 0, -(float)W_MOST, W_MOST, bytes, &sum);
        for (int64_t j = 0; j < int8_depth(m); j += 4)
            memcpy(q + (i + j) * PANEL, bytes + j, 4);
    }
    return *scale * sum_of(__builtin_convertvector(sum, vf)); /* exact: under 2^24 */
}

static void int8_pack(const float *w, int64_t n, int64_t k, int64_t ld, void *q, float *scale,
                      float *sum)
{
    for (int64_t g = 0; g * INT8_GROUP < k; g++, scale += PANEL, sum += PANEL) {
        int64_t at = g * INT8_GROUP, m = k - at < INT8_GROUP ? k - at : INT8_GROUP;
        for (int64_t r = 0; r < n; r++)
            sum[r] = pack_group(w + r * ld + at, m, (int8_t *)q + at * PANEL + 4 * r, &scale[r]);
        for (int64_t r = n; r < PANEL; r++)
            scale[r] = sum[r] = 0;
    }
}

/* One group of `depth` channels: y += s_r (s_o (sum of q v) - z_r (s_o sum of v)). Of the matrices
 * by group, the numbers of this one; those of activations `groups` apart. */
INLINE void int8_group(const int rows, const uint8_t *x, int64_t ldx, const int8_t *w,
                       int64_t depth, const float *w_scale, const float *w_sum,
                       const float *x_scale, const float *x_zero, int64_t groups,
                       float *restrict y, int64_t ldy)
{
    vi s[INT8_TILE][2];

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        s[r][0] = s[r][1] = (vi){0};
    for (int64_t p = 0; p < depth; p += 8)
        int8_step(s, rows, x + p, ldx, w + p * PANEL);
    vf scale0 = vload(w_scale), scale1 = vload(w_scale + VL);
    vf sum0 = vload(w_sum), sum1 = vload(w_sum + VL);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++, y += ldy) {
        vf zero = vset(x_zero[r * groups]), scale = vset(x_scale[r * groups]);
        vf a = VFMA(sum0, zero, __builtin_convertvector(s[r][0], vf) * scale0);
        vf b = VFMA(sum1, zero, __builtin_convertvector(s[r][1], vf) * scale1);
        vstore(y, VFMA(a, scale, vload(y)));
        vstore(y + VL, VFMA(b, scale, vload(y + VL)));
    }
}

INLINE void int8_rows(const int rows, const struct int8_tile *t, int64_t at)
{
    const struct int8_tile c = *t; /* y may not lie in it */
    const float *x_scale = c.x_scale + at * c.groups, *x_zero = c.x_zero + at * c.groups;
    float *y = c.y + at * c.ldy;

    for (int r = 0; r < rows; r++) {
        vstore(y + r * c.ldy, (vf){0});
        vstore(y + r * c.ldy + VL, (vf){0});
    }
    for (int64_t g = 0; g < c.groups; g++) {
        int64_t first = g * INT8_GROUP, left = c.depth - first;
        int8_group(rows, (const uint8_t *)c.x + at * c.depth + first, c.depth,
                   (const int8_t *)c.w + first * PANEL,
                   left < INT8_GROUP ? left : INT8_GROUP, c.w_scale + g * PANEL,
                   c.w_sum + g * PANEL, x_scale + g, x_zero + g, c.groups, y, c.ldy);
    }
}

static void int8_product(const struct int8_tile *t)
{
    int64_t at = 0;

    for (; at + INT8_TILE <= t->rows; at += INT8_TILE)
        int8_rows(INT8_TILE, t, at);
#if INT8_TILE > 8
    for (; at + 8 <= t->rows; at += 8)
        int8_rows(8, t, at);
#endif
    for (; at + 4 <= t->rows; at += 4)
        int8_rows(4, t, at);
    for (; at + 2 <= t->rows; at += 2)
        int8_rows(2, t, at);
    if (at < t->rows)
        int8_rows(1, t, at);
}

#define INT8_TABLE(level)                                                                  \
    const struct int8_kernels int8_kernels_##level = {                                     \
        .name = #level, .x_most = X_MOST, .w_most = W_MOST, .panel = PANEL,                \
        .eight = {1, PANEL, INT8_TILE, int8_quantise, int8_pack, int8_product},            \
        .sixteen = {2, PANEL, PAIRS_TILE, linear16_quantise, linear16_pack,                \
                    linear16_product},                                                     \
        .attention_pack = attention16_pack, .attention = attention16,                      \
        .wino = {wino16_input, wino16_weights, wino16_product, wino16_output},             \
    }
