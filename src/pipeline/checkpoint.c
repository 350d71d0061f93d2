/* SPDX-License-Identifier: MIT
 * What a model is written to another file as. */
#include "pipeline/checkpoint.h"
#include <string.h>

void checkpoint_free(struct checkpoint *c)
{
    mem_free(c->at);
    arena_free(&c->mem);
    memset(c, 0, sizeof *c);
}

static kron_status add(struct checkpoint *c, const struct tensor *t, const char *name)
{
    if (name == NULL)
        return c->mem.status;
    if (c->n == c->cap) {
        int64_t cap = c->cap > 0 ? 2 * c->cap : 1024;
        KRON_TRY(mem_grow((void **)&c->at, (size_t)c->cap, (size_t)cap, sizeof *c->at,
                          "a checkpoint"));
        c->cap = cap;
    }
    c->at[c->n] = *t;
    c->at[c->n++].name = name;
    return KRON_OK;
}

/* --- a single file --- */

/* Numbers that scaled f8 needs beside its weights. */
static bool is_scale(const char *name)
{
    static const char *const endings[] = {".scale_weight", ".weight_scale", ".scale_input",
                                          ".input_scale"};

    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (str_ends(name, endings[i]))
            return true;
    return strcmp(name, "scaled_fp8") == 0;
}

static kron_status map_layers(struct name_map *map, const struct sd_model *m)
{
    KRON_TRY(name_map_create(map, (size_t)m->layers.n));
    for (int i = 0; i < m->layers.n; i++) {
        const char *name = m->layers.at[i]->weight.name;
        *name_map_at(map, name, strlen(name)) = (struct name_slot){name, i};
    }
    return KRON_OK;
}

kron_status checkpoint_of_file(struct checkpoint *c, const struct sd_model *m)
{
    const struct st_file *f = store_file(m->store, "");
    struct name_map layers = {0};
    bool scaled = false;

    memset(c, 0, sizeof *c);
    kron_status status = map_layers(&layers, m);
    for (int64_t i = 0; i < st_count(f); i++)
        scaled = scaled || is_scale(st_at(f, i)->name);
    for (int64_t i = 0; i < st_count(f) && status == KRON_OK; i++) {
        const struct tensor *t = st_at(f, i);
        const struct name_slot *slot = name_map_at(&layers, t->name, strlen(t->name));
        bool f8 = t->type == DT_F8_E4M3 || t->type == DT_F8_E5M2;
        if (scaled && is_scale(t->name))
            continue;
        if (scaled && f8 && slot->key != NULL &&
            tensor_elements(&m->layers.at[slot->value]->weight) == tensor_elements(t))
            t = &m->layers.at[slot->value]->weight;
        status = add(c, t, t->name);
    }
    name_map_free(&layers);
    return status;
}

/* --- several files --- */

static const char *prefix_of(enum layer_part part)
{
    switch (part) {
    case PART_UNET:
        return "model.diffusion_model.";
    case PART_TE0:
        return "cond_stage_model.transformer.text_model.";
    case PART_TE1:
        return "cond_stage_model.1.transformer.text_model.";
    default:
        return "first_stage_model.";
    }
}

static kron_status add_layer_tensors(struct checkpoint *c, const struct layer *l)
{
    bool text = l->part == PART_TE0 || l->part == PART_TE1;
    const char *prefix = prefix_of(l->part), *name = text ? l->name : l->native;

    KRON_TRY(add(c, &l->weight, arena_printf(&c->mem, "%s%s.weight", prefix, name)));
    if (l->bias.data == NULL)
        return KRON_OK;
    return add(c, &l->bias, arena_printf(&c->mem, "%s%s.bias", prefix, name));
}

static void add_meta(struct checkpoint *c, const char *key, const char *value)
{
    if (value == NULL)
        return;
    c->meta[2 * c->n_meta] = key;
    c->meta[2 * c->n_meta++ + 1] = value;
}

/* What the shapes do not tell, and the folder's configs did. */
static kron_status add_facts(struct checkpoint *c, const struct sd_model *m)
{
    static const char *const unet[] = {"unet.heads", "unet.head_dim"};
    static const char *const heads[] = {"te0.heads", "te1.heads"};

    if (m->prediction != KRON_PREDICTION_DETECT)
        add_meta(c, "prediction", m->prediction == KRON_PREDICTION_V ? "v" : "eps");
    for (int i = 0; i < 2; i++) {
        const char *v = store_meta(m->store, "unet", unet[i]);
        add_meta(c, unet[i], v != NULL ? v : store_meta(m->store, "", unet[i]));
    }
    for (int i = 0; i < m->n_te; i++)
        add_meta(c, heads[i], arena_printf(&c->mem, "%d", m->te[i].heads));
    return c->mem.status;
}

kron_status checkpoint_of_layers(struct checkpoint *c, const struct sd_model *m)
{
    static const char *const projection[] = {
        "text_encoders.clip_g.transformer.text_projection.weight",    /* [out, in] */
        "cond_stage_model.1.transformer.text_model.text_projection"}; /* [in, out] */

    memset(c, 0, sizeof *c);
    for (int i = 0; i < m->layers.n; i++)
        KRON_TRY(add_layer_tensors(c, m->layers.at[i]));
    if (m->n_te > 1 && m->te[1].projection.data != NULL)
        KRON_TRY(add(c, &m->te[1].projection, projection[m->te[1].projection_in_out]));
    return add_facts(c, m);
}
