/* SPDX-License-Identifier: MIT
 * What metadata and PEFT's config say of a file's scale. Both are written by many tools, often by
 * hand: whatever cannot be read counts as absent, nothing here is an error. */
#include "adapter/family.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- the members of a JSON object --- */

enum { MAX_DEPTH = 32, TEXT_MAX = 256 };

static const char *skip_space(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

/* Past a string that begins at p; NULL if it does not end. Its text, cut to what fits, goes to
 * buf; characters written as \u become '?', since no name that we look for has any. */
static const char *read_string(const char *p, char buf[TEXT_MAX])
{
    size_t n = 0;

    if (*p++ != '"')
        return NULL;
    for (; *p != '"'; p++) {
        char c = *p;
        if (c == '\\') {
            c = *++p;
            if (c == 'u')
                c = '?';
        }
        if (c == '\0')
            return NULL;
        if (n + 1 < TEXT_MAX)
            buf[n++] = c;
    }
    buf[n] = '\0';
    return p + 1;
}

/* Past a value of any kind, NULL if it is broken. */
static const char *skip_value(const char *p)
{
    char text[TEXT_MAX];
    int depth = 0;

    do {
        p = skip_space(p);
        if (*p == '\0')
            return NULL;
        if (*p == '"') {
            if ((p = read_string(p, text)) == NULL)
                return NULL;
        } else if (strchr("{[", *p) != NULL) {
            if (++depth > MAX_DEPTH)
                return NULL;
            p++;
        } else if (strchr("}]", *p) != NULL) {
            if (--depth < 0)
                return NULL;
            p++;
        } else {
            p += strchr(",:", *p) != NULL ? 1 : strcspn(p, ",:{}[]\" \t\r\n");
        }
    } while (depth > 0);
    return p;
}

/* The next member of the object at *p, which begins before '{' or after a member: its name, and
 * where its value begins. False at the end, or where the text is broken. */
static bool next_member(const char **p, char key[TEXT_MAX], const char **value)
{
    const char *at = *p = skip_space(*p);

    if (*at != '{' && *at != ',')
        return false;
    at = read_string(skip_space(at + 1), key);
    if (at == NULL || *(at = skip_space(at)) != ':')
        return false;
    *value = skip_space(at + 1);
    *p = skip_value(*value);
    if (*p == NULL)
        *p = "";
    return **p != '\0';
}

/* A number, also one written as a string; NAN for anything else. */
static double number(const char *value)
{
    char text[TEXT_MAX];
    size_t n;
    double v;

    if (*value == '"') {
        if (read_string(value, text) == NULL)
            return NAN;
    } else {
        n = strcspn(value, ",{}[]\" \t\r\n");
        if (n >= TEXT_MAX)
            return NAN;
        memcpy(text, value, n);
        text[n] = '\0';
    }
    return str_to_double(text, &v) && isfinite(v) ? v : NAN;
}

/* Python writes True into strings. */
static bool truth(const char *value)
{
    value += *value == '"';
    return strncmp(value, "true", 4) == 0 || strncmp(value, "True", 4) == 0;
}

/* --- PEFT's numbers --- */

static kron_status read_patterns(struct adapter_file *f, struct adapter_config *c,
                                 const char *object)
{
    char key[TEXT_MAX];
    const char *value;

    while (next_member(&object, key, &value)) {
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
                               const char *value)
{
    if (strcmp(key, "lora_alpha") == 0 || strcmp(key, "alpha") == 0) {
        if (!isnan(number(value)))
            c->alpha = number(value);
    } else if (strcmp(key, "r") == 0) {
        c->r = number(value);
    } else if (strcmp(key, "use_rslora") == 0) {
        c->rslora = truth(value);
    } else if (strcmp(key, "alpha_pattern") == 0 && *value == '{') {
        return read_patterns(f, c, value);
    }
    return KRON_OK;
}

/* diffusers keeps the configs of all networks in one object, as "unet.lora_alpha". */
static kron_status read_config(struct adapter_file *f, const char *json)
{
    static const char *const parts[CONFIG_COUNT] = {"unet.", "text_encoder.", "text_encoder_2."};
    char key[TEXT_MAX];
    const char *value;

    while (next_member(&json, key, &value)) {
        bool named = false;
        for (int i = 0; i < CONFIG_COUNT; i++)
            if (str_starts(key, parts[i])) {
                named = true;
                KRON_TRY(read_member(f, &f->config[i], key + strlen(parts[i]), value));
            }
        if (!named)
            KRON_TRY(read_member(f, &f->config[CONFIG_UNET], key, value));
    }
    return KRON_OK;
}

/* kohya's Kronecker networks scale by alpha / sqrt(uq) if they were given an alpha of their own;
 * their files cannot be told from LoKr's otherwise. */
static bool is_cdka(const struct adapter_file *f)
{
    const char *module = st_meta(f->st, "ss_network_module");
    const char *args = st_meta(f->st, "ss_network_args"), *value;
    char key[TEXT_MAX];
    bool alpha = false, asked = false, krona;

    if (module == NULL || args == NULL)
        return false;
    krona = str_ends(module, "krona");
    if (!krona && !str_ends(module, "cdka"))
        return false;
    while (next_member(&args, key, &value)) {
        alpha = alpha || (strcmp(key, krona ? "krona_alpha" : "cdka_alpha") == 0 &&
                          !isnan(number(value)));
        asked = asked || (strcmp(key, "use_cdka_scale") == 0 && truth(value));
    }
    return alpha && (asked || !krona);
}

kron_status config_read(struct adapter_file *f, const char *config)
{
    const char *diffusers = st_meta(f->st, "lora_adapter_metadata");

    for (int i = 0; i < CONFIG_COUNT; i++)
        f->config[i].alpha = f->config[i].r = NAN;
    f->cdka = is_cdka(f);
    f->has_config = config != NULL || diffusers != NULL;
    if (diffusers != NULL)
        KRON_TRY(read_config(f, diffusers));
    return config != NULL ? read_config(f, config) : KRON_OK;
}
