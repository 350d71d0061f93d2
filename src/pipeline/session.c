/* SPDX-License-Identifier: MIT
 * A session's adapters: which are bound, and what a change of them costs. */
#include "pipeline/session.h"
#include <string.h>

/* --- binding --- */

static bool any_merged(const struct session *s)
{
    for (int i = 0; i < MAX_NETS; i++)
        for (int o = 0; s->nets[i] != NULL && o < s->nets[i]->g.n_ops; o++)
            if (s->nets[i]->g.ops[o].route == ROUTE_MERGED)
                return true;
    return false;
}

static kron_status make_set(struct session *s, const struct use_list *l, struct adapter_set **out)
{
    struct adapter_use *uses;
    void *p;

    *out = NULL;
    if (l->n == 0)
        return KRON_OK;
    KRON_TRY(mem_alloc_n(&p, l->n, sizeof *uses, "adapters"));
    uses = p;
    for (size_t i = 0; i < l->n; i++)
        uses[i] = l->at[i].u;
    kron_status status = adapter_bind(out, uses, (int)l->n, s->e->names, s->params.strict != 0);
    mem_free(uses);
    return status;
}

enum { REPORT_SKIPS = 8 }; /* per file in the log; the report itself has all */

static void log_lines(const char *text)
{
    while (*text != '\0') {
        size_t n = strcspn(text, "\n");
        log_info("%.*s", (int)n, text);
        text += n + (text[n] != '\0');
    }
}

static void report(struct session *s)
{
    str_free(&s->report);
    for (int i = 0; s->set != NULL && i < adapter_set_count(s->set); i++) {
        struct str brief = {0};
        const struct adapter_report *r = adapter_set_report(s->set, i);
        adapter_report_text(r, r->n_skips, &s->report);
        adapter_report_text(r, REPORT_SKIPS, &brief);
        log_lines(str_get(&brief));
        str_free(&brief);
    }
}

static void unbind(struct session *s)
{
    nets_drop_all(s);
    be_weights_free(s->e->device, &s->weights);
    adapter_set_free(&s->set);
    mem_free(s->strengths);
    s->strengths = NULL;
    use_list_free(&s->bound);
}

static void fill(const struct use_list *l, int step, int n_steps, float *out)
{
    for (size_t i = 0; i < l->n; i++)
        adapter_strengths(&l->at[i].u, step, n_steps, out + i * ADAPTER_SLOTS);
}

void session_fill_strengths(struct session *s, int step, int n_steps)
{
    fill(&s->bound, step, n_steps, s->strengths);
}

static kron_status make_weights(const struct session *s, const struct adapter_set *set,
                                struct be_weights **out)
{
    return be_weights_create(s->e->device, &s->e->model.layers,
                             set != NULL ? adapter_set_deltas(set) : NULL, out);
}

static kron_status drop_merged(struct session *s)
{
    struct be_weights *weights;

    KRON_TRY(make_weights(s, s->set, &weights));
    nets_drop_all(s);
    be_weights_free(s->e->device, &s->weights);
    s->weights = weights;
    return KRON_OK;
}

/* Other strengths for the deltas that are bound. Merged weights hold the old ones, and are made
 * anew with the plans; a strength that changes with the steps is never merged. */
static kron_status rebind(struct session *s, struct use_list *l)
{
    size_t n = l->n * ADAPTER_SLOTS;
    float *now, *before = s->strengths;
    kron_status status = KRON_OK;

    KRON_TRY(mem_floats(&now, (int64_t)n, "strengths"));
    fill(l, 0, 1, now);
    fill(&s->bound, 0, 1, before);
    if (n > 0 && memcmp(now, before, n * sizeof *now) != 0 && any_merged(s))
        status = drop_merged(s);
    if (status == KRON_OK && n > 0)
        memcpy(before, now, n * sizeof *now);
    mem_free(now);
    KRON_TRY(status);
    use_list_free(&s->bound);
    s->bound = *l;
    memset(l, 0, sizeof *l);
    return KRON_OK;
}

/* Binds the list and takes it over; on failure the session is as it was. */
static kron_status bind(struct session *s, struct use_list *l)
{
    struct adapter_set *set;
    struct be_weights *weights = NULL;
    float *strengths = NULL;

    if (s->weights != NULL && use_lists_alike(l, &s->bound))
        return rebind(s, l);
    KRON_TRY(make_set(s, l, &set));
    kron_status status = mem_floats(&strengths, (int64_t)l->n * ADAPTER_SLOTS, "strengths");
    if (status == KRON_OK)
        status = make_weights(s, set, &weights);
    if (status != KRON_OK) {
        mem_free(strengths);
        adapter_set_free(&set);
        return status;
    }
    unbind(s);
    s->set = set;
    s->strengths = strengths;
    s->weights = weights;
    s->bound = *l;
    memset(l, 0, sizeof *l);
    session_fill_strengths(s, 0, 1);
    report(s);
    cache_trim(s->e->adapters);
    return KRON_OK;
}

static kron_status add_tags(struct session *s, struct use_list *l, const struct prompt *prompt,
                            const char *lora_dir)
{
    if (prompt->n_adapters > 0 && lora_dir == NULL)
        return err_set(KRON_ERR_ARGUMENT, "the prompt names the adapter '%s', but no folder of "
                       "adapters is given (--lora-model-dir)", prompt->adapters[0].name);
    for (size_t i = 0; i < prompt->n_adapters; i++)
        KRON_TRY(use_list_add_tag(l, s, &prompt->adapters[i], lora_dir));
    return KRON_OK;
}

kron_status session_bind_prompt(struct session *s, const struct prompt *prompt,
                                const char *lora_dir)
{
    struct use_list all = {0};
    kron_status status = use_list_add_all(&all, &s->own);

    if (status == KRON_OK)
        status = add_tags(s, &all, prompt, lora_dir);
    if (status == KRON_OK)
        status = bind(s, &all);
    use_list_free(&all);
    return status;
}

/* --- the session's own list --- */

/* Binds a new list and takes it over, unless `status` says that making it failed. */
static kron_status take(struct session *s, kron_status status, struct use_list *own)
{
    struct use_list both = {0};

    if (status == KRON_OK)
        status = use_list_add_all(&both, own);
    if (status == KRON_OK)
        status = bind(s, &both);
    use_list_free(&both);
    if (status != KRON_OK) {
        use_list_free(own);
        return status;
    }
    use_list_free(&s->own);
    s->own = *own;
    return KRON_OK;
}

kron_status session_set_adapters(struct session *s, const kron_adapter_use *uses, size_t n)
{
    struct use_list own = {0};
    kron_status status = KRON_OK;

    for (size_t i = 0; i < n && status == KRON_OK; i++) {
        status = use_list_add(&own, &uses[i]);
        if (status != KRON_OK)
            status = err_prefix(status, "adapter %zu", i);
    }
    return take(s, status, &own);
}

kron_status session_add_adapter(struct session *s, const kron_adapter_use *use)
{
    struct use_list own = {0};
    kron_status status = use_list_add_all(&own, &s->own);

    if (status == KRON_OK)
        status = use_list_add(&own, use);
    return take(s, status, &own);
}

kron_status session_add_adapter_text(struct session *s, const char *text)
{
    struct use_list own = {0};
    struct prompt_adapter tag;
    struct arena mem = {0};
    kron_status status = prompt_read_adapter(&tag, &mem, text);

    if (status == KRON_OK)
        status = use_list_add_all(&own, &s->own);
    if (status == KRON_OK)
        status = use_list_add_tag(&own, s, &tag, NULL);
    arena_free(&mem);
    return take(s, status, &own);
}

kron_status session_remove_adapter(struct session *s, size_t i)
{
    struct use_list own = {0};
    kron_status status = KRON_OK;

    for (size_t k = 0; k < s->own.n && status == KRON_OK; k++)
        if (k != i)
            status = use_list_add_one(&own, &s->own.at[k]);
    return take(s, status, &own);
}

/* What is bound follows when a job begins. */
void session_set_strength(struct session *s, size_t i, float te, float unet)
{
    s->own.at[i].u.te_strength = te;
    s->own.at[i].u.unet_strength = unet;
}

kron_status session_read_blocks(const struct session *s, const char *text, float *out)
{
    return adapter_blocks_read(s->presets, text, s->e->model.arch == KRON_ARCH_SDXL, out);
}

/* --- sessions --- */

static kron_status start(struct session *s, const kron_session_params *p)
{
    struct use_list none = {0};

    if (p != NULL)
        s->params = *p;
    if (p != NULL && p->block_presets != NULL)
        KRON_TRY(adapter_presets_read(&s->presets, p->block_presets));
    s->params.block_presets = NULL; /* the caller's */
    return bind(s, &none);
}

kron_status session_create(struct session **out, struct engine *e, const kron_session_params *p)
{
    void *mem;

    *out = NULL;
    KRON_TRY(mem_alloc(&mem, sizeof **out, "a session"));
    struct session *s = mem;
    s->e = e;
    kron_status status = start(s, p);
    if (status != KRON_OK)
        session_free(&s);
    *out = s;
    return status;
}

void session_free(struct session **s)
{
    if (*s == NULL)
        return;
    unbind(*s);
    use_list_free(&(*s)->own);
    adapter_presets_free(&(*s)->presets);
    cache_trim((*s)->e->adapters);
    str_free(&(*s)->report);
    mem_free(*s);
    *s = NULL;
}
