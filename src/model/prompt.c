/* SPDX-License-Identifier: MIT
 * Reading a prompt takes two passes, as in A1111: tags are cut out first, then what is left is
 * read for brackets, so that a tag between two words joins them. */
#include "model/prompt_tag.h"
#include <float.h>
#include <math.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_DEPTH = 256 }; /* keeps the time linear; 1.1 to that power is beyond any use */

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t skip_blanks(const char *s, size_t at, size_t len)
{
    while (at < len && is_blank(s[at]))
        at++;
    return at;
}

/* --- tags --- */

struct adapter_list {
    struct prompt_adapter *items;
    size_t n, cap;
    struct arena *mem;
};

/* The length of "<KIND:" at the start of s, 0 if it is none of the kinds known. */
static size_t tag_opening(const char *s, size_t len, bool *is_hypernet)
{
    if (len == 0 || s[0] != '<')
        return 0;
    size_t end = 1;
    while (end < len && end < 10 && s[end] != ':')
        end++;
    if (end == len || s[end] != ':')
        return 0;
    *is_hypernet = prompt_is_word(s + 1, end - 1, "hypernet");
    bool known = *is_hypernet || prompt_is_word(s + 1, end - 1, "lora") ||
                 prompt_is_word(s + 1, end - 1, "lyco");
    return known ? end + 1 : 0;
}

static kron_status tag_error(kron_status status, const char *tag, size_t len, const char *why)
{
    struct tag_text t = {"prompt: tag", tag, len};
    return prompt_tag_error(status, &t, why);
}

/* Reads a tag whose opening is `opening` bytes long and whose text, > included, is tag[len]. */
static kron_status read_tag(struct adapter_list *list, const char *tag, size_t len, size_t opening)
{
    struct tag_text t = {"prompt: tag", tag, len};
    if (list->n == list->cap) {
        void *p = list->items;
        size_t cap = list->cap ? list->cap * 2 : 8;
        KRON_TRY(mem_grow(&p, list->cap, cap, sizeof *list->items, "adapters of a prompt"));
        list->items = p;
        list->cap = cap;
    }
    KRON_TRY(prompt_tag_read(list->mem, &t, tag + opening, len - opening - 1,
                             &list->items[list->n]));
    list->n++;
    return KRON_OK;
}

/* Collects the tags of s[len] and adds all else to `rest`. */
static kron_status take_tags(struct adapter_list *list, struct str *rest, const char *s,
                             size_t len)
{
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        bool is_hypernet = false;
        size_t opening = tag_opening(s + i, len - i, &is_hypernet);
        if (opening == 0) {
            i++;
            continue;
        }
        const char *close = memchr(s + i, '>', len - i);
        if (close == NULL)
            return tag_error(KRON_ERR_ARGUMENT, s + i, len - i, "no closing >");
        size_t tag_len = (size_t)(close - (s + i)) + 1;
        if (is_hypernet)
            return tag_error(KRON_ERR_UNSUPPORTED, s + i, tag_len,
                             "hypernetworks are not supported");
        KRON_TRY(read_tag(list, s + i, tag_len, opening));
        str_add_n(rest, s + begin, i - begin);
        i += tag_len;
        begin = i;
    }
    str_add_n(rest, s + begin, len - begin);
    return rest->status;
}

/* --- brackets and BREAK --- */

/* A piece of the text as it stands between two marks; its text is reader.text[begin, end). */
struct piece {
    size_t begin, end;
    double weight;
    bool is_break;
};

struct brackets {
    size_t first[MAX_DEPTH]; /* the piece that follows each open bracket */
    int depth;
};

struct reader {
    struct piece *pieces;
    size_t n, cap;
    struct str text; /* with escapes resolved */
    struct brackets round, square;
};

static kron_status add_piece(struct reader *r, const char *s, size_t len, bool is_break)
{
    if (r->n == r->cap) {
        void *p = r->pieces;
        size_t cap = r->cap ? r->cap * 2 : 32;
        KRON_TRY(mem_grow(&p, r->cap, cap, sizeof *r->pieces, "pieces of a prompt"));
        r->pieces = p;
        r->cap = cap;
    }
    size_t begin = r->text.len;
    str_add_n(&r->text, s, len);
    r->pieces[r->n++] = (struct piece){begin, r->text.len, 1, is_break};
    return r->text.status;
}

static kron_status open_bracket(struct reader *r, struct brackets *b)
{
    if (b->depth == MAX_DEPTH)
        return err_set(KRON_ERR_ARGUMENT, "prompt: brackets are nested more than %d deep",
                       MAX_DEPTH);
    b->first[b->depth++] = r->n;
    return KRON_OK;
}

static void close_bracket(struct reader *r, struct brackets *b, double weight)
{
    for (size_t i = b->first[--b->depth]; i < r->n; i++)
        r->pieces[i].weight *= weight;
}

/* The length of ": NUMBER )" at the start of s, 0 if that is not what stands there. */
static size_t read_weight(const char *s, size_t len, double *weight)
{
    if (len == 0 || s[0] != ':')
        return 0;
    size_t at = skip_blanks(s, 1, len);
    size_t used = prompt_number(s + at, len - at, weight);
    if (used == 0)
        return 0;
    at = skip_blanks(s, at + used, len);
    return at < len && s[at] == ')' ? at + 1 : 0;
}

/* Letters, numbers and _ of any script, which BREAK must not touch. */
bool prompt_word_char(const char *s, size_t len)
{
    utf8proc_int32_t c;
    if (len == 0 || utf8proc_iterate((const uint8_t *)s, (utf8proc_ssize_t)len, &c) <= 0)
        return false;
    utf8proc_category_t category = utf8proc_category(c);
    return c == '_' || (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
           (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

/* Whether the character that ends at `at` is such. */
bool prompt_word_char_before(const char *s, size_t at)
{
    size_t before = at;
    while (before > 0 && at - before < 4 && ((uint8_t)s[before - 1] & 0xc0) == 0x80)
        before--;
    before -= before > 0 ? 1 : 0;
    return at > 0 && prompt_word_char(s + before, at - before);
}

static bool is_break_at(const char *s, size_t at, size_t len)
{
    const size_t n = 5;

    if (len - at < n || memcmp(s + at, "BREAK", n) != 0 ||
        prompt_word_char(s + at + n, len - at - n))
        return false;
    return !prompt_word_char_before(s, at);
}

/* Text without marks: pieces between the BREAKs. */
static kron_status add_text(struct reader *r, const char *s, size_t len)
{
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        if (s[i] != 'B' || !is_break_at(s, i, len)) {
            i++;
            continue;
        }
        size_t end = i;
        while (end > begin && is_blank(s[end - 1]))
            end--;
        KRON_TRY(add_piece(r, s + begin, end - begin, false));
        KRON_TRY(add_piece(r, s, 0, true));
        begin = i = skip_blanks(s, i + 5, len);
    }
    return add_piece(r, s + begin, len - begin, false);
}

/* Reads the mark at the start of s[len], or the text up to the next mark; *used is its length. */
static kron_status read_mark(struct reader *r, const char *s, size_t len, size_t *used)
{
    double weight;
    *used = 1;
    if (s[0] == '\\') {
        bool escapes = len > 1 && strchr("()[]\\", s[1]) != NULL && s[1] != '\0';
        *used = escapes ? 2 : 1;
        return add_piece(r, s + 1, escapes ? 1 : 0, false);
    }
    if (s[0] == '(')
        return open_bracket(r, &r->round);
    if (s[0] == '[')
        return open_bracket(r, &r->square);
    size_t weight_len = r->round.depth > 0 ? read_weight(s, len, &weight) : 0;
    if (weight_len > 0) {
        *used = weight_len;
        close_bracket(r, &r->round, weight);
    } else if (s[0] == ')' && r->round.depth > 0) {
        close_bracket(r, &r->round, 1.1);
    } else if (s[0] == ']' && r->square.depth > 0) {
        close_bracket(r, &r->square, 1 / 1.1);
    } else {
        while (s[0] != ':' && s[0] != ')' && s[0] != ']' && *used < len &&
               (s[*used] == '\0' || strchr("\\()[]:", s[*used]) == NULL))
            ++*used;
        return add_text(r, s, *used);
    }
    return KRON_OK;
}

static kron_status read_text(struct reader *r, const char *s, size_t len)
{
    for (size_t i = 0, used; i < len; i += used)
        KRON_TRY(read_mark(r, s + i, len - i, &used));
    while (r->round.depth > 0)
        close_bracket(r, &r->round, 1.1);
    while (r->square.depth > 0)
        close_bracket(r, &r->square, 1 / 1.1);
    return KRON_OK;
}

/* Pieces of one weight become a segment; what is empty then is left out. */
static kron_status join_pieces(struct prompt *out, const struct reader *r)
{
    if (r->n == 0)
        return KRON_OK;
    struct prompt_segment *segments = arena_alloc(&out->mem, r->n * sizeof *segments);
    if (segments == NULL)
        return out->mem.status;
    out->segments = segments;
    for (size_t i = 0, end; i < r->n; i = end) {
        const struct piece *p = &r->pieces[i];
        for (end = i + 1; end < r->n && !p->is_break && !r->pieces[end].is_break; end++) {
            if (r->pieces[end].weight != p->weight)
                break;
        }
        size_t len = r->pieces[end - 1].end - p->begin;
        if (len == 0 && !p->is_break)
            continue;
        double weight = p->is_break ? 1 : p->weight;
        if (!(fabs(weight) <= FLT_MAX))
            return err_set(KRON_ERR_ARGUMENT, "prompt: a weight of %g is out of range", weight);
        struct prompt_segment *s = &segments[out->n_segments++];
        KRON_TRY(prompt_copy(&out->mem, str_get(&r->text) + p->begin, len, &s->text));
        s->len = len;
        s->weight = weight;
        s->is_break = p->is_break;
    }
    return KRON_OK;
}

static kron_status parse_parts(struct prompt *out, struct adapter_list *list, struct str *rest,
                               struct reader *r, const char *utf8, size_t len)
{
    KRON_TRY(take_tags(list, rest, utf8, len));
    KRON_TRY(read_text(r, str_get(rest), rest->len));
    KRON_TRY(join_pieces(out, r));
    if (list->n == 0)
        return KRON_OK;
    struct prompt_adapter *adapters = arena_alloc(&out->mem, list->n * sizeof *adapters);
    if (adapters == NULL)
        return out->mem.status;
    memcpy(adapters, list->items, list->n * sizeof *adapters);
    out->adapters = adapters;
    out->n_adapters = list->n;
    return KRON_OK;
}

kron_status prompt_parse(struct prompt *out, const char *utf8, size_t len)
{
    *out = (struct prompt){0};
    if (len > TOK_TEXT_MAX_BYTES)
        return err_set(KRON_ERR_ARGUMENT, "prompt: %zu bytes, at most %d can be used", len,
                       TOK_TEXT_MAX_BYTES);
    struct adapter_list list = {.mem = &out->mem};
    struct str rest = {0};
    struct reader r = {0};
    kron_status status = parse_parts(out, &list, &rest, &r, utf8, len);
    mem_free(list.items);
    mem_free(r.pieces);
    str_free(&r.text);
    str_free(&rest);
    if (status != KRON_OK)
        prompt_free(out);
    return status;
}

void prompt_free(struct prompt *p)
{
    arena_free(&p->mem);
    *p = (struct prompt){0};
}

kron_status prompt_read_adapter(struct prompt_adapter *out, struct arena *mem, const char *text)
{
    struct tag_text t = {"adapter", text, strlen(text)};
    return prompt_tag_read(mem, &t, text, t.len, out);
}
