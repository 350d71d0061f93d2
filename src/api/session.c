/* SPDX-License-Identifier: MIT
 * kron/session.h: arguments are checked here, the work is done in pipeline/. */
#include "pipeline/session.h"
#include "sample/sampler.h"
#include <string.h>

struct kron_session {
    struct session *s;
};

kron_status kron_session_create(kron_session **out, kron_model *m,
                                const kron_session_params *params)
{
    void *p;

    if (out == NULL || m == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_create: expected a session and a model");
    *out = NULL;
    if (params != NULL &&
        (params->apply < KRON_APPLY_AUTO || params->apply > KRON_APPLY_AT_RUNTIME ||
         params->max_memory < 0))
        return err_set(KRON_ERR_ARGUMENT, "kron_session_create: apply %d or max_memory %lld is out "
                       "of range", (int)params->apply, (long long)params->max_memory);
    KRON_TRY(mem_alloc(&p, sizeof **out, "a session"));
    kron_session *s = p;
    kron_status status = session_create(&s->s, &m->engine, params);
    if (status != KRON_OK) {
        mem_free(s);
        return status;
    }
    *out = s;
    return KRON_OK;
}

void kron_session_free(kron_session **s)
{
    if (s == NULL || *s == NULL)
        return;
    session_free(&(*s)->s);
    mem_free(*s);
    *s = NULL;
}

kron_status kron_session_set_adapters(kron_session *s, const kron_adapter_use *uses, size_t n)
{
    if (s == NULL || (n > 0 && uses == NULL) || n > 1000)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_set_adapters: expected a session and 0 to "
                       "1000 adapters");
    for (size_t i = 0; i < n; i++)
        if (uses[i].adapter == NULL)
            return err_set(KRON_ERR_ARGUMENT, "kron_session_set_adapters: adapter %zu is NULL", i);
    return session_set_adapters(s->s, uses, n);
}

const char *kron_session_adapter_report(const kron_session *s)
{
    return str_get(&s->s->report);
}

kron_job kron_job_default(void)
{
    kron_job j = {.width = 512, .height = 512, .batch_count = 1, .seed = 42, .steps = 20,
                  .cfg_scale = 7, .eta = -1, .strength = 0.75f, .vae_tile_overlap = 0.5f};

    return j;
}

kron_status kron_generate(kron_session *s, const kron_job *job, kron_image *images)
{
    if (s == NULL || job == NULL || images == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_generate: expected a session, a job and images");
    if (job->seed < 0)
        return err_set(KRON_ERR_ARGUMENT, "seed %lld: expected 0 or more", (long long)job->seed);
    return session_generate(s->s, job, images);
}

kron_buffers kron_session_buffers(const kron_session *s)
{
    return s->s->buffers;
}

const char *kron_sampler_name(int i)
{
    const struct sampler *s = i < 0 ? NULL : sampler_at(i);

    return s != NULL ? s->name : NULL;
}

const char *kron_schedule_name(int i)
{
    return i < 0 ? NULL : schedule_name(i);
}

char *kron_job_parameters(const kron_session *s, const kron_job *job, int image_index,
                          const char *model_name)
{
    struct str text = {0};

    if (s == NULL || job == NULL)
        return NULL;
    job_parameters(s->s, job, image_index, model_name, &text);
    if (text.status != KRON_OK) {
        str_free(&text);
        return NULL;
    }
    return text.s;
}
