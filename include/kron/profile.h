/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/profile.h - where the time of a job goes.
 *
 * A session reports each operation of its networks when it is done: what it was, when it ran, and
 * what it has to do at the least. Summing up and printing are the caller's. Where nobody asks, an
 * operation costs one branch more. What is no operation of a network is not reported: reading
 * files, planning, the sampler, turning pixels to bytes. */
#ifndef KRON_PROFILE_H
#define KRON_PROFILE_H
#include <kron/model.h>
#include <kron/session.h>
KRON_API_BEGIN

/* One operation that ran. Strings are static or the model's: valid as long as that.
 *
 * flops counts the products of the layer or of the attention by their definition, a multiply-add
 * as two: an algorithm that gets along with fewer (Winograd's for convolutions) or numbers that
 * are smaller (int8) can go beyond the peak of f32 products, so rates made of it are effective
 * rates. What adapters add is in the time, not in flops: they make the rate lower.
 *
 * Bytes count each weight as it is stored or kept and each input and output once, as f32. Numbers
 * that are still in cache when they are used make an operation faster than the memory is. */
typedef struct kron_operation {
    const char *part;    /* "text encoder", "text encoder 2", "unet", "vae decoder", ... */
    const char *kind;    /* "linear", "conv2d", "attention", "group_norm", ... */
    const char *layer;   /* name in the model, as diffusers has it; "" where it has no weight */
    const char *type;    /* how the weight is stored: "F16", "Q8_0", ...; "" without a weight */
    const char *compute; /* what its products are made of: "f32", "int8"; "" without any */
    const char *route;   /* how its adapters act: "weight", "activation", "merged", "mixed"; "" if
                          * there are none on this layer */
    double start;        /* seconds, of a monotonic clock with an arbitrary start */
    double seconds;
    double flops;        /* 0 where nothing is multiplied but elementwise */
    double weight_bytes;
    double value_bytes;  /* of inputs and output */
    int64_t in[4];       /* shape of the first input: samples, height, width, channels. Tokens
                          * stand in one row: height 1 */
    int64_t out[4];
    int64_t other;       /* attention: tokens that each token looks at; else 0 */
    int window[2];       /* convolution: height and width of its window; else 0 */
} kron_operation;

/* Called after each operation by the thread that called kron_generate(), in the order in which
 * they run. It is part of the job's time, not of any operation's. */
typedef void (*kron_profile_fn)(const kron_operation *op, void *user);

/* From the next job on; NULL: nothing is timed any more.
 * Errors: KRON_ERR_ARGUMENT without a session, or while it draws. */
KRON_API kron_status kron_session_set_profile(kron_session *s, kron_profile_fn fn, void *user);

/* What the model's device reaches at best, measured in this call with all its workers: takes about
 * a quarter of a second and 128 MiB of memory. Other programs make it less. */
typedef struct kron_peak {
    double flops; /* a second: f32 product of two matrices of 1024 x 1024 */
    double bytes; /* a second: copy of 64 MiB, bytes read and bytes written both counted */
} kron_peak;

/* The least time of an operation by these is max(flops / peak.flops, bytes / peak.bytes): the
 * roofline. Errors: KRON_ERR_UNSUPPORTED for the device "ref"; KRON_ERR_MEMORY. */
KRON_API kron_status kron_model_measure_peak(kron_model *m, kron_peak *out);

KRON_API_END
#endif
