/* SPDX-License-Identifier: MIT
 * Floats to pictures, and previews. Images to latents and back: tiles.c. */
#include "image/image.h"
#include "pipeline/session.h"
#include <math.h>

void nchw_to_nhwc(const float *in, int64_t c, int64_t h, int64_t w, float *out)
{
    for (int64_t k = 0; k < c; k++)
        for (int64_t i = 0; i < h * w; i++)
            out[i * c + k] = in[k * h * w + i];
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
