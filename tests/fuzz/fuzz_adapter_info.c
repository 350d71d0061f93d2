/* SPDX-License-Identifier: MIT
 * Metadata of an adapter: the bytes are the values of every key that is parsed, cut into pieces at
 * zero bytes. Whatever they are, there is a text and it is lines; the JSON parses. */
#include "adapter/adapter.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* The next piece as a JSON string; "" where it is not UTF-8. */
static json_t *piece(const uint8_t **data, size_t *size)
{
    const uint8_t *end = *size > 0 ? memchr(*data, 0, *size) : NULL;
    size_t n = end != NULL ? (size_t)(end - *data) : *size;
    json_t *text = json_stringn((const char *)*data, n);

    *size -= n + (end != NULL);
    *data += n + (end != NULL);
    return text != NULL ? text : json_string("");
}

/* A file of one module with these metadata. */
static char *file_of(const uint8_t *data, size_t size, size_t *bytes)
{
    static const char *const keys[] = {"ss_tag_frequency",  "ss_datasets",   "ss_dataset_dirs",
                                       "trigger_words",     "ss_steps",      "ss_network_dim",
                                       "ss_base_model_version", "modelspec.trigger_phrase"};
    json_t *meta = json_object(), *header;
    char *text, *file;

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set_new(meta, keys[i], piece(&data, &size));
    header = json_pack("{s:o, s:{s:s, s:[i, i], s:[i, i]}, s:{s:s, s:[i, i], s:[i, i]}}",
                       "__metadata__", meta, "a.lokr_w1", "dtype", "F32", "shape", 1, 1,
                       "data_offsets", 0, 4, "a.lokr_w2", "dtype", "F32", "shape", 1, 1,
                       "data_offsets", 4, 8);
    text = json_dumps(header, JSON_COMPACT);
    check(text != NULL);
    json_decref(header);
    *bytes = strlen(text) + 16;
    file = calloc(1, *bytes);
    check(file != NULL);
    for (int i = 0; i < 8; i++)
        file[i] = (char)(strlen(text) >> (8 * i));
    memcpy(file + 8, text, strlen(text));
    free(text);
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct adapter_file *f;
    struct str text = {0}, json = {0};
    size_t bytes;
    char *file = file_of(data, size, &bytes);

    if (adapter_open_memory(&f, file, bytes, "fuzz", NULL) == KRON_OK) {
        check(adapter_info(f, NULL, "", false, &text) == KRON_OK);
        check(adapter_info(f, NULL, "", true, &json) == KRON_OK);
        for (const char *c = str_get(&text); *c != '\0'; c++)
            check((unsigned char)*c >= 0x20 || *c == '\n');
        json_t *doc = json_loads(str_get(&json), 0, NULL);
        check(json_is_object(doc));
        json_decref(doc);
        str_free(&text);
        str_free(&json);
        adapter_close(&f);
    }
    free(file);
    return 0;
}
