/* SPDX-License-Identifier: MIT
 * Mode metadata: the texts of a picture, and on request the parts that its file is made of. */
#include "cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BRIEF = 100, RAW_BYTES = 64 };

/* --- JSON --- */

static void print_json_text(const char *s, size_t n)
{
    putchar('"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c == '\n')
            printf("\\n");
        else if (c < 0x20 || c == 0x7F)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

/* One entry of kron_image_read_text(): "key: value", further lines indented by two blanks. Takes
 * the indents away in place; returns the end of the entry. */
static char *take_entry(char *s, char **value, size_t *len)
{
    char *colon = strstr(s, ": ");
    *value = s;
    *len = 0;
    if (colon == NULL)
        return s + strlen(s);
    *colon = '\0';
    char *from = colon + 2, *to = from;
    *value = to;
    while (*from != '\0') {
        if (*from == '\n' && strncmp(from + 1, "  ", 2) != 0)
            break;
        *to++ = *from;
        from += *from == '\n' ? 3 : 1;
    }
    *len = (size_t)(to - *value);
    return *from == '\n' ? from + 1 : from;
}

static size_t cut(const char *s, size_t len, bool brief)
{
    if (!brief || len <= BRIEF)
        return len;
    for (len = BRIEF; len > 0 && ((unsigned char)s[len] & 0xC0) == 0x80;)
        len--; /* not inside a character */
    return len;
}

static void print_texts(char *s, const struct options *o)
{
    bool json = o->metadata_format == 1, first = true;
    while (*s != '\0') {
        char *key = s, *value;
        size_t len;
        s = take_entry(s, &value, &len);
        size_t shown = cut(value, len, o->metadata_brief);
        if (json) {
            printf("%s\n    {\"key\": ", first ? "" : ",");
            print_json_text(key, strlen(key));
            printf(", \"value\": ");
            print_json_text(value, shown);
            printf("}");
        } else {
            printf("%s: ", key);
            for (size_t i = 0; i < shown; i++) {
                putchar(value[i]);
                if (value[i] == '\n')
                    printf("  ");
            }
            printf("%s\n", shown < len ? "..." : "");
        }
        first = false;
    }
}

/* --- the file's parts --- */

struct part {
    char name[16];
    const unsigned char *data;
    size_t bytes;
    bool is_text; /* read by the library, or the pixels themselves: no hexadecimal */
};

static bool next_png_part(const unsigned char *file, size_t size, size_t *at, struct part *p)
{
    *at = *at < 8 ? 8 : *at;
    if (size < 12 || *at > size - 12)
        return false;
    const unsigned char *c = file + *at;
    size_t n = (size_t)c[0] << 24 | (size_t)c[1] << 16 | (size_t)c[2] << 8 | c[3];
    if (n > size - *at - 12)
        return false;
    for (int i = 0; i < 4; i++)
        p->name[i] = c[4 + i] > 32 && c[4 + i] < 127 ? (char)c[4 + i] : '?';
    p->name[4] = '\0';
    p->data = c + 8;
    p->bytes = n;
    p->is_text = strcmp(p->name, "tEXt") == 0 || strcmp(p->name, "iTXt") == 0 ||
                 strcmp(p->name, "zTXt") == 0 || strcmp(p->name, "IDAT") == 0;
    *at += n + 12;
    return true;
}

static bool next_jpeg_part(const unsigned char *file, size_t size, size_t *at, struct part *p)
{
    *at = *at < 2 ? 2 : *at;
    while (*at + 4 <= size && file[*at] == 0xFF && file[*at + 1] == 0xFF)
        (*at)++; /* fill bytes */
    if (*at + 4 > size || file[*at] != 0xFF)
        return false;
    unsigned marker = file[*at + 1];
    size_t n = (size_t)file[*at + 2] << 8 | file[*at + 3];
    if (n < 2 || n > size - *at - 2)
        return false;
    if (marker >= 0xE0 && marker <= 0xEF)
        snprintf(p->name, sizeof p->name, "APP%u", marker - 0xE0);
    else
        snprintf(p->name, sizeof p->name, "%s",
                 marker == 0xFE   ? "COM"
                 : marker == 0xDA ? "SOS"
                 : marker == 0xDB ? "DQT"
                 : marker == 0xC4 ? "DHT"
                 : marker == 0xDD ? "DRI"
                                  : "SOF");
    p->data = file + *at + 4;
    p->bytes = n - 2;
    p->is_text = marker == 0xFE;
    /* What follows a scan's header is the picture: the list ends there. */
    *at = marker == 0xDA ? size : *at + 2 + n;
    return true;
}

static void print_part(const struct part *p, const struct options *o, bool first)
{
    bool json = o->metadata_format == 1, hex = o->metadata_raw && !p->is_text;
    if (json)
        printf("%s\n    {\"name\": \"%s\", \"bytes\": %zu", first ? "" : ",", p->name, p->bytes);
    else
        printf("%-5s %zu bytes", p->name, p->bytes);
    if (hex)
        printf("%s", json ? ", \"hex\": \"" : ":");
    for (size_t i = 0; hex && i < p->bytes && i < RAW_BYTES; i++)
        printf("%s%02x", json && i == 0 ? "" : " ", p->data[i]);
    if (json)
        printf("%s}", hex ? "\"" : "");
    else
        printf("%s\n", hex && p->bytes > RAW_BYTES ? " ..." : "");
}

static void print_parts(const unsigned char *file, size_t size, const struct options *o)
{
    bool png = size > 0 && file[0] == 0x89, first = true;
    struct part p;
    size_t at = 0;
    while (png ? next_png_part(file, size, &at, &p) : next_jpeg_part(file, size, &at, &p)) {
        if (o->metadata_all || !p.is_text) {
            print_part(&p, o, first);
            first = false;
        }
    }
}

static bool read_file(const char *path, unsigned char **data, size_t *size)
{
    FILE *f = fopen(path, "rb");
    long n = -1;
    *data = NULL;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0)
        n = ftell(f);
    if (n >= 0 && fseek(f, 0, SEEK_SET) == 0)
        *data = malloc((size_t)n + 1);
    *size = *data != NULL ? fread(*data, 1, (size_t)n, f) : 0;
    bool good = *data != NULL && *size == (size_t)n;
    if (!good)
        complain("%s: %s", path, errno != 0 ? strerror(errno) : "cannot be read");
    if (f != NULL)
        fclose(f);
    return good;
}

int run_metadata(struct options *o)
{
    char *text;
    unsigned char *file = NULL;
    size_t size = 0;
    bool parts = o->metadata_all || o->metadata_raw, json = o->metadata_format == 1;
    if (o->image == NULL) {
        complain("--mode metadata needs --image FILE");
        return EXIT_USAGE;
    }
    kron_status status = kron_image_read_text(&text, o->image);
    if (status != KRON_OK) {
        complain_status(status);
        return EXIT_FAILED;
    }
    if (parts && !read_file(o->image, &file, &size)) {
        free(file);
        kron_string_free(text);
        return EXIT_FAILED;
    }
    if (json) {
        printf("{\n  \"file\": ");
        print_json_text(o->image, strlen(o->image));
        printf(",\n  \"texts\": [");
    } else if (text[0] == '\0') {
        note("%s: no texts in it", o->image);
    }
    print_texts(text, o);
    if (json)
        printf("\n  ]%s", parts ? ",\n  \"parts\": [" : "");
    if (parts)
        print_parts(file, size, o);
    if (json)
        printf("%s\n}\n", parts ? "\n  ]" : "");
    free(file);
    kron_string_free(text);
    return EXIT_OK;
}
