/* SPDX-License-Identifier: MIT
 * Attention in whole numbers of 16 bits, as attention_tmpl.h but for what is multiplied: queries
 * and keys, each row with a scale of its own, values, each column of a block with one, and
 * probabilities in steps of 1 / P_MOST of the largest of a row's block. Sums are exact in 32 bits.
 * After int8_tmpl.h; more it needs: PAIRS_TILE, pairs_add(): s plus products of pairs of numbers,
 * added, and store16(): two vectors of whole numbers as numbers of 16 bits.
 *
 * Keys and values are packed once for all tiles of queries, a block of KEYS at a time:
 * k_scale[KEYS] odd v_scale[dp] kt[KEYS / PANEL][pairs of d][PANEL] v[KEYS / 2][dp]; kt and v hold
 * two numbers in each place: two channels of a key, two keys of a channel. Scratch of a tile:
 * o[Q, dp] top[Q] sum[Q] q_scale[Q] s[ROWS, KEYS] q[Q, dq] p[ROWS, KEYS]. */

enum {
    KEYS = ATTENTION16_KEYS,
    ROWS = ATTENTION_ROWS,
    P_MOST = 4095, /* P_MOST * V_MOST * KEYS is under 2^31 */
    V_MOST = 2047,
};

typedef vi vi_mem __attribute__((aligned(2), may_alias));
typedef int32_t pair __attribute__((aligned(2), may_alias)); /* of two int16_t */

INLINE vi size_of(vf v) /* its bits grow with |v|; none and infinite are the last */
{
    return (vi)v & 0x7fffffff;
}

INLINE vi larger(vi a, vi b)
{
    vi more = a > b;

    return (a & more) | (b & ~more);
}

/* The scale of numbers whose largest has these bits, when `most` is to be the largest of the whole
 * ones: they must not come out as numbers if one is none, or infinite. */
INLINE float scale16(int32_t size, float most, float *inv)
{
    float v;

    memcpy(&v, &size, sizeof v);
    *inv = v > 1e-30f && size < 0x7f800000 ? most / v : 0;
    return size >= 0x7f800000 ? NAN : *inv == 0 ? 1 : v / most;
}

INLINE vi rounded(vf x, vf inv)
{
    return VROUND(x * inv);
}

/* Two rows' numbers side by side. */
INLINE vi paired(vi a, vi b)
{
    return (a & 0xffff) | (b << 16);
}

/* One row of n numbers, with zeros up to whole pairs of vectors. */
INLINE float quantise_row16(const float *x, int64_t n, float most, int16_t *q)
{
    vi top = {0};
    float inv;

    for (int64_t i = 0; i < n; i += VL)
        top = larger(top, size_of(load_part(x + i, n - i)));
    int32_t size = top[0];
    for (int i = 1; i < VL; i++)
        size = top[i] > size ? top[i] : size;
    float scale = scale16(size, most, &inv);
    for (int64_t i = 0; i < n; i += 2 * VL) {
        const vi v[2] = {rounded(load_part(x + i, n - i), vset(inv)),
                         rounded(load_part(x + i + VL, n - i - VL), vset(inv))};
        store16(q + i, v);
    }
    return scale;
}

/* Keys beyond n count as zero. Returns `odd`. */
INLINE float pack_keys16(const float *k, int64_t ldk, int64_t n, int64_t d, float most, float *kt,
                         float *scale)
{
    int16_t rows[8 * ATTENTION16_DEPTH];
    float odd = 0;
    int64_t pairs = (d + 1) / 2, dq = (d + 2 * VL - 1) / (2 * VL) * (2 * VL);

    for (int64_t j = 0; j < (n + PANEL - 1) / PANEL * PANEL; j += 8) {
        for (int64_t i = 0; i < 8; i++) {
            if (j + i < n)
                scale[j + i] = quantise_row16(k + (j + i) * ldk, d, most, rows + i * dq);
            else
                scale[j + i] = 0;
            odd += 0 * scale[j + i];
        }
        if (j + 8 > n)
            memset(rows + (j < n ? n - j : 0) * dq, 0,
                   (size_t)((j < n ? j + 8 - n : 8) * dq) * sizeof *rows);
        transpose_rows8((const float *)(const void *)rows, dq / 2, pairs,
                        kt + j / PANEL * PANEL * pairs + j % PANEL, PANEL);
    }
    return odd;
}

INLINE void pack_values16(const float *v, int64_t ldk, int64_t n, int64_t d, int32_t *to,
                          float *scale)
{
    int32_t size[ATTENTION16_DEPTH] = {0};
    float inv[ATTENTION16_DEPTH];
    int64_t dp = (d + VL - 1) / VL * VL;

    for (int64_t j = 0; j < n; j++)
        for (int64_t e = 0; e < d; e += VL)
            *(vi_mem *)(size + e) = larger(*(const vi_mem *)(size + e),
                                           size_of(load_part(v + j * ldk + e, d - e)));
    for (int64_t e = 0; e < dp; e++)
        scale[e] = scale16(size[e], V_MOST, &inv[e]);
    for (int64_t j = 0; j < n; j += 2)
        for (int64_t e = 0; e < d; e += VL) {
            const float *a = v + j * ldk + e;
            vf by = vload(inv + e), b = j + 1 < n ? load_part(a + ldk, d - e) : (vf){0};
            *(vi_mem *)(to + j / 2 * dp + e) =
                paired(rounded(load_part(a, d - e), by), rounded(b, by));
        }
}

/* s[PAIRS_TILE][nv] = a b: rows of pairs, lda numbers apart, by `pairs` rows of nv vectors of
 * pairs, ldb apart. */
INLINE void tile16(const int nv, int64_t pairs, const int16_t *a, int64_t lda, const int32_t *b,
                   int64_t ldb, vi (*s)[2])
{
#pragma GCC unroll 16
    for (int i = 0; i < PAIRS_TILE; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            s[i][j] = (vi){0};
    for (int64_t p = 0; p < pairs; p++, a += 2, b += ldb) {
        vi x[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            x[j] = *(const vi_mem *)(b + j * VL);
#pragma GCC unroll 16
        for (int i = 0; i < PAIRS_TILE; i++) {
            vi y = *(const pair *)(a + i * lda) - (vi){0};
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                s[i][j] = pairs_add(s[i][j], y, x[j]);
        }
    }
}

/* o[PAIRS_TILE, nv vectors] += p v, scaled. */
INLINE void output16(const int nv, int64_t pairs, const int16_t *p, const int32_t *v,
                     int64_t dp, const float *v_scale, const float *grow, float *o)
{
    vi s[PAIRS_TILE][2];

    tile16(nv, pairs, p, KEYS, v, dp, s);
#pragma GCC unroll 16
    for (int i = 0; i < PAIRS_TILE; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            float *to = o + i * dp + j * VL;
            vf by = vload(v_scale + j * VL) * grow[i];
            vstore(to, VFMA(VFLOATS(s[i][j]), by, vload(to)));
        }
}

/* 2^z, z at most 13 and taken for -2 below, to 1e-4; our own Chebyshev fit, as that in simd.h. */
INLINE vf exp2_near(vf z)
{
    z = VMAX(z, vset(-2.0f));
    vf t = z + 12582912.0f, r = z - (t - 12582912.0f), p = vset(0.05583828295f);

    p = VFMA(p, r, vset(0.2426394785f));
    p = VFMA(p, r, vset(0.6931367339f));
    p = VFMA(p, r, vset(0.999924557f));
    return (vf)((vi)p + ((vi)t << 23));
}

/* A block of keys and values, and a tile of queries. */
struct block16 {
    float *k_scale, *odd, *v_scale, *kt; /* *odd: NaN if a key is no number, else 0 */
    int32_t *v;
};

struct queries16 {
    int16_t *q, *p;
    float *scale, *o, *top, *sum, *s;
    int64_t dq, dp, pairs;
};

INLINE int64_t padded16(int64_t d, int64_t unit)
{
    return (d + unit - 1) / unit * unit;
}

INLINE struct block16 block16_at(float *mem, int64_t d)
{
    struct block16 b = {.k_scale = mem, .odd = mem + KEYS};

    b.v_scale = b.odd + 16;
    b.kt = b.v_scale + padded16(d, 16);
    b.v = (int32_t *)(void *)(b.kt + KEYS * padded16(d, 2) / 2);
    return b;
}

/* The most of numbers of which d products are added. */
INLINE float most16(int64_t d)
{
    return floorf(fminf(32767.0f, sqrtf(2147483520.0f / (float)padded16(d, 2))));
}

static void attention16_pack(const struct attention_tile *t, int64_t at, float *mem)
{
    int64_t n = t->n_k - at < KEYS ? t->n_k - at : KEYS;
    struct block16 b = block16_at(mem, t->d);

    *b.odd = pack_keys16(t->k + at * t->ldk, t->ldk, n, t->d, most16(t->d), b.kt, b.k_scale);
    pack_values16(t->v + at * t->ldk, t->ldk, n, t->d, b.v, b.v_scale);
}

/* Scores s of one query, but for its scale, to probabilities by P_MOST; `live` of the n count.
 * Returns what older sums and outputs shrink by; *grow: what the new ones count. */
INLINE float soften16(float *s, int64_t live, int64_t n, float scale, float odd, float *top,
                      float *sum, int16_t *p, float *grow)
{
    vf most = vset(-3e38f);
    vi total = {0};

    for (int64_t j = live; j < n; j++)
        s[j] = -3e38f;
    for (int64_t j = 0; j < n; j += VL)
        most = VMAX(most, vload(s + j));
    float here = top_of(most) * scale, now = here > *top ? here : *top;
    vf shift = vset(11.99964775f - here), by = vset(scale); /* log2 of P_MOST */
    for (int64_t j = 0; j < n; j += 2 * VL) {
        const vi v[2] = {VROUND(exp2_near(VFMA(vload(s + j), by, shift))),
                         VROUND(exp2_near(VFMA(vload(s + j + VL), by, shift)))};
        store16(p + j, v);
        total += v[0] + v[1];
    }
    vf change = vexp2((vf){*top - now, here - now});
    *grow = change[1];
    *sum = *sum * change[0] + change[1] * sum_of(VFLOATS(total)) + odd;
    *top = now;
    return change[0];
}

INLINE void scores16(const struct queries16 *a, const struct block16 *b, int64_t from, int64_t n)
{
    vi s[PAIRS_TILE][2];

    for (int64_t j = 0; j < n; j += PANEL)
        for (int64_t i = 0; i < ROWS; i += PAIRS_TILE) {
            tile16(2, a->pairs, a->q + (from + i) * a->dq, a->dq,
                   (const int32_t *)(const void *)(b->kt + j * a->pairs), PANEL, s);
#pragma GCC unroll 16
            for (int r = 0; r < PAIRS_TILE; r++)
#pragma GCC unroll 2
                for (int c = 0; c < 2; c++)
                    vstore(a->s + (i + r) * KEYS + j + c * VL,
                           VFLOATS(s[r][c]) * vload(b->k_scale + j + c * VL));
        }
}

/* ROWS queries from `from` on by a block of n keys. */
INLINE void attend_rows16(const struct queries16 *a, const struct block16 *b, int64_t from,
                          int64_t n)
{
    int64_t np = padded16(n, PANEL), pairs = padded16(n, 2) / 2;
    float grow[ROWS];

    scores16(a, b, from, np);
    for (int64_t i = 0; i < ROWS; i++) {
        int64_t at = from + i;
        float shrink = soften16(a->s + i * KEYS, n, np, a->scale[at], *b->odd, &a->top[at],
                                &a->sum[at], a->p + i * KEYS, &grow[i]);
        float *o = a->o + at * a->dp;
        for (int64_t e = 0; shrink != 1.0f && e < a->dp; e += VL)
            vstore(o + e, vload(o + e) * shrink);
    }
    for (int64_t i = 0; i < ROWS; i += PAIRS_TILE) {
        float *o = a->o + (from + i) * a->dp;
        const int16_t *p = a->p + i * KEYS;
        int64_t e = 0;
        for (; e + 2 * VL <= a->dp; e += 2 * VL)
            output16(2, pairs, p, b->v + e, a->dp, b->v_scale + e, grow + i, o + e);
        if (e < a->dp)
            output16(1, pairs, p, b->v + e, a->dp, b->v_scale + e, grow + i, o + e);
    }
}

/* Queries, whole groups of ROWS, with zeros where there is none. */
static struct queries16 queries16_make(const struct attention_tile *t)
{
    int64_t n = padded16(t->n_q, ROWS);
    struct queries16 a = {.dq = padded16(t->d, 2 * VL), .dp = padded16(t->d, VL),
                          .pairs = padded16(t->d, 2) / 2, .o = t->scratch};
    float factor = 1.44269504f / sqrtf((float)t->d); /* to powers of 2 */

    a.top = a.o + n * a.dp;
    a.sum = a.top + n;
    a.scale = a.sum + n;
    a.s = a.scale + n;
    a.q = (int16_t *)(void *)(a.s + ROWS * KEYS);
    a.p = a.q + n * a.dq;
    memset(a.q + t->n_q * a.dq, 0, (size_t)((n - t->n_q) * a.dq) * sizeof *a.q);
    memset(a.o, 0, (size_t)(n * a.dp) * sizeof *a.o);
    for (int64_t i = 0; i < n; i++) {
        a.top[i] = -3e38f;
        a.sum[i] = 0;
        a.scale[i] = factor;
        if (i < t->n_q)
            a.scale[i] *= quantise_row16(t->q + i * t->ldq, t->d, most16(t->d), a.q + i * a.dq);
    }
    return a;
}

static void attention16(const struct attention_tile *t)
{
    struct queries16 a = queries16_make(t);
    float *mem = t->packed;

    for (int64_t at = 0; at < t->n_k; at += KEYS, mem += attention16_block_floats(t->d)) {
        struct block16 b = block16_at(mem, t->d);
        for (int64_t i = 0; i < t->n_q; i += ROWS)
            attend_rows16(&a, &b, i, t->n_k - at < KEYS ? t->n_k - at : KEYS);
    }
    for (int64_t i = 0; i < t->n_q; i++) {
        vf inv = vset(1 / a.sum[i]);
        for (int64_t e = 0; e < t->d; e += VL)
            store_part(t->y + i * t->ldq + e, vload(a.o + i * a.dp + e) * inv, t->d - e);
    }
}
