/* SPDX-License-Identifier: MIT
 * Adapters baked into a checkpoint of a few tensors: each number of what is written against the
 * definition, rounded once. */
#include "adapter_fixture.h"
#include "convert/convert.h"
#include "temp_dir.h"

/* conv_in is a convolution in f16; q and v are rows of one fused tensor; conv_out has no adapter;
 * the rest are no layers. */
struct checkpoint {
    struct fx_file bytes;
    struct st_file *st;
    struct layer layers[4], *at[4];
    struct layer_table table;
    struct adapter_names *names;
};

static struct layer layer_at(const struct st_file *st, int id, const char *name,
                             const char *native, const char *tensor, int64_t row, int64_t rows)
{
    const struct tensor *t = st_find(st, tensor);

    assert_non_null(t);
    return (struct layer){.id = id, .part = id == 3 ? PART_TE0 : PART_UNET,
                          .kind = t->n_dims == 4 ? LAYER_CONV : LAYER_LINEAR, .name = name,
                          .native = native, .out = rows, .in = t->dim[1], .kh = (int)t->dim[2],
                          .kw = (int)t->dim[3], .is_conv = t->n_dims == 4,
                          .weight = tensor_rows(t, row, rows)};
}

static void checkpoint_write(struct fx_file *f)
{
    uint64_t seed = 21, n;

    fx_add_meta(f, "{\"modelspec.title\":\"tiny\",\"modelspec.hash_sha256\":\"0xab\"}");
    fx_add(f, "in.weight", DT_F16, &seed, FX_DIMS(8, 4, 3, 3));
    fx_add(f, "in.bias", DT_F16, &seed, FX_DIMS(8));
    fx_add(f, "qkv", DT_BF16, &seed, FX_DIMS(18, 10));
    fx_add(f, "out.weight", DT_F32, &seed, FX_DIMS(4, 8));
    fx_add(f, "fc.weight", DT_F8_E4M3, &seed, FX_DIMS(6, 8));
    fx_add_raw(f, "ids", "I64", 1, (int64_t[]){1}, "\1\2\3\4\5\6\7\10", 8);
    str_add(&f->header, "}");
    n = f->header.len;
    f->bytes = malloc(8 + n + f->data.len);
    assert_non_null(f->bytes);
    for (int i = 0; i < 8; i++)
        f->bytes[i] = (uint8_t)(n >> (8 * i));
    memcpy(f->bytes + 8, f->header.s, n);
    memcpy(f->bytes + 8 + n, f->data.s, f->data.len);
}

static void checkpoint_open(struct checkpoint *c)
{
    *c = (struct checkpoint){.st = NULL};
    checkpoint_write(&c->bytes);
    assert_int_equal(st_open_memory(&c->st, c->bytes.bytes,
                                    8 + c->bytes.header.len + c->bytes.data.len, "model"),
                     KRON_OK);
    c->layers[0] = layer_at(c->st, 0, "conv_in", "input_blocks.0.0", "in.weight", 0, 8);
    c->layers[0].bias = *st_find(c->st, "in.bias");
    c->layers[1] = layer_at(c->st, 1, "to_q", "q", "qkv", 0, 6);
    c->layers[2] = layer_at(c->st, 2, "to_v", "v", "qkv", 12, 6);
    c->layers[3] = layer_at(c->st, 3, "fc1", "fc1", "fc.weight", 0, 6);
    for (int i = 0; i < 4; i++)
        c->at[i] = &c->layers[i];
    c->table = (struct layer_table){.at = c->at, .n = 4};
    assert_int_equal(adapter_names_create(&c->names, &c->table), KRON_OK);
}

static void checkpoint_close(struct checkpoint *c)
{
    adapter_names_free(&c->names);
    st_close(&c->st);
    fx_free(&c->bytes);
}

static void add_lora(struct fx_file *f, const char *prefix, const struct layer *l, uint64_t *seed)
{
    char name[100];
    int n = l->is_conv ? 4 : 2;

    snprintf(name, sizeof name, "%s.lora_down.weight", prefix);
    fx_add(f, name, DT_F16, seed, n, (int64_t[]){2, l->in, l->kh, l->kw});
    snprintf(name, sizeof name, "%s.lora_up.weight", prefix);
    fx_add(f, name, DT_F16, seed, n, (int64_t[]){l->out, 2, 1, 1});
}

struct baked {
    struct fx_file bytes;
    struct adapter_file *f;
    struct adapter_set *set;
    struct adapter_use use;
};

/* LoRAs on three layers, a LoKr on q. */
static void bind(struct baked *b, const struct checkpoint *c, float strength)
{
    uint64_t seed = 33;

    *b = (struct baked){.f = NULL};
    add_lora(&b->bytes, "lora_unet_conv_in", &c->layers[0], &seed);
    fx_add(&b->bytes, "lora_unet_to_q.lokr_w1", DT_F16, &seed, FX_DIMS(2, 5));
    fx_add(&b->bytes, "lora_unet_to_q.lokr_w2", DT_F16, &seed, FX_DIMS(3, 2));
    add_lora(&b->bytes, "lora_unet_to_v", &c->layers[2], &seed);
    add_lora(&b->bytes, "lora_te_text_model_fc1", &c->layers[3], &seed);
    assert_int_equal(fx_open(&b->bytes, &b->f, NULL), KRON_OK);
    b->use = (struct adapter_use){b->f, 0, strength};
    b->use.te_strength = strength / 2;
    assert_int_equal(adapter_bind(&b->set, &b->use, 1, c->names, true), KRON_OK);
}

static void release(struct baked *b)
{
    adapter_set_free(&b->set);
    adapter_close(&b->f);
    fx_free(&b->bytes);
}

static kron_status run(const struct checkpoint *c, const struct baked *b, kron_type type,
                       struct str *report)
{
    kron_convert_params p = {.output = in_dir("out.safetensors"), .n_adapters = 1, .type = type};
    struct bake_job job = {&p, c->st, &c->table, b->set, &b->use};
    struct str own = {0};
    kron_status status = bake(&job, report != NULL ? report : &own);

    str_free(&own);
    return status;
}

/* Numbers of `t` are what the layer's weight and its deltas give at strength s, rounded to the
 * type once: half a unit in the last place, and before it f32's roundings of a sum of at most two
 * products of factors below 1 with the weight. */
static void expect_layer(const struct tensor *t, int64_t row, const struct layer *l,
                         const struct adapter_set *set, float s)
{
    double *change = fx_change(set, l, s), unit = t->type == DT_F16    ? 0x1p-11
                                                  : t->type == DT_BF16 ? 0x1p-8
                                                  : t->type == DT_F32  ? 0x1p-24
                                                                       : 0x1p-4;
    int64_t n = l->out * layer_k(l);
    float got, base;

    for (int64_t i = 0; i < n; i++) {
        tensor_decode(&l->weight, i, 1, &base);
        tensor_decode(t, row * layer_k(l) + i, 1, &got);
        double want = base + change[i];
        if (!(fabs(got - want) <= unit * fabs(want) + 0x1p-22 * (2 + fabs((double)base))))
            fail_msg("%s[%lld] is %g, expected %g", t->name, (long long)i, (double)got, want);
    }
    free(change);
}

static void changed_tensors_are_right_and_others_the_same(void **state)
{
    struct checkpoint c;
    struct baked b;
    struct st_file *out;
    struct str report = {0};

    (void)state;
    checkpoint_open(&c);
    bind(&b, &c, 0.75f);
    assert_int_equal(run(&c, &b, KRON_TYPE_KEEP, &report), KRON_OK);
    assert_non_null(strstr(str_get(&report), "changed 3 of 6 tensors"));
    assert_non_null(strstr(str_get(&report), "applied 4 of 4 modules"));
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    assert_int_equal(st_count(out), st_count(c.st));
    for (int64_t i = 0; i < st_count(out); i++) {
        const struct tensor *t = st_at(out, i), *u = st_find(c.st, t->name);
        assert_non_null(u);
        assert_true(t->type == u->type && t->bytes == u->bytes && t->n_dims == u->n_dims);
        if (strcmp(t->name, "in.bias") == 0 || strcmp(t->name, "out.weight") == 0 ||
            strcmp(t->name, "ids") == 0)
            assert_memory_equal(t->data, u->data, t->bytes);
    }
    const struct tensor *qkv = st_find(out, "qkv"), *was = st_find(c.st, "qkv");
    assert_memory_equal((const char *)qkv->data + 6 * 20, (const char *)was->data + 6 * 20,
                        6 * 20); /* k's rows */
    expect_layer(st_find(out, "in.weight"), 0, &c.layers[0], b.set, 0.75f);
    expect_layer(qkv, 0, &c.layers[1], b.set, 0.75f);
    expect_layer(qkv, 12, &c.layers[2], b.set, 0.75f);
    expect_layer(st_find(out, "fc.weight"), 0, &c.layers[3], b.set, 0.375f);
    assert_string_equal(st_meta(out, "modelspec.title"), "tiny");
    assert_null(st_meta(out, "modelspec.hash_sha256"));
    assert_string_equal(st_meta(out, "kron.baked"),
                        "test.safetensors:0.75 (text encoders 0.375)");
    st_close(&out);
    str_free(&report);
    release(&b);
    checkpoint_close(&c);
}

static void a_type_is_of_all_weights(void **state)
{
    struct checkpoint c;
    struct baked b;
    struct st_file *out;

    (void)state;
    checkpoint_open(&c);
    bind(&b, &c, 0.5f);
    assert_int_equal(run(&c, &b, KRON_TYPE_F32, NULL), KRON_OK);
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    for (int64_t i = 0; i < st_count(out); i++)
        assert_int_equal(st_at(out, i)->type,
                         strcmp(st_at(out, i)->name, "ids") == 0 ? DT_I64 : DT_F32);
    expect_layer(st_find(out, "in.weight"), 0, &c.layers[0], b.set, 0.5f);
    expect_layer(st_find(out, "qkv"), 0, &c.layers[1], b.set, 0.5f);
    st_close(&out);
    assert_int_equal(run(&c, &b, KRON_TYPE_F8_E4M3, NULL), KRON_OK);
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    assert_int_equal(st_find(out, "in.weight")->type, DT_F8_E4M3);
    assert_int_equal(st_find(out, "in.bias")->type, DT_F16); /* one axis */
    st_close(&out);
    release(&b);
    checkpoint_close(&c);
}

/* DoRA on a layer with a bias, which changes too; a bias where the checkpoint has none. */
static void gains_and_biases_are_baked(void **state)
{
    struct checkpoint c;
    struct baked b = {.f = NULL};
    struct st_file *out;
    struct str report = {0};
    uint64_t seed = 44;

    (void)state;
    checkpoint_open(&c);
    add_lora(&b.bytes, "lora_unet_conv_in", &c.layers[0], &seed);
    fx_add(&b.bytes, "lora_unet_conv_in.dora_scale", DT_F16, &seed, FX_DIMS(8, 1, 1, 1));
    fx_add(&b.bytes, "lora_unet_conv_in.diff_b", DT_F16, &seed, FX_DIMS(8));
    fx_add(&b.bytes, "lora_unet_to_v.diff_b", DT_F16, &seed, FX_DIMS(6));
    assert_int_equal(fx_open(&b.bytes, &b.f, NULL), KRON_OK);
    b.use = (struct adapter_use){b.f, 0.5f, 0.5f};
    assert_int_equal(adapter_bind(&b.set, &b.use, 1, c.names, true), KRON_OK);
    assert_int_equal(run(&c, &b, KRON_TYPE_F32, &report), KRON_OK);
    assert_non_null(strstr(str_get(&report), "left out the bias of 1 layers"));
    assert_non_null(strstr(str_get(&report), "changed 2 of 6 tensors"));
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    expect_layer(st_find(out, "in.weight"), 0, &c.layers[0], b.set, 0.5f);
    struct delta_list list = delta_set_list(adapter_set_deltas(b.set), &c.layers[0]);
    float *strengths = calloc((size_t)adapter_set_deltas(b.set)->n_strengths, sizeof *strengths);
    double want[8];
    adapter_set_get_strengths(b.set, strengths);
    layer_bias_ref(&c.layers[0], list, strengths, want);
    for (int i = 0; i < 8; i++) {
        float got, was;
        tensor_decode(st_find(out, "in.bias"), i, 1, &got);
        tensor_decode(&c.layers[0].bias, i, 1, &was);
        assert_true(fabs(got - want[i]) < 1e-6 && got != was);
    }
    free(strengths);
    st_close(&out);
    str_free(&report);
    release(&b);
    checkpoint_close(&c);
}

static void what_does_not_fit_the_type_is_an_error(void **state)
{
    struct checkpoint c;
    struct baked b;

    (void)state;
    checkpoint_open(&c);
    bind(&b, &c, 1e6f);
    assert_int_equal(file_write(in_dir("out.safetensors"), "old", 3), KRON_OK);
    int before = temp_dir_count(dir);
    assert_int_equal(run(&c, &b, KRON_TYPE_F16, NULL), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "too large for F16"));
    assert_int_equal(temp_dir_count(dir), before);
    release(&b);
    checkpoint_close(&c);
}

static void a_layer_of_another_file_is_an_error(void **state)
{
    struct checkpoint c, other;
    struct baked b;

    (void)state;
    checkpoint_open(&c);
    checkpoint_open(&other);
    bind(&b, &c, 1);
    kron_convert_params p = {.output = in_dir("other.safetensors"), .n_adapters = 1};
    struct bake_job job = {&p, other.st, &c.table, b.set, &b.use};
    struct str report = {0};
    assert_int_equal(bake(&job, &report), KRON_ERR_UNSUPPORTED);
    assert_false(path_is_file(in_dir("other.safetensors")));
    str_free(&report);
    release(&b);
    checkpoint_close(&c);
    checkpoint_close(&other);
}

static void no_memory_is_an_error(void **state)
{
    struct checkpoint c;
    struct baked b;
    int failures = 0;

    (void)state;
    checkpoint_open(&c);
    bind(&b, &c, 1);
    for (long n = 1;; n++) {
        mem_fail_after(n);
        kron_status status = run(&c, &b, KRON_TYPE_F32, NULL);
        mem_fail_after(0);
        assert_true(status == KRON_OK || status == KRON_ERR_MEMORY);
        failures += status != KRON_OK;
        if (status == KRON_OK)
            break;
    }
    assert_true(failures > 20);
    release(&b);
    checkpoint_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changed_tensors_are_right_and_others_the_same),
        cmocka_unit_test(a_type_is_of_all_weights),
        cmocka_unit_test(gains_and_biases_are_baked),
        cmocka_unit_test(what_does_not_fit_the_type_is_an_error),
        cmocka_unit_test(a_layer_of_another_file_is_an_error),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
