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
                           const struct words *words, float *context, float *pooled)
{
    const struct clip *c = &s->e->model.te[te];
    int64_t n_vectors = words != NULL ? words->n_vectors : 0;
    struct net_key key = {.kind = NET_TE0 + (unsigned)te, .n = n, .h = n_vectors, .tokens = skip};
    int64_t numbers = n * TOK_WINDOW * c->width;
    struct net *net;
    void *last;

    KRON_TRY(net_get(s, &key, &net));
    KRON_TRY(net_write(net, "ids", ids, n * TOK_WINDOW));
    if (n_vectors > 0)
        KRON_TRY(net_write(net, "extra", words->vectors[te], n_vectors * c->width));
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

/* Both prompts' words, and what else their encoding shares. */
struct text {
    struct session *s;
    struct words words;
    int clip_skip;
};

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

/* Vectors of words come after the rows that the encoder's own table has. */
static void shift_words(int32_t *ids, int64_t n, const struct clip *c)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= TOK_COUNT)
            ids[i] += (int32_t)c->token->out - TOK_COUNT;
}

static kron_status encode_with(const struct text *t, const struct prompt_windows *pw, int64_t n,
                               struct condition *out, struct work *w)
{
    const struct sd_model *m = &t->s->e->model;
    int64_t at = 0, all = m->unet.context_width;

    for (int te = 0; te < m->n_te; te++) {
        const struct clip *c = &m->te[te];
        float *pooled = m->arch == KRON_ARCH_SDXL && te == 1 ? out->pooled : NULL;
        int skip = t->clip_skip > 0 ? t->clip_skip : c->default_skip;
        prompt_windows_fill(pw, (size_t)n, c->pad_id, w->ids, w->weights);
        shift_words(w->ids, n * TOK_WINDOW, c);
        KRON_TRY(encode_windows(t->s, te, w->ids, n, skip, &t->words, w->z, pooled));
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

static kron_status encode_one(const struct text *t, const struct prompt_windows *pw, int64_t n,
                              bool zero, struct condition *out)
{
    struct work w = {0};

    KRON_TRY(condition_alloc(t->s, n, out));
    if (zero)
        return KRON_OK;
    kron_status status = work_alloc(&w, out->tokens, t->s->e->model.unet.context_width);
    if (status == KRON_OK)
        status = encode_with(t, pw, n, out, &w);
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

static kron_status encode_both(const struct text *t, const struct prompt_windows *a,
                               const struct prompt_windows *b, bool zero, struct condition *pos,
                               struct condition *neg)
{
    int64_t n = (int64_t)(b != NULL && b->n > a->n ? b->n : a->n);

    KRON_TRY(encode_one(t, a, n, false, pos));
    return b != NULL ? encode_one(t, b, n, zero, neg) : KRON_OK;
}

kron_status encode_prompts(struct session *s, const struct prompt *positive,
                           const struct prompt *negative, const char *embd_dir, int clip_skip,
                           struct condition *pos, struct condition *neg)
{
    struct text t = {.s = s, .clip_skip = clip_skip};
    struct prompt_windows a = {0}, b = {0};
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
        status = encode_both(&t, &a, negative != NULL ? &b : NULL, zero, pos, neg);
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
