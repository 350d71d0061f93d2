/* SPDX-License-Identifier: MIT
 * Growable text, and strict reading of numbers. */
#include "base/base.h"
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct str *t, size_t more)
{
    size_t want = t->cap ? t->cap : 64;
    void *p = t->s;

    if (t->status != KRON_OK)
        return false;
    while (want - t->len <= more)
        if (!size_mul(want, 2, &want)) {
            t->status = err_set(KRON_ERR_MEMORY, "out of memory: a text of %zu bytes", more);
            return false;
        }
    if (want == t->cap)
        return true;
    t->status = mem_grow(&p, t->cap, want, 1, "a text");
    if (t->status != KRON_OK)
        return false;
    t->s = p;
    t->cap = want;
    return true;
}

void str_add_n(struct str *t, const char *s, size_t n)
{
    if (!reserve(t, n))
        return;
    memcpy(t->s + t->len, s, n);
    t->len += n;
    t->s[t->len] = '\0';
}

void str_add(struct str *t, const char *s)
{
    str_add_n(t, s, strlen(s));
}

void str_addv(struct str *t, const char *fmt, va_list ap)
{
    va_list again;
    int n;

    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    if (n >= 0 && reserve(t, (size_t)n)) {
        vsnprintf(t->s + t->len, t->cap - t->len, fmt, again);
        t->len += (size_t)n;
    }
    va_end(again);
}

void str_addf(struct str *t, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    str_addv(t, fmt, ap);
    va_end(ap);
}

const char *str_get(const struct str *t)
{
    return t->s != NULL ? t->s : "";
}

void str_free(struct str *t)
{
    mem_free(t->s);
    memset(t, 0, sizeof *t);
}

void str_clean(char *s)
{
    for (; *s != '\0'; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

bool str_starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);

    return n >= m && strcmp(s + n - m, suffix) == 0;
}

/* strto* skip leading space; a whole string must be the number. */
static bool starts_number(const char *s)
{
    return *s != '\0' && strchr("+-.0123456789", *s) != NULL;
}

bool str_to_i64(const char *s, int64_t *out)
{
    char *end;

    if (!starts_number(s))
        return false;
    errno = 0;
    *out = strtoll(s, &end, 10);
    return errno == 0 && *end == '\0' && end != s;
}

bool str_to_double(const char *s, double *out)
{
    /* Programs that embed us may have set a locale whose point is a comma. */
    static locale_t plain;
    locale_t now = __atomic_load_n(&plain, __ATOMIC_ACQUIRE), none = (locale_t)0;
    char *end;

    if (!starts_number(s))
        return false;
    if (now == none) {
        now = newlocale(LC_ALL_MASK, "C", none);
        if (now == none)
            return false;
        if (!__atomic_compare_exchange_n(&plain, &none, now, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE)) {
            freelocale(now);
            now = none; /* another thread's came first */
        }
    }
    if ((s[strspn(s, "+-0")] | 32) == 'x') /* as for integers: decimal only */
        return false;
    *out = strtod_l(s, &end, now);
    return *end == '\0' && end != s && isfinite(*out);
}

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed)
{
    const unsigned char *b = p;
    uint64_t h = UINT64_C(14695981039346656037) ^ seed;

    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * UINT64_C(1099511628211);
    return h;
}
