/* SPDX-License-Identifier: MIT
 * Tensors that are about to be written. */
#include "convert/convert.h"
#include <string.h>

void out_free(struct out_tensors *o)
{
    for (size_t i = 0; i < o->n; i++)
        if (o->owned[i])
            mem_free((void *)(uintptr_t)o->at[i].data);
    mem_free(o->at);
    mem_free(o->owned);
    arena_free(&o->mem);
    memset(o, 0, sizeof *o);
}

static kron_status add(struct out_tensors *o, const struct tensor *t, const char *prefix,
                       const char *ending, bool owned)
{
    if (o->n == o->cap) {
        size_t cap = o->cap > 0 ? 2 * o->cap : 8;
        KRON_TRY(mem_grow((void **)&o->at, o->n, cap, sizeof *o->at, "tensors"));
        KRON_TRY(mem_grow((void **)&o->owned, o->n, cap, sizeof *o->owned, "tensors"));
        o->cap = cap;
    }
    o->at[o->n] = *t;
    o->at[o->n].name = arena_printf(&o->mem, "%s%s", prefix, ending);
    if (o->at[o->n].name == NULL)
        return o->mem.status;
    o->owned[o->n++] = owned;
    return KRON_OK;
}

kron_status out_view(struct out_tensors *o, const char *name, const struct tensor *t)
{
    return add(o, t, name, "", false);
}

kron_status out_numbers(struct out_tensors *o, const char *prefix, const char *ending,
                        enum dtype type, int n_dims, const int64_t *dim, const float *x)
{
    struct tensor t = {.type = type, .n_dims = n_dims};
    void *data;

    for (int i = 0; i < TENSOR_MAX_DIMS; i++)
        t.dim[i] = i < n_dims ? dim[i] : 1;
    t.bytes = dtype_bytes(type, tensor_elements(&t));
    KRON_TRY(mem_alloc(&data, t.bytes, "a tensor"));
    tensor_encode(type, x, tensor_elements(&t), data);
    t.data = data;
    kron_status status = add(o, &t, prefix, ending, true);
    if (status != KRON_OK)
        mem_free(data);
    return status;
}

enum dtype dtype_of(kron_type t, enum dtype keep)
{
    static const enum dtype types[] = {
        [KRON_TYPE_F32] = DT_F32,         [KRON_TYPE_F16] = DT_F16,
        [KRON_TYPE_BF16] = DT_BF16,       [KRON_TYPE_F8_E4M3] = DT_F8_E4M3,
        [KRON_TYPE_F8_E5M2] = DT_F8_E5M2, [KRON_TYPE_Q4_0] = DT_Q4_0,
        [KRON_TYPE_Q4_1] = DT_Q4_1,       [KRON_TYPE_Q5_0] = DT_Q5_0,
        [KRON_TYPE_Q5_1] = DT_Q5_1,       [KRON_TYPE_Q8_0] = DT_Q8_0,
        [KRON_TYPE_Q2_K] = DT_Q2_K,       [KRON_TYPE_Q3_K] = DT_Q3_K,
        [KRON_TYPE_Q4_K] = DT_Q4_K,       [KRON_TYPE_Q5_K] = DT_Q5_K,
        [KRON_TYPE_Q6_K] = DT_Q6_K,       [KRON_TYPE_IQ4_NL] = DT_IQ4_NL,
        [KRON_TYPE_IQ4_XS] = DT_IQ4_XS,   [KRON_TYPE_MXFP4] = DT_MXFP4,
        [KRON_TYPE_NVFP4] = DT_NVFP4,     [KRON_TYPE_TQ1_0] = DT_TQ1_0,
        [KRON_TYPE_TQ2_0] = DT_TQ2_0,
    };

    return t == KRON_TYPE_KEEP ? keep : types[t];
}
