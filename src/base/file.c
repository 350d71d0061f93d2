/* SPDX-License-Identifier: MIT
 * Files: mapped for reading, written whole or not at all. */
#define _DEFAULT_SOURCE /* madvise */
#include "base/base.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static kron_status io_error(const char *path, const char *what)
{
    return err_set(KRON_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

static kron_status open_regular(const char *path, int *fd, size_t *bytes)
{
    struct stat st;

    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would wait for its writer */
    if (*fd < 0)
        return io_error(path, "cannot open");
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 0) {
        close(*fd);
        return err_set(KRON_ERR_IO, "%s: not a regular file", path);
    }
    *bytes = (size_t)st.st_size;
    return KRON_OK;
}

static kron_status map_fd(struct mapped_file *f, int fd, const char *path)
{
    void *p = mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, fd, 0);

    if (p == MAP_FAILED && errno == ENOMEM)
        return err_set(KRON_ERR_MEMORY, "out of memory: %.1f MB of address space for %s",
                       (double)f->bytes / 1e6, path);
    if (p == MAP_FAILED)
        return io_error(path, "cannot map");
    f->data = p;
    return KRON_OK;
}

kron_status map_open(struct mapped_file *f, const char *path)
{
    void *copy;
    int fd;

    memset(f, 0, sizeof *f);
    KRON_TRY(open_regular(path, &fd, &f->bytes));
    kron_status status = f->bytes > 0 ? map_fd(f, fd, path) : KRON_OK;
    close(fd);
    if (status == KRON_OK)
        status = mem_alloc(&copy, strlen(path) + 1, "a file name");
    if (status != KRON_OK) {
        map_close(f);
        return status;
    }
    f->path = strcpy(copy, path);
    return KRON_OK;
}

void map_close(struct mapped_file *f)
{
    if (f->data != NULL)
        munmap((void *)(uintptr_t)f->data, f->bytes);
    mem_free(f->path);
    memset(f, 0, sizeof *f);
}

static void advise(const void *p, size_t bytes, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p / page * page;

    if (bytes > 0)
        madvise((void *)from, (uintptr_t)p + bytes - from, advice);
}

void map_release(const void *p, size_t bytes)
{
    advise(p, bytes, MADV_DONTNEED);
}

void map_fetch(const void *p, size_t bytes)
{
    advise(p, bytes, MADV_WILLNEED);
}

bool path_is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool path_is_file(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

kron_status dir_each(const char *path, kron_status (*each)(void *user, const char *name),
                     void *user)
{
    DIR *d = opendir(path);
    kron_status status = KRON_OK;

    if (d == NULL)
        return io_error(path, "cannot open");
    for (struct dirent *e; status == KRON_OK && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            status = each(user, e->d_name);
    closedir(d);
    return status;
}

struct file_id path_identity(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return (struct file_id){0};
    return (struct file_id){(uint64_t)st.st_dev, (uint64_t)st.st_ino, (int64_t)st.st_size,
                            (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
}

static kron_status read_all(int fd, char *to, size_t n, const char *path)
{
    size_t at = 0;

    while (at < n) {
        ssize_t got = read(fd, to + at, n - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return io_error(path, "cannot read");
        if (got == 0)
            return err_set(KRON_ERR_IO, "%s: ended after %zu of %zu bytes", path, at, n);
        at += (size_t)got;
    }
    return KRON_OK;
}

kron_status file_read(char **out, size_t *bytes, const char *path, size_t max_bytes)
{
    void *p = NULL;
    int fd;

    *out = NULL;
    KRON_TRY(open_regular(path, &fd, bytes));
    kron_status status = KRON_OK;
    if (*bytes > max_bytes)
        status = err_set(KRON_ERR_FORMAT, "%s: %zu bytes, expected at most %zu", path, *bytes,
                         max_bytes);
    if (status == KRON_OK)
        status = mem_alloc(&p, *bytes + 1, path);
    if (status == KRON_OK)
        status = read_all(fd, p, *bytes, path);
    close(fd);
    if (status != KRON_OK) {
        mem_free(p);
        return status;
    }
    *out = p;
    return KRON_OK;
}

static kron_status write_all(int fd, const char *data, size_t n, const char *path)
{
    size_t at = 0;

    while (at < n) {
        ssize_t put = write(fd, data + at, n - at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return io_error(path, "cannot write");
        at += (size_t)put;
    }
    return KRON_OK;
}

/* A new file with a name that no other writer has, in this process or another. */
static kron_status create_beside(const char *path, struct str *name, int *fd)
{
    static unsigned last;

    do {
        name->len = 0;
        str_addf(name, "%s.%ld-%u.part", path, (long)getpid(),
                 __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED));
        KRON_TRY(name->status);
        *fd = open(str_get(name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (*fd < 0 && errno == EEXIST); /* left by a process that was killed */
    if (*fd < 0)
        return io_error(path, "cannot create");
    flock(*fd, LOCK_EX | LOCK_NB); /* held as long as we live: see remove_left() */
    return KRON_OK;
}

/* A lock tells a live writer on another machine too, a process number one that has not locked
 * yet. */
static void remove_left(const char *temp, long pid)
{
    int fd = kill((pid_t)pid, 0) != 0 && errno == ESRCH ? open(temp, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0)
        return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlink(temp);
    close(fd);
}

void writer_clear_left(const char *path)
{
    const char *slash = strrchr(path, '/'), *file = slash != NULL ? slash + 1 : path;
    size_t n = strlen(file);
    struct str folder = {0}, temp = {0};

    str_add_n(&folder, path, (size_t)(file - path));
    DIR *d = opendir(folder.len > 0 ? str_get(&folder) : ".");
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        long pid;
        int end = 0;
        if (strncmp(e->d_name, file, n) != 0 ||
            sscanf(e->d_name + n, ".%ld-%*u.part%n", &pid, &end) != 1 || end == 0 ||
            e->d_name[n + (size_t)end] != '\0')
            continue;
        temp.len = 0;
        str_addf(&temp, "%s%s", str_get(&folder), e->d_name);
        if (temp.status == KRON_OK && pid > 0)
            remove_left(temp.s, pid);
    }
    if (d != NULL)
        closedir(d);
    str_free(&folder);
    str_free(&temp);
}

kron_status writer_open(struct file_writer *w, const char *path)
{
    struct str temp = {0};
    void *copy;

    memset(w, 0, sizeof *w);
    KRON_TRY(mem_alloc(&copy, strlen(path) + 1, "a file name"));
    kron_status status = create_beside(path, &temp, &w->fd);
    if (status != KRON_OK) {
        mem_free(copy);
        str_free(&temp);
        return status;
    }
    w->path = strcpy(copy, path);
    w->temp = temp.s;
    return KRON_OK;
}

kron_status writer_put(struct file_writer *w, const void *data, size_t bytes)
{
    return write_all(w->fd, data, bytes, w->path);
}

kron_status writer_commit(struct file_writer *w)
{
    int fd = w->fd;

    w->fd = -1;
    if (close(fd) != 0)
        return io_error(w->path, "cannot write");
    if (rename(w->temp, w->path) != 0)
        return io_error(w->path, "cannot rename to this name");
    mem_free(w->temp);
    w->temp = NULL;
    return KRON_OK;
}

void writer_fini(struct file_writer *w)
{
    if (w->temp != NULL) {
        if (w->fd >= 0)
            close(w->fd);
        unlink(w->temp);
    }
    mem_free(w->temp);
    mem_free(w->path);
    memset(w, 0, sizeof *w);
}

kron_status file_write(const char *path, const void *data, size_t bytes)
{
    struct file_writer w;

    KRON_TRY(writer_open(&w, path));
    kron_status status = writer_put(&w, data, bytes);
    if (status == KRON_OK)
        status = writer_commit(&w);
    writer_fini(&w);
    return status;
}
