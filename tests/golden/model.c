/* SPDX-License-Identifier: MIT
 * The library's inner calls that cases are made of. */
#include "golden.h"
#include "sample/sampler.h"
#include <string.h>

bool open_model(struct golden *g, struct loaded *l, const char *file, kron_apply apply)
{
    char path[4096];
    kron_model_params p = {.model = path, .backend = g->backend};
    kron_session_params sp = {.apply = apply};

    memset(l, 0, sizeof *l);
    snprintf(path, sizeof path, "%s/%s", g->dir, file);
    if (engine_open(&l->model.engine, &p) != KRON_OK) {
        broken(g, file);
        return false;
    }
    if (session_create(&l->s, &l->model.engine, &sp) != KRON_OK) {
        broken(g, file);
        engine_close(&l->model.engine);
        return false;
    }
    return true;
}

void close_model(struct loaded *l)
{
    session_free(&l->s);
    engine_close(&l->model.engine);
}

bool open_set(struct golden *g, struct data_set *d, const char *kind, const char *arch,
              kron_apply apply)
{
    char name[96], file[128];

    snprintf(name, sizeof name, "%s_%s", kind, arch);
    if (!wanted(g, name))
        return false;
    snprintf(file, sizeof file, "%s.json", name);
    d->manifest = load_json(g, file);
    if (d->manifest == NULL)
        return false;
    printf("# %s\n", name);
    snprintf(file, sizeof file, "tiny_%s.safetensors", arch);
    if (!open_model(g, &d->l, file, apply)) {
        json_decref(d->manifest);
        return false;
    }
    snprintf(file, sizeof file, "%s.safetensors", name);
    d->tensors = load_tensors(g, file);
    return true;
}

void close_set(struct data_set *d)
{
    st_close(&d->tensors);
    close_model(&d->l);
    json_decref(d->manifest);
}

enum { MOST_FILES = 8 };

kron_status bind_files(struct golden *g, struct session *s, const char *const *files,
                       const double *strengths, size_t n)
{
    kron_adapter_use uses[MOST_FILES] = {0};
    char path[4096];
    kron_status status = KRON_OK;

    KRON_ASSERT(n <= MOST_FILES);
    for (size_t i = 0; i < n && status == KRON_OK; i++) {
        snprintf(path, sizeof path, "%s/%s", g->dir, files[i]);
        uses[i].te_strength = uses[i].unet_strength = (float)strengths[i];
        status = kron_adapter_open(&uses[i].adapter, path);
    }
    if (status == KRON_OK)
        status = session_set_adapters(s, uses, n);
    for (size_t i = 0; i < n; i++)
        kron_adapter_close(&uses[i].adapter);
    return status;
}

kron_status run_unet(struct session *s, const struct net_key *key, const float *x, const float *t,
                     const float *context, const float *pooled, const float *sizes, float *out)
{
    const struct unet *u = &s->e->model.unet;
    struct net *net;

    KRON_TRY(net_get(s, key, &net));
    KRON_TRY(net_write(net, "x", x, key->n * key->h * key->w * u->in_channels));
    KRON_TRY(net_write(net, "t", t, key->n));
    KRON_TRY(net_write(net, "context", context, key->n * key->tokens * u->context_width));
    if (u->pooled_width > 0) {
        KRON_TRY(net_write(net, "pooled", pooled, key->n * u->pooled_width));
        KRON_TRY(net_write(net, "sizes", sizes, key->n * 6));
    }
    KRON_TRY(net_run(s, net));
    return net_read(net, "out", out, key->n * key->h * key->w * 4);
}

kron_status encode_text(struct session *s, const char *text, int skip, struct condition *out)
{
    /* Reference prompts are plain text: brackets in them are no syntax. */
    struct prompt_segment segment = {.text = text, .len = strlen(text), .weight = 1};
    struct prompt p = {.segments = &segment, .n_segments = segment.len > 0};

    return encode_prompts(s, &p, NULL, NULL, skip, out, NULL);
}

struct run_state {
    struct denoise denoise;
    const struct golden_run *r;
    int calls;
};

static kron_status network(void *user, const float *x, double t, float *out)
{
    struct run_state *st = user;
    int i = st->calls++;

    return denoise_raw(&st->denoise, x, st->r->timesteps != NULL ? st->r->timesteps[i] : t, out);
}

static void noise(void *user, int step, float *out, int64_t n)
{
    struct run_state *st = user;

    memcpy(out, st->r->noise + step * n, (size_t)n * sizeof *out);
}

kron_status run_whole(struct session *s, const struct golden_run *r, const struct condition *pos,
                      const struct condition *neg, int64_t h, int64_t w, float *x)
{
    struct noise_levels levels;
    const struct sampler *sampler;
    enum schedule asked;
    double sigmas[SCHEDULE_MAX_STEPS + 1];
    struct run_state st = {.r = r};

    levels_init(&levels);
    KRON_TRY(sampler_find(&sampler, r->sampler));
    KRON_TRY(schedule_find(&asked, r->schedule));
    KRON_TRY(schedule_sigmas(sigmas, sampler_schedule(sampler, asked), r->steps, s->e->model.arch,
                             &levels));
    struct sample_job job = {.sampler = sampler, .levels = &levels,
                             .sigmas = r->sigmas != NULL ? r->sigmas : sigmas,
                             .n_steps = r->steps, .n = h * w * 4, .eta = -1,
                             .prediction = s->e->prediction, .network = network,
                             .noise = r->noise != NULL ? noise : NULL, .user = &st};
    kron_status status = denoise_init(&st.denoise, s, pos, neg, (float)r->cfg, h, w);
    if (status == KRON_OK)
        status = sample_run(&job, x);
    denoise_fini(&st.denoise);
    return status;
}
