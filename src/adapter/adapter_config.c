/* SPDX-License-Identifier: MIT
 * What metadata and PEFT's config say of a file's scale. Both are written by many tools, often by
 * hand: whatever cannot be read counts as absent, nothing here is an error. */
#include "adapter/family.h"
#include <jansson.h>
#include <math.h>
#include <string.h>

/* The object in a text; NULL if there is none. */
static json_t *parse_object(const char *text)
{
    json_t *j = text != NULL ? json_loads(text, 0, NULL) : NULL;

    if (json_is_object(j))
        return j;
    json_decref(j);
    return NULL;
}

/* A number, also one written as a string; NAN for anything else. */
static double number(const json_t *j)
{
    double v;

    if (json_is_number(j))
        return json_number_value(j);
    return json_is_string(j) && str_to_double(json_string_value(j), &v) && isfinite(v) ? v : NAN;
}

/* Python writes True into strings. */
static bool truth(const json_t *j)
{
    const char *text = json_string_value(j);

    return json_is_true(j) ||
           (text != NULL && (strcmp(text, "true") == 0 || strcmp(text, "True") == 0));
}

static kron_status read_patterns(struct adapter_file *f, struct adapter_config *c, json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        size_t n = (size_t)c->n_patterns;
        if (isnan(number(value)))
            continue;
        KRON_TRY(mem_grow((void **)&c->patterns, n, n + 1, sizeof *c->patterns, "adapter config"));
        c->patterns[n].key = arena_strdup(&f->mem, key);
        c->patterns[n].alpha = number(value);
        if (c->patterns[n].key == NULL)
            return f->mem.status;
        c->n_patterns++;
    }
    return KRON_OK;
}

static kron_status read_member(struct adapter_file *f, struct adapter_config *c, const char *key,
                               json_t *value)
{
    if (strcmp(key, "lora_alpha") == 0 || strcmp(key, "alpha") == 0) {
        if (!isnan(number(value)))
            c->alpha = number(value);
    } else if (strcmp(key, "r") == 0) {
        c->r = number(value);
    } else if (strcmp(key, "use_rslora") == 0) {
        c->rslora = truth(value);
    } else if (strcmp(key, "alpha_pattern") == 0 && json_is_object(value)) {
        return read_patterns(f, c, value);
    }
    return KRON_OK;
}

/* diffusers keeps the configs of all networks in one object, as "unet.lora_alpha". */
static kron_status read_members(struct adapter_file *f, json_t *object)
{
    static const char *const parts[CONFIG_COUNT] = {"unet.", "text_encoder.", "text_encoder_2."};
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        struct adapter_config *c = &f->config[CONFIG_UNET];
        const char *name = key;
        for (int i = 0; i < CONFIG_COUNT; i++)
            if (str_starts(key, parts[i])) {
                c = &f->config[i];
                name += strlen(parts[i]);
                break;
            }
        KRON_TRY(read_member(f, c, name, value));
    }
    return KRON_OK;
}

static kron_status read_config(struct adapter_file *f, const char *text)
{
    json_t *j = parse_object(text);
    kron_status status = j != NULL ? read_members(f, j) : KRON_OK;

    f->has_config = f->has_config || j != NULL;
    json_decref(j);
    return status;
}

/* kohya's Kronecker networks scale by alpha / sqrt(uq) if they were given an alpha of their own;
 * their files cannot be told from LoKr's otherwise. */
static bool is_cdka(const struct adapter_file *f)
{
    const char *module = st_meta(f->st, "ss_network_module");
    json_t *args = parse_object(st_meta(f->st, "ss_network_args"));
    bool krona = module != NULL && str_ends(module, "krona");
    bool cdka = module != NULL && str_ends(module, "cdka"), is;

    is = (cdka && !isnan(number(json_object_get(args, "cdka_alpha")))) ||
         (krona && !isnan(number(json_object_get(args, "krona_alpha"))) &&
          truth(json_object_get(args, "use_cdka_scale")));
    json_decref(args);
    return is;
}

kron_status config_read(struct adapter_file *f, const char *config)
{
    for (int i = 0; i < CONFIG_COUNT; i++)
        f->config[i].alpha = f->config[i].r = NAN;
    f->cdka = is_cdka(f);
    KRON_TRY(read_config(f, st_meta(f->st, "lora_adapter_metadata")));
    return read_config(f, config);
}
