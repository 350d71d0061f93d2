/* SPDX-License-Identifier: MIT
 * Errors: a number for programs, a sentence a thread for people. */
#include "base/base.h"
#include <stdlib.h>
#include <string.h>

static _Thread_local char detail[1024];

const char *kron_status_text(kron_status status)
{
    switch (status) {
#define STATUS_CASE(name, value, text) \
    case KRON_##name:                  \
        return text;
        KRON_STATUS_LIST(STATUS_CASE)
#undef STATUS_CASE
    }
    return "unknown status";
}

const char *kron_error_detail(void)
{
    return detail;
}

const char *kron_version(void)
{
    return "0.1.0";
}

kron_status err_set(kron_status status, const char *fmt, ...)
{
    char text[sizeof detail]; /* arguments may point into the old sentence */
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    str_clean(text);
    memcpy(detail, text, sizeof text);
    return status;
}

kron_status err_prefix(kron_status status, const char *fmt, ...)
{
    char text[sizeof detail];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof text - 3)
        snprintf(text + n, sizeof text - (size_t)n, ": %.*s", (int)(sizeof text - (size_t)n - 3),
                 detail);
    str_clean(text);
    memcpy(detail, text, sizeof text);
    return status;
}

_Noreturn void assert_fail(const char *cond, const char *file, int line)
{
    fprintf(stderr, "kron: broken invariant: %s (%s:%d)\n", cond, file, line);
    abort();
}
