/* SPDX-License-Identifier: MIT
 * Which tensor gets which type: stable-diffusion.cpp's choice, and rules of the user's. */
#include "convert/convert.h"
#include <regex.h>
#include <string.h>
#include <strings.h>

struct type_rule {
    regex_t pattern;
    enum dtype type;
};

static bool type_from_text(const char *name, enum dtype *out)
{
    for (int t = 0; t < DT_COUNT; t++)
        if ((dtype_is_float((enum dtype)t) || dtype_info((enum dtype)t)->encode != NULL) &&
            t != DT_F64 && strcasecmp(name, dtype_info((enum dtype)t)->name) == 0) {
            *out = (enum dtype)t;
            return true;
        }
    return false;
}

/* The last '=' of a rule parts it, so that patterns may have some. */
static kron_status add_rule(struct type_rules *r, char *text)
{
    char *equals = strrchr(text, '='), why[128];
    struct type_rule rule;

    if (equals == NULL || equals == text)
        return err_set(KRON_ERR_ARGUMENT, "rule '%.100s': expected PATTERN=TYPE", text);
    *equals = '\0';
    if (!type_from_text(equals + 1, &rule.type))
        return err_set(KRON_ERR_ARGUMENT, "rule '%.100s=%.40s': there is no type %.40s", text,
                       equals + 1, equals + 1);
    KRON_TRY(mem_grow((void **)&r->at, (size_t)r->n, (size_t)r->n + 1, sizeof *r->at, "rules"));
    int error = regcomp(&rule.pattern, text, REG_EXTENDED | REG_NOSUB);
    if (error != 0) {
        regerror(error, &rule.pattern, why, sizeof why);
        return err_set(KRON_ERR_ARGUMENT, "rule '%.100s=%.40s': %s", text, equals + 1, why);
    }
    r->at[r->n++] = rule;
    return KRON_OK;
}

kron_status type_rules_parse(struct type_rules *r, const char *text)
{
    struct str rule = {0};
    kron_status status = KRON_OK;

    memset(r, 0, sizeof *r);
    while (text != NULL && *text != '\0' && status == KRON_OK) {
        size_t n = strcspn(text, ",");
        rule.len = 0;
        str_add_n(&rule, text, n);
        status = rule.status != KRON_OK ? rule.status
                 : n > 0                ? add_rule(r, rule.s)
                                        : KRON_OK;
        text += n + (text[n] == ',');
    }
    str_free(&rule);
    return status;
}

void type_rules_free(struct type_rules *r)
{
    for (int i = 0; i < r->n; i++)
        regfree(&r->at[i].pattern);
    mem_free(r->at);
    memset(r, 0, sizeof *r);
}

/* What stable-diffusion.cpp never quantises in these models, in names of both kinds; and the
 * projection of the pooled text, which is read once for each prompt, number by number. */
static bool is_left(const char *name)
{
    static const char *const pieces[] = {"embedding", "time_embed.", "label_emb.",
                                         "text_projection"};

    if (str_ends(name, ".bias") || str_ends(name, ".scale"))
        return true;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        if (strstr(name, pieces[i]) != NULL)
            return true;
    return false;
}

enum dtype type_rules_choose(const struct type_rules *r, kron_type type, const struct tensor *t)
{
    enum dtype want = dtype_of(type, t->type);
    bool ruled = false;

    for (int i = 0; i < r->n && !ruled; i++) {
        ruled = regexec(&r->at[i].pattern, t->name, 0, NULL, 0) == 0;
        want = ruled ? r->at[i].type : want;
    }
    int64_t block = dtype_info(want)->block;
    if (!dtype_is_float(t->type) && dtype_info(t->type)->block == 1)
        return t->type;
    /* f8 has three bits of mantissa at most: enough for the many weights of a sum, not for a
     * bias. */
    if ((want == DT_F8_E4M3 || want == DT_F8_E5M2) && t->n_dims < 2)
        return t->type;
    if (block > 1 && (t->n_dims != 2 || t->dim[1] % block != 0 || (!ruled && is_left(t->name))))
        return t->type;
    return want;
}
