/* SPDX-License-Identifier: MIT
 * Textual inversion: vectors that a word of the prompt stands for. An adapter may bring some
 * ("bundle_emb.WORD.PART"); files of their own hold those of one word, the file's name. */
#include "adapter/family.h"
#include <string.h>

/* What tensors are called, by A1111, kohya and OneTrainer; SD2's encoder is the only one of its
 * models, so that it needs no name. */
static const struct {
    const char *text;
    enum embedding_part part;
} parts[] = {
    {"clip_l", EMBEDDING_CLIP_L},      {"clip_g", EMBEDDING_CLIP_G},
    {"clip_h", EMBEDDING_ONLY},        {"emb_params", EMBEDDING_ONLY},
    {"string_to_param.*", EMBEDDING_ONLY}, {"string_to_param", EMBEDDING_ONLY},
    {"*", EMBEDDING_ONLY},
};

/* EMBEDDING_PARTS if the name is none of these. */
static enum embedding_part part_of(const char *name)
{
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(name, parts[i].text) == 0)
            return parts[i].part;
    return EMBEDDING_PARTS;
}

/* The bytes of WORD in "WORD.PART"; 0 if the end is no part. Words may have dots in them. */
static size_t word_length(const char *name, enum embedding_part *part)
{
    for (const char *dot = strchr(name, '.'); dot != NULL; dot = strchr(dot + 1, '.'))
        if ((*part = part_of(dot + 1)) != EMBEDDING_PARTS)
            return (size_t)(dot - name);
    return 0;
}

bool embedding_bundled(const char *name)
{
    return str_starts(name, "bundle_emb.");
}

kron_status embedding_add(struct adapter_file *f, const struct tensor *t, bool *known)
{
    const char *name = t->name + strlen("bundle_emb.");
    enum embedding_part part = EMBEDDING_PARTS;
    size_t len = word_length(name, &part);
    struct embedding *e = NULL;

    *known = len > 0;
    if (!*known)
        return KRON_OK;
    for (int i = 0; i < f->n_embeddings && e == NULL; i++)
        if (strlen(f->embeddings[i].word) == len && memcmp(f->embeddings[i].word, name, len) == 0)
            e = &f->embeddings[i];
    if (e == NULL) {
        size_t n = (size_t)f->n_embeddings;
        KRON_TRY(mem_grow((void **)&f->embeddings, n, n + 1, sizeof *e, "embeddings"));
        e = &f->embeddings[n];
        e->word = arena_printf(&f->mem, "%.*s", (int)len, name);
        if (e->word == NULL)
            return f->mem.status;
        f->n_embeddings++;
    }
    *known = e->of[part] == NULL;
    if (*known)
        e->of[part] = t;
    return KRON_OK;
}

int adapter_embedding_count(const struct adapter_file *f)
{
    return f->n_embeddings;
}

const struct embedding *adapter_embedding(const struct adapter_file *f, int i)
{
    return &f->embeddings[i];
}

/* --- files of one word --- */

struct embedding_file {
    struct st_file *st;
    struct embedding e;
    char *word;
};

/* Programs of the diffusers family name the only tensor after the word itself. */
static kron_status fill(struct embedding_file *f, const char *path)
{
    const char *name = strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path;
    size_t len = st_stem(name);
    int64_t n = st_count(f->st);
    bool any = false;
    void *p;

    for (int64_t i = 0; i < n; i++) {
        const struct tensor *t = st_at(f->st, i);
        enum embedding_part part = part_of(t->name);
        if (part == EMBEDDING_PARTS && n > 1)
            continue;
        any = true;
        f->e.of[part == EMBEDDING_PARTS ? EMBEDDING_ONLY : part] = t;
    }
    if (!any)
        return err_set(KRON_ERR_FORMAT, "%s: none of its %lld tensors is called as vectors of "
                       "textual inversion are (emb_params, string_to_param.*, clip_l, clip_g)",
                       path, (long long)n);
    KRON_TRY(mem_alloc(&p, len + 1, "the word of an embedding"));
    f->word = memcpy(p, name, len);
    f->e.word = f->word;
    return KRON_OK;
}

kron_status embedding_open(struct embedding_file **out, const char *path)
{
    struct st_file *st;
    void *p;

    *out = NULL;
    KRON_TRY(st_open(&st, path));
    kron_status status = mem_alloc(&p, sizeof **out, path);
    if (status != KRON_OK) {
        st_close(&st);
        return status;
    }
    *out = p;
    (*out)->st = st;
    status = fill(*out, path);
    if (status != KRON_OK)
        embedding_close(out);
    return status;
}

void embedding_close(struct embedding_file **f)
{
    if (*f == NULL)
        return;
    st_close(&(*f)->st);
    mem_free((*f)->word);
    mem_free(*f);
    *f = NULL;
}

const struct embedding *embedding_get(const struct embedding_file *f)
{
    return &f->e;
}
