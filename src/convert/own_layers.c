/* SPDX-License-Identifier: MIT
 * Layers without a model: an adapter's shapes tell those of its layers, its names are theirs. */
#include "adapter/family.h"
#include "convert/convert.h"
#include <string.h>

/* A kernel's window and whether the weight has four axes, from a factor that holds it. */
static void take_window(struct layer *l, const struct tensor *t)
{
    l->is_conv = t->n_dims == 4;
    l->kh = l->is_conv && t->dim[2] <= 64 ? (int)t->dim[2] : 1;
    l->kw = l->is_conv && t->dim[3] <= 64 ? (int)t->dim[3] : 1;
}

/* Product of two sizes that a file gives; 0 if either is out of all proportion. */
static int64_t times(int64_t a, int64_t b)
{
    const int64_t most = INT64_C(1) << 30;

    return a > 0 && b > 0 && a <= most && b <= most ? a * b : 0;
}

static void lora_layer(const struct tensor *const *p, struct layer *l)
{
    if (p[AP_LORA_UP] == NULL || p[AP_LORA_DOWN] == NULL)
        return;
    take_window(l, p[AP_LORA_MID] != NULL ? p[AP_LORA_MID] : p[AP_LORA_DOWN]);
    l->out = p[AP_LORA_UP]->dim[0];
    l->in = p[AP_LORA_DOWN]->dim[1];
}

static void loha_layer(const struct tensor *const *p, struct layer *l)
{
    bool core = p[AP_HADA_T1] != NULL;

    if (p[AP_HADA_W1_A] == NULL || p[AP_HADA_W1_B] == NULL)
        return;
    take_window(l, core ? p[AP_HADA_T1] : p[AP_HADA_W1_B]);
    l->out = p[AP_HADA_W1_A]->dim[core ? 1 : 0];
    l->in = p[AP_HADA_W1_B]->dim[1];
}

static void lokr_layer(const struct tensor *const *p, struct layer *l)
{
    const struct tensor *up = p[AP_LOKR_W1] ? p[AP_LOKR_W1] : p[AP_LOKR_W1_A];
    const struct tensor *uq = p[AP_LOKR_W1] ? p[AP_LOKR_W1] : p[AP_LOKR_W1_B];
    const struct tensor *vp = p[AP_LOKR_W2] ? p[AP_LOKR_W2] : p[AP_LOKR_W2_A];
    const struct tensor *vq = p[AP_LOKR_W2] ? p[AP_LOKR_W2] : p[AP_LOKR_W2_B];
    const struct tensor *core = p[AP_LOKR_W2] == NULL ? p[AP_LOKR_T2] : NULL;

    if (up == NULL || uq == NULL || vp == NULL || vq == NULL)
        return;
    take_window(l, core != NULL ? core : vq);
    l->out = times(up->dim[0], vp->dim[core != NULL ? 1 : 0]);
    l->in = times(uq->dim[1], vq->dim[1]);
}

/* False if the module's shapes do not tell. */
static bool layer_of(const struct adapter_module *m, struct layer *l)
{
    const struct tensor *const *p = m->part;
    const struct tensor *diff = p[AP_DIFF];

    lora_layer(p, l);
    if (l->out == 0)
        loha_layer(p, l);
    if (l->out == 0)
        lokr_layer(p, l);
    if (l->out == 0 && diff != NULL) {
        take_window(l, diff);
        l->out = diff->dim[0];
        l->in = diff->dim[1];
    }
    l->kind = l->is_conv ? LAYER_CONV : LAYER_LINEAR;
    return times(l->out, l->in) > 0 && times(l->out, layer_k(l)) > 0;
}

static bool is_text(const char *prefix)
{
    static const char *const pieces[] = {"lora_te", "text_encoder", "clip_l", "clip_g", "clip_h",
                                         "cond_stage_model", "conditioner", "self_attn_q_proj",
                                         "self_attn.q_proj", "text_model"};

    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        if (strstr(prefix, pieces[i]) != NULL)
            return true;
    return false;
}

static kron_status add_file(struct own_layers *o, const struct adapter_file *f,
                            struct name_map *seen)
{
    for (int i = 0; i < f->n_modules; i++) {
        const struct adapter_module *m = &f->modules[i];
        struct name_slot *slot = name_map_at(seen, m->prefix, strlen(m->prefix));
        struct layer found = {.kh = 1, .kw = 1}, *l;
        if (slot->key != NULL || !layer_of(m, &found))
            continue;
        if ((l = arena_alloc(&o->mem, sizeof *l)) == NULL)
            return o->mem.status;
        *l = found;
        l->id = o->table.n;
        l->part = is_text(m->prefix) ? PART_TE0 : PART_UNET;
        l->name = l->native = m->prefix; /* the file outlives the table */
        *slot = (struct name_slot){m->prefix, l->id};
        o->table.at[o->table.n++] = l;
    }
    return KRON_OK;
}

kron_status own_layers_create(struct own_layers *o, struct adapter_file *const *files, int n)
{
    struct name_map seen = {0};
    size_t most = 0;

    memset(o, 0, sizeof *o);
    for (int i = 0; i < n; i++)
        most += (size_t)files[i]->n_modules;
    kron_status status =
        mem_alloc_n((void **)&o->table.at, most, sizeof *o->table.at, "a table of layers");
    if (status == KRON_OK)
        status = name_map_create(&seen, most);
    for (int i = 0; i < n && status == KRON_OK; i++)
        status = add_file(o, files[i], &seen);
    if (status == KRON_OK)
        status = adapter_names_create(&o->names, &o->table);
    name_map_free(&seen);
    if (status != KRON_OK)
        own_layers_free(o);
    return status;
}

void own_layers_free(struct own_layers *o)
{
    adapter_names_free(&o->names);
    mem_free(o->table.at);
    arena_free(&o->mem);
    memset(o, 0, sizeof *o);
}
