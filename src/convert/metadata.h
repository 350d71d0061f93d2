/* SPDX-License-Identifier: MIT
 * convert/metadata.h - what is kept of a file's metadata, and what is added. */
#ifndef CONVERT_METADATA_H
#define CONVERT_METADATA_H
#include "adapter/adapter.h"

struct metadata {
    const char **at; /* key, value, key, value ...; texts are not owned */
    int64_t n, cap;  /* pairs */
};
void metadata_free(struct metadata *m); /* {0} is fine */
/* All of a file but hashes of its data, which are no longer true, and the n keys of `drop`. */
kron_status metadata_keep(struct metadata *m, const struct st_file *st, const char *const *drop,
                          size_t n);
/* Sets a key, also one that is there. */
kron_status metadata_add(struct metadata *m, const char *key, const char *value);
/* "name:strength" of each file, "; " between them; text and UNet strengths where they differ. */
void metadata_sources(const struct adapter_use *uses, int n, struct str *out);

#endif
