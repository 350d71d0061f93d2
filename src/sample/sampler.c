/* SPDX-License-Identifier: MIT */
#include "sample/sampler.h"
#include "sample/steps.h"
#include <math.h>
#include <string.h>

/* name, aliases, step, evaluations, vectors, eta, always_noise, unit_variance, schedule */
static const struct sampler sampler_table[] = {
    {"euler", {"k_euler", NULL}, step_euler, 1, 0, -1, false, false, SCHEDULE_DISCRETE},
    {"euler_a", {"k_euler_a", "euler_ancestral", NULL}, step_euler, 1, 0, 1, false, false,
     SCHEDULE_DISCRETE},
    {"heun", {"k_heun", NULL}, step_heun, 2, 2, -1, false, false, SCHEDULE_DISCRETE},
    {"dpm2", {"dpm_2", "k_dpm_2", NULL}, step_dpm2, 2, 2, -1, false, false, SCHEDULE_DISCRETE},
    {"dpm++2s_a", {"dpmpp_2s_a", "dpmpp_2s_ancestral", NULL}, step_dpmpp_2s_a, 2, 2, 1, false,
     false, SCHEDULE_DISCRETE},
    {"dpm++2m", {"dpmpp_2m", "k_dpmpp_2m", NULL}, step_dpmpp_2m, 1, 1, -1, false, false,
     SCHEDULE_DISCRETE},
    {"dpm++2mv2", {"dpmpp_2mv2", NULL}, step_dpmpp_2mv2, 1, 1, -1, false, false,
     SCHEDULE_DISCRETE},
    {"dpm++2m_sde", {"dpmpp_2m_sde", NULL}, step_dpmpp_2m_sde, 1, 1, 1, false, false,
     SCHEDULE_DISCRETE},
    {"dpm++sde", {"dpmpp_sde", NULL}, step_dpmpp_sde, 2, 3, 1, false, false, SCHEDULE_DISCRETE},
    {"ddim", {NULL}, step_euler, 1, 0, 0, false, true, SCHEDULE_DDIM},
    {"ddim_trailing", {NULL}, step_euler, 1, 0, 0, false, true, SCHEDULE_DDIM_TRAILING},
    {"lcm", {NULL}, step_lcm, 1, 0, -1, true, false, SCHEDULE_DISCRETE},
    {"uni_pc", {NULL}, step_uni_pc, 1, 3, -1, false, true, SCHEDULE_UNI_PC},
    {"ipndm", {NULL}, step_ipndm, 1, 4, -1, false, false, SCHEDULE_DISCRETE},
};
enum { SAMPLER_COUNT = sizeof sampler_table / sizeof *sampler_table };

/* --- the table --- */

static bool has_name(const struct sampler *s, const char *name)
{
    bool found = sample_name_equal(name, s->name);
    for (int k = 0; k < 3 && s->alias[k] != NULL; k++)
        found = found || sample_name_equal(name, s->alias[k]);
    return found;
}

kron_status sampler_find(const struct sampler **out, const char *name)
{
    if (name == NULL || *name == '\0')
        name = "euler_a";
    for (int i = 0; i < SAMPLER_COUNT; i++) {
        *out = &sampler_table[i];
        if (has_name(*out, name))
            return KRON_OK;
    }
    *out = NULL;
    struct str known = {0};
    for (int i = 0; i < SAMPLER_COUNT; i++)
        str_addf(&known, "%s%s", i > 0 ? ", " : "", sampler_table[i].name);
    kron_status status = err_set(KRON_ERR_ARGUMENT, "unknown sampler \"%s\"; there are %s", name,
                                 str_get(&known));
    str_free(&known);
    return status;
}

const struct sampler *sampler_at(int i)
{
    return i >= 0 && i < SAMPLER_COUNT ? &sampler_table[i] : NULL;
}

enum schedule sampler_schedule(const struct sampler *s, enum schedule asked)
{
    return asked == SCHEDULE_DISCRETE ? s->schedule : asked;
}

static double effective_eta(const struct sampler *s, double eta)
{
    if (s->eta < 0)
        return 0;
    return eta < 0 ? s->eta : eta;
}

bool sampler_adds_noise(const struct sampler *s, double eta)
{
    return s->always_noise || effective_eta(s, eta) > 0;
}

/* --- parts of a run --- */

void sample_sum(float *out, int64_t n, const struct sample_term *terms, int n_terms)
{
    for (int64_t k = 0; k < n; k++) {
        double sum = 0;
        for (int j = 0; j < n_terms; j++)
            sum += terms[j].factor * terms[j].v[k];
        out[k] = (float)sum;
    }
}

static void scale(float *x, int64_t n, double factor)
{
    sample_sum(x, n, &(struct sample_term){factor, x}, 1);
}

/* For data and noise of unit variance a network sees x / sqrt(sigma^2 + 1). Its output is the
 * noise, or v = (noise - sigma * latent) / sqrt(sigma^2 + 1) (Salimans and Ho 2022). */
kron_status sample_denoise(struct sample_state *r, const float *x, double sigma, float *out)
{
    const struct sample_job *job = r->job;
    double norm = sqrt(sigma * sigma + 1);
    sample_sum(r->scratch, r->n, &(struct sample_term){1 / norm, x}, 1);
    KRON_TRY(job->network(job->user, r->scratch, sigma_to_t(job->levels, sigma), out));
    struct sample_term terms[2] = {{1, x}, {-sigma, out}};
    if (job->prediction == KRON_PREDICTION_V) {
        terms[0].factor /= norm * norm;
        terms[1].factor /= norm;
    }
    sample_sum(out, r->n, terms, 2);
    if (job->edit != NULL)
        job->edit(job->user, sigma, out);
    return KRON_OK;
}

void sample_start(const struct sampler *s, double sigma, const float *noise, const float *init,
                  float *x, int64_t n)
{
    double noise_scale = sigma, init_scale = 1;
    if (s->unit_variance && init != NULL) {
        init_scale = 1 / sqrt(sigma * sigma + 1);
        noise_scale = sigma * init_scale;
    } else if (s->unit_variance) {
        noise_scale = 1;
    }
    struct sample_term terms[2] = {{noise_scale, noise}, {init_scale, init}};
    sample_sum(x, n, terms, init != NULL ? 2 : 1);
}

static kron_status run_steps(struct sample_state *r)
{
    const struct sample_job *job = r->job;
    bool unit = job->sampler->unit_variance;
    if (unit)
        scale(r->x, r->n, sqrt(r->sigma[0] * r->sigma[0] + 1));
    for (int i = 0; i < r->n_steps; i++) {
        KRON_TRY(job->sampler->step(r, i));
        if (job->progress != NULL && job->progress(job->user, i + 1, r->x, r->denoised) != 0)
            return err_set(KRON_ERR_CANCELLED, "stopped after step %d of %d", i + 1, r->n_steps);
    }
    double last = r->sigma[r->n_steps];
    if (unit)
        scale(r->x, r->n, 1 / sqrt(last * last + 1));
    return KRON_OK;
}

kron_status sample_run(const struct sample_job *job, float *x)
{
    KRON_TRY(schedule_check(job->sigmas, job->n_steps));
    int n_vectors = 2 + job->sampler->n_vectors;
    size_t numbers;
    if (job->n < 1 || !size_mul((size_t)job->n, (size_t)n_vectors, &numbers))
        return err_set(KRON_ERR_ARGUMENT, "a latent of %lld numbers; at least 1 expected",
                       (long long)job->n);
    void *memory;
    KRON_TRY(mem_alloc_n(&memory, numbers, sizeof(float), "the sampler's vectors"));
    struct sample_state r = {.job = job, .sigma = job->sigmas, .n_steps = job->n_steps,
                             .n = job->n, .eta = effective_eta(job->sampler, job->eta), .x = x};
    r.denoised = memory;
    r.scratch = r.denoised + job->n;
    for (int k = 0; k < job->sampler->n_vectors; k++)
        r.v[k] = r.scratch + (k + 1) * job->n;
    kron_status status = run_steps(&r);
    mem_free(memory);
    return status;
}
