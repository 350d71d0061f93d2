/* SPDX-License-Identifier: MIT
 * Models written anew: from parts, from a diffusers folder, from scaled f8. What is written opens
 * as the same layers with the same numbers. */
#include "pipeline/session.h"
#include <kron/adapter.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"

#define REFERENCE KRON_SHARED_DIR "/reference/"

static const char *const tiny[] = {REFERENCE "tiny_sd15.safetensors",
                                   REFERENCE "tiny_sd2.safetensors",
                                   REFERENCE "tiny_sdxl.safetensors"};
enum { N_TINY = sizeof tiny / sizeof *tiny };

static bool have_tiny(void)
{
    return path_is_file(tiny[0]);
}

static struct sd_model load(const char *path)
{
    kron_model_params p = {.model = path};
    struct sd_model m;

    if (model_open(&m, &p) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    return m;
}

static void expect_same_numbers(const struct tensor *a, const struct tensor *b)
{
    int64_t n = tensor_elements(a);
    float x, y;

    assert_int_equal(n, tensor_elements(b));
    if (a->data == NULL || b->data == NULL) {
        assert_true(a->data == b->data);
        return;
    }
    if (a->type == b->type && memcmp(a->data, b->data, a->bytes) == 0)
        return;
    for (int64_t i = 0; i < n; i++) {
        tensor_decode(a, i, 1, &x);
        tensor_decode(b, i, 1, &y);
        if (x != y)
            fail_msg("'%s' and '%s' differ at %lld", a->name, b->name, (long long)i);
    }
}

static void expect_same_model(const char *path, const char *other)
{
    struct sd_model a = load(path), b = load(other);

    assert_int_equal(a.arch, b.arch);
    assert_int_equal(a.prediction, b.prediction);
    assert_int_equal(a.layers.n, b.layers.n);
    assert_int_equal(a.unet.mid.attn.heads, b.unet.mid.attn.heads);
    for (int i = 0; i < a.layers.n; i++) {
        assert_string_equal(a.layers.at[i]->name, b.layers.at[i]->name);
        expect_same_numbers(&a.layers.at[i]->weight, &b.layers.at[i]->weight);
        expect_same_numbers(&a.layers.at[i]->bias, &b.layers.at[i]->bias);
    }
    for (int i = 0; i < a.n_te; i++)
        assert_int_equal(a.te[i].heads, b.te[i].heads);
    if (a.n_te > 1) {
        assert_int_equal(a.te[1].projection_in_out, b.te[1].projection_in_out);
        expect_same_numbers(&a.te[1].projection, &b.te[1].projection);
    }
    model_free(&a);
    model_free(&b);
}

static void convert(const kron_convert_params *p)
{
    if (kron_convert(p, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

static void parts_are_the_same_model(void **state)
{
    static const char *const names[] = {"parts.gguf", "parts.safetensors"};

    (void)state;
    if (!have_tiny())
        skip();
    for (int i = 0; i < N_TINY; i++)
        for (int k = 0; k < 2; k++) {
            kron_convert_params p = {.model = tiny[i], .vae = tiny[i],
                                     .output = in_dir(names[k])};
            convert(&p);
            expect_same_model(tiny[i], in_dir(names[k]));
        }
}

/* --- a folder --- */

static const char *const folders[PART_COUNT] = {"unet", "text_encoder", "text_encoder_2", "vae"};

static void write_text(const char *path, const char *text)
{
    assert_int_equal(file_write(path, text, strlen(text)), KRON_OK);
}

static void write_part(const struct sd_model *m, enum layer_part part, const char *root)
{
    bool text = part == PART_TE0 || part == PART_TE1;
    struct tensor t[4096];
    struct arena mem = {0};
    char path[8192], config[100];
    int64_t n = 0;

    for (int i = 0; i < m->layers.n; i++) {
        const struct layer *l = m->layers.at[i];
        const char *prefix = text ? "text_model." : "";
        if (l->part != part)
            continue;
        t[n] = l->weight;
        t[n++].name = arena_printf(&mem, "%s%s.weight", prefix, l->name);
        if (l->bias.data != NULL) {
            t[n] = l->bias;
            t[n++].name = arena_printf(&mem, "%s%s.bias", prefix, l->name);
        }
        assert_true(n < 4094);
    }
    if (n == 0)
        return;
    if (part == PART_TE1) {
        t[n] = m->te[1].projection;
        t[n++].name = m->te[1].projection_in_out ? "text_projection" : "text_projection.weight";
    }
    snprintf(path, sizeof path, "%s/%s", root, folders[part]);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(config, sizeof config, "{\"num_attention_heads\": %d}",
             text ? m->te[part == PART_TE1].heads : 0);
    snprintf(path, sizeof path, "%s/%s/config.json", root, folders[part]);
    write_text(path, config);
    snprintf(path, sizeof path, "%s/%s/%s.safetensors", root, folders[part],
             text ? "model" : "diffusion_pytorch_model");
    const char *dim = store_meta(m->store, "", "unet.head_dim");
    const char *const meta[] = {dim != NULL ? "unet.head_dim" : "unet.heads",
                                dim != NULL ? dim : "8"};
    assert_int_equal(st_write(path, t, n, meta, part == PART_UNET), KRON_OK);
    arena_free(&mem);
}

static void write_folder(const char *path, const char *root)
{
    struct sd_model m = load(path);
    char sub[8192];

    assert_int_equal(mkdir(root, 0700), 0);
    for (int part = 0; part < PART_COUNT; part++)
        write_part(&m, (enum layer_part)part, root);
    snprintf(sub, sizeof sub, "%s/scheduler", root);
    assert_int_equal(mkdir(sub, 0700), 0);
    snprintf(sub, sizeof sub, "%s/scheduler/scheduler_config.json", root);
    write_text(sub, m.prediction == KRON_PREDICTION_V ? "{\"prediction_type\": \"v_prediction\"}"
                                                      : "{\"prediction_type\": \"epsilon\"}");
    model_free(&m);
}

static void a_folder_becomes_one_file(void **state)
{
    (void)state;
    if (!have_tiny())
        skip();
    for (int i = 0; i < N_TINY; i++) {
        char root[4200];
        snprintf(root, sizeof root, "%s/folder%d", dir, i);
        write_folder(tiny[i], root);
        kron_convert_params p = {.model = root, .output = in_dir("one.gguf")};
        convert(&p);
        expect_same_model(tiny[i], in_dir("one.gguf"));
    }
}

/* --- scaled f8 --- */

static bool is_scaled(const struct tensor *t)
{
    return t->n_dims == 2 && strstr(t->name, "attn1.to_q.weight") != NULL;
}

/* A copy of the first tiny model with some weights as f8 and a scale. */
static int write_scaled(const char *path)
{
    static const float scale[] = {0.5f};
    struct st_file *f;
    struct arena mem = {0};
    static struct tensor t[4096];
    int64_t n = 0;
    int scaled = 0;

    assert_int_equal(st_open(&f, tiny[0]), KRON_OK);
    for (int64_t i = 0; i < st_count(f); i++) {
        const struct tensor *from = st_at(f, i);
        int64_t all = tensor_elements(from);
        t[n++] = *from;
        if (!is_scaled(from))
            continue;
        float *x = arena_alloc(&mem, (size_t)all * sizeof *x);
        uint8_t *f8 = arena_alloc(&mem, (size_t)all);
        tensor_decode(from, 0, all, x);
        tensor_encode(DT_F8_E4M3, x, all, f8);
        t[n - 1].type = DT_F8_E4M3;
        t[n - 1].data = f8;
        t[n - 1].bytes = (size_t)all;
        char *name = arena_strdup(&mem, from->name);
        strcpy(strrchr(name, '.'), "");
        t[n++] = (struct tensor){scale, 4, DT_F32, 1, {1, 1, 1, 1, 1, 1},
                                 arena_printf(&mem, "%s.scale_weight", name)};
        scaled++;
        assert_true(n < 4090);
    }
    assert_int_equal(st_write(path, t, n, (const char *const[]){"te0.heads", "2"}, 1), KRON_OK);
    st_close(&f);
    arena_free(&mem);
    return scaled;
}

static void scaled_f8_is_written_as_its_product(void **state)
{
    struct st_file *f;

    (void)state;
    if (!have_tiny())
        skip();
    int scaled = write_scaled(in_dir("scaled.safetensors"));
    assert_true(scaled > 5);
    kron_convert_params p = {.model = in_dir("scaled.safetensors"),
                             .output = in_dir("product.safetensors")};
    convert(&p);
    expect_same_model(in_dir("scaled.safetensors"), in_dir("product.safetensors"));
    assert_int_equal(st_open(&f, in_dir("product.safetensors")), KRON_OK);
    for (int64_t i = 0; i < st_count(f); i++) {
        assert_null(strstr(st_at(f, i)->name, "scale_weight"));
        scaled -= is_scaled(st_at(f, i)) && st_at(f, i)->type == DT_F16;
    }
    assert_int_equal(scaled, 0);
    st_close(&f);
}

/* --- no memory --- */

static kron_status open_once(const char *cache)
{
    kron_model_params p = {.model = tiny[0], .backend = "ref", .type = KRON_TYPE_BF16,
                           .quant_cache = cache};
    kron_model *m;
    kron_status status = kron_model_open(&m, &p);

    kron_model_close(&m);
    return status;
}

static void no_memory_is_an_error(void **state)
{
    enum { STEP = 11 };
    kron_convert_params p = {.model = tiny[0], .vae = tiny[0], .type = KRON_TYPE_Q4_0};
    char output[4200], cache[4200];
    int failed[2] = {0, 0};

    (void)state;
    if (!have_tiny())
        skip();
    snprintf(output, sizeof output, "%s/memory.gguf", dir);
    snprintf(cache, sizeof cache, "%s/cache", dir);
    assert_int_equal(mkdir(cache, 0700), 0);
    p.output = output;
    for (int way = 0; way < 2; way++)
        for (long n = 1;; n += STEP) {
            mem_fail_after(n);
            kron_status status = way == 0 ? kron_convert(&p, NULL) : open_once(cache);
            mem_fail_after(0);
            if (status == KRON_OK)
                break;
            if (status != KRON_ERR_MEMORY)
                fail_msg("allocation %ld: %s", n, kron_error_detail());
            failed[way]++;
            assert_false(way == 0 && path_is_file(output));
        }
    print_message("%d and %d failures\n", failed[0], failed[1]);
    assert_true(failed[0] > 20 && failed[1] > 20);
    assert_int_equal(open_once(cache), KRON_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_the_same_model),
        cmocka_unit_test(a_folder_becomes_one_file),
        cmocka_unit_test(scaled_f8_is_written_as_its_product),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
