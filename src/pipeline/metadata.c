/* SPDX-License-Identifier: MIT
 * The "parameters" text that A1111 keeps in a picture, and that it, ComfyUI and Civitai read. */
#include "pipeline/session.h"
#include "sample/sampler.h"
#include <string.h>

/* What A1111 calls our samplers and schedules; others keep our name. */
static const struct {
    const char *ours, *theirs;
} labels[] = {
    {"euler", "Euler"},         {"euler_a", "Euler a"},       {"heun", "Heun"},
    {"dpm2", "DPM2"},           {"dpm++2s_a", "DPM++ 2S a"},  {"dpm++2m", "DPM++ 2M"},
    {"dpm++2m_sde", "DPM++ 2M SDE"}, {"dpm++sde", "DPM++ SDE"}, {"ddim", "DDIM"},
    {"lcm", "LCM"},             {"uni_pc", "UniPC"},          {"discrete", "Automatic"},
    {"karras", "Karras"},       {"exponential", "Exponential"}, {"sgm_uniform", "SGM Uniform"},
    {"simple", "Simple"},       {"ays", "Align Your Steps"},
};

static const char *label(const char *name)
{
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++)
        if (strcmp(labels[i].ours, name) == 0)
            return labels[i].theirs;
    return name;
}

static const char *schedule_of(const kron_job *job)
{
    enum schedule s;

    return schedule_find(&s, job->schedule) == KRON_OK ? schedule_name((int)s) : job->schedule;
}

void job_parameters(const struct session *s, const kron_job *job, int image_index,
                    const char *model_name, struct str *out)
{
    const struct sampler *sampler = NULL;

    sampler_find(&sampler, job->sampler);
    str_addf(out, "%s\n", job->prompt ? job->prompt : "");
    if (job->negative_prompt != NULL && job->negative_prompt[0] != '\0')
        str_addf(out, "Negative prompt: %s\n", job->negative_prompt);
    str_addf(out, "Steps: %d, Sampler: %s, Schedule type: %s, CFG scale: %g, Seed: %lld, "
             "Size: %dx%d",
             job->sigmas != NULL ? job->n_sigmas - 1 : job->steps,
             sampler != NULL ? label(sampler->name) : "?", label(schedule_of(job)),
             (double)job->cfg_scale, (long long)job->seed + image_index, job->width, job->height);
    if (model_name != NULL)
        str_addf(out, ", Model: %s", model_name);
    if (job->init_image != NULL)
        str_addf(out, ", Denoising strength: %g", (double)job->strength);
    if (job->clip_skip > 1)
        str_addf(out, ", Clip skip: %d", job->clip_skip);
    if (job->eta >= 0)
        str_addf(out, ", Eta: %g", (double)job->eta);
    str_addf(out, ", RNG: %s, Prediction: %s, Version: Kron %s",
             job->rng == KRON_RNG_CPU ? "CPU" : "GPU",
             s->e->prediction == KRON_PREDICTION_V ? "v" : "epsilon", kron_version());
}
