/* SPDX-License-Identifier: MIT
 * Convolution as products of gathered pixels, for vectors of VL floats: a tile of CONV_MR output
 * pixels by 2 vectors of channels is held in registers over all taps of a chunk of input channels.
 * Pixels are found through pointers (Dukhan 2019), so that padding, stride and the ends of rows
 * cost nothing: a missing pixel points at zeros. */

enum { CONV_AHEAD = 12 }; /* steps of k between the prefetch of a weight and its use */

INLINE void conv_tile(const int nv, const float *const *px, int64_t taps, int64_t off, int64_t kc,
                      const float *w, vf s[CONV_MR][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < CONV_MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            s[i][j] = (vf){0};
    for (int64_t t = 0; t < taps; t++, px += CONV_GROUP) {
        const float *p[CONV_MR];
#pragma GCC unroll 8
        for (int i = 0; i < CONV_MR; i++)
            p[i] = px[i] + off;
        for (int64_t k = 0; k < kc; k++, w += 2 * VL) {
            vf x[2];
            __builtin_prefetch(w + 2 * VL * CONV_AHEAD); /* weights may come from afar */
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                x[j] = vload(w + j * VL);
#pragma GCC unroll 8
            for (int i = 0; i < CONV_MR; i++) {
                vf a = vset(p[i][k]);
#pragma GCC unroll 2
                for (int j = 0; j < nv; j++)
                    s[i][j] = VFMA(a, x[j], s[i][j]);
            }
        }
    }
}

/* Whole tiles go straight to y; the edges of it through memory of a whole tile. */
INLINE void conv_store(const int nv, const vf s[CONV_MR][2], float *y, int64_t ldy, int64_t rows,
                       int64_t cols, bool add)
{
    float part[CONV_MR][2 * VL];

    if (rows == CONV_MR && cols == nv * VL) {
#pragma GCC unroll 8
        for (int i = 0; i < CONV_MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++) {
                float *to = y + i * ldy + j * VL;
                vstore(to, add ? s[i][j] + vload(to) : s[i][j]);
            }
        return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < CONV_MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            vstore(part[i] + j * VL, s[i][j]);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            y[i * ldy + j] = add ? y[i * ldy + j] + part[i][j] : part[i][j];
}

INLINE void conv_columns(const int nv, const struct conv_panel *c)
{
    for (int64_t at = 0; at < c->n_px; at += CONV_MR) {
        int64_t rows = c->n_px - at < CONV_MR ? c->n_px - at : CONV_MR;
        vf s[CONV_MR][2];
        conv_tile(nv, c->px + at, c->taps, c->off, c->kc, c->w, s);
        conv_store(nv, (const vf(*)[2])s, c->y + at * c->ldy, c->ldy, rows, c->cols, c->add);
    }
}

static void k_conv(const struct conv_panel *c)
{
    if (c->cols > VL)
        conv_columns(2, c);
    else
        conv_columns(1, c);
}

static void k_scatter8(const float *src, int64_t ld, int64_t n, const int32_t *at, float *dst)
{
    int64_t c = 0;

    for (; c + 8 <= n; c += 8) {
        v8 t[8];
        transpose8x8(src + c, ld, t);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            *(v8_mem *)(dst + at[c + i]) = t[i];
    }
    for (; c < n; c++)
        for (int i = 0; i < 8; i++)
            dst[at[c] + i] = src[i * ld + c];
}
