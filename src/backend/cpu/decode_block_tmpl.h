/* SPDX-License-Identifier: MIT
 * Block types to f32 (layouts: tensor/quant_*.c, which define the numbers to the bit).
 *
 * Whole numbers of up to 8 bits have all their bits in the upper half of an f32, its third byte and
 * its top byte. So levels become floats without a conversion: 32 bytes at a time give 32 third
 * bytes and 32 top bytes, by tables or counted from 128 on, and pairs of these are halves of
 * floats. Vectors of 32 bytes are used at each level: to store f32s binds before wider ones help.
 *
 * Bytes of a register are put in such an order ("woven") that every step within its two halves
 * leaves runs of 8 numbers: a half has numbers 0 8 1 9 2 10 3 11 16 24 17 25 18 26 19 27, the other
 * one those that are 4 further on. */

typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint8_t b32 __attribute__((vector_size(32)));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint32_t w8 __attribute__((vector_size(32)));
typedef uint64_t d4 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));
typedef float f8x __attribute__((vector_size(32)));
typedef float f8x_mem __attribute__((vector_size(32), aligned(4), may_alias));

/* 32 numbers. */
struct run32 {
    f8x at[4];
};

/* Sixteen whole numbers of -255 .. 255: the two upper bytes of each as an f32, in both halves. */
struct levels {
    b32 third, top;
};

INLINE b32 twice16(const void *p)
{
    return (b32)_mm256_broadcastsi128_si256(_mm_loadu_si128(p));
}

INLINE b32 picked(b32 from, b32 at)
{
    return (b32)_mm256_shuffle_epi8((__m256i)from, (__m256i)at);
}

/* `mask` of each byte, n bits further up. */
INLINE b32 bits32(b32 v, int n, uint8_t mask)
{
    return (b32)((h16)v >> n) & mask;
}

/* Bits from number `from` of each byte on, moved to number `to`, those of the mask. */
INLINE b32 moved32(b32 v, int from, int to, uint8_t mask)
{
    return (from > to ? (b32)((h16)v >> (from - to)) : (b32)((h16)v << (to - from))) & mask;
}

/* Numbers are kept in memory, where it costs nothing to fill a vector with one of them or to widen
 * bytes; the compiler would do that in registers, at more steps. */
#define IN_MEMORY(q) __asm__("" : "+m"(q))

INLINE f8x all8(float v)
{
    return v - (f8x){0};
}

/* --- 32 bytes to floats --- */

/* 32 bytes, woven. */
INLINE b32 woven32(const uint8_t *p)
{
    const b32 first = {0, 8, 1, 9, 2, 10, 3, 11, 128, 128, 128, 128, 128, 128, 128, 128,
                       4, 12, 5, 13, 6, 14, 7, 15, 128, 128, 128, 128, 128, 128, 128, 128};
    const b32 second = {128, 128, 128, 128, 128, 128, 128, 128, 0, 8, 1, 9, 2, 10, 3, 11,
                        128, 128, 128, 128, 128, 128, 128, 128, 4, 12, 5, 13, 6, 14, 7, 15};

    return picked(twice16(p), first) | picked(twice16(p + 16), second);
}

/* The low halves of 16 bytes, then the high ones, woven. */
INLINE b32 halves32(const uint8_t *p)
{
    const b32 order = {0, 8, 1, 9, 2, 10, 3, 11, 0, 8, 1, 9, 2, 10, 3, 11,
                       4, 12, 5, 13, 6, 14, 7, 15, 4, 12, 5, 13, 6, 14, 7, 15};
    const d4 by = {0, 4, 0, 4};

    return (b32)((d4)picked(twice16(p), order) >> by) & 15;
}

/* 16 for each bit of four bytes that is set, woven. */
INLINE b32 fifth_bits(const uint8_t *p)
{
    const b32 from = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,
                      0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3};
    const b32 bit = {1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 2, 2, 4, 4, 8, 8,
                     16, 16, 32, 32, 64, 64, 128, 128, 16, 16, 32, 32, 64, 64, 128, 128};
    int bits;

    memcpy(&bits, p, sizeof bits);
    b32 v = picked((b32)_mm256_set1_epi32(bits), from) & bit;
    return (b32)(v == bit) & 16;
}

INLINE struct run32 floats_of(b32 third, b32 top)
{
    w8 a = (w8)_mm256_unpacklo_epi8((__m256i)third, (__m256i)top);
    w8 b = (w8)_mm256_unpackhi_epi8((__m256i)third, (__m256i)top);
    struct run32 x = {{(f8x)(a << 16), (f8x)(a & 0xffff0000), (f8x)(b << 16),
                       (f8x)(b & 0xffff0000)}};

    return x;
}

INLINE struct levels levels_of(const int8_t *v)
{
    union {
        uint8_t bytes[16];
        b16 v;
    } third, top;

    for (int i = 0; i < 16; i++) {
        float f = v[i];
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        third.bytes[i] = (uint8_t)(bits >> 16);
        top.bytes[i] = (uint8_t)(bits >> 24);
    }
    return (struct levels){twice16(&third), twice16(&top)};
}

/* Levels number q < 16. */
INLINE struct run32 listed(const struct levels *l, b32 q)
{
    return floats_of(picked(l->third, q), picked(l->top, q));
}

/* q - from, for q < 128: with the top byte of 128 it is 128 + q. */
INLINE struct run32 counted(b32 q, float from)
{
    struct run32 x = floats_of(q, (b32){0} + 0x43);

    for (int i = 0; i < 4; i++)
        x.at[i] -= 128 + from;
    return x;
}

/* --- floats to memory --- */

/* d x; a scale for each half of 32. */
INLINE void put_scaled(struct run32 x, f8x d0, f8x d1, float *y)
{
    for (int i = 0; i < 4; i++)
        *(f8x_mem *)(y + 8 * i) = x.at[i] * (i < 2 ? d0 : d1);
}

INLINE f8x fma8(f8x a, f8x b, f8x c)
{
    return (f8x)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

/* d x + m. A level times its scale has at most 24 bits, so that this may be one step. */
INLINE void put_run(struct run32 x, const float *d, const float *m, int half, float *y)
{
    for (int i = 0; i < 4; i++)
        *(f8x_mem *)(y + 8 * i) = fma8(x.at[i], all8(d[i / 2 * half]), all8(m[i / 2 * half]));
}

/* An f16 with 6 more bytes behind it. */
INLINE f8x half8(const uint8_t *p)
{
    return (f8x)_mm256_broadcastss_ps(_mm_cvtph_ps(_mm_loadl_epi64((const void *)p)));
}

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

/* Eight signed bytes. */
INLINE f8x bytes8(const void *p)
{
    return (f8x)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}

INLINE f8x word_bytes8(uint64_t v)
{
    IN_MEMORY(v);
    return bytes8(&v);
}

INLINE uint64_t word_at(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

/* --- 32 numbers --- */

static const int8_t count_levels[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const int8_t q4_levels[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t fp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

INLINE void block_q4_0(const uint8_t *p, float *y)
{
    struct levels l = levels_of(q4_levels);
    f8x d = half8(p);

    put_scaled(listed(&l, halves32(p + 2)), d, d, y);
}

INLINE void put_with_min(struct run32 x, f8x d, f8x m, float *y)
{
    for (int i = 0; i < 4; i++)
        *(f8x_mem *)(y + 8 * i) = fma8(x.at[i], d, m);
}

INLINE void block_q4_1(const uint8_t *p, float *y)
{
    struct levels l = levels_of(count_levels);

    put_with_min(listed(&l, halves32(p + 4)), half8(p), half8(p + 2), y);
}

INLINE void block_q5_0(const uint8_t *p, float *y)
{
    f8x d = half8(p);

    put_scaled(counted(halves32(p + 6) | fifth_bits(p + 2), 16), d, d, y);
}

INLINE void block_q5_1(const uint8_t *p, float *y)
{
    put_with_min(counted(halves32(p + 8) | fifth_bits(p + 4), 0), half8(p), half8(p + 2), y);
}

INLINE void block_q8_0(const uint8_t *p, float *y)
{
    f8x d = half8(p);

    for (int i = 0; i < 32; i += 8)
        *(f8x_mem *)(y + i) = bytes8(p + 2 + i) * d;
}

INLINE void block_iq4_nl(const uint8_t *p, float *y)
{
    struct levels l = levels_of(iq4_levels);
    f8x d = half8(p);

    put_scaled(listed(&l, halves32(p + 2)), d, d, y);
}

/* Scale 2^(e - 128), of which the least two are subnormal. */
INLINE void block_mxfp4(const uint8_t *p, float *y)
{
    struct levels l = levels_of(fp4_levels);
    uint32_t e = p[0], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    float d;

    memcpy(&d, &bits, sizeof d);
    put_scaled(listed(&l, halves32(p + 1)), all8(d), all8(d), y);
}

/* A run's scale is half an e4m3 without its sign, 0 in place of NaN: an f16 of the same bits is
 * 2^-8 of it. Its numbers are the low halves of 8 bytes, then the high ones. */
INLINE void block_nvfp4(const uint8_t *p, float *y)
{
    struct levels l = levels_of(fp4_levels);
    __m128i s = _mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)p));
    __m128i bits = _mm_and_si128(_mm_slli_epi16(s, 7), _mm_set1_epi16(0x3f80));
    __m128i h = _mm_andnot_si128(_mm_cmpeq_epi16(s, _mm_set1_epi16(0x7f)), bits);
    __m128 by = _mm_mul_ps(_mm_cvtph_ps(h), _mm_set1_ps(128));
    float scale[4];

    memcpy(scale, &by, sizeof scale);
    IN_MEMORY(scale);
    for (int i = 0; i < 2; i++) {
        struct run32 x = listed(&l, halves32(p + 4 + 16 * i));
        f8x low = x.at[1];
        x.at[1] = x.at[2];
        x.at[2] = low;
        put_scaled(x, all8(scale[2 * i]), all8(scale[2 * i + 1]), y + 32 * i);
    }
}

/* --- 256 numbers --- */

INLINE void store8(float *p, f8x v)
{
    memcpy(p, &v, sizeof v);
}

/* Two bits: of a half byte that has two of them, the lower and the upper. */
static const int8_t low_pair[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
static const int8_t high_pair[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

INLINE void block_q2_K(const uint8_t *p, float *y)
{
    const uint64_t half = 0x0f0f0f0f0f0f0f0f;
    struct levels l[2] = {levels_of(low_pair), levels_of(high_pair)};
    float scale[16], min[16], d = half_at(p + 80), m = -half_at(p + 82);

    for (int i = 0; i < 16; i += 8) {
        store8(scale + i, word_bytes8(word_at(p + i) & half) * d);
        store8(min + i, word_bytes8(word_at(p + i) >> 4 & half) * m);
    }
    IN_MEMORY(scale);
    IN_MEMORY(min);
    for (int i = 0; i < 2; i++) {
        b32 q = woven32(p + 16 + 32 * i);
        for (int j = 0; j < 4; j++) {
            int r = 8 * i + 2 * j;
            put_run(listed(&l[j % 2], bits32(q, j / 2 * 4, 15)), scale + r, min + r, 1,
                    y + 16 * r);
        }
    }
}

/* Two runs of 16 that differ in their scale. */
INLINE void put_pair(struct run32 x, const float *scale, float *y)
{
    put_scaled(x, all8(scale[0]), all8(scale[1]), y);
}

INLINE void block_q3_K(const uint8_t *p, float *y)
{
    const uint64_t half = 0x0f0f0f0f0f0f0f0f, two = 0x0303030303030303;
    static const int8_t levels[16] = {-4, -3, -2, -1, 0, 1, 2, 3};
    struct levels l = levels_of(levels);
    float scale[16], d = half_at(p + 108);
    uint64_t four = word_at(p + 96), top = word_at(p + 102) >> 16 & 0xffffffff;
    b32 high = woven32(p);

    top |= top << 30;
    store8(scale, (word_bytes8((four & half) | (top & two) << 4) - 32) * d);
    store8(scale + 8, (word_bytes8((four >> 4 & half) | (top >> 4 & two) << 4) - 32) * d);
    IN_MEMORY(scale);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(woven32(p + 32 + i / 4 * 32), i % 4 * 2, 3);
        put_pair(listed(&l, q | moved32(high, i, 2, 4)), scale + 2 * i, y + i * 32);
    }
}

/* Eight scales and minima of 6 bits in 12 bytes (quant_k.c), as floats. */
INLINE void scales_k45(const uint8_t *p, float *scale, float *min)
{
    const uint64_t four = 0x0f0f0f0f, six = 0x3f3f3f3f, top = 0x30303030;
    uint32_t s[3];

    memcpy(s, p + 4, sizeof s);
    uint64_t a = (s[0] & six) | ((s[2] & four) | (s[0] >> 2 & top)) << 32;
    uint64_t b = (s[1] & six) | ((s[2] >> 4 & four) | (s[1] >> 2 & top)) << 32;
    store8(scale, word_bytes8(a) * half_at(p));
    store8(min, word_bytes8(b) * -half_at(p + 2));
}

INLINE void block_q4_K(const uint8_t *p, float *y)
{
    struct levels l = levels_of(count_levels);
    float scale[8], min[8];

    scales_k45(p, scale, min);
    IN_MEMORY(scale);
    IN_MEMORY(min);
    for (int i = 0; i < 8; i += 2) {
        b32 q = woven32(p + 16 + 16 * i);
        put_run(listed(&l, q & 15), scale + i, min + i, 0, y + 32 * i);
        put_run(listed(&l, bits32(q, 4, 15)), scale + i + 1, min + i + 1, 0, y + 32 * i + 32);
    }
}

INLINE void block_q5_K(const uint8_t *p, float *y)
{
    float scale[8], min[8];
    b32 high = woven32(p + 16);

    scales_k45(p, scale, min);
    IN_MEMORY(scale);
    IN_MEMORY(min);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(woven32(p + 48 + i / 2 * 32), i % 2 * 4, 15) | moved32(high, i, 4, 16);
        put_run(counted(q, 0), scale + i, min + i, 0, y + i * 32);
    }
}

INLINE void block_q6_K(const uint8_t *p, float *y)
{
    float scale[16], d = half_at(p + 208);

    store8(scale, bytes8(p + 192) * d);
    store8(scale + 8, bytes8(p + 200) * d);
    IN_MEMORY(scale);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(woven32(p + i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
        q |= moved32(woven32(p + 128 + i / 4 * 32), i % 4 * 2, 4, 0x30);
        put_pair(counted(q, 32), scale + 2 * i, y + i * 32);
    }
}

INLINE void block_iq4_xs(const uint8_t *p, float *y)
{
    const i8x by = {0, 4, 8, 12, 16, 20, 24, 28};
    struct levels l = levels_of(iq4_levels);
    int32_t low;
    uint16_t high;
    float scale[8];

    memcpy(&high, p + 2, sizeof high);
    memcpy(&low, p + 4, sizeof low);
    i8x six = ((low >> by) & 15) | ((high >> by / 2) & 3) << 4;
    store8(scale, __builtin_convertvector(six - 32, f8x) * half_at(p));
    IN_MEMORY(scale);
    for (int i = 0; i < 8; i++)
        put_scaled(listed(&l, halves32(p + 8 + 16 * i)), all8(scale[i]), all8(scale[i]),
                   y + 32 * i);
}

INLINE void block_tq2_0(const uint8_t *p, float *y)
{
    static const int8_t low[16] = {-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2};
    static const int8_t high[16] = {-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2};
    struct levels l[2] = {levels_of(low), levels_of(high)};
    f8x d = all8(half_at(p + 64));

    for (int i = 0; i < 2; i++) {
        b32 q = woven32(p + 32 * i);
        for (int j = 0; j < 4; j++)
            put_scaled(listed(&l[j % 2], bits32(q, j / 2 * 4, 15)), d, d, y + 128 * i + 32 * j);
    }
}

/* Asking for memory early gains 5 to 10 % where a block is no longer than a cache line. */
#define BLOCKS(name, len, size)                                              \
    static void blocks_##name(const uint8_t *p, int64_t n, float *dst)       \
    {                                                                        \
        for (int64_t i = 0; i < n / (len); i++) {                            \
            __builtin_prefetch(p + i * (size) + 1024);                       \
            block_##name(p + i * (size), dst + i * (len));                   \
        }                                                                    \
    }
BLOCKS(q4_0, 32, 18)
BLOCKS(q4_1, 32, 20)
BLOCKS(q5_0, 32, 22)
BLOCKS(q5_1, 32, 24)
BLOCKS(q8_0, 32, 34)
BLOCKS(q2_K, 256, 84)
BLOCKS(q3_K, 256, 110)
BLOCKS(q4_K, 256, 144)
BLOCKS(q5_K, 256, 176)
BLOCKS(q6_K, 256, 210)
BLOCKS(iq4_nl, 32, 18)
BLOCKS(iq4_xs, 256, 136)
BLOCKS(mxfp4, 32, 17)
BLOCKS(nvfp4, 64, 36)
BLOCKS(tq2_0, 256, 66)
#undef BLOCKS
#undef IN_MEMORY

/* Whole blocks; types without an entry go the scalar way. */
static void decode_blocks(enum dtype t, const void *src, int64_t n, float *dst)
{
    static void (*const fns[DT_COUNT])(const uint8_t *, int64_t, float *) = {
        [DT_Q4_0] = blocks_q4_0,     [DT_Q4_1] = blocks_q4_1,     [DT_Q5_0] = blocks_q5_0,
        [DT_Q5_1] = blocks_q5_1,     [DT_Q8_0] = blocks_q8_0,     [DT_Q2_K] = blocks_q2_K,
        [DT_Q3_K] = blocks_q3_K,     [DT_Q4_K] = blocks_q4_K,     [DT_Q5_K] = blocks_q5_K,
        [DT_Q6_K] = blocks_q6_K,     [DT_IQ4_NL] = blocks_iq4_nl, [DT_IQ4_XS] = blocks_iq4_xs,
        [DT_MXFP4] = blocks_mxfp4,   [DT_NVFP4] = blocks_nvfp4,   [DT_TQ2_0] = blocks_tq2_0,
    };

    if (fns[t] != NULL)
        fns[t](src, n, dst);
    else
        dtype_info(t)->decode(src, n, dst);
}
