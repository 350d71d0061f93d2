/* SPDX-License-Identifier: MIT
 * What the readers of this room share: a table from names to indices. */
#ifndef FILE_FILE_INTERNAL_H
#define FILE_FILE_INTERNAL_H
#include "file/file.h"

/* Open addressing over names that the caller keeps. Size is fixed at creation. */
struct name_table {
    const char **names;
    int64_t *values;
    size_t cap; /* a power of two, at least twice the entries */
};
kron_status names_create(struct name_table *t, size_t entries);
void names_free(struct name_table *t);
/* False if the name is there already. */
bool names_add(struct name_table *t, const char *name, int64_t value);
int64_t names_find(const struct name_table *t, const char *name); /* -1 if absent */

#endif
