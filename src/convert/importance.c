/* SPDX-License-Identifier: MIT
 * Mean squares of input channels, and their file: GGUF as llama.cpp writes it, for the weight NAME
 * the sums NAME.in_sum2 [k] and how many inputs they are of, NAME.counts [1], both f32. */
#include "convert/convert.h"
#include <math.h>
#include <string.h>

#define SUMS ".in_sum2"
#define COUNTS ".counts"

struct entry {
    char *name;
    int64_t k;
    double count;
    double *sum; /* [k] */
};

struct importance {
    struct entry *at;
    int64_t n, cap;
    struct name_map names; /* of cap entries */
    struct arena mem;
};

kron_status importance_create(struct importance **out)
{
    return mem_alloc((void **)out, sizeof **out, "importance of channels");
}

void importance_free(struct importance **im)
{
    if (*im == NULL)
        return;
    name_map_free(&(*im)->names);
    mem_free((*im)->at);
    arena_free(&(*im)->mem);
    mem_free(*im);
    *im = NULL;
}

static struct entry *find(const struct importance *im, const char *name, size_t len)
{
    const struct name_slot *slot = im->cap > 0 ? name_map_at(&im->names, name, len) : NULL;

    return slot != NULL && slot->key != NULL ? &im->at[slot->value] : NULL;
}

static kron_status make_room(struct importance *im)
{
    int64_t cap = im->cap > 0 ? 2 * im->cap : 256;
    struct name_map names;

    if (im->n < im->cap)
        return KRON_OK;
    KRON_TRY(mem_grow((void **)&im->at, (size_t)im->cap, (size_t)cap, sizeof *im->at,
                      "importance of channels"));
    KRON_TRY(name_map_create(&names, (size_t)cap));
    for (int64_t i = 0; i < im->n; i++)
        *name_map_at(&names, im->at[i].name, strlen(im->at[i].name)) =
            (struct name_slot){im->at[i].name, i};
    name_map_free(&im->names);
    im->names = names;
    im->cap = cap;
    return KRON_OK;
}

static kron_status get_entry(struct importance *im, const char *name, size_t len, int64_t k,
                             struct entry **out)
{
    *out = find(im, name, len);
    if (*out == NULL) {
        KRON_TRY(make_room(im));
        struct entry e = {.name = arena_printf(&im->mem, "%.*s", (int)len, name), .k = k,
                          .sum = arena_alloc(&im->mem, (size_t)k * sizeof(double))};
        KRON_TRY(im->mem.status);
        im->at[im->n] = e;
        *name_map_at(&im->names, e.name, len) = (struct name_slot){e.name, im->n};
        *out = &im->at[im->n++];
    }
    if ((*out)->k != k)
        return err_set(KRON_ERR_SHAPE, "importance of '%.*s': %lld channels, expected %lld",
                       (int)len, name, (long long)k, (long long)(*out)->k);
    return KRON_OK;
}

kron_status importance_add(struct importance *im, const char *name, const float *x, int64_t rows,
                           int64_t k)
{
    struct entry *e;

    KRON_TRY(get_entry(im, name, strlen(name), k, &e));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < k; i++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++)
            sum += (double)x[r * k + i] * (double)x[r * k + i];
        e->sum[i] += sum;
    }
    e->count += (double)rows;
    return KRON_OK;
}

static kron_status add_tensor(struct importance *im, const struct st_file *f,
                              const struct tensor *t)
{
    size_t len = strlen(t->name) - strlen(SUMS);
    struct str name = {0};
    struct entry *e;
    float v, count;

    str_add_n(&name, t->name, len);
    str_add(&name, COUNTS);
    const struct tensor *n = st_find(f, str_get(&name));
    kron_status status = name.status;
    str_free(&name);
    KRON_TRY(status);
    if (n == NULL || n->type != DT_F32 || t->type != DT_F32 || tensor_elements(n) != 1 ||
        tensor_elements(t) < 1)
        return err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s': expected f32 sums, and one f32 "
                       "number in '%.*s%s'", st_path(f), t->name, (int)len, t->name, COUNTS);
    KRON_TRY(get_entry(im, t->name, len, tensor_elements(t), &e));
    tensor_decode(n, 0, 1, &count);
    bool good = isfinite(count) && count > 0;
    for (int64_t i = 0; i < e->k && good; i++) {
        tensor_decode(t, i, 1, &v);
        good = isfinite(v) && v >= 0;
        e->sum[i] += (double)v;
    }
    e->count += (double)count;
    return good ? KRON_OK : err_set(KRON_ERR_FORMAT, "%s: tensor '%.200s': sums of squares and "
                                    "their counts must be finite and not negative", st_path(f),
                                    t->name);
}

kron_status importance_read(struct importance *im, const char *path)
{
    struct st_file *f;
    int64_t found = 0;

    KRON_TRY(st_open(&f, path));
    kron_status status = KRON_OK;
    for (int64_t i = 0; i < st_count(f) && status == KRON_OK; i++)
        if (str_ends(st_at(f, i)->name, SUMS)) {
            status = add_tensor(im, f, st_at(f, i));
            found++;
        }
    if (status == KRON_OK && found == 0)
        status = err_set(KRON_ERR_FORMAT, "%s: not an importance matrix: it has no tensor called "
                         "NAME%s", path, SUMS);
    st_close(&f);
    return status;
}

/* Two tensors for each entry, in memory of their own. */
static kron_status make_tensors(const struct importance *im, struct arena *mem,
                                struct tensor *out)
{
    for (int64_t i = 0; i < im->n; i++) {
        const struct entry *e = &im->at[i];
        float *sum = arena_alloc(mem, (size_t)e->k * sizeof *sum);
        float *count = arena_alloc(mem, sizeof *count);
        const char *sums = arena_printf(mem, "%s" SUMS, e->name);
        const char *counts = arena_printf(mem, "%s" COUNTS, e->name);
        KRON_TRY(mem->status);
        for (int64_t c = 0; c < e->k; c++)
            sum[c] = (float)e->sum[c];
        *count = (float)e->count;
        out[2 * i] = (struct tensor){sum, (size_t)e->k * 4, DT_F32, 1, {e->k, 1, 1, 1, 1, 1}, sums};
        out[2 * i + 1] = (struct tensor){count, 4, DT_F32, 1, {1, 1, 1, 1, 1, 1}, counts};
    }
    return KRON_OK;
}

kron_status importance_write(const struct importance *im, const char *path)
{
    static const char *const meta[] = {"general.type", "imatrix"};
    struct arena mem = {0};
    struct tensor *t;

    KRON_TRY(mem_alloc_n((void **)&t, 2 * (size_t)im->n, sizeof *t, "importance of channels"));
    kron_status status = make_tensors(im, &mem, t);
    if (status == KRON_OK)
        status = gguf_write(path, t, 2 * im->n, meta, 1);
    arena_free(&mem);
    mem_free(t);
    return status;
}

/* A channel that was never in use counts a little all the same, so that no block is without any. */
bool importance_get(const struct importance *im, const char *name, int64_t k, float *out)
{
    const double least = 1e-4;
    const struct entry *e = im != NULL ? find(im, name, strlen(name)) : NULL;
    double all = 0;

    if (e == NULL || e->k != k)
        return false;
    for (int64_t i = 0; i < k; i++)
        all += e->sum[i] / e->count / (double)k;
    for (int64_t i = 0; i < k; i++)
        out[i] = (float)(e->sum[i] / e->count + least * all);
    return all > 0;
}
