/* SPDX-License-Identifier: MIT
 * A job from prompt to pictures. */
#include "image/image.h"
#include "pipeline/session.h"
#include "sample/rng.h"
#include "sample/sampler.h"
#include <math.h>
#include <string.h>

/* What one job keeps from picture to picture. */
struct job {
    struct session *s;
    const kron_job *in;
    int64_t h, w, n; /* latent size; numbers in a latent */
    struct prompt positive, negative;
    struct condition pos, neg;
    struct denoise denoise;
    struct noise_levels levels;
    const struct sampler *sampler;
    double *sigmas;   /* of all steps */
    int n_sigmas;     /* steps */
    int first;        /* first step to run */
    float *x, *noise, *swap, *picture;
    float *init, *keep; /* latent of the start picture; mask [h, w], 1 = redraw. NULL: none */
    float *extra;     /* inpainting checkpoints' further channels */
    kron_image source, mask; /* scaled to the job's size */
    struct rng start_rng, step_rng;
    int image;
    double step_start;
};

/* --- checks --- */

static kron_status check_size(const struct job *j)
{
    int f = j->s->e->model.vae.factor;

    if (j->in->width < f || j->in->height < f || j->in->width > 16384 || j->in->height > 16384)
        return err_set(KRON_ERR_ARGUMENT, "size %d x %d: expected %d to 16384 pixels a side",
                       j->in->width, j->in->height, f);
    if (j->in->width % f != 0 || j->in->height % f != 0)
        return err_set(KRON_ERR_ARGUMENT, "size %d x %d: expected multiples of %d", j->in->width,
                       j->in->height, f);
    return KRON_OK;
}

static kron_status check_job(const struct job *j)
{
    const kron_job *in = j->in;

    KRON_TRY(check_size(j));
    if (in->prompt == NULL)
        return err_set(KRON_ERR_ARGUMENT, "no prompt");
    if (in->batch_count < 1)
        return err_set(KRON_ERR_ARGUMENT, "batch count %d: expected at least 1", in->batch_count);
    if (in->sigmas == NULL && (in->steps < 1 || in->steps > SCHEDULE_MAX_STEPS))
        return err_set(KRON_ERR_ARGUMENT, "%d steps: expected 1 to %d", in->steps,
                       SCHEDULE_MAX_STEPS);
    if (!isfinite(in->cfg_scale))
        return err_set(KRON_ERR_ARGUMENT, "guidance is not a finite number");
    if (in->init_image != NULL && !(in->strength >= 0 && in->strength <= 1))
        return err_set(KRON_ERR_ARGUMENT, "strength %g: expected 0 to 1", (double)in->strength);
    if (in->mask != NULL && in->init_image == NULL)
        return err_set(KRON_ERR_ARGUMENT, "a mask needs a start picture");
    if (!(in->vae_tile_overlap >= 0 && in->vae_tile_overlap <= 0.5f) || in->vae_tile_width < 0 ||
        in->vae_tile_height < 0)
        return err_set(KRON_ERR_ARGUMENT, "VAE tile %dx%d with overlap %g: expected 0 (default) or "
                       "more, and 0 to 0.5", in->vae_tile_width, in->vae_tile_height,
                       (double)in->vae_tile_overlap);
    return KRON_OK;
}

/* --- progress --- */

static kron_status tell(struct job *j, const char *phase, int step, const kron_image *preview)
{
    double now = clock_seconds();
    kron_progress p = {.image = j->image, .n_images = j->in->batch_count, .step = step,
                       .n_steps = j->n_sigmas - j->first, .phase = phase,
                       .step_seconds = step > 0 ? now - j->step_start : 0, .preview = preview};

    j->step_start = now;
    if (j->in->progress != NULL && j->in->progress(&p, j->in->progress_user) != 0)
        return err_set(KRON_ERR_CANCELLED, "stopped by the caller");
    return KRON_OK;
}

static struct tiling tiling_of(const struct job *j)
{
    struct tiling t = {.on = j->in->vae_tiling != 0, .w = j->in->vae_tile_width,
                       .h = j->in->vae_tile_height,
                       .overlap = (double)j->in->vae_tile_overlap};

    return t;
}

static kron_status make_preview(struct job *j, const float *denoised, kron_image *out)
{
    struct tiling t = tiling_of(j);

    if (!j->in->preview_vae)
        return latent_preview(j->s, denoised, j->h, j->w, out);
    KRON_TRY(latent_decode(j->s, denoised, j->h, j->w, &t, j->picture));
    return image_from_floats(j->picture, j->in->height, j->in->width, out);
}

static int after_step(void *user, int done, const float *x, const float *denoised)
{
    struct job *j = user;
    kron_image preview = {0};
    int every = j->in->preview_interval;
    bool show = every > 0 && j->in->progress != NULL && done % every == 0;

    (void)x;
    j->denoise.step = done;
    if (show && make_preview(j, denoised, &preview) != KRON_OK)
        show = false; /* a step is worth more than its preview */
    kron_status status = tell(j, "sampling", done, show ? &preview : NULL);
    image_free(&preview);
    return status != KRON_OK;
}

/* --- what the sampler calls --- */

static kron_status network(void *user, const float *x, double t, float *out)
{
    struct job *j = user;

    return denoise_raw(&j->denoise, x, t, out);
}

/* Torch draws latents as [4, h, w]. */
static void draw(struct job *j, struct rng *r, float *out)
{
    rng_normal(r, j->swap, j->n);
    nchw_to_nhwc(j->swap, 4, j->h, j->w, out);
}

static void step_noise(void *user, int step, float *out, int64_t n)
{
    struct job *j = user;

    (void)step, (void)n;
    draw(j, j->in->sampler_rng == j->in->rng ? &j->start_rng : &j->step_rng, out);
}

/* Inpainting: outside the mask the estimate is the start picture. */
static void keep_outside(void *user, double sigma, float *denoised)
{
    struct job *j = user;

    (void)sigma;
    for (int64_t i = 0; i < j->n; i++) {
        float m = j->keep[i / 4];
        denoised[i] = m * denoised[i] + (1 - m) * j->init[i];
    }
}

/* --- preparation --- */

static kron_status prepare_sigmas(struct job *j)
{
    enum schedule asked;
    void *p;

    KRON_TRY(sampler_find(&j->sampler, j->in->sampler));
    KRON_TRY(schedule_find(&asked, j->in->schedule));
    levels_init(&j->levels);
    j->n_sigmas = j->in->sigmas != NULL ? j->in->n_sigmas - 1 : j->in->steps;
    if (j->n_sigmas < 1)
        return err_set(KRON_ERR_ARGUMENT, "%d sigmas: expected at least 2", j->in->n_sigmas);
    KRON_TRY(mem_alloc_n(&p, (size_t)j->n_sigmas + 1, sizeof *j->sigmas, "noise levels"));
    j->sigmas = p;
    if (j->in->sigmas != NULL) {
        memcpy(j->sigmas, j->in->sigmas, ((size_t)j->n_sigmas + 1) * sizeof *j->sigmas);
        KRON_TRY(schedule_check(j->sigmas, j->n_sigmas));
    } else {
        KRON_TRY(schedule_sigmas(j->sigmas, sampler_schedule(j->sampler, asked), j->n_sigmas,
                                 j->s->e->model.arch, &j->levels));
    }
    if (j->in->init_image != NULL)
        j->first = schedule_first_step(j->n_sigmas, (double)j->in->strength);
    return KRON_OK;
}

/* Only the positive prompt's tags bind adapters; tags in the negative one are an error that says
 * so, since they would do nothing. */
static kron_status prepare_text(struct job *j)
{
    const char *negative = j->in->negative_prompt ? j->in->negative_prompt : "";
    bool guided = j->in->cfg_scale != 1;

    KRON_TRY(prompt_parse(&j->positive, j->in->prompt, strlen(j->in->prompt)));
    KRON_TRY(prompt_parse(&j->negative, negative, strlen(negative)));
    if (j->negative.n_adapters > 0)
        return err_set(KRON_ERR_ARGUMENT, "the negative prompt names the adapter '%s': adapters "
                       "belong in the prompt", j->negative.adapters[0].name);
    KRON_TRY(session_bind_prompt(j->s, &j->positive, j->in->lora_dir));
    KRON_TRY(tell(j, "text", 0, NULL));
    KRON_TRY(encode_prompts(j->s, &j->positive, guided ? &j->negative : NULL, j->in->embd_dir,
                            j->in->clip_skip, &j->pos, &j->neg));
    session_done_with(j->s, PART_TE0);
    session_done_with(j->s, PART_TE1);
    return denoise_init(&j->denoise, j->s, &j->pos, guided ? &j->neg : NULL, j->in->cfg_scale, j->h,
                        j->w);
}

static kron_status encode_picture(struct job *j, const kron_image *image, float *latent)
{
    struct tiling t = tiling_of(j);

    for (int64_t i = 0; i < (int64_t)image->width * image->height * 3; i++)
        j->picture[i] = (float)image->pixels[i] / 127.5f - 1;
    return latent_encode(j->s, j->picture, j->h, j->w, &t, latent);
}

/* The latent mask: 1 where anything of the pixel block is to be redrawn, by its mean. */
static void shrink_mask(struct job *j)
{
    int64_t f = j->s->e->model.vae.factor, width = j->in->width;

    for (int64_t y = 0; y < j->h; y++)
        for (int64_t x = 0; x < j->w; x++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < f * f; i++)
                sum += j->mask.pixels[(y * f + i / f) * width + x * f + i % f];
            j->keep[y * j->w + x] = (float)sum / (float)(f * f * 255);
        }
}

/* Inpainting checkpoints take the mask and the latent of the picture with the masked part grey. */
static kron_status prepare_extra(struct job *j)
{
    int64_t more = j->s->e->model.unet.in_channels - 4, pixels = j->h * j->w;
    kron_image grey = j->source;
    float *latent = NULL;
    void *p;

    if (more == 0)
        return KRON_OK;
    if (j->mask.pixels == NULL)
        return err_set(KRON_ERR_ARGUMENT, "this is an inpainting checkpoint: it needs a start "
                       "picture and a mask");
    KRON_TRY(mem_floats(&j->extra, pixels * more, "the inpainting input"));
    KRON_TRY(mem_alloc(&p, (size_t)grey.width * (size_t)grey.height * 3, "the masked picture"));
    grey.pixels = p;
    for (int64_t i = 0; i < (int64_t)grey.width * grey.height * 3; i++)
        grey.pixels[i] = j->mask.pixels[i / 3] > 127 ? 128 : j->source.pixels[i];
    kron_status status = mem_floats(&latent, j->n, "a latent");
    if (status == KRON_OK)
        status = encode_picture(j, &grey, latent);
    for (int64_t i = 0; status == KRON_OK && i < pixels; i++) {
        j->extra[i * more] = j->keep[i] > 0.5f;
        memcpy(j->extra + i * more + 1, latent + i * 4, 4 * sizeof *latent);
    }
    mem_free(latent);
    mem_free(grey.pixels);
    j->denoise.extra = j->extra;
    return status;
}

/* A copy of a caller's picture, of the job's size and of so many channels. */
static kron_status fit(const struct job *j, const kron_image *in, int channels, const char *what,
                       kron_image *out)
{
    if (in->pixels == NULL || in->width < 1 || in->height < 1 ||
        (in->channels != 1 && in->channels != 3))
        return err_set(KRON_ERR_ARGUMENT, "%s: expected a picture of 1 or 3 channels", what);
    if (in->width == j->in->width && in->height == j->in->height) {
        KRON_TRY(image_alloc(out, in->width, in->height, in->channels));
        memcpy(out->pixels, in->pixels,
               (size_t)in->width * (size_t)in->height * (size_t)in->channels);
    } else {
        KRON_TRY(image_resize(out, in, j->in->width, j->in->height));
    }
    return image_convert(out, channels);
}

static kron_status prepare_start(struct job *j)
{
    if (j->in->init_image == NULL)
        return prepare_extra(j);
    KRON_TRY(tell(j, "encoding", 0, NULL));
    KRON_TRY(fit(j, j->in->init_image, 3, "start picture", &j->source));
    KRON_TRY(mem_floats(&j->init, j->n, "the start latent"));
    KRON_TRY(encode_picture(j, &j->source, j->init));
    if (j->in->mask != NULL) {
        KRON_TRY(fit(j, j->in->mask, 1, "mask", &j->mask));
        KRON_TRY(mem_floats(&j->keep, j->h * j->w, "the latent mask"));
        shrink_mask(j);
    }
    KRON_TRY(prepare_extra(j));
    session_done_with(j->s, PART_VAE);
    return KRON_OK;
}

static kron_status prepare(struct job *j)
{
    KRON_TRY(check_job(j));
    KRON_TRY(prepare_sigmas(j));
    j->h = j->in->height / j->s->e->model.vae.factor;
    j->w = j->in->width / j->s->e->model.vae.factor;
    j->n = j->h * j->w * 4;
    KRON_TRY(mem_floats(&j->x, j->n, "a latent"));
    KRON_TRY(mem_floats(&j->noise, j->n, "a latent"));
    KRON_TRY(mem_floats(&j->swap, j->n, "a latent"));
    KRON_TRY(mem_floats(&j->picture, (int64_t)j->in->width * j->in->height * 3, "a picture"));
    KRON_TRY(prepare_text(j));
    return prepare_start(j);
}

/* --- one picture --- */

/* Outside the mask the picture's own pixels stay, untouched by the VAE. */
static void keep_pixels(const struct job *j, kron_image *out)
{
    for (int64_t i = 0; i < (int64_t)out->width * out->height * 3; i++) {
        int m = j->mask.pixels[i / 3];
        int sum = out->pixels[i] * m + j->source.pixels[i] * (255 - m);
        out->pixels[i] = (uint8_t)((sum + 127) / 255);
    }
}

static kron_status sample(struct job *j)
{
    uint64_t seed = (uint64_t)j->in->seed + (uint64_t)j->image;
    struct sample_job run = {
        .sampler = j->sampler, .levels = &j->levels, .sigmas = j->sigmas + j->first,
        .n_steps = j->n_sigmas - j->first, .n = j->n, .eta = (double)j->in->eta,
        .prediction = j->s->e->prediction, .network = network, .noise = step_noise,
        .edit = j->keep != NULL ? keep_outside : NULL, .progress = after_step, .user = j};

    j->denoise.step = 0;
    j->denoise.n_steps = run.n_steps;
    rng_init(&j->start_rng, j->in->rng, seed);
    rng_init(&j->step_rng, j->in->sampler_rng, seed);
    draw(j, &j->start_rng, j->noise);
    sample_start(j->sampler, run.sigmas[0], j->noise, j->init, j->x, j->n);
    KRON_TRY(tell(j, "sampling", 0, NULL));
    return sample_run(&run, j->x);
}

static kron_status one_picture(struct job *j, kron_image *out)
{
    struct tiling t = tiling_of(j);

    KRON_TRY(sample(j));
    session_done_with(j->s, PART_UNET);
    KRON_TRY(tell(j, "decoding", 0, NULL));
    KRON_TRY(latent_decode(j->s, j->x, j->h, j->w, &t, j->picture));
    KRON_TRY(image_from_floats(j->picture, j->in->height, j->in->width, out));
    session_done_with(j->s, PART_VAE);
    if (j->keep != NULL)
        keep_pixels(j, out);
    return KRON_OK;
}

static void job_free(struct job *j)
{
    prompt_free(&j->positive);
    prompt_free(&j->negative);
    condition_free(&j->pos);
    condition_free(&j->neg);
    denoise_fini(&j->denoise);
    mem_free(j->sigmas);
    mem_free(j->x);
    mem_free(j->noise);
    mem_free(j->swap);
    mem_free(j->picture);
    mem_free(j->init);
    mem_free(j->keep);
    mem_free(j->extra);
    image_free(&j->source);
    image_free(&j->mask);
}

kron_status session_generate(struct session *s, const kron_job *job, kron_image *images)
{
    struct job j = {.s = s, .in = job};

    s->busy = true;
    kron_status status = prepare(&j);
    for (j.image = 0; status == KRON_OK && j.image < job->batch_count; j.image++)
        status = one_picture(&j, &images[j.image]);
    be_weights_trim(s->e->device, s->weights); /* plans stay, and are small without it */
    job_free(&j);
    s->busy = false;
    return status;
}
