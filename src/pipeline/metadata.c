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

/* --- adapters that the prompt does not name --- */

static void add_list(struct str *out, const char *key, const float *v, int n)
{
    str_addf(out, ":%s=", key);
    for (int i = 0; i < n; i++)
        str_addf(out, "%s%g", i > 0 ? "," : "", (double)v[i]);
}

/* A place as a tag has it: shares have a point. */
static void add_place(struct str *out, const char *key, float at, bool in_numbers)
{
    bool bare = !in_numbers && at == (float)(int)at;

    str_addf(out, ":%s=%g%s", key, (double)at, bare ? ".0" : "");
}

static void add_steps(struct str *out, const struct adapter_steps *s)
{
    if (s->start > 0)
        add_place(out, "start", s->start, s->in_numbers);
    if (s->stop > 0)
        add_place(out, "stop", s->stop, s->in_numbers);
    for (int i = 0; i < s->n_points; i++)
        str_addf(out, "%s%g@%g", i > 0 ? "," : ":step=", (double)s->points[i].factor,
                 (double)s->points[i].at);
}

/* The file's name without folder and ending, and what a tag would say. */
static void add_use(struct str *out, const struct use *x)
{
    const char *path = adapter_path(x->adapter->file), *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    int len = (int)st_stem(name);

    str_addf(out, "<lora:%.*s:%g:%g", len, name, (double)x->u.te_strength,
             (double)x->u.unet_strength);
    if (x->u.blocks != NULL)
        add_list(out, "lbw", x->u.blocks, ADAPTER_BLOCKS);
    add_steps(out, &x->u.steps);
    if (x->u.scale != 0)
        str_addf(out, ":scale=%g", (double)x->u.scale);
    if (x->region[2] > 0)
        add_list(out, "region", x->region, 4);
    str_add(out, x->mask.pixels != NULL ? ":mask=...>" : ">");
}

/* As a quoted value, which other programs keep as they find it. */
static void add_adapters(struct str *out, const struct use_list *l)
{
    struct str text = {0};

    if (l->n == 0)
        return;
    for (size_t i = 0; i < l->n; i++)
        add_use(&text, &l->at[i]);
    str_add(out, ", Adapters: \"");
    for (const char *c = str_get(&text); *c != '\0'; c++)
        str_addf(out, "%s%c", *c == '"' || *c == '\\' ? "\\" : "", *c);
    str_add(out, "\"");
    str_free(&text);
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
    add_adapters(out, &s->own);
    str_addf(out, ", RNG: %s, Prediction: %s, Version: Kron %s",
             job->rng == KRON_RNG_CPU ? "CPU" : "GPU",
             s->e->prediction == KRON_PREDICTION_V ? "v" : "epsilon", kron_version());
}
