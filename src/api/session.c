/* SPDX-License-Identifier: MIT
 * kron/session.h: arguments are checked here, the work is done in pipeline/. */
#include "pipeline/session.h"
#include "sample/sampler.h"
#include <math.h>

enum { MAX_ADAPTERS = 1000 };

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
         params->compute < KRON_COMPUTE_F32 || params->compute > KRON_COMPUTE_INT8 ||
         params->max_memory < 0))
        return err_set(KRON_ERR_ARGUMENT, "kron_session_create: apply %d, compute %d or max_memory "
                       "%lld is out of range", (int)params->apply, (int)params->compute,
                       (long long)params->max_memory);
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

/* Whether the list may change now. */
static kron_status check_change(const kron_session *s, const char *function)
{
    if (s == NULL)
        return err_set(KRON_ERR_ARGUMENT, "%s: expected a session", function);
    if (s->s->busy)
        return err_set(KRON_ERR_ARGUMENT, "%s: the session is drawing; it can be changed when the "
                       "job is done", function);
    return KRON_OK;
}

static kron_status check_index(const kron_session *s, size_t i, const char *function)
{
    if (i >= s->s->own.n)
        return err_set(KRON_ERR_ARGUMENT, "%s: adapter %zu: the session has %zu", function, i,
                       s->s->own.n);
    return KRON_OK;
}

kron_status kron_session_set_adapters(kron_session *s, const kron_adapter_use *uses, size_t n)
{
    KRON_TRY(check_change(s, "kron_session_set_adapters"));
    if ((n > 0 && uses == NULL) || n > MAX_ADAPTERS)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_set_adapters: expected 0 to %d adapters",
                       MAX_ADAPTERS);
    return session_set_adapters(s->s, uses, n);
}

static kron_status check_room(const kron_session *s, const char *function)
{
    KRON_TRY(check_change(s, function));
    if (s->s->own.n >= MAX_ADAPTERS)
        return err_set(KRON_ERR_ARGUMENT, "%s: the session has %d adapters, more is too many",
                       function, MAX_ADAPTERS);
    return KRON_OK;
}

kron_status kron_session_add_adapter(kron_session *s, const kron_adapter_use *use)
{
    KRON_TRY(check_room(s, "kron_session_add_adapter"));
    if (use == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_add_adapter: expected an adapter");
    return session_add_adapter(s->s, use);
}

kron_status kron_session_add_adapter_text(kron_session *s, const char *text)
{
    KRON_TRY(check_room(s, "kron_session_add_adapter_text"));
    if (text == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_add_adapter_text: expected a text");
    return session_add_adapter_text(s->s, text);
}

kron_status kron_adapter_check_text(const char *text)
{
    struct prompt_adapter tag;
    struct arena mem = {0};

    if (text == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_check_text: expected a text");
    kron_status status = prompt_read_adapter(&tag, &mem, text);
    arena_free(&mem);
    return status;
}

kron_status kron_session_remove_adapter(kron_session *s, size_t i)
{
    KRON_TRY(check_change(s, "kron_session_remove_adapter"));
    KRON_TRY(check_index(s, i, "kron_session_remove_adapter"));
    return session_remove_adapter(s->s, i);
}

kron_status kron_session_clear_adapters(kron_session *s)
{
    KRON_TRY(check_change(s, "kron_session_clear_adapters"));
    return session_set_adapters(s->s, NULL, 0);
}

kron_status kron_session_set_strength(kron_session *s, size_t i, float te_strength,
                                      float unet_strength)
{
    KRON_TRY(check_change(s, "kron_session_set_strength"));
    KRON_TRY(check_index(s, i, "kron_session_set_strength"));
    if (!isfinite(te_strength) || !isfinite(unet_strength))
        return err_set(KRON_ERR_ARGUMENT, "kron_session_set_strength: a strength is not finite");
    session_set_strength(s->s, i, te_strength, unet_strength);
    return KRON_OK;
}

size_t kron_session_adapter_count(const kron_session *s)
{
    return s->s->own.n;
}

kron_status kron_session_get_adapter(const kron_session *s, size_t i, kron_adapter_use *out)
{
    if (s == NULL || out == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_get_adapter: expected a session and room");
    KRON_TRY(check_index(s, i, "kron_session_get_adapter"));
    use_to_public(&s->s->own.at[i], out);
    return KRON_OK;
}

kron_status kron_session_read_blocks(const kron_session *s, const char *text, float *out)
{
    if (s == NULL || text == NULL || out == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_session_read_blocks: expected a session, a text "
                       "and room for %d numbers", KRON_BLOCKS);
    return session_read_blocks(s->s, text, out);
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
    if (s->s->busy)
        return err_set(KRON_ERR_ARGUMENT, "kron_generate: the session is drawing already");
    return session_generate(s->s, job, images);
}

kron_buffers kron_session_buffers(const kron_session *s)
{
    return s->s->buffers;
}

kron_status kron_session_set_profile(kron_session *s, kron_profile_fn fn, void *user)
{
    KRON_TRY(check_change(s, "kron_session_set_profile"));
    s->s->profile = fn;
    s->s->profile_user = user;
    return KRON_OK;
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
