/* SPDX-License-Identifier: MIT
 * Reading GGUF (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3: a header of typed
 * metadata and of tensors, then the data, each tensor at a multiple of an alignment. Tensors are
 * views of the mapping; ggml lists their axes from the fastest, so shapes are turned around. */
#include "file/gguf.h"
#include <inttypes.h>
#include <string.h>

enum {
    MAX_DEPTH = 8,   /* of arrays in arrays */
    MIN_META = 13,   /* bytes of the least entry: an empty key, a type, a number of one byte */
    MIN_TENSOR = 24, /* an empty name, no axes, a type, an offset */
    KEY_CHARS = 200  /* of a key, in messages */
};

/* The rest of the header. */
struct reader {
    struct st_file *f;
    size_t at;
    const char *what; /* what is being read, for messages */
};

/* --- plain values --- */

static kron_status cut(const struct reader *r)
{
    return err_set(KRON_ERR_FORMAT, "%s: the GGUF header ends within %.200s: the file has %zu "
                   "bytes; is it truncated?", r->f->path, r->what, r->f->n_bytes);
}

static kron_status take(struct reader *r, size_t n, const uint8_t **out)
{
    if (n > r->f->n_bytes - r->at)
        return cut(r);
    *out = r->f->bytes + r->at;
    r->at += n;
    return KRON_OK;
}

static kron_status take_number(struct reader *r, int bytes, uint64_t *out)
{
    const uint8_t *p = NULL;

    KRON_TRY(take(r, (size_t)bytes, &p));
    *out = 0;
    for (int i = 0; i < bytes; i++)
        *out |= (uint64_t)p[i] << 8 * i;
    return KRON_OK;
}

static kron_status take_u32(struct reader *r, uint32_t *out)
{
    uint64_t v = 0;

    KRON_TRY(take_number(r, 4, &v));
    *out = (uint32_t)v;
    return KRON_OK;
}

/* A string is bytes of the file. */
static kron_status take_string(struct reader *r, const char **s, size_t *len)
{
    const uint8_t *p = NULL;
    uint64_t n = 0;

    KRON_TRY(take_number(r, 8, &n));
    if (n > r->f->n_bytes - r->at)
        return cut(r);
    KRON_TRY(take(r, (size_t)n, &p));
    *s = (const char *)p;
    *len = (size_t)n;
    return KRON_OK;
}

/* A name of its own memory, closed by a NUL. */
static kron_status take_name(struct reader *r, const char **out)
{
    const char *s = NULL;
    size_t len = 0;
    char *own;

    KRON_TRY(take_string(r, &s, &len));
    if (len > 0 && memchr(s, '\0', len) != NULL)
        return err_set(KRON_ERR_FORMAT, "%s: %s has a NUL in it", r->f->path, r->what);
    own = arena_alloc(&r->f->mem, len + 1);
    if (own == NULL)
        return r->f->mem.status;
    *out = len > 0 ? memcpy(own, s, len) : own;
    return KRON_OK;
}

/* --- metadata: every value as text, arrays as JSON --- */

static void add_quoted(struct str *out, const char *s, size_t n)
{
    str_add(out, "\"");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            str_addf(out, "\\%c", c);
        else if (c < 0x20)
            str_addf(out, "\\u%04x", c);
        else
            str_add_n(out, s + i, 1);
    }
    str_add(out, "\"");
}

static const int value_bytes[GGUF_VALUE_COUNT] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4,
    [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8,
    [GGUF_F64] = 8,
};

static void add_number(struct str *out, uint32_t type, uint64_t v)
{
    uint32_t low = (uint32_t)v;
    double f64;
    float f32;

    memcpy(&f64, &v, sizeof f64);
    memcpy(&f32, &low, sizeof f32);
    switch (type) {
    case GGUF_BOOL:
        str_add(out, v != 0 ? "true" : "false");
        break;
    case GGUF_F32:
        str_addf(out, "%.9g", (double)f32);
        break;
    case GGUF_F64:
        str_addf(out, "%.17g", f64);
        break;
    case GGUF_I8:
        str_addf(out, "%d", (int8_t)v);
        break;
    case GGUF_I16:
        str_addf(out, "%d", (int16_t)v);
        break;
    case GGUF_I32:
        str_addf(out, "%" PRId32, (int32_t)v);
        break;
    case GGUF_I64:
        str_addf(out, "%" PRId64, (int64_t)v);
        break;
    default:
        str_addf(out, "%" PRIu64, v);
    }
}

static kron_status unknown_value(const struct reader *r, uint32_t type)
{
    return err_set(KRON_ERR_FORMAT, "%s: %s has the value type %" PRIu32 ", expected 0 to %d",
                   r->f->path, r->what, type, GGUF_VALUE_COUNT - 1);
}

static kron_status add_value(struct reader *r, uint32_t type, int depth, struct str *out)
{
    const char *s = NULL;
    size_t len = 0;
    uint64_t v = 0, n = 0;
    uint32_t of = 0;

    if (type >= GGUF_VALUE_COUNT)
        return unknown_value(r, type);
    if (type == GGUF_STRING) {
        KRON_TRY(take_string(r, &s, &len));
        if (depth == 0)
            str_add_n(out, s, len);
        else
            add_quoted(out, s, len);
        return out->status;
    }
    if (type != GGUF_ARRAY) {
        KRON_TRY(take_number(r, value_bytes[type], &v));
        add_number(out, type, v);
        return out->status;
    }
    if (depth == MAX_DEPTH)
        return err_set(KRON_ERR_FORMAT, "%s: %s nests arrays over %d deep", r->f->path, r->what,
                       MAX_DEPTH);
    KRON_TRY(take_u32(r, &of));
    KRON_TRY(take_number(r, 8, &n));
    if (of >= GGUF_VALUE_COUNT) /* of none too */
        return unknown_value(r, of);
    str_add(out, "[");
    for (uint64_t i = 0; i < n; i++) { /* each takes bytes of the file: n cannot lie for long */
        str_add(out, i > 0 ? "," : "");
        KRON_TRY(add_value(r, of, depth + 1, out));
    }
    str_add(out, "]");
    return out->status;
}

static kron_status read_meta(struct reader *r, struct st_meta *m)
{
    char what[KEY_CHARS + 32];
    struct str text = {0};
    uint32_t type = 0;
    char *own;

    r->what = "a metadata key";
    KRON_TRY(take_name(r, &m->key));
    snprintf(what, sizeof what, "metadata '%.*s'", KEY_CHARS, m->key);
    r->what = what;
    kron_status status = take_u32(r, &type);
    if (status == KRON_OK)
        status = add_value(r, type, 0, &text);
    if (status == KRON_OK && text.len > 0 && memchr(text.s, '\0', text.len) != NULL)
        status = err_set(KRON_ERR_FORMAT, "%s: %s has a NUL in it", r->f->path, r->what);
    if (status == KRON_OK) {
        m->value = own = arena_strdup(&r->f->mem, str_get(&text));
        status = own != NULL ? KRON_OK : r->f->mem.status;
    }
    str_free(&text);
    r->what = "";
    return status;
}

static kron_status read_metas(struct reader *r, uint64_t n, struct name_map *keys)
{
    struct st_file *f = r->f;

    f->meta = arena_alloc(&f->mem, ((size_t)n + 1) * sizeof *f->meta);
    if (f->meta == NULL)
        return f->mem.status;
    for (; (uint64_t)f->n_meta < n; f->n_meta++) {
        struct st_meta *m = &f->meta[f->n_meta];
        KRON_TRY(read_meta(r, m));
        struct name_slot *slot = name_map_at(keys, m->key, strlen(m->key));
        if (slot->key != NULL)
            return err_set(KRON_ERR_FORMAT, "%s: metadata '%.*s' is there twice", f->path,
                           KEY_CHARS, m->key);
        *slot = (struct name_slot){m->key, f->n_meta};
    }
    return KRON_OK;
}

static const char *meta_find(const struct st_file *f, const struct name_map *keys, const char *key)
{
    const struct name_slot *slot = name_map_at(keys, key, strlen(key));

    return slot->key != NULL ? f->meta[slot->value].value : NULL;
}

static kron_status find_alignment(const struct st_file *f, const struct name_map *keys,
                                  size_t *out)
{
    const char *text = meta_find(f, keys, "general.alignment");
    int64_t v = GGUF_ALIGNMENT;

    if (text != NULL && (!str_to_i64(text, &v) || v < 1 || v > 1 << 20 || (v & (v - 1)) != 0))
        return err_set(KRON_ERR_FORMAT, "%s: general.alignment is '%.40s', expected a power of two "
                       "up to 1048576", f->path, text);
    *out = (size_t)v;
    return KRON_OK;
}

/* --- tensors --- */

static kron_status read_axes(struct reader *r, struct tensor *t, size_t *elements)
{
    uint64_t v = 0;
    uint32_t n = 0;

    KRON_TRY(take_u32(r, &n));
    if (n > TENSOR_MAX_DIMS)
        return err_set(KRON_ERR_FORMAT, "%s: %s has %" PRIu32 " axes, expected at most %d",
                       r->f->path, r->what, n, TENSOR_MAX_DIMS);
    t->n_dims = (int)n;
    *elements = 1;
    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        t->dim[i] = 1;
    for (int i = t->n_dims - 1; i >= 0; i--) {
        KRON_TRY(take_number(r, 8, &v));
        t->dim[i] = v <= INT64_MAX ? (int64_t)v : INT64_MAX;
    }
    /* In the order of tensor_elements(): one axis of 0 does not make the others harmless. */
    for (int i = 0; i < t->n_dims; i++)
        if (!size_mul(*elements, (size_t)t->dim[i], elements) || *elements > INT64_MAX)
            return err_set(KRON_ERR_FORMAT, "%s: %s has too many elements", r->f->path, r->what);
    return KRON_OK;
}

static kron_status set_bytes(const struct st_file *f, struct tensor *t, size_t elements)
{
    const struct dtype_info *info = dtype_info(t->type);
    size_t block = (size_t)info->block;
    int64_t row = t->n_dims > 0 ? t->dim[t->n_dims - 1] : 1;

    if (row % info->block != 0)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s': rows of %lld numbers are no whole "
                       "number of %s blocks of %zu", f->path, t->name, (long long)row, info->name,
                       block);
    if (!size_mul(elements / block, (size_t)info->bytes, &t->bytes))
        return st_bad(f, t->name, "it has too many elements");
    return KRON_OK;
}

/* Its data pointer is set when the place of the data section is known. */
static kron_status read_tensor(struct reader *r, struct tensor *t, uint64_t *offset)
{
    char what[KEY_CHARS + 32];
    size_t elements = 0;
    uint32_t type = 0;

    r->what = "the name of a tensor";
    KRON_TRY(take_name(r, &t->name));
    snprintf(what, sizeof what, "tensor '%.*s'", KEY_CHARS, t->name);
    r->what = what;
    kron_status status = read_axes(r, t, &elements);
    if (status == KRON_OK)
        status = take_u32(r, &type);
    if (status == KRON_OK)
        status = take_number(r, 8, offset);
    r->what = "";
    if (status != KRON_OK)
        return status;
    if (!gguf_type(type, &t->type))
        return err_set(KRON_ERR_UNSUPPORTED, "%s: tensor '%.200s' has the ggml type %" PRIu32
                       ", which is not supported", r->f->path, t->name, type);
    return set_bytes(r->f, t, elements);
}

static kron_status place(const struct st_file *f, struct tensor *t, uint64_t offset, size_t begin,
                         size_t alignment)
{
    size_t room = f->n_bytes - begin;

    if (offset % alignment != 0)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s' begins at byte %" PRIu64 " of the "
                       "data, expected a multiple of %zu", f->path, t->name, offset, alignment);
    if (offset > room || t->bytes > room - (size_t)offset)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s' has %zu bytes from byte %" PRIu64
                       " of the data, the file has %zu: is it truncated?", f->path, t->name,
                       t->bytes, offset, room);
    t->data = f->bytes + begin + (size_t)offset;
    return KRON_OK;
}

/* The shape that ComfyUI-GGUF says a tensor had before its numbers were put in rows of whole
 * blocks. Rows of that shape may begin within a block. */
static kron_status restore_shape(struct st_file *f, const struct name_map *keys,
                                 struct tensor *t)
{
    struct str key = {0};
    const char *text;
    int64_t dim[TENSOR_MAX_DIMS], elements = 1;
    int n = 0, used = 0;

    str_add(&key, GGUF_SHAPE_KEY);
    str_add(&key, t->name);
    kron_status status = key.status;
    text = status == KRON_OK ? meta_find(f, keys, str_get(&key)) : NULL;
    str_free(&key);
    if (text == NULL)
        return status;
    for (const char *p = text; n < TENSOR_MAX_DIMS; p += used, n++) {
        long long v;
        used = 0;
        if (sscanf(p, n == 0 ? "[%18lld%n" : ",%18lld%n", &v, &used) != 1 || v < 1)
            break;
        dim[n] = v;
        if (__builtin_mul_overflow(elements, dim[n], &elements))
            elements = -1;
        text = p + used;
    }
    if (n == 0 || strcmp(text, "]") != 0 || elements != tensor_elements(t))
        return st_bad(f, t->name, "the shape that its metadata gives is not one of its elements");
    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        t->dim[i] = i < n ? dim[i] : 1;
    t->n_dims = n;
    return KRON_OK;
}

static kron_status read_tensors(struct reader *r, uint64_t n, const struct name_map *keys)
{
    struct st_file *f = r->f;
    size_t alignment = GGUF_ALIGNMENT, begin;
    uint64_t *offset;

    KRON_TRY(find_alignment(f, keys, &alignment));
    f->tensors = arena_alloc(&f->mem, ((size_t)n + 1) * sizeof *f->tensors);
    offset = arena_alloc(&f->mem, ((size_t)n + 1) * sizeof *offset);
    KRON_TRY(f->mem.status);
    for (; (uint64_t)f->n < n; f->n++)
        KRON_TRY(read_tensor(r, &f->tensors[f->n], &offset[f->n]));
    begin = (r->at + alignment - 1) & ~(alignment - 1);
    if (begin > f->n_bytes) /* without padding: there are no data */
        begin = f->n_bytes;
    for (int64_t i = 0; i < f->n; i++)
        KRON_TRY(place(f, &f->tensors[i], offset[i], begin, alignment));
    KRON_TRY(st_sort(f));
    for (int64_t i = 0; i < f->n; i++)
        KRON_TRY(restore_shape(f, keys, &f->tensors[i]));
    return st_index(f);
}

/* --- the header --- */

bool gguf_is(const void *data, size_t bytes)
{
    return bytes >= 4 && memcmp(data, "GGUF", 4) == 0;
}

static kron_status check_version(const struct st_file *f, uint32_t version)
{
    if (version == 2 || version == 3)
        return KRON_OK;
    if ((version & 0xffff) == 0 && version != 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: a big-endian GGUF file, expected little-endian",
                       f->path);
    return err_set(KRON_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu32 ", expected 2 or 3", f->path,
                   version);
}

static kron_status check_count(const struct reader *r, uint64_t n, size_t least, const char *what)
{
    if (n > (r->f->n_bytes - r->at) / least)
        return err_set(KRON_ERR_FORMAT, "%s: %" PRIu64 " %s do not fit into %zu bytes: is the file "
                       "truncated?", r->f->path, n, what, r->f->n_bytes);
    return KRON_OK;
}

kron_status gguf_read(struct st_file *f)
{
    struct reader r = {f, 4, "its first numbers"};
    struct name_map keys = {0};
    uint64_t n_tensors = 0, n_meta = 0;
    uint32_t version = 0;

    KRON_TRY(take_u32(&r, &version));
    KRON_TRY(check_version(f, version));
    KRON_TRY(take_number(&r, 8, &n_tensors));
    KRON_TRY(take_number(&r, 8, &n_meta));
    KRON_TRY(check_count(&r, n_meta, MIN_META, "metadata entries"));
    KRON_TRY(check_count(&r, n_tensors, MIN_TENSOR, "tensors"));
    KRON_TRY(name_map_create(&keys, (size_t)n_meta));
    kron_status status = read_metas(&r, n_meta, &keys);
    if (status == KRON_OK)
        status = read_tensors(&r, n_tensors, &keys);
    name_map_free(&keys);
    return status;
}
