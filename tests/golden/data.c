/* SPDX-License-Identifier: MIT
 * Reading data sets, and distances. */
#include "golden.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *path_of(const struct golden *g, const char *name)
{
    static char path[4096];

    snprintf(path, sizeof path, "%s/%s", g->dir, name);
    return path;
}

static void die(const char *what)
{
    fprintf(stderr, "kron-golden: %s: %s\n", what, kron_error_detail());
    exit(1);
}

json_t *load_json(const struct golden *g, const char *name)
{
    json_error_t e;
    json_t *j;

    if (!path_is_file(path_of(g, name)))
        return NULL;
    j = json_load_file(path_of(g, name), 0, &e);
    if (j == NULL)
        die(e.text);
    return j;
}

struct st_file *load_tensors(const struct golden *g, const char *name)
{
    struct st_file *f;

    if (st_open(&f, path_of(g, name)) != KRON_OK)
        die(name);
    return f;
}

float *floats(int64_t n)
{
    void *p;

    if (mem_alloc_n(&p, (size_t)n, sizeof(float), "golden data") != KRON_OK)
        die("memory");
    return p;
}

const struct tensor *find(const struct st_file *f, const char *name, const char *part)
{
    char key[512];

    snprintf(key, sizeof key, "%s%s%s", name, name[0] ? "/" : "", part);
    return st_find(f, key);
}

float *get(const struct st_file *f, const char *name, const char *part, int64_t *n)
{
    const struct tensor *t = find(f, name, part);
    float *out;

    if (t == NULL) {
        err_set(KRON_ERR_FORMAT, "no tensor %s", part);
        die(name);
    }
    out = floats(tensor_elements(t));
    tensor_decode(t, 0, tensor_elements(t), out);
    if (n != NULL)
        *n = tensor_elements(t);
    return out;
}

void to_nhwc(const float *in, const int64_t dim[4], float *out)
{
    int64_t one = dim[1] * dim[2] * dim[3];

    for (int64_t b = 0; b < dim[0]; b++)
        nchw_to_nhwc(in + b * one, dim[1], dim[2], dim[3], out + b * one);
}

float *get_nhwc(const struct st_file *f, const char *name, const char *part, int64_t dim[4])
{
    const struct tensor *t = find(f, name, part);
    int64_t n;
    float *in = get(f, name, part, &n), *out = floats(n);

    memcpy(dim, t->dim, 4 * sizeof *dim);
    to_nhwc(in, dim, out);
    mem_free(in);
    return out;
}

double rel(const float *got, const float *want, int64_t n)
{
    double d = 0, w = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        w += (double)want[i] * want[i];
    }
    return sqrt(d) / fmax(sqrt(w), 1e-30);
}

double rel_change(const float *got, const float *got0, const float *want, const float *want0,
                  int64_t n)
{
    double d = 0, w = 0;

    for (int64_t i = 0; i < n; i++) {
        double a = (double)got[i] - got0[i], b = (double)want[i] - want0[i];
        d += (a - b) * (a - b);
        w += b * b;
    }
    return sqrt(d) / fmax(sqrt(w), 1e-30);
}

const char *text_of(const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));

    return s != NULL ? s : "";
}

double number_of(const json_t *j, const char *key)
{
    return json_number_value(json_object_get(j, key));
}
