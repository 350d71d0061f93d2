/* SPDX-License-Identifier: MIT
 * The same checkpoint in other formats and under the names that stable-diffusion.cpp gives its
 * tensors: the same layers with the same numbers. */
#include "model/model.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"

#define SHIPPED KRON_SOURCE_DIR "/models/emoji-sd.safetensors"
#define REFERENCE KRON_SHARED_DIR "/reference/"

static struct sd_model load(const char *path)
{
    struct sd_model m;
    struct store *s;

    assert_int_equal(store_create(&s), KRON_OK);
    if (store_add_file(s, "", path) != KRON_OK || model_load(&m, s) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    return m;
}

static void expect_same_numbers(const struct tensor *a, const struct tensor *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(tensor_elements(a), tensor_elements(b));
    if (a->bytes > 0 && memcmp(a->data, b->data, a->bytes) != 0)
        fail_msg("'%s' and '%s' differ", a->name, b->name);
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
        assert_int_equal(a.layers.at[i]->part, b.layers.at[i]->part);
        expect_same_numbers(&a.layers.at[i]->weight, &b.layers.at[i]->weight);
        expect_same_numbers(&a.layers.at[i]->bias, &b.layers.at[i]->bias);
    }
    for (int i = 0; i < a.n_te; i++) {
        assert_int_equal(a.te[i].heads, b.te[i].heads);
        assert_int_equal(a.te[i].act, b.te[i].act);
        assert_int_equal(a.te[i].default_skip, b.te[i].default_skip);
        assert_int_equal(a.te[i].projection_in_out, b.te[i].projection_in_out);
        expect_same_numbers(&a.te[i].projection, &b.te[i].projection);
    }
    model_free(&a);
    model_free(&b);
}

/* --- names --- */

struct rename {
    const char *from, *to;
};

/* What stands first in OpenCLIP's names is replaced by `prefix`; the rest as transformers has
 * it. */
static const struct rename open_clip[] = {
    {"token_embedding.", "embeddings.token_embedding."},
    {"positional_embedding", "embeddings.position_embedding.weight"},
    {"ln_final.", "final_layer_norm."},
    {"transformer.resblocks.", "encoder.layers."},
    {".ln_1.", ".layer_norm1."},
    {".ln_2.", ".layer_norm2."},
    {".mlp.c_fc.", ".mlp.fc1."},
    {".mlp.c_proj.", ".mlp.fc2."},
    {".attn.out_proj.", ".self_attn.out_proj."},
    {".attn.in_proj_", ".self_attn.in_proj."},
};

static void replace(char *name, size_t room, const struct rename *r)
{
    char *at = strstr(name, r->from), rest[256];

    if (at == NULL)
        return;
    snprintf(rest, sizeof rest, "%s", at + strlen(r->from));
    snprintf(at, room - (size_t)(at - name), "%s%s", r->to, rest);
}

/* Prefixes by turns; those of OpenCLIP's encoders have the layers' names changed too. */
static void convert_name(char *name, size_t room, const struct rename *prefixes, size_t n)
{
    bool open = n > 0 && (str_starts(name, "cond_stage_model.model.") ||
                          str_starts(name, "conditioner.embedders.1.model."));

    for (size_t i = 0; i < n; i++)
        if (str_starts(name, prefixes[i].from)) {
            replace(name, room, &prefixes[i]);
            break;
        }
    for (size_t i = 0; open && i < sizeof open_clip / sizeof *open_clip; i++)
        replace(name, room, &open_clip[i]);
}

/* Three tensors of a third of the rows each, as older files have OpenCLIP's q, k and v. */
static int split_rows(const struct tensor *t, struct tensor *out, char (*names)[256])
{
    static const char *const to[] = {".q_proj.", ".k_proj.", ".v_proj."};

    for (int i = 0; i < 3; i++) {
        out[i] = tensor_rows(t, i * t->dim[0] / 3, t->dim[0] / 3);
        snprintf(names[i], sizeof names[i], "%s", t->name);
        replace(names[i], sizeof names[i], &(struct rename){".in_proj.", to[i]});
        out[i].name = names[i];
    }
    return 3;
}

enum { MOST = 2000 }; /* tensors of a file; a few more where some are split */

static void put_converted(const char *to, const char *from, const struct rename *prefixes, size_t n,
                          bool split)
{
    struct st_file *f;
    static struct tensor t[MOST + 300];
    static char names[MOST + 300][256];
    const char *meta[64];
    int64_t n_meta, count = 0;

    assert_int_equal(st_open(&f, from), KRON_OK);
    assert_true(st_count(f) < MOST && st_meta_count(f) <= 32);
    for (n_meta = 0; n_meta < st_meta_count(f); n_meta++)
        st_meta_at(f, n_meta, &meta[2 * n_meta], &meta[2 * n_meta + 1]);
    for (int64_t i = 0; i < st_count(f); i++) {
        struct tensor x = *st_at(f, i);
        char name[256];
        snprintf(name, sizeof name, "%s", x.name);
        convert_name(name, sizeof name, prefixes, n);
        x.name = name;
        if (split && strstr(name, ".in_proj.") != NULL) {
            count += split_rows(&x, t + count, names + count);
            continue;
        }
        t[count] = x;
        t[count].name = strcpy(names[count], name);
        count++;
    }
    if (gguf_write(to, t, count, meta, n_meta) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    st_close(&f);
}

/* As written by -M convert of its first versions with one file, and of its last with parts. */
static const struct rename whole[] = {
    {"cond_stage_model.model.", "cond_stage_model.transformer.text_model."},
    {"conditioner.embedders.0.", "cond_stage_model."},
    {"conditioner.embedders.1.model.", "cond_stage_model.1.transformer.text_model."},
};
static const struct rename parts[] = {
    {"cond_stage_model.transformer.", "text_encoders.clip_l.transformer."},
    {"conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."},
    {"conditioner.embedders.1.model.", "text_encoders.clip_g.transformer.text_model."},
    {"first_stage_model.", "vae."},
};
enum { N_WHOLE = sizeof whole / sizeof *whole, N_PARTS = sizeof parts / sizeof *parts };

static void the_shipped_model_as_gguf(void **state)
{
    (void)state;
    put_converted(in_dir("same.gguf"), SHIPPED, NULL, 0, false);
    expect_same_model(SHIPPED, in_dir("same.gguf"));
    put_converted(in_dir("parts.gguf"), SHIPPED, parts, N_PARTS, false);
    expect_same_model(SHIPPED, in_dir("parts.gguf"));
}

static void other_families_as_gguf(void **state)
{
    static const char *const files[] = {"tiny_sd15", "tiny_sd2", "tiny_sdxl"};
    int seen = 0;

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[4096];
        snprintf(path, sizeof path, REFERENCE "%s.safetensors", files[i]);
        if (!path_is_file(path))
            continue;
        seen++;
        put_converted(in_dir("same.gguf"), path, NULL, 0, false);
        expect_same_model(path, in_dir("same.gguf"));
        put_converted(in_dir("whole.gguf"), path, whole, N_WHOLE, false);
        expect_same_model(path, in_dir("whole.gguf"));
        put_converted(in_dir("split.gguf"), path, whole, N_WHOLE, true);
        expect_same_model(path, in_dir("split.gguf"));
        if (strcmp(files[i], "tiny_sd2") == 0) /* sd.cpp has no part of that kind */
            continue;
        put_converted(in_dir("parts.gguf"), path, parts, N_PARTS, true);
        expect_same_model(path, in_dir("parts.gguf"));
    }
    if (seen == 0)
        print_message("no reference models in %s: case skipped\n", KRON_SHARED_DIR);
}

/* --- scaled f8 --- */

enum { ROWS = 256, WIDTH = 64 }; /* of the shipped time_embed.0 */

/* Lays over the shipped model an f8 weight and its scale. */
static kron_status load_scaled(struct sd_model *m, const char *suffix, int n_dims,
                               const int64_t *dim, const float *scale, const uint8_t *w)
{
    char name[128];
    struct tensor t[2] = {{.data = w, .bytes = ROWS * WIDTH, .type = DT_F8_E4M3, .n_dims = 2,
                           .dim = {ROWS, WIDTH, 1, 1, 1, 1},
                           .name = "model.diffusion_model.time_embed.0.weight"},
                          {.data = scale, .type = DT_F32, .n_dims = n_dims,
                           .dim = {1, 1, 1, 1, 1, 1}, .name = name}};
    struct store *s;

    snprintf(name, sizeof name, "model.diffusion_model.time_embed.0%s", suffix);
    for (int i = 0; i < n_dims; i++)
        t[1].dim[i] = dim[i];
    t[1].bytes = dtype_bytes(DT_F32, tensor_elements(&t[1]));
    assert_int_equal(st_write(in_dir("f8"), t, 2, NULL, 0), KRON_OK);
    assert_int_equal(store_create(&s), KRON_OK);
    assert_int_equal(store_add_file(s, "", SHIPPED), KRON_OK);
    assert_int_equal(store_add_file(s, "", in_dir("f8")), KRON_OK);
    return model_load(m, s);
}

static void f8_is_scaled(void **state)
{
    static const struct {
        const char *suffix;
        int n_dims;
        int64_t dim[2];
    } cases[] = {{".scale_weight", 1, {1}},      {".scale_weight", 0, {0}},
                 {".weight_scale", 2, {ROWS, 1}}, {".scale_weight", 1, {ROWS}},
                 {".scale", 1, {1}}};
    static uint8_t w[ROWS * WIDTH];
    float scale[ROWS];

    (void)state;
    for (size_t i = 0; i < sizeof w; i++)
        w[i] = (uint8_t)(i * 31 % 0x7f); /* no NaN */
    for (int i = 0; i < ROWS; i++)
        scale[i] = 0.001f * (float)(i + 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool scaled = strcmp(cases[i].suffix, ".scale") != 0;
        bool rows = cases[i].n_dims > 0 && cases[i].dim[0] == ROWS;
        const struct tensor *t;
        struct sd_model m;
        float got;
        assert_int_equal(load_scaled(&m, cases[i].suffix, cases[i].n_dims, cases[i].dim, scale, w),
                         KRON_OK);
        t = &m.unet.time1->weight;
        assert_int_equal(t->type, DT_F8_E4M3); /* nothing was made of it */
        assert_int_equal(t->bytes, sizeof w);
        for (int64_t k = 0; k < tensor_elements(t); k++) {
            float s = scaled ? scale[rows ? k / WIDTH : 0] : 1;
            tensor_decode(t, k, 1, &got);
            assert_true(got == f8_e4m3_to_f32(w[k]) * s);
        }
        struct tensor part = tensor_rows(t, 2, ROWS - 2); /* a window keeps its scales */
        float all[(ROWS - 2) * WIDTH];
        tensor_decode(&part, 1, (ROWS - 2) * WIDTH - 1, all + 1);
        for (int k = 1; k < (ROWS - 2) * WIDTH; k++)
            assert_true(all[k] == f8_e4m3_to_f32(w[k + 2 * WIDTH]) *
                                      (scaled ? scale[rows ? k / WIDTH + 2 : 0] : 1));
        model_free(&m);
    }
}

static void scales_that_do_not_fit(void **state)
{
    static uint8_t w[ROWS * WIDTH];
    float scale[ROWS] = {1};
    struct sd_model m;

    (void)state;
    assert_int_equal(load_scaled(&m, ".scale_weight", 1, (const int64_t[]){2}, scale, w),
                     KRON_ERR_SHAPE);
    assert_non_null(strstr(kron_error_detail(), "time_embed.0.scale_weight' has shape [2]: expected "
                           "one number, or one for each row of"));
    model_free(&m);
}

/* Packed weights, as nvfp4 in safetensors has them, would be read as numbers. */
static void integers_are_no_weights(void **state)
{
    static uint8_t w[ROWS * WIDTH];
    struct tensor t = {.data = w, .bytes = sizeof w, .type = DT_U8, .n_dims = 2,
                       .dim = {ROWS, WIDTH, 1, 1, 1, 1},
                       .name = "model.diffusion_model.time_embed.0.weight"};
    struct sd_model m;
    struct store *s;

    (void)state;
    assert_int_equal(st_write(in_dir("u8"), &t, 1, NULL, 0), KRON_OK);
    assert_int_equal(store_create(&s), KRON_OK);
    assert_int_equal(store_add_file(s, "", SHIPPED), KRON_OK);
    assert_int_equal(store_add_file(s, "", in_dir("u8")), KRON_OK);
    assert_int_equal(model_load(&m, s), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "time_embed.0.weight' holds integers (U8)"));
    model_free(&m);
}

/* --- a part's own file --- */

/* The shipped model with a VAE of its own file: those of the shipped one's layers whose names begin
 * with `piece`, without those that have `not` in theirs. */
static kron_status load_with_vae(struct sd_model *m, const char *piece, const char *not)
{
    struct tensor t[400];
    struct st_file *f;
    struct store *s;
    int64_t n = 0;

    assert_int_equal(st_open(&f, SHIPPED), KRON_OK);
    for (int64_t i = 0; i < st_count(f) && n < 400; i++)
        if (strncmp(st_at(f, i)->name, piece, strlen(piece)) == 0 &&
            strstr(st_at(f, i)->name, not) == NULL)
            t[n++] = *st_at(f, i);
    assert_true(n > 0 && n < 400);
    assert_int_equal(st_write(in_dir("vae"), t, n, NULL, 0), KRON_OK);
    st_close(&f);
    assert_int_equal(store_create(&s), KRON_OK);
    assert_int_equal(store_add_file(s, "", SHIPPED), KRON_OK);
    assert_int_equal(store_add_file(s, "vae", in_dir("vae")), KRON_OK);
    return model_load(m, s);
}

static void a_vae_is_replaced_whole(void **state)
{
    struct sd_model m;

    (void)state;
    assert_int_equal(load_with_vae(&m, "first_stage_model.", "decoder.mid.block_1.conv1."),
                     KRON_ERR_FORMAT); /* not taken from the checkpoint */
    assert_non_null(strstr(kron_error_detail(), "decoder.mid.block_1.conv1.weight"));
    model_free(&m);
    assert_int_equal(load_with_vae(&m, "first_stage_model.decoder.", "?"), KRON_OK);
    model_free(&m); /* the encoder is the checkpoint's */
}

int main(void)
{
#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(the_shipped_model_as_gguf),
        IN_DIR(other_families_as_gguf),
        IN_DIR(f8_is_scaled),
        IN_DIR(scales_that_do_not_fit),
        IN_DIR(integers_are_no_weights),
        IN_DIR(a_vae_is_replaced_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
