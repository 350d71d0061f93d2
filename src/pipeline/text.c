/* SPDX-License-Identifier: MIT
 * Prompts to what the UNet is conditioned on. */
#include "pipeline/session.h"
#include <math.h>
#include <string.h>

void condition_free(struct condition *c)
{
    mem_free(c->context);
    mem_free(c->pooled);
    memset(c, 0, sizeof *c);
}

/* Position of the first end token: what CLIP pools. */
static int64_t end_of(const int32_t *ids)
{
    for (int64_t i = 0; i < TOK_WINDOW; i++)
        if (ids[i] == TOK_END)
            return i;
    return TOK_WINDOW - 1;
}

kron_status encode_windows(struct session *s, int te, const int32_t *ids, int64_t n, int skip,
                           float *context, float *pooled)
{
    const struct clip *c = &s->e->model.te[te];
    struct net_key key = {.kind = NET_TE0 + (unsigned)te, .n = n, .tokens = skip};
    int64_t numbers = n * TOK_WINDOW * c->width;
    struct net *net;
    void *last;

    KRON_TRY(net_get(s, &key, &net));
    KRON_TRY(net_write(net, "ids", ids, n * TOK_WINDOW));
    KRON_TRY(net_run(s, net));
    KRON_TRY(net_read(net, "context", context, numbers));
    if (pooled == NULL)
        return KRON_OK;
    KRON_TRY(mem_alloc_n(&last, (size_t)numbers, sizeof(float), "the pooled text"));
    kron_status status = net_read(net, "final", last, numbers);
    if (status == KRON_OK)
        clip_pool(c, (const float *)last + end_of(ids) * c->width, pooled);
    mem_free(last);
    return status;
}

/* A1111's emphasis: each token's vector times its weight, then all scaled so that the mean of the
 * whole stays what it was. */
static void emphasise(float *z, const float *weights, int64_t tokens, int64_t width)
{
    double before = 0, after = 0;
    bool any = false;

    for (int64_t i = 0; i < tokens; i++)
        any = any || weights[i] != 1;
    if (!any)
        return;
    for (int64_t i = 0; i < tokens * width; i++) {
        before += z[i];
        z[i] *= weights[i / width];
        after += z[i];
    }
    if (after == 0 || !isfinite(before / after))
        return;
    for (int64_t i = 0; i < tokens * width; i++)
        z[i] = (float)(z[i] * (before / after));
}

/* Puts one encoder's channels beside the other's. */
static void join(float *context, const float *z, int64_t tokens, int64_t width, int64_t at,
                 int64_t all)
{
    for (int64_t i = 0; i < tokens; i++)
        memcpy(context + i * all + at, z + i * width, (size_t)width * sizeof *z);
}

struct work { /* scratch of one prompt */
    int32_t *ids;
    float *weights, *z;
};

static void work_free(struct work *w)
{
    mem_free(w->ids);
    mem_free(w->weights);
    mem_free(w->z);
}

static kron_status work_alloc(struct work *w, int64_t tokens, int64_t width)
{
    void *p;

    KRON_TRY(mem_alloc_n(&p, (size_t)tokens, sizeof *w->ids, "token ids"));
    w->ids = p;
    KRON_TRY(mem_floats(&w->weights, tokens, "token weights"));
    return mem_floats(&w->z, tokens * width, "encoded text");
}

static kron_status encode_with(struct session *s, const struct prompt_windows *pw, int64_t n,
                               int clip_skip, struct condition *out, struct work *w)
{
    const struct sd_model *m = &s->e->model;
    int64_t at = 0, all = m->unet.context_width;

    for (int te = 0; te < m->n_te; te++) {
        const struct clip *c = &m->te[te];
        float *pooled = m->arch == KRON_ARCH_SDXL && te == 1 ? out->pooled : NULL;
        int skip = clip_skip > 0 ? clip_skip : c->default_skip;
        prompt_windows_fill(pw, (size_t)n, c->pad_id, w->ids, w->weights);
        KRON_TRY(encode_windows(s, te, w->ids, n, skip, w->z, pooled));
        emphasise(w->z, w->weights, out->tokens, c->width);
        join(out->context, w->z, out->tokens, c->width, at, all);
        at += c->width;
    }
    return KRON_OK;
}

static kron_status condition_alloc(struct session *s, int64_t n, struct condition *out)
{
    const struct unet *u = &s->e->model.unet;

    memset(out, 0, sizeof *out);
    out->tokens = n * TOK_WINDOW;
    KRON_TRY(mem_floats(&out->context, out->tokens * u->context_width, "encoded text"));
    return u->pooled_width > 0 ? mem_floats(&out->pooled, u->pooled_width, "pooled text")
                               : KRON_OK;
}

static kron_status encode_one(struct session *s, const struct prompt_windows *pw, int64_t n,
                              bool zero, int clip_skip, struct condition *out)
{
    struct work w = {0};

    KRON_TRY(condition_alloc(s, n, out));
    if (zero)
        return KRON_OK;
    kron_status status = work_alloc(&w, out->tokens, s->e->model.unet.context_width);
    if (status == KRON_OK)
        status = encode_with(s, pw, n, clip_skip, out, &w);
    work_free(&w);
    return status;
}

static bool is_empty(const struct prompt *p)
{
    for (size_t i = 0; i < p->n_segments; i++)
        if (p->segments[i].is_break || p->segments[i].len > 0)
            return false;
    return true;
}

static kron_status encode_both(struct session *s, const struct prompt_windows *a,
                               const struct prompt_windows *b, bool zero, int clip_skip,
                               struct condition *pos, struct condition *neg)
{
    int64_t n = (int64_t)(b != NULL && b->n > a->n ? b->n : a->n);

    KRON_TRY(encode_one(s, a, n, false, clip_skip, pos));
    return b != NULL ? encode_one(s, b, n, zero, clip_skip, neg) : KRON_OK;
}

kron_status encode_prompts(struct session *s, const struct prompt *positive,
                           const struct prompt *negative, int clip_skip, struct condition *pos,
                           struct condition *neg)
{
    struct prompt_windows a = {0}, b = {0};
    kron_status status = prompt_tokenize(&a, s->e->tokenizer, positive);
    bool zero = negative != NULL && s->e->model.arch == KRON_ARCH_SDXL && is_empty(negative);

    if (status == KRON_OK && negative != NULL)
        status = prompt_tokenize(&b, s->e->tokenizer, negative);
    if (status == KRON_OK)
        status = encode_both(s, &a, negative != NULL ? &b : NULL, zero, clip_skip, pos, neg);
    prompt_windows_free(&a);
    prompt_windows_free(&b);
    if (status != KRON_OK) {
        condition_free(pos);
        if (negative != NULL)
            condition_free(neg);
    }
    return status;
}
