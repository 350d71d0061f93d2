/* SPDX-License-Identifier: MIT
 * Sessions through the public API, on the shipped model: small pictures, few steps. */
#include "session_fixture.h"

/* --- seeds and batches --- */

static void seeds_reproduce(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO), *t = new_session(KRON_APPLY_AT_RUNTIME);
    kron_job j = small_job();
    kron_image other;

    (void)state;
    expect_picture(s, &j, &plain);
    expect_picture(s, &j, &plain);
    expect_picture(t, &j, &plain);
    j.seed = 8;
    other = draw(s, &j);
    expect_apart(&other, &plain, 30, "another seed");
    kron_image_free(&other);
    kron_session_free(&s);
    assert_null(s);
    kron_session_free(&t);
}

static void a_batch_counts_seeds_up(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job(), one = j;
    kron_image batch[3] = {{0}};

    (void)state;
    j.batch_count = 3;
    j.sampler = one.sampler = "euler_a"; /* draws noise on the way, too */
    assert_int_equal(kron_generate(s, &j, batch), KRON_OK);
    for (int i = 0; i < 3; i++) {
        one.seed = j.seed + i;
        expect_picture(s, &one, &batch[i]);
        kron_image_free(&batch[i]);
    }
    kron_session_free(&s);
}

struct thread_job {
    kron_session *s;
    kron_adapter *adapter;
    kron_image image;
    kron_status status;
};

static void *draw_in_thread(void *user)
{
    struct thread_job *t = user;
    kron_job j = small_job();
    kron_adapter_use u = {t->adapter, 1, 1};

    t->status = kron_session_set_adapters(t->s, &u, t->adapter != NULL);
    for (int i = 0; i < 2 && t->status == KRON_OK; i++) {
        kron_image_free(&t->image);
        t->status = kron_generate(t->s, &j, &t->image);
    }
    return NULL;
}

static void sessions_run_side_by_side(void **state)
{
    struct thread_job t[2] = {{.s = new_session(KRON_APPLY_AUTO)},
                              {.s = new_session(KRON_APPLY_AUTO), .adapter = neon}};
    kron_job j = small_job();
    pthread_t id[2];

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&id[i], NULL, draw_in_thread, &t[i]), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(id[i], NULL), 0);
    assert_int_equal(t[0].status, KRON_OK);
    assert_int_equal(t[1].status, KRON_OK);
    assert_true(same(&t[0].image, &plain));
    expect_picture(t[1].s, &j, &t[1].image);
    for (int i = 0; i < 2; i++) {
        kron_image_free(&t[i].image);
        kron_session_free(&t[i].s);
    }
}

static void workers_change_nothing_that_shows(void **state)
{
    kron_model_params p = {.model = MODELS "/emoji-sd.safetensors", .n_threads = 3};
    kron_job j = small_job();
    kron_model *m;
    kron_session *s;
    kron_image image = {0};

    (void)state;
    assert_int_equal(kron_model_open(&m, &p), KRON_OK);
    assert_int_equal(kron_session_create(&s, m, NULL), KRON_OK);
    assert_int_equal(kron_generate(s, &j, &image), KRON_OK);
    expect_close(&image, &plain, 60, "three workers");
    expect_picture(s, &j, &image);
    kron_image_free(&image);
    kron_session_free(&s);
    kron_model_close(&m);
}

/* --- adapters --- */

static void adapters_come_off_exactly(void **state)
{
    static const kron_apply modes[] = {KRON_APPLY_AUTO, KRON_APPLY_IMMEDIATELY,
                                       KRON_APPLY_AT_RUNTIME};
    kron_job j = small_job();

    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        kron_session *s = new_session(modes[m]);
        use(s, neon, 1);
        kron_image with = draw(s, &j);
        expect_apart(&with, &plain, 30, "an adapter");
        assert_int_equal(kron_session_set_adapters(s, NULL, 0), KRON_OK);
        assert_string_equal(kron_session_adapter_report(s), "");
        expect_picture(s, &j, &plain);
        use(s, neon, 1);
        expect_picture(s, &j, &with);
        kron_image_free(&with);
        kron_session_free(&s);
    }
}

static void strength_0_is_none(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();

    (void)state;
    use(s, neon, 0);
    kron_image image = draw(s, &j);
    for (size_t i = 0; i < bytes_of(&image); i++)
        assert_in_range(image.pixels[i] - plain.pixels[i] + 1, 0, 2);
    kron_image_free(&image);
    kron_session_free(&s);
}

/* New strengths give what a fresh session gives, to the bit, and at run time plan nothing. */
static void strengths_change_without_planning(void **state)
{
    static const kron_apply modes[] = {KRON_APPLY_AT_RUNTIME, KRON_APPLY_IMMEDIATELY};
    kron_job j = small_job();

    (void)state;
    for (int m = 0; m < 2; m++) {
        kron_session *s = new_session(modes[m]), *fresh = new_session(modes[m]);
        int plans = 0;
        use(fresh, neon, 0.4f);
        kron_image want = draw(fresh, &j);
        kron_log_set(count_plans, &plans);
        use(s, neon, 1);
        kron_image before = draw(s, &j);
        assert_int_equal(plans, 1);
        use(s, neon, 0.4f);
        expect_picture(s, &j, &want);
        assert_int_equal(plans, modes[m] == KRON_APPLY_AT_RUNTIME ? 1 : 2);
        kron_log_set(NULL, NULL);
        assert_false(same(&before, &want));
        kron_image_free(&want);
        kron_image_free(&before);
        kron_session_free(&s);
        kron_session_free(&fresh);
    }
}

static void tags_are_adapters(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO), *t = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job(), tagged = j;
    const kron_adapter_use both[] = {{neon, 0.8f, 0.8f}, {sketch, -0.5f, -0.5f}};
    kron_image one, two;

    (void)state;
    use(s, neon, 0.8f);
    one = draw(s, &j);
    tagged.prompt = "a cat <lora:lokr-neon:0.8>face";
    expect_picture(t, &tagged, &one);
    tagged.prompt = "a cat face<lora:lokr-neon.safetensors:0.8>";
    expect_picture(t, &tagged, &one);
    expect_picture(t, &j, &plain); /* a tag is for its job alone */
    assert_int_equal(kron_session_set_adapters(t, both, 2), KRON_OK);
    two = draw(t, &j);
    assert_false(same(&one, &two));
    tagged.prompt = "a cat face <lora:lora-sketch:-0.5>"; /* beside the session's own */
    expect_picture(s, &tagged, &two);
    expect_picture(s, &j, &one);
    tagged.prompt = "a cat face <lora:lokr-neon:0.8> <lora:lora-sketch:-0.5>";
    assert_int_equal(kron_session_set_adapters(s, NULL, 0), KRON_OK);
    expect_picture(s, &tagged, &two);
    kron_image_free(&one);
    kron_image_free(&two);
    kron_session_free(&s);
    kron_session_free(&t);
}

static void a_file_given_twice_counts_twice(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AT_RUNTIME);
    kron_job j = small_job(), tagged = j;
    const kron_adapter_use halves[] = {{pixel, 0.5f, 0.5f}, {pixel, 0.5f, 0.5f}};
    kron_image once, twice;

    (void)state;
    use(s, pixel, 1);
    once = draw(s, &j);
    expect_apart(&once, &plain, 40, "the adapter");
    assert_int_equal(kron_session_set_adapters(s, halves, 2), KRON_OK);
    twice = draw(s, &j);
    expect_close(&twice, &once, 60, "twice at 0.5");
    assert_int_equal(kron_session_set_adapters(s, NULL, 0), KRON_OK);
    tagged.prompt = "a cat face <lora:lokr-pixel:0.5><lora:lokr-pixel:0.5>";
    expect_picture(s, &tagged, &twice);
    kron_image_free(&once);
    kron_image_free(&twice);
    kron_session_free(&s);
}

static void strengths_may_be_negative(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    const kron_adapter_use against[] = {{neon, 1, 1}, {neon, -1, -1}};
    kron_image up, down, none;

    (void)state;
    use(s, neon, 1);
    up = draw(s, &j);
    use(s, neon, -1);
    down = draw(s, &j);
    expect_apart(&down, &up, 40, "strength -1 beside 1");
    expect_apart(&down, &plain, 40, "strength -1 beside none");
    assert_int_equal(kron_session_set_adapters(s, against, 2), KRON_OK);
    none = draw(s, &j);
    expect_close(&none, &plain, 60, "1 and -1");
    kron_image_free(&up);
    kron_image_free(&down);
    kron_image_free(&none);
    kron_session_free(&s);
}

static void apply_modes_agree(void **state)
{
    const struct {
        const char *name;
        kron_adapter_use uses[3];
        size_t n;
    } sets[] = {{"neon", {{neon, 1, 1}}, 1},
                {"pixel", {{pixel, 0.7f, 0.7f}}, 1},
                {"sketch", {{sketch, 1, 1}}, 1},
                {"all", {{neon, 0.5f, 0.5f}, {pixel, 0.5f, 0.5f}, {sketch, 0.5f, 0.5f}}, 3}};
    kron_job j = small_job();

    (void)state;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        kron_image image[3];
        for (int m = 0; m < 3; m++) {
            kron_session *s = new_session((kron_apply)m);
            assert_int_equal(kron_session_set_adapters(s, sets[i].uses, sets[i].n), KRON_OK);
            image[m] = draw(s, &j);
            kron_session_free(&s);
        }
        expect_apart(&image[0], &plain, 40, sets[i].name);
        expect_close(&image[0], &image[1], 50, sets[i].name);
        expect_close(&image[0], &image[2], 50, sets[i].name);
        for (int m = 0; m < 3; m++)
            kron_image_free(&image[m]);
    }
}

static void reports_name_what_was_applied(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    const kron_adapter_use both[] = {{neon, 1, 1}, {sketch, 1, 1}};
    const char *report;

    (void)state;
    assert_string_equal(kron_session_adapter_report(s), "");
    assert_int_equal(kron_session_set_adapters(s, both, 2), KRON_OK);
    report = kron_session_adapter_report(s);
    assert_non_null(strstr(report, "lokr-neon.safetensors: LoKr"));
    assert_non_null(strstr(report, "lora-sketch.safetensors: LoRA"));
    kron_session_free(&s);
}

/* The session keeps what its caller has closed. */
static void adapters_may_be_closed_early(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AT_RUNTIME);
    kron_job j = small_job();
    kron_adapter *own;

    (void)state;
    assert_int_equal(kron_adapter_open(&own, MODELS "/lokr-neon.safetensors"), KRON_OK);
    use(s, own, 1);
    kron_adapter_close(&own);
    assert_null(own);
    kron_image a = draw(s, &j);
    use(s, neon, 1);
    expect_picture(s, &j, &a);
    kron_image_free(&a);
    kron_session_free(&s);
}

/* --- errors --- */

static void expect_error(kron_session *s, const kron_job *j, kron_status status, const char *want)
{
    kron_image image = {0};
    kron_status got = kron_generate(s, j, &image);

    assert_null(image.pixels);
    if (got != status || strstr(kron_error_detail(), want) == NULL)
        fail_msg("status %d '%s', expected %d '%s'", got, kron_error_detail(), status, want);
}

static void bad_tags_are_errors_that_name_them(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job(), ok = j;

    (void)state;
    j.negative_prompt = "dog <lora:lokr-neon:1>";
    expect_error(s, &j, KRON_ERR_ARGUMENT, "'lokr-neon'");
    expect_error(s, &j, KRON_ERR_ARGUMENT, "negative prompt");
    j.negative_prompt = "";
    j.prompt = "cat <lora:no-such-thing:1>";
    expect_error(s, &j, KRON_ERR_IO, "'no-such-thing'");
    j.prompt = "cat <lora:../models/lokr-neon:1>";
    expect_error(s, &j, KRON_ERR_ARGUMENT, "'../models/lokr-neon' leads out of");
    j.prompt = "cat <lora:golden/../../models/lokr-neon:1>";
    expect_error(s, &j, KRON_ERR_ARGUMENT, "leads out of");
    j.prompt = "cat <lora:" MODELS "/lokr-neon:1>";
    expect_error(s, &j, KRON_ERR_ARGUMENT, "leads out of");
    j.prompt = "cat <lora:golden:1>";
    expect_error(s, &j, KRON_ERR_IO, "'golden'");
    j.prompt = "cat <lora:emoji-sd:1>"; /* a checkpoint is no adapter */
    expect_error(s, &j, KRON_ERR_FORMAT, "emoji-sd.safetensors");
    j.prompt = "cat <lora:lokr-neon:strong>";
    expect_error(s, &j, KRON_ERR_ARGUMENT, "strong");
    j.prompt = "cat <lora:lokr-neon:1>";
    j.lora_dir = NULL;
    expect_error(s, &j, KRON_ERR_ARGUMENT, "'lokr-neon', but no folder");
    expect_picture(s, &ok, &plain); /* none of these left a mark */
    kron_session_free(&s);
}

/* An error in a prompt leaves the session's own adapters in place. */
static void errors_leave_the_sessions_adapters(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job ok = small_job(), bad = ok;

    (void)state;
    use(s, pixel, 1);
    kron_image want = draw(s, &ok);
    bad.prompt = "cat <lora:no-such-thing:1>";
    expect_error(s, &bad, KRON_ERR_IO, "no-such-thing");
    expect_picture(s, &ok, &want);
    kron_image_free(&want);
    kron_session_free(&s);
}

static void bad_jobs_are_errors_that_name_the_field(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    const kron_job ok = small_job();
    static const double rising[] = {1, 2, 0};
    uint8_t one_pixel[3] = {0};
    const kron_image tiny = {1, 1, 3, one_pixel};

    (void)state;
#define EXPECT(change, want)                             \
    do {                                                 \
        kron_job j = ok;                                 \
        change;                                          \
        expect_error(s, &j, KRON_ERR_ARGUMENT, want);    \
    } while (0)
    EXPECT(j.prompt = NULL, "prompt");
    EXPECT(j.width = 60, "60 x 64");
    EXPECT(j.height = 0, "64 x 0");
    EXPECT(j.width = 1 << 20, "16384");
    EXPECT(j.batch_count = 0, "batch count 0");
    EXPECT(j.seed = -1, "seed -1");
    EXPECT(j.steps = 0, "0 steps");
    EXPECT(j.steps = 1 << 30, "steps");
    EXPECT(j.cfg_scale = NAN, "guidance");
    EXPECT(j.sampler = "magic", "magic");
    EXPECT(j.schedule = "magic", "magic");
    EXPECT((j.sigmas = rising, j.n_sigmas = 3), "");
    EXPECT((j.sigmas = rising, j.n_sigmas = 1), "sigmas");
    EXPECT((j.init_image = &tiny, j.strength = 1.5f), "strength 1.5");
    EXPECT((j.init_image = &tiny, j.strength = NAN), "strength");
    EXPECT(j.mask = &tiny, "start picture");
    EXPECT(j.vae_tile_overlap = 0.9f, "0.9");
    EXPECT(j.vae_tile_width = -1, "tile -1");
    EXPECT(j.prompt = "((((unclosed <lora:", "");
    kron_image image = {0};
    assert_int_equal(kron_generate(NULL, &ok, &image), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_generate(s, NULL, &image), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_generate(s, &ok, NULL), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_session_set_adapters(s, &(kron_adapter_use){NULL, 1, 1}, 1),
                     KRON_ERR_ARGUMENT);
    assert_int_equal(kron_session_create(&s, NULL, NULL), KRON_ERR_ARGUMENT);
    expect_picture(s, &ok, &plain);
    kron_session_free(&s);
    kron_session_free(&s);
    kron_session_free(NULL);
}

/* --- progress --- */

struct stop {
    int calls, at; /* stops at this call; 0: never */
    int sampling, last_step, previews;
    char phases[256];
};

static int watch(const kron_progress *p, void *user)
{
    struct stop *w = user;
    size_t n = strlen(w->phases);

    assert_in_range(p->step, 0, p->n_steps);
    assert_in_range(p->image, 0, p->n_images - 1);
    if (n < sizeof w->phases - 2)
        w->phases[n] = p->phase[0];
    w->sampling += strcmp(p->phase, "sampling") == 0;
    w->last_step = p->step;
    if (p->preview != NULL) {
        assert_true(p->preview->pixels != NULL && p->preview->channels == 3);
        w->previews++;
    }
    return ++w->calls == w->at;
}

static void progress_tells_each_phase(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    struct stop w = {0};

    (void)state;
    j.progress = watch;
    j.progress_user = &w;
    j.preview_interval = 1;
    expect_picture(s, &j, &plain);
    assert_string_equal(w.phases, "tsssd"); /* text, sampling 0 to 2, decoding */
    assert_int_equal(w.previews, 2);
    w = (struct stop){0};
    j.preview_vae = 1;
    j.init_image = &plain;
    j.strength = 1;
    kron_image image = draw(s, &j);
    assert_string_equal(w.phases, "tesssd");
    assert_int_equal(w.previews, 2);
    kron_image_free(&image);
    kron_session_free(&s);
}

/* Stopped at every call there is: an error each time, no picture, and the session goes on. */
static void a_job_can_be_stopped_anywhere(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job(), ok = j;
    struct stop w = {0};
    int stopped = 0;

    (void)state;
    j.batch_count = 2;
    j.progress = watch;
    j.progress_user = &w;
    for (int at = 1;; at++, stopped++) {
        kron_image image[2] = {{0}};
        w = (struct stop){.at = at};
        kron_status status = kron_generate(s, &j, image);
        assert_int_equal(w.calls < at || status == KRON_ERR_CANCELLED, 1);
        if (status == KRON_ERR_CANCELLED) {
            assert_null(image[1].pixels);
            assert_int_equal(image[0].pixels != NULL, at > 5); /* the first was done by then */
        }
        if (image[0].pixels != NULL)
            assert_true(same(&image[0], &plain));
        kron_image_free(&image[0]);
        kron_image_free(&image[1]);
        if (status == KRON_OK)
            break;
    }
    assert_int_equal(stopped, 9);
    expect_picture(s, &ok, &plain);
    kron_session_free(&s);
}

/* --- pictures in --- */

static void image_to_image(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    struct stop w = {0};
    kron_image little, much, grey = {SIDE, SIDE, 1, NULL}, from_grey;
    double near_start, far_from_start;

    (void)state;
    j.prompt = "a red apple";
    j.steps = 8;
    j.init_image = &plain;
    j.progress = watch;
    j.progress_user = &w;
    j.strength = 0.25f;
    little = draw(s, &j);
    assert_int_equal(w.last_step, 0);        /* of decoding */
    assert_int_equal(w.sampling, 1 + 3);     /* a quarter of 8 steps, and one: A1111's rule */
    w = (struct stop){0};
    j.strength = 1;
    much = draw(s, &j);
    assert_int_equal(w.sampling, 1 + 8);
    near_start = psnr(&little, &plain);
    far_from_start = psnr(&much, &plain);
    if (near_start < far_from_start + 3)
        fail_msg("strength 0.25 is %.1f dB from its start, strength 1 %.1f dB", near_start,
                 far_from_start);
    /* Grey pictures and other sizes are taken as they come. */
    uint8_t pixels[32 * 32];
    memset(pixels, 128, sizeof pixels);
    grey = (kron_image){32, 32, 1, pixels};
    j.init_image = &grey;
    j.strength = 0.5f;
    from_grey = draw(s, &j);
    kron_image_free(&from_grey);
    kron_image_free(&little);
    kron_image_free(&much);
    kron_session_free(&s);
}

static void inpainting_keeps_what_is_outside(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    uint8_t mask[SIDE * SIDE] = {0};
    const kron_image m = {SIDE, SIDE, 1, mask};
    kron_image out;
    int changed = 0;

    (void)state;
    for (int y = 13; y < 40; y++) /* across the borders of latent pixels */
        memset(mask + y * SIDE + 21, 255, 30);
    j.prompt = "a red apple";
    j.steps = 4;
    j.init_image = &plain;
    j.mask = &m;
    j.strength = 1;
    out = draw(s, &j);
    for (int i = 0; i < SIDE * SIDE * 3; i++) {
        if (mask[i / 3] == 0)
            assert_int_equal(out.pixels[i], plain.pixels[i]);
        else
            changed += out.pixels[i] != plain.pixels[i];
    }
    assert_true(changed > 27 * 30);
    kron_image_free(&out);
    memset(mask, 0, sizeof mask); /* nothing to redraw: the picture itself */
    expect_picture(s, &j, &plain);
    kron_session_free(&s);
}

/* --- tiles --- */

/* How close tiles come is in test_pipeline_memory.c. */
static void tiles_take_less_memory(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    kron_image whole, tiled;
    size_t buffer;

    (void)state;
    j.width = 192;
    j.height = 128;
    j.cfg_scale = 1; /* sampling costs the most, and is not what is tested */
    whole = draw(s, &j);
    buffer = kron_session_buffers(s).vae;
    j.vae_tiling = 1;
    j.vae_tile_width = j.vae_tile_height = 12;
    tiled = draw(s, &j);
    assert_true(kron_session_buffers(s).vae < buffer);
    kron_image_free(&tiled);
    j.vae_tile_width = j.vae_tile_height = 32; /* larger than the picture: the same as none */
    expect_picture(s, &j, &whole);
    kron_image_free(&whole);
    kron_session_free(&s);
}

/* --- memory --- */

static void buffers_are_told(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    kron_buffers b = kron_session_buffers(s);

    (void)state;
    assert_true(b.unet == 0 && b.vae == 0 && b.text_encoder == 0);
    expect_picture(s, &j, &plain);
    b = kron_session_buffers(s);
    assert_true(b.unet > 0 && b.vae > 0 && b.text_encoder > 0);
    kron_session_free(&s);
}

static kron_status whole_life(kron_session **s, kron_adapter **a, const kron_job *j,
                              kron_image *image)
{
    KRON_TRY(kron_adapter_open(a, MODELS "/lokr-pixel.safetensors"));
    KRON_TRY(kron_session_create(s, model, &(kron_session_params){.apply = KRON_APPLY_AT_RUNTIME}));
    KRON_TRY(kron_session_set_adapters(*s, &(kron_adapter_use){*a, 1, 1}, 1));
    return kron_generate(*s, j, image);
}

/* Fails at the n-th allocation, for n over the whole life of a session. The same session then
 * draws the right picture. */
static void no_memory_is_an_error(void **state)
{
    uint8_t mask[SIDE * SIDE];
    const kron_image m = {SIDE, SIDE, 1, mask};
    kron_job j = small_job();
    kron_image want = {0};
    int failures = 0;

    (void)state;
    memset(mask, 255, sizeof mask);
    j.steps = 1;
    j.prompt = "a (cat:1.2) face <lora:lora-sketch:0.5>";
    j.init_image = &plain;
    j.mask = &m;
    j.strength = 1;
    for (long n = 0;; n += 1 + n / 6) {
        kron_session *s = NULL;
        kron_adapter *a = NULL;
        kron_image image = {0};
        mem_fail_after(n);
        kron_status status = whole_life(&s, &a, &j, &image);
        mem_fail_after(0);
        assert_int_equal(image.pixels != NULL, status == KRON_OK);
        if (status != KRON_OK) {
            failures++;
            if (status != KRON_ERR_MEMORY || strstr(kron_error_detail(), "out of memory") == NULL)
                fail_msg("allocation %ld: status %d, %s", n, status, kron_error_detail());
        }
        if (status != KRON_OK && s != NULL && failures % 8 == 0) {
            use(s, pixel, 1);
            expect_picture(s, &j, &want);
        }
        kron_session_free(&s);
        kron_adapter_close(&a);
        if (n == 0)
            want = image;
        else
            kron_image_free(&image);
        if (n > 0 && status == KRON_OK)
            break;
    }
    print_message("%d places without memory\n", failures);
    assert_true(failures > 20);
    kron_image_free(&want);
}

/* Every allocation of a change fails in turn; the session reports and draws as before. */
static void a_failed_change_leaves_the_session(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AT_RUNTIME);
    const kron_adapter_use other = {pixel, 1, 1};
    kron_job j = small_job();
    kron_image want = {0};
    int failures = 0;

    (void)state;
    j.steps = 1;
    use(s, neon, 1);
    assert_int_equal(kron_generate(s, &j, &want), KRON_OK);
    for (long n = 1;; n++) {
        mem_fail_after(n);
        kron_status status = kron_session_set_adapters(s, &other, 1);
        mem_fail_after(0);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
        failures++;
        assert_non_null(strstr(kron_session_adapter_report(s), "lokr-neon"));
        if (n % 4 == 0 || n < 4)
            expect_picture(s, &j, &want);
    }
    assert_true(failures > 3);
    kron_image_free(&want);
    kron_session_free(&s);
}

static void swapping_adapters_keeps_memory_flat(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AT_RUNTIME);
    kron_adapter *const all[] = {neon, pixel, sketch};
    kron_job j = small_job();
    size_t before = 0;

    (void)state;
    j.steps = 1;
    for (int i = 0; i < 260; i++) {
        if (i == 60)
            before = resident();
        use(s, all[i % 3], 1);
        if (i % 65 == 0) {
            kron_image image = draw(s, &j);
            kron_image_free(&image);
        }
    }
    size_t after = resident();
    kron_session_free(&s);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)before, (void)after; /* freed memory is kept back to catch its use */
#else
    if (before == 0)
        skip();
    print_message("200 swaps: %.1f MB more\n", ((double)after - (double)before) / 1e6);
    assert_true(after < before + 4000000);
#endif
}

/* --- text of a picture --- */

static void parameters_say_how_it_was_drawn(void **state)
{
    kron_session *s = new_session(KRON_APPLY_AUTO);
    kron_job j = small_job();
    char *text = kron_job_parameters(s, &j, 2, "emoji-sd");

    (void)state;
    assert_non_null(text);
    assert_true(str_starts(text, "a cat face\nNegative prompt: blurry\nSteps: 2, "));
    assert_non_null(strstr(text, "Seed: 9"));
    assert_non_null(strstr(text, "Size: 64x64"));
    assert_non_null(strstr(text, "emoji-sd"));
    kron_string_free(text);
    assert_null(kron_job_parameters(NULL, &j, 0, "x"));
    assert_non_null(kron_sampler_name(0));
    assert_null(kron_sampler_name(-1));
    assert_null(kron_sampler_name(1000));
    assert_non_null(kron_schedule_name(0));
    assert_null(kron_schedule_name(1000));
    kron_session_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seeds_reproduce),
        cmocka_unit_test(a_batch_counts_seeds_up),
        cmocka_unit_test(sessions_run_side_by_side),
        cmocka_unit_test(workers_change_nothing_that_shows),
        cmocka_unit_test(adapters_come_off_exactly),
        cmocka_unit_test(strength_0_is_none),
        cmocka_unit_test(strengths_change_without_planning),
        cmocka_unit_test(tags_are_adapters),
        cmocka_unit_test(a_file_given_twice_counts_twice),
        cmocka_unit_test(strengths_may_be_negative),
        cmocka_unit_test(apply_modes_agree),
        cmocka_unit_test(reports_name_what_was_applied),
        cmocka_unit_test(adapters_may_be_closed_early),
        cmocka_unit_test(bad_tags_are_errors_that_name_them),
        cmocka_unit_test(errors_leave_the_sessions_adapters),
        cmocka_unit_test(bad_jobs_are_errors_that_name_the_field),
        cmocka_unit_test(progress_tells_each_phase),
        cmocka_unit_test(a_job_can_be_stopped_anywhere),
        cmocka_unit_test(image_to_image),
        cmocka_unit_test(inpainting_keeps_what_is_outside),
        cmocka_unit_test(tiles_take_less_memory),
        cmocka_unit_test(buffers_are_told),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(a_failed_change_leaves_the_session),
        cmocka_unit_test(swapping_adapters_keeps_memory_flat),
        cmocka_unit_test(parameters_say_how_it_was_drawn),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
