/* SPDX-License-Identifier: MIT
 * Block types to f32 (layouts: tensor/quant_*.c, which define the numbers to the bit).
 *
 * Bytes are taken apart 16 or 32 at a time into signed bytes, which get_s8() makes floats of. A
 * level times its scale has at most 24 bits, so that product and minimum may be one step. */

typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint8_t b32 __attribute__((vector_size(32)));
typedef uint32_t w4 __attribute__((vector_size(16)));
typedef uint64_t l2 __attribute__((vector_size(16)));
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

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

/* n numbers d q + m; q: signed bytes. */
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

/* Numbers 0 .. 15 in the low halves, 16 .. 31 in the high ones. */
INLINE void split32(const uint8_t *p, b16 *q)
{
    b16 v = bytes16(p);

    q[0] = v & 15;
    q[1] = bits16(v, 4, 15);
}

/* Adds 16 where bit i of four bytes is set. */
INLINE void fifth_bits(const uint8_t *p, b16 *q)
{
    const b16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const b16 low = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    uint32_t bits;

    memcpy(&bits, p, sizeof bits);
    b16 v = (b16)(w4){bits, bits, bits, bits};
    q[0] |= (b16)((__builtin_shuffle(v, low) & bit) == bit) & 16;
    q[1] |= (b16)((__builtin_shuffle(v, low + 2) & bit) == bit) & 16;
}

INLINE void block_q4_0(const uint8_t *p, float *y)
{
    b16 q[2];

    split32(p + 2, q);
    q[0] -= 8;
    q[1] -= 8;
    put_scaled(q, 32, half_at(p), y);
}

INLINE void block_q4_1(const uint8_t *p, float *y)
{
    b16 q[2];

    split32(p + 4, q);
    put_run(q, 32, half_at(p), half_at(p + 2), y);
}

INLINE void block_q5_0(const uint8_t *p, float *y)
{
    b16 q[2];

    split32(p + 6, q);
    fifth_bits(p + 2, q);
    q[0] -= 16;
    q[1] -= 16;
    put_scaled(q, 32, half_at(p), y);
}

INLINE void block_q5_1(const uint8_t *p, float *y)
{
    b16 q[2];

    split32(p + 8, q);
    fifth_bits(p + 4, q);
    put_run(q, 32, half_at(p), half_at(p + 2), y);
}

INLINE void block_q8_0(const uint8_t *p, float *y)
{
    __builtin_prefetch(p + 1024); /* 10 % faster; other types do not reach memory's speed */
    put_scaled(p + 2, 32, half_at(p), y);
}

/* --- 256 numbers --- */

/* Sixteen scales, or minima, as floats. */
INLINE void scales16(b16 q, float d, float *scale)
{
    put_scaled(&q, 16, d, scale);
}

INLINE void block_q2_K(const uint8_t *p, float *y)
{
    b16 s = bytes16(p);
    float scale[16], min[16];

    scales16(s & 15, half_at(p + 80), scale);
    scales16(bits16(s, 4, 15), -half_at(p + 82), min);
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + 16 + i / 4 * 32), i % 4 * 2, 3);
        put_run(&q, 16, scale[2 * i], min[2 * i], y + i * 32);
        put_run((const uint8_t *)&q + 16, 16, scale[2 * i + 1], min[2 * i + 1], y + i * 32 + 16);
    }
}

/* Two runs of 16 that differ only in their scale. */
INLINE void put_pair(b32 q, const float *scale, float *y)
{
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
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + 32 + i / 4 * 32), i % 4 * 2, 3);
        put_pair(q + (b32)((h16)bits32(high, i, 1) << 2) - 4, scale + 2 * i, y + i * 32);
    }
}

/* high: fifth bits, or NULL. Scales and minima are 6 bits in 12 bytes (quant_k.c). */
INLINE void block_k45(const uint8_t *p, const uint8_t *high, const uint8_t *low, float *y)
{
    const uint32_t four = 0x0f0f0f0f, six = 0x3f3f3f3f, top = 0x30303030;
    float d = half_at(p), m = half_at(p + 2);
    uint32_t s[3], pairs[4];
    uint8_t scale[16];

    memcpy(s, p + 4, sizeof s);
    pairs[0] = s[0] & six;
    pairs[1] = (s[2] & four) | (s[0] >> 2 & top);
    pairs[2] = s[1] & six;
    pairs[3] = (s[2] >> 4 & four) | (s[1] >> 2 & top);
    memcpy(scale, pairs, sizeof scale);
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(low + i / 2 * 32), i % 2 * 4, 15);
        if (high)
            q |= (b32)((h16)bits32(bytes32(high), i, 1) << 4);
        put_run(&q, 32, d * (float)scale[i], -(m * (float)scale[i + 8]), y + i * 32);
    }
}

INLINE void block_q4_K(const uint8_t *p, float *y)
{
    block_k45(p, NULL, p + 16, y);
}

INLINE void block_q5_K(const uint8_t *p, float *y)
{
    block_k45(p, p + 16, p + 48, y);
}

INLINE void block_q6_K(const uint8_t *p, float *y)
{
    float scale[16];

    scales16(bytes16(p + 192), half_at(p + 208), scale);
    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + i / 4 * 64 + i % 2 * 32), i % 4 / 2 * 4, 15);
        q |= (b32)((h16)bits32(bytes32(p + 128 + i / 4 * 32), i % 4 * 2, 3) << 4);
        put_pair(q - 32, scale + 2 * i, y + i * 32);
    }
}

INLINE void block_tq2_0(const uint8_t *p, float *y)
{
    float d = half_at(p + 64);

    for (int i = 0; i < 8; i++) {
        b32 q = bits32(bytes32(p + i / 4 * 32), i % 4 * 2, 3) - 1;
        put_scaled(&q, 32, d, y + i * 32);
    }
}

/* --- listed levels --- */

static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t fp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

INLINE void listed32(const uint8_t *p, const int8_t *levels, float d, float *y)
{
    b16 q[2], table = bytes16((const uint8_t *)levels);

    split32(p, q);
    q[0] = __builtin_shuffle(table, q[0]);
    q[1] = __builtin_shuffle(table, q[1]);
    put_scaled(q, 32, d, y);
}

INLINE void block_iq4_nl(const uint8_t *p, float *y)
{
    listed32(p + 2, iq4_levels, half_at(p), y);
}

INLINE void block_iq4_xs(const uint8_t *p, float *y)
{
    float d = half_at(p);
    int high = p[2] | p[3] << 8;

    for (int i = 0; i < 8; i++) {
        int scale = (p[4 + i / 2] >> i % 2 * 4 & 15) | (high >> 2 * i & 3) << 4;
        listed32(p + 8 + 16 * i, iq4_levels, d * (float)(scale - 32), y + 32 * i);
    }
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
        b16 q[2];
        split32(p + 4 + 16 * i, q);
        for (int r = 0; r < 2; r++) {
            uint8_t s = p[2 * i + r];
            float d = _cvtsh_ss((uint16_t)((s & 0x7f) << 7)) * (s == 0x7f ? 0.0f : 128.0f);
            b16 run = (b16)(l2){((l2)q[0])[r], ((l2)q[1])[r]};
            run = __builtin_shuffle(bytes16((const uint8_t *)fp4_levels), run);
            put_scaled(&run, 16, d, y + 32 * i + 16 * r);
        }
    }
}

#define BLOCKS(name, len, size)                                              \
    static void blocks_##name(const uint8_t *p, int64_t n, float *dst)       \
    {                                                                        \
        for (int64_t i = 0; i < n / (len); i++)                              \
            block_##name(p + i * (size), dst + i * (len));                   \
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
