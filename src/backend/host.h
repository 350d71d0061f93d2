/* SPDX-License-Identifier: MIT
 * backend/host.h - what devices whose memory is the host's share: buffers, and where values lie. */
#ifndef BACKEND_HOST_H
#define BACKEND_HOST_H
#include "backend/backend.h"

kron_status host_buf_alloc(struct be_device *d, size_t bytes, struct be_buf **out);
void host_buf_free(struct be_buf *b);
kron_status host_buf_write(struct be_buf *b, size_t at, const void *src, size_t n);
kron_status host_buf_read(struct be_buf *b, size_t at, void *dst, size_t n);
/* The memory of a value: in its binding or in the arena; NULL for GR_NONE. */
float *host_value(const struct graph *g, gr_ref v, void *arena, struct be_buf *const *bind);

#endif
