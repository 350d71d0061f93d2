/* SPDX-License-Identifier: MIT
 * Modules whose rows lie in several layers, or in a part of one: each family's change, cut to the
 * layers' rows, is that of the whole by the family's definition. */
#include "adapter_fixture.h"

enum { MAX_LAYERS = 4, MAX_ALIASES = 8 };

/* Layers of one model part and what else their rows are called. */
struct parts {
    struct layer layers[MAX_LAYERS], *at[MAX_LAYERS];
    struct layer_alias aliases[MAX_ALIASES];
    struct layer_table table;
    struct adapter_names *names;
};

static void add_layer(struct parts *p, enum layer_part part, const char *name, const char *native,
                      int64_t out, int64_t in)
{
    struct layer *l = &p->layers[p->table.n];

    *l = (struct layer){.id = p->table.n, .part = part, .kind = LAYER_LINEAR, .name = name,
                        .native = native, .out = out, .in = in, .kh = 1, .kw = 1};
    p->at[p->table.n++] = l;
}

static void add_alias(struct parts *p, const char *name, int layer, int64_t at, int64_t rows,
                      int64_t from)
{
    p->aliases[p->table.n_aliases++] =
        (struct layer_alias){name, NULL, &p->layers[layer], at, rows, from};
}

static void finish(struct parts *p)
{
    p->table.at = p->at;
    p->table.aliases = p->aliases;
    assert_int_equal(adapter_names_create(&p->names, &p->table), KRON_OK);
}

/* q, k and v of unequal heights, so that a wrong border shows. */
static void split_create(struct parts *p, int64_t q, int64_t k, int64_t v, int64_t in)
{
    static const char fused[] = "encoder.layers.0.self_attn.in_proj";

    memset(p, 0, sizeof *p);
    add_layer(p, PART_TE0, "encoder.layers.0.self_attn.q_proj", "transformer.q", q, in);
    add_layer(p, PART_TE0, "encoder.layers.0.self_attn.k_proj", "transformer.k", k, in);
    add_layer(p, PART_TE0, "encoder.layers.0.self_attn.v_proj", "transformer.v", v, in);
    add_alias(p, fused, 0, 0, q, 0);
    add_alias(p, fused, 1, 0, k, q);
    add_alias(p, fused, 2, 0, v, q + k);
    finish(p);
}

/* --- modules of each family, out x in --- */

enum family { LOW, HADA, KRON_WHOLE, KRON_LOW, FULL, N_FAMILIES };

static void add_part(struct fx_file *f, const char *prefix, const char *part, uint64_t *seed,
                     int64_t rows, int64_t cols)
{
    char name[256];

    snprintf(name, sizeof name, "%s.%s", prefix, part);
    fx_add(f, name, DT_F16, seed, FX_DIMS(rows, cols));
}

static void add_module(struct fx_file *f, const char *prefix, enum family family, int64_t out,
                       int64_t in, int64_t up, int64_t uq)
{
    uint64_t seed = 11 + (uint64_t)family;

    switch (family) {
    case LOW:
        add_part(f, prefix, "lora_up.weight", &seed, out, 3);
        add_part(f, prefix, "lora_down.weight", &seed, 3, in);
        break;
    case HADA:
        add_part(f, prefix, "hada_w1_a", &seed, out, 2);
        add_part(f, prefix, "hada_w1_b", &seed, 2, in);
        add_part(f, prefix, "hada_w2_a", &seed, out, 2);
        add_part(f, prefix, "hada_w2_b", &seed, 2, in);
        break;
    case KRON_WHOLE:
        add_part(f, prefix, "lokr_w1", &seed, up, uq);
        add_part(f, prefix, "lokr_w2", &seed, out / up, in / uq);
        break;
    case KRON_LOW:
        add_part(f, prefix, "lokr_w1", &seed, up, uq);
        add_part(f, prefix, "lokr_w2_a", &seed, out / up, 2);
        add_part(f, prefix, "lokr_w2_b", &seed, 2, in / uq);
        break;
    case FULL:
    case N_FAMILIES:
        add_part(f, prefix, "diff", &seed, out, in);
        break;
    }
}

static struct adapter_set *bind_all(struct fx_file *file, struct adapter_file **f,
                                    const struct parts *p)
{
    struct adapter_set *set;

    if (fx_open(file, f, NULL) != KRON_OK ||
        adapter_bind(&set, &(struct adapter_use){*f, 1, 1}, 1, p->names, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(adapter_set_report(set, 0)->n_applied,
                     adapter_set_report(set, 0)->n_modules);
    return set;
}

/* Rows of `got`, from `at` on, against rows of `want` from `from` on. */
static void expect_rows(const double *got, int64_t at, const double *want, int64_t from,
                        int64_t rows, int64_t in, const char *what)
{
    double rel = fx_rel(got + at * in, want + from * in, rows * in);

    if (!(rel < 5e-7)) /* one rounding of the scale to f32 */
        fail_msg("%s: rows %d: %g from the definition", what, (int)from, rel);
}

/* What the definition makes of a module on a layer of out x in. */
static double *defined(const struct adapter_file *f, int module, int64_t out, int64_t in)
{
    struct layer whole = {.kind = LAYER_LINEAR, .name = "whole", .out = out, .in = in, .kh = 1,
                          .kw = 1};
    double *w = calloc((size_t)(out * in), sizeof *w);

    assert_non_null(w);
    if (adapter_reference(f, module, &whole, w) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    return w;
}

static void check_fused_file(enum family family, int64_t q, int64_t k, int64_t v, int64_t up)
{
    int64_t in = 6, from = 0;
    struct parts p;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    double *want;

    split_create(&p, q, k, v, in);
    add_module(&file, "lora_te_text_model_encoder_layers_0_self_attn_in_proj", family, q + k + v,
               in, up, 3);
    set = bind_all(&file, &f, &p);
    want = defined(f, 0, q + k + v, in);
    for (int i = 0; i < 3; i++) {
        double *got = fx_change(set, &p.layers[i], 1);
        assert_int_equal(delta_set_list(adapter_set_deltas(set), &p.layers[i]).n, 1);
        expect_rows(got, 0, want, from, p.layers[i].out, in, p.layers[i].name);
        from += p.layers[i].out;
        free(got);
    }
    free(want);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&p.names);
}

static void fused_files_fit_separate_layers(void **state)
{
    (void)state;
    for (enum family f = LOW; f < N_FAMILIES; f++) {
        check_fused_file(f, 8, 8, 8, 3);   /* a Kronecker row for each layer */
        check_fused_file(f, 8, 8, 8, 6);   /* two for each */
        check_fused_file(f, 8, 8, 8, 2);   /* the border of q falls within the first */
        check_fused_file(f, 5, 5, 5, 5);   /* both borders fall within rows */
        check_fused_file(f, 7, 4, 10, 3);  /* layers of unequal heights */
        check_fused_file(f, 1, 1, 1, 1);   /* one Kronecker row for all */
    }
}

/* --- layers that are fused: made up after FLUX and Z-Image --- */

static void fused_create(struct parts *p)
{
    memset(p, 0, sizeof *p);
    add_layer(p, PART_UNET, "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.qkv", 12, 4);
    add_layer(p, PART_UNET, "single_blocks.0.linear1", "single_blocks.0.linear1", 28, 4);
    add_layer(p, PART_UNET, "single_blocks.0.linear2", "single_blocks.0.linear2", 4, 20);
    add_layer(p, PART_UNET, "layers.0.attention.qkv", "layers.0.attention.qkv", 12, 4);
    add_alias(p, "transformer_blocks.0.attn.to_q", 0, 0, 4, 0);
    add_alias(p, "transformer_blocks.0.attn.to_k", 0, 4, 4, 0);
    add_alias(p, "single_transformer_blocks.0.attn.to_v", 1, 8, 4, 0);
    add_alias(p, "single_transformer_blocks.0.proj_mlp", 1, 12, 16, 0);
    /* Attention's output and the MLP's are columns of linear2 in every naming: one name more. */
    add_alias(p, "single_transformer_blocks.0.proj_out", 2, 0, 4, 0);
    add_alias(p, "layers.0.attention.to_q", 3, 0, 4, 0);
    add_alias(p, "layers.0.attention.to_k", 3, 4, 4, 0);
    add_alias(p, "layers.0.attention.to_v", 3, 8, 4, 0);
    finish(p);
}

static void check_split_file(enum family family, const char *prefix, int layer, int64_t at,
                             int64_t rows)
{
    struct parts p;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    double *want, *got;
    int64_t in;

    fused_create(&p);
    in = p.layers[layer].in;
    add_module(&file, prefix, family, rows, in, 2, 2);
    set = bind_all(&file, &f, &p);
    want = defined(f, 0, rows, in);
    got = fx_change(set, &p.layers[layer], 1);
    expect_rows(got, at, want, 0, rows, in, prefix);
    for (int64_t o = 0; o < p.layers[layer].out; o++)
        for (int64_t i = 0; i < in && (o < at || o >= at + rows); i++)
            assert_true(got[o * in + i] == 0);
    for (int i = 0; i < MAX_LAYERS; i++)
        assert_int_equal(delta_set_list(adapter_set_deltas(set), &p.layers[i]).n, i == layer);
    free(want);
    free(got);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&p.names);
}

static void split_files_fit_fused_layers(void **state)
{
    (void)state;
    for (enum family f = LOW; f < N_FAMILIES; f++) {
        check_split_file(f, "lycoris_transformer_blocks_0_attn_to_q", 0, 0, 4);
        check_split_file(f, "lycoris_transformer_blocks_0_attn_to_k", 0, 4, 4);
        check_split_file(f, "lora_unet_double_blocks_0_img_attn_qkv", 0, 0, 12);
        check_split_file(f, "single_transformer_blocks.0.attn.to_v", 1, 8, 4);
        check_split_file(f, "base_model.model.single_transformer_blocks.0.proj_mlp", 1, 12, 16);
        check_split_file(f, "single_transformer_blocks.0.proj_out", 2, 0, 4);
        check_split_file(f, "diffusion_model.single_blocks.0.linear2", 2, 0, 4);
        check_split_file(f, "diffusion_model.layers.0.attention.to_v", 3, 8, 4);
        check_split_file(f, "diffusion_model.layers.0.attention.qkv", 3, 0, 12);
    }
}

/* Z-Image files of ai-toolkit: three modules on one layer, each with its own sizes. */
static void three_files_rows_make_one_layer(void **state)
{
    struct parts p;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;
    double *got;

    (void)state;
    fused_create(&p);
    add_module(&file, "diffusion_model.layers.0.attention.to_q", KRON_WHOLE, 4, 4, 2, 2);
    add_module(&file, "diffusion_model.layers.0.attention.to_k", LOW, 4, 4, 0, 0);
    add_module(&file, "diffusion_model.layers.0.attention.to_v", KRON_LOW, 4, 4, 4, 1);
    set = bind_all(&file, &f, &p);
    assert_int_equal(delta_set_list(adapter_set_deltas(set), &p.layers[3]).n, 3);
    got = fx_change(set, &p.layers[3], 1);
    for (int i = 0; i < 3; i++) {
        double *want = defined(f, i, 4, 4);
        expect_rows(got, 4 * i, want, 0, 4, 4, adapter_prefix(f, i));
        free(want);
    }
    free(got);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&p.names);
}

/* A module for the whole is no module for a third of it. */
static void wrong_heights_are_told_by_the_alias_shape(void **state)
{
    struct parts p;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;

    (void)state;
    fused_create(&p);
    add_module(&file, "diffusion_model.layers.0.attention.to_q", LOW, 12, 4, 0, 0);
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, p.names, false),
                     KRON_ERR_SHAPE);
    assert_non_null(strstr(kron_error_detail(), "does not fit the layer's [4, 4]"));
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&p.names);
}

/* Weights that stand for an alias: views of the layers' own, where these lie together. */
static void an_alias_sees_the_weights_of_its_rows(void **state)
{
    static float numbers[24], apart[8];
    struct parts p;
    struct adapter_match m;

    (void)state;
    split_create(&p, 2, 3, 1, 4);
    for (int i = 0; i < 3; i++) {
        struct layer *l = &p.layers[i];
        int64_t first = i == 0 ? 0 : i == 1 ? 2 : 5;
        l->weight = (struct tensor){.data = numbers + 4 * first, .bytes = (size_t)l->out * 16,
                                    .n_dims = 2, .dim = {l->out, 4, 1, 1, 1, 1}, .name = l->name};
    }
    adapter_names_free(&p.names);
    finish(&p);
    m = adapter_names_find(p.names, "encoder.layers.0.self_attn.in_proj", 0);
    assert_int_equal(m.found, ADAPTER_FOUND);
    assert_int_equal(m.n_targets, 3);
    assert_ptr_equal(m.layer->weight.data, numbers);
    assert_int_equal(m.layer->weight.dim[0], 6);
    assert_int_equal(m.layer->weight.bytes, sizeof numbers);
    p.layers[1].weight.data = apart;
    adapter_names_free(&p.names);
    finish(&p);
    m = adapter_names_find(p.names, "encoder.layers.0.self_attn.in_proj", 0);
    assert_null(m.layer->weight.data);
    assert_int_equal(m.layer->out, 6);
    adapter_names_free(&p.names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fused_files_fit_separate_layers),
        cmocka_unit_test(split_files_fit_fused_layers),
        cmocka_unit_test(three_files_rows_make_one_layer),
        cmocka_unit_test(wrong_heights_are_told_by_the_alias_shape),
        cmocka_unit_test(an_alias_sees_the_weights_of_its_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
