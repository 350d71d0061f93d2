/* SPDX-License-Identifier: MIT
 * The log: one clean line a message, to the receiver that was set or to nobody. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

struct heard {
    char line[4096];
    kron_log_level level;
    int n;
};

static void listen(kron_log_level level, const char *line, void *user)
{
    struct heard *h = user;

    snprintf(h->line, sizeof h->line, "%s", line);
    h->level = level;
    h->n++;
}

static void messages_reach_the_receiver(void **state)
{
    struct heard h = {.n = 0};

    (void)state;
    kron_log_set(listen, &h);
    log_debug("plan %d", 1);
    assert_string_equal(h.line, "plan 1");
    assert_int_equal(h.level, KRON_LOG_DEBUG);
    log_info("100%%");
    assert_string_equal(h.line, "100%");
    assert_int_equal(h.level, KRON_LOG_INFO);
    log_warn("%s", "%s");
    assert_string_equal(h.line, "%s");
    assert_int_equal(h.level, KRON_LOG_WARN);
    assert_int_equal(h.n, 3);
    kron_log_set(NULL, NULL);
    log_warn("nobody hears this");
    assert_int_equal(h.n, 3);
}

/* A name in a file may hold anything; the receiver may write to a terminal. */
static void a_message_is_one_clean_line(void **state)
{
    struct heard h = {.n = 0};
    char long_name[3000];

    (void)state;
    kron_log_set(listen, &h);
    log_warn("skipped '%s'", "a\nb\r\x1b[2J\x7f\t\xc3\xbc");
    assert_string_equal(h.line, "skipped 'a?b??[2J??\xc3\xbc'");
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    log_warn("%s", long_name);
    assert_int_equal(strlen(h.line), 1023);
    kron_log_set(NULL, NULL);
}

static void the_clock_goes_forward(void **state)
{
    double start = clock_seconds(), now = start;

    (void)state;
    for (int i = 0; i < 10000000 && now == start; i++)
        now = clock_seconds();
    assert_true(now > start && now - start < 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_reach_the_receiver),
        cmocka_unit_test(a_message_is_one_clean_line),
        cmocka_unit_test(the_clock_goes_forward),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
