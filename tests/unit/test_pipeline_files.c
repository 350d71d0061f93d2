/* SPDX-License-Identifier: MIT
 * Pictures do not depend on the format of the files: the shipped model and an adapter as GGUF. */
#include "file/file.h"

#include "session_fixture.h"
#include "temp_dir.h"

static void put_gguf(const char *to, const char *from)
{
    struct st_file *f;
    struct tensor *t;
    const char *meta[128];
    void *p;
    int64_t n, n_meta;

    assert_int_equal(st_open(&f, from), KRON_OK);
    n = st_count(f);
    assert_int_equal(mem_alloc_n(&p, (size_t)n, sizeof *t, "tensors"), KRON_OK);
    t = p;
    for (int64_t i = 0; i < n; i++)
        t[i] = *st_at(f, i);
    assert_true(st_meta_count(f) <= 64);
    for (n_meta = 0; n_meta < st_meta_count(f); n_meta++)
        st_meta_at(f, n_meta, &meta[2 * n_meta], &meta[2 * n_meta + 1]);
    if (gguf_write(to, t, n, meta, n_meta) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    mem_free(t);
    st_close(&f);
}

static kron_image draw_with(const char *path, const char *lora_dir)
{
    kron_model_params p = {.model = path, .n_threads = 1};
    kron_job j = small_job();
    kron_image image;
    kron_session *s;

    if (kron_model_open(&model, &p) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    s = new_session(KRON_APPLY_AUTO);
    j.prompt = "a cat face <lora:lokr-neon:0.8>";
    j.lora_dir = lora_dir;
    image = draw(s, &j);
    kron_session_free(&s);
    kron_model_close(&model);
    return image;
}

static void gguf_gives_the_same_bits(void **state)
{
    kron_image a = draw_with(MODELS "/emoji-sd.safetensors", MODELS), b;

    (void)state;
    make_dir(NULL);
    put_gguf(in_dir("model"), MODELS "/emoji-sd.safetensors"); /* no ending: the bytes tell */
    put_gguf(in_dir("lokr-neon.gguf"), MODELS "/lokr-neon.safetensors");
    b = draw_with(in_dir("model"), dir);
    assert_true(same(&a, &b));
    kron_image_free(&a);
    kron_image_free(&b);
    remove_dir(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gguf_gives_the_same_bits)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
