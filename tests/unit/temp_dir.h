/* SPDX-License-Identifier: MIT
 * A folder of a test's own under TMPDIR, gone at its end. */
#ifndef UNIT_TEMP_DIR_H
#define UNIT_TEMP_DIR_H
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static inline void temp_dir_make(char *path, size_t size)
{
    const char *base = getenv("TMPDIR");

    snprintf(path, size, "%s/kron-test-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(path) == NULL) {
        perror(path);
        abort();
    }
}

static inline void temp_dir_remove(const char *path)
{
    DIR *d = opendir(path);

    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char sub[8192];
        struct stat st;
        int n = snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        if (n < 0 || n >= (int)sizeof sub || strcmp(e->d_name, ".") == 0 ||
            strcmp(e->d_name, "..") == 0)
            continue;
        if (lstat(sub, &st) == 0 && S_ISDIR(st.st_mode))
            temp_dir_remove(sub);
        else
            unlink(sub);
    }
    if (d != NULL)
        closedir(d);
    rmdir(path);
}

/* How many names the folder holds. */
static inline int temp_dir_count(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;

    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    if (d != NULL)
        closedir(d);
    return n;
}

/* The folder of a group of tests: setup, teardown, and names in it. The last two paths stay. */
static char dir[4096];

static inline int make_dir(void **state)
{
    (void)state;
    temp_dir_make(dir, sizeof dir);
    return 0;
}

static inline int remove_dir(void **state)
{
    (void)state;
    temp_dir_remove(dir);
    return 0;
}

static inline const char *in_dir(const char *name)
{
    static char path[2][8192];
    static int next;

    next = !next;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

#endif
