/* SPDX-License-Identifier: MIT
 * What texts are encoded to. Textual inversion: a word whose vectors are rows of the token table
 * encodes to the very numbers that the tokens of these rows do; vectors that do not fit are told
 * with their file. Adapters for q, k and v as one projection do what three for each do. */
#include "adapter_fixture.h"
#include "pipeline/session.h"
#include "temp_dir.h"

enum { CAT = 2368, FACE = 1710 }; /* ids, each of one token */

static struct engine engine;
static struct session *session;

static int open_all(void **state)
{
    kron_model_params p = {.model = KRON_SOURCE_DIR "/models/emoji-sd.safetensors",
                           .backend = "cpu", .n_threads = 1};

    make_dir(state);
    if (engine_open(&engine, &p) != KRON_OK ||
        session_create(&session, &engine, NULL) != KRON_OK) {
        print_error("%s\n", kron_error_detail());
        return -1;
    }
    return 0;
}

static int close_all(void **state)
{
    session_free(&session);
    engine_close(&engine);
    return remove_dir(state);
}

/* n rows of the token table, as f32. */
static struct tensor rows_of(const char *name, const int32_t *ids, int n, float *data)
{
    const struct layer *token = engine.model.te[0].token;

    for (int i = 0; i < n; i++)
        tensor_decode(&token->weight, ids[i] * token->in, token->in, data + i * token->in);
    return (struct tensor){.data = data, .bytes = (size_t)(n * token->in) * 4, .type = DT_F32,
                           .n_dims = 2, .dim = {n, token->in, 1, 1, 1, 1}, .name = name};
}

/* dir/FILE with one tensor of rows of the token table. */
static void put(const char *file, const char *tensor, const int32_t *ids, int n)
{
    float *data = calloc((size_t)n, (size_t)engine.model.te[0].width * sizeof *data);
    struct tensor t = rows_of(tensor, ids, n, data);

    assert_int_equal(st_write(in_dir(file), &t, 1, NULL, 0), KRON_OK);
    free(data);
}

static struct condition encode(const char *text, const char *embd_dir)
{
    struct prompt p;
    struct condition c;

    assert_int_equal(prompt_parse(&p, text, strlen(text)), KRON_OK);
    if (encode_prompts(session, &p, NULL, embd_dir, 0, &c, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    prompt_free(&p);
    return c;
}

static bool equal(const struct condition *a, const struct condition *b)
{
    size_t n = (size_t)(a->tokens * engine.model.unet.context_width);

    return a->tokens == b->tokens && memcmp(a->context, b->context, n * sizeof(float)) == 0;
}

static void expect_same(const char *text, const char *embd_dir, const char *plain, bool same)
{
    struct condition a = encode(text, embd_dir), b = encode(plain, NULL);

    if (equal(&a, &b) != same)
        fail_msg("'%s' and '%s': expected %s", text, plain, same ? "the same" : "a difference");
    condition_free(&a);
    condition_free(&b);
}

static void a_word_from_a_folder_is_its_vectors(void **state)
{
    static const char *const names[] = {"emb_params", "string_to_param.*", "clip_l", "<zorb>"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put("zorb.safetensors", names[i], (int32_t[]){CAT}, 1);
        expect_same("a zorb face", dir, "a cat face", true);
        expect_same("a (ZORB:1.5) face", dir, "a (cat:1.5) face", true);
    }
    expect_same("a zorb face", NULL, "a cat face", false);
    expect_same("a zorbs face", dir, "a zorbs face", true);
    put("zorb.safetensors", "emb_params", (int32_t[]){FACE, CAT}, 2);
    expect_same("a zorb", dir, "a face cat", true);
    expect_same("zorb BREAK a zorb", dir, "face cat BREAK a face cat", true);
    put("other.safetensors", "emb_params", (int32_t[]){FACE}, 1);
    expect_same("zorb, other zorb", dir, "face cat, face face cat", true);
    unlink(in_dir("zorb.safetensors"));
    unlink(in_dir("other.safetensors"));
}

/* Two prompts in one call: their products have other last bits than those of one. */
static void encode_both(const char *text, const char *second, const char *embd_dir,
                        struct condition *pos, struct condition *neg)
{
    struct prompt a, b;

    assert_int_equal(prompt_parse(&a, text, strlen(text)), KRON_OK);
    assert_int_equal(prompt_parse(&b, second, strlen(second)), KRON_OK);
    assert_int_equal(encode_prompts(session, &a, &b, embd_dir, 0, pos, neg), KRON_OK);
    prompt_free(&a);
    prompt_free(&b);
}

static void both_prompts_have_the_words(void **state)
{
    struct condition pos, neg, cat, face;

    (void)state;
    put("zorb.safetensors", "emb_params", (int32_t[]){CAT}, 1);
    put("other.safetensors", "emb_params", (int32_t[]){FACE}, 1);
    encode_both("zorb", "other", dir, &pos, &neg);
    encode_both("cat", "face", NULL, &cat, &face);
    assert_true(equal(&pos, &cat) && equal(&neg, &face));
    assert_false(equal(&pos, &neg));
    condition_free(&pos);
    condition_free(&neg);
    condition_free(&cat);
    condition_free(&face);
    unlink(in_dir("zorb.safetensors"));
    unlink(in_dir("other.safetensors"));
}

/* An adapter that brings a word, and changes a layer of the UNet so that texts stay. */
static void an_adapter_brings_its_words(void **state)
{
    static const char *const names[] = {"bundle_emb.zorb.string_to_param.*",
                                        "bundle_emb.zorb.clip_l"};
    const struct layer *l = engine.model.unet.conv_in;
    int64_t k = layer_k(l), width = engine.model.te[0].width;
    float *rows = calloc((size_t)width, sizeof *rows);
    float *down = calloc((size_t)k, sizeof *down), *up = calloc((size_t)l->out, sizeof *up);

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct tensor t[3] = {
            rows_of(names[i], (int32_t[]){CAT}, 1, rows),
            {.data = down, .bytes = (size_t)k * 4, .type = DT_F32, .n_dims = 4,
             .dim = {1, l->in, l->kh, l->kw, 1, 1}, .name = "lora_unet_conv_in.lora_down.weight"},
            {.data = up, .bytes = (size_t)l->out * 4, .type = DT_F32, .n_dims = 4,
             .dim = {l->out, 1, 1, 1, 1, 1}, .name = "lora_unet_conv_in.lora_up.weight"}};
        kron_adapter_use use = {.te_strength = 1, .unet_strength = 1};

        assert_int_equal(st_write(in_dir("bundle.safetensors"), t, 3, NULL, 0), KRON_OK);
        assert_int_equal(adapter_open_counted(&use.adapter, in_dir("bundle.safetensors")),
                         KRON_OK);
        if (session_set_adapters(session, &use, 1) != KRON_OK)
            fail_msg("%s", kron_error_detail());
        assert_non_null(strstr(str_get(&session->report), "brings the word zorb"));
        expect_same("a zorb face", NULL, "a cat face", true);
        use.te_strength = use.unet_strength = 0; /* off: a word like any other */
        assert_int_equal(session_set_adapters(session, &use, 1), KRON_OK);
        expect_same("a zorb face", NULL, "a cat face", false);
        assert_int_equal(session_set_adapters(session, NULL, 0), KRON_OK);
        adapter_unref(&use.adapter);
    }
    unlink(in_dir("bundle.safetensors"));
    free(rows);
    free(down);
    free(up);
}

static void expect_error(kron_status status, const char *file, const char *want)
{
    struct prompt p;
    struct condition c;

    assert_int_equal(prompt_parse(&p, "a zorb", 6), KRON_OK);
    assert_int_equal(encode_prompts(session, &p, NULL, dir, 0, &c, NULL), status);
    assert_null(c.context);
    if (!str_starts(kron_error_detail(), in_dir(file)) ||
        strstr(kron_error_detail(), want) == NULL)
        fail_msg("%s", kron_error_detail());
    prompt_free(&p);
}

static void vectors_that_do_not_fit_are_named(void **state)
{
    static float zeros[256];
    struct tensor t[2] = {
        {.data = zeros, .bytes = 3 * 64 * 4, .type = DT_F32, .n_dims = 2,
         .dim = {3, 64, 1, 1, 1, 1}, .name = "emb_params"},
        {.data = zeros, .bytes = 8, .type = DT_F32, .n_dims = 1, .dim = {2, 1, 1, 1, 1, 1},
         .name = "other"}};
    FILE *f;

    (void)state;
    assert_int_equal(st_write(in_dir("zorb.safetensors"), t, 2, NULL, 0), KRON_OK);
    expect_error(KRON_ERR_SHAPE, "zorb.safetensors", "'zorb' are [3, 64], but the text encoder");
    expect_same("a cat", dir, "a cat", true); /* what is not named is not opened */
    t[0].name = "something";
    assert_int_equal(st_write(in_dir("zorb.safetensors"), t, 2, NULL, 0), KRON_OK);
    expect_error(KRON_ERR_FORMAT, "zorb.safetensors", "none of its 2 tensors");
    t[0] = (struct tensor){.data = zeros, .bytes = 128 * 4, .type = DT_I32, .n_dims = 1,
                           .dim = {128, 1, 1, 1, 1, 1}, .name = "emb_params"};
    assert_int_equal(st_write(in_dir("zorb.safetensors"), t, 1, NULL, 0), KRON_OK);
    expect_error(KRON_ERR_SHAPE, "zorb.safetensors", "takes [n, 128] floats");
    f = fopen(in_dir("zorb.safetensors"), "wb");
    fputs("no tensors", f);
    fclose(f);
    expect_error(KRON_ERR_FORMAT, "zorb.safetensors", "");
    unlink(in_dir("zorb.safetensors"));
}

/* --- fused projections --- */

/* What the text is with an adapter of these tensors. */
static struct condition encode_with_file(const struct tensor *t, int n)
{
    kron_adapter_use use = {.te_strength = 1, .unet_strength = 1};
    struct condition c;

    assert_int_equal(st_write(in_dir("adapter.safetensors"), t, n, NULL, 0), KRON_OK);
    assert_int_equal(adapter_open_counted(&use.adapter, in_dir("adapter.safetensors")), KRON_OK);
    if (session_set_adapters(session, &use, 1) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    c = encode("a cat face", NULL);
    assert_int_equal(session_set_adapters(session, NULL, 0), KRON_OK);
    adapter_unref(&use.adapter);
    unlink(in_dir("adapter.safetensors"));
    return c;
}

static struct tensor matrix(const char *name, const float *data, int64_t rows, int64_t cols)
{
    return (struct tensor){.data = data, .bytes = (size_t)(rows * cols) * 4, .type = DT_F32,
                           .n_dims = 2, .dim = {rows, cols, 1, 1, 1, 1}, .name = name};
}

#define LAYER_0 "lora_te_text_model_encoder_layers_0_self_attn_"

static void expect_near(const struct condition *a, const struct condition *b, double limit)
{
    double diff = 0, norm = 0;

    for (int64_t i = 0; i < a->tokens * engine.model.unet.context_width; i++) {
        diff += (double)(a->context[i] - b->context[i]) * (a->context[i] - b->context[i]);
        norm += (double)b->context[i] * b->context[i];
    }
    if (!(sqrt(diff / norm) <= limit))
        fail_msg("%g apart", sqrt(diff / norm));
}

/* up[384, 2] down[2, 128] of the projection against its thirds on q, k and v. */
static void a_lora_of_a_fused_projection(void **state)
{
    static float up[384 * 2], down[2 * 128];
    struct tensor fused[2] = {matrix(LAYER_0 "in_proj.lora_up.weight", up, 384, 2),
                              matrix(LAYER_0 "in_proj.lora_down.weight", down, 2, 128)};
    struct tensor parts[6] = {matrix(LAYER_0 "q_proj.lora_up.weight", up, 128, 2),
                              matrix(LAYER_0 "q_proj.lora_down.weight", down, 2, 128),
                              matrix(LAYER_0 "k_proj.lora_up.weight", up + 256, 128, 2),
                              matrix(LAYER_0 "k_proj.lora_down.weight", down, 2, 128),
                              matrix(LAYER_0 "v_proj.lora_up.weight", up + 512, 128, 2),
                              matrix(LAYER_0 "v_proj.lora_down.weight", down, 2, 128)};
    struct condition a, b, plain = encode("a cat face", NULL);
    uint64_t seed = 1;

    (void)state;
    for (int i = 0; i < 384 * 2; i++)
        up[i] = 0.3f * fx_unit(&seed);
    for (int i = 0; i < 2 * 128; i++)
        down[i] = fx_unit(&seed);
    a = encode_with_file(fused, 2);
    b = encode_with_file(parts, 6);
    assert_false(equal(&a, &plain));
    expect_near(&a, &b, 1e-6);
    condition_free(&a);
    condition_free(&b);
    condition_free(&plain);
}

/* w1[4, 2] (x) w2[96, 64]: the borders of q, k and v fall within rows of w1. */
static void a_lokr_of_a_fused_projection(void **state)
{
    static float w1[4 * 2], w2[96 * 64], whole[384 * 128];
    struct tensor fused[2] = {matrix(LAYER_0 "in_proj.lokr_w1", w1, 4, 2),
                              matrix(LAYER_0 "in_proj.lokr_w2", w2, 96, 64)};
    struct tensor parts[3] = {matrix(LAYER_0 "q_proj.diff", whole, 128, 128),
                              matrix(LAYER_0 "k_proj.diff", whole + 128 * 128, 128, 128),
                              matrix(LAYER_0 "v_proj.diff", whole + 256 * 128, 128, 128)};
    struct condition a, b, plain = encode("a cat face", NULL);
    uint64_t seed = 2;

    (void)state;
    for (int i = 0; i < 4 * 2; i++)
        w1[i] = 0.3f * fx_unit(&seed);
    for (int i = 0; i < 96 * 64; i++)
        w2[i] = fx_unit(&seed);
    for (int o = 0; o < 384; o++)
        for (int i = 0; i < 128; i++)
            whole[o * 128 + i] = w1[o / 96 * 2 + i / 64] * w2[o % 96 * 64 + i % 64];
    a = encode_with_file(fused, 2);
    b = encode_with_file(parts, 3);
    assert_false(equal(&a, &plain));
    expect_near(&a, &b, 1e-5);
    condition_free(&a);
    condition_free(&b);
    condition_free(&plain);
}

static void no_memory_is_an_error(void **state)
{
    struct prompt p;
    int failures = 0;

    (void)state;
    put("zorb.safetensors", "emb_params", (int32_t[]){FACE, CAT}, 2);
    assert_int_equal(prompt_parse(&p, "a zorb", 6), KRON_OK);
    for (long n = 1;; n++) {
        struct words w;
        kron_status status;
        mem_fail_after(n);
        status = words_collect(&w, session, dir, &p, NULL);
        mem_fail_after(0);
        assert_true(status == KRON_OK || status == KRON_ERR_MEMORY);
        if (status == KRON_OK) {
            assert_int_equal(w.n_vectors, 2);
            words_free(&w);
            break;
        }
        assert_null(w.at);
        failures++;
    }
    assert_true(failures > 5);
    prompt_free(&p);
    unlink(in_dir("zorb.safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_word_from_a_folder_is_its_vectors),
        cmocka_unit_test(both_prompts_have_the_words),
        cmocka_unit_test(an_adapter_brings_its_words),
        cmocka_unit_test(vectors_that_do_not_fit_are_named),
        cmocka_unit_test(a_lora_of_a_fused_projection),
        cmocka_unit_test(a_lokr_of_a_fused_projection),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
