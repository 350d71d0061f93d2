/* SPDX-License-Identifier: MIT
 * Names and defaults are those of k-diffusion's sample_* functions, which A1111, ComfyUI and
 * stable-diffusion.cpp share. Where noise comes in, they draw it along a Brownian path that is
 * refined by a tree; here it is drawn step by step, which has the same distribution but other
 * numbers for the same seed. */
#include "sample/steps.h"
#include <math.h>
#include <string.h>

#define SUM(r, out, ...)                                                          \
    sample_sum(out, (r)->n, (const struct sample_term[]){__VA_ARGS__},            \
               (int)(sizeof(struct sample_term[]){__VA_ARGS__} / sizeof(struct sample_term)))

/* out = the point at noise level ratio * sigma on the line from x (at sigma) to the estimate. This
 * is Euler's step and, since exp(-h) is the ratio of the levels, that of first-order DPM-Solver++:
 * x * exp(-h) - expm1(-h) * denoised. */
static void glide(struct sample_state *r, float *out, const float *x, const float *denoised,
                  double ratio)
{
    SUM(r, out, {ratio, x}, {1 - ratio, denoised});
}

/* The step to sigma 0. */
static void take_denoised(struct sample_state *r)
{
    memcpy(r->x, r->denoised, (size_t)r->n * sizeof *r->x);
}

static const float *draw(struct sample_state *r, int i, float *out)
{
    r->job->noise(r->job->user, i, out, r->n);
    return out;
}

static void add_noise(struct sample_state *r, int i, double amount)
{
    if (amount > 0)
        SUM(r, r->x, {1, r->x}, {amount, draw(r, i, r->scratch)});
}

/* Splits a step to `next` into a step down below it and noise `up` that leads back. */
static void split_ancestral(double eta, double from, double next, double *down, double *up)
{
    double ratio = next / from;
    *up = fmin(next, eta * next * sqrt((1 - ratio) * (1 + ratio)));
    *down = sqrt((next - *up) * (next + *up));
}

/* The oldest of v[0..count) makes room: v[k] becomes v[k + 1]. */
static float *push_history(struct sample_state *r, int count)
{
    float *room = r->v[count - 1];
    memmove(r->v + 1, r->v, (size_t)(count - 1) * sizeof *r->v);
    r->v[0] = room;
    return room;
}

/* Keeps the estimate of the step before in v[0], older ones after it. */
static void keep_denoised(struct sample_state *r, int count)
{
    float *room = push_history(r, count);
    r->v[0] = r->denoised;
    r->denoised = room;
}

/* DDIM (Song et al. 2021, eq. 12) is this too: there x is divided by sqrt(1 + sigma^2), and its
 * variance eta^2 (1 - a')/(1 - a) (1 - a/a') is `up` squared, divided by 1 + next^2. */
kron_status step_euler(struct sample_state *r, int i)
{
    double sigma = r->sigma[i], down, up;
    split_ancestral(r->eta, sigma, r->sigma[i + 1], &down, &up);
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    glide(r, r->x, r->x, r->denoised, down / sigma);
    add_noise(r, i, up);
    return KRON_OK;
}

kron_status step_heun(struct sample_state *r, int i)
{
    double sigma = r->sigma[i], next = r->sigma[i + 1];
    float *ahead = r->v[0], *denoised_ahead = r->v[1];
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    if (next == 0) {
        take_denoised(r);
        return KRON_OK;
    }
    glide(r, ahead, r->x, r->denoised, next / sigma);
    KRON_TRY(sample_denoise(r, ahead, next, denoised_ahead));
    double half = (next - sigma) / 2;
    SUM(r, r->x, {1 + half / sigma, r->x}, {-half / sigma, r->denoised}, {half / next, ahead},
        {-half / next, denoised_ahead});
    return KRON_OK;
}

kron_status step_dpm2(struct sample_state *r, int i)
{
    double sigma = r->sigma[i], next = r->sigma[i + 1], middle = sqrt(sigma * next);
    float *halfway = r->v[0], *denoised_halfway = r->v[1];
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    if (next == 0) {
        take_denoised(r);
        return KRON_OK;
    }
    glide(r, halfway, r->x, r->denoised, middle / sigma);
    KRON_TRY(sample_denoise(r, halfway, middle, denoised_halfway));
    double slope = (next - sigma) / middle;
    SUM(r, r->x, {1, r->x}, {slope, halfway}, {-slope, denoised_halfway});
    return KRON_OK;
}

/* Luo et al. 2023, "Latent Consistency Models". Their boundary scaling is left out, as in the
 * references: it changes the estimate by less than 1e-5 above timestep 16. */
kron_status step_lcm(struct sample_state *r, int i)
{
    KRON_TRY(sample_denoise(r, r->x, r->sigma[i], r->denoised));
    take_denoised(r);
    add_noise(r, i, r->sigma[i + 1]);
    return KRON_OK;
}

/* Zhang and Chen 2023: Adams-Bashforth weights on the slope (x - denoised) / sigma. */
kron_status step_ipndm(struct sample_state *r, int i)
{
    static const double weight[4][4] = {{1, 0, 0, 0},
                                        {3 / 2.0, -1 / 2.0, 0, 0},
                                        {23 / 12.0, -16 / 12.0, 5 / 12.0, 0},
                                        {55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0}};
    double sigma = r->sigma[i], next = r->sigma[i + 1], move = next - sigma;
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    float *slope = push_history(r, 4);
    SUM(r, slope, {1 / sigma, r->x}, {-1 / sigma, r->denoised});
    if (next == 0) {
        take_denoised(r);
        return KRON_OK;
    }
    const double *w = weight[i < 3 ? i : 3];
    SUM(r, r->x, {1, r->x}, {move * w[0], r->v[0]}, {move * w[1], r->v[1]},
        {move * w[2], r->v[2]}, {move * w[3], r->v[3]});
    return KRON_OK;
}

/* --- DPM-Solver++ (Lu et al. 2022); h is the step in lambda = -log sigma --- */

kron_status step_dpmpp_2s_a(struct sample_state *r, int i)
{
    double sigma = r->sigma[i], down, up;
    float *halfway = r->v[0], *denoised_halfway = r->v[1];
    split_ancestral(r->eta, sigma, r->sigma[i + 1], &down, &up);
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    if (down == 0) {
        take_denoised(r);
    } else {
        double middle = sqrt(sigma * down);
        glide(r, halfway, r->x, r->denoised, middle / sigma);
        KRON_TRY(sample_denoise(r, halfway, middle, denoised_halfway));
        glide(r, r->x, r->x, denoised_halfway, down / sigma);
    }
    add_noise(r, i, up);
    return KRON_OK;
}

/* x = keep * x + gain * (the estimate extrapolated by `ahead` times its change since the step
 * before); no step before where i == 0. */
static void multistep(struct sample_state *r, int i, double keep, double gain, double ahead)
{
    double a = i > 0 ? ahead : 0;
    SUM(r, r->x, {keep, r->x}, {gain * (1 + a), r->denoised}, {-gain * a, r->v[0]});
}

/* Keeps the last estimate, makes the new one, and does the last step to sigma 0. h and h_last are
 * 1 where they do not exist. */
static kron_status multistep_begin(struct sample_state *r, int i, double *h, double *h_last)
{
    keep_denoised(r, 1);
    KRON_TRY(sample_denoise(r, r->x, r->sigma[i], r->denoised));
    bool last = r->sigma[i + 1] == 0;
    *h = last ? 1 : log(r->sigma[i] / r->sigma[i + 1]);
    *h_last = i > 0 ? log(r->sigma[i - 1] / r->sigma[i]) : 1;
    if (last)
        take_denoised(r);
    return KRON_OK;
}

kron_status step_dpmpp_2m(struct sample_state *r, int i)
{
    double h, h_last;
    KRON_TRY(multistep_begin(r, i, &h, &h_last));
    if (r->sigma[i + 1] > 0)
        multistep(r, i, exp(-h), -expm1(-h), h / (2 * h_last));
    return KRON_OK;
}

/* As stable-diffusion.cpp has it: where two steps differ, the ratio of the longer to the shorter
 * and their mean take the place of r and h in the correction. */
kron_status step_dpmpp_2mv2(struct sample_state *r, int i)
{
    double h, h_last;
    KRON_TRY(multistep_begin(r, i, &h, &h_last));
    if (r->sigma[i + 1] == 0)
        return KRON_OK;
    double mean = i > 0 ? (h + h_last) / 2 : h;
    multistep(r, i, exp(-h), -expm1(-mean), fmin(h, h_last) / (2 * fmax(h, h_last)));
    return KRON_OK;
}

/* Second-order SDE solver, midpoint form (k-diffusion's default). */
kron_status step_dpmpp_2m_sde(struct sample_state *r, int i)
{
    double h, h_last;
    KRON_TRY(multistep_begin(r, i, &h, &h_last));
    if (r->sigma[i + 1] == 0)
        return KRON_OK;
    multistep(r, i, exp(-h - r->eta * h), -expm1(-h - r->eta * h), h / (2 * h_last));
    add_noise(r, i, r->sigma[i + 1] * sqrt(-expm1(-2 * r->eta * h)));
    return KRON_OK;
}

/* Two draws a step: the noise up to the halfway level and, for the whole step, the same Brownian
 * path carried on; "time" on that path is sigma, as in k-diffusion. */
kron_status step_dpmpp_sde(struct sample_state *r, int i)
{
    double sigma = r->sigma[i], next = r->sigma[i + 1], middle = sqrt(sigma * next), down, up;
    float *halfway = r->v[0], *denoised_halfway = r->v[1], *first = r->v[2];
    KRON_TRY(sample_denoise(r, r->x, sigma, r->denoised));
    if (next == 0) {
        take_denoised(r);
        return KRON_OK;
    }
    split_ancestral(r->eta, sigma, middle, &down, &up);
    glide(r, halfway, r->x, r->denoised, down / sigma);
    if (up > 0)
        SUM(r, halfway, {1, halfway}, {up, draw(r, i, first)});
    KRON_TRY(sample_denoise(r, halfway, middle, denoised_halfway));
    split_ancestral(r->eta, sigma, next, &down, &up);
    glide(r, r->x, r->x, denoised_halfway, down / sigma);
    if (up > 0) {
        double length = sigma - next;
        SUM(r, r->x, {1, r->x}, {up * sqrt((sigma - middle) / length), first},
            {up * sqrt((middle - next) / length), draw(r, i, r->scratch)});
    }
    return KRON_OK;
}

/* --- UniPC (Zhao et al. 2023), order 2, B(h) = e^h - 1, on the data estimate, as diffusers'
 * UniPCMultistepScheduler; the first and the last step are of order 1 --- */

static int uni_pc_order(const struct sample_state *r, int i)
{
    return i == 0 || i == r->n_steps - 1 ? 1 : 2;
}

/* Redoes the step that led to level i now that the estimate there is known. v[0] and v[1] are the
 * estimates one and two steps back, v[2] is x before that step. */
static void uni_pc_correct(struct sample_state *r, int i)
{
    double h = log(r->sigma[i - 1] / r->sigma[i]), gain = -expm1(-h);
    double back = 0, now = 0.5, ratio = 1;
    if (uni_pc_order(r, i - 1) == 2) {
        double phi1 = gain / h - 1, phi2 = -phi1 / h - 0.5;
        double b1 = phi1 / -gain, b2 = 2 * phi2 / -gain;
        ratio = -log(r->sigma[i - 2] / r->sigma[i - 1]) / h;
        back = (b1 - b2) / (1 - ratio);
        now = b1 - back;
    }
    double old = back / ratio;
    SUM(r, r->x, {1 - gain, r->v[2]}, {gain * (1 - old - now), r->v[0]}, {gain * old, r->v[1]},
        {gain * now, r->denoised});
}

kron_status step_uni_pc(struct sample_state *r, int i)
{
    keep_denoised(r, 2);
    KRON_TRY(sample_denoise(r, r->x, r->sigma[i], r->denoised));
    if (i > 0)
        uni_pc_correct(r, i);
    memcpy(r->v[2], r->x, (size_t)r->n * sizeof *r->x);
    double ratio = r->sigma[i + 1] / r->sigma[i];
    if (uni_pc_order(r, i) == 1) {
        glide(r, r->x, r->x, r->denoised, ratio);
        return KRON_OK;
    }
    double ahead = -log(ratio) / (2 * log(r->sigma[i - 1] / r->sigma[i]));
    multistep(r, i, ratio, 1 - ratio, ahead);
    return KRON_OK;
}
