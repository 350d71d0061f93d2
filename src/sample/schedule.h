/* SPDX-License-Identifier: MIT
 * sample/schedule - noise levels of Stable Diffusion and how a run walks down them.
 *
 * sigma is the standard deviation of the noise in x = latent + sigma * noise; timesteps 0..999
 * count the 1000 levels that the models were trained at, and may have a fraction. */
#ifndef SAMPLE_SCHEDULE_H
#define SAMPLE_SCHEDULE_H
#include "base/base.h"
#include <kron/model.h>

enum { LEVELS_COUNT = 1000, SCHEDULE_MAX_STEPS = 999 };

/* sigma[t] = sqrt((1 - a) / a), a the running product of 1 - beta, sqrt(beta) evenly spaced from
 * sqrt(0.00085) to sqrt(0.012): 0.02917 to 14.61. Read-only after levels_init(). */
struct noise_levels {
    double sigma[LEVELS_COUNT], log_sigma[LEVELS_COUNT];
};
void levels_init(struct noise_levels *l);

/* Linear in log sigma between levels; beyond the ends: the nearest end. */
double sigma_to_t(const struct noise_levels *l, double sigma);
double t_to_sigma(const struct noise_levels *l, double t);

enum schedule {
    /* What users name. n levels, falling, then 0. */
    SCHEDULE_DISCRETE,    /* timesteps evenly spaced, from 999 to 0 */
    SCHEDULE_KARRAS,      /* Karras et al. 2022, rho 7, between the first and last level */
    SCHEDULE_EXPONENTIAL, /* log sigma evenly spaced */
    SCHEDULE_AYS,         /* Sabour et al. 2024, "Align Your Steps", table 3, log-linear between */
    SCHEDULE_SGM_UNIFORM, /* timesteps evenly spaced from 999, 0 left out */
    SCHEDULE_SIMPLE,      /* every (1000 / n)-th level from the top */
    SCHEDULE_NAMED,       /* how many of these there are */
    /* What some samplers take by themselves: whole timesteps. */
    SCHEDULE_DDIM,          /* 1 + i * (1000 div n); ends at the level of timestep 0, not at 0 */
    SCHEDULE_DDIM_TRAILING, /* 999 - round(i * 1000 / n); the same end */
    SCHEDULE_UNI_PC         /* n + 1 evenly spaced ones, rounded, less the last; then 0 */
};

/* Case and '_', '-', ' ' do not count. NULL and "" are SCHEDULE_DISCRETE.
 * KRON_ERR_ARGUMENT names those there are. */
kron_status schedule_find(enum schedule *out, const char *name);
/* The i-th of the named ones; NULL past the end. */
const char *schedule_name(int i);

/* The n + 1 sigmas of n steps, strictly falling.
 *   arch  chooses the table of SCHEDULE_AYS.
 * KRON_ERR_ARGUMENT unless 1 <= n <= SCHEDULE_MAX_STEPS: more steps would repeat levels. */
kron_status schedule_sigmas(double *out, enum schedule s, int n, kron_arch arch,
                            const struct noise_levels *l);

/* KRON_ERR_ARGUMENT unless the n + 1 numbers are finite, strictly falling, and the last is >= 0. */
kron_status schedule_check(const double *sigmas, int n);

/* Image to image: the first step to run of n_steps, so that sigmas + first and n_steps - first go
 * to the sampler. The rule of A1111 and stable-diffusion.cpp: with t = whole part of
 * strength * n_steps, at most n_steps - 1, the last t + 1 steps run. Thus strength 1 runs all and
 * strength 0 one. strength is clamped to [0, 1]. */
int schedule_first_step(int n_steps, double strength);

/* True if two names are equal but for case and '_', '-', ' '. */
bool sample_name_equal(const char *a, const char *b);

#endif
