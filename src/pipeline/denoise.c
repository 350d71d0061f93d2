/* SPDX-License-Identifier: MIT
 * One guided call of the UNet. */
#include "pipeline/session.h"
#include <string.h>

static struct net_key key_of(const struct denoise *d, int64_t n)
{
    struct net_key key = {.kind = NET_UNET, .n = n, .h = d->h, .w = d->w, .tokens = d->pos->tokens,
                          .hold = d->hold};

    return key;
}

/* Both halves in one batch decode each weight once instead of twice, for twice the activations:
 * taken unless they would fill over half of the memory there is. What is the same at each step is
 * held if that fits as well; two calls, with one text and the other in turns, hold nothing. */
static kron_status choose_memory(struct denoise *d)
{
    size_t need, room = session_room(d->s);

    for (int holds = 1; holds >= 0; holds--) {
        d->hold = holds == 1;
        d->both = d->neg != NULL;
        struct net_key key = key_of(d, d->both ? 2 : 1);
        KRON_TRY(net_estimate(d->s, &key, &need));
        if (need <= room)
            return KRON_OK;
    }
    d->both = false;
    if (d->neg != NULL)
        log_info("guidance runs in two calls: both halves at once would need %.1f MB",
                 (double)need / 1e6);
    return KRON_OK;
}

kron_status denoise_init(struct denoise *d, struct session *s, const struct condition *pos,
                         const struct condition *neg, float cfg, int64_t h, int64_t w)
{
    int factor = s->e->model.vae.factor;

    *d = (struct denoise){.s = s, .pos = pos, .neg = neg, .cfg = cfg, .h = h, .w = w};
    d->sizes[0] = d->sizes[4] = (float)(h * factor);
    d->sizes[1] = d->sizes[5] = (float)(w * factor);
    KRON_TRY(choose_memory(d));
    KRON_TRY(mem_floats(&d->in, 2 * h * w * s->e->model.unet.in_channels, "the latents of a step"));
    return mem_floats(&d->out, 2 * h * w * 4, "the latents of a step");
}

void denoise_fini(struct denoise *d)
{
    mem_free(d->in);
    mem_free(d->out);
    memset(d, 0, sizeof *d);
}

/* x, and the mask and masked picture that inpainting checkpoints take beside it. */
static void pack(const struct denoise *d, const float *x, int64_t n)
{
    int64_t c = d->s->e->model.unet.in_channels, pixels = d->h * d->w, more = c - 4;

    for (int64_t b = 0; b < n; b++)
        for (int64_t i = 0; i < pixels; i++) {
            float *to = d->in + (b * pixels + i) * c;
            memcpy(to, x + i * 4, 4 * sizeof *to);
            if (more > 0)
                memcpy(to + 4, d->extra + i * more, (size_t)more * sizeof *to);
        }
}

static kron_status write_at(struct net *net, const char *name, const struct condition *const *c,
                            int64_t n, int64_t numbers, bool pooled)
{
    struct be_buf *b = net->bind[gr_bind(&net->g, name)];

    for (int64_t i = 0; i < n; i++)
        KRON_TRY(be_buf_write(b, (size_t)(i * numbers) * sizeof(float),
                              pooled ? c[i]->pooled : c[i]->context,
                              (size_t)numbers * sizeof(float)));
    return KRON_OK;
}

static kron_status write_sizes(const struct denoise *d, struct net *net, int64_t n)
{
    float two[12];

    memcpy(two, d->sizes, sizeof d->sizes);
    memcpy(two + 6, d->sizes, sizeof d->sizes);
    return net_write(net, "sizes", two, n * 6);
}

/* Runs n (1 or 2) samples of the same x with these conditions. */
static kron_status call(struct denoise *d, const float *x, double t,
                        const struct condition *const *c, int64_t n, float *out)
{
    const struct unet *u = &d->s->e->model.unet;
    struct net_key key = key_of(d, n);
    float times[2] = {(float)t, (float)t};
    struct net *net;

    KRON_TRY(net_get(d->s, &key, &net));
    pack(d, x, n);
    KRON_TRY(net_write(net, "x", d->in, n * d->h * d->w * u->in_channels));
    KRON_TRY(net_write(net, "t", times, n));
    KRON_TRY(write_at(net, "context", c, n, c[0]->tokens * u->context_width, false));
    if (u->pooled_width > 0) {
        KRON_TRY(write_at(net, "pooled", c, n, u->pooled_width, true));
        KRON_TRY(write_sizes(d, net, n));
    }
    KRON_TRY(net_run(d->s, net));
    return net_read(net, "out", out, n * d->h * d->w * 4);
}

kron_status denoise_raw(struct denoise *d, const float *x, double t, float *out)
{
    int64_t n = d->h * d->w * 4;
    const struct condition *both[2] = {d->neg, d->pos};

    if (d->n_steps > 0)
        session_fill_strengths(d->s, d->step, d->n_steps);
    if (d->neg == NULL)
        return call(d, x, t, &d->pos, 1, out);
    if (d->both) {
        KRON_TRY(call(d, x, t, both, 2, d->out));
    } else {
        KRON_TRY(call(d, x, t, &d->neg, 1, d->out));
        KRON_TRY(call(d, x, t, &d->pos, 1, d->out + n));
    }
    for (int64_t i = 0; i < n; i++)
        out[i] = d->out[i] + d->cfg * (d->out[n + i] - d->out[i]);
    return KRON_OK;
}

/* A network that predicts v gives about -x at pure noise, one that predicts eps about +x: the test
 * that A1111 uses, on a constant input. */
static kron_status test_call(struct session *s, struct condition *c, kron_prediction *out)
{
    const int64_t side = 8, n = side * side * 4;
    struct denoise d = {.s = s, .pos = c, .cfg = 1, .h = side, .w = side};
    float x[8 * 8 * 4], y[8 * 8 * 4];
    double mean = 0;

    for (int64_t i = 0; i < n; i++)
        x[i] = 0.5f;
    for (int64_t i = 0; i < c->tokens * s->e->model.unet.context_width; i++)
        c->context[i] = 0.5f;
    *out = KRON_PREDICTION_EPS;
    if (s->e->model.unet.in_channels > 4) /* the inpainting checkpoint of SD2 predicts eps */
        return KRON_OK;
    KRON_TRY(mem_floats(&d.in, n * s->e->model.unet.in_channels, "the latents of a step"));
    kron_status status = denoise_raw(&d, x, 999, y);
    mem_free(d.in);
    for (int64_t i = 0; i < n; i++)
        mean += ((double)y[i] - x[i]) / (double)n;
    *out = mean < -1 ? KRON_PREDICTION_V : KRON_PREDICTION_EPS;
    return status;
}

kron_status detect_prediction(struct engine *e, kron_prediction *out)
{
    struct condition c = {.tokens = TOK_WINDOW};
    struct session *s;

    KRON_TRY(session_create(&s, e, NULL));
    kron_status status =
        mem_floats(&c.context, c.tokens * e->model.unet.context_width, "encoded text");
    if (status == KRON_OK)
        status = test_call(s, &c, out);
    condition_free(&c);
    session_free(&s);
    return status;
}
