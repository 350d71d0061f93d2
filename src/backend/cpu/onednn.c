/* SPDX-License-Identifier: MIT
 * oneDNN's C interface, 2.x and 3.x. The two differ in who owns memory descriptors (3.x: opaque
 * handles), in how a primitive's description is made, and in how a layout is read. */
#include "backend/cpu/onednn.h"
#include <dnnl.h>
#include <string.h>

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

enum { ARG_X, ARG_W, ARG_B, ARG_Y, ARG_SCRATCH, ARG_COUNT };

struct onednn_prim {
    dnnl_primitive_t prim;
    dnnl_memory_t mem[ARG_COUNT]; /* NULL where absent; their handles are set at each run */
};

static kron_status failed(dnnl_status_t s, const char *what)
{
    if (s == dnnl_out_of_memory)
        return err_set(KRON_ERR_MEMORY, "oneDNN: out of memory in %s", what);
    return err_set(KRON_ERR_DEVICE, "oneDNN: %s failed with status %d", what, (int)s);
}

#define DNNL_TRY(call, what)                    \
    do {                                        \
        dnnl_status_t dnnl_status_ = (call);    \
        if (dnnl_status_ != dnnl_success)       \
            return failed(dnnl_status_, what);  \
    } while (0)

void onednn_gemm(bool b_rows, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    dnnl_status_t s = dnnl_sgemm('N', b_rows ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c,
                                 ldc);

    KRON_ASSERT(s == dnnl_success); /* it fails for wrong arguments only */
}

kron_status onednn_open(struct onednn **out)
{
    void *p;

    KRON_TRY(mem_alloc(&p, sizeof **out, "oneDNN"));
    *out = p;
    dnnl_status_t s = dnnl_engine_create(&(*out)->engine, dnnl_cpu, 0);
    if (s == dnnl_success)
        s = dnnl_stream_create(&(*out)->stream, (*out)->engine, dnnl_stream_default_flags);
    if (s == dnnl_success)
        return KRON_OK;
    onednn_close(out);
    return failed(s, "opening the CPU engine");
}

void onednn_close(struct onednn **d)
{
    if (*d == NULL)
        return;
    if ((*d)->stream != NULL)
        dnnl_stream_destroy((*d)->stream);
    if ((*d)->engine != NULL)
        dnnl_engine_destroy((*d)->engine);
    mem_free(*d);
    *d = NULL;
}

/* --- memory descriptors --- */

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t md_view;
#else
typedef const dnnl_memory_desc_t *md_view;
#endif

/* A layout in the terms that both versions share. */
struct layout {
    int n_inner;
    dnnl_dim_t inner_size[DNNL_MAX_NDIMS], inner_dim[DNNL_MAX_NDIMS];
    dnnl_dim_t stride[DNNL_MAX_NDIMS], padded[DNNL_MAX_NDIMS], dim[DNNL_MAX_NDIMS];
};

static bool layout_read(struct layout *l, md_view md)
{
#if DNNL_VERSION_MAJOR >= 3
    dnnl_format_kind_t kind;
    const dnnl_dim_t *size, *dim, *stride, *padded, *dims;
    dnnl_status_t s = dnnl_memory_desc_query(md, dnnl_query_format_kind, &kind);
    if (s != dnnl_success || kind != dnnl_blocked)
        return false;
    if (dnnl_memory_desc_query(md, dnnl_query_inner_nblks_s32, &l->n_inner) != dnnl_success ||
        dnnl_memory_desc_query(md, dnnl_query_inner_blks, &size) != dnnl_success ||
        dnnl_memory_desc_query(md, dnnl_query_inner_idxs, &dim) != dnnl_success ||
        dnnl_memory_desc_query(md, dnnl_query_strides, &stride) != dnnl_success ||
        dnnl_memory_desc_query(md, dnnl_query_padded_dims, &padded) != dnnl_success ||
        dnnl_memory_desc_query(md, dnnl_query_dims, &dims) != dnnl_success)
        return false;
#else
    if (md->format_kind != dnnl_blocked)
        return false;
    const dnnl_blocking_desc_t *b = &md->format_desc.blocking;
    const dnnl_dim_t *size = b->inner_blks, *dim = b->inner_idxs, *stride = b->strides;
    const dnnl_dim_t *padded = md->padded_dims, *dims = md->dims;
    l->n_inner = b->inner_nblks;
#endif
    for (int i = 0; i < l->n_inner; i++) {
        l->inner_size[i] = size[i];
        l->inner_dim[i] = dim[i];
    }
    for (int i = 0; i < 4; i++) {
        l->stride[i] = stride[i];
        l->padded[i] = padded[i];
        l->dim[i] = dims[i];
    }
    return true;
}

/* Where index x of dimension d lies: offsets of dimensions add up, whatever the blocks. */
static int64_t layout_at(const struct layout *l, int d, int64_t x)
{
    int64_t at = 0, inner = 1;

    for (int i = l->n_inner - 1; i >= 0; i--) {
        if (l->inner_dim[i] == d) {
            at += x % l->inner_size[i] * inner;
            x /= l->inner_size[i];
        }
        inner *= l->inner_size[i];
    }
    return at + x * l->stride[d];
}

static kron_status read_tables(struct onednn_conv *c, md_view md)
{
    const struct conv_shape *s = &c->shape;
    struct layout l;
    int64_t rows = (s->oc + 7) / 8 * 8, k = s->ic * s->kh * s->kw, i = 0;
    void *p;

    if (!layout_read(&l, md))
        return err_set(KRON_ERR_DEVICE, "oneDNN: a convolution's weights have no plain layout");
    if (c->weight_bytes / 4 > INT32_MAX)
        return err_set(KRON_ERR_UNSUPPORTED, "a convolution's weights are too large");
    KRON_TRY(mem_alloc_n(&p, (size_t)rows, sizeof *c->row, "a convolution's layout"));
    c->row = p;
    KRON_TRY(mem_alloc_n(&p, (size_t)k, sizeof *c->col, "a convolution's layout"));
    c->col = p;
    for (int64_t o = 0; o < rows; o++)
        c->row[o] = (int32_t)layout_at(&l, 0, o);
    for (int64_t a = 0; a < s->ic; a++)
        for (int h = 0; h < s->kh; h++)
            for (int w = 0; w < s->kw; w++)
                c->col[i++] =
                    (int32_t)(layout_at(&l, 1, a) + layout_at(&l, 2, h) + layout_at(&l, 3, w));
    c->runs_of_8 = l.padded[0] % 8 == 0;
    for (int64_t o = 0; o < rows; o++)
        c->runs_of_8 = c->runs_of_8 && c->row[o] == c->row[o / 8 * 8] + o % 8;
    c->padded = l.padded[0] != s->oc || l.padded[1] != s->ic;
    return KRON_OK;
}

/* --- convolution --- */

struct descs {
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_t x, w, b, y;
#else
    dnnl_memory_desc_t at[4], *x, *w, *b, *y;
#endif
};

static void descs_free(struct descs *m)
{
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_t all[] = {m->x, m->w, m->b, m->y};
    for (int i = 0; i < 4; i++)
        if (all[i] != NULL)
            dnnl_memory_desc_destroy(all[i]);
#endif
    memset(m, 0, sizeof *m);
}

static dnnl_status_t make_descs(struct descs *m, const struct conv_shape *s)
{
    dnnl_dims_t x = {s->n, s->ic, s->ih, s->iw}, y = {s->n, s->oc, s->oh, s->ow};
    dnnl_dims_t w = {s->oc, s->ic, s->kh, s->kw}, b = {s->oc};
    const dnnl_data_type_t f32 = dnnl_f32;
    dnnl_status_t st[4];

    memset(m, 0, sizeof *m);
#if DNNL_VERSION_MAJOR >= 3
    st[0] = dnnl_memory_desc_create_with_tag(&m->x, 4, x, f32, dnnl_nhwc);
    st[1] = dnnl_memory_desc_create_with_tag(&m->w, 4, w, f32, dnnl_format_tag_any);
    st[2] = dnnl_memory_desc_create_with_tag(&m->b, 1, b, f32, dnnl_a);
    st[3] = dnnl_memory_desc_create_with_tag(&m->y, 4, y, f32, dnnl_nhwc);
#else
    m->x = &m->at[0];
    m->w = &m->at[1];
    m->b = &m->at[2];
    m->y = &m->at[3];
    st[0] = dnnl_memory_desc_init_by_tag(m->x, 4, x, f32, dnnl_nhwc);
    st[1] = dnnl_memory_desc_init_by_tag(m->w, 4, w, f32, dnnl_format_tag_any);
    st[2] = dnnl_memory_desc_init_by_tag(m->b, 1, b, f32, dnnl_a);
    st[3] = dnnl_memory_desc_init_by_tag(m->y, 4, y, f32, dnnl_nhwc);
#endif
    for (int i = 0; i < 4; i++)
        if (st[i] != dnnl_success)
            return st[i];
    return dnnl_success;
}

static dnnl_status_t make_attr(dnnl_primitive_attr_t *attr, bool sum)
{
    dnnl_status_t s = dnnl_primitive_attr_create(attr);
    dnnl_post_ops_t ops;

    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (s != dnnl_success || !sum)
        return s;
    if ((s = dnnl_post_ops_create(&ops)) != dnnl_success)
        return s;
#if DNNL_VERSION_MAJOR >= 3
    s = dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
#else
    s = dnnl_post_ops_append_sum(ops, 1.0f);
#endif
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_post_ops(*attr, ops);
    dnnl_post_ops_destroy(ops);
    return s;
}

static dnnl_status_t make_primitive_desc(dnnl_primitive_desc_t *pd, struct onednn *d,
                                         const struct conv_shape *s, const struct descs *m,
                                         dnnl_primitive_attr_t attr)
{
    dnnl_dims_t stride = {s->stride, s->stride}, dilate = {0, 0};
    dnnl_dims_t before = {s->pad_top, s->pad_left}, after = {s->pad_bottom, s->pad_right};

#if DNNL_VERSION_MAJOR >= 3
    return dnnl_convolution_forward_primitive_desc_create(
        pd, d->engine, dnnl_forward_inference, dnnl_convolution_direct, m->x, m->w,
        s->bias ? m->b : NULL, m->y, stride, dilate, before, after, attr);
#else
    dnnl_convolution_desc_t cd;
    dnnl_status_t st = dnnl_dilated_convolution_forward_desc_init(
        &cd, dnnl_forward_inference, dnnl_convolution_direct, m->x, m->w, s->bias ? m->b : NULL,
        m->y, stride, dilate, before, after);
    if (st != dnnl_success)
        return st;
    return dnnl_primitive_desc_create(pd, &cd, attr, d->engine, NULL);
#endif
}

static md_view query_md(dnnl_primitive_desc_t pd, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(pd, what, 0);
}

static dnnl_status_t make_memories(struct onednn *d, struct onednn_conv *c,
                                   dnnl_primitive_desc_t pd)
{
    md_view md[ARG_COUNT] = {
        [ARG_X] = query_md(pd, dnnl_query_src_md),
        [ARG_W] = query_md(pd, dnnl_query_weights_md),
        [ARG_B] = c->shape.bias ? dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1) : NULL,
        [ARG_Y] = query_md(pd, dnnl_query_dst_md),
        [ARG_SCRATCH] = query_md(pd, dnnl_query_scratchpad_md),
    };

    c->weight_bytes = dnnl_memory_desc_get_size(md[ARG_W]);
    c->scratch_bytes = md[ARG_SCRATCH] ? dnnl_memory_desc_get_size(md[ARG_SCRATCH]) : 0;
    if (c->scratch_bytes == 0)
        md[ARG_SCRATCH] = NULL;
    for (int i = 0; i < ARG_COUNT; i++) {
        if (md[i] == NULL)
            continue;
        dnnl_status_t s = dnnl_memory_create(&c->prim->mem[i], md[i], d->engine, DNNL_MEMORY_NONE);
        if (s != dnnl_success)
            return s;
    }
    return dnnl_success;
}

static kron_status conv_build(struct onednn *d, struct onednn_conv *c, const struct descs *m,
                              dnnl_primitive_attr_t attr)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = make_primitive_desc(&pd, d, &c->shape, m, attr);

    if (s != dnnl_success)
        return failed(s, "describing a convolution");
    s = dnnl_primitive_create(&c->prim->prim, pd);
    if (s == dnnl_success)
        s = make_memories(d, c, pd);
    kron_status status = s == dnnl_success ? read_tables(c, query_md(pd, dnnl_query_weights_md))
                                           : failed(s, "making a convolution");
    dnnl_primitive_desc_destroy(pd);
    return status;
}

kron_status onednn_conv_create(struct onednn *d, const struct conv_shape *shape,
                               struct onednn_conv **out)
{
    struct descs m;
    dnnl_primitive_attr_t attr = NULL;
    void *p;

    *out = NULL;
    KRON_TRY(mem_alloc(&p, sizeof **out, "a convolution"));
    *out = p;
    (*out)->shape = *shape;
    kron_status status = mem_alloc(&p, sizeof *(*out)->prim, "a convolution");
    (*out)->prim = status == KRON_OK ? p : NULL;
    dnnl_status_t s = make_descs(&m, shape);
    if (s == dnnl_success)
        s = make_attr(&attr, shape->sum);
    if (status == KRON_OK)
        status = s == dnnl_success ? conv_build(d, *out, &m, attr)
                                   : failed(s, "describing a convolution");
    if (attr != NULL)
        dnnl_primitive_attr_destroy(attr);
    descs_free(&m);
    if (status != KRON_OK)
        onednn_conv_free(out);
    return status;
}

void onednn_conv_free(struct onednn_conv **c)
{
    if (*c == NULL)
        return;
    struct onednn_prim *p = (*c)->prim;
    for (int i = 0; p != NULL && i < ARG_COUNT; i++)
        if (p->mem[i] != NULL)
            dnnl_memory_destroy(p->mem[i]);
    if (p != NULL && p->prim != NULL)
        dnnl_primitive_destroy(p->prim);
    mem_free(p);
    mem_free((*c)->row);
    mem_free((*c)->col);
    mem_free(*c);
    *c = NULL;
}

kron_status onednn_conv_run(struct onednn *d, const struct onednn_conv *c, const float *x,
                            const float *w, const float *bias, float *y, void *scratch)
{
    /* The library takes its inputs as plain void pointers too, and does not write them. */
    union {
        const void *in;
        void *handle;
    } from[ARG_COUNT] = {{x}, {w}, {bias}, {y}, {scratch}};
    static const int name[ARG_COUNT] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS,
                                        DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    dnnl_exec_arg_t args[ARG_COUNT];
    int n = 0;

    for (int i = 0; i < ARG_COUNT; i++) {
        if (c->prim->mem[i] == NULL)
            continue;
        DNNL_TRY(dnnl_memory_set_data_handle(c->prim->mem[i], from[i].handle), "binding memory");
        args[n++] = (dnnl_exec_arg_t){name[i], c->prim->mem[i]};
    }
    DNNL_TRY(dnnl_primitive_execute(c->prim->prim, d->stream, n, args), "a convolution");
    DNNL_TRY(dnnl_stream_wait(d->stream), "a convolution");
    return KRON_OK;
}
