/* SPDX-License-Identifier: MIT
 * A hash table from names to numbers: linear probing, never more than half full. */
#include "base/base.h"
#include <string.h>

kron_status name_map_create(struct name_map *m, size_t max_entries)
{
    size_t n = 16;

    while (n / 2 < max_entries)
        n *= 2;
    m->n_slots = n;
    return mem_alloc_n((void **)&m->slots, n, sizeof *m->slots, "a name table");
}

void name_map_free(struct name_map *m)
{
    mem_free(m->slots);
    m->slots = NULL;
    m->n_slots = 0;
}

struct name_slot *name_map_at(const struct name_map *m, const char *key, size_t len)
{
    size_t i = (size_t)hash_bytes(key, len, 0) & (m->n_slots - 1);

    while (m->slots[i].key != NULL &&
           (strncmp(m->slots[i].key, key, len) != 0 || m->slots[i].key[len] != '\0'))
        i = (i + 1) & (m->n_slots - 1);
    return &m->slots[i];
}
