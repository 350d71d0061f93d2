/* SPDX-License-Identifier: MIT
 * Textual inversion: which words of a job's prompts stand for vectors, and these vectors for each
 * text encoder. Words come from the adapters in use and from a folder of files. */
#include "pipeline/session.h"
#include <string.h>

void words_free(struct words *w)
{
    mem_free(w->at);
    mem_free(w->vectors[0]);
    mem_free(w->vectors[1]);
    arena_free(&w->mem);
    memset(w, 0, sizeof *w);
}

/* What is asked for and where it goes. */
struct collector {
    struct session *s;
    const struct prompt *a, *b; /* b may be NULL */
    const char *dir;
    struct words *out;
};

static bool is_wanted(const struct collector *c, const char *word)
{
    if (!prompt_has_word(c->a, word) && (c->b == NULL || !prompt_has_word(c->b, word)))
        return false;
    for (size_t i = 0; i < c->out->n; i++)
        if (strcmp(c->out->at[i].text, word) == 0)
            return false; /* the first that brings a word has it */
    return true;
}

/* The tensor for an encoder: by name where a model has two, else the one that fits, if any. */
static const struct tensor *tensor_for(const struct embedding *e, const struct sd_model *m, int te)
{
    const struct tensor *by_name = e->of[te == 0 ? EMBEDDING_CLIP_L : EMBEDDING_CLIP_G];
    const struct tensor *any = e->of[EMBEDDING_ONLY];

    if (m->n_te == 2)
        return by_name != NULL ? by_name : any;
    for (int i = 0; i < EMBEDDING_PARTS; i++)
        if (e->of[i] != NULL && e->of[i]->n_dims > 0) {
            any = e->of[i];
            if (any->dim[any->n_dims - 1] == m->te[0].width)
                break;
        }
    return any;
}

static kron_status misfit(const char *path, const struct embedding *e, const struct tensor *t,
                          const struct sd_model *m, int te)
{
    static const char *const which[] = {"text encoder", "second text encoder"};
    char shape[64];

    if (t == NULL)
        return err_set(KRON_ERR_SHAPE, "%s: no vectors of the word '%s' for the %s of the model, "
                       "which is %s", path, e->word, which[te], arch_name(m->arch));
    return err_set(KRON_ERR_SHAPE, "%s: the vectors of the word '%s' are %s, but the %s of the "
                   "model, which is %s, takes [n, %d] floats", path, e->word,
                   tensor_shape_text(t, shape, sizeof shape), which[te], arch_name(m->arch),
                   m->te[te].width);
}

static bool is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F64 || t == DT_F8_E4M3 ||
           t == DT_F8_E5M2;
}

/* Adds one encoder's vectors of a word behind those that are there. */
static kron_status add_vectors(struct collector *c, int te, const struct tensor *t)
{
    struct words *w = c->out;
    int64_t width = c->s->e->model.te[te].width, n = tensor_elements(t) / width;
    void *p = w->vectors[te];

    KRON_TRY(mem_grow(&p, (size_t)(w->n_vectors * width), (size_t)((w->n_vectors + n) * width),
                      sizeof(float), "embeddings"));
    w->vectors[te] = p;
    tensor_decode(t, 0, n * width, w->vectors[te] + w->n_vectors * width);
    return KRON_OK;
}

/* Adds a word that the prompts have. */
static kron_status add_word(struct collector *c, const struct embedding *e, const char *path)
{
    enum { MAX_VECTORS = 1 << 16 };
    const struct sd_model *m = &c->s->e->model;
    struct words *w = c->out;
    int64_t n = 0;

    for (int te = 0; te < m->n_te; te++) {
        const struct tensor *t = tensor_for(e, m, te);
        int64_t width = m->te[te].width, all = t != NULL ? tensor_elements(t) : 0;
        if (t == NULL || t->n_dims < 1 || t->n_dims > 2 || t->dim[t->n_dims - 1] != width ||
            all < width || all / width > MAX_VECTORS || !is_float(t->type))
            return misfit(path, e, t, m, te);
        if (te > 0 && all / width != n)
            return err_set(KRON_ERR_SHAPE, "%s: the word '%s' has %lld vectors for one text "
                           "encoder and %lld for the other", path, e->word, (long long)n,
                           (long long)(all / width));
        n = all / width;
        KRON_TRY(add_vectors(c, te, t));
    }
    void *p = w->at;
    KRON_TRY(mem_grow(&p, w->n, w->n + 1, sizeof *w->at, "embeddings"));
    w->at = p;
    w->at[w->n] = (struct prompt_word){arena_strdup(&w->mem, e->word),
                                       TOK_COUNT + (int32_t)w->n_vectors, (int32_t)n};
    if (w->at[w->n].text == NULL)
        return w->mem.status;
    w->n++;
    w->n_vectors += n;
    log_info("%s: '%s' stands for %lld vector%s", path, e->word, (long long)n, n > 1 ? "s" : "");
    return KRON_OK;
}

static kron_status add_bundled(struct collector *c)
{
    const struct use_list *l = &c->s->bound;

    for (size_t i = 0; i < l->n; i++) {
        const struct adapter_file *f = l->at[i].adapter->file;
        if (l->at[i].u.te_strength == 0 && l->at[i].u.unet_strength == 0)
            continue;
        for (int k = 0; k < adapter_embedding_count(f); k++)
            if (is_wanted(c, adapter_embedding(f, k)->word))
                KRON_TRY(add_word(c, adapter_embedding(f, k), adapter_path(f)));
    }
    return KRON_OK;
}

static kron_status add_file(void *user, const char *name)
{
    struct collector *c = user;
    struct embedding_file *f;
    struct str word = {0}, path = {0};
    size_t len = st_stem(name);
    kron_status status;

    if (len == 0 || name[len] == '\0')
        return KRON_OK;
    str_add_n(&word, name, len);
    str_addf(&path, "%s/%s", c->dir, name);
    status = word.status != KRON_OK ? word.status : path.status;
    if (status == KRON_OK && is_wanted(c, str_get(&word))) {
        status = embedding_open(&f, str_get(&path));
        if (status == KRON_OK)
            status = add_word(c, embedding_get(f), str_get(&path));
        embedding_close(&f);
    }
    str_free(&word);
    str_free(&path);
    return status;
}

kron_status words_collect(struct words *out, struct session *s, const char *dir,
                          const struct prompt *a, const struct prompt *b)
{
    struct collector c = {s, a, b, dir, out};

    memset(out, 0, sizeof *out);
    kron_status status = add_bundled(&c);
    if (status == KRON_OK && dir != NULL)
        status = dir_each(dir, add_file, &c);
    if (status != KRON_OK)
        words_free(out);
    return status;
}
