/* SPDX-License-Identifier: MIT
 * Vectors of VL floats by GCC's vector extensions; included by one file for each instruction set
 * after it has set VL and, where the extension has no operator, VFMA, VMAX and VSEL. */
#include <stdint.h>
#include <string.h>

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
/* The same in memory, where only the alignment of a float holds. */
typedef float vf_mem __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#define VFLOATS(v) __builtin_convertvector(v, vf) /* of a vi */

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vf vload(const float *p)
{
    return *(const vf_mem *)p;
}

INLINE void vstore(float *p, vf v)
{
    *(vf_mem *)p = v;
}

INLINE vf vset(float a)
{
    return a - (vf){0};
}

/* The first n < VL floats, the rest zero. */
INLINE vf vload_n(const float *p, int64_t n)
{
    vf v = {0};

    for (int64_t i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}

INLINE void vstore_n(float *p, vf v, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = v[i];
}

/* Those of VL floats that exist: n, or all. */
INLINE vf load_part(const float *p, int64_t n)
{
    return n >= VL ? vload(p) : n > 0 ? vload_n(p, n) : (vf){0};
}

INLINE void store_part(float *p, vf v, int64_t n)
{
    if (n >= VL)
        vstore(p, v);
    else
        vstore_n(p, v, n);
}

#ifndef VFMA
#define VFMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef VSEL /* mask ? a : b, by lane */
#define VSEL(mask, a, b) ((vf)(((vi)(a) & (mask)) | ((vi)(b) & ~(mask))))
#endif
#ifndef VMAX
#define VMAX(a, b) VSEL((a) > (b), a, b)
#define VMIN(a, b) VSEL((a) < (b), a, b)
#endif

#ifndef VROUND /* to the nearest whole number, of |v| under 2^22: it is left in the low bits */
#define VROUND(v) ((vi)((v) + 12582912.0f) - 0x4b400000)
#endif

INLINE float vsum(vf v)
{
    float s[VL];

    memcpy(s, &v, sizeof s);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            s[i] += s[i + w];
    return s[0];
}

INLINE float vtop(vf v)
{
    float s[VL];

    memcpy(s, &v, sizeof s);
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            s[i] = s[i] > s[i + w] ? s[i] : s[i + w];
    return s[0];
}

/* exp to about one unit in the last place; below -87.3 and above 88.3 the value there.
 * x = n ln 2 + r, a polynomial for exp(r) (our own Chebyshev fit, 2e-9), n into the exponent.
 * Adding 1.5 2^23 rounds to a whole number and leaves it in the low bits. */
INLINE vf vexp(vf x)
{
    const float magic = 12582912.0f;
    x = VMIN(VMAX(x, vset(-87.3f)), vset(88.3f));
    vf t = VFMA(x, vset(1.44269504f), vset(magic));
    vf n = t - magic;
    vf r = VFMA(n, vset(-0.693145752f), x);
    r = VFMA(n, vset(-1.42860677e-6f), r);
    vf p = vset(0.00139411189f);
    p = VFMA(p, r, vset(0.00837513477f));
    p = VFMA(p, r, vset(0.0416663528f));
    p = VFMA(p, r, vset(0.166664154f));
    p = VFMA(p, r, vset(0.5f));
    p = VFMA(p, r, vset(1.0f));
    p = VFMA(p, r, vset(1.0f));
    vi e = ((vi)t - 0x4b400000 + 127) << 23;
    return p * (vf)e;
}

/* 2^x for x <= 0, below -126 the value there: as vexp(), with a fit of 2.5e-9. */
INLINE vf vexp2(vf x)
{
    x = VMAX(x, vset(-126.0f));
    vf t = x + 12582912.0f, r = x - (t - 12582912.0f), p = vset(0.0001546144468f);

    p = VFMA(p, r, vset(0.001340042818f));
    p = VFMA(p, r, vset(0.009618056679f));
    p = VFMA(p, r, vset(0.05550327227f));
    p = VFMA(p, r, vset(0.2402265092f));
    p = VFMA(p, r, vset(0.6931472067f));
    p = VFMA(p, r, vset(1.0f));
    return (vf)((vi)p + ((vi)t << 23));
}

INLINE vf vsigmoid_of(vf x, float slope) /* x / (1 + exp(-slope x)) */
{
    return x / (1.0f + vexp(x * -slope));
}

/* x times the normal distribution's integral. With z = |x| / sqrt 2 and t = 1 / (1 + z / 2),
 * erfc(z) = t P(t) exp(-z z); P is our own Chebyshev fit for z in 0..6, error 2e-8. */
INLINE vf vgelu(vf x)
{
    vf z = (vf)((vi)x & 0x7fffffff) * 0.707106781f;
    z = VMIN(z, vset(9.0f));
    vf t = 1.0f / VFMA(z, vset(0.5f), vset(1.0f));
    vf p = vset(-0.05236785301f);
    p = VFMA(p, t, vset(0.25110666709f));
    p = VFMA(p, t, vset(-0.41594041152f));
    p = VFMA(p, t, vset(0.19376627965f));
    p = VFMA(p, t, vset(0.03384862897f));
    p = VFMA(p, t, vset(0.17580722297f));
    p = VFMA(p, t, vset(0.25031855875f));
    p = VFMA(p, t, vset(0.28130790189f));
    p = VFMA(p, t, vset(0.28215298503f));
    vf tail = x * (0.5f * t * p * vexp(-z * z));
    return VSEL(x < 0.0f, tail, x - tail);
}

INLINE vf vact(enum gr_act act, vf x)
{
    switch (act) {
    case ACT_SILU:
        return vsigmoid_of(x, 1.0f);
    case ACT_GELU:
        return vgelu(x);
    case ACT_QUICK_GELU:
        return vsigmoid_of(x, 1.702f);
    case ACT_NONE:
        break;
    }
    return x;
}
