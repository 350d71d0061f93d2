/* SPDX-License-Identifier: MIT
 * Looking layers up under all the names that they have in files. */
#include "model/model.h"
#include <stdlib.h>
#include <string.h>

static const struct tensor *find(const struct loader *ld, const char *tag, const char *prefix,
                                 const char *name)
{
    char full[256];
    int n = snprintf(full, sizeof full, "%s%s", prefix, name);

    if (n < 0 || (size_t)n >= sizeof full)
        return NULL;
    return store_find(ld->m->store, tag, full);
}

/* sd.cpp's names of parts, in files that it converted. */
static const struct tensor *find_other(const struct loader *ld, const char *tag,
                                       const char *native, const char *name)
{
    const struct tensor *t = NULL;

    for (const char *const *p = ld->others; t == NULL && p != NULL && *p != NULL; p++)
        if ((t = find(ld, tag, *p, native)) == NULL)
            t = find(ld, tag, *p, name);
    return t;
}

static const struct tensor *find_own(const struct loader *ld, const char *native,
                                     const char *name)
{
    const struct tensor *t = NULL;

    if (!store_has_tag(ld->m->store, ld->tag))
        return NULL;
    if ((t = find(ld, ld->tag, ld->prefix, native)) == NULL &&
        (t = find(ld, ld->tag, ld->prefix2, name)) == NULL &&
        (t = find(ld, ld->tag, "", native)) == NULL && (t = find(ld, ld->tag, "", name)) == NULL)
        t = find_other(ld, ld->tag, native, name);
    return t;
}

/* A part's own file replaces the checkpoint's part, and never mixes with it: a layer that only the
 * checkpoint has belongs to another network. A VAE is two, of which a file may hold one. */
static bool is_replaced(const struct loader *ld, const char *native)
{
    bool encodes = strncmp(native, "encoder.", 8) == 0 || strncmp(native, "quant_", 6) == 0;
    const char *first = encodes ? "encoder.conv_in.weight" : "decoder.conv_in.weight";

    if (strcmp(ld->tag, "vae") != 0)
        return store_file(ld->m->store, ld->tag) != NULL;
    return find_own(ld, first, first) != NULL;
}

const struct tensor *loader_tensor(const struct loader *ld, const char *native, const char *name)
{
    const struct tensor *t = find_own(ld, native, name);

    if (t == NULL && !is_replaced(ld, native) && store_has_tag(ld->m->store, "") &&
        (t = find(ld, "", ld->prefix, native)) == NULL)
        t = find_other(ld, "", native, name);
    return t;
}

static const struct tensor *find_suffix(const struct loader *ld, const char *native,
                                        const char *name, const char *suffix)
{
    char a[200], b[200];

    snprintf(a, sizeof a, "%s%s", native, suffix);
    snprintf(b, sizeof b, "%s%s", name, suffix);
    return loader_tensor(ld, a, b);
}

bool loader_has(const struct loader *ld, const char *native, const char *name)
{
    return find_suffix(ld, native, name, ".weight") != NULL;
}

/* --- scaled f8 --- */

static kron_status check_scale(const struct tensor *w, const struct tensor *scale)
{
    int64_t n = tensor_elements(scale);
    char text[64];

    if (w->n_dims > 0 && dtype_is_float(scale->type) && (n == 1 || n == w->dim[0]))
        return KRON_OK;
    return err_set(KRON_ERR_SHAPE, "tensor '%s' has shape %s: expected one number, or one for each "
                   "row of '%s'", scale->name, tensor_shape_text(scale, text, sizeof text),
                   w->name);
}

/* ComfyUI's scaled f8: the weight is f8 times a number, of the tensor or of each row. It stays as
 * it is in the file, and is multiplied whenever it is decoded. */
static kron_status apply_scale(struct loader *ld, const struct tensor *scale, struct tensor *own,
                               const struct tensor **w)
{
    int64_t n = tensor_elements(scale);
    float *s;

    KRON_TRY(check_scale(*w, scale));
    s = arena_alloc(&ld->m->mem, (size_t)n * sizeof *s);
    if (s == NULL)
        return ld->m->mem.status;
    tensor_decode(scale, 0, n, s);
    *own = **w;
    own->scale = s;
    own->scale_step = n > 1;
    *w = own;
    return KRON_OK;
}

static kron_status scale_f8(struct loader *ld, const char *native, const char *name,
                            struct tensor *own, const struct tensor **w)
{
    static const char *const suffixes[] = {".scale_weight", ".weight_scale"};

    if ((*w)->type != DT_F8_E4M3 && (*w)->type != DT_F8_E5M2)
        return KRON_OK;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        const struct tensor *scale = find_suffix(ld, native, name, suffixes[i]);
        if (scale != NULL)
            return apply_scale(ld, scale, own, w);
    }
    return KRON_OK;
}

/* --- layers --- */

static kron_status append(struct sd_model *m, struct layer *l)
{
    struct layer_table *t = &m->layers;

    if (t->n == m->cap_layers) {
        int want = m->cap_layers ? 2 * m->cap_layers : 512;
        void *list = t->at;
        KRON_TRY(mem_grow(&list, (size_t)m->cap_layers, (size_t)want, sizeof *t->at, "layers"));
        t->at = list;
        m->cap_layers = want;
    }
    l->id = t->n;
    t->at[t->n++] = l;
    return KRON_OK;
}

static bool dims_fit(enum layer_kind kind, const struct tensor *w)
{
    if (kind == LAYER_NORM)
        return w->n_dims == 1;
    if (kind == LAYER_EMBED)
        return w->n_dims == 2;
    return w->n_dims == 2 || w->n_dims == 4;
}

static kron_status check_layer(enum layer_kind kind, const struct tensor *w,
                               const struct tensor *bias)
{
    char text[64];

    if (!dims_fit(kind, w))
        return err_set(KRON_ERR_SHAPE, "tensor '%s' has shape %s: expected %s", w->name,
                       tensor_shape_text(w, text, sizeof text),
                       kind == LAYER_NORM ? "1 dimension" : "2 (or, a convolution, 4) dimensions");
    if (!dtype_is_float(w->type) && dtype_info(w->type)->block == 1)
        return err_set(KRON_ERR_UNSUPPORTED, "tensor '%s' holds integers (%s): a way of storing "
                       "weights that is not read", w->name, dtype_info(w->type)->name);
    if (w->dim[0] < 1 || tensor_elements(w) < 1 || w->dim[2] > 64 || w->dim[3] > 64)
        return err_set(KRON_ERR_SHAPE, "tensor '%s' has shape %s: not one of a layer", w->name,
                       tensor_shape_text(w, text, sizeof text));
    if (bias != NULL && bias->data != NULL && tensor_elements(bias) != w->dim[0])
        return err_set(KRON_ERR_SHAPE, "tensor '%s' has shape %s: expected [%lld]", bias->name,
                       tensor_shape_text(bias, text, sizeof text), (long long)w->dim[0]);
    return KRON_OK;
}

static struct layer *make_layer(struct loader *ld, enum layer_kind kind, const char *native,
                                const char *name, const struct tensor *w,
                                const struct tensor *bias)
{
    struct layer *l = arena_alloc(&ld->m->mem, sizeof *l);

    if (l == NULL)
        return NULL;
    l->part = ld->part;
    l->kind = kind;
    l->name = arena_strdup(&ld->m->mem, name);
    l->native = arena_strdup(&ld->m->mem, native);
    l->out = w->dim[0];
    l->in = w->n_dims > 1 ? w->dim[1] : 1;
    l->kh = w->n_dims == 4 ? (int)w->dim[2] : 1;
    l->kw = w->n_dims == 4 ? (int)w->dim[3] : 1;
    l->is_conv = w->n_dims == 4;
    l->weight = *w;
    if (bias != NULL)
        l->bias = *bias;
    return l;
}

const struct layer *add_layer(struct loader *ld, enum layer_kind kind, const char *native,
                              const char *name, const struct tensor *weight,
                              const struct tensor *bias)
{
    struct layer *l;

    if (ld->status != KRON_OK)
        return NULL;
    ld->status = check_layer(kind, weight, bias);
    if (ld->status != KRON_OK)
        return NULL;
    l = make_layer(ld, kind, native, name, weight, bias);
    if (ld->m->mem.status != KRON_OK)
        ld->status = ld->m->mem.status;
    if (ld->status == KRON_OK)
        ld->status = append(ld->m, l);
    return ld->status == KRON_OK ? l : NULL;
}

const struct layer *load_layer(struct loader *ld, enum layer_kind kind, const char *native,
                               const char *name, bool needed)
{
    const struct tensor *w;
    struct tensor own;

    if (ld->status != KRON_OK)
        return NULL;
    w = find_suffix(ld, native, name, ".weight");
    if (w == NULL) {
        const char *path = store_path(ld->m->store, ld->tag);
        if (needed)
            ld->status = err_set(KRON_ERR_FORMAT, "%s: tensor '%s%s.weight' (or '%s.weight') is "
                                 "missing", path ? path : store_path(ld->m->store, ""), ld->prefix,
                                 native, name);
        return NULL;
    }
    ld->status = scale_f8(ld, native, name, &own, &w);
    return add_layer(ld, kind, native, name, w, find_suffix(ld, native, name, ".bias"));
}

static kron_status append_alias(struct sd_model *m, const struct layer_alias *a)
{
    struct layer_table *t = &m->layers;

    if (t->n_aliases == m->cap_aliases) {
        int want = m->cap_aliases ? 2 * m->cap_aliases : 64;
        void *list = t->aliases;
        KRON_TRY(mem_grow(&list, (size_t)m->cap_aliases, (size_t)want, sizeof *t->aliases,
                          "layers"));
        t->aliases = list;
        m->cap_aliases = want;
    }
    t->aliases[t->n_aliases++] = *a;
    return KRON_OK;
}

void add_alias(struct loader *ld, const char *native, const char *name,
               const struct layer *const *layers, int n)
{
    struct arena *mem = &ld->m->mem;
    struct layer_alias a = {.from = 0};

    for (int i = 0; i < n; i++)
        if (layers[i] == NULL || layers[i]->in != layers[0]->in || layers[i]->kh != layers[0]->kh ||
            layers[i]->kw != layers[0]->kw || layers[i]->is_conv != layers[0]->is_conv)
            return;
    a.name = arena_strdup(mem, name);
    a.native = arena_strdup(mem, native);
    if (mem->status != KRON_OK)
        ld->status = mem->status;
    for (int i = 0; i < n && ld->status == KRON_OK; i++) {
        a.layer = layers[i];
        a.rows = layers[i]->out;
        ld->status = append_alias(ld->m, &a);
        a.from += a.rows;
    }
}

int loader_int(const struct loader *ld, const char *meta_key, const char *config_key,
               int otherwise)
{
    const char *text = store_meta(ld->m->store, ld->tag, meta_key);
    int64_t v;

    if (text == NULL)
        text = store_meta(ld->m->store, "", meta_key);
    if (text == NULL && config_key != NULL)
        text = store_config(ld->m->store, ld->tag, config_key);
    return text != NULL && str_to_i64(text, &v) && v > 0 && v < 100000 ? (int)v : otherwise;
}
