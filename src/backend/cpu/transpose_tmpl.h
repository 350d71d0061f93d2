/* SPDX-License-Identifier: MIT
 * 8 rows to 8 columns. The 8 is that of oneDNN's weight blocks (8o, or two halves of 16o) at
 * every level, whatever VL is. */

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v8_mem __attribute__((vector_size(32), aligned(4), may_alias));

/* to[c] = column c of src[8, 8]. */
INLINE void transpose8x8(const float *src, int64_t ld, v8 *to)
{
    const v8i lo1 = {0, 8, 1, 9, 4, 12, 5, 13}, hi1 = {2, 10, 3, 11, 6, 14, 7, 15};
    const v8i lo2 = {0, 1, 8, 9, 4, 5, 12, 13}, hi2 = {2, 3, 10, 11, 6, 7, 14, 15};
    const v8i lo4 = {0, 1, 2, 3, 8, 9, 10, 11}, hi4 = {4, 5, 6, 7, 12, 13, 14, 15};
    v8 r[8], a[8], b[8];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        r[i] = *(const v8_mem *)(src + i * ld);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shuffle(r[i], r[i + 1], lo1);
        a[i + 1] = __builtin_shuffle(r[i], r[i + 1], hi1);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = __builtin_shuffle(a[i], a[i + 2], lo2);
        b[i + 1] = __builtin_shuffle(a[i], a[i + 2], hi2);
        b[i + 2] = __builtin_shuffle(a[i + 1], a[i + 3], lo2);
        b[i + 3] = __builtin_shuffle(a[i + 1], a[i + 3], hi2);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        to[i] = __builtin_shuffle(b[i], b[i + 4], lo4);
        to[i + 4] = __builtin_shuffle(b[i], b[i + 4], hi4);
    }
}

/* dst[c * step + i] = src[i][c] for 8 rows i and n columns c. */
INLINE void transpose_rows8(const float *src, int64_t ld, int64_t n, float *dst, int64_t step)
{
    int64_t c = 0;

    for (; c + 8 <= n; c += 8) {
        v8 t[8];
        transpose8x8(src + c, ld, t);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            *(v8_mem *)(dst + (c + i) * step) = t[i];
    }
    for (; c < n; c++)
        for (int i = 0; i < 8; i++)
            dst[c * step + i] = src[i * ld + c];
}
