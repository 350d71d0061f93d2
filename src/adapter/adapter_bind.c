/* SPDX-License-Identifier: MIT
 * All active files, bound to a model's layers. */
#include "adapter/family.h"
#include "graph/graph.h"
#include <string.h>

struct adapter_set {
    struct arena mem; /* texts of the reports */
    struct delta_set deltas;
    struct delta *all; /* every delta, in the order of layers */
    struct factor_pool pool;
    int n;
    float *strengths; /* of the uses, at the first step */
    struct adapter_report *reports;
    struct adapter_skip **skips; /* one array for each file */
};

/* Deltas in the order in which they were bound. */
struct bound_list {
    struct bound *at;
    size_t n, cap;
};

/* What is known while one file is bound. */
struct binder {
    struct adapter_set *set;
    const struct adapter_names *names;
    bool strict;
    struct bound_list *bound; /* of all files so far */
    const struct adapter_file *f; /* the file at work, its number and how it is used */
    int index;
    const struct adapter_use *use;
    const struct delta_region *region; /* the set's own copy; NULL: everywhere */
    struct adapter_report *r;
    size_t cap_skips;
    int n_why[ADAPTER_SKIP_KEY + 1];
    const char *unet_naming, *te_naming;
};

/* A family may need two deltas: two rows. */
static const struct {
    enum fam fam;
    kron_status (*bind)(const struct bind *, struct delta *);
    bool product; /* adds a product, which DoRA may rescale */
} families[] = {
    {FAM_LORA, lora_bind, true},  {FAM_LOHA, loha_bind, true},
    {FAM_LOKR, lokr_bind, true},  {FAM_FULL, full_bind, true},
    {FAM_OFT, oft_bind, false},   {FAM_BOFT, oft_bind, false},
    {FAM_IA3, ia3_bind, false},   {FAM_GLORA, glora_bind_input, false},
    {FAM_GLORA, glora_bind_sum, false}, {FAM_SET, set_bind, false},
    {FAM_NORM, norm_bind, false}, {FAM_BIAS, bias_bind, false}};

/* --- what is left out --- */

static kron_status strict_status(enum adapter_skip_why why)
{
    return why == ADAPTER_SKIP_FAMILY ? KRON_ERR_UNSUPPORTED : KRON_ERR_SHAPE;
}

static kron_status skip(struct binder *b, enum adapter_skip_why why, const char *name,
                        const char *text)
{
    struct adapter_skip **list = &b->set->skips[b->index];
    size_t n = (size_t)b->r->n_skips;

    if (b->strict)
        return err_set(strict_status(why), "%s: %s: %s", adapter_path(b->f), name, text);
    if (n == b->cap_skips) {
        size_t cap = n ? 2 * n : 16;
        KRON_TRY(mem_grow((void **)list, n, cap, sizeof **list, "adapter report"));
        b->cap_skips = cap;
    }
    b->n_why[why]++;
    text = arena_strdup(&b->set->mem, text);
    name = arena_strdup(&b->set->mem, name);
    if (text == NULL || name == NULL)
        return b->set->mem.status;
    (*list)[b->r->n_skips++] = (struct adapter_skip){why, name, text};
    return KRON_OK;
}

static kron_status skip_unknown(struct binder *b, const struct adapter_module *m,
                                const struct adapter_match *match)
{
    static const char *const part[] = {"UNet's", "text encoder's", "second text encoder's"};
    char text[1024];

    if (match->found == ADAPTER_AMBIGUOUS)
        snprintf(text, sizeof text, "names layers of both text encoders");
    else if (match->layer != NULL)
        snprintf(text, sizeof text, "no layer of this name; the nearest is the %s %s",
                 part[match->layer->part], match->layer->name);
    else
        snprintf(text, sizeof text, "no layer of this name");
    return skip(b, ADAPTER_SKIP_NAME, m->prefix, text);
}

static kron_status skip_family(struct binder *b, const char *name, const char *what)
{
    char text[128];

    snprintf(text, sizeof text, "%s is not supported", what);
    return skip(b, ADAPTER_SKIP_FAMILY, name, text);
}

/* --- one module --- */

/* What a layer's delta takes from the use of its file, whatever its family. */
static void take_use(const struct binder *b, const struct layer *l, struct delta *d)
{
    d->strength = ADAPTER_SLOTS * b->index + adapter_slot(l);
    d->varying = l->part == PART_UNET && adapter_steps_vary(&b->use->steps);
}

/* One delta for each layer that the module has rows of. */
static kron_status add_delta(struct binder *b, const struct adapter_target *t,
                             const struct delta *d)
{
    struct bound_list *list = b->bound;

    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 256;
        KRON_TRY(mem_grow((void **)&list->at, list->cap, cap, sizeof *list->at,
                          "adapter deltas"));
        list->cap = cap;
    }
    list->at[list->n] = (struct bound){t->layer->id, *d};
    take_use(b, t->layer, &list->at[list->n].d);
    return delta_window(&list->at[list->n++].d, t);
}

static void widen(int64_t *min, int64_t *max, int64_t v)
{
    if (v < 1)
        return;
    *min = *max == 0 || v < *min ? v : *min;
    *max = v > *max ? v : *max;
}

/* Whether it adds a product to the weight and does nothing else: what a region can confine. */
static bool only_adds(const struct delta *d, const struct layer *l)
{
    bool product = d->kind == DELTA_LOW_RANK || d->kind == DELTA_HADAMARD ||
                   d->kind == DELTA_KRON || d->kind == DELTA_FULL;

    return product && l->kind != LAYER_NORM && d->axis == GAIN_NONE && d->bias == NULL &&
           !d->replace;
}

/* One family of a module. *ok: it was applied. */
static kron_status bind_family(struct binder *b, const struct adapter_module *m,
                               const struct adapter_match *match, int family, bool *ok)
{
    const struct layer *l = match->layer;
    struct bind one = {b->f, m, l, &b->set->pool, b->use->scale};
    struct delta d = {.kind = DELTA_NONE, .rows = l->out, .region = b->region};
    kron_status status = families[family].bind(&one, &d);
    char why[512];

    if (status == KRON_OK && families[family].product && m->part[AP_DORA_SCALE] != NULL)
        status = dora_bind(&one, &d);
    if (status == KRON_OK && d.region != NULL && !only_adds(&d, l))
        return skip_family(b, m->prefix, "confining to a region what does more than add a product");
    for (int i = 0; i < match->n_targets && status == KRON_OK; i++) {
        struct delta part = d;
        status = delta_window(&part, &match->targets[i]);
    }
    if (status != KRON_OK)
        snprintf(why, sizeof why, "%s", kron_error_detail());

    switch (status) {
    case KRON_OK:
        widen(&b->r->rank_min, &b->r->rank_max, d.rank);
        widen(&b->r->up_min, &b->r->up_max, d.up);
        *ok = true;
        for (int i = 0; i < match->n_targets; i++)
            KRON_TRY(add_delta(b, &match->targets[i], &d));
        return KRON_OK;
    case KRON_ERR_SHAPE:
        return skip(b, ADAPTER_SKIP_SHAPE, m->prefix, why);
    case KRON_ERR_FORMAT:
        return skip(b, ADAPTER_SKIP_PARTNER, m->prefix, why);
    case KRON_ERR_UNSUPPORTED:
        return skip(b, ADAPTER_SKIP_FAMILY, m->prefix, why);
    default:
        return status;
    }
}

/* Parts that are left out on their own. *n: how many. */
static kron_status skip_single_parts(struct binder *b, const struct adapter_module *m, int *n)
{
    *n = 0;
    for (int i = 0; i < AP_COUNT; i++)
        if (m->part[i] != NULL && fam_kind(part_family((enum ap)i)) == FAM_SINGLE) {
            ++*n;
            KRON_TRY(skip_family(b, m->part[i]->name, fam_text(part_family((enum ap)i))));
        }
    return KRON_OK;
}

static void note_naming(struct binder *b, const struct adapter_match *m)
{
    const char **at = m->layer->part == PART_UNET ? &b->unet_naming : &b->te_naming;

    if (*at == NULL)
        *at = m->naming;
    else if (strcmp(*at, m->naming) != 0)
        *at = "mixed names";
}

static kron_status bind_module(struct binder *b, const struct adapter_module *m)
{
    struct adapter_match match = adapter_names_find(b->names, m->prefix, module_width(m));
    const struct layer *l = match.layer;
    unsigned fams = module_families(m);
    bool applied = false;
    int n_single, n_tried = 0;

    if (match.found != ADAPTER_FOUND)
        return skip_unknown(b, m, &match);
    note_naming(b, &match);
    if (b->region != NULL && !adapter_sees_image(match.targets[0].layer)) {
        b->r->n_outside++;
        return KRON_OK;
    }
    for (int i = 0; i < FAM_COUNT; i++)
        if ((fams & 1u << i) && fam_kind((enum fam)i) == FAM_WHOLE)
            return skip_family(b, m->prefix, fam_text((enum fam)i));
    KRON_TRY(skip_single_parts(b, m, &n_single));
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool ok = false;
        if (!(fams & 1u << families[i].fam))
            continue;
        n_tried++;
        if (l->kind == LAYER_EMBED)
            return skip_family(b, m->prefix, "changing an embedding");
        KRON_TRY(bind_family(b, m, &match, (int)i, &ok));
        applied = applied || ok;
        if (!ok) /* its second delta would fail for the same reason */
            fams &= ~(1u << families[i].fam);
    }
    if (n_tried == 0 && n_single == 0)
        return skip(b, ADAPTER_SKIP_PARTNER, m->prefix, "has no factors");
    b->r->n_applied += applied;
    b->r->n_tensors_used += applied ? m->n_parts - n_single : 0;
    return KRON_OK;
}

/* --- one file --- */

static const char *family_names(struct binder *b)
{
    struct str t = {0};
    char *own;

    adapter_families(b->f, &t);
    own = arena_strdup(&b->set->mem, str_get(&t));
    str_free(&t);
    return own;
}

static const char *embedding_words(struct binder *b)
{
    struct str t = {0};
    char *own;

    for (int i = 0; i < b->f->n_embeddings; i++)
        str_addf(&t, "%s%s", i > 0 ? ", " : "", b->f->embeddings[i].word);
    own = arena_strdup(&b->set->mem, str_get(&t));
    str_free(&t);
    return own;
}

/* What the report says beyond which modules fit. A few layers tell how large the change is: a
 * session must not wait for a pass over its weights. */
static kron_status describe(struct binder *b, const struct bound *bound, size_t n)
{
    enum { LAYERS = 16, NUMBERS = 1 << 16 };
    const struct layer_table *layers = names_layers(b->names);
    struct arena *mem = &b->set->mem;
    struct adapter_report *r = b->r;
    struct adapter_summary s;

    adapter_summarise(b->f, &s);
    r->alpha = s.alpha;
    r->scale = s.scale;
    KRON_TRY(adapter_cover(layers, bound, n, mem, &r->cover, &r->n_cover));
    KRON_TRY(adapter_measure(layers, bound, n, LAYERS, NUMBERS, mem, &r->change));
    return adapter_warn(b->f, &r->change, mem, r->warnings, &r->n_warnings);
}

/* An SDXL file fits some layers of an SD1 model by chance of their sizes: applying these alone
 * would only spoil the picture. A few strangers in a file that otherwise fits are no reason. */
static bool is_for_another(const struct binder *b)
{
    enum { ENOUGH = 20 }; /* one module in so many that does not fit */
    enum adapter_arch mine = adapter_names_arch(b->names);
    int strangers = b->n_why[ADAPTER_SKIP_NAME] + b->n_why[ADAPTER_SKIP_SHAPE];

    return b->f->arch != ADAPTER_ARCH_UNKNOWN && mine != ADAPTER_ARCH_UNKNOWN &&
           b->f->arch != mine && (int64_t)strangers * ENOUGH > b->f->n_modules;
}

static kron_status check_applied(const struct binder *b)
{
    const struct adapter_report *r = b->r;
    const char *model = adapter_arch_text(adapter_names_arch(b->names));
    const char *file = adapter_arch_text(b->f->arch);

    if (is_for_another(b))
        return err_set(KRON_ERR_SHAPE,
                       "%s: applied 0 of %d modules: the adapter is for %s, the model is %s (%d "
                       "modules of %s do not fit it)",
                       r->path, r->n_modules, file, model,
                       b->n_why[ADAPTER_SKIP_NAME] + b->n_why[ADAPTER_SKIP_SHAPE], r->family);
    if (r->n_applied > 0)
        return KRON_OK;
    if (r->n_outside > 0 && r->n_skips == 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: applied 0 of %d modules: none acts on places of "
                       "the image, so a region confines it to nothing", r->path, r->n_modules);
    if (r->n_skips > 0 && b->n_why[ADAPTER_SKIP_FAMILY] == r->n_skips)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: applied 0 of %d modules: %s: %s", r->path,
                       r->n_modules, r->skips[0].name, r->skips[0].text);
    return err_set(KRON_ERR_SHAPE,
                   "%s: applied 0 of %d modules: the adapter seems to be for %s, the model is "
                   "%s; %s: %s",
                   r->path, r->n_modules, file, model, r->skips[0].name, r->skips[0].text);
}

static kron_status copy_region(struct binder *b)
{
    const struct delta_region *from = b->use->region;
    size_t n;

    if (from == NULL)
        return KRON_OK;
    n = (size_t)from->w * (size_t)from->h;
    struct delta_region *own = arena_alloc(&b->set->mem, sizeof *own);
    float *mask = arena_alloc(&b->set->mem, n * sizeof *mask);
    if (own == NULL || mask == NULL)
        return b->set->mem.status;
    memcpy(mask, from->mask, n * sizeof *mask);
    *own = (struct delta_region){from->w, from->h, mask};
    b->region = own;
    return KRON_OK;
}

static kron_status bind_file(struct binder *b)
{
    struct adapter_report *r = b->r;
    const struct adapter_file *f = b->f;
    size_t first = b->bound->n;

    r->path = arena_strdup(&b->set->mem, adapter_path(f));
    r->family = family_names(b);
    r->arch = f->arch;
    r->n_modules = f->n_modules;
    r->n_tensors = f->n_tensors;
    r->n_embeddings = f->n_embeddings;
    r->embeddings = embedding_words(b);
    if (r->path == NULL || r->family == NULL || r->embeddings == NULL)
        return b->set->mem.status;
    KRON_TRY(copy_region(b));
    for (int i = 0; i < f->n_modules; i++)
        KRON_TRY(bind_module(b, &f->modules[i]));
    for (int i = 0; i < f->n_leftovers; i++) {
        const struct adapter_leftover *x = &f->leftovers[i];
        KRON_TRY(skip(b, x->twice ? ADAPTER_SKIP_PARTNER : ADAPTER_SKIP_KEY, x->t->name,
                      embedding_bundled(x->t->name) ? "vectors of a kind that is not known"
                      : x->twice ? "its module has this part already, under another name"
                               : "not the name of an adapter tensor"));
    }
    r->naming = b->unet_naming ? b->unet_naming : b->te_naming ? b->te_naming : "unknown names";
    r->skips = b->set->skips[b->index];
    KRON_TRY(check_applied(b));
    return describe(b, b->bound->at + first, b->bound->n - first);
}

/* --- the set --- */

/* Sorts what was bound by layer, keeping the order of files within one. */
static kron_status sort_deltas(struct adapter_set *s, const struct bound_list *bound)
{
    struct delta *at;

    KRON_TRY(mem_alloc_n((void **)&s->all, bound->n, sizeof *s->all, "adapter deltas"));
    for (size_t i = 0; i < bound->n; i++)
        s->deltas.by_layer[bound->at[i].layer].n++;
    at = s->all;
    for (int l = 0; l < s->deltas.n_layers; l++) {
        s->deltas.by_layer[l].at = at;
        at += s->deltas.by_layer[l].n;
        s->deltas.by_layer[l].n = 0;
    }
    for (size_t i = 0; i < bound->n; i++) {
        struct delta_list *list = &s->deltas.by_layer[bound->at[i].layer];
        list->at[list->n++] = bound->at[i].d;
    }
    return KRON_OK;
}

/* What can only be merged must not change from step to step. */
static kron_status check_merged(const struct adapter_set *s, const struct adapter_names *names)
{
    for (int i = 0; i < s->deltas.n_layers; i++) {
        const struct delta_list *list = &s->deltas.by_layer[i];
        if (gr_route_allowed(*list, ROUTE_ACTIVATION) != ROUTE_MERGED)
            continue;
        for (int k = 0; k < list->n; k++)
            if (list->at[k].varying)
                return err_set(KRON_ERR_UNSUPPORTED,
                               "%s: OFT beside DoRA, IA3 or a replaced weight on one layer needs a "
                               "merged weight, so none of them can change from step to step",
                               names_layers(names)->at[i]->name);
    }
    return KRON_OK;
}

static kron_status set_create(struct adapter_set **out, int n, int n_layers)
{
    struct adapter_set *s;
    kron_status status;

    KRON_TRY(mem_alloc((void **)&s, sizeof *s, "adapter set"));
    s->n = n;
    s->deltas.n_layers = n_layers;
    s->deltas.n_strengths = ADAPTER_SLOTS * n;
    status = mem_alloc_n((void **)&s->deltas.by_layer, (size_t)n_layers,
                         sizeof *s->deltas.by_layer, "adapter set");
    if (status == KRON_OK)
        status = mem_floats(&s->strengths, (int64_t)n * ADAPTER_SLOTS, "adapter set");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&s->reports, (size_t)n, sizeof *s->reports, "adapter set");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&s->skips, (size_t)n, sizeof *s->skips, "adapter set");
    if (status != KRON_OK)
        adapter_set_free(&s);
    *out = s;
    return status;
}

kron_status adapter_bind(struct adapter_set **out, const struct adapter_use *uses, int n,
                         const struct adapter_names *names, bool strict)
{
    struct adapter_set *s;
    struct bound_list bound = {0};
    kron_status status;

    *out = NULL;
    KRON_TRY(set_create(&s, n, names_layers(names)->n));
    status = KRON_OK;
    for (int i = 0; i < n && status == KRON_OK; i++) {
        struct binder b = {.set = s,
                           .names = names,
                           .strict = strict,
                           .bound = &bound,
                           .f = uses[i].file,
                           .index = i,
                           .use = &uses[i],
                           .r = &s->reports[i]};
        status = bind_file(&b);
        adapter_strengths(&uses[i], 0, 1, s->strengths + i * ADAPTER_SLOTS);
    }
    if (status == KRON_OK)
        status = sort_deltas(s, &bound);
    if (status == KRON_OK)
        status = check_merged(s, names);
    mem_free(bound.at);
    if (status != KRON_OK) {
        adapter_set_free(&s);
        return status;
    }
    *out = s;
    return KRON_OK;
}

void adapter_set_free(struct adapter_set **s)
{
    if (*s == NULL)
        return;
    for (int i = 0; (*s)->skips != NULL && i < (*s)->n; i++)
        mem_free((*s)->skips[i]);
    mem_free((*s)->skips);
    mem_free((*s)->reports);
    mem_free((*s)->strengths);
    mem_free((*s)->deltas.by_layer);
    mem_free((*s)->all);
    factor_pool_free(&(*s)->pool);
    arena_free(&(*s)->mem);
    mem_free(*s);
    *s = NULL;
}

const struct delta_set *adapter_set_deltas(const struct adapter_set *s)
{
    return &s->deltas;
}

int adapter_set_count(const struct adapter_set *s)
{
    return s->n;
}

void adapter_set_get_strengths(const struct adapter_set *s, float *out)
{
    memcpy(out, s->strengths, (size_t)s->n * ADAPTER_SLOTS * sizeof *out);
}

size_t adapter_set_bytes(const struct adapter_set *s)
{
    return s->pool.bytes;
}

const struct adapter_report *adapter_set_report(const struct adapter_set *s, int i)
{
    return &s->reports[i];
}
