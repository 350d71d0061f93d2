/* SPDX-License-Identifier: MIT
 * The central directory of a zip archive (PKWARE's APPNOTE.TXT), with zip64's larger numbers. */
#include "file/zip.h"
#include <string.h>

enum { END_BYTES = 22, LOCATOR_BYTES = 20, END64_BYTES = 56, CENTRAL_BYTES = 46, LOCAL_BYTES = 30 };

struct zip {
    const uint8_t *bytes;
    size_t n_bytes;
    const char *path;
    struct arena *mem;
};

static kron_status bad(const struct zip *z, const char *what)
{
    return err_set(KRON_ERR_FORMAT, "%s: a damaged zip archive: %s", z->path, what);
}

static uint64_t number(const uint8_t *p, int bytes)
{
    uint64_t v = 0;

    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

/* n bytes at a place that the file names, NULL if it does not have them. */
static const uint8_t *view(const struct zip *z, uint64_t at, uint64_t n)
{
    return at <= z->n_bytes && n <= z->n_bytes - (size_t)at ? z->bytes + (size_t)at : NULL;
}

static bool is_part(const uint8_t *p, int a, int b)
{
    return p != NULL && p[0] == 'P' && p[1] == 'K' && p[2] == a && p[3] == b;
}

/* --- the end of the directory: how many entries there are, and where --- */

struct directory {
    uint64_t n, at, bytes;
};

static const uint8_t *find_end(const struct zip *z)
{
    size_t least = z->n_bytes > END_BYTES + 65535 ? z->n_bytes - END_BYTES - 65535 : 0;

    for (size_t at = z->n_bytes; at >= least + END_BYTES; at--)
        if (is_part(z->bytes + at - END_BYTES, 5, 6))
            return z->bytes + at - END_BYTES;
    return NULL;
}

static kron_status find_directory(const struct zip *z, struct directory *d)
{
    const uint8_t *end = find_end(z), *locator, *end64;

    if (end == NULL)
        return bad(z, "its directory is missing; is the file truncated?");
    d->n = number(end + 10, 2);
    d->bytes = number(end + 12, 4);
    d->at = number(end + 16, 4);
    if (d->n != 0xffff && d->bytes != 0xffffffff && d->at != 0xffffffff)
        return KRON_OK;
    locator = end - z->bytes >= LOCATOR_BYTES ? end - LOCATOR_BYTES : NULL;
    if (!is_part(locator, 6, 7)) /* as many as fit, then */
        return KRON_OK;
    end64 = view(z, number(locator + 8, 8), END64_BYTES);
    if (!is_part(end64, 6, 6))
        return bad(z, "the end of its 64-bit directory is missing");
    d->n = number(end64 + 32, 8);
    d->bytes = number(end64 + 40, 8);
    d->at = number(end64 + 48, 8);
    return KRON_OK;
}

/* --- entries --- */

struct place {
    uint64_t packed, bytes, at;
};

/* The extra field of zip64 holds those of the three that do not fit into 32 bits. */
static kron_status read_zip64(const struct zip *z, const uint8_t *extra, size_t n,
                              struct place *p)
{
    uint64_t *values[3] = {&p->bytes, &p->packed, &p->at};
    size_t at = 0;

    while (n - at >= 4) {
        size_t id = (size_t)number(extra + at, 2), size = (size_t)number(extra + at + 2, 2);
        at += 4;
        if (size > n - at)
            return bad(z, "an extra field is cut");
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*values[i] != 0xffffffff)
                continue;
            if (size < 8)
                return bad(z, "a 64-bit size is missing");
            *values[i] = number(extra + at, 8);
            at += 8;
            size -= 8;
        }
        at += size;
    }
    return KRON_OK;
}

static kron_status find_data(const struct zip *z, const struct place *p, struct zip_entry *e)
{
    const uint8_t *local = view(z, p->at, LOCAL_BYTES);

    if (!is_part(local, 3, 4))
        return bad(z, "an entry is not where its directory says");
    e->data = view(z, p->at + LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2),
                   p->bytes);
    if (e->data == NULL)
        return err_set(KRON_ERR_FORMAT, "%s: '%.200s' in it has %llu bytes, more than are there: "
                       "is the file truncated?", z->path, e->name, (unsigned long long)p->bytes);
    e->bytes = (size_t)p->bytes;
    return KRON_OK;
}

/* Reads the entry at *at and moves behind it. */
static kron_status read_entry(const struct zip *z, uint64_t *at, struct zip_entry *e)
{
    const uint8_t *c = view(z, *at, CENTRAL_BYTES), *rest;
    size_t name, extra, comment;
    struct place p;

    if (!is_part(c, 1, 2))
        return bad(z, "its directory ends too soon");
    name = (size_t)number(c + 28, 2);
    extra = (size_t)number(c + 30, 2);
    comment = (size_t)number(c + 32, 2);
    rest = view(z, *at + CENTRAL_BYTES, name + extra + comment);
    if (rest == NULL)
        return bad(z, "its directory ends too soon");
    *at += CENTRAL_BYTES + name + extra + comment;
    e->name = arena_printf(z->mem, "%.*s", (int)name, (const char *)rest);
    if (e->name == NULL)
        return z->mem->status;
    p = (struct place){number(c + 20, 4), number(c + 24, 4), number(c + 42, 4)};
    KRON_TRY(read_zip64(z, rest + name, extra, &p));
    if ((number(c + 8, 2) & 1) != 0 || number(c + 10, 2) != 0 || p.packed != p.bytes)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: '%.200s' in it is packed or encrypted, expected "
                       "a zip archive as torch.save() writes it", z->path, e->name);
    return find_data(z, &p, e);
}

kron_status zip_list(const uint8_t *bytes, size_t n_bytes, const char *path, struct arena *mem,
                     struct zip_entry **out, int64_t *n)
{
    struct zip z = {bytes, n_bytes, path, mem};
    struct directory d = {0, 0, 0};

    KRON_TRY(find_directory(&z, &d));
    if (view(&z, d.at, d.bytes) == NULL || d.n > d.bytes / CENTRAL_BYTES)
        return bad(&z, "its directory does not fit into it; is the file truncated?");
    *out = arena_alloc(mem, ((size_t)d.n + 1) * sizeof **out);
    if (*out == NULL)
        return mem->status;
    for (*n = 0; (uint64_t)*n < d.n; (*n)++)
        KRON_TRY(read_entry(&z, &d.at, &(*out)[*n]));
    return KRON_OK;
}
