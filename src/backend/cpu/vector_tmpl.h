/* SPDX-License-Identifier: MIT
 * Kernels along one row, for vectors of VL floats. Each takes the tail of a row as one short
 * vector, so that a number comes out the same wherever it stands. */

static void k_axpy(float *y, const float *x, float a, int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        vstore(y + i, VFMA(vload(x + i), vset(a), vload(y + i)));
    if (i < n)
        vstore_n(y + i, VFMA(vload_n(x + i, n - i), vset(a), vload_n(y + i, n - i)), n - i);
}

static void k_axpy_mul(float *y, const float *x, const float *z, float a, int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        vstore(y + i, VFMA(vload(x + i) * a, vload(z + i), vload(y + i)));
    if (i < n) {
        vf s = VFMA(vload_n(x + i, n - i) * a, vload_n(z + i, n - i), vload_n(y + i, n - i));
        vstore_n(y + i, s, n - i);
    }
}

static float k_dot(const float *x, const float *y, int64_t n)
{
    vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int64_t i = 0;

    for (; i + 4 * VL <= n; i += 4 * VL) {
        s0 = VFMA(vload(x + i), vload(y + i), s0);
        s1 = VFMA(vload(x + i + VL), vload(y + i + VL), s1);
        s2 = VFMA(vload(x + i + 2 * VL), vload(y + i + 2 * VL), s2);
        s3 = VFMA(vload(x + i + 3 * VL), vload(y + i + 3 * VL), s3);
    }
    for (; i + VL <= n; i += VL)
        s0 = VFMA(vload(x + i), vload(y + i), s0);
    if (i < n)
        s1 = VFMA(vload_n(x + i, n - i), vload_n(y + i, n - i), s1);
    return vsum((s0 + s1) + (s2 + s3));
}

/* `act` is a constant in each call, so that each gets a loop of its own. */
INLINE void finish_with(float *y, const float *x, const float *bias, const float *vec,
                        const float *res, enum gr_act act, int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL) {
        vf s = vload(x + i);
        if (bias)
            s += vload(bias + i);
        s = vact(act, s);
        if (vec)
            s += vload(vec + i);
        if (res)
            s += vload(res + i);
        vstore(y + i, s);
    }
    if (i < n) {
        vf s = vload_n(x + i, n - i);
        if (bias)
            s += vload_n(bias + i, n - i);
        s = vact(act, s);
        if (vec)
            s += vload_n(vec + i, n - i);
        if (res)
            s += vload_n(res + i, n - i);
        vstore_n(y + i, s, n - i);
    }
}

static void k_finish(float *y, const float *x, const float *bias, const float *vec,
                     const float *res, enum gr_act act, int64_t n)
{
    switch (act) {
    case ACT_SILU:
        finish_with(y, x, bias, vec, res, ACT_SILU, n);
        break;
    case ACT_GELU:
        finish_with(y, x, bias, vec, res, ACT_GELU, n);
        break;
    case ACT_QUICK_GELU:
        finish_with(y, x, bias, vec, res, ACT_QUICK_GELU, n);
        break;
    case ACT_NONE:
        finish_with(y, x, bias, vec, res, ACT_NONE, n);
        break;
    }
}

static void k_geglu(float *y, const float *x, const float *bx, const float *gate, const float *bg,
                    int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        vstore(y + i, (vload(x + i) + vload(bx + i)) * vgelu(vload(gate + i) + vload(bg + i)));
    if (i < n) {
        vf v = vload_n(x + i, n - i) + vload_n(bx + i, n - i);
        vf g = vload_n(gate + i, n - i) + vload_n(bg + i, n - i);
        vstore_n(y + i, v * vgelu(g), n - i);
    }
}

INLINE vf sum_term(vf s, vf x, const vf *mean)
{
    return mean ? VFMA(x - *mean, x - *mean, s) : s + x;
}

/* Columns [at, at + VL) or fewer, all rows: the sum stays in a register. */
INLINE void column_sum(const float *x, int64_t rows, int64_t ld, int64_t n, const float *mean,
                       float *sum)
{
    vf s0 = {0}, s1 = {0}, m = {0};
    int64_t r = 0;

    if (mean)
        m = n == VL ? vload(mean) : vload_n(mean, n);
    for (; r + 2 <= rows; r += 2) {
        const float *p = x + r * ld, *q = p + ld;
        s0 = sum_term(s0, n == VL ? vload(p) : vload_n(p, n), mean ? &m : NULL);
        s1 = sum_term(s1, n == VL ? vload(q) : vload_n(q, n), mean ? &m : NULL);
    }
    if (r < rows)
        s0 = sum_term(s0, n == VL ? vload(x + r * ld) : vload_n(x + r * ld, n), mean ? &m : NULL);
    if (n == VL)
        vstore(sum, vload(sum) + (s0 + s1));
    else
        vstore_n(sum, vload_n(sum, n) + (s0 + s1), n);
}

static void k_column_sums(const float *x, int64_t rows, int64_t ld, int64_t n, const float *mean,
                          float *sum)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        column_sum(x + i, rows, ld, VL, mean ? mean + i : NULL, sum + i);
    if (i < n)
        column_sum(x + i, rows, ld, n - i, mean ? mean + i : NULL, sum + i);
}

INLINE void normalise_with(float *y, const float *x, const float *mean, const float *scale,
                           const float *shift, enum gr_act act, int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL) {
        vf v = VFMA(vload(x + i) - vload(mean + i), vload(scale + i), vload(shift + i));
        vstore(y + i, vact(act, v));
    }
    if (i < n) {
        int64_t m = n - i;
        vf v = vload_n(x + i, m) - vload_n(mean + i, m);
        v = VFMA(v, vload_n(scale + i, m), vload_n(shift + i, m));
        vstore_n(y + i, vact(act, v), m);
    }
}

static void k_normalise(float *y, const float *x, const float *mean, const float *scale,
                        const float *shift, enum gr_act act, int64_t n)
{
    switch (act) {
    case ACT_SILU:
        normalise_with(y, x, mean, scale, shift, ACT_SILU, n);
        break;
    case ACT_GELU:
        normalise_with(y, x, mean, scale, shift, ACT_GELU, n);
        break;
    case ACT_QUICK_GELU:
        normalise_with(y, x, mean, scale, shift, ACT_QUICK_GELU, n);
        break;
    case ACT_NONE:
        normalise_with(y, x, mean, scale, shift, ACT_NONE, n);
        break;
    }
}

/* Sum of x, or of (x - mean)^2, in double across chunks of 256: the row is short, its sum not. */
INLINE double row_sum(const float *x, int64_t n, const float *mean)
{
    vf m = mean ? vset(*mean) : (vf){0};
    double total = 0;

    for (int64_t at = 0; at < n; at += 256) {
        int64_t end = at + 256 < n ? at + 256 : n, i = at;
        vf s = {0};
        for (; i + VL <= end; i += VL)
            s = sum_term(s, vload(x + i), mean ? &m : NULL);
        total += (double)vsum(s);
        for (; i < end; i++)
            total += mean ? (double)(x[i] - *mean) * (x[i] - *mean) : (double)x[i];
    }
    return total;
}

static void k_layer_norm(float *y, const float *x, const float *w, const float *b, float eps,
                         int64_t n)
{
    float mean = (float)(row_sum(x, n, NULL) / (double)n);
    double var = row_sum(x, n, &mean) / (double)n;
    float inv = (float)(1 / sqrt(var + (double)eps));
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        vstore(y + i, VFMA((vload(x + i) - mean) * inv, vload(w + i), vload(b + i)));
    if (i < n) {
        vf v = (vload_n(x + i, n - i) - mean) * inv;
        vstore_n(y + i, VFMA(v, vload_n(w + i, n - i), vload_n(b + i, n - i)), n - i);
    }
}
