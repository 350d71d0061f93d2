/* SPDX-License-Identifier: MIT
 * Names to indices. */
#include "file/file_internal.h"
#include <string.h>

kron_status names_create(struct name_table *t, size_t entries)
{
    void *p;

    memset(t, 0, sizeof *t);
    t->cap = 16;
    while (t->cap / 2 < entries)
        t->cap *= 2;
    KRON_TRY(mem_alloc_n(&p, t->cap, sizeof *t->names, "a name table"));
    t->names = p;
    KRON_TRY(mem_alloc_n(&p, t->cap, sizeof *t->values, "a name table"));
    t->values = p;
    return KRON_OK;
}

void names_free(struct name_table *t)
{
    mem_free(t->names);
    mem_free(t->values);
    memset(t, 0, sizeof *t);
}

/* The slot that holds the name, or the free one where it belongs. */
static size_t slot(const struct name_table *t, const char *name)
{
    size_t i = (size_t)hash_bytes(name, strlen(name), 0) & (t->cap - 1);

    while (t->names[i] != NULL && strcmp(t->names[i], name) != 0)
        i = (i + 1) & (t->cap - 1);
    return i;
}

bool names_add(struct name_table *t, const char *name, int64_t value)
{
    size_t i = slot(t, name);

    if (t->names[i] != NULL)
        return false;
    t->names[i] = name;
    t->values[i] = value;
    return true;
}

int64_t names_find(const struct name_table *t, const char *name)
{
    size_t i;

    if (t->cap == 0)
        return -1;
    i = slot(t, name);
    return t->names[i] != NULL ? t->values[i] : -1;
}
