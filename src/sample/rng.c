/* SPDX-License-Identifier: MIT
 * Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
 * MT19937: Matsumoto and Nishimura (1998). What is torch's own is which words become which
 * number, and in which precision: the roundings below are part of the contract. */
#include "sample/rng.h"
#include <math.h>

#define TWO_PI 6.283185307179586476925

/* --- CUDA --- */

struct philox {
    uint32_t word[4];
};

static struct philox philox_round(struct philox c, uint32_t key0, uint32_t key1)
{
    uint64_t p0 = (uint64_t)0xD2511F53u * c.word[0];
    uint64_t p1 = (uint64_t)0xCD9E8D57u * c.word[2];
    return (struct philox){{(uint32_t)(p1 >> 32) ^ c.word[1] ^ key0, (uint32_t)p1,
                            (uint32_t)(p0 >> 32) ^ c.word[3] ^ key1, (uint32_t)p0}};
}

/* Block number `call` of the stream of GPU thread `thread`. */
static struct philox philox_block(uint64_t seed, uint64_t call, uint64_t thread)
{
    struct philox c = {{(uint32_t)call, (uint32_t)(call >> 32), (uint32_t)thread,
                        (uint32_t)(thread >> 32)}};
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        c = philox_round(c, key0, key1);
        key0 += 0x9E3779B9u; /* golden ratio and sqrt(3) - 1, as the paper chose */
        key1 += 0xBB67AE85u;
    }
    return c;
}

/* The first of the four normals that curand makes of a block: torch uses the others only where
 * there are more elements than threads. fmaf because the device contracts there, which decides
 * how uniforms close to 1 round. */
static float curand_normal(struct philox c)
{
    const float unit = 0x1p-32f, turn = (float)(TWO_PI * 0x1p-32);
    float u = fmaf((float)c.word[0], unit, unit / 2);
    float v = fmaf((float)c.word[1], turn, turn / 2);
    float radius = sqrtf(-2.0f * (float)log((double)u));
    return (float)sin((double)v) * radius;
}

static void cuda_normal(struct rng *r, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = curand_normal(philox_block(r->seed, r->calls, (uint64_t)i));
    r->calls++;
}

/* --- CPU --- */

static void twister_seed(struct rng *r)
{
    uint32_t *s = r->twister;
    s[0] = (uint32_t)r->seed; /* torch drops the upper half of the seed too */
    for (uint32_t i = 1; i < RNG_TWISTER_WORDS; i++)
        s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + i;
    r->twister_at = RNG_TWISTER_WORDS;
}

static void twister_refill(struct rng *r)
{
    enum { N = RNG_TWISTER_WORDS, M = 397 };
    uint32_t *s = r->twister;
    for (int i = 0; i < N; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % N] & 0x7fffffffu);
        s[i] = s[(i + M) % N] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfu : 0u);
    }
    r->twister_at = 0;
}

static uint32_t twister_next(struct rng *r)
{
    if (r->twister_at == RNG_TWISTER_WORDS)
        twister_refill(r);
    uint32_t y = r->twister[r->twister_at++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static float uniform_float(struct rng *r)
{
    return (float)(twister_next(r) & 0xffffffu) * 0x1p-24f;
}

static double uniform_double(struct rng *r)
{
    uint64_t high = twister_next(r);
    uint64_t word = high << 32 | twister_next(r);
    return (double)(word & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* 16 uniforms become 16 normals in place: pairs are (j, j + 8). Angle and radius are rounded to
 * float where torch's vector code does so; its own log, sine and cosine are good to 1 or 2 units
 * in the last place, and so is what remains between the two. */
static void box_muller_16(float *v)
{
    const float two_pi = (float)TWO_PI;
    for (int j = 0; j < 8; j++) {
        float u = 1.0f - v[j];
        float radius = sqrtf(-2.0f * (float)log((double)u));
        float angle = two_pi * v[j + 8];
        v[j] = radius * (float)cos((double)angle);
        v[j + 8] = radius * (float)sin((double)angle);
    }
}

/* torch draws 16 fresh uniforms for a last, partial block and lets it overlap the one before. */
static void cpu_normal_blocks(struct rng *r, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = uniform_float(r);
    for (int64_t i = 0; i + 16 <= n; i += 16)
        box_muller_16(out + i);
    if (n % 16 == 0)
        return;
    float *tail = out + n - 16;
    for (int i = 0; i < 16; i++)
        tail[i] = uniform_float(r);
    box_muller_16(tail);
}

static double cpu_normal_double(struct rng *r)
{
    if (r->has_spare) {
        r->has_spare = false;
        return r->spare;
    }
    double u1 = uniform_double(r), u2 = uniform_double(r);
    double radius = sqrt(-2.0 * log1p(-u2)), angle = TWO_PI * u1;
    r->spare = radius * sin(angle);
    r->has_spare = true;
    return radius * cos(angle);
}

static void cpu_normal(struct rng *r, float *out, int64_t n)
{
    if (n >= 16) {
        cpu_normal_blocks(r, out, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)cpu_normal_double(r);
}

void rng_init(struct rng *r, kron_rng kind, uint64_t seed)
{
    *r = (struct rng){.kind = kind, .seed = seed};
    if (kind == KRON_RNG_CPU)
        twister_seed(r);
}

void rng_normal(struct rng *r, float *out, int64_t n)
{
    if (n <= 0)
        return;
    if (r->kind == KRON_RNG_CPU)
        cpu_normal(r, out, n);
    else
        cuda_normal(r, out, n);
}
