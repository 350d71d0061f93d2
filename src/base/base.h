/* SPDX-License-Identifier: MIT
 * base/ - what every room stands on: errors, memory, strings, log, clock, files.
 * Knows no tensor. Functions that can fail return a kron_status and leave a
 * sentence for kron_error_detail(); the others cannot fail. */
#ifndef BASE_BASE_H
#define BASE_BASE_H
#include <kron/log.h>
#include <kron/status.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(__GNUC__)
#define KRON_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define KRON_PRINTF(f, a)
#endif

/* --- errors (status.c) --- */

/* Keeps the sentence for kron_error_detail() and returns `status`. */
kron_status err_set(kron_status status, const char *fmt, ...) KRON_PRINTF(2, 3);
/* Puts "prefix: " before the sentence that the last err_set() of this thread left. */
kron_status err_prefix(kron_status status, const char *fmt, ...) KRON_PRINTF(2, 3);

#define KRON_TRY(expr)                       \
    do {                                     \
        kron_status try_status_ = (expr);    \
        if (try_status_ != KRON_OK)          \
            return try_status_;              \
    } while (0)

/* A broken invariant of our own, never bad input. Stays in release builds. */
#define KRON_ASSERT(cond) ((cond) ? (void)0 : assert_fail(#cond, __FILE__, __LINE__))
_Noreturn void assert_fail(const char *cond, const char *file, int line);

/* --- memory (mem.c) --- */

/* All allocation of the library. Memory is zeroed and aligned to 64 bytes. 0 bytes give a
 * valid pointer. On failure: KRON_ERR_MEMORY, naming `what` and the size. */
kron_status mem_alloc(void **out, size_t bytes, const char *what);
/* The same with anything in it: memory that is large and written before it is read. */
kron_status mem_alloc_raw(void **out, size_t bytes, const char *what);
/* As mem_alloc for n elements of `size` bytes, refusing an overflowing product. */
kron_status mem_alloc_n(void **out, size_t n, size_t size, const char *what);
/* n floats; n is a count of our own, never negative. */
kron_status mem_floats(float **out, int64_t n, const char *what);
/* Grows *p from old_n to new_n elements, the new ones zero. On failure *p stays as it was. */
kron_status mem_grow(void **p, size_t old_n, size_t new_n, size_t size, const char *what);
void mem_free(void *p); /* NULL is fine */
/* Makes the n-th allocation from now (1 = the next) and all after it fail; 0 switches it off.
 * For tests of out-of-memory paths. */
void mem_fail_after(long n);

/* Checked arithmetic: false on overflow (then *out is undefined). */
bool size_add(size_t a, size_t b, size_t *out);
bool size_mul(size_t a, size_t b, size_t *out);

/* Bump allocator: one lifetime, one free. Zeroed, 16-byte aligned. Every piece is an allocation
 * of its own under AddressSanitizer, so that overruns inside an arena are seen. */
struct arena {
    struct arena_block *blocks;
    kron_status status; /* first failure; callers may check once after many calls */
};
void *arena_alloc(struct arena *a, size_t bytes); /* NULL on failure, a->status set */
char *arena_strdup(struct arena *a, const char *s);
char *arena_printf(struct arena *a, const char *fmt, ...) KRON_PRINTF(2, 3);
void arena_free(struct arena *a); /* frees all, leaves an empty usable arena */

/* --- strings (str.c) --- */

/* Growable text. Start from {0}. s is NULL until something is added; str_get() never is. */
struct str {
    char *s;
    size_t len, cap;
    kron_status status; /* sticky */
};
void str_add(struct str *t, const char *s);
void str_add_n(struct str *t, const char *s, size_t n);
void str_addf(struct str *t, const char *fmt, ...) KRON_PRINTF(2, 3);
void str_addv(struct str *t, const char *fmt, va_list ap);
const char *str_get(const struct str *t);
void str_free(struct str *t);

/* Makes one line of s: names in files may hold anything, so control characters become '?'. */
void str_clean(char *s);
bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);
/* Parses a whole string as a number; false if anything else is in it or it does not fit. */
bool str_to_i64(const char *s, int64_t *out);
bool str_to_double(const char *s, double *out); /* '.' is the point, whatever the locale */
uint64_t hash_bytes(const void *p, size_t n, uint64_t seed); /* FNV-1a, for tables only */

/* --- names to numbers, open addressing (name_map.c) --- */

struct name_slot {
    const char *key; /* NULL: free; not owned */
    int64_t value;
};
/* Its size is fixed at creation. */
struct name_map {
    struct name_slot *slots;
    size_t n_slots; /* a power of two, at least twice the entries */
};
kron_status name_map_create(struct name_map *m, size_t max_entries);
void name_map_free(struct name_map *m); /* {0} is fine */
/* The slot of a key of `len` bytes, or the free one where it belongs. */
struct name_slot *name_map_at(const struct name_map *m, const char *key, size_t len);

/* --- log, clock (log.c) --- */

void log_msg(kron_log_level level, const char *fmt, ...) KRON_PRINTF(2, 3);
#define log_debug(...) log_msg(KRON_LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_msg(KRON_LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_msg(KRON_LOG_WARN, __VA_ARGS__)
double clock_seconds(void); /* monotonic, from an arbitrary start */

/* --- files (file.c) --- */

/* A whole file, mapped read-only. Closing it ends every view into it. */
struct mapped_file {
    const uint8_t *data; /* NULL if the file is empty */
    size_t bytes;
    char *path;
};
kron_status map_open(struct mapped_file *f, const char *path);
void map_close(struct mapped_file *f); /* {0} is fine */
/* For bytes of a mapped file, and only those. Hints: neither can fail. Gives their pages back, so
 * that they count as this process's no more; the next reader finds them in the system's cache of
 * files, or on the disk. And the reverse: has them read while something else is computed. */
void map_release(const void *p, size_t bytes);
void map_fetch(const void *p, size_t bytes);

bool path_is_dir(const char *path);
bool path_is_file(const char *path);
/* What tells one state of a file from another; all 0 where there is no file. */
struct file_id {
    uint64_t device, inode;
    int64_t bytes, changed; /* changed: nanoseconds of its time of modification */
};
struct file_id path_identity(const char *path);
/* Calls `each` for the name of everything in a folder, in no order, until it returns an error. */
kron_status dir_each(const char *path, kron_status (*each)(void *user, const char *name),
                     void *user);
/* Reads a whole (small) file into NUL-terminated memory; refuses over max_bytes. */
kron_status file_read(char **out, size_t *bytes, const char *path, size_t max_bytes);
/* Writes through a temporary name beside `path` and renames: the final name never holds a
 * partial file. */
kron_status file_write(const char *path, const void *data, size_t bytes);

/* The same piece by piece. writer_open() makes the temporary file; writer_put() adds to it;
 * writer_commit() renames it; writer_fini() takes away what was not renamed. Start from {0}. */
struct file_writer {
    char *path, *temp; /* the final name; what the file is called so far */
    int fd;            /* only while temp is not NULL */
};
kron_status writer_open(struct file_writer *w, const char *path);
kron_status writer_put(struct file_writer *w, const void *data, size_t bytes);
kron_status writer_commit(struct file_writer *w);
/* Removes temporary files of `path` whose writers are gone: of runs that were killed. */
void writer_clear_left(const char *path);
void writer_fini(struct file_writer *w);

/* --- number formats (half.c): bit-exact to IEEE / OCP, round to nearest even --- */

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);
float f8_e4m3_to_f32(uint8_t b); /* OCP e4m3fn: no infinity, 0x7f and 0xff are NaN */
float f8_e5m2_to_f32(uint8_t b);
uint8_t f32_to_f8_e4m3(float f); /* over 448 after rounding: NaN, as the format has no infinity */
uint8_t f32_to_f8_e5m2(float f);

#endif
