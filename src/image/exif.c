/* SPDX-License-Identifier: MIT
 * EXIF's UserComment (EXIF 2.3, 4.6.5): eight bytes that name a character code, then the text.
 * Written as A1111 writes it: a big-endian TIFF with the pointer to the Exif folder as its only
 * entry, and UserComment in UTF-16BE as the only entry of that folder. */
#include "image/image.h"
#include <string.h>

enum {
    TAG_EXIF_FOLDER = 0x8769,
    TAG_USER_COMMENT = 0x9286,
    TYPE_LONG = 4,
    TYPE_UNDEFINED = 7,
    CODE_BYTES = 8,
};

static const char code_unicode[CODE_BYTES + 1] = "UNICODE\0";
static const char code_ascii[CODE_BYTES + 1] = "ASCII\0\0\0";
static const char code_none[CODE_BYTES + 1] = "\0\0\0\0\0\0\0\0";

static void put(uint8_t *at, uint32_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--, value >>= 8)
        at[i] = (uint8_t)value;
}

static void put_entry(uint8_t *at, uint32_t tag, uint32_t type, uint32_t count, uint32_t value)
{
    put(at, tag, 2);
    put(at + 2, type, 2);
    put(at + 4, count, 4);
    put(at + 8, value, 4);
}

static kron_status add_utf16(struct image_bytes *out, const char *text)
{
    size_t len = strlen(text);
    for (size_t at = 0; at < len;) {
        uint32_t code = image_utf8_next(text, len, &at);
        uint8_t units[4];
        int bytes = 2;
        if (code >= 0x10000) {
            put(units, 0xD800 + ((code - 0x10000) >> 10), 2);
            put(units + 2, 0xDC00 + ((code - 0x10000) & 0x3FF), 2);
            bytes = 4;
        } else {
            put(units, code, 2);
        }
        KRON_TRY(image_bytes_add(out, units, (size_t)bytes));
    }
    return KRON_OK;
}

kron_status image_exif_write(struct image_bytes *out, const char *text)
{
    enum { FOLDER = 2 + 12 + 4, EXIF_AT = 8 + FOLDER, TEXT_AT = EXIF_AT + FOLDER };
    uint8_t head[TEXT_AT] = {'M', 'M', 0, 42, 0, 0, 0, 8};
    size_t start = out->len;
    put(head + 8, 1, 2);
    put_entry(head + 10, TAG_EXIF_FOLDER, TYPE_LONG, 1, EXIF_AT);
    put(head + EXIF_AT, 1, 2);
    KRON_TRY(image_bytes_add(out, head, sizeof head));
    KRON_TRY(image_bytes_add(out, code_unicode, CODE_BYTES));
    KRON_TRY(add_utf16(out, text));
    size_t text_bytes = out->len - start - TEXT_AT;
    if (text_bytes > IMAGE_MAX_TEXT)
        return err_set(KRON_ERR_ARGUMENT, "the text has %zu bytes, at most %d can be kept",
                       text_bytes, IMAGE_MAX_TEXT);
    put_entry(out->data + start + EXIF_AT + 2, TAG_USER_COMMENT, TYPE_UNDEFINED,
              (uint32_t)text_bytes, TEXT_AT);
    return KRON_OK;
}

/* --- reading --- */

struct tiff {
    const uint8_t *data;
    size_t bytes;
    bool little;
};

static uint32_t get(const struct tiff *t, size_t at, int bytes)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++)
        value = value << 8 | t->data[at + (size_t)(t->little ? bytes - 1 - i : i)];
    return value;
}

/* Where the entry of `tag` in the folder at `at` begins; 0 if it is not there. */
static size_t find_entry(const struct tiff *t, size_t at, uint32_t tag)
{
    if (at < 8 || at + 2 > t->bytes)
        return 0;
    size_t n = get(t, at, 2);
    if (n > (t->bytes - at - 2) / 12)
        return 0;
    for (size_t i = 0; i < n; i++)
        if (get(t, at + 2 + 12 * i, 2) == tag)
            return at + 2 + 12 * i;
    return 0;
}

/* The standard means the byte order of the TIFF, A1111 always big-endian. Most text has characters
 * below U+0100, whose zero bytes tell; where none does, the header decides. */
static bool utf16_is_little(const struct tiff *t, const uint8_t *s, size_t bytes)
{
    size_t zeros[2] = {0, 0};
    for (size_t i = 0; i < bytes; i++)
        zeros[i % 2] += s[i] == 0;
    return zeros[0] == zeros[1] ? t->little : zeros[1] > zeros[0];
}

static void read_utf16(struct str *out, const struct tiff *t, const uint8_t *s, size_t bytes)
{
    bool little = utf16_is_little(t, s, bytes);
    if (bytes >= 2 && ((s[0] == 0xFE && s[1] == 0xFF) || (s[0] == 0xFF && s[1] == 0xFE))) {
        little = s[0] == 0xFF;
        s += 2;
        bytes -= 2;
    }
    uint32_t high = 0;
    for (size_t i = 0; i + 2 <= bytes; i += 2) {
        uint32_t unit = (uint32_t)(little ? s[i + 1] << 8 | s[i] : s[i] << 8 | s[i + 1]);
        bool is_low = unit >= 0xDC00 && unit <= 0xDFFF;
        if (high != 0 && is_low) {
            image_utf8_add(out, 0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00));
            high = 0;
            continue;
        }
        if (high != 0)
            image_utf8_add(out, 0xFFFD);
        high = unit >= 0xD800 && unit <= 0xDBFF ? unit : 0;
        if (unit == 0)
            break;
        if (high == 0)
            image_utf8_add(out, is_low ? 0xFFFD : unit);
    }
    if (high != 0)
        image_utf8_add(out, 0xFFFD);
}

bool image_exif_read(struct str *out, const uint8_t *tiff, size_t bytes)
{
    struct tiff t = {tiff, bytes, false};
    if (bytes < 8 || (memcmp(tiff, "MM\0*", 4) != 0 && memcmp(tiff, "II*\0", 4) != 0))
        return false;
    t.little = tiff[0] == 'I';
    size_t entry = find_entry(&t, get(&t, 4, 4), TAG_EXIF_FOLDER);
    if (entry != 0)
        entry = find_entry(&t, get(&t, entry + 8, 4), TAG_USER_COMMENT);
    if (entry == 0)
        return false;
    size_t count = get(&t, entry + 4, 4), at = get(&t, entry + 8, 4);
    if (count < CODE_BYTES || at > bytes || count > bytes - at)
        return false;
    const uint8_t *text = tiff + at + CODE_BYTES;
    count -= CODE_BYTES;
    if (memcmp(tiff + at, code_unicode, CODE_BYTES) == 0) {
        read_utf16(out, &t, text, count);
    } else if (memcmp(tiff + at, code_ascii, CODE_BYTES) == 0 ||
               memcmp(tiff + at, code_none, CODE_BYTES) == 0) {
        const uint8_t *end = memchr(text, 0, count);
        image_utf8_repair(out, (const char *)text, end != NULL ? (size_t)(end - text) : count);
    } else {
        return false;
    }
    return out->status == KRON_OK;
}
