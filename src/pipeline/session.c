/* SPDX-License-Identifier: MIT
 * A session's adapters: which are bound, and what a change of them costs. */
#include "pipeline/session.h"
#include <string.h>

/* --- counted adapter files --- */

kron_status adapter_open_counted(kron_adapter **out, const char *path)
{
    void *p;

    KRON_TRY(mem_alloc(&p, sizeof **out, path));
    *out = p;
    kron_status status = adapter_open(&(*out)->file, path);
    if (status != KRON_OK) {
        mem_free(*out);
        *out = NULL;
        return status;
    }
    (*out)->refs = 1;
    return KRON_OK;
}

kron_adapter *adapter_ref(kron_adapter *a)
{
    __atomic_add_fetch(&a->refs, 1, __ATOMIC_RELAXED);
    return a;
}

void adapter_unref(kron_adapter **a)
{
    if (*a != NULL && __atomic_sub_fetch(&(*a)->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        adapter_close(&(*a)->file);
        mem_free(*a);
    }
    *a = NULL;
}

static void list_free(struct use_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        adapter_unref(&l->at[i].adapter);
    mem_free(l->at);
    memset(l, 0, sizeof *l);
}

/* A list of a's, then b's uses. */
static kron_status list_join(struct use_list *out, const kron_adapter_use *a, size_t na,
                             const kron_adapter_use *b, size_t nb)
{
    void *p;

    memset(out, 0, sizeof *out);
    KRON_TRY(mem_alloc_n(&p, na + nb, sizeof *out->at, "adapters"));
    out->at = p;
    out->n = na + nb;
    for (size_t i = 0; i < out->n; i++) {
        out->at[i] = i < na ? a[i] : b[i - na];
        adapter_ref(out->at[i].adapter);
    }
    return KRON_OK;
}

/* --- binding --- */

static bool same_files(const struct use_list *a, const struct use_list *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->at[i].adapter != b->at[i].adapter)
            return false;
    return true;
}

static bool same_strengths(const struct use_list *a, const struct use_list *b)
{
    for (size_t i = 0; i < a->n; i++)
        if (a->at[i].te_strength != b->at[i].te_strength ||
            a->at[i].unet_strength != b->at[i].unet_strength)
            return false;
    return true;
}

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
        uses[i] = (struct adapter_use){l->at[i].adapter->file, l->at[i].te_strength,
                                       l->at[i].unet_strength};
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
    list_free(&s->bound);
}

static void take_strengths(struct session *s, const struct use_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        s->bound.at[i] = l->at[i];
        adapter_set_strength(s->set, (int)i, l->at[i].te_strength, l->at[i].unet_strength);
    }
    if (s->set != NULL)
        adapter_set_get_strengths(s->set, s->strengths);
}

static kron_status make_weights(const struct session *s, const struct adapter_set *set,
                                struct be_weights **out)
{
    return be_weights_create(s->e->device, &s->e->model.layers,
                             set != NULL ? adapter_set_deltas(set) : NULL, out);
}

/* Other strengths for the files that are bound. Merged weights hold the old ones, and are made
 * anew with the plans. */
static kron_status rebind(struct session *s, struct use_list *l)
{
    if (!same_strengths(l, &s->bound) && any_merged(s)) {
        struct be_weights *weights;
        KRON_TRY(make_weights(s, s->set, &weights));
        nets_drop_all(s);
        be_weights_free(s->e->device, &s->weights);
        s->weights = weights;
    }
    take_strengths(s, l);
    list_free(l);
    return KRON_OK;
}

/* Binds the list and takes it over; on failure the session is as it was. */
static kron_status bind(struct session *s, struct use_list *l)
{
    struct adapter_set *set;
    struct be_weights *weights = NULL;
    void *strengths = NULL;

    if (s->weights != NULL && same_files(l, &s->bound))
        return rebind(s, l);
    KRON_TRY(make_set(s, l, &set));
    kron_status status = mem_alloc_n(&strengths, 2 * l->n, sizeof(float), "strengths");
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
    if (set != NULL)
        adapter_set_get_strengths(set, s->strengths);
    report(s);
    return KRON_OK;
}

/* --- adapters that a prompt names --- */

/* A name may point into a sub-folder, never out of the folder. */
static bool name_is_safe(const char *name)
{
    if (name[0] == '\0' || name[0] == '/')
        return false;
    for (const char *p = name; p != NULL; p = strchr(p, '/')) {
        p += *p == '/';
        if (p[0] == '.' && p[1] == '.' && (p[2] == '/' || p[2] == '\0'))
            return false;
    }
    return true;
}

/* The file of that path, opened once a session; the session keeps the reference. */
static kron_status find_lora(struct session *s, const char *path, kron_adapter **out)
{
    for (int i = 0; i < MAX_LORAS; i++)
        if (s->lora[i] != NULL && strcmp(adapter_path(s->lora[i]->file), path) == 0) {
            *out = s->lora[i];
            return KRON_OK;
        }
    KRON_TRY(adapter_open_counted(out, path));
    adapter_unref(&s->lora[s->next_lora]);
    s->lora[s->next_lora] = *out;
    s->next_lora = (s->next_lora + 1) % MAX_LORAS;
    return KRON_OK;
}

static kron_status open_named(struct session *s, const char *dir, const char *name,
                              kron_adapter **out)
{
    struct str path = {0};
    kron_status status;

    if (dir == NULL)
        return err_set(KRON_ERR_ARGUMENT, "the prompt names the adapter '%s', but no folder of "
                       "adapters is given (--lora-model-dir)", name);
    if (!name_is_safe(name))
        return err_set(KRON_ERR_ARGUMENT, "the prompt's adapter name '%s' leads out of %s", name,
                       dir);
    str_addf(&path, "%s/%s%s", dir, name, str_ends(name, ".safetensors") ? "" : ".safetensors");
    if (path.status != KRON_OK)
        status = path.status;
    else if (!path_is_file(str_get(&path)))
        status = err_set(KRON_ERR_IO, "the prompt names the adapter '%s': there is no %s", name,
                         str_get(&path));
    else
        status = find_lora(s, str_get(&path), out);
    str_free(&path);
    return status;
}

static kron_status named_uses(struct session *s, const struct prompt *prompt, const char *dir,
                              kron_adapter_use *uses)
{
    for (size_t i = 0; i < prompt->n_adapters; i++) {
        const struct prompt_adapter *a = &prompt->adapters[i];
        KRON_TRY(open_named(s, dir, a->name, &uses[i].adapter));
        adapter_ref(uses[i].adapter); /* later ones may push it out of the session's list */
        uses[i].te_strength = (float)a->te_strength;
        uses[i].unet_strength = (float)a->unet_strength;
    }
    return KRON_OK;
}

kron_status session_bind_prompt(struct session *s, const struct prompt *prompt,
                                const char *lora_dir)
{
    struct use_list all = {0};
    kron_adapter_use *uses;
    void *p;

    KRON_TRY(mem_alloc_n(&p, prompt->n_adapters, sizeof *uses, "adapters"));
    uses = p;
    kron_status status = named_uses(s, prompt, lora_dir, uses);
    if (status == KRON_OK)
        status = list_join(&all, s->own.at, s->own.n, uses, prompt->n_adapters);
    if (status == KRON_OK)
        status = bind(s, &all);
    list_free(&all);
    for (size_t i = 0; i < prompt->n_adapters; i++)
        adapter_unref(&uses[i].adapter);
    mem_free(uses);
    return status;
}

/* --- sessions --- */

kron_status session_set_adapters(struct session *s, const kron_adapter_use *uses, size_t n)
{
    struct use_list own, both;

    KRON_TRY(list_join(&own, uses, n, NULL, 0));
    kron_status status = list_join(&both, uses, n, NULL, 0);
    if (status == KRON_OK)
        status = bind(s, &both);
    list_free(&both);
    if (status != KRON_OK) {
        list_free(&own);
        return status;
    }
    list_free(&s->own);
    s->own = own;
    return KRON_OK;
}

kron_status session_create(struct session **out, struct engine *e, const kron_session_params *p)
{
    struct use_list none = {0};
    void *mem;

    *out = NULL;
    KRON_TRY(mem_alloc(&mem, sizeof **out, "a session"));
    struct session *s = mem;
    s->e = e;
    if (p != NULL)
        s->params = *p;
    kron_status status = bind(s, &none);
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
    list_free(&(*s)->own);
    for (int i = 0; i < MAX_LORAS; i++)
        adapter_unref(&(*s)->lora[i]);
    str_free(&(*s)->report);
    mem_free(*s);
    *s = NULL;
}
