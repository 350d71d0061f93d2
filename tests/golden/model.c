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

    return encode_prompts(s, &p, NULL, skip, out, NULL);
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
