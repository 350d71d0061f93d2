/* SPDX-License-Identifier: MIT
 * Memory: one door for all allocation, so that limits and failures are handled in one place. */
#define _DEFAULT_SOURCE /* madvise */
#include "base/base.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    ALIGN = 64,
    LARGE = 4 << 20,     /* from here on in the system's large pages, if it has some */
    LARGE_PAGE = 2 << 20,
};

/* Test switch; counts down over all threads. Negative: off. */
static long fail_countdown = -1;

void mem_fail_after(long n)
{
    __atomic_store_n(&fail_countdown, n > 0 ? n - 1 : -1, __ATOMIC_SEQ_CST);
}

/* At 0 it stays: that allocation and all after it fail. */
static bool must_fail(void)
{
    long left = __atomic_load_n(&fail_countdown, __ATOMIC_SEQ_CST);

    if (left < 0)
        return false;
    if (left == 0)
        return true;
    __atomic_store_n(&fail_countdown, left - 1, __ATOMIC_SEQ_CST);
    return false;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

kron_status mem_alloc_raw(void **out, size_t bytes, const char *what)
{
    size_t align = bytes >= LARGE ? LARGE_PAGE : ALIGN;

    *out = NULL;
    /* aligned_alloc() wants whole multiples: AddressSanitizer would miss a step over the end. */
    if (must_fail() || posix_memalign(out, align, bytes > 0 ? bytes : 1) != 0)
        return err_set(KRON_ERR_MEMORY, "out of memory: %.1f MB for %s", (double)bytes / 1e6, what);
    if (bytes >= LARGE) /* a hint: scratch is read in many streams, each in pages of its own */
        (void)madvise(*out, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
    return KRON_OK;
}

kron_status mem_alloc(void **out, size_t bytes, const char *what)
{
    KRON_TRY(mem_alloc_raw(out, bytes, what));
    memset(*out, 0, bytes);
    return KRON_OK;
}

kron_status mem_alloc_n(void **out, size_t n, size_t size, const char *what)
{
    size_t bytes;

    *out = NULL;
    if (!size_mul(n, size, &bytes))
        return err_set(KRON_ERR_MEMORY, "out of memory: %zu times %zu bytes for %s", n, size, what);
    return mem_alloc(out, bytes, what);
}

kron_status mem_floats(float **out, int64_t n, const char *what)
{
    void *p;

    KRON_ASSERT(n >= 0);
    kron_status status = mem_alloc_n(&p, (size_t)n, sizeof(float), what);
    *out = p;
    return status;
}

kron_status mem_grow(void **p, size_t old_n, size_t new_n, size_t size, const char *what)
{
    void *q;

    KRON_TRY(mem_alloc_n(&q, new_n, size, what));
    if (old_n > 0)
        memcpy(q, *p, old_n * size);
    mem_free(*p);
    *p = q;
    return KRON_OK;
}

void mem_free(void *p)
{
    free(p);
}

/* --- arena --- */

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(16) unsigned char data[];
};

#if defined(__SANITIZE_ADDRESS__) /* gcc */
#define OWN_BLOCKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) /* clang */
#define OWN_BLOCKS 1
#endif
#endif

#if defined(OWN_BLOCKS) /* every piece an allocation, of exactly its size */
static const bool own_blocks = true;
static const size_t block_bytes = 0, granule = 1;
#else
static const bool own_blocks = false;
static const size_t block_bytes = 16384, granule = 16;
#endif

static struct arena_block *new_block(struct arena *a, size_t bytes)
{
    size_t cap = bytes > block_bytes ? bytes : block_bytes, whole;
    void *p = NULL;
    kron_status status = size_add(cap, sizeof(struct arena_block), &whole)
                             ? mem_alloc(&p, whole, "an arena")
                             : err_set(KRON_ERR_MEMORY, "out of memory: an arena");
    struct arena_block *b = p;

    if (status != KRON_OK) {
        a->status = status;
        return NULL;
    }
    b->cap = cap;
    b->next = a->blocks;
    a->blocks = b;
    return b;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    size_t rounded;
    struct arena_block *b = a->blocks;
    void *p;

    if (a->status != KRON_OK)
        return NULL;
    if (!size_add(bytes, granule - 1, &rounded)) {
        a->status = err_set(KRON_ERR_MEMORY, "out of memory: %zu bytes", bytes);
        return NULL;
    }
    rounded &= ~(granule - 1);
    if (b == NULL || own_blocks || b->cap - b->used < rounded)
        b = new_block(a, rounded);
    if (b == NULL)
        return NULL;
    p = b->data + b->used;
    b->used += rounded;
    return p;
}

char *arena_strdup(struct arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = arena_alloc(a, n);

    return p != NULL ? memcpy(p, s, n) : NULL;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    int n;
    char *p;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    KRON_ASSERT(n >= 0);
    p = arena_alloc(a, (size_t)n + 1);
    if (p == NULL)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

void arena_free(struct arena *a)
{
    while (a->blocks != NULL) {
        struct arena_block *next = a->blocks->next;
        mem_free(a->blocks);
        a->blocks = next;
    }
    a->status = KRON_OK;
}
