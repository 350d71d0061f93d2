/* SPDX-License-Identifier: MIT
 * kron-quality: what computing in int8 costs: the relative error of single calls of the UNet, and
 * how near whole pictures are to those of f32.
 *
 *   kron-quality MODEL [--lora FILE[:S]] [--size N] [--steps N] [--threads N] [--prompt TEXT]...
 *                [--most-error X] [--least-psnr X]
 *
 * Without a prompt no picture is drawn. Fails if a call's error is over, or the mean of the
 * pictures' PSNR is under, what is given. Numbers measured so are in docs/int8.md. */
#include "pipeline/session.h"
#include "sample/rng.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPTS = 16, N_TIMES = 4 };

struct options {
    const char *model, *lora, *prompts[MAX_PROMPTS];
    int n_prompts;
    int64_t size, steps, threads;
    double most_error, least_psnr;
};

/* The same adapters on one model, in f32 and in int8. */
struct pair {
    struct engine e;
    struct session *s[2];
};

static kron_status pair_open(struct pair *p, const struct options *o)
{
    kron_model_params m = {.model = o->model, .n_threads = (int)o->threads};

    KRON_TRY(engine_open(&p->e, &m));
    for (int i = 0; i < 2; i++) {
        kron_session_params how = {.compute = i ? KRON_COMPUTE_INT8 : KRON_COMPUTE_F32};
        KRON_TRY(session_create(&p->s[i], &p->e, &how));
        if (o->lora != NULL)
            KRON_TRY(session_add_adapter_text(p->s[i], o->lora));
    }
    return KRON_OK;
}

static void pair_close(struct pair *p)
{
    session_free(&p->s[0]);
    session_free(&p->s[1]);
    engine_close(&p->e);
}

/* --- calls of the UNet --- */

static double distance(const float *x, const float *y, int64_t n)
{
    double d = 0, size = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        size += (double)y[i] * y[i];
    }
    return sqrt(d / size);
}

/* Both sessions see the text as f32 encodes it. */
static kron_status encode(struct session *s, const char *text, struct condition *c)
{
    struct prompt prompt;

    KRON_TRY(prompt_parse(&prompt, text, strlen(text)));
    kron_status status = encode_prompts(s, &prompt, NULL, NULL, 0, c, NULL);
    prompt_free(&prompt);
    return status;
}

static kron_status one_call(struct session *s, const struct condition *c, int64_t side,
                            const float *x, double t, float *out)
{
    struct denoise d;

    KRON_TRY(denoise_init(&d, s, c, NULL, 1, side, side));
    session_fill_strengths(s, 0, 1);
    kron_status status = denoise_raw(&d, x, t, out);
    denoise_fini(&d);
    return status;
}

/* Noise at early steps, and less of it later, as pictures have it: scaled to one all the same. */
static kron_status calls(struct pair *p, const struct options *o, double *worst)
{
    static const double times[N_TIMES] = {981, 701, 401, 101};
    int64_t side = o->size / p->e.model.vae.factor, n = side * side * 4;
    struct condition c = {0};
    struct rng rng;
    float *x;

    KRON_TRY(mem_floats(&x, 3 * n, "a call"));
    rng_init(&rng, KRON_RNG_CPU, 1);
    rng_normal(&rng, x, n);
    kron_status status = encode(p->s[0], o->n_prompts ? o->prompts[0] : "a cat", &c);
    for (int i = 0; i < N_TIMES && status == KRON_OK; i++) {
        for (int j = 0; j < 2 && status == KRON_OK; j++)
            status = one_call(p->s[j], &c, side, x, times[i], x + (1 + j) * n);
        double error = distance(x + 2 * n, x + n, n);
        if (status == KRON_OK)
            printf("UNet call at t %4.0f: relative error %.3f %%\n", times[i], 100 * error);
        *worst = error > *worst || isnan(error) ? error : *worst;
    }
    condition_free(&c);
    mem_free(x);
    return status;
}

/* --- pictures --- */

static double psnr(const kron_image *a, const kron_image *b)
{
    size_t n = (size_t)a->width * (size_t)a->height * 3;
    double sum = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)a->pixels[i] - b->pixels[i];
        sum += d * d / (double)n;
    }
    return sum > 0 ? 10 * log10(255 * 255 / sum) : INFINITY;
}

static kron_status picture(struct pair *p, const struct options *o, const char *prompt,
                           double *out)
{
    kron_job job = kron_job_default();
    kron_image image[2] = {{0}, {0}};
    kron_status status = KRON_OK;

    job.prompt = prompt;
    job.width = job.height = (int)o->size;
    job.steps = (int)o->steps;
    job.cfg_scale = 5;
    job.sampler = "dpm++2m";
    job.schedule = "karras";
    job.seed = 100;
    for (int i = 0; i < 2 && status == KRON_OK; i++)
        status = session_generate(p->s[i], &job, &image[i]);
    if (status == KRON_OK) {
        *out = psnr(&image[0], &image[1]);
        printf("PSNR %6.2f dB  %s\n", *out, prompt);
    }
    kron_image_free(&image[0]);
    kron_image_free(&image[1]);
    return status;
}

static kron_status run(const struct options *o, bool *good)
{
    struct pair p = {0};
    double worst = 0, sum = 0, one = 0;
    kron_status status = pair_open(&p, o);

    if (status == KRON_OK)
        status = calls(&p, o, &worst);
    for (int i = 0; i < o->n_prompts && status == KRON_OK; i++) {
        status = picture(&p, o, o->prompts[i], &one);
        sum += fmin(one, 100);
    }
    pair_close(&p);
    double mean = o->n_prompts ? sum / o->n_prompts : INFINITY;
    if (status == KRON_OK && o->n_prompts > 0)
        printf("PSNR %6.2f dB  mean\n", mean);
    *good = worst <= o->most_error && mean >= o->least_psnr;
    return status;
}

/* --- options --- */

static bool read_option(struct options *o, const char *name, const char *value)
{
    if (strcmp(name, "--lora") == 0) {
        o->lora = value;
    } else if (strcmp(name, "--prompt") == 0 && o->n_prompts < MAX_PROMPTS) {
        o->prompts[o->n_prompts++] = value;
    } else if (strcmp(name, "--size") == 0) {
        return str_to_i64(value, &o->size) && o->size >= 64 && o->size % 64 == 0;
    } else if (strcmp(name, "--steps") == 0) {
        return str_to_i64(value, &o->steps) && o->steps > 0;
    } else if (strcmp(name, "--threads") == 0) {
        return str_to_i64(value, &o->threads);
    } else if (strcmp(name, "--most-error") == 0) {
        o->most_error = atof(value);
    } else if (strcmp(name, "--least-psnr") == 0) {
        o->least_psnr = atof(value);
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.size = 256, .steps = 20, .most_error = INFINITY, .least_psnr = 0};
    bool good = argc >= 2 && argc % 2 == 0;

    for (int i = 2; good && i + 1 < argc; i += 2)
        good = read_option(&o, argv[i], argv[i + 1]);
    if (!good) {
        fprintf(stderr, "usage: kron-quality MODEL [--lora FILE[:S]] [--size N] [--steps N] "
                        "[--threads N] [--prompt TEXT]... [--most-error X] [--least-psnr X]\n");
        return 2;
    }
    o.model = argv[1];
    if (run(&o, &good) != KRON_OK) {
        fprintf(stderr, "kron-quality: %s\n", kron_error_detail());
        return 2;
    }
    return good ? 0 : 1;
}
