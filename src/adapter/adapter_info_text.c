/* SPDX-License-Identifier: MIT
 * adapter_info()'s document as text. */
#include "adapter/family.h"
#include <jansson.h>
#include <string.h>

enum { TAGS = 30, SKIPS = 20, WIDTH = 14 };

static const char *string_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s != NULL ? s : "";
}

static long long integer_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static double real_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* A line "  name          value"; what came from a file may hold anything, so one line is made
 * of it. */
static void line(struct str *out, const char *name, const char *value)
{
    size_t from = out->len;

    str_addf(out, "  %-*s %s", WIDTH, name, value);
    if (out->status == KRON_OK)
        str_clean(out->s + from);
    str_add(out, "\n");
}

static void range_line(struct str *out, const json_t *doc, const char *key)
{
    const json_t *r = json_object_get(doc, key);
    const json_t *min = json_object_get(r, "min"), *max = json_object_get(r, "max");
    char text[64];

    if (!json_is_object(r))
        return;
    if (json_is_null(min) || json_is_null(max))
        snprintf(text, sizeof text, "not finite");
    else if (json_number_value(min) == json_number_value(max))
        snprintf(text, sizeof text, "%.6g", json_number_value(min));
    else
        snprintf(text, sizeof text, "%.6g to %.6g", json_number_value(min),
                 json_number_value(max));
    line(out, key, text);
}

static void join(struct str *text, const char *joint, const char *s)
{
    str_addf(text, "%s%s", text->len > 0 ? joint : "", s);
}

static void list_line(struct str *out, const char *name, const json_t *list)
{
    struct str text = {0};
    size_t i;
    json_t *v;

    json_array_foreach(list, i, v)
        join(&text, ", ", json_string_value(v));
    if (text.len > 0)
        line(out, name, str_get(&text));
    str_free(&text);
}

static void made_for_line(struct str *out, json_t *doc)
{
    struct str text = {0};
    const char *key;
    json_t *v;

    str_add(&text, string_of(doc, "made_for"));
    json_object_foreach(json_object_get(doc, "base_model"), key, v)
        str_addf(&text, ", %s %s", key, json_string_value(v));
    line(out, "made for", str_get(&text));
    str_free(&text);
}

static void tags_line(struct str *out, json_t *doc)
{
    struct str text = {0};
    long long n = integer_of(doc, "n_tags"), shown = 0;
    size_t i;
    json_t *v;

    json_array_foreach(json_object_get(doc, "tags"), i, v)
        if (shown < TAGS) {
            str_addf(&text, "%s%s (%lld)", i > 0 ? ", " : "", string_of(v, "tag"),
                     integer_of(v, "count"));
            shown++;
        }
    if (n > shown)
        str_addf(&text, " and %lld more", n - shown);
    if (n > 0)
        line(out, "tags", str_get(&text));
    str_free(&text);
}

static void training_lines(struct str *out, json_t *doc)
{
    struct str text = {0};
    const char *key;
    size_t i;
    json_t *v;

    json_array_foreach(json_object_get(doc, "datasets"), i, v) {
        str_addf(&text, "%s: %lld pictures, %lld times", string_of(v, "name"),
                 integer_of(v, "pictures"), integer_of(v, "repeats"));
        line(out, "dataset", str_get(&text));
        str_free(&text);
    }
    json_object_foreach(json_object_get(doc, "training"), key, v) {
        str_addf(&text, "%s: %s", key, json_string_value(v));
        line(out, "training", str_get(&text));
        str_free(&text);
    }
}

/* Blocks of one part in one line each: "unet: input_blocks.0 1/1, input_blocks.1 3/5, ...". */
static void cover_lines(struct str *out, json_t *model)
{
    static const char *const parts[] = {"unet", "text_encoder", "text_encoder_2"};

    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        struct str text = {0};
        long long changed = 0, layers = 0;
        size_t i;
        json_t *v;
        json_array_foreach(json_object_get(model, "cover"), i, v) {
            if (strcmp(string_of(v, "part"), parts[p]) != 0)
                continue;
            changed += integer_of(v, "changed");
            layers += integer_of(v, "layers");
            str_addf(&text, ", %s %lld/%lld", string_of(v, "block"), integer_of(v, "changed"),
                     integer_of(v, "layers"));
        }
        if (layers > 0)
            str_addf(out, "  %-*s %lld of %lld layers%s\n", WIDTH, parts[p], changed, layers,
                     changed > 0 ? str_get(&text) : "");
        str_free(&text);
    }
}

static void model_lines(struct str *out, json_t *model)
{
    const json_t *change = json_object_get(model, "change");
    long long shown = 0, skipped;
    size_t i;
    json_t *v;

    str_addf(out, "with %s (%s)\n", string_of(model, "file"), string_of(model, "arch"));
    if (!json_is_true(json_object_get(model, "fits"))) {
        line(out, "does not fit", string_of(model, "error"));
        return;
    }
    str_addf(out, "  %-*s %lld modules, %lld tensors, %s\n", WIDTH, "applied",
             integer_of(model, "modules_applied"), integer_of(model, "tensors_used"),
             string_of(model, "naming"));
    cover_lines(out, model);
    if (json_is_object(change))
        str_addf(out, "  %-*s %.3g to %.3g of the weights, median %.3g; most: %s\n", WIDTH,
                 "change", real_of(change, "min"), real_of(change, "max"),
                 real_of(change, "median"), string_of(change, "largest"));
    skipped = (long long)json_array_size(json_object_get(model, "skipped"));
    json_array_foreach(json_object_get(model, "skipped"), i, v)
        if (shown++ < SKIPS) {
            struct str text = {0};
            str_addf(&text, "%s: %s", string_of(v, "name"), string_of(v, "text"));
            line(out, "skipped", str_get(&text));
            str_free(&text);
        }
    if (skipped > SKIPS)
        str_addf(out, "  %-*s and %lld more\n", WIDTH, "", skipped - SKIPS);
}

void info_text(json_t *doc, struct str *out)
{
    size_t from = out->len, i;
    json_t *v;

    str_addf(out, "%s: %s, %.1f MB", string_of(doc, "file"), string_of(doc, "family"),
             (double)integer_of(doc, "bytes") / 1e6);
    if (out->status == KRON_OK)
        str_clean(out->s + from);
    str_add(out, "\n");
    made_for_line(out, doc);
    str_addf(out, "  %-*s %lld, %lld tensors\n", WIDTH, "modules", integer_of(doc, "modules"),
             integer_of(doc, "tensors"));
    list_line(out, "types", json_object_get(doc, "types"));
    range_line(out, doc, "factor");
    range_line(out, doc, "rank");
    range_line(out, doc, "alpha");
    range_line(out, doc, "scale");
    list_line(out, "embeddings", json_object_get(doc, "embeddings"));
    list_line(out, "trigger words", json_object_get(doc, "trigger_words"));
    tags_line(out, doc);
    training_lines(out, doc);
    if (json_is_object(json_object_get(doc, "model")))
        model_lines(out, json_object_get(doc, "model"));
    json_array_foreach(json_object_get(doc, "warnings"), i, v)
        line(out, "warning", json_string_value(v));
}
