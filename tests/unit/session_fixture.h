/* SPDX-License-Identifier: MIT
 * What tests of sessions share: the shipped model and its adapters, small jobs, pictures that are
 * equal, near or apart. */
#ifndef UNIT_SESSION_FIXTURE_H
#define UNIT_SESSION_FIXTURE_H
#include "base/base.h" /* mem_fail_after() and file helpers; all else is public */
#include <kron/kron.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <unistd.h>

#define MODELS KRON_SOURCE_DIR "/models"

enum { SIDE = 64 };

static kron_model *model;
static kron_adapter *neon, *pixel, *sketch; /* LoKr whole, LoKr of rank 6, LoRA */
static kron_image plain;                    /* what small_job() gives without adapters */

static inline kron_job small_job(void)
{
    kron_job j = kron_job_default();

    j.prompt = "a cat face";
    j.negative_prompt = "blurry";
    j.lora_dir = MODELS;
    j.width = j.height = SIDE;
    j.steps = 2;
    j.cfg_scale = 5;
    j.seed = 7;
    j.sampler = "euler";
    return j;
}

static inline kron_session *new_session(kron_apply apply)
{
    kron_session_params p = {.apply = apply};
    kron_session *s;

    assert_int_equal(kron_session_create(&s, model, &p), KRON_OK);
    return s;
}

static inline kron_image draw(kron_session *s, const kron_job *j)
{
    kron_image image = {0};

    if (kron_generate(s, j, &image) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(image.width, j->width);
    assert_int_equal(image.height, j->height);
    assert_int_equal(image.channels, 3);
    return image;
}

static inline void use(kron_session *s, kron_adapter *a, float strength)
{
    kron_adapter_use u = {a, strength, strength};

    if (kron_session_set_adapters(s, &u, 1) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

static inline size_t bytes_of(const kron_image *a)
{
    return (size_t)a->width * (size_t)a->height * (size_t)a->channels;
}

static inline bool same(const kron_image *a, const kron_image *b)
{
    return bytes_of(a) == bytes_of(b) && memcmp(a->pixels, b->pixels, bytes_of(a)) == 0;
}

/* In dB; 99 where all is equal. */
static inline double psnr(const kron_image *a, const kron_image *b)
{
    double sum = 0;

    assert_int_equal(bytes_of(a), bytes_of(b));
    for (size_t i = 0; i < bytes_of(a); i++) {
        double d = (double)a->pixels[i] - b->pixels[i];
        sum += d * d;
    }
    return sum > 0 ? 10 * log10(255.0 * 255 * (double)bytes_of(a) / sum) : 99;
}

/* Draws, compares exactly with `want`, frees. */
static inline void expect_picture(kron_session *s, const kron_job *j, const kron_image *want)
{
    kron_image image = draw(s, j);

    if (!same(&image, want))
        fail_msg("the picture differs: PSNR %.2f dB", psnr(&image, want));
    kron_image_free(&image);
}

static inline void expect_close(const kron_image *a, const kron_image *b, double at_least,
                                const char *what)
{
    double got = psnr(a, b);

    if (got < at_least)
        fail_msg("%s: PSNR %.2f dB, expected %.0f", what, got, at_least);
}

static inline void expect_apart(const kron_image *a, const kron_image *b, double at_most,
                                const char *what)
{
    double got = psnr(a, b);

    if (got > at_most)
        fail_msg("%s: PSNR %.2f dB, expected at most %.0f", what, got, at_most);
}

static inline int open_all(void **state)
{
    /* One worker: many short parallel loops take minutes where other tests hold the cores. */
    kron_model_params p = {.model = MODELS "/emoji-sd.safetensors", .n_threads = 1};
    kron_job j = small_job();
    kron_session *s;

    (void)state;
    if (kron_model_open(&model, &p) || kron_adapter_open(&neon, MODELS "/lokr-neon.safetensors") ||
        kron_adapter_open(&pixel, MODELS "/lokr-pixel.safetensors") ||
        kron_adapter_open(&sketch, MODELS "/lora-sketch.safetensors")) {
        print_error("%s\n", kron_error_detail());
        return -1;
    }
    s = new_session(KRON_APPLY_AUTO);
    plain = draw(s, &j);
    kron_session_free(&s);
    return 0;
}

static inline int close_all(void **state)
{
    (void)state;
    kron_image_free(&plain);
    kron_adapter_close(&neon);
    kron_adapter_close(&pixel);
    kron_adapter_close(&sketch);
    kron_model_close(&model);
    return 0;
}

/* For kron_log_set(): counts plans of the UNet. */
static inline void count_plans(kron_log_level level, const char *line, void *user)
{
    if (level == KRON_LOG_DEBUG && str_starts(line, "unet compute buffer"))
        ++*(int *)user;
}

static inline size_t resident(void)
{
    char text[256] = "";
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long all = 0, here = 0;

    if (f != NULL && fgets(text, sizeof text, f) != NULL)
        sscanf(text, "%lu %lu", &all, &here);
    if (f != NULL)
        fclose(f);
    return here * (size_t)sysconf(_SC_PAGESIZE);
}

#endif
