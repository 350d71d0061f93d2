/* SPDX-License-Identifier: MIT
 * Attention of one block of queries over all keys, a block of keys at a time: the softmax is
 * kept up to date by its running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022),
 * so scores exist only for ATTENTION_ROWS x B pairs, B = attention_keys(d), which stay in a first
 * cache.
 *
 * Scratch, in floats:  q[Q, d]  kt[B / PANEL][d, PANEL]  v[B, dp]  s[ROWS, B]  o[Q, dp]  top[Q]
 * sum[Q], with Q = n_q <= attention_queries(d) and dp = d rounded up to vectors. */

enum { PANEL = 2 * VL > 16 ? 2 * VL : 16 }; /* keys side by side in kt: a tile's width */

/* Panels of transposed keys; keys that are missing in the last count as zero. */
INLINE void pack_keys(const float *k, int64_t ldk, int64_t n, int64_t d, float *kt)
{
    for (int64_t j0 = 0; j0 < n; j0 += PANEL, kt += d * PANEL) {
        int64_t end = n - j0 < PANEL ? n - j0 : PANEL, j = 0;
        const float *from = k + j0 * ldk;
        for (; j + 8 <= end; j += 8)
            transpose_rows8(from + j * ldk, ldk, d, kt + j, PANEL);
        for (; j < PANEL; j++)
            for (int64_t e = 0; e < d; e++)
                kt[e * PANEL + j] = j < end ? from[j * ldk + e] : 0;
    }
}

INLINE void pack_values(const float *v, int64_t ldk, int64_t n, int64_t d, int64_t dp, float *to)
{
    for (int64_t j = 0; j < n; j++) {
        memcpy(to + j * dp, v + j * ldk, (size_t)d * sizeof *to);
        memset(to + j * dp + d, 0, (size_t)(dp - d) * sizeof *to);
    }
}

/* Scores of one query to probabilities, not yet divided by their sum; `live` of the n (a
 * multiple of VL) scores count. Returns what older sums and outputs shrink by. */
INLINE float soften(float *s, int64_t live, int64_t n, float *top, float *sum)
{
    vf m = vset(*top), t = {0};

    for (int64_t j = live; j < n; j++)
        s[j] = -INFINITY;
    for (int64_t j = 0; j < n; j += VL)
        m = VMAX(m, vload(s + j));
    float most = vtop(m);
    for (int64_t j = 0; j < n; j += VL) {
        vf p = vexp2(vload(s + j) - most);
        vstore(s + j, p);
        t += p;
    }
    float shrink = vexp2(vset(*top - most))[0];
    *sum = *sum * shrink + vsum(t); /* a dead score counts 1e-38: far below rounding */
    *top = most;
    return shrink;
}

struct attention_state {
    float *q, *kt, *v, *s, *o, *top, *sum;
    int64_t width, dp; /* B, d rounded up */
};

/* Asks for keys and values of the next block, `most` keys from `at` on, while ATTENTION_ROWS
 * queries from `q` on are at work on the one before: rows lie far apart, which no hardware
 * foresees. Each such group asks for its share. */
INLINE void attention_fetch(const struct attention_tile *t, int64_t at, int64_t most,
                                   int64_t q)
{
    int64_t n = t->n_k - at < most ? t->n_k - at : most;
    int64_t from = n * q / t->n_q, end = n * (q + ATTENTION_ROWS) / t->n_q;

    for (int64_t j = from; j < end && j < n; j++)
        for (int64_t e = 0; e < t->d + 15; e += 16) {
            int64_t i = (at + j) * t->ldk + (e < t->d ? e : t->d - 1);
            __builtin_prefetch(t->k + i, 0, 2);
            __builtin_prefetch(t->v + i, 0, 2);
        }
}

/* Keys [at, at + n), packed, into the running outputs. */
static void attend_block(const struct attention_tile *t, const struct attention_state *st,
                         int64_t at, int64_t n)
{
    int64_t np = (n + PANEL - 1) / PANEL * PANEL, from = 0;

    if (t->causal && t->first < at) /* queries before the block see nothing of it */
        from = at - t->first;
    for (int64_t m; from < t->n_q; from += m) {
        m = t->n_q - from < ATTENTION_ROWS ? t->n_q - from : ATTENTION_ROWS;
        attention_fetch(t, at + n, st->width, from);
        for (int64_t j = 0; j < np; j += PANEL)
            k_gemm(m, PANEL, t->d, st->q + from * t->d, t->d, st->kt + j * t->d, PANEL, st->s + j,
                   st->width, false);
        for (int64_t i = from; i < from + m; i++) {
            int64_t seen = t->first + i - at + 1, live = t->causal && seen < n ? seen : n;
            float shrink = soften(st->s + (i - from) * st->width, live, np, &st->top[i],
                                  &st->sum[i]);
            float *o = st->o + i * st->dp;
            for (int64_t e = 0; shrink != 1.0f && e < st->dp; e += VL)
                vstore(o + e, vload(o + e) * shrink);
        }
        k_gemm(m, st->dp, n, st->s, st->width, st->v, st->dp, st->o + from * st->dp, st->dp,
               true);
    }
}

static struct attention_state attention_begin(const struct attention_tile *t)
{
    struct attention_state st = {.width = attention_keys(t->d),
                                 .dp = (t->d + VL - 1) / VL * VL};
    float scale = (float)(1.4426950408889634 / sqrt((double)t->d)); /* to powers of 2 */

    st.q = t->scratch;
    st.kt = st.q + t->n_q * t->d;
    st.v = st.kt + st.width * t->d;
    st.s = st.v + st.width * st.dp;
    st.o = st.s + ATTENTION_ROWS * st.width;
    st.top = st.o + t->n_q * st.dp;
    st.sum = st.top + t->n_q;
    for (int64_t i = 0; i < t->n_q; i++) {
        for (int64_t e = 0; e < t->d; e++)
            st.q[i * t->d + e] = t->q[i * t->ldq + e] * scale;
        st.top[i] = -INFINITY;
        st.sum[i] = 0;
    }
    memset(st.o, 0, (size_t)(t->n_q * st.dp) * sizeof *st.o);
    return st;
}

static void k_attention(const struct attention_tile *t)
{
    struct attention_state st = attention_begin(t);
    int64_t end = t->causal && t->first + t->n_q < t->n_k ? t->first + t->n_q : t->n_k;

    for (int64_t at = 0; at < end; at += st.width) {
        int64_t n = end - at < st.width ? end - at : st.width;
        pack_keys(t->k + at * t->ldk, t->ldk, n, t->d, st.kt);
        pack_values(t->v + at * t->ldk, t->ldk, n, t->d, st.dp, st.v);
        attend_block(t, &st, at, n);
    }
    for (int64_t i = 0; i < t->n_q; i++)
        for (int64_t e = 0; e < t->d; e++)
            t->y[i * t->ldq + e] = st.o[i * st.dp + e] / st.sum[i];
}
