/* SPDX-License-Identifier: MIT
 * The stack machine of Python's pickletools, for the opcodes that torch.save() writes. What in
 * Python would be a call is looked up in a short list of names that stand for data. */
#include "file/pickle.h"
#include <string.h>

enum call {
    CALL_DICT,
    CALL_TENSOR,
    CALL_FIRST,  /* is its first argument */
    CALL_OBJECT  /* makes something that holds no tensors */
};

static const struct {
    const char *name;
    enum call call;
} calls[] = {
    {"collections.OrderedDict", CALL_DICT},
    {"torch.nn.modules.container.ParameterDict", CALL_DICT},
    {"torch._utils._rebuild_tensor", CALL_TENSOR},
    {"torch._utils._rebuild_tensor_v2", CALL_TENSOR},
    {"torch._utils._rebuild_tensor_v3", CALL_TENSOR},
    {"torch._utils._rebuild_parameter", CALL_FIRST},
    {"torch._utils._rebuild_parameter_with_state", CALL_FIRST},
    /* Lightning's checkpoints hold numbers of numpy beside their tensors. */
    {"numpy.core.multiarray.scalar", CALL_OBJECT},
    {"numpy._core.multiarray.scalar", CALL_OBJECT},
    {"numpy.core.multiarray._reconstruct", CALL_OBJECT},
    {"numpy._core.multiarray._reconstruct", CALL_OBJECT},
    {"numpy.dtype", CALL_OBJECT},
    {"_codecs.encode", CALL_OBJECT},
    {"__builtin__.set", CALL_OBJECT},
    {"builtins.set", CALL_OBJECT},
    {"torch.device", CALL_OBJECT},
    {"torch.Size", CALL_OBJECT},
    {"argparse.Namespace", CALL_OBJECT},
};

/* One reading of one pickle. */
struct machine {
    struct pickle *p;
    struct pickle_value **stack, **memo;
    size_t n_stack, cap_stack, cap_memo, n_memo;
};

/* --- errors --- */

static kron_status bad(const struct machine *m, const char *what)
{
    return err_set(KRON_ERR_FORMAT, "%s: byte %zu of a pickle: %s", m->p->name, m->p->at, what);
}

/* --- bytes --- */

static kron_status take(struct machine *m, size_t n, const uint8_t **out)
{
    struct pickle *p = m->p;

    if (n > p->n_bytes - p->at)
        return bad(m, "it ends within a value: is the file truncated?");
    *out = p->bytes + p->at;
    p->at += n;
    return KRON_OK;
}

static kron_status take_number(struct machine *m, int bytes, uint64_t *out)
{
    const uint8_t *b = NULL;

    KRON_TRY(take(m, (size_t)bytes, &b));
    *out = 0;
    for (int i = 0; i < bytes; i++)
        *out |= (uint64_t)b[i] << 8 * i;
    return KRON_OK;
}

/* --- values, stack, memo --- */

static kron_status make(struct machine *m, enum pickle_kind kind, struct pickle_value **out)
{
    *out = arena_alloc(m->p->mem, sizeof **out);
    if (*out == NULL)
        return m->p->mem->status;
    (*out)->kind = kind;
    return KRON_OK;
}

static kron_status add(struct machine *m, struct pickle_value *to, struct pickle_value *v)
{
    if (to->kind == PICKLE_OBJECT)
        return KRON_OK;
    if (to->n == to->cap) {
        int64_t cap = to->cap > 0 ? 2 * to->cap : 8;
        struct pickle_value **item = arena_alloc(m->p->mem, (size_t)cap * sizeof(void *));
        if (item == NULL)
            return m->p->mem->status;
        if (to->n > 0)
            memcpy(item, to->item, (size_t)to->n * sizeof *item);
        to->item = item;
        to->cap = cap;
    }
    to->item[to->n++] = v;
    return KRON_OK;
}

static kron_status push(struct machine *m, struct pickle_value *v)
{
    if (m->n_stack == m->cap_stack) {
        size_t cap = m->cap_stack > 0 ? 2 * m->cap_stack : 64;
        void *list = m->stack;
        KRON_TRY(mem_grow(&list, m->cap_stack, cap, sizeof *m->stack, "a pickle's stack"));
        m->stack = list;
        m->cap_stack = cap;
    }
    m->stack[m->n_stack++] = v;
    return KRON_OK;
}

static kron_status push_new(struct machine *m, enum pickle_kind kind, int64_t i)
{
    struct pickle_value *v = NULL;

    KRON_TRY(make(m, kind, &v));
    v->i = i;
    return push(m, v);
}

/* The topmost value; marks are none. */
static kron_status top(struct machine *m, struct pickle_value **out)
{
    if (m->n_stack == 0 || m->stack[m->n_stack - 1]->kind == PICKLE_MARK)
        return bad(m, "its stack is empty");
    *out = m->stack[m->n_stack - 1];
    return KRON_OK;
}

static kron_status pop(struct machine *m, struct pickle_value **out)
{
    KRON_TRY(top(m, out));
    m->n_stack--;
    return KRON_OK;
}

/* Two values, the one that was pushed first in *first. */
static kron_status pop_two(struct machine *m, struct pickle_value **first,
                           struct pickle_value **second)
{
    KRON_TRY(pop(m, second));
    return pop(m, first);
}

/* The place of the topmost mark. What is above it stays in the array after the stack is cut. */
static kron_status find_mark(struct machine *m, size_t *out)
{
    size_t i = m->n_stack;

    while (i > 0 && m->stack[i - 1]->kind != PICKLE_MARK)
        i--;
    if (i == 0)
        return bad(m, "a mark is missing");
    *out = i - 1;
    return KRON_OK;
}

static kron_status put(struct machine *m, uint64_t index)
{
    struct pickle_value *v = NULL;

    KRON_TRY(top(m, &v));
    if (index >= m->p->n_bytes)
        return bad(m, "more values to remember than bytes");
    if (index >= m->cap_memo) {
        size_t cap = m->cap_memo > 0 ? m->cap_memo : 64;
        void *list = m->memo;
        while (cap <= index)
            cap *= 2;
        KRON_TRY(mem_grow(&list, m->cap_memo, cap, sizeof *m->memo, "a pickle's memo"));
        m->memo = list;
        m->cap_memo = cap;
    }
    m->memo[index] = v;
    m->n_memo++;
    return KRON_OK;
}

static kron_status get(struct machine *m, uint64_t index)
{
    if (index >= m->cap_memo || m->memo[index] == NULL)
        return bad(m, "a value that was not remembered");
    return push(m, m->memo[index]);
}

/* --- opcodes --- */

static kron_status push_text(struct machine *m, int length_bytes)
{
    struct pickle_value *v = NULL;
    const uint8_t *b = NULL;
    uint64_t n = 0;

    KRON_TRY(take_number(m, length_bytes, &n));
    if (n > m->p->n_bytes)
        return bad(m, "a string longer than the file: is it truncated?");
    KRON_TRY(take(m, (size_t)n, &b));
    KRON_TRY(make(m, PICKLE_TEXT, &v));
    v->text = (const char *)b;
    v->len = (size_t)n;
    return push(m, v);
}

/* Two's complement of any length. */
static kron_status push_long(struct machine *m, int length_bytes)
{
    struct pickle_value *v = NULL;
    const uint8_t *b = NULL;
    uint64_t n = 0, bits;

    KRON_TRY(take_number(m, length_bytes, &n));
    if (n > m->p->n_bytes)
        return bad(m, "a number longer than the file: is it truncated?");
    KRON_TRY(take(m, (size_t)n, &b));
    KRON_TRY(make(m, PICKLE_INT, &v));
    v->text = (const char *)b;
    v->len = (size_t)n;
    if (n > 0 && n <= 8) {
        bits = b[n - 1] >= 0x80 ? UINT64_MAX : 0;
        for (size_t i = (size_t)n; i > 0; i--)
            bits = bits << 8 | b[i - 1];
        v->i = (int64_t)bits;
    }
    return push(m, v);
}

static kron_status push_int(struct machine *m, int bytes)
{
    uint64_t v = 0;

    KRON_TRY(take_number(m, bytes, &v));
    return push_new(m, PICKLE_INT, bytes == 4 ? (int32_t)v : (int64_t)v);
}

static kron_status take_line(struct machine *m, const char **s, size_t *len)
{
    struct pickle *p = m->p;
    const uint8_t *end = memchr(p->bytes + p->at, '\n', p->n_bytes - p->at);

    if (end == NULL)
        return bad(m, "a name without an end: is the file truncated?");
    *s = (const char *)p->bytes + p->at;
    *len = (size_t)(end - (p->bytes + p->at));
    p->at += *len + 1;
    return KRON_OK;
}

static kron_status push_global(struct machine *m, const char *module, size_t module_len,
                               const char *name, size_t name_len)
{
    struct pickle_value *v = NULL;
    size_t len = module_len + 1 + name_len;
    char *text = arena_alloc(m->p->mem, len);

    if (text == NULL)
        return m->p->mem->status;
    memcpy(text, module, module_len);
    text[module_len] = '.';
    memcpy(text + module_len + 1, name, name_len);
    KRON_TRY(make(m, PICKLE_GLOBAL, &v));
    v->text = text;
    v->len = len;
    return push(m, v);
}

static kron_status global(struct machine *m)
{
    const char *module = NULL, *name = NULL;
    size_t module_len = 0, name_len = 0;

    KRON_TRY(take_line(m, &module, &module_len));
    KRON_TRY(take_line(m, &name, &name_len));
    return push_global(m, module, module_len, name, name_len);
}

static kron_status stack_global(struct machine *m)
{
    struct pickle_value *name = NULL, *module = NULL;

    KRON_TRY(pop_two(m, &module, &name));
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        return bad(m, "a name that is no string");
    return push_global(m, module->text, module->len, name->text, name->len);
}

/* The last n values, or those above the mark (n < 0), as one. */
static kron_status collect(struct machine *m, enum pickle_kind kind, int n)
{
    struct pickle_value *v = NULL;
    size_t from = 0;

    if (n < 0)
        KRON_TRY(find_mark(m, &from));
    else if (m->n_stack < (size_t)n)
        return bad(m, "its stack is empty");
    else
        from = m->n_stack - (size_t)n;
    KRON_TRY(make(m, kind, &v));
    for (size_t i = from + (n < 0); i < m->n_stack; i++) {
        if (m->stack[i]->kind == PICKLE_MARK)
            return bad(m, "a mark within a tuple");
        KRON_TRY(add(m, v, m->stack[i]));
    }
    m->n_stack = from;
    return push(m, v);
}

/* Adds the last n values, or those above the mark (n < 0), to the container below. */
static kron_status extend(struct machine *m, enum pickle_kind kind, int n)
{
    struct pickle_value *to = NULL;
    size_t from = 0, first, end = m->n_stack;

    if (n < 0)
        KRON_TRY(find_mark(m, &from));
    else if (m->n_stack < (size_t)n)
        return bad(m, "its stack is empty");
    else
        from = m->n_stack - (size_t)n;
    first = from + (n < 0);
    m->n_stack = from;
    KRON_TRY(top(m, &to));
    if (to->kind != kind && to->kind != PICKLE_OBJECT)
        return bad(m, "items are added to what is no container");
    if (kind == PICKLE_DICT && (end - first) % 2 != 0)
        return bad(m, "a key without a value");
    for (size_t i = first; i < end; i++) {
        if (m->stack[i]->kind == PICKLE_MARK)
            return bad(m, "a mark within a container");
        KRON_TRY(add(m, to, m->stack[i]));
    }
    return KRON_OK;
}

static kron_status perform(struct machine *m, enum call call, const struct pickle_value *function,
                           struct pickle_value *args)
{
    struct pickle_value *v = NULL;

    if (call == CALL_DICT && args->n > 0) /* Python 2's way; torch for Python 3 adds items */
        return bad(m, "a dictionary made from arguments");
    if (call == CALL_FIRST)
        return args->n > 0 ? push(m, args->item[0]) : bad(m, "a call without arguments");
    if (call == CALL_TENSOR) {
        KRON_TRY(make(m, PICKLE_TENSOR, &v));
        v->text = function->text;
        v->len = function->len;
        v->item = args->item;
        v->n = args->n;
        return push(m, v);
    }
    KRON_TRY(make(m, call == CALL_DICT ? PICKLE_DICT : PICKLE_OBJECT, &v));
    return push(m, v);
}

static kron_status reduce(struct machine *m)
{
    struct pickle_value *function = NULL, *args = NULL;

    KRON_TRY(pop_two(m, &function, &args));
    if (function->kind != PICKLE_GLOBAL || args->kind != PICKLE_LIST)
        return bad(m, "a call of what is no function");
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (pickle_is_text(function, calls[i].name))
            return perform(m, calls[i].call, function, args);
    return err_set(KRON_ERR_UNSUPPORTED, "%s: a pickle that calls %.*s: only tensors and plain "
                   "data are read", m->p->name, function->len < 100 ? (int)function->len : 100,
                   function->text);
}

/* State of an object: that of a dictionary is torch's _metadata, of no use here, or what a
 * ParameterDict holds. */
static kron_status build(struct machine *m)
{
    struct pickle_value *state = NULL, *v = NULL;
    const struct pickle_value *held;

    KRON_TRY(pop(m, &state));
    KRON_TRY(top(m, &v));
    held = pickle_find(state, "_parameters");
    if (v->kind == PICKLE_DICT && held != NULL && held->kind == PICKLE_DICT) {
        v->item = held->item;
        v->n = v->cap = held->n; /* what is added to v goes into a copy */
    }
    if (v->kind == PICKLE_DICT || v->kind == PICKLE_OBJECT || v->kind == PICKLE_TENSOR)
        return KRON_OK;
    return bad(m, "state for what is no object");
}

static kron_status outside(struct machine *m)
{
    struct pickle *p = m->p;
    struct pickle_value *id = NULL, *v = NULL;

    KRON_TRY(pop(m, &id));
    if (id->kind != PICKLE_LIST)
        return bad(m, "a reference that is no tuple");
    KRON_TRY(make(m, PICKLE_OUTSIDE, &v));
    v->item = id->item;
    v->n = id->n;
    if (p->n_outside == p->cap_outside) {
        int64_t cap = p->cap_outside > 0 ? 2 * p->cap_outside : 64;
        void *list = p->outside;
        KRON_TRY(mem_grow(&list, (size_t)p->cap_outside, (size_t)cap, sizeof *p->outside,
                          "a pickle's references"));
        p->outside = list;
        p->cap_outside = cap;
    }
    p->outside[p->n_outside++] = v;
    return push(m, v);
}

static kron_status put_or_get(struct machine *m, int bytes, bool is_put)
{
    uint64_t index = 0;

    KRON_TRY(take_number(m, bytes, &index));
    return is_put ? put(m, index) : get(m, index);
}

static kron_status skip(struct machine *m, size_t n)
{
    const uint8_t *b = NULL;

    return take(m, n, &b);
}

static kron_status drop(struct machine *m, bool to_mark)
{
    if (to_mark)
        return find_mark(m, &m->n_stack);
    if (m->n_stack == 0)
        return bad(m, "its stack is empty");
    m->n_stack--;
    return KRON_OK;
}

static kron_status duplicate(struct machine *m)
{
    struct pickle_value *v = NULL;

    KRON_TRY(top(m, &v));
    return push(m, v);
}

/* Longer than others: one line for each opcode, by the letters that Python gives them. */
static kron_status step(struct machine *m, uint8_t op)
{
    switch (op) {
    case 0x80: return skip(m, 1);                       /* PROTO */
    case 0x95: return skip(m, 8);                       /* FRAME */
    case 'N': return push_new(m, PICKLE_NONE, 0);
    case 0x88: return push_new(m, PICKLE_BOOL, 1);      /* NEWTRUE */
    case 0x89: return push_new(m, PICKLE_BOOL, 0);      /* NEWFALSE */
    case 'J': return push_int(m, 4);                    /* BININT, and its shorter forms */
    case 'K': return push_int(m, 1);
    case 'M': return push_int(m, 2);
    case 0x8a: return push_long(m, 1);                  /* LONG1 */
    case 0x8b: return push_long(m, 4);                  /* LONG4 */
    case 'G':                                           /* BINFLOAT */
        KRON_TRY(skip(m, 8));
        return push_new(m, PICKLE_FLOAT, 0);
    case 'X': case 'T': case 'B': return push_text(m, 4);    /* BINUNICODE, -STRING, -BYTES */
    case 0x8c: case 'U': case 'C': return push_text(m, 1);   /* the same, short */
    case 0x8d: case 0x8e: case 0x96: return push_text(m, 8); /* the same, long; BYTEARRAY8 */
    case 'c': return global(m);
    case 0x93: return stack_global(m);
    case ')': return collect(m, PICKLE_LIST, 0);        /* EMPTY_TUPLE, TUPLE1 to 3, TUPLE */
    case 0x85: return collect(m, PICKLE_LIST, 1);
    case 0x86: return collect(m, PICKLE_LIST, 2);
    case 0x87: return collect(m, PICKLE_LIST, 3);
    case 't': case 'l': case 0x91: return collect(m, PICKLE_LIST, -1); /* LIST, FROZENSET */
    case ']': case 0x8f: return collect(m, PICKLE_LIST, 0); /* EMPTY_LIST, EMPTY_SET */
    case '}': return collect(m, PICKLE_DICT, 0);
    case 'a': return extend(m, PICKLE_LIST, 1);         /* APPEND, APPENDS, ADDITEMS */
    case 'e': case 0x90: return extend(m, PICKLE_LIST, -1);
    case 's': return extend(m, PICKLE_DICT, 2);         /* SETITEM, SETITEMS */
    case 'u': return extend(m, PICKLE_DICT, -1);
    case '(': return push_new(m, PICKLE_MARK, 0);
    case '0': return drop(m, false);                    /* POP, POP_MARK */
    case '1': return drop(m, true);
    case '2': return duplicate(m);
    case 'q': return put_or_get(m, 1, true);            /* BINPUT, LONG_BINPUT, MEMOIZE */
    case 'r': return put_or_get(m, 4, true);
    case 0x94: return put(m, m->n_memo);
    case 'h': return put_or_get(m, 1, false);           /* BINGET, LONG_BINGET */
    case 'j': return put_or_get(m, 4, false);
    case 'R': case 0x81: return reduce(m);              /* REDUCE, NEWOBJ */
    case 'b': return build(m);
    case 'Q': return outside(m);                        /* BINPERSID */
    }
    return err_set(KRON_ERR_UNSUPPORTED, "%s: byte %zu of a pickle: opcode 0x%02x, which no "
                   "dictionary of tensors needs", m->p->name, m->p->at - 1, op);
}

static kron_status run(struct machine *m, struct pickle_value **out)
{
    const uint8_t *op = NULL;

    for (;;) {
        KRON_TRY(take(m, 1, &op));
        if (*op == '.')
            return pop(m, out);
        KRON_TRY(step(m, *op));
    }
}

kron_status pickle_read(struct pickle *p, struct pickle_value **out)
{
    struct machine m = {.p = p};
    kron_status status = run(&m, out);

    mem_free(m.stack);
    mem_free(m.memo);
    return status;
}

void pickle_fini(struct pickle *p)
{
    mem_free(p->outside);
    p->outside = NULL;
    p->n_outside = p->cap_outside = 0;
}

bool pickle_is_text(const struct pickle_value *v, const char *text)
{
    bool has_text = v->kind == PICKLE_TEXT || v->kind == PICKLE_GLOBAL || v->kind == PICKLE_TENSOR;

    return has_text && v->len == strlen(text) && memcmp(v->text, text, v->len) == 0;
}

const struct pickle_value *pickle_find(const struct pickle_value *v, const char *key)
{
    for (int64_t i = 0; v->kind == PICKLE_DICT && i + 1 < v->n; i += 2)
        if (pickle_is_text(v->item[i], key))
            return v->item[i + 1];
    return NULL;
}
