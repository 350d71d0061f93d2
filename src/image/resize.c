/* SPDX-License-Identifier: MIT
 * Scaling by a windowed sinc, L(x) = sinc(x) sinc(x / 3) for |x| < 3, first along the rows, then
 * down the columns. Where a side shrinks the window widens by the same factor, so that nothing
 * above the new sampling rate is left. At the edges the window is cut and its weights brought back
 * to a sum of one. */
#include "image/image.h"
#include <math.h>
#include <string.h>

enum { LOBES = 3 };

/* Output i is the sum over k < n[i] of weights[i * cap + k] * input[first[i] + k]. first[] never
 * falls. */
struct taps {
    int *first, *n;
    float *weights;
    int cap;
};

static double lanczos(double x)
{
    x = fabs(x);
    if (x < 1e-9)
        return 1.0;
    if (x >= LOBES)
        return 0.0;
    double a = x * 3.14159265358979323846;
    return LOBES * sin(a) * sin(a / LOBES) / (a * a);
}

static void taps_free(struct taps *t)
{
    mem_free(t->first);
    mem_free(t->n);
    mem_free(t->weights);
}

static void taps_fill(struct taps *t, int i, int in, double scale)
{
    double wide = scale > 1 ? scale : 1;
    double centre = (i + 0.5) * scale, sum = 0;
    int first = (int)ceil(centre - LOBES * wide - 0.5);
    int last = (int)floor(centre + LOBES * wide - 0.5);
    first = first < 0 ? 0 : first;
    last = last > in - 1 ? in - 1 : last;
    float *w = t->weights + (size_t)i * (size_t)t->cap;
    for (int k = first; k <= last; k++)
        sum += lanczos((k + 0.5 - centre) / wide);
    for (int k = first; k <= last; k++)
        w[k - first] = (float)(lanczos((k + 0.5 - centre) / wide) / sum);
    t->first[i] = first;
    t->n[i] = last - first + 1;
}

static kron_status taps_make(struct taps *t, int in, int out)
{
    double scale = (double)in / out;
    void *first, *n, *weights;
    *t = (struct taps){.cap = 2 * (int)ceil(LOBES * (scale > 1 ? scale : 1)) + 1};
    KRON_TRY(mem_alloc_n(&first, (size_t)out, sizeof(int), "resize"));
    t->first = first;
    KRON_TRY(mem_alloc_n(&n, (size_t)out, sizeof(int), "resize"));
    t->n = n;
    KRON_TRY(mem_alloc_n(&weights, (size_t)out * (size_t)t->cap, sizeof(float), "resize"));
    t->weights = weights;
    for (int i = 0; i < out; i++)
        taps_fill(t, i, in, scale);
    return KRON_OK;
}

/* One row of `in` to the new width. */
static void scale_row(float *out, const uint8_t *in, const struct taps *t, int width, int channels)
{
    for (int x = 0; x < width; x++) {
        const uint8_t *from = in + t->first[x] * channels;
        const float *w = t->weights + (size_t)x * (size_t)t->cap;
        float sum[3] = {0, 0, 0};
        for (int k = 0; k < t->n[x]; k++)
            for (int c = 0; c < channels; c++)
                sum[c] += w[k] * (float)from[k * channels + c];
        memcpy(out + x * channels, sum, (size_t)channels * sizeof(float));
    }
}

static uint8_t to_byte(float v)
{
    return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)(v + 0.5f);
}

/* Rows already scaled wait in a ring as tall as the window: large pictures need no second copy. */
static void scale_all(kron_image *out, const kron_image *in, const struct taps *tx,
                      const struct taps *ty, float *ring, float *sums)
{
    size_t row = (size_t)out->width * (size_t)out->channels;
    size_t in_row = (size_t)in->width * (size_t)in->channels;
    int ready = 0;
    for (int y = 0; y < out->height; y++) {
        int end = ty->first[y] + ty->n[y];
        for (ready = ready < ty->first[y] ? ty->first[y] : ready; ready < end; ready++)
            scale_row(ring + (size_t)(ready % ty->cap) * row,
                      in->pixels + (size_t)ready * in_row, tx, out->width, out->channels);
        memset(sums, 0, row * sizeof(float));
        for (int k = 0; k < ty->n[y]; k++) {
            const float *from = ring + (size_t)((ty->first[y] + k) % ty->cap) * row;
            float w = ty->weights[(size_t)y * (size_t)ty->cap + (size_t)k];
            for (size_t i = 0; i < row; i++)
                sums[i] += w * from[i];
        }
        uint8_t *to = out->pixels + (size_t)y * row;
        for (size_t i = 0; i < row; i++)
            to[i] = to_byte(sums[i]);
    }
}

kron_status image_resize(kron_image *out, const kron_image *in, int width, int height)
{
    struct taps tx = {0}, ty = {0};
    void *ring = NULL, *sums = NULL;
    kron_image made;
    KRON_TRY(image_alloc(&made, width, height, in->channels));
    size_t row = (size_t)width * (size_t)in->channels;
    kron_status status = taps_make(&tx, in->width, width);
    if (status == KRON_OK)
        status = taps_make(&ty, in->height, height);
    if (status == KRON_OK)
        status = mem_alloc_n(&ring, row * (size_t)ty.cap, sizeof(float), "resize");
    if (status == KRON_OK)
        status = mem_alloc_n(&sums, row, sizeof(float), "resize");
    if (status == KRON_OK)
        scale_all(&made, in, &tx, &ty, ring, sums);
    else
        image_free(&made);
    taps_free(&tx);
    taps_free(&ty);
    mem_free(ring);
    mem_free(sums);
    *out = made;
    return status;
}
