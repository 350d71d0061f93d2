/* SPDX-License-Identifier: MIT
 * Pictures do not depend on the format of the files: the shipped model and an adapter as GGUF, and
 * the model in blocks. */
#include "file/file.h"

#include "session_fixture.h"
#include "temp_dir.h"

/* Matrices and convolutions of whole blocks, as programs that quantise take them; a convolution
 * whose last axis is no whole block gets its shape as metadata. `as_f32`: the numbers of the blocks
 * as f32. */
static void encode(struct tensor *t, enum dtype type, bool as_f32)
{
    int64_t n = tensor_elements(t), block = dtype_info(type)->block;
    float *numbers;
    void *own;

    if (t->n_dims < 2 || n / t->dim[0] % block != 0)
        return;
    assert_int_equal(mem_floats(&numbers, n, "numbers"), KRON_OK);
    assert_int_equal(mem_alloc(&own, dtype_bytes(type, n), "blocks"), KRON_OK);
    tensor_decode(t, 0, n, numbers);
    tensor_encode(type, numbers, n, own);
    t->data = own;
    t->type = type;
    t->bytes = dtype_bytes(type, n);
    if (as_f32)
        tensor_decode(t, 0, n, numbers);
    mem_free(as_f32 ? own : numbers);
    if (!as_f32)
        return;
    t->data = numbers;
    t->type = DT_F32;
    t->bytes = dtype_bytes(DT_F32, n);
}

/* `type`: of what can be in blocks; DT_COUNT: all as it is. */
static void put_gguf(const char *to, const char *from, enum dtype type, bool as_f32)
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
    for (int64_t i = 0; i < n; i++) {
        t[i] = *st_at(f, i);
        if (type != DT_COUNT)
            encode(&t[i], type, as_f32);
    }
    assert_true(st_meta_count(f) <= 64);
    for (n_meta = 0; n_meta < st_meta_count(f); n_meta++)
        st_meta_at(f, n_meta, &meta[2 * n_meta], &meta[2 * n_meta + 1]);
    if (gguf_write(to, t, n, meta, n_meta) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    for (int64_t i = 0; i < n; i++)
        if (t[i].data != st_at(f, i)->data)
            mem_free((void *)(uintptr_t)t[i].data);
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
    put_gguf(in_dir("model"), MODELS "/emoji-sd.safetensors", DT_COUNT, false); /* no ending: the bytes tell */
    put_gguf(in_dir("lokr-neon.gguf"), MODELS "/lokr-neon.safetensors", DT_COUNT, false);
    b = draw_with(in_dir("model"), dir);
    assert_true(same(&a, &b));
    kron_image_free(&a);
    kron_image_free(&b);
    remove_dir(NULL);
}

/* Blocks, and their numbers as f32, differ by the rounding of sums alone. */
static void blocks_are_their_numbers(void **state)
{
    static const enum dtype types[] = {DT_Q8_0, DT_Q4_1};

    (void)state;
    make_dir(NULL);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        kron_image blocks, plain_numbers;
        put_gguf(in_dir("a.gguf"), MODELS "/emoji-sd.safetensors", types[i], false);
        put_gguf(in_dir("b.gguf"), MODELS "/emoji-sd.safetensors", types[i], true);
        blocks = draw_with(in_dir("a.gguf"), MODELS);
        plain_numbers = draw_with(in_dir("b.gguf"), MODELS);
        expect_close(&blocks, &plain_numbers, 45, dtype_info(types[i])->name);
        kron_image_free(&blocks);
        kron_image_free(&plain_numbers);
    }
    remove_dir(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_gives_the_same_bits),
        cmocka_unit_test(blocks_are_their_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
