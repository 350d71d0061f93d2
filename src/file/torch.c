/* SPDX-License-Identifier: MIT
 * Checkpoints that torch.save() wrote: a pickle whose tensors refer to storages, which lie as
 * entries of a zip archive beside it, or, before PyTorch 1.6, one after the other behind it. */
#include "file/formats.h"
#include "file/pickle.h"
#include "file/zip.h"
#include <string.h>

/* A pickle of names; the numbers are in the storages. */
static const size_t max_pickle = 64 << 20;

/* The first pickle of the older layout is this number alone (the second byte is a version). */
static const uint8_t magic[15] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                  0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};

struct storage {
    const uint8_t *data;
    size_t bytes;
};

struct torch {
    struct st_file *f;
    struct pickle pickle;
    struct name_map map;      /* names of zip entries, or keys of storages, to indices */
    struct zip_entry *entries;
    struct storage *storages; /* of the older layout */
    size_t copied;            /* bytes of tensors that are no views */
    const char *folder;       /* of the zip archive: "archive" in "archive/data.pkl" */
};

/* --- types --- */

static const struct {
    const char *storage, *dtype; /* as names of Python; NULL: none */
    enum dtype type;
} types[] = {
    {"torch.FloatStorage", "torch.float32", DT_F32},
    {"torch.HalfStorage", "torch.float16", DT_F16},
    {"torch.BFloat16Storage", "torch.bfloat16", DT_BF16},
    {"torch.DoubleStorage", "torch.float64", DT_F64},
    {"torch.LongStorage", "torch.int64", DT_I64},
    {"torch.IntStorage", "torch.int32", DT_I32},
    {"torch.ShortStorage", "torch.int16", DT_I16},
    {"torch.CharStorage", "torch.int8", DT_I8},
    {"torch.ByteStorage", "torch.uint8", DT_U8},
    {"torch.BoolStorage", "torch.bool", DT_BOOL},
    {NULL, "torch.float8_e4m3fn", DT_F8_E4M3},
    {NULL, "torch.float8_e5m2", DT_F8_E5M2},
};

static bool find_type(const struct pickle_value *v, bool is_storage, enum dtype *out)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *name = is_storage ? types[i].storage : types[i].dtype;
        if (v->kind == PICKLE_GLOBAL && name != NULL && pickle_is_text(v, name)) {
            *out = types[i].type;
            return true;
        }
    }
    return false;
}

/* --- storages: ("storage", class, key, device, elements[, a view of another]) --- */

static kron_status check_reference(const struct torch *t, const struct pickle_value *v)
{
    bool is_view = v->n > 5 && v->item[5]->kind != PICKLE_NONE;

    if (v->kind == PICKLE_OUTSIDE && v->n >= 5 && pickle_is_text(v->item[0], "storage") &&
        v->item[1]->kind == PICKLE_GLOBAL && v->item[2]->kind == PICKLE_TEXT &&
        v->item[2]->len < 256 && v->item[4]->kind == PICKLE_INT && v->item[4]->i >= 0 && !is_view)
        return KRON_OK;
    return err_set(KRON_ERR_FORMAT, "%s: a pickle that refers to what is no storage", t->f->path);
}

/* The storage that a reference names; unknown: bytes 0 and no data. */
static struct storage find_storage(const struct torch *t, const struct pickle_value *reference)
{
    const struct pickle_value *key = reference->item[2];
    const struct name_slot *slot;
    char name[512];

    if (t->folder == NULL)
        snprintf(name, sizeof name, "%.*s", (int)key->len, key->text);
    else
        snprintf(name, sizeof name, "%.200s/data/%.*s", t->folder, (int)key->len, key->text);
    slot = name_map_at(&t->map, name, strlen(name));
    if (slot->key == NULL)
        return (struct storage){NULL, 0};
    if (t->folder == NULL)
        return t->storages[slot->value];
    return (struct storage){t->entries[slot->value].data, t->entries[slot->value].bytes};
}

/* --- tensors: (storage, offset, shape, strides, ...); v3 has the type as number 6 --- */

static kron_status read_shape(const struct st_file *f, const struct pickle_value *v,
                              struct tensor *t, size_t *elements)
{
    const struct pickle_value *shape = v->item[2];

    if (shape->kind != PICKLE_LIST || shape->n > TENSOR_MAX_DIMS)
        return st_bad(f, t->name, "shape is not a tuple of at most 6 numbers");
    *elements = 1;
    t->n_dims = (int)shape->n;
    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        t->dim[i] = 1;
    for (int i = 0; i < t->n_dims; i++) {
        int64_t d = shape->item[i]->i;
        if (shape->item[i]->kind != PICKLE_INT || d < 0 ||
            !size_mul(*elements, (size_t)d, elements) || *elements > INT64_MAX)
            return st_bad(f, t->name, "shape holds a number that is negative, too large or none");
        t->dim[i] = d;
    }
    return KRON_OK;
}

/* Strides into `stride`; *last: the place of the last element, *plain: they are row-major. */
static kron_status read_strides(const struct st_file *f, const struct pickle_value *v,
                                const struct tensor *t, int64_t *stride, size_t *last, bool *plain)
{
    const struct pickle_value *list = v->item[3];
    size_t step;
    int64_t want = 1;

    if (list->kind != PICKLE_LIST || list->n != t->n_dims || v->item[1]->kind != PICKLE_INT ||
        v->item[1]->i < 0)
        return st_bad(f, t->name, "expected a place and as many strides as axes");
    *last = (size_t)v->item[1]->i;
    *plain = true;
    for (int i = t->n_dims - 1; i >= 0; i--) {
        stride[i] = list->item[i]->i;
        if (list->item[i]->kind != PICKLE_INT || stride[i] < 0 ||
            !size_mul((size_t)stride[i], (size_t)(t->dim[i] > 0 ? t->dim[i] - 1 : 0), &step) ||
            !size_add(*last, step, last))
            return st_bad(f, t->name, "a stride is negative, too large or none");
        if (t->dim[i] > 1 && stride[i] != want)
            *plain = false;
        want *= t->dim[i];
    }
    return KRON_OK;
}

/* A copy in row-major order. Many tensors may share one storage: all copies together are no
 * larger than the file, so that none can ask for more memory than it has bytes. */
static kron_status gather(struct torch *x, struct tensor *t, const uint8_t *first,
                          const int64_t *stride, size_t elements)
{
    size_t size = (size_t)dtype_info(t->type)->bytes;
    int64_t at[TENSOR_MAX_DIMS] = {0};
    uint8_t *copy;

    if (t->bytes > x->f->n_bytes - x->copied)
        return st_bad(x->f, t->name, "tensors that are not row-major need more than the file's "
                      "size");
    x->copied += t->bytes;
    copy = arena_alloc(&x->f->mem, t->bytes);
    if (copy == NULL)
        return x->f->mem.status;
    for (size_t i = 0; i < elements; i++) {
        int64_t from = 0;
        for (int k = 0; k < t->n_dims; k++)
            from += at[k] * stride[k];
        memcpy(copy + i * size, first + (size_t)from * size, size);
        for (int k = t->n_dims - 1; k >= 0 && ++at[k] == t->dim[k]; k--)
            at[k] = 0;
    }
    t->data = copy;
    return KRON_OK;
}

static kron_status tensor_type(const struct st_file *f, const struct pickle_value *v,
                               struct tensor *t)
{
    const struct pickle_value *name = v->item[0]->item[1];
    bool v3 = pickle_is_text(v, "torch._utils._rebuild_tensor_v3");

    if (v3 && v->n < 7)
        return st_bad(f, t->name, "it has no type");
    if (v3)
        name = v->item[6];
    if (find_type(name, !v3, &t->type))
        return KRON_OK;
    if (name->kind != PICKLE_GLOBAL)
        return st_bad(f, t->name, "its type is no name");
    return err_set(KRON_ERR_UNSUPPORTED, "%s: tensor '%.200s': unknown type %.*s", f->path, t->name,
                   name->len < 100 ? (int)name->len : 100, name->text);
}

static kron_status read_tensor(struct torch *x, const struct pickle_value *v,
                               struct tensor *t)
{
    struct st_file *f = x->f;
    int64_t stride[TENSOR_MAX_DIMS] = {0};
    size_t elements = 0, last = 0, size;
    struct storage s;
    bool plain = false;

    if (v->n < 4)
        return st_bad(f, t->name, "expected a storage, a place, a shape and strides");
    KRON_TRY(check_reference(x, v->item[0]));
    KRON_TRY(tensor_type(f, v, t));
    KRON_TRY(read_shape(f, v, t, &elements));
    KRON_TRY(read_strides(f, v, t, stride, &last, &plain));
    s = find_storage(x, v->item[0]);
    size = (size_t)dtype_info(t->type)->bytes;
    if (s.data == NULL)
        return st_bad(f, t->name, "its storage is not in the file");
    if (elements == 0)
        last = 0;
    else if (last >= s.bytes / size || elements > s.bytes / size)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s' of %zu elements up to number %zu has "
                       "a storage of %zu bytes", f->path, t->name, elements, last, s.bytes);
    t->bytes = elements * size;
    t->data = s.data;
    if (elements == 0)
        return KRON_OK;
    t->data = s.data + (size_t)v->item[1]->i * size;
    return plain ? KRON_OK : gather(x, t, t->data, stride, elements);
}

/* --- the dictionary --- */

static int64_t count_tensors(const struct pickle_value *v)
{
    int64_t n = 0;

    for (int64_t i = 0; v != NULL && v->kind == PICKLE_DICT && i + 1 < v->n; i += 2)
        n += v->item[i]->kind == PICKLE_TEXT && v->item[i + 1]->kind == PICKLE_TENSOR;
    return n;
}

/* The tensors of a checkpoint are often one value among the settings of a training. */
static const struct pickle_value *find_tensors(const struct pickle_value *top)
{
    static const char *const keys[] = {"state_dict", "model", "module", "params_ema", "params",
                                       "string_to_param"};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const struct pickle_value *v = pickle_find(top, keys[i]);
        if (count_tensors(v) > 0)
            return v;
    }
    return top;
}

static kron_status read_tensors(struct torch *x, const struct pickle_value *top)
{
    const struct pickle_value *v = find_tensors(top);
    struct st_file *f = x->f;
    int64_t n = count_tensors(v);

    if (n == 0)
        return err_set(KRON_ERR_FORMAT, "%s: a pickle without a dictionary of tensors", f->path);
    f->tensors = arena_alloc(&f->mem, (size_t)n * sizeof *f->tensors);
    if (f->tensors == NULL)
        return f->mem.status;
    for (int64_t i = 0; i + 1 < v->n; i += 2) {
        const struct pickle_value *key = v->item[i];
        struct tensor *t = &f->tensors[f->n];
        if (key->kind != PICKLE_TEXT || v->item[i + 1]->kind != PICKLE_TENSOR)
            continue;
        if (key->len > 4096 || (key->len > 0 && memchr(key->text, '\0', key->len) != NULL))
            return err_set(KRON_ERR_FORMAT, "%s: the name of a tensor is too long or has a NUL",
                           f->path);
        t->name = arena_printf(&f->mem, "%.*s", (int)key->len, key->text);
        if (t->name == NULL)
            return f->mem.status;
        KRON_TRY(read_tensor(x, v->item[i + 1], t));
        f->n++;
    }
    return st_index(f);
}

/* --- zip archives --- */

static const struct zip_entry *find_entry(const struct torch *x, const char *name)
{
    char full[512];
    const struct name_slot *slot;

    snprintf(full, sizeof full, "%.200s/%s", x->folder, name);
    slot = name_map_at(&x->map, full, strlen(full));
    return slot->key != NULL ? &x->entries[slot->value] : NULL;
}

static kron_status list_entries(struct torch *x)
{
    struct st_file *f = x->f;
    int64_t n = 0;

    KRON_TRY(zip_list(f->bytes, f->n_bytes, f->path, &f->mem, &x->entries, &n));
    KRON_TRY(name_map_create(&x->map, (size_t)n));
    for (int64_t i = 0; i < n; i++) {
        const char *name = x->entries[i].name;
        size_t len = strlen(name);
        *name_map_at(&x->map, name, len) = (struct name_slot){name, i};
        if (x->folder == NULL && str_ends(name, "/data.pkl") && len - 9 <= 200)
            x->folder = arena_printf(&f->mem, "%.*s", (int)(len - 9), name);
    }
    KRON_TRY(f->mem.status);
    if (x->folder == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: a zip archive without data.pkl, not one of "
                       "torch.save()", f->path);
    return KRON_OK;
}

static kron_status read_zip(struct torch *x, struct pickle_value **top)
{
    const struct zip_entry *data, *order;

    KRON_TRY(list_entries(x));
    data = find_entry(x, "data.pkl");
    order = find_entry(x, "byteorder");
    if (order != NULL && order->bytes >= 3 && memcmp(order->data, "big", 3) == 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: big-endian storages, expected little-endian",
                       x->f->path);
    x->pickle.bytes = data->data;
    x->pickle.n_bytes = data->bytes;
    if (data->bytes > max_pickle)
        return err_set(KRON_ERR_FORMAT, "%s: a pickle of %zu bytes, expected at most %zu",
                       x->f->path, data->bytes, max_pickle);
    return pickle_read(&x->pickle, top);
}

/* --- the older layout --- */

/* Makes room for a storage for each key that is referred to: the number of its reference. */
static kron_status list_storages(struct torch *x)
{
    size_t n = (size_t)x->pickle.n_outside;

    x->storages = arena_alloc(&x->f->mem, (n + 1) * sizeof *x->storages);
    if (x->storages == NULL)
        return x->f->mem.status;
    KRON_TRY(name_map_create(&x->map, n));
    for (size_t i = 0; i < n; i++) {
        const struct pickle_value *key = NULL;
        KRON_TRY(check_reference(x, x->pickle.outside[i]));
        key = x->pickle.outside[i]->item[2];
        const char *name = arena_printf(&x->f->mem, "%.*s", (int)key->len, key->text);
        if (name == NULL)
            return x->f->mem.status;
        struct name_slot *slot = name_map_at(&x->map, name, strlen(name));
        if (slot->key == NULL)
            *slot = (struct name_slot){name, (int64_t)i};
    }
    return KRON_OK;
}

/* The size of an element is known from the reference. */
static kron_status storage_bytes(const struct torch *x, const struct pickle_value *reference,
                                 size_t *bytes)
{
    const struct pickle_value *class = reference->item[1];
    enum dtype type;

    if (!find_type(class, true, &type))
        return err_set(KRON_ERR_UNSUPPORTED, "%s: storages of the class %.*s", x->f->path,
                       class->len < 100 ? (int)class->len : 100, class->text);
    if (!size_mul((size_t)reference->item[4]->i, (size_t)dtype_info(type)->bytes, bytes))
        *bytes = SIZE_MAX;
    return KRON_OK;
}

/* Each: its number of elements in eight bytes, then the elements. */
static kron_status read_storage(struct torch *x, const struct pickle_value *key)
{
    struct pickle *p = &x->pickle;
    const struct pickle_value *reference;
    const struct name_slot *slot;
    char name[256];
    size_t bytes = 0;
    uint64_t n = 0;

    if (key->kind != PICKLE_TEXT || key->len >= sizeof name)
        return err_set(KRON_ERR_FORMAT, "%s: the key of a storage is no string", x->f->path);
    snprintf(name, sizeof name, "%.*s", (int)key->len, key->text);
    slot = name_map_at(&x->map, name, strlen(name));
    if (slot->key == NULL)
        return err_set(KRON_ERR_FORMAT, "%s: nothing refers to storage '%s'", x->f->path, name);
    reference = p->outside[slot->value];
    KRON_TRY(storage_bytes(x, reference, &bytes));
    if (p->n_bytes - p->at < 8 || bytes > p->n_bytes - p->at - 8)
        return err_set(KRON_ERR_FORMAT, "%s: storage '%s' has %zu bytes, more than are there: is "
                       "the file truncated?", x->f->path, name, bytes);
    for (int k = 0; k < 8; k++)
        n |= (uint64_t)p->bytes[p->at + (size_t)k] << 8 * k;
    if (n != (uint64_t)reference->item[4]->i)
        return err_set(KRON_ERR_FORMAT, "%s: storage '%s' has %llu elements, expected %lld",
                       x->f->path, name, (unsigned long long)n, (long long)reference->item[4]->i);
    x->storages[slot->value] = (struct storage){p->bytes + p->at + 8, bytes};
    p->at += 8 + bytes;
    return KRON_OK;
}

static kron_status read_older(struct torch *x, struct pickle_value **top)
{
    struct pickle_value *number, *version, *system = NULL, *keys = NULL;
    const struct pickle_value *little;

    x->pickle.bytes = x->f->bytes;
    x->pickle.n_bytes = x->f->n_bytes;
    KRON_TRY(pickle_read(&x->pickle, &number));
    KRON_TRY(pickle_read(&x->pickle, &version));
    KRON_TRY(pickle_read(&x->pickle, &system));
    KRON_TRY(pickle_read(&x->pickle, top));
    KRON_TRY(pickle_read(&x->pickle, &keys));
    little = pickle_find(system, "little_endian");
    if (little != NULL && little->i == 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: big-endian storages, expected little-endian",
                       x->f->path);
    if (keys->kind != PICKLE_LIST)
        return err_set(KRON_ERR_FORMAT, "%s: the list of its storages is missing", x->f->path);
    KRON_TRY(list_storages(x));
    for (int64_t i = 0; i < keys->n; i++)
        KRON_TRY(read_storage(x, keys->item[i]));
    return KRON_OK;
}

/* --- interface --- */

static bool is_zip(const uint8_t *p, size_t bytes)
{
    return bytes >= 4 && memcmp(p, "PK\3\4", 4) == 0;
}

bool torch_is(const void *data, size_t bytes)
{
    const uint8_t *p = data;

    return is_zip(p, bytes) ||
           (bytes >= sizeof magic && p[0] == magic[0] && memcmp(p + 2, magic + 2, 13) == 0);
}

kron_status torch_read(struct st_file *f)
{
    struct torch x = {.f = f, .pickle = {.name = f->path, .mem = &f->mem}};
    struct pickle_value *top = NULL;
    kron_status status = is_zip(f->bytes, f->n_bytes) ? read_zip(&x, &top) : read_older(&x, &top);

    if (status == KRON_OK)
        status = read_tensors(&x, top);
    pickle_fini(&x.pickle);
    name_map_free(&x.map);
    return status;
}
