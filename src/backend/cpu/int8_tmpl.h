/* SPDX-License-Identifier: MIT
 * Integer products, for vectors of VL numbers. Before it: simd.h, INT8_TILE, X_MOST, W_MOST, and
 * int8_step(): s[r][j] += 8 input channels of `rows` activations times panel column vector j. */

enum { PANEL = 2 * VL };

typedef uint8_t bytes_vl __attribute__((vector_size(VL)));

static double int8_extent(const float *x, int64_t n, float *most, float *lo, float *hi)
{
    vf low = {0}, high = {0};
    double total = 0;
    int64_t i = 0;

    for (int64_t at = 0; at < n; at += 1024) {
        int64_t end = n - at < 1024 ? n : at + 1024;
        vf s = {0};
        for (; i + VL <= end; i += VL) {
            vf v = vload(x + i);
            low = VMIN(low, v);
            high = VMAX(high, v);
            vstore(most + i, VMAX(vload(most + i), VMAX(v, -v)));
            s = VFMA(v, v, s);
        }
        if (i < end) {
            vf v = vload_n(x + i, end - i);
            low = VMIN(low, v);
            high = VMAX(high, v);
            vstore_n(most + i, VMAX(vload_n(most + i, end - i), VMAX(v, -v)), end - i);
            s = VFMA(v, v, s);
        }
        total += (double)vsum(s);
    }
    *lo = -vtop(-low);
    *hi = vtop(high);
    return total;
}

/* Whole numbers in the low bits: 1.5 2^23 is added, and takes the rest. */
INLINE vf to_whole(vf v, float most)
{
    return VMIN(VMAX(v, vset(0)), vset(most)) + 12582912.0f;
}

static void int8_quantise(const float *x, int64_t n, float inv, float zero, uint8_t *q)
{
    vf a = vset(inv), z = vset(zero);
    int64_t i = 0;

    for (; i + VL <= n; i += VL) {
        vi v = (vi)to_whole(vload(x + i) * a + z, X_MOST);
        bytes_vl b = __builtin_convertvector(v, bytes_vl);
        memcpy(q + i, &b, sizeof b);
    }
    if (i < n) {
        vi v = (vi)to_whole(vload_n(x + i, n - i) * a + z, X_MOST);
        bytes_vl b = __builtin_convertvector(v, bytes_vl);
        memcpy(q + i, &b, (size_t)(n - i));
    }
}

/* q: where the row's first four numbers go. Returns their sum. */
static int32_t pack_row(const float *w, int64_t k, float inv, int8_t *q)
{
    int32_t sum = 0;

    for (int64_t i = 0; i < int8_depth(k); i += VL) {
        int64_t m = k - i < VL ? k - i : VL;
        vf x = m == VL ? vload(w + i) : vload_n(w + i, m);
        vf v = VMIN(VMAX(x * inv, vset(-(float)W_MOST)), vset(W_MOST)) + 12582912.0f;
        bytes_vl b = __builtin_convertvector((vi)v, bytes_vl);
        int8_t part[VL];
        memcpy(part, &b, sizeof b);
        for (int j = 0; j < VL; j++)
            sum += part[j];
        for (int64_t j = 0; j < VL && i + j < int8_depth(k); j += 4)
            memcpy(q + (i + j) * PANEL, part + j, 4);
    }
    return sum;
}

static void int8_pack(const float *w, int64_t n, int64_t k, int64_t ld, int8_t *q, float *scale,
                      int32_t *sum)
{
    for (int64_t r = n; r < PANEL; r++) {
        scale[r] = 0;
        sum[r] = 0;
    }
    for (int64_t r = 0; r < n; r++) {
        const float *row = w + r * ld;
        vf top = {0};
        int64_t i = 0;
        for (; i + VL <= k; i += VL)
            top = VMAX(top, VMAX(vload(row + i), -vload(row + i)));
        if (i < k) {
            vf v = vload_n(row + i, k - i);
            top = VMAX(top, VMAX(v, -v));
        }
        float most = vtop(top);
        scale[r] = most / W_MOST;
        sum[r] = pack_row(row, k, most > 0 ? W_MOST / most : 0, q + 4 * r);
    }
}

INLINE void int8_rows(const int rows, const struct int8_tile *t, int64_t at)
{
    const uint8_t *x = t->x + at * t->ldx;
    vi s[INT8_TILE][2], sum[2];
    vf scale[2];

#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        s[r][0] = s[r][1] = (vi){0};
    for (int64_t p = 0; p < t->k; p += 8)
        int8_step(s, rows, x + p, t->ldx, t->w + p * PANEL);
    memcpy(sum, t->w_sum, sizeof sum);
    memcpy(scale, t->w_scale, sizeof scale);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            vi v = s[r][j] - sum[j] * t->x_zero[at + r];
            vf y = __builtin_convertvector(v, vf) * (scale[j] * t->x_scale[at + r]);
            vstore(t->y + (at + r) * t->ldy + j * VL, y);
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
        .name = #level, .x_most = X_MOST, .w_most = W_MOST, .panel = PANEL, .tile = INT8_TILE, \
        .extent = int8_extent, .quantise = int8_quantise, .pack = int8_pack,               \
        .product = int8_product,                                                           \
    }
