/* SPDX-License-Identifier: MIT
 * Images to latents and back, whole or in tiles, and previews. */
#include "image/image.h"
#include "pipeline/session.h"
#include <math.h>
#include <string.h>

void nchw_to_nhwc(const float *in, int64_t c, int64_t h, int64_t w, float *out)
{
    for (int64_t k = 0; k < c; k++)
        for (int64_t i = 0; i < h * w; i++)
            out[i * c + k] = in[k * h * w + i];
}

/* --- tiles --- */

/* A picture processed in overlapping windows: input [h, w, in_c] in cells, output `up` pixels
 * (or, encoding, 1 / down of the input) a side for each cell. */
struct tiles {
    struct session *s;
    enum net_kind kind;
    const char *in_name, *out_name;
    int64_t h, w;         /* latent size of the whole */
    int64_t tile, step;   /* latent pixels */
    int64_t in_f, out_f;  /* pixels a latent pixel, of input and output */
    int64_t in_c, out_c;
    const float *in;
    float *out, *weight;  /* sums, and of the weights [h*out_f, w*out_f] */
    float *a, *b;         /* one tile in and out */
};

static kron_status run_net(struct tiles *t, int64_t h, int64_t w, const float *in, float *out)
{
    struct net_key key = {.kind = t->kind, .n = 1, .h = h * t->in_f, .w = w * t->in_f};
    struct net *net;

    KRON_TRY(net_get(t->s, &key, &net));
    KRON_TRY(net_write(net, t->in_name, in, key.h * key.w * t->in_c));
    KRON_TRY(net_run(t->s, net));
    return net_read(net, t->out_name, out, h * w * t->out_f * t->out_f * t->out_c);
}

static void copy_in(const struct tiles *t, int64_t y, int64_t x, int64_t th, int64_t tw)
{
    int64_t row = tw * t->in_f * t->in_c;

    for (int64_t i = 0; i < th * t->in_f; i++)
        memcpy(t->a + i * row, t->in + ((y * t->in_f + i) * t->w * t->in_f + x * t->in_f) * t->in_c,
               (size_t)row * sizeof *t->a);
}

/* Falls linearly from the middle of a tile to its edge; never 0, so that every pixel has some. */
static float ramp(int64_t i, int64_t n)
{
    double middle = (double)(n - 1) / 2;

    return (float)(1.0 / (double)n + 1 - fabs((double)i - middle) / (middle + 1));
}

static void add_out(const struct tiles *t, int64_t y, int64_t x, int64_t th, int64_t tw)
{
    int64_t oh = th * t->out_f, ow = tw * t->out_f, all = t->w * t->out_f;

    for (int64_t i = 0; i < oh; i++)
        for (int64_t j = 0; j < ow; j++) {
            int64_t at = (y * t->out_f + i) * all + x * t->out_f + j;
            float w = ramp(i, oh) * ramp(j, ow);
            t->weight[at] += w;
            for (int64_t c = 0; c < t->out_c; c++)
                t->out[at * t->out_c + c] += w * t->b[(i * ow + j) * t->out_c + c];
        }
}

/* Where tile number i begins: evenly stepped, the last moved back to end with the picture. */
static int64_t start_of(int64_t i, int64_t step, int64_t tile, int64_t whole)
{
    int64_t at = i * step;

    return at + tile > whole ? whole - tile : at;
}

static int64_t count_tiles(int64_t whole, int64_t tile, int64_t step)
{
    return whole <= tile ? 1 : (whole - tile + step - 1) / step + 1;
}

static kron_status run_tiles(struct tiles *t)
{
    int64_t th = t->tile < t->h ? t->tile : t->h, tw = t->tile < t->w ? t->tile : t->w;
    int64_t rows = count_tiles(t->h, th, t->step), cols = count_tiles(t->w, tw, t->step);
    int64_t pixels = t->h * t->w * t->out_f * t->out_f;

    memset(t->out, 0, (size_t)(pixels * t->out_c) * sizeof *t->out);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            int64_t y = start_of(i, t->step, th, t->h), x = start_of(j, t->step, tw, t->w);
            copy_in(t, y, x, th, tw);
            KRON_TRY(run_net(t, th, tw, t->a, t->b));
            add_out(t, y, x, th, tw);
        }
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < t->out_c; c++)
            t->out[i * t->out_c + c] /= t->weight[i];
    return KRON_OK;
}

static kron_status run_whole_or_tiles(struct tiles *t, const struct tiling *how)
{
    kron_status status;

    t->tile = how->tile > 0 ? how->tile : 32;
    if (!how->on || (t->h <= t->tile && t->w <= t->tile))
        return run_net(t, t->h, t->w, t->in, t->out);
    t->step = t->tile - (int64_t)(how->overlap * (double)t->tile);
    t->step = t->step < 1 ? 1 : t->step;
    status = mem_floats(&t->weight, t->h * t->w * t->out_f * t->out_f, "tiles");
    if (status == KRON_OK)
        status = mem_floats(&t->a, t->tile * t->tile * t->in_f * t->in_f * t->in_c, "a tile");
    if (status == KRON_OK)
        status = mem_floats(&t->b, t->tile * t->tile * t->out_f * t->out_f * t->out_c, "a tile");
    if (status == KRON_OK)
        status = run_tiles(t);
    mem_free(t->weight);
    mem_free(t->a);
    mem_free(t->b);
    return status;
}

/* --- whole pictures --- */

kron_status latent_decode(struct session *s, const float *latent, int64_t h, int64_t w,
                          const struct tiling *how, float *image)
{
    const struct vae *v = &s->e->model.vae;
    struct tiles t = {.s = s, .kind = NET_DECODE, .in_name = "latent", .out_name = "image",
                      .h = h, .w = w, .in_f = 1, .out_f = v->factor, .in_c = v->latent_channels,
                      .out_c = 3, .out = image};
    int64_t n = h * w * v->latent_channels;
    float *scaled;

    KRON_TRY(mem_floats(&scaled, n, "a latent"));
    for (int64_t i = 0; i < n; i++)
        scaled[i] = latent[i] / v->scale;
    t.in = scaled;
    kron_status status = run_whole_or_tiles(&t, how);
    mem_free(scaled);
    return status;
}

kron_status latent_encode(struct session *s, const float *image, int64_t h, int64_t w,
                          const struct tiling *how, float *latent)
{
    const struct vae *v = &s->e->model.vae;
    int64_t c = v->latent_channels;
    struct tiles t = {.s = s, .kind = NET_ENCODE, .in_name = "image", .out_name = "moments",
                      .h = h, .w = w, .in_f = v->factor, .out_f = 1, .in_c = 3, .out_c = 2 * c,
                      .in = image};

    if (v->encoder.conv_in == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "the model's VAE has no encoder: a start picture "
                       "needs one");
    KRON_TRY(mem_floats(&t.out, h * w * t.out_c, "a latent"));
    kron_status status = run_whole_or_tiles(&t, how);
    for (int64_t i = 0; i < h * w; i++)
        for (int64_t k = 0; k < c; k++)
            latent[i * c + k] = t.out[i * 2 * c + k] * v->scale;
    mem_free(t.out);
    return status;
}

static uint8_t to_byte(double v)
{
    double x = (v + 1) * 127.5;

    return (uint8_t)(x < 0 || isnan(x) ? 0 : x > 255 ? 255 : lrint(x));
}

kron_status image_from_floats(const float *image, int64_t h, int64_t w, kron_image *out)
{
    KRON_TRY(image_alloc(out, (int)w, (int)h, 3));
    for (int64_t i = 0; i < h * w * 3; i++)
        out->pixels[i] = to_byte(image[i]);
    return KRON_OK;
}

/* Least-squares fits of RGB in [-1, 1] to the four latent channels, as widely used for previews. */
static const float rgb_sd1[4][3] = {{0.3512f, 0.2297f, 0.3227f}, {0.3250f, 0.4974f, 0.2350f},
                                    {-0.2829f, 0.1762f, 0.2721f}, {-0.2120f, -0.2616f, -0.7177f}};
static const float rgb_sdxl[4][3] = {{0.3651f, 0.4232f, 0.4341f}, {-0.2533f, -0.0042f, 0.1068f},
                                     {0.1076f, 0.1111f, -0.0362f}, {-0.3165f, -0.2492f, -0.2188f}};

kron_status latent_preview(const struct session *s, const float *latent, int64_t h, int64_t w,
                           kron_image *out)
{
    const float(*rgb)[3] = s->e->model.arch == KRON_ARCH_SDXL ? rgb_sdxl : rgb_sd1;

    KRON_TRY(image_alloc(out, (int)w, (int)h, 3));
    for (int64_t i = 0; i < h * w; i++)
        for (int c = 0; c < 3; c++) {
            double v = 0;
            for (int k = 0; k < 4; k++)
                v += (double)rgb[k][c] * latent[i * 4 + k];
            out->pixels[i * 3 + c] = to_byte(v);
        }
    return KRON_OK;
}
