/* SPDX-License-Identifier: MIT
 * Keeping within memory: tiles of the VAE, one compute buffer for all parts, pages of weights that
 * are given back. */
#include "image/image.h"
#include "pipeline/session.h"
#include "distance.h"
#include "session_fixture.h"

enum { BIG = 512, LATENT = BIG / 8 };

static struct engine *engine(void)
{
    return &model->engine;
}

static struct session *session_of(int64_t max_memory)
{
    kron_session_params p = {.max_memory = max_memory};
    struct session *s;

    assert_int_equal(session_create(&s, engine(), &p), KRON_OK);
    return s;
}

static float *numbers(int64_t n)
{
    float *p = calloc((size_t)n, sizeof *p);

    assert_non_null(p);
    return p;
}

/* A drawn cat face, twice its size, in [-1, 1]. */
static float *picture(void)
{
    kron_image small = {0}, big = {0};
    float *p = numbers(BIG * BIG * 3);

    assert_int_equal(kron_image_load(&small, MODELS "/golden/a-cat_none_euler.png", 3), KRON_OK);
    assert_int_equal(image_resize(&big, &small, BIG, BIG), KRON_OK);
    for (int i = 0; i < BIG * BIG * 3; i++)
        p[i] = (float)big.pixels[i] / 127.5f - 1;
    kron_image_free(&small);
    kron_image_free(&big);
    return p;
}

static double clamped(float v)
{
    return v < -1 ? -1 : v > 1 ? 1 : (double)v;
}

/* In dB, of pictures in [-1, 1]. */
static double float_psnr(const float *a, const float *b, int64_t n)
{
    double sum = 1e-20;

    for (int64_t i = 0; i < n; i++)
        sum += (clamped(a[i]) - clamped(b[i])) * (clamped(a[i]) - clamped(b[i]));
    return 10 * log10(4 * (double)n / sum);
}

static void decode(struct session *s, const float *latent, const struct tiling *how, float *out)
{
    if (latent_decode(s, latent, LATENT, LATENT, how, out) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

/* Measured: 35.6 dB of a picture for tiles of 32 and a quarter overlapping, 23 with the statistics of
 * each tile; 0.073 of a latent. The whole takes 110 MB. */
static void tiles_look_like_the_whole(void **state)
{
    const struct tiling none = {0}, tiles = {.on = true, .w = 32, .h = 32, .overlap = 0.25};
    const struct tiling any = {.overlap = 0.25};
    const size_t room = 40 << 20;
    struct session *s = session_of(0), *tight = session_of(2 * room);
    float *in = picture(), *latent = numbers(LATENT * LATENT * 4);
    float *other = numbers(LATENT * LATENT * 4);
    float *whole = numbers(BIG * BIG * 3), *got = numbers(BIG * BIG * 3);

    (void)state;
    assert_int_equal(latent_encode(s, in, LATENT, LATENT, &none, latent), KRON_OK);
    assert_int_equal(latent_encode(s, in, LATENT, LATENT, &tiles, other), KRON_OK);
    double d = distance(other, latent, LATENT * LATENT * 4);
    decode(s, latent, &none, whole);
    assert_true(s->buffers.vae > room);
    decode(s, latent, &tiles, got);
    double p = float_psnr(got, whole, BIG * BIG * 3);
    print_message("tiles of 32: PSNR %.2f dB; encoded, relative distance %.3f\n", p, d);
    assert_true(p > 35);
    assert_true(d < 0.1);
    decode(tight, latent, &any, got); /* nobody asked for tiles: there is no room for the whole */
    p = float_psnr(got, whole, BIG * BIG * 3);
    print_message("by room: PSNR %.2f dB, buffer %.1f MB\n", p, (double)tight->buffers.vae / 1e6);
    assert_true(p > 35 && p < 90);
    assert_true(tight->buffers.vae <= room);
    session_free(&s);
    session_free(&tight);
    free(in);
    free(latent);
    free(other);
    free(whole);
    free(got);
}

/* Rectangles, and a picture that no number of tiles covers evenly. */
static void tiles_may_have_any_shape(void **state)
{
    const struct tiling none = {0}, tiles = {.on = true, .w = 16, .h = 24, .overlap = 0.5};
    struct session *s = session_of(0);
    float *in = picture(), *latent = numbers(29 * 41 * 4);
    float *whole = numbers(29 * 41 * 64 * 3), *got = numbers(29 * 41 * 64 * 3);

    (void)state;
    /* The picture's numbers as rows of another length: stripes, as good as any other. */
    assert_int_equal(latent_encode(s, in, 29, 41, &none, latent), KRON_OK);
    assert_int_equal(latent_decode(s, latent, 29, 41, &none, whole), KRON_OK);
    assert_int_equal(latent_decode(s, latent, 29, 41, &tiles, got), KRON_OK);
    double p = float_psnr(got, whole, 29 * 41 * 64 * 3);
    print_message("16x24 in 41x29: PSNR %.2f dB\n", p);
    assert_true(p > 20);
    session_free(&s);
    free(in);
    free(latent);
    free(whole);
    free(got);
}

static void count_all_plans(kron_log_level level, const char *line, void *user)
{
    if (level == KRON_LOG_DEBUG && strstr(line, " compute buffer: ") != NULL)
        ++*(int *)user;
}

/* The second job finds all its plans, though the buffer was given back in between. */
static void plans_stay_from_job_to_job(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    int plans = 0;

    (void)state;
    kron_log_set(count_all_plans, &plans);
    expect_picture(s, &j, &plain);
    assert_true(plans >= 3);
    plans = 0;
    expect_picture(s, &j, &plain);
    assert_int_equal(plans, 0);
    kron_log_set(NULL, NULL);
    kron_session_free(&s);
}

/* Bytes of the model's file that are in this process's memory now. */
static size_t resident_of_model(void)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    bool ours = false;
    unsigned long kb, sum = 0;

    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (strstr(line, "emoji-sd.safetensors") != NULL)
            ours = true;
        else if (ours && sscanf(line, "Rss: %lu kB", &kb) == 1) {
            sum += kb;
            ours = false;
        }
    }
    fclose(f);
    return sum * 1024;
}

static int watch_pages(const kron_progress *p, void *user)
{
    size_t now = resident_of_model(), *most = user;

    if (strcmp(p->phase, "decoding") == 0 && now > *most)
        *most = now;
    return 0;
}

/* Pages that are read in advance, around the one asked for, stay behind: up to 64 KB a weight. */
static void weights_come_and_go_within_a_budget(void **state)
{
    kron_session_params tight = {.max_memory = 64 << 20};
    kron_session *all = new_session(KRON_APPLY_AUTO), *s;
    size_t loose = 0, most = 0;
    kron_job j = small_job();

    (void)state;
    j.progress = watch_pages;
    j.progress_user = &loose;
    expect_picture(all, &j, &plain);
    assert_int_equal(kron_session_create(&s, model, &tight), KRON_OK);
    j.progress_user = &most;
    expect_picture(s, &j, &plain);
    size_t after = resident_of_model();
    print_message("weights in memory before decoding: %.1f MB, with a budget %.1f MB; after %.1f MB\n",
                  (double)loose / 1e6, (double)most / 1e6, (double)after / 1e6);
    assert_true(most < loose / 2);
    assert_true(after < loose / 2);
    kron_session_free(&all);
    kron_session_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles_look_like_the_whole),
        cmocka_unit_test(tiles_may_have_any_shape),
        cmocka_unit_test(plans_stay_from_job_to_job),
        cmocka_unit_test(weights_come_and_go_within_a_budget),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
