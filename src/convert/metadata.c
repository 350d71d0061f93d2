/* SPDX-License-Identifier: MIT
 * Metadata of files that are made from others. */
#include "convert/metadata.h"
#include "file/gguf.h"
#include <string.h>

void metadata_free(struct metadata *m)
{
    mem_free(m->at);
    memset(m, 0, sizeof *m);
}

kron_status metadata_add(struct metadata *m, const char *key, const char *value)
{
    for (int64_t i = 0; i < m->n; i++)
        if (strcmp(m->at[2 * i], key) == 0) {
            m->at[2 * i + 1] = value;
            return KRON_OK;
        }
    if (m->n == m->cap) {
        int64_t cap = m->cap > 0 ? 2 * m->cap : 64;
        KRON_TRY(mem_grow((void **)&m->at, 2 * (size_t)m->cap, 2 * (size_t)cap, sizeof *m->at,
                          "metadata"));
        m->cap = cap;
    }
    m->at[2 * m->n] = key;
    m->at[2 * m->n + 1] = value;
    m->n++;
    return KRON_OK;
}

static bool is_in(const char *key, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(key, list[i]) == 0)
            return true;
    return false;
}

kron_status metadata_keep(struct metadata *m, const struct st_file *st, const char *const *drop,
                          size_t n)
{
    /* Hashes, and how a GGUF was laid out. */
    static const char *const untrue[] = {"sshs_model_hash",   "sshs_legacy_hash",
                                         "modelspec.hash_sha256", "general.alignment",
                                         "general.file_type", "general.quantization_version"};

    for (int64_t i = 0; i < st_meta_count(st); i++) {
        const char *key, *value;
        st_meta_at(st, i, &key, &value);
        if (!is_in(key, untrue, sizeof untrue / sizeof *untrue) && !is_in(key, drop, n) &&
            !str_starts(key, GGUF_SHAPE_KEY))
            KRON_TRY(metadata_add(m, key, value));
    }
    return KRON_OK;
}

void metadata_sources(const struct adapter_use *uses, int n, struct str *out)
{
    for (int i = 0; i < n; i++) {
        const char *path = adapter_path(uses[i].file), *slash = strrchr(path, '/');
        str_addf(out, "%s%s:%g", i > 0 ? "; " : "", slash != NULL ? slash + 1 : path,
                 (double)uses[i].unet_strength);
        if (uses[i].te_strength != uses[i].unet_strength)
            str_addf(out, " (text encoders %g)", (double)uses[i].te_strength);
    }
}
