/* SPDX-License-Identifier: MIT
 * What the adapter tests share: safetensors files made in memory, and tables of layers. */
#ifndef UNIT_ADAPTER_FIXTURE_H
#define UNIT_ADAPTER_FIXTURE_H
#include "adapter/adapter.h"
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

/* --- numbers --- */

static inline uint32_t fx_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

static inline float fx_unit(uint64_t *seed) /* in [-1, 1) */
{
    return (float)fx_random(seed) / (float)(1u << 30) - 1.0f;
}

/* |got - want| / |want| over n numbers. */
static inline double fx_rel(const double *got, const double *want, int64_t n)
{
    double diff = 0, norm = 0;

    for (int64_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(diff) / (sqrt(norm) + 1e-300);
}

/* --- a safetensors file in memory --- */

struct fx_file {
    struct str header, data;
    uint8_t *bytes; /* the whole, after fx_open() */
};

static inline void fx_add_raw(struct fx_file *f, const char *name, const char *dtype, int n_dims,
                              const int64_t *dim, const void *data, size_t bytes)
{
    str_addf(&f->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", f->header.len ? "," : "{",
             name, dtype);
    for (int i = 0; i < n_dims; i++)
        str_addf(&f->header, "%s%lld", i ? "," : "", (long long)dim[i]);
    str_addf(&f->header, "],\"data_offsets\":[%zu,%zu]}", f->data.len, f->data.len + bytes);
    str_add_n(&f->data, data, bytes);
}

/* One number of a tensor, in storage type `t`. */
static inline void fx_encode(enum dtype t, float v, uint8_t *out)
{
    double wide = v;
    uint16_t half = t == DT_BF16 ? f32_to_bf16(v) : f32_to_f16(v);

    if (t == DT_F64)
        memcpy(out, &wide, 8);
    else if (t == DT_F32)
        memcpy(out, &v, 4);
    else if (t == DT_F8_E4M3 || t == DT_F8_E5M2) /* sign, small exponent: no NaN, no infinity */
        *out = (uint8_t)((v < 0 ? 0x80 : 0) | (0x28 + (int)(fabsf(v) * 15)));
    else
        memcpy(out, &half, 2);
}

/* A tensor of n_dims sizes with random numbers. */
static inline void fx_add(struct fx_file *f, const char *name, enum dtype t, uint64_t *seed,
                          int n_dims, const int64_t *dim)
{
    size_t width = (size_t)dtype_info(t)->bytes;
    int64_t n = 1;
    uint8_t *data;

    for (int i = 0; i < n_dims; i++)
        n *= dim[i];
    data = malloc((size_t)n * width + 1);
    assert_non_null(data);
    for (int64_t i = 0; i < n; i++)
        fx_encode(t, fx_unit(seed), data + (size_t)i * width);
    fx_add_raw(f, name, dtype_info(t)->name, n_dims, dim, data, (size_t)n * width);
    free(data);
}

#define FX_DIMS(...) \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

static inline void fx_add_scalar(struct fx_file *f, const char *name, enum dtype t, float v)
{
    uint8_t data[8];

    fx_encode(t, v, data);
    fx_add_raw(f, name, dtype_info(t)->name, 0, NULL, data, (size_t)dtype_info(t)->bytes);
}

static inline void fx_add_meta(struct fx_file *f, const char *json)
{
    str_addf(&f->header, "%s\"__metadata__\":%s", f->header.len ? "," : "{", json);
}

/* Opens what was added; fx_free() after adapter_close(). */
static inline kron_status fx_open(struct fx_file *f, struct adapter_file **out,
                                  const char *config)
{
    uint64_t n;

    str_add(&f->header, "}");
    while (f->header.len % 8 != 0)
        str_add(&f->header, " ");
    n = f->header.len;
    f->bytes = malloc(8 + f->header.len + f->data.len);
    assert_non_null(f->bytes);
    for (int i = 0; i < 8; i++)
        f->bytes[i] = (uint8_t)(n >> (8 * i));
    memcpy(f->bytes + 8, f->header.s, f->header.len);
    if (f->data.len > 0)
        memcpy(f->bytes + 8 + f->header.len, f->data.s, f->data.len);
    return adapter_open_memory(out, f->bytes, 8 + f->header.len + f->data.len, "test.safetensors",
                               config);
}

static inline void fx_free(struct fx_file *f)
{
    str_free(&f->header);
    str_free(&f->data);
    free(f->bytes);
    memset(f, 0, sizeof *f);
}

/* --- layers --- */

struct fx_table {
    struct layer_table table;
    struct layer *layers;
};

static inline char *fx_copy(const char *s)
{
    char *p = malloc(strlen(s) + 1);

    assert_non_null(p);
    return strcpy(p, s);
}

static inline const struct layer *fx_find(const struct fx_table *t, enum layer_part part,
                                          const char *name)
{
    for (int i = 0; i < t->table.n; i++)
        if (t->layers[i].part == part && strcmp(t->layers[i].name, name) == 0)
            return &t->layers[i];
    fail_msg("the table has no layer %s", name);
    return NULL;
}

/* The text encoders' projections under the names that they have as one, as clip.c gives them. */
static inline void fx_table_aliases(struct fx_table *t)
{
    t->table.aliases = calloc((size_t)t->table.n, sizeof *t->table.aliases);
    for (int i = 0; i < t->table.n; i++) {
        const struct layer *q = &t->layers[i];
        size_t n = strlen(q->name), n_native = strlen(q->native);
        if (!str_ends(q->name, ".self_attn.q_proj"))
            continue;
        for (int64_t k = 0; k < 3; k++) {
            struct layer_alias *a = &t->table.aliases[t->table.n_aliases++];
            char name[256], native[256], of[256];
            snprintf(of, sizeof of, "%.*s%c_proj", (int)n - 6, q->name, "qkv"[k]);
            snprintf(name, sizeof name, "%.*sin_proj", (int)n - 6, q->name);
            snprintf(native, sizeof native, "%.*sin_proj", (int)n_native - 6, q->native);
            *a = (struct layer_alias){fx_copy(name), fx_copy(native), fx_find(t, q->part, of),
                                      0, q->out, k * q->out};
        }
    }
}

/* tests/golden/adapter/layers_ARCH.txt as a table without weights. */
static inline void fx_table_read(struct fx_table *t, const char *arch)
{
    enum { MAX_LAYERS = 1024 };
    char path[1024], part[8], kind[8], name[256], native[256];
    char *text, *line, *rest;
    size_t bytes;
    long long d[4];

    snprintf(path, sizeof path, "%s/tests/golden/adapter/layers_%s.txt", KRON_SOURCE_DIR, arch);
    assert_int_equal(file_read(&text, &bytes, path, 1 << 20), KRON_OK);
    memset(t, 0, sizeof *t);
    t->layers = calloc(MAX_LAYERS, sizeof *t->layers);
    t->table.at = calloc(MAX_LAYERS, sizeof *t->table.at);
    for (line = text; *line != '\0'; line = rest + 1) {
        struct layer *l = &t->layers[t->table.n];
        rest = strchr(line, '\n');
        assert_true(rest != NULL && t->table.n < MAX_LAYERS);
        assert_int_equal(sscanf(line, "%7s %7s %lld %lld %lld %lld %255s %255s", part, kind, &d[0],
                                &d[1], &d[2], &d[3], name, native),
                         8);
        *l = (struct layer){.id = t->table.n,
                            .part = part[0] == 'u'   ? PART_UNET
                                    : part[2] == '0' ? PART_TE0
                                                     : PART_TE1,
                            .kind = kind[0] == 'n'   ? LAYER_NORM
                                    : kind[0] == 'c' ? LAYER_CONV
                                                     : LAYER_LINEAR,
                            .name = fx_copy(name),
                            .native = fx_copy(native),
                            .out = d[0],
                            .in = d[1],
                            .kh = (int)d[2],
                            .kw = (int)d[3],
                            .is_conv = kind[0] == 'c'};
        t->table.at[t->table.n++] = l;
    }
    mem_free(text);
    fx_table_aliases(t);
}

static inline void fx_table_free(struct fx_table *t)
{
    for (int i = 0; i < t->table.n_aliases; i++) {
        free((void *)(uintptr_t)t->table.aliases[i].name);
        free((void *)(uintptr_t)t->table.aliases[i].native);
    }
    free(t->table.aliases);
    for (int i = 0; i < t->table.n; i++) {
        free((void *)(uintptr_t)t->layers[i].name);
        free((void *)(uintptr_t)t->layers[i].native);
    }
    free(t->layers);
    free(t->table.at);
}

/* A UNet of one layer called "conv_in". */
struct fx_one {
    struct layer layer, *at[1];
    struct layer_table table;
    struct adapter_names *names;
};

static inline void fx_one_create(struct fx_one *o, int64_t out, int64_t in, int kh, int kw,
                                 bool is_conv)
{
    o->layer = (struct layer){.part = PART_UNET,
                              .kind = is_conv ? LAYER_CONV : LAYER_LINEAR,
                              .name = "conv_in",
                              .native = "input_blocks.0.0",
                              .out = out,
                              .in = in,
                              .kh = kh,
                              .kw = kw,
                              .is_conv = is_conv};
    o->at[0] = &o->layer;
    o->table = (struct layer_table){.at = o->at, .n = 1};
    assert_int_equal(adapter_names_create(&o->names, &o->table), KRON_OK);
}

/* The change that a set makes of the layer at strength s; the caller frees it. */
static inline double *fx_change(const struct adapter_set *set, const struct layer *l, float s)
{
    struct delta_list list = delta_set_list(adapter_set_deltas(set), l);
    size_t n = (size_t)(l->out * layer_k(l));
    double *w = calloc(n, sizeof *w), *plain = calloc(n, sizeof *plain);

    assert_non_null(w);
    assert_non_null(plain);
    for (size_t i = 0; l->weight.data != NULL && i < n; i++) {
        float v;
        tensor_decode(&l->weight, (int64_t)i, 1, &v);
        plain[i] = v;
    }
    for (int i = 0; i < list.n; i++)
        assert_int_equal(delta_add_ref(&list.at[i], l, s, plain, w), KRON_OK);
    free(plain);
    return w;
}

/* Binds a file of one module to the layer and holds the canonical form against the family's
 * definition; `what` names the case. Frees the file. */
static inline void fx_check_module(struct fx_file *file, struct fx_one *o, const char *config,
                                   const char *what)
{
    struct adapter_file *f;
    struct adapter_set *set;
    struct adapter_use use;
    struct delta_list list;
    int64_t n = o->layer.out * layer_k(&o->layer);
    double *want = calloc((size_t)n, sizeof *want), *got, rel;

    if (fx_open(file, &f, config) != KRON_OK)
        fail_msg("%s: %s", what, kron_error_detail());
    use = (struct adapter_use){f, 1, 1};
    if (adapter_bind(&set, &use, 1, o->names, true) != KRON_OK)
        fail_msg("%s: %s", what, kron_error_detail());
    if (adapter_reference(f, 0, &o->layer, want) != KRON_OK)
        fail_msg("%s: %s", what, kron_error_detail());
    list = delta_set_list(adapter_set_deltas(set), &o->layer);
    assert_int_equal(list.n, 1);
    assert_int_equal(list.at[0].strength, adapter_slot(&o->layer));
    got = fx_change(set, &o->layer, 0.5f);
    for (int64_t i = 0; i < n; i++)
        want[i] *= 0.5;
    rel = fx_rel(got, want, n);
    if (!(rel < 5e-7)) /* one rounding to f32 of folded factors and of the scale */
        fail_msg("%s: canonical form is %g from the definition", what, rel);
    free(got);
    free(want);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(file);
}

#endif
