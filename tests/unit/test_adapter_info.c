/* SPDX-License-Identifier: MIT
 * What is said of a file: sizes of changes against their definition, warnings, training. */
#include "adapter/family.h"
#include "adapter/product.h"
#include "adapter_fixture.h"
#include <jansson.h>

/* --- sizes --- */

struct weighted { /* a layer with a weight of random numbers */
    struct fx_one o;
    float *w;
};

static void weighted_create(struct weighted *x, int64_t out, int64_t in, int k, uint64_t seed)
{
    fx_one_create(&x->o, out, in, k, k, k > 1);
    int64_t n = out * layer_k(&x->o.layer);
    x->w = malloc((size_t)n * sizeof *x->w);
    assert_non_null(x->w);
    for (int64_t i = 0; i < n; i++)
        x->w[i] = fx_unit(&seed);
    x->o.layer.weight = (struct tensor){.data = x->w, .bytes = (size_t)n * 4, .type = DT_F32,
                                        .n_dims = 4, .dim = {out, in, k, k, 1, 1}, .name = "w"};
}

static void weighted_free(struct weighted *x)
{
    adapter_names_free(&x->o.names);
    free(x->w);
}

static void add_family(struct fx_file *f, int family, const struct layer *l, uint64_t *seed)
{
    const int64_t right[] = {3, l->in, l->kh, l->kw}, left[] = {l->out, 3, 1, 1};
    const int64_t flat[] = {3, layer_k(l)};
    int n = l->is_conv ? 4 : 2;

    if (family == 0) {
        fx_add(f, "lora_unet_conv_in.lora_down.weight", DT_F16, seed, n, right);
        fx_add(f, "lora_unet_conv_in.lora_up.weight", DT_F16, seed, n, left);
        fx_add_scalar(f, "lora_unet_conv_in.alpha", DT_F32, 2);
    } else if (family == 1) {
        fx_add(f, "lora_unet_conv_in.hada_w1_a", DT_F16, seed, 2, left);
        fx_add(f, "lora_unet_conv_in.hada_w1_b", DT_F16, seed, 2, flat);
        fx_add(f, "lora_unet_conv_in.hada_w2_a", DT_F16, seed, 2, left);
        fx_add(f, "lora_unet_conv_in.hada_w2_b", DT_F16, seed, 2, flat);
    } else if (family == 2) {
        fx_add(f, "lora_unet_conv_in.lokr_w1", DT_F16, seed, FX_DIMS(2, 3));
        fx_add(f, "lora_unet_conv_in.lokr_w2_a", DT_F16, seed, FX_DIMS(l->out / 2, 2));
        fx_add(f, "lora_unet_conv_in.lokr_w2_b", DT_F16, seed, FX_DIMS(2, layer_k(l) / 3));
    } else {
        fx_add(f, "lora_unet_conv_in.diff", DT_F16, seed, n,
               (int64_t[]){l->out, l->in, l->kh, l->kw});
    }
}

static double norm(const double *x, int64_t n)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

/* Rows, norm and ratio of each form, on a linear layer and a convolution. */
static void sizes_are_those_of_the_definition(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct weighted x;
        struct fx_file file = {0};
        struct adapter_file *f;
        struct adapter_set *set;
        uint64_t seed = 50 + (uint64_t)i;

        weighted_create(&x, 14, 12, i % 2 ? 3 : 1, seed);
        const struct layer *l = &x.o.layer;
        int64_t n = l->out * layer_k(l);
        add_family(&file, i / 2, l, &seed);
        assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
        struct adapter_use use = {f, 1, 1};
        assert_int_equal(adapter_bind(&set, &use, 1, x.o.names, true), KRON_OK);
        double *want = fx_change(set, l, 1), *got = calloc((size_t)n, sizeof *got), size;
        struct delta_list list = delta_set_list(adapter_set_deltas(set), l);
        struct product p;
        float *rows = calloc((size_t)n, sizeof *rows);
        assert_int_equal(product_open(&p, &list.at[0], l), KRON_OK);
        for (int64_t row = 0; row < l->out; row += 4)
            assert_int_equal(product_rows(&p, row, l->out - row < 4 ? l->out - row : 4,
                                          rows + row * layer_k(l)), KRON_OK);
        for (int64_t k = 0; k < n; k++)
            got[k] = (double)rows[k] * list.at[0].scale;
        assert_true(fx_rel(got, want, n) < 1e-6);
        assert_int_equal(product_norm(&p, 0, &size), KRON_OK);
        assert_true(fabs(size * list.at[0].scale / norm(want, n) - 1) < 1e-5);
        double w2 = 0;
        for (int64_t k = 0; k < n; k++)
            w2 += (double)x.w[k] * x.w[k];
        const struct adapter_change *c = &adapter_set_report(set, 0)->change;
        assert_int_equal(c->n, 1);
        assert_true(c->largest == l);
        assert_true(fabs(c->median / (norm(want, n) / sqrt(w2)) - 1) < 1e-5);
        product_close(&p);
        free(rows);
        free(got);
        free(want);
        adapter_set_free(&set);
        adapter_close(&f);
        fx_free(&file);
        weighted_free(&x);
    }
}

/* Of a large weight a part is looked at: near the whole, and never more numbers than said. */
static void a_part_of_a_weight_tells_its_size(void **state)
{
    struct weighted x;
    double whole, part;

    (void)state;
    weighted_create(&x, 700, 300, 1, 3);
    assert_int_equal(layer_norm(&x.o.layer, 0, &whole), KRON_OK);
    assert_int_equal(layer_norm(&x.o.layer, 40000, &part), KRON_OK);
    assert_true(part != whole && fabs(part / whole - 1) < 0.02);
    weighted_free(&x);
}

/* --- warnings --- */

static const char *warnings_of(const char *meta, float alpha, float large, struct str *text)
{
    struct weighted x;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    uint64_t seed = 8;

    weighted_create(&x, 12, 12, 1, 9);
    for (int i = 0; i < 144; i++)
        x.w[i] /= large;
    fx_add_meta(&file, meta);
    fx_add(&file, "lora_unet_conv_in.lokr_w1", DT_F16, &seed, FX_DIMS(4, 4));
    fx_add(&file, "lora_unet_conv_in.lokr_w2", DT_F16, &seed, FX_DIMS(3, 3));
    fx_add_scalar(&file, "lora_unet_conv_in.alpha", DT_F32, alpha);
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
    struct adapter_use use = {f, 1, 1};
    assert_int_equal(adapter_bind(&set, &use, 1, x.o.names, true), KRON_OK);
    adapter_report_text(adapter_set_report(set, 0), 9, text);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    weighted_free(&x);
    return str_get(text);
}

static void likely_mistakes_are_warned_of(void **state)
{
    static const struct {
        const char *meta, *warning; /* NULL: none */
        float alpha, large;
    } cases[] = {
        {"{\"ss_network_dim\":\"32\"}", "alpha / dim = 0.03125", 1, 0.2f},
        {"{\"ss_network_dim\":\"32\"}", NULL, 32, 0.2f},
        {"{\"ss_network_dim\":\"100000\"}", NULL, 1, 0.2f}, /* asks for whole pairs */
        {"{\"ss_network_dim\":\"x\"}", NULL, 1, 0.2f},
        {"{}", NULL, 1, 0.2f},
        {"{}", "more than their own size", 1, 50},
        {"{}", "next to nothing", 1, 1e-6f},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct str text = {0};
        const char *got = warnings_of(cases[i].meta, cases[i].alpha, cases[i].large, &text);
        const char *warning = strstr(got, "  warning: ");
        if ((warning != NULL) != (cases[i].warning != NULL) ||
            (warning != NULL && strstr(warning, cases[i].warning) == NULL))
            fail_msg("case %zu: %s", i, got);
        str_free(&text);
    }
}

/* --- blocks --- */

static void blocks_are_counted(void **state)
{
    struct fx_table t;
    struct adapter_names *n;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    uint64_t seed = 1;

    (void)state;
    fx_table_read(&t, "sd15");
    assert_int_equal(adapter_names_create(&n, &t.table), KRON_OK);
    fx_add(&file, "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight", DT_F16, &seed,
           FX_DIMS(1, 32, 3, 3));
    fx_add(&file, "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight", DT_F16, &seed,
           FX_DIMS(32, 1, 1, 1));
    fx_add(&file, "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight", DT_F16, &seed,
           FX_DIMS(1, 16));
    fx_add(&file, "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight", DT_F16, &seed,
           FX_DIMS(64, 1));
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
    struct adapter_use use = {f, 1, 1};
    if (adapter_bind(&set, &use, 1, n, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    const struct adapter_report *r = adapter_set_report(set, 0);
    int changed = 0, layers = 0, matrices = 0;
    for (int i = 0; i < r->n_cover; i++) {
        const struct adapter_cover *c = &r->cover[i];
        bool mine = (c->part == PART_UNET && strcmp(c->block, "input_blocks.1") == 0) ||
                    (c->part == PART_TE0 && strcmp(c->block, "layers.1") == 0);
        assert_int_equal(c->n_changed, mine);
        changed += c->n_changed;
        layers += c->n_layers;
    }
    for (int i = 0; i < t.table.n; i++)
        matrices += t.table.at[i]->kind == LAYER_LINEAR || t.table.at[i]->kind == LAYER_CONV;
    assert_int_equal(changed, 2);
    assert_int_equal(layers, matrices);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&n);
    fx_table_free(&t);
}

/* --- training --- */

static json_t *info_of(const char *meta, struct str *text)
{
    struct fx_file file = {0};
    struct adapter_file *f;
    struct str json = {0};
    uint64_t seed = 1;

    fx_add_meta(&file, meta);
    fx_add(&file, "lora_unet_conv_in.lora_down.weight", DT_F16, &seed, FX_DIMS(4, 12));
    fx_add(&file, "lora_unet_conv_in.lora_up.weight", DT_F16, &seed, FX_DIMS(8, 4));
    if (fx_open(&file, &f, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(adapter_info(f, NULL, "", true, &json), KRON_OK);
    if (text != NULL)
        assert_int_equal(adapter_info(f, NULL, "", false, text), KRON_OK);
    json_t *doc = json_loads(str_get(&json), 0, NULL);
    assert_non_null(doc);
    str_free(&json);
    adapter_close(&f);
    fx_free(&file);
    return doc;
}

static void training_is_told(void **state)
{
    struct str text = {0};
    json_t *doc = info_of(
        "{\"ss_tag_frequency\":\"{\\\"a\\\":{\\\"cat\\\":5,\\\"hat\\\":7},"
        "\\\"b\\\":{\\\"cat\\\":4}}\","
        "\"ss_dataset_dirs\":\"{\\\"10_cat\\\":{\\\"n_repeats\\\":10,\\\"img_count\\\":20}}\","
        "\"modelspec.trigger_phrase\":\"neoncat\","
        "\"trainedWords\":\"[\\\"neoncat\\\",\\\"glow\\\"]\","
        "\"ss_base_model_version\":\"sd_v1\",\"ss_steps\":\"1200\",\"ss_epoch\":\"None\"}",
        &text);
    json_t *tags = json_object_get(doc, "tags"), *first = json_array_get(tags, 0);

    (void)state;
    assert_int_equal(json_array_size(tags), 2);
    assert_string_equal(json_string_value(json_object_get(first, "tag")), "cat");
    assert_int_equal(json_integer_value(json_object_get(first, "count")), 9);
    assert_int_equal(json_array_size(json_object_get(doc, "trigger_words")), 2);
    assert_int_equal(json_object_size(json_object_get(doc, "training")), 1); /* "None" is none */
    static const char *const lines[] = {
        "  trigger words  neoncat, glow\n", "  tags           cat (9), hat (7)\n",
        "  dataset        10_cat: 20 pictures, 10 times\n", "  training       steps: 1200\n",
        "  made for       SD 1.x, version sd_v1\n", "  rank           4\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (strstr(str_get(&text), lines[i]) == NULL)
            fail_msg("no line '%s' in %s", lines[i], str_get(&text));
    json_decref(doc);
    str_free(&text);
}

/* The newer datasets, and values of the wrong kind everywhere. */
static void odd_metadata_are_left_out(void **state)
{
    json_t *doc = info_of("{\"ss_datasets\":\"[{\\\"tag_frequency\\\":{\\\"x\\\":{\\\"dog\\\":2}},"
                          "\\\"subsets\\\":[{\\\"img_count\\\":3,\\\"num_repeats\\\":2,"
                          "\\\"image_dir\\\":\\\"dogs\\\"}]}]\"}", NULL);

    (void)state;
    assert_int_equal(json_integer_value(json_object_get(doc, "n_tags")), 1);
    assert_string_equal(json_string_value(json_object_get(
                            json_array_get(json_object_get(doc, "datasets"), 0), "name")), "dogs");
    json_decref(doc);
    doc = info_of("{\"ss_tag_frequency\":\"[1,{\\\"a\\\":2}]\",\"ss_dataset_dirs\":\"7\","
                  "\"ss_datasets\":\"{\\\"subsets\\\":3}\",\"trigger_words\":\"[1,[2]]\"}", NULL);
    assert_int_equal(json_integer_value(json_object_get(doc, "n_tags")), 0);
    assert_int_equal(json_array_size(json_object_get(doc, "trigger_words")), 0);
    json_decref(doc);
    doc = info_of("{\"ss_tag_frequency\":\"{\\\"a\\\":{\\\"b\\\":-3,\\\"c\\\":\\\"x\\\","
                  "\\\"d\\\":9223372036854775807},\\\"e\\\":{\\\"d\\\":9223372036854775807},"
                  "\\\"f\\\":4}\"}", NULL);
    assert_int_equal(json_array_size(json_object_get(doc, "tags")), 1);
    json_decref(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_those_of_the_definition),
        cmocka_unit_test(a_part_of_a_weight_tells_its_size),
        cmocka_unit_test(likely_mistakes_are_warned_of),
        cmocka_unit_test(blocks_are_counted),
        cmocka_unit_test(training_is_told),
        cmocka_unit_test(odd_metadata_are_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
