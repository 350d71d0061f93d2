/* SPDX-License-Identifier: MIT
 * Zip archives whose entries are stored, not packed: views of a file in memory. */
#ifndef FILE_ZIP_H
#define FILE_ZIP_H
#include "base/base.h"

struct zip_entry {
    const char *name;
    const uint8_t *data;
    size_t bytes;
};

/* Lists the entries, in memory of the arena; those of no bytes too. A packed or encrypted entry
 * is KRON_ERR_UNSUPPORTED. `path` is for messages. */
kron_status zip_list(const uint8_t *bytes, size_t n_bytes, const char *path, struct arena *mem,
                     struct zip_entry **out, int64_t *n);

#endif
