/* SPDX-License-Identifier: MIT
 * The CLIP byte-pair encoding. Ids 0-255 are the bytes in the order of their printable stand-ins,
 * 256-511 the same at the end of a word, 512 + i what merge i makes. A merge's rank and the id it
 * makes are thus one number, and a pair of ids fits 32 bits. */
#include "model/tokenizer.h"
#include <string.h>
#include <utf8proc.h>

/* data/bpe_merges.txt, put into the library by the build. */
extern const unsigned char data_bpe_merges_txt[];
extern const unsigned char data_bpe_merges_txt_end[];

enum {
    N_MERGES = 49152 - 256 - 2,
    FIRST_MERGED = 512,
    N_LETTERS = 256 + 68, /* code points that stand for bytes: 68 bytes have no printable form */
    N_SLOTS = 1 << 17     /* hash slots: a load of 0.37 */
};

static const char word_end[] = "</w>";
static const char *const special[] = {"<|startoftext|>", "<|endoftext|>"};

struct pair_slot {
    uint32_t pair; /* left id in the upper half, right id in the lower */
    uint32_t made; /* 0: empty */
};

struct tokenizer {
    struct pair_slot pairs[N_SLOTS];
    uint16_t byte_id[256];
};

static size_t pair_hash(uint32_t pair)
{
    return (pair * UINT32_C(2654435761)) >> 15;
}

/* The id that merging two neighbours makes, 0 if they do not merge. */
static uint32_t pair_find(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint32_t pair = left << 16 | right;
    size_t i = pair_hash(pair);
    while (t->pairs[i].made != 0 && t->pairs[i].pair != pair)
        i = (i + 1) % N_SLOTS;
    return t->pairs[i].made;
}

static void pair_insert(struct tokenizer *t, uint32_t left, uint32_t right, uint32_t made)
{
    uint32_t pair = left << 16 | right;
    size_t i = pair_hash(pair);
    while (t->pairs[i].made != 0)
        i = (i + 1) % N_SLOTS;
    t->pairs[i].pair = pair;
    t->pairs[i].made = made;
}

/* --- building the tables --- */

struct builder {
    struct tokenizer *t;
    uint16_t letter_id[N_LETTERS]; /* code point of a stand-in -> id, 0xffff: none */
    uint32_t *slots;               /* by hash of a token's text: its id, 0: empty */
    char *text;                    /* texts of the merged tokens, one after another */
    size_t text_len;
    uint32_t at[N_MERGES + 1]; /* where each begins */
};

static bool is_printable_byte(int b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

static void number_bytes(struct builder *b)
{
    memset(b->letter_id, 0xff, sizeof b->letter_id);
    uint16_t id = 0;
    for (int v = 0; v < 256; v++) {
        if (is_printable_byte(v)) {
            b->letter_id[v] = id;
            b->t->byte_id[v] = id++;
        }
    }
    int stand_in = 256;
    for (int v = 0; v < 256; v++) {
        if (!is_printable_byte(v)) {
            b->letter_id[stand_in++] = id;
            b->t->byte_id[v] = id++;
        }
    }
}

/* The slot of a merged token's text, or the empty one where it belongs. */
static uint32_t *text_slot(const struct builder *b, const char *s, size_t len)
{
    size_t i = (size_t)hash_bytes(s, len, 0) % N_SLOTS;
    for (; b->slots[i] != 0; i = (i + 1) % N_SLOTS) {
        uint32_t m = b->slots[i] - FIRST_MERGED;
        if (b->at[m + 1] - b->at[m] == len && memcmp(b->text + b->at[m], s, len) == 0)
            break;
    }
    return &b->slots[i];
}

/* The id of a token's text; false if there is none yet. */
static bool text_find(const struct builder *b, const char *s, size_t len, uint32_t *id)
{
    const size_t n_end = sizeof word_end - 1;
    bool ends = len > n_end && memcmp(s + len - n_end, word_end, n_end) == 0;
    size_t stem = ends ? len - n_end : len;
    utf8proc_int32_t cp;
    utf8proc_ssize_t used =
        utf8proc_iterate((const uint8_t *)s, (utf8proc_ssize_t)stem, &cp);
    if (used > 0 && (size_t)used == stem && cp < N_LETTERS && b->letter_id[cp] != 0xffff) {
        *id = b->letter_id[cp] + (ends ? 256u : 0u);
        return true;
    }
    *id = *text_slot(b, s, len);
    return *id != 0;
}

static kron_status add_merge(struct builder *b, uint32_t m, const char *line, const char *eol)
{
    const char *space = memchr(line, ' ', (size_t)(eol - line));
    uint32_t left, right;
    if (space == NULL || !text_find(b, line, (size_t)(space - line), &left) ||
        !text_find(b, space + 1, (size_t)(eol - space - 1), &right))
        return err_set(KRON_ERR_FORMAT,
                       "data/bpe_merges.txt: line %u is not two tokens made before", m + 2);
    uint32_t made = FIRST_MERGED + m;
    b->at[m] = (uint32_t)b->text_len;
    memcpy(b->text + b->text_len, line, (size_t)(space - line));
    b->text_len += (size_t)(space - line);
    memcpy(b->text + b->text_len, space + 1, (size_t)(eol - space - 1));
    b->text_len += (size_t)(eol - space - 1);
    b->at[m + 1] = (uint32_t)b->text_len;
    *text_slot(b, b->text + b->at[m], b->text_len - b->at[m]) = made;
    pair_insert(b->t, left, right, made);
    return KRON_OK;
}

static kron_status read_merges(struct builder *b, const char *p, const char *end)
{
    const char *eol = memchr(p, '\n', (size_t)(end - p)); /* of the heading */
    uint32_t m = 0;
    for (; eol != NULL && eol + 1 < end && m < N_MERGES; m++) {
        p = eol + 1;
        eol = memchr(p, '\n', (size_t)(end - p));
        if (eol == NULL)
            break;
        KRON_TRY(add_merge(b, m, p, eol));
    }
    if (m != N_MERGES)
        return err_set(KRON_ERR_FORMAT, "data/bpe_merges.txt: %u merges, expected %d", m,
                       N_MERGES);
    return KRON_OK;
}

static kron_status build(struct tokenizer *t)
{
    const char *data = (const char *)data_bpe_merges_txt;
    const char *end = (const char *)data_bpe_merges_txt_end;
    struct builder *b = NULL;
    void *slots = NULL, *text = NULL, *p;
    kron_status status = mem_alloc(&p, sizeof *b, "tokenizer tables");
    if (status == KRON_OK) {
        b = p;
        status = mem_alloc_n(&slots, N_SLOTS, sizeof *b->slots, "tokenizer tables");
    }
    if (status == KRON_OK)
        status = mem_alloc(&text, (size_t)(end - data), "tokenizer tables");
    if (status == KRON_OK) {
        b->t = t;
        b->slots = slots;
        b->text = text;
        number_bytes(b);
        status = read_merges(b, data, end);
    }
    mem_free(text);
    mem_free(slots);
    mem_free(b);
    return status;
}

kron_status tok_create(struct tokenizer **out)
{
    void *p;
    *out = NULL;
    KRON_TRY(mem_alloc(&p, sizeof(struct tokenizer), "tokenizer"));
    kron_status status = build(p);
    if (status != KRON_OK) {
        mem_free(p);
        return status;
    }
    *out = p;
    return KRON_OK;
}

void tok_free(struct tokenizer **t)
{
    mem_free(*t);
    *t = NULL;
}

/* --- encoding one text --- */

struct encoder {
    const struct tokenizer *t;
    int32_t *ids;
    size_t n, cap;
    /* One word: a doubly linked list of tokens, and the merges that could be done, as a binary
     * heap of rank << 32 | position. */
    struct link {
        uint32_t id; /* NO_TOKEN: merged into one before */
        int32_t prev, next;
    } *links;
    uint64_t *heap;
    size_t n_heap, cap_word;
};

enum { NO_TOKEN = 0xffff };

static kron_status emit(struct encoder *e, uint32_t id)
{
    if (e->n == e->cap) {
        void *p = e->ids;
        KRON_TRY(mem_grow(&p, e->cap, 2 * e->cap, sizeof *e->ids, "token ids"));
        e->ids = p;
        e->cap *= 2;
    }
    e->ids[e->n++] = (int32_t)id;
    return KRON_OK;
}

static void heap_push(struct encoder *e, uint64_t key)
{
    size_t i = e->n_heap++;
    while (i > 0 && e->heap[(i - 1) / 2] > key) {
        e->heap[i] = e->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    e->heap[i] = key;
}

static uint64_t heap_pop(struct encoder *e)
{
    uint64_t top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0, child = 1;
    while (child < e->n_heap) {
        if (child + 1 < e->n_heap && e->heap[child + 1] < e->heap[child])
            child++;
        if (e->heap[child] >= last)
            break;
        e->heap[i] = e->heap[child];
        i = child;
        child = 2 * i + 1;
    }
    e->heap[i] = last;
    return top;
}

/* What the token at `at` and the one after it would make, 0 if nothing. */
static uint32_t merge_at(const struct encoder *e, int32_t at)
{
    const struct link *l = &e->links[at];
    if (l->id == NO_TOKEN || l->next < 0)
        return 0;
    return pair_find(e->t, l->id, e->links[l->next].id);
}

static void offer_merge(struct encoder *e, int32_t at)
{
    uint32_t made = at < 0 ? 0 : merge_at(e, at);
    if (made != 0)
        heap_push(e, (uint64_t)made << 32 | (uint32_t)at);
}

static kron_status reserve_word(struct encoder *e, size_t n)
{
    if (n <= e->cap_word)
        return KRON_OK;
    size_t cap = n < 64 ? 64 : n + n / 2;
    void *links, *heap;
    KRON_TRY(mem_alloc_n(&links, cap, sizeof *e->links, "tokens of a word"));
    /* n - 1 pairs at the start, and each of at most n - 1 merges offers two more. */
    kron_status status = mem_alloc_n(&heap, cap, 3 * sizeof *e->heap, "merges of a word");
    if (status != KRON_OK) {
        mem_free(links);
        return status;
    }
    mem_free(e->links);
    mem_free(e->heap);
    e->links = links;
    e->heap = heap;
    e->cap_word = cap;
    return KRON_OK;
}

static size_t utf8_bytes(const utf8proc_int32_t *cp, size_t n)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += cp[i] < 0x80 ? 1 : cp[i] < 0x800 ? 2 : cp[i] < 0x10000 ? 3 : 4;
    return bytes;
}

/* Best merge first, the leftmost of equals. A popped entry may be stale, which shows by its pair
 * making something else by now. A heap and not a scan: words may be as long as the text. */
static kron_status encode_word(struct encoder *e, const utf8proc_int32_t *cp, size_t n_cp)
{
    KRON_TRY(reserve_word(e, utf8_bytes(cp, n_cp)));
    int32_t n = 0;
    for (size_t i = 0; i < n_cp; i++) {
        uint8_t bytes[4];
        utf8proc_ssize_t used = utf8proc_encode_char(cp[i], bytes);
        for (utf8proc_ssize_t k = 0; k < used; k++, n++) {
            e->links[n].id = e->t->byte_id[bytes[k]];
            e->links[n].prev = n - 1;
            e->links[n].next = n + 1;
        }
    }
    e->links[n - 1].next = -1;
    e->links[n - 1].id += 256;
    e->n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        offer_merge(e, i);
    while (e->n_heap > 0) {
        uint64_t top = heap_pop(e);
        int32_t at = (int32_t)(top & UINT32_MAX);
        if (merge_at(e, at) != (uint32_t)(top >> 32))
            continue;
        struct link *l = &e->links[at], *r = &e->links[l->next];
        l->id = (uint32_t)(top >> 32);
        l->next = r->next;
        if (r->next >= 0)
            e->links[r->next].prev = at;
        r->id = NO_TOKEN;
        offer_merge(e, l->prev);
        offer_merge(e, at);
    }
    for (int32_t i = 0; i >= 0; i = e->links[i].next)
        KRON_TRY(emit(e, e->links[i].id));
    return KRON_OK;
}

/* --- words --- */

enum char_class { CHAR_SPACE, CHAR_LETTER, CHAR_NUMBER, CHAR_OTHER };

static enum char_class classify(utf8proc_int32_t c)
{
    if ((c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
        (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
        c == 0x205f || c == 0x3000)
        return CHAR_SPACE;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return CHAR_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return CHAR_NUMBER;
    default:
        return CHAR_OTHER;
    }
}

/* The length of `s` if the text starts with it, else 0. */
static size_t starts_with(const utf8proc_int32_t *cp, size_t n, const char *s)
{
    size_t i = 0;
    for (; s[i] != '\0'; i++) {
        if (i == n || cp[i] != s[i])
            return 0;
    }
    return i;
}

/* Length of the word at the start of cp[n], n > 0. */
static size_t word_length(const utf8proc_int32_t *cp, size_t n)
{
    static const char *const suffixes[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; cp[0] == '\'' && i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t len = starts_with(cp, n, suffixes[i]);
        if (len > 0)
            return len;
    }
    enum char_class c = classify(cp[0]);
    size_t len = 1;
    while (c != CHAR_NUMBER && len < n && classify(cp[len]) == c)
        len++;
    return len;
}

static kron_status encode_words(struct encoder *e, const utf8proc_int32_t *cp, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        len = 0;
        /* What reads as a special token only in lower case is three words, whatever follows. */
        for (size_t k = 0; k < 2 && len == 0; k++)
            len = starts_with(cp + i, n - i, special[k]);
        if (len > 0) {
            KRON_TRY(encode_word(e, cp + i, 2));
            KRON_TRY(encode_word(e, cp + i + 2, len - 4));
            KRON_TRY(encode_word(e, cp + i + len - 2, 2));
            continue;
        }
        len = word_length(cp + i, n - i);
        if (classify(cp[i]) != CHAR_SPACE)
            KRON_TRY(encode_word(e, cp + i, len));
    }
    return KRON_OK;
}

/* --- normal form --- */

enum { MAX_DECOMPOSED = 4 }; /* code points of the longest canonical decomposition */

static int combining_class(utf8proc_int32_t c)
{
    return utf8proc_get_property(c)->combining_class;
}

/* Stable sort of a run of combining marks by class, by counting: utf8proc's own ordering takes
 * quadratic time, which a hostile text could use. `tmp` has room for n. */
static void sort_marks(utf8proc_int32_t *cp, size_t n, utf8proc_int32_t *tmp)
{
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(cp[i]) + 1]++;
    for (size_t c = 1; c < 257; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        tmp[start[combining_class(cp[i])]++] = cp[i];
    memcpy(cp, tmp, n * sizeof *cp);
}

static void order_marks(utf8proc_int32_t *cp, size_t n, utf8proc_int32_t *tmp)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(cp[end]) != 0)
            end++;
        if (end > i + 1)
            sort_marks(cp + i, end - i, tmp);
        i = end + 1;
    }
}

static size_t decompose(utf8proc_int32_t *out, const char *utf8, size_t len)
{
    size_t n = 0;
    while (len > 0) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const uint8_t *)utf8, (utf8proc_ssize_t)len, &c);
        if (used <= 0) {
            c = 0xfffd;
            used = 1;
        }
        int boundary = 0;
        n += (size_t)utf8proc_decompose_char(c, out + n, MAX_DECOMPOSED,
                                             UTF8PROC_STABLE | UTF8PROC_COMPOSE, &boundary);
        utf8 += used;
        len -= (size_t)used;
    }
    return n;
}

/* The only character whose lower case is two: U+0130, dotted I. */
static size_t lower_case(utf8proc_int32_t *out, const utf8proc_int32_t *cp, size_t n)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        if (cp[i] == 0x130) {
            out[n_out++] = 'i';
            out[n_out++] = 0x307;
        } else {
            out[n_out++] = utf8proc_tolower(cp[i]);
        }
    }
    return n_out;
}

static kron_status encode_plain(struct encoder *e, const char *utf8, size_t len)
{
    void *p;
    if (len == 0)
        return KRON_OK;
    KRON_TRY(mem_alloc_n(&p, len, 2 * MAX_DECOMPOSED * sizeof(utf8proc_int32_t), "text"));
    utf8proc_int32_t *cp = p, *other = cp + len * MAX_DECOMPOSED;
    size_t n = decompose(cp, utf8, len);
    order_marks(cp, n, other);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    KRON_ASSERT(composed >= 0);
    n = lower_case(other, cp, (size_t)composed);
    kron_status status = encode_words(e, other, n);
    mem_free(p);
    return status;
}

/* The special token that starts at `s`, 0 if none. */
static uint32_t special_at(const char *s, size_t len, size_t *used)
{
    for (uint32_t k = 0; k < 2; k++) {
        *used = strlen(special[k]);
        if (len >= *used && memcmp(s, special[k], *used) == 0)
            return TOK_START + k;
    }
    return 0;
}

static kron_status encode_text(struct encoder *e, const char *utf8, size_t len)
{
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        size_t used;
        uint32_t id = special_at(utf8 + i, len - i, &used);
        if (id == 0) {
            i++;
            continue;
        }
        KRON_TRY(encode_plain(e, utf8 + begin, i - begin));
        KRON_TRY(emit(e, id));
        i += used;
        begin = i;
    }
    return encode_plain(e, utf8 + begin, len - begin);
}

kron_status tok_encode(const struct tokenizer *t, const char *utf8, size_t len, int32_t **ids,
                       size_t *n)
{
    struct encoder e = {.t = t, .cap = 64};
    void *p;
    *ids = NULL;
    *n = 0;
    if (len > TOK_TEXT_MAX_BYTES)
        return err_set(KRON_ERR_ARGUMENT, "a text of %zu bytes, at most %d can be encoded", len,
                       TOK_TEXT_MAX_BYTES);
    KRON_TRY(mem_alloc_n(&p, e.cap, sizeof *e.ids, "token ids"));
    e.ids = p;
    kron_status status = encode_text(&e, utf8, len);
    mem_free(e.links);
    mem_free(e.heap);
    if (status != KRON_OK) {
        mem_free(e.ids);
        return status;
    }
    *ids = e.ids;
    *n = e.n;
    return KRON_OK;
}
