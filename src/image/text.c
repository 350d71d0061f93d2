/* SPDX-License-Identifier: MIT
 * Lists of texts, and UTF-8 that may come from anywhere. */
#include "image/image.h"
#include <string.h>

kron_status image_texts_add(struct image_texts *t, const char *key, const char *value)
{
    if (t->n == t->cap) {
        size_t cap = t->cap > 0 ? 2 * t->cap : 8;
        void *items = t->items;
        KRON_TRY(mem_grow(&items, t->cap, cap, sizeof *t->items, "texts of a picture"));
        t->items = items;
        t->cap = cap;
    }
    struct image_text text = {arena_strdup(&t->mem, key), arena_strdup(&t->mem, value)};
    if (text.key == NULL || text.value == NULL)
        return t->mem.status;
    t->items[t->n++] = text;
    return KRON_OK;
}

const char *image_texts_find(const struct image_texts *t, const char *key)
{
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->items[i].key, key) == 0)
            return t->items[i].value;
    return NULL;
}

void image_texts_free(struct image_texts *t)
{
    mem_free(t->items);
    arena_free(&t->mem);
    *t = (struct image_texts){0};
}

/* Length of the well-formed character at s, 0 if it is none. Refuses long forms, surrogates and
 * what lies past U+10FFFF (table 3-7 of the Unicode standard). */
static size_t utf8_len(const unsigned char *s, size_t len)
{
    unsigned char c = s[0], low = 0x80, high = 0xBF;
    size_t n;
    if (c < 0x80)
        return 1;
    if (c >= 0xC2 && c <= 0xDF)
        n = 2;
    else if (c >= 0xE0 && c <= 0xEF)
        n = 3;
    else if (c >= 0xF0 && c <= 0xF4)
        n = 4;
    else
        return 0;
    if (n > len)
        return 0;
    if (c == 0xE0)
        low = 0xA0;
    else if (c == 0xED)
        high = 0x9F;
    else if (c == 0xF0)
        low = 0x90;
    else if (c == 0xF4)
        high = 0x8F;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF)
            return 0;
    return n;
}

uint32_t image_utf8_next(const char *s, size_t len, size_t *at)
{
    static const unsigned char head[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    const unsigned char *p = (const unsigned char *)s + *at;
    size_t n = utf8_len(p, len - *at);
    if (n == 0) {
        *at += 1;
        return 0xFFFD;
    }
    uint32_t code = p[0] & head[n];
    for (size_t i = 1; i < n; i++)
        code = code << 6 | (p[i] & 0x3F);
    *at += n;
    return code;
}

bool image_utf8_valid(const char *s, size_t len)
{
    for (size_t at = 0; at < len;) {
        size_t n = utf8_len((const unsigned char *)s + at, len - at);
        if (n == 0)
            return false;
        at += n;
    }
    return true;
}

void image_utf8_add(struct str *out, uint32_t code)
{
    char c[4];
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6)
        c[i] = (char)(0x80 | (code & 0x3F));
    c[0] = (char)(n == 1 ? code : code | (0xF00u >> n & 0xFF));
    str_add_n(out, c, n);
}

void image_utf8_repair(struct str *out, const char *s, size_t len)
{
    for (size_t at = 0; at < len;)
        image_utf8_add(out, image_utf8_next(s, len, &at));
}
