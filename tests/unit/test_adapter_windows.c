/* SPDX-License-Identifier: MIT
 * Modules whose rows lie in several layers, or in a part of one: each family's change, cut to the
 * layers' rows, is that of the whole by the family's definition. */
#include "adapter_fixture.h"
#include "adapter/family.h"

enum { MAX_LAYERS = 4, MAX_ALIASES = 8, MAX_ROWS = 64, MAX_IN = 20 };

/* Layers of one model part and what else their rows are called. */
struct parts {
    struct layer layers[MAX_LAYERS], *at[MAX_LAYERS];
    struct layer_alias aliases[MAX_ALIASES];
    struct layer_table table;
    struct adapter_names *names;
    float weights[MAX_ROWS * MAX_IN], biases[MAX_ROWS]; /* of all layers, one behind the other */
    int64_t n_weights, n_biases;
};

static void add_layer(struct parts *p, enum layer_part part, const char *name, const char *native,
                      int64_t out, int64_t in)
{
    struct layer *l = &p->layers[p->table.n];

    *l = (struct layer){.id = p->table.n, .part = part, .kind = LAYER_LINEAR, .name = name,
                        .native = native, .out = out, .in = in, .kh = 1, .kw = 1};
    l->weight = (struct tensor){.data = p->weights + p->n_weights, .type = DT_F32, .n_dims = 2,
                                .bytes = (size_t)(out * in) * 4, .dim = {out, in, 1, 1, 1, 1},
                                .name = name};
    l->bias = (struct tensor){.data = p->biases + p->n_biases, .type = DT_F32, .n_dims = 1,
                              .bytes = (size_t)out * 4, .dim = {out, 1, 1, 1, 1, 1},
                              .name = name};
    p->n_weights += out * in;
    p->n_biases += out;
    assert_true(p->n_weights <= MAX_ROWS * MAX_IN && p->n_biases <= MAX_ROWS);
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
    uint64_t seed = 3;

    for (int64_t i = 0; i < p->n_weights; i++)
        p->weights[i] = fx_unit(&seed);
    for (int64_t i = 0; i < p->n_biases; i++)
        p->biases[i] = fx_unit(&seed);
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

enum family {
    LOW, HADA, KRON_WHOLE, KRON_LOW, FULL, DORA_LOW, DORA_HADA, DORA_KRON, SET, GLORA, IA3_OUT,
    IA3_IN, PEFT_IA3, PEFT_OFT, N_ANYWHERE,
    /* rows of different targets depend on each other */
    OFT = N_ANYWHERE, DORA_IN, N_FAMILIES
};

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
    char name[256];

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
        add_part(f, prefix, "diff", &seed, out, in);
        break;
    case DORA_LOW:
    case DORA_HADA:
    case DORA_KRON:
        add_module(f, prefix, family == DORA_LOW ? LOW : family == DORA_HADA ? HADA : KRON_LOW, out,
                   in, up, uq);
        add_part(f, prefix, "dora_scale", &seed, out, 1);
        break;
    case SET:
        add_part(f, prefix, "set_weight", &seed, out, in);
        break;
    case GLORA:
        add_part(f, prefix, "a1.weight", &seed, in, 2);
        add_part(f, prefix, "a2.weight", &seed, 2, in);
        add_part(f, prefix, "b1.weight", &seed, out, 2);
        add_part(f, prefix, "b2.weight", &seed, 2, in);
        break;
    case IA3_OUT:
    case IA3_IN:
        add_part(f, prefix, "weight", &seed, family == IA3_OUT ? out : in, 1);
        snprintf(name, sizeof name, "%s.on_input", prefix);
        fx_add_scalar(f, name, DT_F16, family == IA3_IN);
        break;
    case PEFT_IA3:
        add_part(f, prefix, "ia3_l", &seed, out, 1);
        break;
    case PEFT_OFT:
        add_part(f, prefix, "oft_R.weight", &seed, in / 2, 1);
        break;
    case OFT:
        snprintf(name, sizeof name, "%s.oft_blocks", prefix);
        fx_add(f, name, DT_F16, &seed, FX_DIMS(out / 2, 2, 2));
        break;
    case DORA_IN:
    case N_FAMILIES:
        add_module(f, prefix, LOW, out, in, up, uq);
        add_part(f, prefix, "dora_scale", &seed, 1, in);
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

    if (!(rel < 1e-6)) /* a few roundings to f32: the scale, gains, rotations */
        fail_msg("%s: rows %d: %g from the definition", what, (int)from, rel);
}

/* What the definition makes of a module on a layer of these rows of weights. */
static double *defined(const struct adapter_file *f, int module, const float *weights,
                       int64_t out, int64_t in)
{
    struct layer whole = {.kind = LAYER_LINEAR, .name = "whole", .out = out, .in = in, .kh = 1,
                          .kw = 1};
    struct tensor w_tensor = {.data = weights, .type = DT_F32, .n_dims = 2, .name = "whole",
                              .bytes = (size_t)(out * in) * 4, .dim = {out, in, 1, 1, 1, 1}};
    double *w = calloc((size_t)(out * in), sizeof *w);

    assert_non_null(w);
    whole.weight = w_tensor;
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
    want = defined(f, 0, p.weights, q + k + v, in);
    for (int i = 0; i < 3; i++) {
        double *got = fx_change(set, &p.layers[i], 1);
        assert_int_equal(delta_set_list(adapter_set_deltas(set), &p.layers[i]).n,
                         family == GLORA ? 2 : 1);
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
    for (enum family f = LOW; f < N_ANYWHERE; f++) {
        check_fused_file(f, 8, 8, 8, 3);   /* a Kronecker row for each layer */
        check_fused_file(f, 8, 8, 8, 6);   /* two for each */
        check_fused_file(f, 8, 8, 8, 2);   /* the border of q falls within the first */
        check_fused_file(f, 5, 5, 5, 5);   /* both borders fall within rows */
        check_fused_file(f, 7, 4, 10, 3);  /* layers of unequal heights */
        check_fused_file(f, 1, 1, 1, 1);   /* one Kronecker row for all */
    }
    check_fused_file(OFT, 8, 4, 6, 1);
}

/* Blocks that straddle layers, and lengths of columns over several, are left out and said. */
static void what_layers_cannot_do_alone_is_skipped(void **state)
{
    static const enum family families[] = {OFT, DORA_IN};
    static const char *const why[] = {"turns rows of several layers", "length of columns"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct parts p;
        struct fx_file file = {0};
        struct adapter_file *f;
        struct adapter_set *set;

        split_create(&p, 5, 5, 6, 6);
        add_module(&file, "lora_te_text_model_encoder_layers_0_self_attn_in_proj", families[i], 16,
                   6, 1, 1);
        assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
        assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, p.names, false),
                         KRON_ERR_UNSUPPORTED);
        if (strstr(kron_error_detail(), why[i]) == NULL)
            fail_msg("%s", kron_error_detail());
        adapter_close(&f);
        fx_free(&file);
        adapter_names_free(&p.names);
    }
}

static void biases_are_cut_too(void **state)
{
    static const char *const parts[] = {"diff_b", "ia3_l"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct parts p;
        struct fx_file file = {0};
        struct adapter_file *f;
        struct adapter_set *set;
        uint64_t seed = 9;
        int64_t from = 0;
        const struct tensor *t;
        char name[128];

        split_create(&p, 4, 3, 2, 6);
        add_part(&file, "text_encoder.text_model.encoder.layers.0.self_attn.in_proj", parts[i],
                 &seed, 9, 1);
        set = bind_all(&file, &f, &p);
        snprintf(name, sizeof name, "text_encoder.text_model.encoder.layers.0.self_attn.in_proj.%s",
                 parts[i]);
        t = st_find(f->st, name);
        for (int l = 0; l < 3; l++) {
            struct delta d = delta_set_list(adapter_set_deltas(set), &p.layers[l]).at[0];
            for (int64_t o = 0; o < p.layers[l].out; o++, from++) {
                float v;
                tensor_decode(t, from, 1, &v);
                assert_float_equal(d.bias[o], i == 0 ? v : (v - 1) * p.biases[from], 1e-6);
            }
        }
        adapter_set_free(&set);
        adapter_close(&f);
        fx_free(&file);
        adapter_names_free(&p.names);
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
    want = defined(f, 0, (const float *)p.layers[layer].weight.data + at * in, rows, in);
    got = fx_change(set, &p.layers[layer], 1);
    expect_rows(got, at, want, 0, rows, in, prefix);
    for (int64_t o = 0; o < p.layers[layer].out; o++)
        for (int64_t i = 0; i < in && (o < at || o >= at + rows); i++)
            assert_true(got[o * in + i] == 0);
    for (int i = 0; i < MAX_LAYERS; i++)
        assert_int_equal(delta_set_list(adapter_set_deltas(set), &p.layers[i]).n,
                         i != layer ? 0 : family == GLORA ? 2 : 1);
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
        double *want = defined(f, i, (const float *)p.layers[3].weight.data + 16 * i, 4, 4);
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
    static float apart[12];
    struct parts p;
    struct adapter_match m;

    (void)state;
    split_create(&p, 2, 3, 1, 4);
    m = adapter_names_find(p.names, "encoder.layers.0.self_attn.in_proj", 0);
    assert_int_equal(m.found, ADAPTER_FOUND);
    assert_int_equal(m.n_targets, 3);
    assert_ptr_equal(m.layer->weight.data, p.weights);
    assert_int_equal(m.layer->weight.dim[0], 6);
    assert_int_equal(m.layer->weight.bytes, 6 * 4 * 4);
    assert_memory_equal(m.layer->bias.data, p.biases, 6 * sizeof(float));
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
        cmocka_unit_test(what_layers_cannot_do_alone_is_skipped),
        cmocka_unit_test(biases_are_cut_too),
        cmocka_unit_test(split_files_fit_fused_layers),
        cmocka_unit_test(three_files_rows_make_one_layer),
        cmocka_unit_test(wrong_heights_are_told_by_the_alias_shape),
        cmocka_unit_test(an_alias_sees_the_weights_of_its_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
