/* SPDX-License-Identifier: MIT
 * Random checkpoints and adapters of the full shapes, as safetensors files in f16.
 *
 * The numbers only have to be of usual size, so that nothing overflows and no sum is of
 * denormals: uniform, of variance 1 / inputs for weights, around 1 for norms. */
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- numbers --- */

/* To the nearest half; |x| below 65504. */
static uint16_t half_of(double x)
{
    uint16_t sign = x < 0 ? 0x8000 : 0;
    double a = fabs(x);
    int e = a > 0 ? ilogb(a) : -15;
    if (e < -14)
        return (uint16_t)(sign | lrint(ldexp(a, 24)));
    return (uint16_t)(sign | ((e + 14) * 1024 + lrint(ldexp(a, 10 - e))));
}

/* splitmix64 (Steele et al. 2014). */
static uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

enum { LEVELS = 4096, CHUNK = 1 << 16 };

/* All values that a tensor holds: evenly spread, none of them 0. */
static void make_levels(uint16_t levels[LEVELS], double center, double reach)
{
    for (int i = 0; i < LEVELS; i++)
        levels[i] = half_of(center + reach * ((i + 0.5) / (LEVELS / 2) - 1));
}

static void levels_of(const struct shape *s, uint16_t levels[LEVELS])
{
    int64_t inputs = s->n_dims > 1 ? shape_numbers(s) / s->dim[0] : 1;
    switch (s->fill) {
    case FILL_WEIGHT:
        make_levels(levels, 0, sqrt(3.0 / (double)inputs));
        break;
    case FILL_SMALL:
        make_levels(levels, 0, 0.05);
        break;
    case FILL_NORM:
        make_levels(levels, 1, 0.2);
        break;
    }
}

static bool write_tensor(FILE *f, const struct shape *s, uint64_t *state)
{
    static uint16_t levels[LEVELS], out[CHUNK];
    int64_t left = shape_numbers(s);
    levels_of(s, levels);
    while (left > 0) {
        size_t n = left < CHUNK ? (size_t)left : CHUNK;
        for (size_t i = 0; i < n; i += 4) {
            uint64_t r = random_bits(state);
            for (size_t j = i; j < n && j < i + 4; j++, r >>= 16)
                out[j] = levels[r & (LEVELS - 1)];
        }
        if (fwrite(out, sizeof *out, n, f) != n)
            return false;
        left -= (int64_t)n;
    }
    return true;
}

/* --- safetensors --- */

static void write_entry(FILE *f, const struct shape *s, int64_t at)
{
    fprintf(f, ",\"%s\":{\"dtype\":\"F16\",\"shape\":[", s->name);
    for (int i = 0; i < s->n_dims; i++)
        fprintf(f, "%s%lld", i > 0 ? "," : "", (long long)s->dim[i]);
    fprintf(f, "],\"data_offsets\":[%lld,%lld]}", (long long)at,
            (long long)(at + 2 * shape_numbers(s)));
}

static char *header_of(const struct shape_list *list, size_t *length)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, length);
    int64_t at = 0;
    if (f == NULL)
        return NULL;
    fputs("{\"__metadata__\":{\"made_by\":\"kron-bench\"}", f);
    for (int i = 0; i < list->n; i++) {
        write_entry(f, &list->at[i], at);
        at += 2 * shape_numbers(&list->at[i]);
    }
    fputc('}', f);
    for (long n = ftell(f); n % 8 != 0; n++)
        fputc(' ', f);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static bool write_all(FILE *f, const struct shape_list *list, uint64_t seed)
{
    size_t length;
    char *header = header_of(list, &length);
    uint8_t bytes[8];
    if (header == NULL)
        return false;
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)length >> (8 * i));
    bool ok = fwrite(bytes, 1, 8, f) == 8 && fwrite(header, 1, length, f) == length;
    free(header);
    for (int i = 0; ok && i < list->n; i++)
        ok = write_tensor(f, &list->at[i], &seed);
    return ok;
}

/* The file appears under its name only when it is complete. */
static bool write_file(const char *path, const struct shape_list *list, uint64_t seed)
{
    size_t room = strlen(path) + 8;
    char *temp = malloc(room);
    if (temp == NULL)
        return complain("out of memory");
    snprintf(temp, room, "%s.part", path);
    FILE *f = fopen(temp, "wb");
    bool ok = f != NULL && write_all(f, list, seed);
    if (f != NULL && fclose(f) != 0)
        ok = false;
    ok = ok && rename(temp, path) == 0;
    if (!ok) {
        complain("%s: cannot be written: %s", path, strerror(errno));
        unlink(temp);
    }
    free(temp);
    return ok;
}

/* --- adapters --- */

enum { FACTOR = 8, RANK = 16 };
enum family { LOKR, LOKR_SPLIT, LORA };

/* The largest divisor up to FACTOR. */
static int64_t factor_of(int64_t n)
{
    int64_t f = FACTOR;
    while (n % f != 0)
        f--;
    return f;
}

/* lora_unet_ and the layer's name with underscores, as kohya's scripts write it. */
static void kohya_name(const struct shape *layer, char out[160])
{
    const char *name = layer->name + strlen("model.diffusion_model.");
    snprintf(out, 160, "lora_unet_%.*s", (int)(strlen(name) - strlen(".weight")), name);
    for (char *c = out; *c != '\0'; c++)
        if (*c == '.')
            *c = '_';
}

static void add_part(struct shape_list *list, const char *layer, const char *part, int n_dims,
                     int64_t a, int64_t b, int64_t kh, int64_t kw)
{
    int64_t dim[4] = {a, b, kh, kw};
    shapes_add(list, FILL_WEIGHT, n_dims, dim, "%.120s.%s", layer, part);
}

static void add_adapter(struct shape_list *list, const struct shape *l, enum family family)
{
    int64_t out = l->dim[0], in = l->dim[1], fo = factor_of(out), fi = factor_of(in);
    int64_t kh = l->n_dims > 2 ? l->dim[2] : 1, kw = l->n_dims > 2 ? l->dim[3] : 1;
    char name[160];
    kohya_name(l, name);
    if (family == LORA) {
        add_part(list, name, "lora_down.weight", l->n_dims, RANK, in, kh, kw);
        add_part(list, name, "lora_up.weight", l->n_dims, out, RANK, 1, 1);
    } else {
        add_part(list, name, "lokr_w1", 2, fo, fi, 1, 1);
    }
    if (family == LOKR)
        add_part(list, name, "lokr_w2", l->n_dims, out / fo, in / fi, kh, kw);
    if (family == LOKR_SPLIT) {
        add_part(list, name, "lokr_w2_a", 2, out / fo, RANK, 1, 1);
        add_part(list, name, "lokr_w2_b", 2, RANK, in / fi * kh * kw, 1, 1);
    }
    shapes_add(list, FILL_NORM, 0, NULL, "%.120s.alpha", name);
}

static bool adapter_shapes(struct shape_list *list, enum bench_arch arch, enum family family)
{
    struct shape_list model;
    *list = (struct shape_list){0};
    if (!shapes_make(&model, arch))
        return false;
    for (int i = 0; i < model.n; i++)
        if (model.at[i].unet_layer)
            add_adapter(list, &model.at[i], family);
    shapes_free(&model);
    if (list->failed) {
        shapes_free(list);
        return complain("out of memory for the list of tensors");
    }
    return true;
}

/* --- files of the cache --- */

static const struct {
    const char *kind;
    enum family family;
} adapters[] = {{"lokr-split", LOKR_SPLIT}, {"lokr", LOKR}, {"lora", LORA}};

static bool shapes_of_kind(struct shape_list *list, enum bench_arch arch, const char *kind)
{
    if (strcmp(kind, "model") == 0)
        return shapes_make(list, arch);
    if (strcmp(kind, "vae") == 0)
        return shapes_make_vae(list);
    for (size_t i = 0; i < sizeof adapters / sizeof *adapters; i++)
        if (strncmp(kind, adapters[i].kind, strlen(adapters[i].kind)) == 0)
            return adapter_shapes(list, arch, adapters[i].family);
    return complain("no files of kind '%s' are made: expected model, vae, lokr, lokr-split or lora",
                    kind);
}

static uint64_t seed_of(const char *kind)
{
    uint64_t seed = 14695981039346656037u; /* FNV-1a */
    for (; *kind != '\0'; kind++)
        seed = (seed ^ (uint8_t)*kind) * 1099511628211u;
    return seed;
}

static bool make_file(const char *path, enum bench_arch arch, const char *kind)
{
    struct shape_list list;
    double start = seconds_now(), bytes = 0;
    if (!shapes_of_kind(&list, arch, kind))
        return false;
    for (int i = 0; i < list.n; i++)
        bytes += 2 * (double)shape_numbers(&list.at[i]);
    fprintf(stderr, "making %s (%.0f MB) ... ", path, bytes / 1e6);
    bool ok = write_file(path, &list, seed_of(kind));
    if (ok)
        fprintf(stderr, "%.0f s\n", seconds_now() - start);
    shapes_free(&list);
    return ok;
}

bool bench_file(char **path, const char *cache, enum bench_arch arch, const char *kind)
{
    size_t room = strlen(cache) + strlen(kind) + 40;
    if (mkdir(cache, 0777) != 0 && errno != EEXIST)
        return complain("%s: the folder cannot be made: %s", cache, strerror(errno));
    *path = malloc(room);
    if (*path == NULL)
        return complain("out of memory");
    snprintf(*path, room, "%s/%s-%s.safetensors", cache, bench_arch_name(arch), kind);
    if (access(*path, R_OK) == 0 || make_file(*path, arch, kind))
        return true;
    free(*path);
    *path = NULL;
    return false;
}
