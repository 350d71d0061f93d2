/* SPDX-License-Identifier: MIT
 * What depends on the prompt alone is made once: held or made anew, the numbers are the same to the
 * bit, whatever changes between two calls; and held it is, where there is room. */
#include "pipeline/session.h"
#include "session_fixture.h"

#define REFERENCE KRON_SHARED_DIR "/reference/"

enum { LATENT = 16, N = LATENT * LATENT * 4, TEXTS = 3 };

/* One session holds. The other makes all anew, or, where what is held is computed another way
 * (routes, weights that are kept), holds too and forgets after each call. */
struct rig {
    struct engine e;
    struct session *holds, *other;
    bool same_way;
    struct condition text[TEXTS];
};

static int ran; /* operations on text and sizes in the last call */

static void count(const kron_operation *op, void *user)
{
    (void)user;
    if (strcmp(op->part, "unet") == 0)
        ran += strstr(op->layer, "attn2.to_k") != NULL || strstr(op->layer, "attn2.to_v") != NULL ||
               strstr(op->layer, "add_embedding") != NULL;
}

static void fill(float *x, int64_t n, uint32_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1;
    }
}

static void rig_open(struct rig *r, const char *path, kron_compute compute, kron_apply apply)
{
    const kron_model_params p = {.model = path, .n_threads = 1};
    const kron_session_params how = {.apply = apply, .compute = compute};

    memset(r, 0, sizeof *r);
    r->same_way = true;
    if (engine_open(&r->e, &p) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(session_create(&r->holds, &r->e, &how), KRON_OK);
    assert_int_equal(session_create(&r->other, &r->e, &how), KRON_OK);
    for (int i = 0; i < TEXTS; i++) {
        const struct unet *u = &r->e.model.unet;
        struct condition *c = &r->text[i];
        c->tokens = 77;
        assert_int_equal(mem_floats(&c->context, 77 * u->context_width, "text"), KRON_OK);
        assert_int_equal(mem_floats(&c->pooled, u->pooled_width + 1, "text"), KRON_OK);
        fill(c->context, 77 * u->context_width, (uint32_t)i);
        fill(c->pooled, u->pooled_width, (uint32_t)i + 10);
    }
}

static void rig_close(struct rig *r)
{
    for (int i = 0; i < TEXTS; i++)
        condition_free(&r->text[i]);
    session_free(&r->holds);
    session_free(&r->other);
    engine_close(&r->e);
}

/* What one call is made of. */
struct call {
    const struct condition *pos, *neg;
    bool both;
    int step, n_steps;
    float crop;
    int64_t side; /* 0: LATENT */
};

static void compute(struct session *s, const struct call *c, bool hold, float *out)
{
    int64_t side = c->side > 0 ? c->side : LATENT;
    struct denoise d;
    float x[N];

    fill(x, N, (uint32_t)c->step + 77);
    assert_int_equal(denoise_init(&d, s, c->pos, c->neg, 5, side, side), KRON_OK);
    d.hold = hold;
    d.both = c->both;
    d.step = c->step;
    d.n_steps = c->n_steps;
    d.sizes[2] = c->crop;
    s->profile = count;
    ran = 0;
    if (denoise_raw(&d, x, 900 - 100 * c->step, out) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    s->profile = NULL;
    denoise_fini(&d);
}

/* Was what may be held made in a call, or was it there? */
enum was { MADE, PARTLY, HELD };

/* Both sessions' numbers must be the same. */
static void check(struct rig *r, const struct call *c, enum was was, const char *what)
{
    float got[N], want[N];
    int all;

    compute(r->other, c, !r->same_way, want);
    all = ran;
    if (!r->same_way)
        be_weights_trim(r->e.device, r->other->weights);
    compute(r->holds, c, true, got);
    assert_true(all > 0);
    for (int i = 0; i < N; i++)
        assert_true(isfinite(want[i]));
    if (memcmp(got, want, sizeof got) != 0)
        fail_msg("%s, step %d: other numbers than without holding", what, c->step);
    if ((was == MADE && ran != all) || (was == HELD && ran > 0) || (was == PARTLY && ran == 0))
        fail_msg("%s, step %d: %d operations of %d ran again", what, c->step, ran, all);
}

/* --- texts and sizes --- */

static void change_texts(struct rig *r)
{
    struct call c = {.pos = &r->text[0], .n_steps = 4};

    check(r, &c, MADE, "the first call");
    for (c.step = 1; c.step < 4; c.step++)
        check(r, &c, HELD, "the same text");
    c.pos = &r->text[1];
    check(r, &c, MADE, "another text");
    r->text[1].context[7] += 1; /* in place, behind everyone's back */
    check(r, &c, MADE, "a changed text");
    check(r, &c, HELD, "the same again");
    if (r->e.model.unet.pooled_width == 0)
        return;
    r->text[1].pooled[3] += 1;
    check(r, &c, MADE, "a changed pooled text");
    c.crop = 8;
    check(r, &c, MADE, "other sizes");
    check(r, &c, HELD, "the same sizes");
}

static void guide(struct rig *r)
{
    struct call c = {.pos = &r->text[0], .neg = &r->text[1], .both = true, .n_steps = 4};

    check(r, &c, MADE, "both halves");
    for (c.step = 1; c.step < 3; c.step++)
        check(r, &c, HELD, "both halves");
    c.neg = &r->text[2];
    check(r, &c, MADE, "another negative");
    c.both = false; /* one plan for two texts in turns: nobody asks for holding, but it must be right */
    for (c.step = 0; c.step < 3; c.step++)
        check(r, &c, MADE, "halves in turns");
    c.both = true;
    check(r, &c, MADE, "both halves again");
    check(r, &c, HELD, "both halves again");
}

static const char *const models[] = {MODELS "/emoji-sd.safetensors",
                                     REFERENCE "tiny_sd15.safetensors",
                                     REFERENCE "tiny_sdxl.safetensors"};
enum { N_MODELS = sizeof models / sizeof *models };

static void for_all_models(void (*test)(struct rig *r))
{
    static const kron_compute computes[] = {KRON_COMPUTE_F32, KRON_COMPUTE_INT8};

    for (size_t m = 0; m < N_MODELS; m++)
        for (size_t i = 0; i < 2 && path_is_file(models[m]); i++) {
            struct rig r;
            rig_open(&r, models[m], computes[i], KRON_APPLY_AUTO);
            test(&r);
            rig_close(&r);
        }
}

static void texts_change(void **state)
{
    (void)state;
    for_all_models(change_texts);
}

static void guidance_in_one_call_and_in_two(void **state)
{
    (void)state;
    for_all_models(guide);
}

/* --- adapters --- */

static void put_on(struct rig *r, kron_adapter_use *use, size_t n, float strength)
{
    use[0].unet_strength = strength;
    if (session_set_adapters(r->holds, use, n) != KRON_OK ||
        session_set_adapters(r->other, use, n) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    session_fill_strengths(r->holds, 0, 1);
    session_fill_strengths(r->other, 0, 1);
}

static void change_strengths(struct rig *r, kron_adapter *a)
{
    static const kron_step_point rising[2] = {{0, 0}, {1, 1}};
    kron_adapter_use use = {a, 1, 1};
    struct call c = {.pos = &r->text[0], .neg = &r->text[1], .both = true, .n_steps = 4};

    check(r, &c, MADE, "no adapter");
    put_on(r, &use, 1, 1);
    check(r, &c, MADE, "an adapter");
    check(r, &c, HELD, "the same strength");
    put_on(r, &use, 1, 0.5f);
    check(r, &c, MADE, "another strength");
    put_on(r, &use, 1, 0);
    check(r, &c, MADE, "no strength");
    put_on(r, &use, 1, 0.5f);
    use.curve = rising;
    use.n_curve = 2;
    put_on(r, &use, 1, 1);
    for (c.step = 0; c.step < 4; c.step++)
        check(r, &c, PARTLY, "a rising strength"); /* it has no deltas on sizes */
    put_on(r, &use, 0, 0);
    check(r, &c, MADE, "no adapter again");
    check(r, &c, HELD, "no adapter again");
}

static void strengths_change(void **state)
{
    static const struct {
        const char *model, *adapter;
    } pairs[] = {
        {MODELS "/emoji-sd.safetensors", MODELS "/lokr-neon.safetensors"},
        {REFERENCE "tiny_sd15.safetensors", REFERENCE "adapter_sd15_lora.safetensors"},
        {REFERENCE "tiny_sdxl.safetensors", REFERENCE "adapter_sdxl_lokr_full.safetensors"},
    };
    static const struct {
        kron_compute compute;
        kron_apply apply;
        bool same_way;
    } ways[] = {
        {KRON_COMPUTE_F32, KRON_APPLY_AT_RUNTIME, true},
        {KRON_COMPUTE_F32, KRON_APPLY_IMMEDIATELY, true},
        {KRON_COMPUTE_F32, KRON_APPLY_AUTO, false},
        {KRON_COMPUTE_INT8, KRON_APPLY_AUTO, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (size_t w = 0; w < sizeof ways / sizeof *ways && path_is_file(pairs[i].model); w++) {
            kron_adapter *a;
            struct rig r;
            rig_open(&r, pairs[i].model, ways[w].compute, ways[w].apply);
            r.same_way = ways[w].same_way;
            if (kron_adapter_open(&a, pairs[i].adapter) != KRON_OK)
                fail_msg("%s", kron_error_detail());
            change_strengths(&r, a);
            kron_adapter_close(&a);
            rig_close(&r);
        }
}

/* A strength that changes by step bears on the layers of its own adapter only. */
static void a_changing_adapter_elsewhere_is_no_reason(void **state)
{
    static const kron_step_point rising[2] = {{0, 0}, {1, 1}};
    kron_adapter_use use[2] = {{sketch, 1, 1}, {NULL, 1, 1}};
    struct call c = {.n_steps = 4};
    struct rig r;

    (void)state;
    rig_open(&r, models[0], KRON_COMPUTE_F32, KRON_APPLY_AT_RUNTIME);
    c.pos = &r.text[0];
    use[0].curve = rising;
    use[0].n_curve = 2;
    put_on(&r, use, 1, 1);
    int layers = 0, steady = 0;
    struct delta_set *set = (struct delta_set *)adapter_set_deltas(r.holds->set);
    for (int i = 0; i < r.e.model.layers.n; i++) { /* as if it had none on the text */
        const struct layer *l = r.e.model.layers.at[i];
        layers += set->by_layer[l->id].n > 0;
        if (strstr(l->name, "attn2.to_k") != NULL || strstr(l->name, "attn2.to_v") != NULL) {
            steady += set->by_layer[l->id].n > 0;
            set->by_layer[l->id].n = 0;
            ((struct delta_set *)adapter_set_deltas(r.other->set))->by_layer[l->id].n = 0;
        }
    }
    assert_true(steady > 0 && layers > steady);
    check(&r, &c, MADE, "the first call");
    for (c.step = 1; c.step < 4; c.step++)
        check(&r, &c, HELD, "a strength that changes elsewhere");
    rig_close(&r);
}

/* --- memory --- */

/* The compute buffer is one for all plans: what another overwrites is made again. */
static void others_use_the_same_memory(void **state)
{
    const struct tiling whole = {0};
    static float latent[N], image[N * 64];
    struct rig r;

    (void)state;
    rig_open(&r, models[0], KRON_COMPUTE_F32, KRON_APPLY_AUTO);
    struct call c = {.pos = &r.text[0], .n_steps = 4}, small = {.pos = &r.text[1], .side = 8};
    fill(latent, N, 5);
    check(&r, &c, MADE, "the first call");
    compute(r.holds, &small, false, image); /* fits beside what is held */
    check(&r, &c, HELD, "after a small call");
    compute(r.holds, &small, true, image); /* holds something itself */
    check(&r, &c, MADE, "after another that holds");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(latent_decode(r.holds, latent, LATENT, LATENT, &whole, image), KRON_OK);
        assert_true(r.holds->buffers.vae > r.holds->buffers.unet + r.holds->buffers.unet_kept);
        check(&r, &c, MADE, "after decoding");
        check(&r, &c, HELD, "the next step");
    }
    compute(r.holds, &small, false, image);
    check(&r, &c, HELD, "after a small call in a large buffer");
    be_weights_trim(r.e.device, r.holds->weights);
    check(&r, &c, MADE, "after the buffer was given back");
    rig_close(&r);
}

static void choose(const struct rig *r, size_t room, bool guided, struct denoise *out)
{
    const kron_session_params p = {.max_memory = 2 * (int64_t)room};
    struct session *s;

    assert_int_equal(session_create(&s, (struct engine *)&r->e, &p), KRON_OK);
    assert_int_equal(denoise_init(out, s, &r->text[0], guided ? &r->text[1] : NULL, 5, LATENT,
                                  LATENT), KRON_OK);
    denoise_fini(&(struct denoise){.in = out->in, .out = out->out});
    session_free(&s);
}

static void room_decides(void **state)
{
    struct denoise d;
    struct rig r;
    size_t with, without, kept;

    (void)state;
    rig_open(&r, models[0], KRON_COMPUTE_F32, KRON_APPLY_AUTO);
    struct net_key key = {.kind = NET_UNET, .h = LATENT, .w = LATENT, .tokens = 77};
    for (key.n = 1; key.n <= 2; key.n++) {
        bool guided = key.n == 2;
        key.hold = true;
        assert_int_equal(net_estimate(r.holds, &key, &with), KRON_OK);
        key.hold = false;
        assert_int_equal(net_estimate(r.holds, &key, &without), KRON_OK);
        assert_true(with > without);
        choose(&r, with, guided, &d);
        assert_true(d.hold && d.both == guided);
        choose(&r, with - 1, guided, &d);
        assert_true(!d.hold && d.both == guided);
        choose(&r, without - 1, guided, &d);
        assert_true(!d.hold && !d.both);
    }
    struct call c = {.pos = &r.text[0], .neg = &r.text[1], .both = true};
    float out[N];
    compute(r.holds, &c, true, out);
    kept = r.holds->buffers.unet_kept;
    assert_true(kept > 0);
    assert_int_equal(r.holds->buffers.unet + kept, with);
    compute(r.holds, &c, false, out);
    assert_int_equal(r.holds->buffers.unet_kept, 0);
    assert_int_equal(r.holds->buffers.unet, without);
    rig_close(&r);
}

static void count_in_job(const kron_operation *op, void *user)
{
    (void)user;
    count(op, NULL);
}

/* By default it is held; where the room is small it is not, and the picture is the same. */
static void jobs_hold_what_fits(void **state)
{
    kron_session_params tight = {.max_memory = 4 << 20};
    kron_job j = small_job();
    kron_session *s = new_session(KRON_APPLY_AUTO);
    int times[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        if (i == 1)
            assert_int_equal(kron_session_create(&s, model, &tight), KRON_OK);
        assert_int_equal(kron_session_set_profile(s, count_in_job, NULL), KRON_OK);
        ran = 0;
        kron_image image = draw(s, &j);
        expect_close(&image, &plain, i == 0 ? 99 : 60, "held or not"); /* two calls round otherwise */
        times[i] = ran;
        assert_true((kron_session_buffers(s).unet_kept > 0) == (i == 0));
        kron_image_free(&image);
        kron_session_free(&s);
    }
    assert_true(times[0] > 0);
    assert_int_equal(times[1] % times[0], 0);
    assert_true(times[1] >= j.steps * times[0]);
}

/* Weights that a step does not read are the first to go, and are not fetched for nothing. */
static void pages_of_what_runs_once_go_first(void **state)
{
    kron_session_params p = {.max_memory = 0};
    struct call c = {.n_steps = 4};
    struct rig r;
    int once = 0, gone = 0, others_gone = 0;

    (void)state;
    rig_open(&r, models[0], KRON_COMPUTE_F32, KRON_APPLY_AUTO);
    session_free(&r.holds);
    c.pos = &r.text[0];
    compute(r.other, &c, true, (float[N]){0});
    size_t weights = 0, rare = 0;
    for (int i = 0; i < r.e.model.layers.n; i++) {
        const struct layer *l = r.e.model.layers.at[i];
        bool text = strstr(l->name, "attn2.to_k") != NULL || strstr(l->name, "attn2.to_v") != NULL;
        weights += l->part == PART_UNET ? l->weight.bytes : 0;
        rare += l->part == PART_UNET && text ? l->weight.bytes : 0;
    }
    p.max_memory = (int64_t)(weights - rare + r.other->buffers.unet + r.other->buffers.unet_kept) +
                   (160 << 20);
    assert_int_equal(session_create(&r.holds, &r.e, &p), KRON_OK);
    check(&r, &c, MADE, "the first call");
    check(&r, &c, HELD, "the second call");
    for (int i = 0; i < MAX_NETS; i++)
        for (int o = 0; r.holds->nets[i] != NULL && o < r.holds->nets[i]->g.n_ops; o++) {
            const struct gr_op *op = &r.holds->nets[i]->g.ops[o];
            once += op->once && op->layer != NULL;
            gone += op->once && op->pages;
            others_gone += !op->once && op->pages;
        }
    assert_true(once > 0);
    assert_int_equal(gone, once);
    assert_int_equal(others_gone, 0);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_change),
        cmocka_unit_test(guidance_in_one_call_and_in_two),
        cmocka_unit_test(strengths_change),
        cmocka_unit_test(a_changing_adapter_elsewhere_is_no_reason),
        cmocka_unit_test(others_use_the_same_memory),
        cmocka_unit_test(room_decides),
        cmocka_unit_test(jobs_hold_what_fits),
        cmocka_unit_test(pages_of_what_runs_once_go_first),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
