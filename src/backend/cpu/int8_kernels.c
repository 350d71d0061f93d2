/* SPDX-License-Identifier: MIT
 * Integer products in plain C, the choice of a set, and the rules that all sets share. */
#include "backend/cpu/int8.h"
#include <math.h>
#include <stdlib.h>

#define VL 4
#define INT8_TILE 4
#define PAIRS_TILE 6
#define X_MOST 255
#define W_MOST 127
#include "backend/cpu/simd.h"

INLINE void int8_bytes(uint8_t *to, const vi v[4])
{
    for (int i = 0; i < 4 * VL; i++)
        to[i] = (uint8_t)v[i / VL][i % VL];
}

INLINE void int8_step(vi (*s)[2], const int rows, const uint8_t *x, int64_t ld, const int8_t *w)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < 2 * VL; o++) {
            int32_t sum = 0;
            for (int i = 0; i < 8; i++)
                sum += x[r * ld + i] * w[(i / 4 * 2 * VL + o) * 4 + i % 4];
            s[r][o / VL][o % VL] += sum;
        }
}

INLINE void store16(int16_t *to, const vi v[2])
{
    for (int i = 0; i < 2 * VL; i++)
        to[i] = (int16_t)v[i / VL][i % VL];
}

INLINE vi pairs_add(vi s, vi a, vi b)
{
    return s + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}

#include "backend/cpu/int8_tmpl.h"
#include "backend/cpu/transpose_tmpl.h"
#include "backend/cpu/attention16_tmpl.h"
#include "backend/cpu/linear16_tmpl.h"
#include "backend/cpu/wino_transform_tmpl.h"
#include "backend/cpu/winograd16_tmpl.h"

INT8_TABLE(c);

const struct int8_kernels *int8_kernels_best(void)
{
#ifdef KRON_X86
    const char *mask = getenv("KRON_CPU_MASK");
    bool none = mask != NULL && strcmp(mask, "none") == 0;
    bool avx2 = mask != NULL && strcmp(mask, "avx2") == 0;
    bool avxvnni = mask != NULL && strcmp(mask, "avxvnni") == 0;

    if (none || !cpu_has_avx2())
        return &int8_kernels_c;
    if (!avx2 && !avxvnni && cpu_has_avx512() && __builtin_cpu_supports("avx512vnni"))
        return &int8_kernels_avx512vnni;
    if (!avx2 && __builtin_cpu_supports("avxvnni"))
        return &int8_kernels_avxvnni;
    return &int8_kernels_avx2;
#endif
    return &int8_kernels_c;
}

int int8_outliers(const float *most, int64_t k, int32_t at[INT8_OUTLIERS])
{
    int room = k / 16 < INT8_OUTLIERS ? (int)(k / 16) : INT8_OUTLIERS, n = 0;
    float top[INT8_OUTLIERS], left = 0, mean = 0;

    for (int64_t i = 0; i < k; i++)
        mean += most[i] / (float)k;
    for (int64_t i = 0; i < k; i++) {
        float v = most[i];
        int j = n;
        if (v <= INT8_OUTLIER * mean || (n == room && (room == 0 || v <= top[n - 1]))) {
            left = v > left ? v : left;
            continue;
        }
        if (n == room) {
            left = top[n - 1] > left ? top[n - 1] : left;
            j = n - 1;
        } else {
            n++;
        }
        for (; j > 0 && top[j - 1] < v; j--) {
            top[j] = top[j - 1];
            at[j] = at[j - 1];
        }
        top[j] = v;
        at[j] = (int32_t)i;
    }
    if (n == 0 || left > top[0] / 2)
        return 0;
    for (int i = 1; i < n; i++) /* few: rising again */
        for (int j = i; j > 0 && at[j - 1] > at[j]; j--) {
            int32_t swap = at[j];
            at[j] = at[j - 1];
            at[j - 1] = swap;
        }
    return n;
}
