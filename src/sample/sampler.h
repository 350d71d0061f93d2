/* SPDX-License-Identifier: MIT
 * sample/sampler - from noise to a latent, given a network that estimates the noise.
 *
 * All samplers work on x = latent + sigma * noise and on the denoised estimate of the latent,
 * which the run makes of the network's output; so guidance, inpainting and previews need not know
 * which sampler runs. DDIM and UniPC, written for x of unit variance, are the same methods in
 * these variables: only their start and end are scaled (`unit_variance`).
 *
 * A run: schedule_sigmas(), sample_start(), sample_run(). */
#ifndef SAMPLE_SAMPLER_H
#define SAMPLE_SAMPLER_H
#include "sample/schedule.h"

struct sample_state; /* of one run: sample/steps.h */

struct sampler {
    const char *name;
    const char *alias[3];      /* others' names; NULL past the last */
    kron_status (*step)(struct sample_state *r, int i);
    int evaluations;           /* network calls per step; a last step to sigma 0 takes one */
    int n_vectors;             /* scratch vectors that the step uses */
    double eta;                /* its own amount of new noise; negative: it never adds any and
                                  ignores sample_job.eta */
    bool always_noise;         /* adds noise whatever eta is (lcm) */
    bool unit_variance;        /* sample_run() takes x / sqrt(1 + sigma^2) and returns it so */
    enum schedule schedule;    /* taken where the user names none */
};

/* Case and '_', '-', ' ' do not count: "Euler a" is euler_a. NULL and "" are euler_a.
 * KRON_ERR_ARGUMENT names those there are. */
kron_status sampler_find(const struct sampler **out, const char *name);
/* In the order to show them; NULL past the end. */
const struct sampler *sampler_at(int i);
/* The schedule of a run: the sampler's own if `asked` is SCHEDULE_DISCRETE, else `asked`. */
enum schedule sampler_schedule(const struct sampler *s, enum schedule asked);
/* Whether a run will call sample_job.noise. eta as in sample_job. */
bool sampler_adds_noise(const struct sampler *s, double eta);

/* The state before the first step, at noise level sigma = sigmas[0].
 *   noise  n numbers of unit variance.
 *   init   the latent to start from (image to image); NULL: none. x may be either of the two. */
void sample_start(const struct sampler *s, double sigma, const float *noise, const float *init,
                  float *x, int64_t n);

/* x, a batch of latents, is one vector of n numbers here. */
struct sample_job {
    const struct sampler *sampler;
    const struct noise_levels *levels;
    const double *sigmas;  /* n_steps + 1, strictly falling, the last >= 0 */
    int n_steps;
    int64_t n;
    double eta;            /* negative: the sampler's own */
    kron_prediction prediction; /* what network() returns: EPS or V */

    /* The guided output for x of unit variance at timestep t, which may have a fraction.
     * An error ends the run and is returned. */
    kron_status (*network)(void *user, const float *x, double t, float *out);
    /* n numbers of unit variance, for step `step` from 0. dpm++sde calls twice a step. May be
     * NULL if sampler_adds_noise() is false. */
    void (*noise)(void *user, int step, float *out, int64_t n);
    /* Changes the estimate before it is used (inpainting: puts back what must stay). NULL: none. */
    void (*edit)(void *user, double sigma, float *denoised);
    /* After each step: steps done, x at noise level sigmas[done] (not scaled), and the estimate
     * that the step started from. Nonzero ends the run: KRON_ERR_CANCELLED. NULL: none. */
    int (*progress)(void *user, int done, const float *x, const float *denoised);
    void *user;
};

/* Takes x from sigmas[0] to sigmas[n_steps]. After an error the content of x is undefined.
 * Errors: KRON_ERR_ARGUMENT (sigmas), KRON_ERR_MEMORY, KRON_ERR_CANCELLED, those of network(). */
kron_status sample_run(const struct sample_job *job, float *x);

#endif
