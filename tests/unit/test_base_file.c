/* SPDX-License-Identifier: MIT
 * Files: mapped and read as they are, written whole or not at all. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <signal.h>

static char in_dir_a[4200];

static void expect_content(const char *path, const char *want, size_t n)
{
    struct mapped_file f;
    size_t bytes;
    char *text;

    assert_int_equal(map_open(&f, path), KRON_OK);
    assert_int_equal(f.bytes, n);
    assert_string_equal(f.path, path);
    if (n > 0)
        assert_memory_equal(f.data, want, n);
    else
        assert_null(f.data);
    map_close(&f);
    assert_null(f.path);
    assert_int_equal(file_read(&text, &bytes, path, n), KRON_OK);
    assert_int_equal(bytes, n);
    assert_memory_equal(text, want, n);
    assert_int_equal(text[n], '\0');
    mem_free(text);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    assert_int_equal(file_write(in_dir("a"), "first\0one", 9), KRON_OK);
    expect_content(in_dir("a"), "first\0one", 9);
    assert_int_equal(file_write(in_dir("a"), "2", 1), KRON_OK); /* replaces */
    expect_content(in_dir("a"), "2", 1);
    assert_int_equal(file_write(in_dir("a"), NULL, 0), KRON_OK);
    expect_content(in_dir("a"), "", 0);
    assert_int_equal(temp_dir_count(dir), 1);
}

static void missing_files_are_named(void **state)
{
    struct mapped_file f;
    size_t bytes;
    char *text;

    (void)state;
    assert_int_equal(map_open(&f, in_dir("none")), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), in_dir("none")));
    assert_non_null(strstr(kron_error_detail(), "No such file"));
    map_close(&f);
    assert_int_equal(map_open(&f, dir), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "not a regular file"));
    assert_int_equal(file_read(&text, &bytes, in_dir("none"), 10), KRON_ERR_IO);
    assert_null(text);
    assert_int_equal(file_read(&text, &bytes, dir, 10), KRON_ERR_IO);
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    assert_int_equal(map_open(&f, in_dir("pipe")), KRON_ERR_IO); /* and does not wait for it */
    assert_int_equal(file_read(&text, &bytes, in_dir("pipe"), 10), KRON_ERR_IO);
    memset(&f, 0, sizeof f);
    map_close(&f);
}

static void kinds_of_paths(void **state)
{
    (void)state;
    assert_int_equal(file_write(in_dir("a"), "x", 1), KRON_OK);
    assert_true(path_is_dir(dir));
    assert_false(path_is_file(dir));
    assert_true(path_is_file(in_dir("a")));
    assert_false(path_is_dir(in_dir("a")));
    assert_false(path_is_file(in_dir("none")));
    assert_false(path_is_dir(in_dir("none")));
}

static void too_large_is_refused(void **state)
{
    size_t bytes;
    char *text;

    (void)state;
    assert_int_equal(file_write(in_dir("a"), "12345", 5), KRON_OK);
    assert_int_equal(file_read(&text, &bytes, in_dir("a"), 4), KRON_ERR_FORMAT);
    assert_null(text);
    assert_non_null(strstr(kron_error_detail(), "5 bytes, expected at most 4"));
}

/* The old content stays, and nothing else appears. */
static void expect_failed_write(const char *path, const char *why)
{
    int before = temp_dir_count(dir);

    assert_int_equal(file_write(path, "new", 3), KRON_ERR_IO);
    if (strstr(kron_error_detail(), why) == NULL)
        fail_msg("'%s' does not say '%s'", kron_error_detail(), why);
    assert_int_equal(temp_dir_count(dir), before);
}

static void a_failed_write_leaves_nothing(void **state)
{
    char name[300];

    (void)state;
    expect_failed_write(in_dir("no/such/folder"), "No such file");
    memset(name, 'n', 299);
    name[299] = '\0';
    expect_failed_write(in_dir(name), "too long");
    assert_int_equal(mkdir(in_dir("sub"), 0700), 0);
    expect_failed_write(in_dir("sub"), "cannot rename"); /* a folder has the name */
    assert_true(path_is_dir(in_dir("sub")));
    assert_int_equal(file_write(in_dir("sub/kept"), "old", 3), KRON_OK);
    assert_int_equal(chmod(in_dir("sub"), 0500), 0);
    if (geteuid() != 0) { /* root writes anywhere */
        expect_failed_write(in_dir("sub/kept"), "denied");
        assert_int_equal(temp_dir_count(in_dir("sub")), 1);
    }
    expect_content(in_dir("sub/kept"), "old", 3);
    chmod(in_dir("sub"), 0700);
}

/* A full disk, as far as a test can make one: a limit on the size of files. */
static void a_write_cut_short_leaves_the_old_file(void **state)
{
    struct rlimit old, few;
    static char much[100000];

    (void)state;
    assert_int_equal(file_write(in_dir("a"), "old", 3), KRON_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    few = old;
    few.rlim_cur = 5000;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
    kron_status status = file_write(in_dir("a"), much, sizeof much);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(status, KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "cannot write"));
    expect_content(in_dir("a"), "old", 3);
    assert_int_equal(temp_dir_count(dir), 1);
}

enum { WRITERS = 4, WRITES = 100, WRITTEN = 20000 };

/* Writes WRITTEN times one letter, a letter a thread; non-NULL if a write failed. */
static void *write_often(void *letter)
{
    char text[WRITTEN];

    memset(text, *(const char *)letter, sizeof text);
    for (int i = 0; i < WRITES; i++)
        if (file_write(in_dir_a, text, sizeof text) != KRON_OK)
            return letter;
    return NULL;
}

static void writers_of_one_file_do_not_meet(void **state)
{
    pthread_t thread[WRITERS];
    char letters[] = "abcd", *text;
    void *failed;
    size_t bytes;

    (void)state;
    snprintf(in_dir_a, sizeof in_dir_a, "%s/a", dir);
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, write_often, &letters[i]), 0);
    for (int i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_join(thread[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(file_read(&text, &bytes, in_dir_a, WRITTEN), KRON_OK);
    assert_int_equal(bytes, WRITTEN);
    for (size_t i = 1; i < bytes; i++)
        assert_int_equal(text[i], text[0]);
    mem_free(text);
    assert_int_equal(temp_dir_count(dir), 1);
}

static void no_memory_is_an_error(void **state)
{
    struct mapped_file f;
    size_t bytes;
    char *text;

    (void)state;
    assert_int_equal(file_write(in_dir("a"), "x", 1), KRON_OK);
    mem_fail_after(1);
    assert_int_equal(map_open(&f, in_dir("a")), KRON_ERR_MEMORY);
    assert_null(f.data);
    assert_int_equal(file_read(&text, &bytes, in_dir("a"), 10), KRON_ERR_MEMORY);
    assert_null(text);
    assert_int_equal(file_write(in_dir("b"), "x", 1), KRON_ERR_MEMORY);
    mem_fail_after(0);
    assert_int_equal(temp_dir_count(dir), 1);
}

int main(void)
{
#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(what_is_written_is_read),
        IN_DIR(missing_files_are_named),
        IN_DIR(kinds_of_paths),
        IN_DIR(too_large_is_refused),
        IN_DIR(a_failed_write_leaves_nothing),
        IN_DIR(a_write_cut_short_leaves_the_old_file),
        IN_DIR(writers_of_one_file_do_not_meet),
        IN_DIR(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
