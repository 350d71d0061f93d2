/* SPDX-License-Identifier: MIT
 * Stores: single files and files that replace a part, diffusers folders with shards and configs. */
#include "file/file.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"

static void put_text(const char *name, const char *text)
{
    assert_int_equal(file_write(in_dir(name), text, strlen(text)), KRON_OK);
}

/* A file of scalars with these values; metadata "from" names the file. */
static void put(const char *file, const char *a, float va, const char *b, float vb)
{
    const struct tensor t[2] = {
        {.data = &va, .bytes = 4, .type = DT_F32, .dim = {1, 1, 1, 1, 1, 1}, .name = a},
        {.data = &vb, .bytes = 4, .type = DT_F32, .dim = {1, 1, 1, 1, 1, 1}, .name = b}};
    const char *const meta[] = {"from", file};

    assert_int_equal(st_write(in_dir(file), t, b != NULL ? 2 : 1, meta, 1), KRON_OK);
}

static void folder(const char *name)
{
    assert_int_equal(mkdir(in_dir(name), 0700), 0);
}

static float value(const struct store *s, const char *tag, const char *name)
{
    const struct tensor *t = store_find(s, tag, name);
    float v = -1;

    if (t != NULL)
        tensor_decode(t, 0, 1, &v);
    return v;
}

static struct store *new_store(void)
{
    struct store *s;

    assert_int_equal(store_create(&s), KRON_OK);
    return s;
}

static void later_files_come_first(void **state)
{
    struct store *s = new_store();
    const char *tag;
    int in_all = 0, in_vae = 0;

    (void)state;
    put("all.safetensors", "a", 1, "b", 2);
    put("vae.safetensors", "a", 3, NULL, 0);
    put("vae2.safetensors", "a", 4, "c", 5);
    assert_false(store_has_tag(s, ""));
    assert_null(store_find(s, "", "a"));
    assert_int_equal(store_add_file(s, "", in_dir("all.safetensors")), KRON_OK);
    assert_int_equal(store_add_file(s, "vae", in_dir("vae.safetensors")), KRON_OK);
    assert_true(store_has_tag(s, "") && store_has_tag(s, "vae"));
    assert_false(store_has_tag(s, "unet") || store_has_tag(s, "va"));
    assert_true(value(s, "", "a") == 1 && value(s, "", "b") == 2 && value(s, "vae", "a") == 3);
    assert_null(store_find(s, "vae", "b")); /* a tag is searched alone */
    assert_int_equal(store_add_file(s, "vae", in_dir("vae2.safetensors")), KRON_OK);
    assert_true(value(s, "vae", "a") == 4 && value(s, "vae", "c") == 5);
    assert_string_equal(store_path(s, "vae"), in_dir("vae2.safetensors"));
    assert_string_equal(store_path(s, ""), in_dir("all.safetensors"));
    assert_string_equal(store_meta(s, "vae", "from"), "vae2.safetensors");
    assert_string_equal(store_meta(s, "", "from"), "all.safetensors");
    assert_null(store_meta(s, "unet", "from"));
    assert_null(store_meta(s, "", "to"));
    assert_int_equal(store_count(s), 5);
    for (int64_t i = 0; i < 5; i++) {
        assert_non_null(store_at(s, i, &tag));
        in_all += strcmp(tag, "") == 0;
        in_vae += strcmp(tag, "vae") == 0;
    }
    assert_null(store_at(s, 5, &tag));
    assert_true(in_all == 2 && in_vae == 3);
    store_free(&s);
    assert_null(s);
    store_free(&s);
}

static void a_file_that_fails_adds_nothing(void **state)
{
    struct store *s = new_store();

    (void)state;
    put_text("bad.safetensors", "nonsense!");
    folder("sub");
    assert_int_equal(store_add_file(s, "", in_dir("none.safetensors")), KRON_ERR_IO);
    assert_int_equal(store_add_file(s, "", in_dir("bad.safetensors")), KRON_ERR_FORMAT);
    assert_int_equal(store_add_file(s, "", in_dir("sub")), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "sub: a folder where"));
    assert_false(store_has_tag(s, ""));
    assert_int_equal(store_count(s), 0);
    put("x.safetensors", "a", 1, NULL, 0);
    for (int i = 0; i < 64; i++)
        assert_int_equal(store_add_file(s, "", in_dir("x.safetensors")), KRON_OK);
    assert_int_equal(store_add_file(s, "", in_dir("x.safetensors")), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "more than 64 files"));
    store_free(&s);
}

/* A diffusers folder: a UNet in two shards, a VAE in half precision, one text encoder. */
static void make_model(void)
{
    folder("m");
    folder("m/unet");
    folder("m/vae");
    folder("m/text_encoder");
    folder("m/scheduler");
    put("m/unet/diffusion_pytorch_model-00001-of-00002.safetensors", "a", 1, "b", 2);
    put("m/unet/diffusion_pytorch_model-00002-of-00002.safetensors", "c", 3, NULL, 0);
    put_text("m/unet/diffusion_pytorch_model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":12},\"weight_map\":{"
             "\"a\":\"diffusion_pytorch_model-00001-of-00002.safetensors\","
             "\"c\":\"diffusion_pytorch_model-00002-of-00002.safetensors\","
             "\"b\":\"diffusion_pytorch_model-00001-of-00002.safetensors\"}}");
    put_text("m/unet/config.json", "{\"attention_head_dim\":[5,10,20],\"sample_size\":64,"
             "\"_class_name\":\"UNet2DConditionModel\",\"upcast\":false,\"x\":0.5,\"none\":null}");
    put("m/vae/diffusion_pytorch_model.fp16.safetensors", "v", 4, NULL, 0);
    put("m/text_encoder/model.safetensors", "t", 5, NULL, 0);
    put_text("m/scheduler/scheduler_config.json", "{\"prediction_type\":\"v_prediction\"}");
}

static void folders_become_tags(void **state)
{
    struct store *s = new_store();

    (void)state;
    make_model();
    assert_int_equal(store_add_folder(s, in_dir("m")), KRON_OK);
    assert_true(value(s, "unet", "a") == 1 && value(s, "unet", "b") == 2);
    assert_true(value(s, "unet", "c") == 3);
    assert_true(value(s, "vae", "v") == 4 && value(s, "text_encoder", "t") == 5);
    assert_int_equal(store_count(s), 5); /* each shard once */
    assert_false(store_has_tag(s, "text_encoder_2") || store_has_tag(s, ""));
    assert_false(store_has_tag(s, "scheduler")); /* a config is no file of tensors */
    assert_non_null(strstr(store_path(s, "unet"), "m/unet/diffusion_pytorch_model-0000"));
    store_free(&s);
}

static void whole_files_come_before_variants_and_shards(void **state)
{
    struct store *s = new_store();

    (void)state;
    make_model();
    put("m/unet/diffusion_pytorch_model.safetensors", "a", 10, NULL, 0);
    put("m/vae/diffusion_pytorch_model.safetensors", "v", 40, NULL, 0);
    assert_int_equal(store_add_folder(s, in_dir("m")), KRON_OK);
    assert_true(value(s, "unet", "a") == 10 && value(s, "vae", "v") == 40);
    assert_null(store_find(s, "unet", "c"));
    store_free(&s);
}

static void config_values_are_text(void **state)
{
    static const struct {
        const char *key, *want;
    } cases[] = {{"attention_head_dim", "[5,10,20]"}, {"sample_size", "64"},
                 {"_class_name", "UNet2DConditionModel"}, {"upcast", "false"}, {"x", "0.5"}};
    struct store *s = new_store();

    (void)state;
    make_model();
    assert_int_equal(store_add_folder(s, in_dir("m")), KRON_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(store_config(s, "unet", cases[i].key), cases[i].want);
    assert_string_equal(store_config(s, "scheduler", "prediction_type"), "v_prediction");
    assert_null(store_config(s, "unet", "none"));
    assert_null(store_config(s, "unet", "missing"));
    assert_null(store_config(s, "vae", "sample_size"));
    assert_null(store_config(s, "", "sample_size"));
    store_free(&s);
}

static void expect_folder_error(kron_status status, const char *want)
{
    struct store *s = new_store();

    assert_int_equal(store_add_folder(s, in_dir("m")), status);
    if (strstr(kron_error_detail(), want) == NULL)
        fail_msg("'%s' does not say '%s'", kron_error_detail(), want);
    store_free(&s);
}

static void parts_that_are_broken(void **state)
{
    (void)state;
    expect_folder_error(KRON_ERR_UNSUPPORTED, "not a diffusers folder"); /* not there at all */
    folder("m");
    expect_folder_error(KRON_ERR_UNSUPPORTED, "not a diffusers folder");
    folder("m/vae");
    expect_folder_error(KRON_ERR_IO, "m/vae: no diffusion_pytorch_model.safetensors");
    put("m/vae/diffusion_pytorch_model.safetensors", "v", 4, NULL, 0);
    put_text("m/vae/config.json", "{\"a\":");
    expect_folder_error(KRON_ERR_FORMAT, "m/vae/config.json: not JSON");
    put_text("m/vae/config.json", "{}");
    put_text("m/vae/diffusion_pytorch_model.safetensors", "nonsense!");
    expect_folder_error(KRON_ERR_FORMAT, "m/vae/diffusion_pytorch_model.safetensors: ");
}

static void shards_stay_in_their_folder(void **state)
{
    static const struct {
        const char *index, *want;
        kron_status status;
    } cases[] = {
        {"{", "index.json: expected JSON with a weight_map", KRON_ERR_FORMAT},
        {"[]", "expected JSON with a weight_map", KRON_ERR_FORMAT},
        {"{\"weight_map\":[\"x\"]}", "expected JSON with a weight_map", KRON_ERR_FORMAT},
        {"{\"weight_map\":{\"w\":\"../../secret.safetensors\"}}",
         "'w' is not in a file of this folder",
         KRON_ERR_FORMAT},
        {"{\"weight_map\":{\"w\":\"/etc/passwd\"}}", "'w' is not in a file", KRON_ERR_FORMAT},
        {"{\"weight_map\":{\"w\":\"sub/x.safetensors\"}}", "'w' is not in a file", KRON_ERR_FORMAT},
        {"{\"weight_map\":{\"w\":7}}", "'w' is not in a file", KRON_ERR_FORMAT},
        {"{\"weight_map\":{\"w\":\"..\"}}", "unet/..: a folder", KRON_ERR_IO},
        {"{\"weight_map\":{\"w\":\"\"}}", "unet/: a folder", KRON_ERR_IO},
        {"{\"weight_map\":{\"w\":\"gone.safetensors\"}}", "gone.safetensors: cannot open",
         KRON_ERR_IO},
    };

    (void)state;
    folder("m");
    folder("m/unet");
    put("secret.safetensors", "w", 1, NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text("m/unet/diffusion_pytorch_model.safetensors.index.json", cases[i].index);
        expect_folder_error(cases[i].status, cases[i].want);
    }
}

static void no_memory_is_an_error(void **state)
{
    int failures = 0;

    (void)state;
    make_model();
    for (long n = 1;; n++, failures++) {
        struct store *s = NULL;
        mem_fail_after(n);
        kron_status status = store_create(&s);
        if (status == KRON_OK)
            status = store_add_folder(s, in_dir("m"));
        mem_fail_after(0);
        if (status != KRON_OK)
            assert_int_equal(status, KRON_ERR_MEMORY);
        store_free(&s);
        if (status == KRON_OK)
            break;
    }
    assert_true(failures > 10);
}

int main(void)
{
#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(later_files_come_first),
        IN_DIR(a_file_that_fails_adds_nothing),
        IN_DIR(folders_become_tags),
        IN_DIR(whole_files_come_before_variants_and_shards),
        IN_DIR(config_values_are_text),
        IN_DIR(parts_that_are_broken),
        IN_DIR(shards_stay_in_their_folder),
        IN_DIR(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
