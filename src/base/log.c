/* SPDX-License-Identifier: MIT
 * Messages go to the program's callback, or nowhere. */
#include "base/base.h"
#include <time.h>

static kron_log_fn log_fn;
static void *log_user;

void kron_log_set(kron_log_fn fn, void *user)
{
    log_fn = fn;
    log_user = user;
}

void log_msg(kron_log_level level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;

    if (log_fn == NULL)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    str_clean(line);
    log_fn(level, line, log_user);
}

double clock_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
