/* SPDX-License-Identifier: MIT
 * What metadata say of a file's training. Trainers, tools and people write them: whatever is not
 * of the expected kind is left out, nothing here is an error. */
#include "adapter/family.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0; /* false for NULL too */
}

static bool has_text(const char *s)
{
    return s != NULL && s[strspn(s, " \t\r\n")] != '\0' && strcmp(s, "None") != 0 &&
           strcmp(s, "null") != 0;
}

static json_t *parse(const char *text)
{
    return text != NULL ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
}

/* --- values kept as they are --- */

struct item {
    const char *key, *name;
};

static const struct item base_items[] = {
    {"ss_base_model_version", "version"}, {"modelspec.architecture", "architecture"},
    {"baseModel", "base model"},          {"base_model", "base model"},
    {"ss_sd_model_name", "file"},         {"ss_sd_model_hash", "hash"},
    {"modelspec.prediction_type", "prediction"},
};

static const struct item training_items[] = {
    {"ss_output_name", "name"},
    {"modelspec.title", "title"},
    {"modelspec.author", "author"},
    {"modelspec.description", "description"},
    {"modelspec.date", "date"},
    {"modelspec.license", "license"},
    {"ss_training_comment", "comment"},
    {"ss_network_module", "network"},
    {"ss_network_dim", "dim"},
    {"ss_network_alpha", "alpha"},
    {"ss_network_args", "arguments"},
    {"ss_resolution", "resolution"},
    {"modelspec.resolution", "picture size"},
    {"ss_num_train_images", "pictures"},
    {"ss_num_epochs", "epochs planned"},
    {"ss_epoch", "epochs"},
    {"ss_max_train_steps", "steps planned"},
    {"ss_steps", "steps"},
    {"ss_total_batch_size", "batch size"},
    {"ss_learning_rate", "learning rate"},
    {"ss_unet_lr", "UNet learning rate"},
    {"ss_text_encoder_lr", "text encoder learning rate"},
    {"ss_optimizer", "optimizer"},
    {"ss_lr_scheduler", "schedule"},
    {"ss_seed", "seed"},
    {"ss_clip_skip", "clip skip"},
    {"ss_noise_offset", "noise offset"},
    {"training_info", "progress"},
    {"software", "software"},
    {"kron.made_from", "made from"},
};

static json_t *pick(const struct st_file *st, const struct item *items, size_t n)
{
    json_t *out = json_object();

    for (size_t i = 0; i < n; i++) {
        const char *v = st_meta(st, items[i].key);
        if (has_text(v) && json_object_get(out, items[i].name) == NULL &&
            !put(out, items[i].name, json_string(v))) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

/* --- trigger words --- */

static bool add_once(json_t *list, const char *text)
{
    size_t i;
    json_t *v;

    if (!has_text(text))
        return true;
    json_array_foreach(list, i, v)
        if (strcmp(json_string_value(v), text) == 0)
            return true;
    return json_array_append_new(list, json_string(text)) == 0;
}

static json_t *trigger_words(const struct st_file *st)
{
    static const char *const keys[] = {"modelspec.trigger_phrase", "trigger words",
                                       "trigger_words", "trigger_word", "ss_trigger_words",
                                       "activation text", "activation_text", "trainedWords"};
    json_t *list = json_array(), *words, *word;
    bool good = list != NULL;
    size_t n;

    for (size_t i = 0; i < sizeof keys / sizeof *keys && good; i++) {
        const char *text = st_meta(st, keys[i]);
        words = parse(text); /* some write a JSON list */
        if (json_is_array(words)) {
            json_array_foreach(words, n, word)
                good = good && (!json_is_string(word) || add_once(list, json_string_value(word)));
        } else {
            good = add_once(list, text);
        }
        json_decref(words);
    }
    if (!good) {
        json_decref(list);
        return NULL;
    }
    return list;
}

/* --- tags --- */

enum { MAX_TAGS = 100 };
static const json_int_t max_count = 1000000000; /* a count beyond is no count */

/* {"folder": {"tag": count}}: adds the counts up in total. */
static bool add_tags(json_t *total, json_t *folders)
{
    const char *folder, *tag;
    json_t *tags, *count;

    json_object_foreach(folders, folder, tags) {
        json_object_foreach(tags, tag, count) {
            json_int_t n = json_integer_value(count);
            n = n < 0 ? 0 : n > max_count ? max_count : n;
            n += json_integer_value(json_object_get(total, tag));
            if (n > 0 && !put(total, tag, json_integer(n > max_count ? max_count : n)))
                return false;
        }
    }
    return true;
}

struct tag {
    const char *text;
    json_int_t count;
};

static int by_count(const void *a, const void *b)
{
    const struct tag *x = a, *y = b;

    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    return strcmp(x->text, y->text);
}

/* The MAX_TAGS most frequent as [{"tag", "count"}]. */
static json_t *most_frequent(json_t *total)
{
    size_t n = json_object_size(total), i = 0;
    json_t *list = json_array(), *v;
    struct tag *tags;
    const char *key;

    if (mem_alloc_n((void **)&tags, n, sizeof *tags, "tags") != KRON_OK) {
        json_decref(list);
        return NULL;
    }
    json_object_foreach(total, key, v)
        tags[i++] = (struct tag){key, json_integer_value(v)};
    qsort(tags, n, sizeof *tags, by_count);
    for (i = 0; i < n && i < MAX_TAGS && list != NULL; i++)
        if (json_array_append_new(list, json_pack("{s:s, s:I}", "tag", tags[i].text, "count",
                                                  tags[i].count)) != 0) {
            json_decref(list);
            list = NULL;
        }
    mem_free(tags);
    return list;
}

/* Newer files keep counts inside "ss_datasets": [{"tag_frequency": ...}]. */
static bool put_tags(const struct st_file *st, json_t *out)
{
    json_t *total = json_object(), *frequency = parse(st_meta(st, "ss_tag_frequency"));
    json_t *sets = parse(st_meta(st, "ss_datasets")), *set;
    bool good = total != NULL;
    size_t i;

    good = good && add_tags(total, frequency);
    if (json_object_size(total) == 0)
        json_array_foreach(sets, i, set)
            good = good && add_tags(total, json_object_get(set, "tag_frequency"));
    good = good && put(out, "n_tags", json_integer((json_int_t)json_object_size(total))) &&
           put(out, "tags", most_frequent(total));
    json_decref(total);
    json_decref(frequency);
    json_decref(sets);
    return good;
}

/* --- datasets --- */

static json_t *dataset(const char *name, json_t *repeats, json_t *images)
{
    return json_pack("{s:s, s:I, s:I}", "name", name, "repeats", json_integer_value(repeats),
                     "pictures", json_integer_value(images));
}

static bool put_datasets(const struct st_file *st, json_t *out)
{
    json_t *list = json_array(), *dirs = parse(st_meta(st, "ss_dataset_dirs")), *d;
    json_t *sets = parse(st_meta(st, "ss_datasets")), *set;
    bool good = list != NULL;
    const char *name;
    size_t i, k;

    json_object_foreach(dirs, name, d)
        good = good && json_array_append_new(list, dataset(name, json_object_get(d, "n_repeats"),
                                                           json_object_get(d, "img_count"))) == 0;
    if (json_array_size(list) == 0)
        json_array_foreach(sets, i, set)
            json_array_foreach(json_object_get(set, "subsets"), k, d) {
                name = json_string_value(json_object_get(d, "image_dir"));
                good = good && json_array_append_new(
                                   list, dataset(name != NULL ? name : "",
                                                 json_object_get(d, "num_repeats"),
                                                 json_object_get(d, "img_count"))) == 0;
            }
    json_decref(dirs);
    json_decref(sets);
    if (!good) {
        json_decref(list);
        return false;
    }
    return put(out, "datasets", list);
}

bool training_json(const struct st_file *st, struct json_t *out)
{
    return put(out, "base_model",
               pick(st, base_items, sizeof base_items / sizeof *base_items)) &&
           put(out, "trigger_words", trigger_words(st)) && put_tags(st, out) &&
           put_datasets(st, out) &&
           put(out, "training",
               pick(st, training_items, sizeof training_items / sizeof *training_items));
}
