/* SPDX-License-Identifier: MIT
 * All that can be said of a file, gathered as one JSON document, from which the text is written:
 * neither can say what the other does not. */
#include "adapter/family.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0; /* false for NULL too */
}

/* Names of tensors may be anything that is UTF-8; a real number may be infinite, which JSON has
 * no word for. */
static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *range(const struct adapter_range *r)
{
    return r->n > 0 ? json_pack("{s:o, s:o}", "min", real(r->min), "max", real(r->max))
                    : json_null();
}

static json_t *types(unsigned bits)
{
    json_t *list = json_array();

    for (int t = 0; t < DT_COUNT; t++)
        if (bits & 1u << t)
            json_array_append_new(list, json_string(dtype_info((enum dtype)t)->name));
    return list;
}

static json_t *families(const struct adapter_file *f)
{
    struct str t = {0};
    json_t *text;

    adapter_families(f, &t);
    text = t.status == KRON_OK ? json_string(str_get(&t)) : NULL;
    str_free(&t);
    return text;
}

/* Words whose vectors the file brings. */
static json_t *words(const struct adapter_file *f)
{
    json_t *list = json_array();

    for (int i = 0; i < adapter_embedding_count(f) && list != NULL; i++)
        json_array_append_new(list, json_string(adapter_embedding(f, i)->word));
    return list;
}

static bool put_file(const struct adapter_file *f, json_t *doc)
{
    struct adapter_summary s;

    adapter_summarise(f, &s);
    return put(doc, "file", json_string(adapter_path(f))) &&
           put(doc, "bytes", json_integer((json_int_t)s.bytes)) &&
           put(doc, "family", families(f)) && put(doc, "types", types(s.types)) &&
           put(doc, "modules", json_integer(s.n_modules)) &&
           put(doc, "tensors", json_integer(s.n_tensors)) &&
           put(doc, "embeddings", words(f)) &&
           put(doc, "factor", range(&s.factor)) && put(doc, "rank", range(&s.rank)) &&
           put(doc, "alpha", range(&s.alpha)) && put(doc, "scale", range(&s.scale)) &&
           put(doc, "made_for", json_string(adapter_arch_text(s.arch)));
}

/* --- with a model --- */

static const char *part_name(enum layer_part part)
{
    static const char *const names[] = {"unet", "text_encoder", "text_encoder_2", "vae"};

    return names[part];
}

static const char *why_text(enum adapter_skip_why why)
{
    static const char *const texts[] = {"name", "shape", "partner", "family", "key"};

    return texts[why];
}

static json_t *cover(const struct adapter_cover *c, int n)
{
    json_t *list = json_array();

    for (int i = 0; i < n && list != NULL; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "part",
                                              part_name(c[i].part), "block", c[i].block, "layers",
                                              c[i].n_layers, "changed", c[i].n_changed));
    return list;
}

static json_t *skips(const struct adapter_report *r)
{
    json_t *list = json_array();

    for (int i = 0; i < r->n_skips && list != NULL; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "name", r->skips[i].name, "why",
                                              why_text(r->skips[i].why), "text",
                                              r->skips[i].text));
    return list;
}

static json_t *change(const struct adapter_change *c)
{
    json_t *layers = json_array();

    if (c->n == 0) {
        json_decref(layers);
        return json_null();
    }
    for (int i = 0; i < c->n && layers != NULL; i++)
        json_array_append_new(layers, json_pack("{s:s, s:s, s:o}", "part",
                                                part_name(c->layers[i].layer->part), "name",
                                                c->layers[i].layer->name, "ratio",
                                                real(c->layers[i].ratio)));
    return json_pack("{s:o, s:o, s:o, s:s, s:o}", "min", real(c->min), "median", real(c->median),
                     "max", real(c->max), "largest", c->largest->name, "layers", layers);
}

/* The deltas of a set of one file, as one list. */
static kron_status list_bound(const struct adapter_set *set, int n_layers, struct arena *mem,
                              struct bound **out, size_t *n)
{
    const struct delta_set *d = adapter_set_deltas(set);
    size_t most = 0;

    *n = 0;
    for (int l = 0; l < n_layers; l++)
        most += (size_t)d->by_layer[l].n;
    *out = arena_alloc(mem, most * sizeof **out + 1);
    if (*out == NULL)
        return mem->status;
    for (int l = 0; l < n_layers; l++)
        for (int i = 0; i < d->by_layer[l].n; i++)
            (*out)[(*n)++] = (struct bound){l, d->by_layer[l].at[i]};
    return KRON_OK;
}

static kron_status put_fit(const struct adapter_names *names,
                           const struct adapter_set *set, struct arena *mem, json_t *m,
                           struct adapter_change *c)
{
    const struct adapter_report *r = adapter_set_report(set, 0);
    const struct layer_table *layers = names_layers(names);
    struct bound *bound;
    size_t n;

    KRON_TRY(list_bound(set, layers->n, mem, &bound, &n));
    KRON_TRY(adapter_measure(layers, bound, n, 0, 0, mem, c));
    if (put(m, "naming", json_string(r->naming)) &&
        put(m, "modules_applied", json_integer(r->n_applied)) &&
        put(m, "tensors_used", json_integer(r->n_tensors_used)) &&
        put(m, "cover", cover(r->cover, r->n_cover)) && put(m, "change", change(c)) &&
        put(m, "skipped", skips(r)))
        return KRON_OK;
    return err_set(KRON_ERR_MEMORY, "out of memory: a report");
}

/* "model": what comes of binding; a file that does not fit gives "error". */
static kron_status put_model(const struct adapter_file *f, const struct adapter_names *names,
                             const char *model, struct arena *mem, json_t *doc,
                             struct adapter_change *c)
{
    struct adapter_use use = {f, 1, 1};
    struct adapter_set *set;
    json_t *m = json_object();
    kron_status status = adapter_bind(&set, &use, 1, names, false);

    if (status == KRON_ERR_MEMORY) {
        json_decref(m);
        return status;
    }
    put(m, "file", json_string(model));
    put(m, "arch", json_string(adapter_arch_text(adapter_names_arch(names))));
    put(m, "fits", json_boolean(set != NULL));
    status = KRON_OK;
    if (set == NULL)
        put(m, "error", json_string(kron_error_detail()));
    else
        status = put_fit(names, set, mem, m, c);
    adapter_set_free(&set);
    if (!put(doc, "model", m) && status == KRON_OK)
        status = err_set(KRON_ERR_MEMORY, "out of memory: a report");
    return status;
}

static kron_status put_warnings(const struct adapter_file *f, const struct adapter_change *c,
                                struct arena *mem, json_t *doc)
{
    const char *warnings[ADAPTER_MAX_WARNINGS];
    json_t *list = json_array();
    int n;
    kron_status status = adapter_warn(f, c, mem, warnings, &n);

    for (int i = 0; i < n && status == KRON_OK; i++)
        json_array_append_new(list, json_string(warnings[i]));
    if (!put(doc, "warnings", list) && status == KRON_OK)
        status = err_set(KRON_ERR_MEMORY, "out of memory: a report");
    return status;
}

static kron_status gather(const struct adapter_file *f, const struct adapter_names *names,
                          const char *model, struct arena *mem, json_t *doc)
{
    struct adapter_change c = {0};

    if (!put_file(f, doc) || !training_json(f->st, doc))
        return err_set(KRON_ERR_MEMORY, "out of memory: a report");
    if (names != NULL)
        KRON_TRY(put_model(f, names, model, mem, doc, &c));
    return put_warnings(f, &c, mem, doc);
}

kron_status adapter_info(const struct adapter_file *f, const struct adapter_names *names,
                         const char *model, bool json, struct str *out)
{
    struct arena mem = {0};
    json_t *doc = json_object();
    kron_status status = gather(f, names, model, &mem, doc);
    char *text;

    if (status == KRON_OK && json) {
        text = json_dumps(doc, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        if (text != NULL) {
            str_add(out, text);
            str_add(out, "\n");
        } else {
            status = err_set(KRON_ERR_MEMORY, "out of memory: a report");
        }
        free(text);
    } else if (status == KRON_OK) {
        info_text(doc, out);
    }
    json_decref(doc);
    arena_free(&mem);
    return status != KRON_OK ? status : out->status;
}
