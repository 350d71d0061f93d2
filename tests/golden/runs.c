/* SPDX-License-Identifier: MIT
 * runs_ARCH: whole sampling runs; and the shipped model's own, against its pictures. */
#include "golden.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *numbers(const json_t *list)
{
    size_t n = json_array_size(list);
    void *p;

    if (n == 0 || mem_alloc_n(&p, n, sizeof(double), "numbers") != KRON_OK)
        return NULL;
    for (size_t i = 0; i < n; i++)
        ((double *)p)[i] = json_number_value(json_array_get(list, i));
    return p;
}

static float *noise_of(const struct st_file *f, const char *name, const int64_t dim[4])
{
    const struct tensor *t = find(f, name, "noise");
    int64_t steps, one = dim[1] * dim[2] * dim[3];
    float *raw, *out;

    if (t == NULL)
        return NULL;
    steps = tensor_elements(t) / one;
    raw = get(f, name, "noise", NULL);
    out = floats(steps * one);
    for (int64_t i = 0; i < steps; i++)
        to_nhwc(raw + i * one, dim, out + i * one);
    mem_free(raw);
    return out;
}

static void check_image(struct golden *g, struct session *s, const struct st_file *f,
                        const char *name, const float *x, int64_t h, int64_t w)
{
    struct tiling whole = {.on = false};
    int64_t dim[4];
    char label[128];

    if (find(f, name, "image") == NULL)
        return;
    float *want = get_nhwc(f, name, "image", dim);
    float *got = floats(dim[1] * dim[2] * dim[3]);
    snprintf(label, sizeof label, "%s/image", name);
    if (latent_decode(s, x, h, w, &whole, got) != KRON_OK)
        broken(g, label);
    else
        result(g, label, rel(got, want, dim[1] * dim[2] * dim[3]), BOUND_RUN);
    mem_free(want);
    mem_free(got);
}

void check_run(struct golden *g, struct session *s, const struct st_file *f, const json_t *row,
               const char *x_name)
{
    const char *name = text_of(row, "name");
    struct condition pos = {0}, neg = {0};
    int64_t dim[4], want_dim[4];
    float *x = get_nhwc(f, x_name, "x_init", dim), *want = get_nhwc(f, name, "final", want_dim);
    float *noise = noise_of(f, name, dim);
    int64_t n = dim[1] * dim[2] * dim[3];
    char label[128];
    struct golden_run r = {.sampler = text_of(row, "sampler"), .schedule = text_of(row, "schedule"),
                           .steps = (int)number_of(row, "steps"), .cfg = number_of(row, "cfg"),
                           .noise = noise};

    snprintf(label, sizeof label, "%s (%s, %s)", name, r.sampler, r.schedule);
    if (encode_text(s, text_of(row, "prompt"), 0, &pos) != KRON_OK ||
        encode_text(s, text_of(row, "negative"), 0, &neg) != KRON_OK ||
        run_whole(s, &r, &pos, &neg, dim[2], dim[3], x) != KRON_OK) {
        broken(g, label);
    } else {
        result(g, label, rel(x, want, n), BOUND_RUN);
        check_image(g, s, f, name, x, dim[2], dim[3]);
    }
    condition_free(&pos);
    condition_free(&neg);
    mem_free(x);
    mem_free(want);
    mem_free(noise);
}

void golden_runs(struct golden *g, const char *arch)
{
    struct data_set d;
    json_t *row;
    size_t i;

    if (!open_set(g, &d, "runs", arch, KRON_APPLY_AUTO))
        return;
    json_array_foreach(json_object_get(d.manifest, "runs"), i, row)
        check_run(g, d.l.s, d.tensors, row, text_of(row, "name"));
    close_set(&d);
}

/* --- the shipped model --- */

/* The model that a folder of its goldens lies beside: the one checkpoint of DIR/.. */
static const char shipped_model[] = "../emoji-sd.safetensors";

/* The adapters lie beside the model. */
static bool bind_adapters(struct golden *g, struct session *s, const json_t *list)
{
    char paths[8][256];
    const char *files[8];
    double strengths[8];
    size_t n = json_array_size(list);

    KRON_ASSERT(n <= 8);
    for (size_t i = 0; i < n; i++) {
        const json_t *a = json_array_get(list, i);
        snprintf(paths[i], sizeof paths[i], "../%s", text_of(a, "file"));
        files[i] = paths[i];
        strengths[i] = number_of(a, "multiplier");
    }
    return bind_files(g, s, files, strengths, n) == KRON_OK;
}

/* Largest difference of two pictures in levels of 255. */
static double picture_distance(const kron_image *a, const kron_image *b)
{
    int most = 0;

    if (a->width != b->width || a->height != b->height || a->channels != b->channels)
        return NAN;
    for (int64_t i = 0; i < (int64_t)a->width * a->height * a->channels; i++) {
        int d = abs(a->pixels[i] - b->pixels[i]);
        most = d > most ? d : most;
    }
    return most;
}

/* Rounding may tip a number over to the next level, no further. */
static void check_picture(struct golden *g, struct session *s, const char *name, const float *x,
                          int64_t h, int64_t w)
{
    struct tiling whole = {.on = false};
    float *image = floats(h * w * 64 * 3);
    kron_image got = {0}, want = {0};
    char path[4096], label[160];

    snprintf(path, sizeof path, "%s/%s.png", g->dir, name);
    snprintf(label, sizeof label, "%s/picture", name);
    if (latent_decode(s, x, h, w, &whole, image) != KRON_OK ||
        image_from_floats(image, h * 8, w * 8, &got) != KRON_OK ||
        kron_image_load(&want, path, 3) != KRON_OK)
        broken(g, label);
    else
        result(g, label, picture_distance(&got, &want), 1);
    kron_image_free(&got);
    kron_image_free(&want);
    mem_free(image);
}

static void check_shipped(struct golden *g, struct session *s, const json_t *row)
{
    const char *name = text_of(row, "file");
    char file[256];
    int64_t dim[4];
    struct condition pos = {0}, neg = {0};

    snprintf(file, sizeof file, "%s.safetensors", name);
    struct st_file *f = load_tensors(g, file);
    float *x = get_nhwc(f, "", "initial", dim), *want = get_nhwc(f, "", "final", dim);
    int64_t n = dim[1] * dim[2] * dim[3];
    double *sigmas = numbers(json_object_get(row, "sigmas"));
    double *timesteps = numbers(json_object_get(row, "timesteps"));
    struct golden_run r = {.sampler = str_starts(text_of(row, "sampler"), "dpmpp2m") ? "dpm++2m"
                                                                                    : "euler",
                           .steps = (int)number_of(row, "steps"), .cfg = number_of(row, "cfg"),
                           .sigmas = sigmas, .timesteps = timesteps};

    /* Both of diffusers' schedulers start from x of unit variance in their own way. */
    for (int64_t i = 0; i < n; i++)
        x[i] *= (float)sqrt(sigmas[0] * sigmas[0] + 1);
    if (!bind_adapters(g, s, json_object_get(row, "adapters")) ||
        encode_text(s, text_of(row, "prompt"), 0, &pos) != KRON_OK ||
        encode_text(s, text_of(row, "negative"), 0, &neg) != KRON_OK ||
        run_whole(s, &r, &pos, &neg, dim[2], dim[3], x) != KRON_OK) {
        broken(g, name);
    } else {
        result(g, name, rel(x, want, n), BOUND_RUN);
        check_picture(g, s, name, x, dim[2], dim[3]);
    }
    condition_free(&pos);
    condition_free(&neg);
    mem_free(sigmas);
    mem_free(timesteps);
    mem_free(x);
    mem_free(want);
    st_close(&f);
}

void golden_shipped(struct golden *g)
{
    json_t *man = load_json(g, "manifest.json"), *row;
    struct loaded l;
    size_t i;

    if (man == NULL || !wanted(g, "shipped"))
        return;
    printf("# shipped model\n");
    if (!open_model(g, &l, shipped_model, KRON_APPLY_AUTO))
        return;
    json_array_foreach(json_object_get(man, "runs"), i, row)
        check_shipped(g, l.s, row);
    close_model(&l);
    json_decref(man);
}
