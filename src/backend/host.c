/* SPDX-License-Identifier: MIT
 * Buffers in the host's own memory. */
#include "backend/host.h"
#include <string.h>

kron_status host_buf_alloc(struct be_device *d, size_t bytes, struct be_buf **out)
{
    void *p, *host;

    KRON_TRY(mem_alloc(&p, sizeof(struct be_buf), "a buffer"));
    kron_status status = mem_alloc(&host, bytes, "a buffer");
    if (status != KRON_OK) {
        mem_free(p);
        return status;
    }
    *out = p;
    **out = (struct be_buf){.device = d, .bytes = bytes, .host = host};
    return KRON_OK;
}

void host_buf_free(struct be_buf *b)
{
    mem_free(b->host);
    mem_free(b);
}

kron_status host_buf_write(struct be_buf *b, size_t at, const void *src, size_t n)
{
    memcpy((char *)b->host + at, src, n);
    return KRON_OK;
}

kron_status host_buf_read(struct be_buf *b, size_t at, void *dst, size_t n)
{
    memcpy(dst, (const char *)b->host + at, n);
    return KRON_OK;
}

float *host_value(const struct graph *g, gr_ref v, void *arena, struct be_buf *const *bind)
{
    const struct gr_value *x;

    if (v == GR_NONE)
        return NULL;
    x = &g->values[v];
    const struct gr_value *root = &g->values[gr_root(g, v)];
    char *first = root->bind >= 0 ? bind[root->bind]->host : (char *)arena + root->offset;
    return (void *)(first + x->row * x->shape.w * x->shape.c * 4);
}
