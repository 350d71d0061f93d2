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

/* Prompts that are encoded together, each as n windows: a weight is then decoded once for both. */
struct text {
    struct session *s;
    struct words words;
    int clip_skip;
    int64_t n;
    int n_prompts;
    const struct prompt_windows *windows[2];
    struct condition *out[2];
};

struct work { /* scratch: of all prompts, one after another */
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

/* Vectors of words come after the rows that the encoder's own table has. */
static void shift_words(int32_t *ids, int64_t n, const struct clip *c)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= TOK_COUNT)
            ids[i] += (int32_t)c->token->out - TOK_COUNT;
}

/* Of the first window of each prompt. */
static kron_status read_pooled(const struct text *t, const struct clip *c, struct net *net,
                               const int32_t *ids)
{
    int64_t tokens = t->n * TOK_WINDOW, numbers = t->n_prompts * tokens * c->width;
    float *last;

    KRON_TRY(mem_floats(&last, numbers, "the pooled text"));
    kron_status status = net_read(net, "final", last, numbers);
    for (int i = 0; status == KRON_OK && i < t->n_prompts; i++)
        clip_pool(c, last + (i * tokens + end_of(ids + i * tokens)) * c->width,
                  t->out[i]->pooled);
    mem_free(last);
    return status;
}

/* Ids past the encoder's token table are the vectors of words. */
static kron_status run_encoder(const struct text *t, int te, const struct work *w)
{
    const struct sd_model *m = &t->s->e->model;
    const struct clip *c = &m->te[te];
    bool pooled = m->arch == KRON_ARCH_SDXL && te == 1;
    int64_t windows = t->n_prompts * t->n, tokens = windows * TOK_WINDOW;
    struct net_key key = {.kind = NET_TE0 + (unsigned)te, .n = windows, .h = t->words.n_vectors,
                          .w = pooled, .tokens = t->clip_skip > 0 ? t->clip_skip : c->default_skip};
    struct net *net;

    KRON_TRY(net_get(t->s, &key, &net));
    KRON_TRY(net_write(net, "ids", w->ids, tokens));
    if (t->words.n_vectors > 0)
        KRON_TRY(net_write(net, "extra", t->words.vectors[te], t->words.n_vectors * c->width));
    KRON_TRY(net_run(t->s, net));
    KRON_TRY(net_read(net, "context", w->z, tokens * c->width));
    return pooled ? read_pooled(t, c, net, w->ids) : KRON_OK;
}

static kron_status encode_with(const struct text *t, const struct work *w)
{
    const struct sd_model *m = &t->s->e->model;
    int64_t tokens = t->n * TOK_WINDOW, at = 0;

    for (int te = 0; te < m->n_te; te++) {
        const struct clip *c = &m->te[te];
        for (int i = 0; i < t->n_prompts; i++)
            prompt_windows_fill(t->windows[i], (size_t)t->n, c->pad_id, w->ids + i * tokens,
                                w->weights + i * tokens);
        shift_words(w->ids, t->n_prompts * tokens, c);
        KRON_TRY(run_encoder(t, te, w));
        for (int i = 0; i < t->n_prompts; i++) {
            float *z = w->z + i * tokens * c->width;
            emphasise(z, w->weights + i * tokens, tokens, c->width);
            join(t->out[i]->context, z, tokens, c->width, at, m->unet.context_width);
        }
        at += c->width;
    }
    return KRON_OK;
}

static kron_status condition_alloc(struct session *s, int64_t n, struct condition *out)
{
    const struct unet *u = &s->e->model.unet;

    out->tokens = n * TOK_WINDOW;
    KRON_TRY(mem_floats(&out->context, out->tokens * u->context_width, "encoded text"));
    return u->pooled_width > 0 ? mem_floats(&out->pooled, u->pooled_width, "pooled text")
                               : KRON_OK;
}

static kron_status encode_all(const struct text *t)
{
    struct work w = {0};
    kron_status status = work_alloc(&w, t->n_prompts * t->n * TOK_WINDOW,
                                    t->s->e->model.unet.context_width);

    if (status == KRON_OK)
        status = encode_with(t, &w);
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

/* An empty negative prompt of SDXL (`zero`) keeps the zeros of fresh memory. */
static kron_status encode_both(struct text *t, bool zero, struct condition *pos,
                               struct condition *neg)
{
    const struct prompt_windows *a = t->windows[0], *b = t->windows[1];

    t->n = (int64_t)(b->n > a->n ? b->n : a->n);
    t->n_prompts = neg == NULL || zero ? 1 : 2;
    t->out[0] = pos;
    t->out[1] = neg;
    KRON_TRY(condition_alloc(t->s, t->n, pos));
    if (neg != NULL)
        KRON_TRY(condition_alloc(t->s, t->n, neg));
    return encode_all(t);
}

kron_status encode_prompts(struct session *s, const struct prompt *positive,
                           const struct prompt *negative, const char *embd_dir, int clip_skip,
                           struct condition *pos, struct condition *neg)
{
    struct prompt_windows a = {0}, b = {0};
    struct text t = {.s = s, .clip_skip = clip_skip, .windows = {&a, &b}};
    bool zero = negative != NULL && s->e->model.arch == KRON_ARCH_SDXL && is_empty(negative);

    memset(pos, 0, sizeof *pos);
    if (negative != NULL)
        memset(neg, 0, sizeof *neg);
    kron_status status = words_collect(&t.words, s, embd_dir, positive, negative);

    if (status == KRON_OK)
        status = prompt_tokenize(&a, s->e->tokenizer, positive, t.words.at, t.words.n);
    if (status == KRON_OK && negative != NULL)
        status = prompt_tokenize(&b, s->e->tokenizer, negative, t.words.at, t.words.n);
    if (status == KRON_OK)
        status = encode_both(&t, zero, pos, negative != NULL ? neg : NULL);
    prompt_windows_free(&a);
    prompt_windows_free(&b);
    words_free(&t.words);
    if (status != KRON_OK) {
        condition_free(pos);
        if (negative != NULL)
            condition_free(neg);
    }
    return status;
}
