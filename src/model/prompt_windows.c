/* SPDX-License-Identifier: MIT
 * A prompt's text as token ids, cut into windows of a text encoder. */
#include "model/prompt.h"
#include <string.h>

struct windows_cap {
    size_t ids, weights, starts;
};

static kron_status grow(void **p, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return KRON_OK;
    size_t new_cap = n < 128 ? 128 : 2 * n;
    KRON_TRY(mem_grow(p, *cap, new_cap, size, "windows of a prompt"));
    *cap = new_cap;
    return KRON_OK;
}

/* Ends the window being filled; the next begins at `at`. */
static kron_status end_window(struct prompt_windows *w, struct windows_cap *cap, size_t at)
{
    void *starts = w->starts;
    KRON_TRY(grow(&starts, &cap->starts, w->n + 2, sizeof *w->starts));
    w->starts = starts;
    w->starts[++w->n] = at;
    return KRON_OK;
}

static kron_status add_segment(struct prompt_windows *w, struct windows_cap *cap, size_t *n,
                               const int32_t *ids, size_t n_ids, double weight)
{
    void *all_ids = w->ids, *weights = w->weights;
    KRON_TRY(grow(&all_ids, &cap->ids, *n + n_ids, sizeof *w->ids));
    w->ids = all_ids;
    KRON_TRY(grow(&weights, &cap->weights, *n + n_ids, sizeof *w->weights));
    w->weights = weights;
    for (size_t i = 0; i < n_ids; i++) {
        if (*n - w->starts[w->n] == TOK_WINDOW_TEXT)
            KRON_TRY(end_window(w, cap, *n));
        w->ids[*n] = ids[i];
        w->weights[*n] = (float)weight;
        ++*n;
    }
    return KRON_OK;
}

static char lower_case(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool same_letters(const char *a, const char *b, size_t n)
{
    size_t i = 0;
    while (i < n && lower_case(a[i]) == lower_case(b[i]))
        i++;
    return i == n;
}

/* The length of the word if it stands at s[at], else 0. */
static size_t word_at(const char *s, size_t at, size_t len, const char *word)
{
    size_t n = strlen(word);
    if (n == 0 || len - at < n || !same_letters(s + at, word, n))
        return 0;
    bool goes_on_before = prompt_word_char(s + at, n) && prompt_word_char_before(s, at);
    bool goes_on_after =
        prompt_word_char_before(s, at + n) && prompt_word_char(s + at + n, len - at - n);
    return goes_on_before || goes_on_after ? 0 : n;
}

bool prompt_has_word(const struct prompt *p, const char *text)
{
    for (size_t i = 0; i < p->n_segments; i++)
        for (size_t at = 0; at < p->segments[i].len; at++)
            if (word_at(p->segments[i].text, at, p->segments[i].len, text) > 0)
                return true;
    return false;
}

struct cutter {
    struct prompt_windows *w;
    struct windows_cap cap;
    size_t n; /* ids so far */
    const struct tokenizer *t;
    const struct prompt_word *words;
    size_t n_words;
};

static kron_status cut_text(struct cutter *c, const char *s, size_t len, double weight)
{
    int32_t *ids;
    size_t n_ids;
    if (len == 0)
        return KRON_OK;
    KRON_TRY(tok_encode(c->t, s, len, &ids, &n_ids));
    kron_status status = add_segment(c->w, &c->cap, &c->n, ids, n_ids, weight);
    mem_free(ids);
    return status;
}

static kron_status cut_word(struct cutter *c, const struct prompt_word *word, double weight)
{
    size_t room = TOK_WINDOW_TEXT - (c->n - c->w->starts[c->w->n]);
    if (word->n <= TOK_WINDOW_TEXT && (size_t)word->n > room)
        KRON_TRY(end_window(c->w, &c->cap, c->n));
    for (int32_t i = 0; i < word->n; i++) {
        int32_t id = word->first + i;
        KRON_TRY(add_segment(c->w, &c->cap, &c->n, &id, 1, weight));
    }
    return KRON_OK;
}

/* The longest word at s[at], NULL if there is none. */
static const struct prompt_word *find_word(const struct cutter *c, const char *s, size_t at,
                                           size_t len, size_t *longest)
{
    const struct prompt_word *best = NULL;
    *longest = 0;
    for (size_t i = 0; i < c->n_words; i++) {
        size_t n = word_at(s, at, len, c->words[i].text);
        if (n > *longest) {
            *longest = n;
            best = &c->words[i];
        }
    }
    return best;
}

static kron_status cut_segment(struct cutter *c, const struct prompt_segment *s)
{
    size_t begin = 0;
    for (size_t i = 0, len; c->n_words > 0 && i < s->len;) {
        const struct prompt_word *word = find_word(c, s->text, i, s->len, &len);
        if (word == NULL) {
            i++;
            continue;
        }
        KRON_TRY(cut_text(c, s->text + begin, i - begin, s->weight));
        KRON_TRY(cut_word(c, word, s->weight));
        i += len;
        begin = i;
    }
    return cut_text(c, s->text + begin, s->len - begin, s->weight);
}

static kron_status cut_windows(struct cutter *c, const struct prompt *p)
{
    void *starts = NULL;
    KRON_TRY(grow(&starts, &c->cap.starts, 1, sizeof *c->w->starts));
    c->w->starts = starts;
    for (size_t i = 0; i < p->n_segments; i++)
        KRON_TRY(p->segments[i].is_break ? end_window(c->w, &c->cap, c->n)
                                         : cut_segment(c, &p->segments[i]));
    if (c->n > c->w->starts[c->w->n] || c->w->n == 0)
        KRON_TRY(end_window(c->w, &c->cap, c->n));
    return KRON_OK;
}

kron_status prompt_tokenize(struct prompt_windows *out, const struct tokenizer *t,
                            const struct prompt *p, const struct prompt_word *words,
                            size_t n_words)
{
    struct cutter c = {.w = out, .t = t, .words = words, .n_words = n_words};
    *out = (struct prompt_windows){0};
    kron_status status = cut_windows(&c, p);
    if (status != KRON_OK)
        prompt_windows_free(out);
    return status;
}

void prompt_windows_free(struct prompt_windows *w)
{
    mem_free(w->ids);
    mem_free(w->weights);
    mem_free(w->starts);
    *w = (struct prompt_windows){0};
}

void prompt_windows_fill(const struct prompt_windows *w, size_t n_windows, int32_t pad_id,
                         int32_t *ids, float *weights)
{
    KRON_ASSERT(n_windows >= w->n);
    for (size_t i = 0; i < n_windows; i++) {
        size_t from = i < w->n ? w->starts[i] : 0;
        size_t n = i < w->n ? w->starts[i + 1] - from : 0;
        int32_t *row = ids + i * TOK_WINDOW;
        row[0] = TOK_START;
        for (size_t k = 0; k < TOK_WINDOW_TEXT; k++)
            row[1 + k] = k < n ? w->ids[from + k] : k == n ? TOK_END : pad_id;
        row[TOK_WINDOW - 1] = n == TOK_WINDOW_TEXT ? TOK_END : pad_id;
        for (size_t k = 0; weights != NULL && k < TOK_WINDOW; k++)
            weights[i * TOK_WINDOW + k] = k >= 1 && k <= n ? w->weights[from + k - 1] : 1;
    }
}
