/* SPDX-License-Identifier: MIT
 * sample/steps - what the samplers are made of; for this room only.
 *
 * A step takes r->x from r->sigma[i] to r->sigma[i + 1]. It must leave the estimate at r->x's old
 * place in r->denoised. Coefficients are computed in double, vectors are float. */
#ifndef SAMPLE_STEPS_H
#define SAMPLE_STEPS_H
#include "sample/sampler.h"

enum { SAMPLE_MAX_VECTORS = 4 };

struct sample_state {
    const struct sample_job *job;
    const double *sigma;
    int n_steps;
    int64_t n;
    double eta;       /* 0 where the sampler takes none */
    float *x;
    float *denoised;
    float *scratch;   /* free outside of sample_denoise() */
    float *v[SAMPLE_MAX_VECTORS]; /* the sampler's own, kept from step to step; zero at first */
};

/* out = the estimate of the latent in x at noise level sigma. */
kron_status sample_denoise(struct sample_state *r, const float *x, double sigma, float *out);

struct sample_term {
    double factor;
    const float *v;
};
/* out = sum of factor * v over the terms, each element in double. out may be one of the v. */
void sample_sum(float *out, int64_t n, const struct sample_term *terms, int n_terms);

kron_status step_euler(struct sample_state *r, int i); /* also euler_a and ddim, by their eta */
kron_status step_heun(struct sample_state *r, int i);
kron_status step_dpm2(struct sample_state *r, int i);
kron_status step_lcm(struct sample_state *r, int i);
kron_status step_ipndm(struct sample_state *r, int i);
kron_status step_dpmpp_2s_a(struct sample_state *r, int i);
kron_status step_dpmpp_2m(struct sample_state *r, int i);
kron_status step_dpmpp_2mv2(struct sample_state *r, int i);
kron_status step_dpmpp_2m_sde(struct sample_state *r, int i);
kron_status step_dpmpp_sde(struct sample_state *r, int i);
kron_status step_uni_pc(struct sample_state *r, int i);

#endif
