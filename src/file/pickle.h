/* SPDX-License-Identifier: MIT
 * Python's pickles, as far as dictionaries of tensors use them: read as data, never run. */
#ifndef FILE_PICKLE_H
#define FILE_PICKLE_H
#include "base/base.h"

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,    /* i */
    PICKLE_INT,     /* i; 0 where it has over 64 bits: then text has its bytes, the lowest first */
    PICKLE_FLOAT,   /* of no use to anybody here */
    PICKLE_TEXT,    /* strings and bytes: text */
    PICKLE_LIST,    /* lists, tuples and sets: item */
    PICKLE_DICT,    /* item: keys and values in turns */
    PICKLE_GLOBAL,  /* a class or function of Python: text is "module.name" */
    PICKLE_OUTSIDE, /* a reference to what lies outside the pickle: item */
    PICKLE_TENSOR,  /* a call that makes a tensor: text is the function, item its arguments */
    PICKLE_OBJECT,  /* what a harmless call would make; its content is dropped */
    PICKLE_MARK     /* of the reader alone */
};

/* May be part of several others, or of itself: do not walk without a limit. */
struct pickle_value {
    enum pickle_kind kind;
    int64_t i;
    const char *text; /* a view of the pickle, or of the arena; no NUL at its end */
    size_t len;
    struct pickle_value **item;
    int64_t n, cap;
};

struct pickle {
    const uint8_t *bytes;
    size_t n_bytes;
    size_t at;        /* where the next read begins: several pickles may follow each other */
    const char *name; /* for messages */
    struct arena *mem;
    struct pickle_value **outside; /* every reference to what lies outside, in order */
    int64_t n_outside, cap_outside;
};

/* Reads one pickle and moves `at` behind it. A call of anything but what tensors need is
 * KRON_ERR_UNSUPPORTED and named; damage is KRON_ERR_FORMAT. pickle_fini() after the last. */
kron_status pickle_read(struct pickle *p, struct pickle_value **out);
void pickle_fini(struct pickle *p);

bool pickle_is_text(const struct pickle_value *v, const char *text);
/* The value of a key of a dictionary, NULL if it is absent or v no dictionary. */
const struct pickle_value *pickle_find(const struct pickle_value *v, const char *key);

#endif
