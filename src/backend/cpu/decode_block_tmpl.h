/* SPDX-License-Identifier: MIT
 * Block types to f32 (layouts: tensor/quant_*.c, which define the numbers to the bit).
 *
 * Two ways, whichever has fewer steps for a number. Nibbles without more bits are widened from
 * where they lie, once for the low and the high half. All others are taken apart 32 bytes at a
 * time into signed bytes, which get_s8() makes floats of. A level times its scale has at most 24
 * bits, so that product and minimum may be one step. */

typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint8_t b32 __attribute__((vector_size(32)));
typedef uint32_t w4 __attribute__((vector_size(16)));
typedef int32_t i8x __attribute__((vector_size(32)));
typedef float f8x __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint16_t h16 __attribute__((vector_size(32)));

INLINE b16 bytes16(const uint8_t *p)
{
    b16 v;

    memcpy(&v, p, sizeof v);
    return v;
}

INLINE b32 bytes32(const uint8_t *p)
{
    b32 v;

    memcpy(&v, p, sizeof v);
    return v;
}

/* `mask` of each byte, n bits further up. */
INLINE b16 bits16(b16 v, int n, uint8_t mask)
{
    return (b16)((h8)v >> n) & mask;
}

INLINE b32 bits32(b32 v, int n, uint8_t mask)
{
    return (b32)((h16)v >> n) & mask;
}

/* Bits from number `from` of each byte on, moved to number `to`, those of the mask. */
INLINE b32 moved32(b32 v, int from, int to, uint8_t mask)
{
    return (from > to ? (b32)((h16)v >> (from - to)) : (b32)((h16)v << (to - from))) & mask;
}

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

/* Bytes put together in a register go through memory, where widening loads take them up: the
 * compiler would shift them out of the register, at twice the steps. */
#define IN_MEMORY(q) __asm__("" : "+m"(q))

/* n numbers d q + m; q: signed bytes in memory. */
INLINE void put_run(const void *q, int n, float d, float m, float *dst)
{
    for (int i = 0; i < n; i += VL)
        vstore(dst + i, VFMA(get_s8((const char *)q + i), vset(d), vset(m)));
}

INLINE void put_scaled(const void *q, int n, float d, float *dst)
{
    for (int i = 0; i < n; i += VL)
        vstore(dst + i, get_s8((const char *)q + i) * d);
}

/* low[i] = d[0] q + m[0] of the low halves of n bytes, high[i] = d[1] q + m[1] of the high ones. */
INLINE void put_halves(const uint8_t *p, int n, const float *d, const float *m, float *low,
                       float *high)
{
    for (int i = 0; i < n; i += VL) {
        vi v = get_u8(p + i);
        vstore(low + i, VFMA(VFLOATS(v & 15), vset(d[0]), vset(m[0])));
        vstore(high + i, VFMA(VFLOATS(v >> 4), vset(d[1]), vset(m[1])));
    }
}

/* The low halves of 16 bytes, then the high ones. */
INLINE b32 halves32(const uint8_t *p)
{
    const __m256i by = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));

    return (b32)_mm256_srlv_epi32(twice, by) & 15;
}

/* levels[q] of each byte q < 16. */
INLINE b32 listed(const int8_t *levels, b32 q)
{
    __m128i table = _mm_loadu_si128((const void *)levels);

    return (b32)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)q);
}

/* All ones where bit i of four bytes is `set`. */
INLINE b32 where_bits(const uint8_t *p, bool set)
{
    const b32 from = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                      2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    const b32 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                     1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    int bits;

    memcpy(&bits, p, sizeof bits);
    b32 v = (b32)_mm256_shuffle_epi8(_mm256_set1_epi32(bits), (__m256i)from) & bit;
    return set ? (b32)(v == bit) : (b32)(v == 0);
}

/* A half with its highest bit turned is q - 8 as a signed number of 4 bits. It is left in the upper
 * bits of what it is widened to, and the scale makes up for that. */
INLINE void block_q4_0(const uint8_t *p, float *y)
{
    b16 q = bytes16(p + 2) ^ 0x88;
    float d = half_at(p), low = d * 0x1p-28f, high = d * 0x1p-4f;

    IN_MEMORY(q);
    for (int i = 0; i < 16; i += VL) {
        vi v = get_i8((const char *)&q + i);
        vstore(y + i, VFLOATS(v << 28) * low);
        vstore(y + 16 + i, VFLOATS(v & ~15) * high);
    }
}

INLINE void block_q4_1(const uint8_t *p, float *y)
{
    float d = half_at(p), m = half_at(p + 2), dd[2] = {d, d}, mm[2] = {m, m};

    put_halves(p + 4, 16, dd, mm, y, y + 16);
}

/* Without a fifth bit 16 less, which is the upper half of a byte. */
INLINE void block_q5_0(const uint8_t *p, float *y)
{
    b32 q = halves32(p + 6) | (where_bits(p + 2, false) & 0xf0);

    IN_MEMORY(q);
    put_scaled(&q, 32, half_at(p), y);
}

INLINE void block_q5_1(const uint8_t *p, float *y)
{
    b32 q = halves32(p + 8) | (where_bits(p + 4, true) & 16);

    IN_MEMORY(q);
    put_run(&q, 32, half_at(p), half_at(p + 2), y);
}

INLINE void block_q8_0(const uint8_t *p, float *y)
{
    put_scaled(p + 2, 32, half_at(p), y);
}

/* --- 256 numbers --- */

/* Sixteen scales, or minima, as floats. */
INLINE void scales16(b16 q, float d, float *scale)
{
    IN_MEMORY(q);
    put_scaled(&q, 16, d, scale);
}

INLINE void block_q2_K(const uint8_t *p, float *y)
{
    b16 s = bytes16(p);
    float scale[16], min[16];

    scales16(s & 15, half_at(p + 80), scale);
    scales16(bits16(s, 4, 15), -half_at(p + 82), min);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + 16 + i / 4 * 32), i % 4 * 2, 3);
        IN_MEMORY(q);
        put_run(&q, 16, scale[2 * i], min[2 * i], y + i * 32);
        put_run((const uint8_t *)&q + 16, 16, scale[2 * i + 1], min[2 * i + 1], y + i * 32 + 16);
    }
}

/* Two runs of 16 that differ only in their scale. */
INLINE void put_pair(b32 q, const float *scale, float *y)
{
    IN_MEMORY(q);
    put_scaled(&q, 16, scale[0], y);
    put_scaled((const uint8_t *)&q + 16, 16, scale[1], y + 16);
}

INLINE void block_q3_K(const uint8_t *p, float *y)
{
    const uint32_t low = 0x0f0f0f0f, two = 0x03030303;
    uint32_t s[3];
    float scale[16];
    b32 high = bytes32(p);

    memcpy(s, p + 96, sizeof s);
    w4 six = {(s[0] & low) | (s[2] & two) << 4, (s[1] & low) | (s[2] >> 2 & two) << 4,
              (s[0] >> 4 & low) | (s[2] >> 4 & two) << 4,
              (s[1] >> 4 & low) | (s[2] >> 6 & two) << 4};
    scales16((b16)six - 32, half_at(p + 108), scale);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + 32 + i / 4 * 32), i % 4 * 2, 3);
        put_pair((q | moved32(high, i, 2, 4)) - 4, scale + 2 * i, y + i * 32);
    }
}

/* Eight scales and minima of 6 bits in 12 bytes (quant_k.c), as floats. */
INLINE void scales_k45(const uint8_t *p, float *scale, float *min)
{
    const uint32_t four = 0x0f0f0f0f, six = 0x3f3f3f3f, top = 0x30303030;
    uint32_t s[3];

    memcpy(s, p + 4, sizeof s);
    w4 pairs = {s[0] & six, (s[2] & four) | (s[0] >> 2 & top), s[1] & six,
                (s[2] >> 4 & four) | (s[1] >> 2 & top)};
    IN_MEMORY(pairs);
    float both[16], d = half_at(p), m = -half_at(p + 2);
    put_scaled(&pairs, 16, 1, both);
    for (int i = 0; i < 8; i++) {
        scale[i] = d * both[i];
        min[i] = m * both[i + 8];
    }
}

INLINE void block_q4_K(const uint8_t *p, float *y)
{
    float scale[8], min[8];

    scales_k45(p, scale, min);
    for (int i = 0; i < 8; i += 2)
        put_halves(p + 16 + 16 * i, 32, scale + i, min + i, y + 32 * i, y + 32 * i + 32);
}

INLINE void block_q5_K(const uint8_t *p, float *y)
{
    float scale[8], min[8];
    b32 high = bytes32(p + 16);

    scales_k45(p, scale, min);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + 48 + i / 2 * 32), i % 2 * 4, 15);
        q |= moved32(high, i, 4, 16);
        IN_MEMORY(q);
        put_run(&q, 32, scale[i], min[i], y + i * 32);
    }
}

INLINE void block_q6_K(const uint8_t *p, float *y)
{
    float scale[16];

    scales16(bytes16(p + 192), half_at(p + 208), scale);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
        q |= moved32(bytes32(p + 128 + i / 4 * 32), i % 4 * 2, 4, 0x30);
        put_pair(q - 32, scale + 2 * i, y + i * 32);
    }
}

INLINE void block_tq2_0(const uint8_t *p, float *y)
{
    float d = half_at(p + 64);

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + i / 4 * 32), i % 4 * 2, 3) - 1;
        IN_MEMORY(q);
        put_scaled(&q, 32, d, y + i * 32);
    }
}

/* --- listed levels --- */

static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t fp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

INLINE void listed32(const uint8_t *p, const int8_t *levels, float d, float *y)
{
    b32 q = listed(levels, halves32(p));

    IN_MEMORY(q);
    put_scaled(&q, 32, d, y);
}

INLINE void block_iq4_nl(const uint8_t *p, float *y)
{
    listed32(p + 2, iq4_levels, half_at(p), y);
}

INLINE void block_iq4_xs(const uint8_t *p, float *y)
{
    const i8x d = {0, 4, 8, 12, 16, 20, 24, 28};
    int32_t low;
    uint16_t high;
    float scale[8];

    memcpy(&high, p + 2, sizeof high);
    memcpy(&low, p + 4, sizeof low);
    i8x six = ((low >> d) & 15) | ((high >> d / 2) & 3) << 4;
    f8x by = __builtin_convertvector(six - 32, f8x) * half_at(p);
    memcpy(scale, &by, sizeof scale);
    for (int i = 0; i < 8; i++)
        listed32(p + 8 + 16 * i, iq4_levels, scale[i], y + 32 * i);
}

/* Scale 2^(e - 128), of which the least two are subnormal. */
INLINE void block_mxfp4(const uint8_t *p, float *y)
{
    uint32_t e = p[0], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    float d;

    memcpy(&d, &bits, sizeof d);
    listed32(p + 1, fp4_levels, d, y);
}

/* A run's scale is half an e4m3 without its sign, 0 in place of NaN: an f16 of the same bits is
 * 2^-8 of it. Its numbers are the low halves of 8 bytes, then the high ones. */
INLINE void block_nvfp4(const uint8_t *p, float *y)
{
    for (int i = 0; i < 2; i++) {
        __m256i q = _mm256_permute4x64_epi64((__m256i)halves32(p + 4 + 16 * i), 0xd8);
        float scale[2];
        for (int r = 0; r < 2; r++) {
            uint8_t s = p[2 * i + r];
            scale[r] = _cvtsh_ss((uint16_t)((s & 0x7f) << 7)) * (s == 0x7f ? 0.0f : 128.0f);
        }
        put_pair(listed(fp4_levels, (b32)q), scale, y + 32 * i);
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
