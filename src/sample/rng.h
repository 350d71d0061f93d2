/* SPDX-License-Identifier: MIT
 * sample/rng - normal random numbers, the same ones that PyTorch draws from the same seed.
 *
 * KRON_RNG_CUDA: torch.randn(n, device="cuda"). Each number comes from a Philox4x32-10 block of
 * its own. A GPU of more than 4096 x 256 threads does this for any n; others do so up to their
 * number of resident threads (T4 40,960; RTX 3090 125,952; RTX 4090 196,608; A100 221,184;
 * H100 270,336), beyond which torch's numbers depend on the GPU. Latents are below it:
 * 1024 x 1024 pixels are 65,536 numbers. For larger n this generator goes on as in the small case,
 * as A1111's "NV" source does. Device code takes fast sine and cosine, so that the last digits
 * differ between a GPU and here (within 5e-6).
 *
 * KRON_RNG_CPU: torch.randn(n) with torch.Generator("cpu"), Mersenne Twister. */
#ifndef SAMPLE_RNG_H
#define SAMPLE_RNG_H
#include "base/base.h"
#include <kron/session.h>

enum { RNG_TWISTER_WORDS = 624 };

struct rng {
    kron_rng kind;
    uint64_t seed;
    uint64_t calls;   /* CUDA: of rng_normal() so far */
    uint32_t twister[RNG_TWISTER_WORDS];
    int twister_at;   /* next word to hand out */
    bool has_spare;   /* CPU: the second normal of a pair waits for the next short call */
    double spare;
};

/* Any seed is valid. The struct holds no memory of its own: copies are independent generators. */
void rng_init(struct rng *r, kron_rng kind, uint64_t seed);

/* One torch.randn() call: fills out[n] and moves on. n = 0 draws nothing. Where numbers are split
 * into calls matters: 16 numbers are not the 8 and 8 of two calls. */
void rng_normal(struct rng *r, float *out, int64_t n);

#endif
