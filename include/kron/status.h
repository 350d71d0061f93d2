/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/status.h - how every call that can fail reports it.
 *
 * A call returns a kron_status: 0 is success, every error is negative. The
 * sentence that helps a user (which file, which tensor, which two shapes, which
 * option) is kept for the calling thread and read with kron_error_detail().
 * The numbers are stable: later versions only add to the list. */
#ifndef KRON_STATUS_H
#define KRON_STATUS_H

#ifdef __cplusplus
#define KRON_API_BEGIN extern "C" {
#define KRON_API_END }
#else
#define KRON_API_BEGIN
#define KRON_API_END
#endif

#if defined(KRON_BUILD_SHARED) && defined(__GNUC__)
#define KRON_API __attribute__((visibility("default")))
#else
#define KRON_API
#endif

KRON_API_BEGIN

#define KRON_STATUS_LIST(X)                                      \
    X(OK, 0, "success")                                          \
    X(ERR_ARGUMENT, -1, "an argument breaks its contract")       \
    X(ERR_MEMORY, -2, "out of host or device memory")            \
    X(ERR_IO, -3, "a file could not be opened, read or written") \
    X(ERR_FORMAT, -4, "a file is damaged or not what it says")   \
    X(ERR_SHAPE, -5, "tensor shapes do not fit each other")      \
    X(ERR_UNSUPPORTED, -6, "valid, but not implemented here")    \
    X(ERR_DEVICE, -7, "the device or its driver failed")         \
    X(ERR_CANCELLED, -8, "the caller asked to stop")

typedef enum kron_status {
#define KRON_STATUS_ENUM(name, value, text) KRON_##name = (value),
    KRON_STATUS_LIST(KRON_STATUS_ENUM)
#undef KRON_STATUS_ENUM
} kron_status;

/* The general meaning of a status, in English; never NULL, never freed. */
KRON_API const char *kron_status_text(kron_status status);

/* What exactly went wrong in this thread's last failed call: one line without a
 * newline, "" if nothing failed yet. Valid until the thread's next Kron call. */
KRON_API const char *kron_error_detail(void);

/* The library's version, "MAJOR.MINOR.PATCH"; static. */
KRON_API const char *kron_version(void);

KRON_API_END
#endif
