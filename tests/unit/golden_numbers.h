/* SPDX-License-Identifier: MIT
 * Numbers out of the JSON files of tests/golden whose layout we chose: flat rows, keys in a fixed
 * order, so that the first `"key":` after a place is the one meant. */
#ifndef UNIT_GOLDEN_NUMBERS_H
#define UNIT_GOLDEN_NUMBERS_H
#include "base/base.h"
#include <stdlib.h>
#include <string.h>

/* The text of tests/golden/NAME, freed with mem_free(); NULL if it cannot be read. */
static inline char *golden_read(const char *name)
{
    char path[4096], *text = NULL;
    size_t bytes;
    snprintf(path, sizeof path, "%s/tests/golden/%s", KRON_SOURCE_DIR, name);
    return file_read(&text, &bytes, path, 16u << 20) == KRON_OK ? text : NULL;
}

/* What follows `"key":`, or NULL. */
static inline const char *golden_find(const char *from, const char *key)
{
    size_t len = strlen(key);
    for (const char *p = strchr(from, '"'); p != NULL; p = strchr(p + 1, '"'))
        if (strncmp(p + 1, key, len) == 0 && strncmp(p + 1 + len, "\":", 2) == 0)
            return p + len + 3;
    return NULL;
}

static inline double golden_number(const char *from, const char *key)
{
    return strtod(golden_find(from, key), NULL);
}

/* Fills out with the list of numbers under `key`; how many there are, at most max. */
static inline int golden_list(const char *from, const char *key, double *out, int max)
{
    const char *p = strchr(golden_find(from, key), '[') + 1;
    int n = 0;
    for (; n < max; n++) {
        char *end;
        p += strspn(p, " ,\n");
        out[n] = strtod(p, &end);
        if (end == p)
            break;
        p = end;
    }
    return n;
}

/* The string under `key` into buf. */
static inline void golden_string(const char *from, const char *key, char *buf, size_t size)
{
    const char *p = strchr(golden_find(from, key), '"') + 1;
    snprintf(buf, size, "%.*s", (int)strcspn(p, "\""), p);
}

#endif
