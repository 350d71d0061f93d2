/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/log.h - where the library's messages go.
 *
 * The library prints nothing by itself: without a callback its messages are
 * dropped. Errors are not logged but returned (kron/status.h). */
#ifndef KRON_LOG_H
#define KRON_LOG_H
#include <kron/status.h>
KRON_API_BEGIN

typedef enum kron_log_level {
    KRON_LOG_DEBUG = 0, /* what -v shows: sizes, plans, routes              */
    KRON_LOG_INFO = 1,  /* what a user may want to know: what was loaded    */
    KRON_LOG_WARN = 2   /* something asked for was not done: skipped tensor */
} kron_log_level;

/* Receives one message, a line without a newline. May be called from any thread
 * that runs a Kron function; must not call Kron. */
typedef void (*kron_log_fn)(kron_log_level level, const char *line, void *user);

/* Sets the process-wide receiver; NULL drops messages. Set it before other calls:
 * changing it while another thread runs a Kron function is not supported. */
KRON_API void kron_log_set(kron_log_fn fn, void *user);

KRON_API_END
#endif
