/* SPDX-License-Identifier: MIT
 * Adapters made from others. What is written is opened and bound like any other file, and its
 * deltas, by their definition, are held against those asked for. */
#include "adapter_fixture.h"
#include "convert/convert.h"
#include "temp_dir.h"

/* Some layers of each kind and part of a model, all in one naming. */
static const char *const some_layers[] = {"conv_in", "time_embedding.linear_1",
                                          "down_blocks.0.resnets.0.conv1", "conv_out",
                                          "encoder.layers.0.self_attn.q_proj",
                                          "encoder.layers.1.mlp.fc2"};

static void prefix_of(const struct layer *l, int n_te, char *out, size_t n)
{
    const char *te = n_te == 1 ? "" : l->part == PART_TE0 ? "1" : "2";

    if (l->part == PART_UNET)
        snprintf(out, n, "lora_unet_%s", l->name);
    else
        snprintf(out, n, "lora_te%s_text_model_%s", te, l->name);
    for (char *c = out; *c != '\0'; c++)
        if (*c == '.')
            *c = '_';
}

static void add_part(struct fx_file *f, const char *prefix, const char *ending, uint64_t *seed,
                     int n_dims, const int64_t *dim)
{
    char name[600];

    snprintf(name, sizeof name, "%s%s", prefix, ending);
    fx_add(f, name, DT_F32, seed, n_dims, dim);
}

static void add_lora(struct fx_file *f, const char *prefix, const struct layer *l, int64_t rank,
                     float alpha, uint64_t *seed)
{
    int n = l->is_conv ? 4 : 2;
    char name[600];

    add_part(f, prefix, ".lora_down.weight", seed, n, (int64_t[]){rank, l->in, l->kh, l->kw});
    add_part(f, prefix, ".lora_up.weight", seed, n, (int64_t[]){l->out, rank, 1, 1});
    if (alpha > 0) {
        snprintf(name, sizeof name, "%s.alpha", prefix);
        fx_add_scalar(f, name, DT_F32, alpha);
    }
}

/* Writes what was added under a name in the test's folder and opens it from there. */
static struct adapter_file *save(struct fx_file *f, const char *name)
{
    struct adapter_file *a;

    if (fx_open(f, &a, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    adapter_close(&a);
    assert_int_equal(file_write(in_dir(name), f->bytes, 8 + f->header.len + f->data.len),
                     KRON_OK);
    fx_free(f);
    assert_int_equal(adapter_open(&a, in_dir(name)), KRON_OK);
    return a;
}

struct model {
    struct fx_table t;
    struct adapter_names *names;
    int n_te;
};

static void model_open(struct model *m, const char *arch)
{
    fx_table_read(&m->t, arch);
    m->n_te = strcmp(arch, "sdxl") == 0 ? 2 : 1;
    assert_int_equal(adapter_names_create(&m->names, &m->t.table), KRON_OK);
}

static void model_close(struct model *m)
{
    adapter_names_free(&m->names);
    fx_table_free(&m->t);
}

static struct adapter_file *lora_of_some(struct model *m, const char *name, uint64_t seed)
{
    struct fx_file f = {0};
    char prefix[400];

    for (int i = 0; i < m->t.table.n; i++)
        for (size_t k = 0; k < sizeof some_layers / sizeof *some_layers; k++)
            if (strcmp(m->t.table.at[i]->name, some_layers[k]) == 0) {
                prefix_of(m->t.table.at[i], m->n_te, prefix, sizeof prefix);
                add_lora(&f, prefix, m->t.table.at[i], 3, 1.5f, &seed);
            }
    return save(&f, name);
}

static const struct layer *layer_named(const struct model *m, const char *name)
{
    return fx_find(&m->t, PART_UNET, name);
}

static kron_status convert(const struct adapter_names *names, const struct adapter_use *uses,
                           kron_adapter_convert_params p, struct str *report)
{
    struct convert_job job = {&p, uses, names};
    struct str own = {0};
    kron_status status = convert_adapter(&job, report != NULL ? report : &own);

    str_free(&own);
    return status;
}

/* Sum of the changes that uses make of a layer, at their strengths. */
static double *sum_of(const struct adapter_names *names, const struct adapter_use *uses, int n,
                      const struct layer *l)
{
    double *sum = calloc((size_t)(l->out * layer_k(l)), sizeof *sum);

    assert_non_null(sum);
    for (int i = 0; i < n; i++) {
        struct adapter_set *set;
        float s = l->part == PART_UNET ? uses[i].unet_strength : uses[i].te_strength;
        assert_int_equal(adapter_bind(&set, &uses[i], 1, names, false), KRON_OK);
        double *one = fx_change(set, l, s);
        for (int64_t k = 0; k < l->out * layer_k(l); k++)
            sum[k] += one[k];
        free(one);
        adapter_set_free(&set);
    }
    return sum;
}

/* The file `name` changes the layers of the table as `uses` do together, to `tolerance`. Returns
 * the number of layers that it changes. */
static int expect_same(const struct adapter_names *names, const struct layer_table *table,
                       const struct adapter_use *uses, int n, const char *name, double tolerance)
{
    struct adapter_file *f;
    int changed = 0;

    assert_int_equal(adapter_open(&f, in_dir(name)), KRON_OK);
    struct adapter_use use = {f, 1, 1};
    for (int i = 0; i < table->n; i++) {
        const struct layer *l = table->at[i];
        double *want = sum_of(names, uses, n, l), *got = sum_of(names, &use, 1, l), size = 0;
        for (int64_t k = 0; k < l->out * layer_k(l); k++)
            size += want[k] * want[k];
        double rel = size > 0 ? fx_rel(got, want, l->out * layer_k(l)) : 0;
        if (!(rel <= tolerance))
            fail_msg("%s: %s is off by %g", name, l->name, rel);
        changed += size > 0;
        free(want);
        free(got);
    }
    adapter_close(&f);
    return changed;
}

/* --- names --- */

static void every_naming_loads_again_and_gives_the_same(void **state)
{
    static const char *const archs[] = {"sd15", "sd2", "sdxl"};

    (void)state;
    for (int a = 0; a < 3; a++) {
        struct model m;
        model_open(&m, archs[a]);
        struct adapter_file *f = lora_of_some(&m, "in.safetensors", 3);
        struct adapter_use use = {f, 1, 1};
        for (int naming = KRON_NAMING_KEEP; naming <= KRON_NAMING_COMFY; naming++) {
            kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                             .naming = (kron_naming)naming};
            if (convert(m.names, &use, p, NULL) != KRON_OK)
                fail_msg("%s, naming %d: %s", archs[a], naming, kron_error_detail());
            int n = expect_same(m.names, &m.t.table, &use, 1, "out.safetensors", 2e-7);
            assert_int_equal(n, adapter_count(f));
        }
        adapter_close(&f);
        model_close(&m);
    }
}

static const struct tensor *tensor_in(struct st_file *st, const char *name)
{
    const struct tensor *t = st_find(st, name);

    if (t == NULL)
        fail_msg("there is no %s", name);
    return t;
}

static void names_are_those_of_the_naming(void **state)
{
    static const char *const wanted[][2] = {
        {"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight",
         "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha"},
        {"lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight",
         "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"},
        {"lycoris_down_blocks_0_resnets_0_conv1.lora_up.weight",
         "lora_te2_text_model_encoder_layers_1_mlp_fc2.alpha"},
        {"unet.down_blocks.0.resnets.0.conv1.lora_A.weight",
         "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"},
        {"diffusion_model.input_blocks.1.0.in_layers.2.lora_up.weight",
         "text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc2.alpha"}};
    struct model m;
    struct st_file *st;

    (void)state;
    model_open(&m, "sdxl");
    struct adapter_file *f = lora_of_some(&m, "in.safetensors", 4);
    struct adapter_use use = {f, 1, 1};
    for (int i = 0; i < 5; i++) {
        kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                         .naming = (kron_naming)(i + 1)};
        assert_int_equal(convert(m.names, &use, p, NULL), KRON_OK);
        assert_int_equal(st_open(&st, in_dir("out.safetensors")), KRON_OK);
        tensor_in(st, wanted[i][0]);
        tensor_in(st, wanted[i][1]);
        for (int64_t k = 0; k < st_count(st); k++) /* diffusers knows no alpha */
            assert_true(i != 3 || !str_ends(st_at(st, k)->name, ".alpha"));
        st_close(&st);
    }
    adapter_close(&f);
    model_close(&m);
}

/* Tensors that fit no layer, embeddings and strangers too: bit for bit. */
static void tensors_of_every_family_are_carried_over(void **state)
{
    static const char *const parts[][2] = {
        {"lora_unet_conv_in.oft_blocks", "unet.conv_in.oft_blocks"},
        {"lora_unet_conv_out.on_input", "unet.conv_out.on_input"},
        {"lora_unet_conv_out.weight", "unet.conv_out.weight"},
        {"lora_unet_time_embedding_linear_1.diff_b", "unet.time_embedding.linear_1.diff_b"},
        {"bundle_emb.cat.emb", "bundle_emb.cat.emb"},
        {"some.thing.else", "some.thing.else"}};
    struct fx_file file = {0};
    struct st_file *in, *out;
    struct model m;
    uint64_t seed = 9;

    (void)state;
    model_open(&m, "sd15");
    for (int i = 0; i < 6; i++)
        fx_add(&file, parts[i][0], DT_F16, &seed, FX_DIMS(5));
    add_lora(&file, "lora_unet_down_blocks_0_resnets_0_conv1", /* so that something applies */
             layer_named(&m, "down_blocks.0.resnets.0.conv1"), 2, 1, &seed);
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                     .naming = KRON_NAMING_DIFFUSERS};
    assert_int_equal(convert(m.names, &use, p, NULL), KRON_OK);
    assert_int_equal(st_open(&in, in_dir("in.safetensors")), KRON_OK);
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    for (int i = 0; i < 6; i++)
        assert_memory_equal(tensor_in(out, parts[i][1])->data, tensor_in(in, parts[i][0])->data,
                            10);
    st_close(&in);
    st_close(&out);
    adapter_close(&f);
    model_close(&m);
}

/* --- types and metadata --- */

static void a_type_rounds_factors_and_leaves_alphas(void **state)
{
    struct model m;
    struct st_file *in, *out;
    struct str report = {0};

    (void)state;
    model_open(&m, "sd15");
    struct adapter_file *f = lora_of_some(&m, "in.safetensors", 5);
    struct adapter_use use = {f, 1, 1};
    kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                     .type = KRON_TYPE_BF16};
    assert_int_equal(convert(m.names, &use, p, &report), KRON_OK);
    assert_non_null(strstr(str_get(&report), "unet conv_in: off by 0.00"));
    assert_int_equal(st_open(&in, in_dir("in.safetensors")), KRON_OK);
    assert_int_equal(st_open(&out, in_dir("out.safetensors")), KRON_OK);
    assert_int_equal(st_count(in), st_count(out));
    for (int64_t i = 0; i < st_count(in); i++) {
        const struct tensor *t = st_at(in, i), *u = tensor_in(out, t->name);
        float x, y;
        assert_int_equal(u->type, str_ends(t->name, ".alpha") ? DT_F32 : DT_BF16);
        tensor_decode(t, 0, 1, &x);
        tensor_decode(u, 0, 1, &y);
        assert_true(y == (u->type == DT_F32 ? x : bf16_to_f32(f32_to_bf16(x))));
    }
    st_close(&in);
    st_close(&out);
    expect_same(m.names, &m.t.table, &use, 1, "out.safetensors", 4e-3);
    str_free(&report);
    adapter_close(&f);
    model_close(&m);
}

static void metadata_are_kept_but_what_is_no_longer_true(void **state)
{
    struct fx_file file = {0};
    struct fx_one o;
    struct st_file *st;
    uint64_t seed = 2;

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    fx_add_meta(&file, "{\"ss_output_name\":\"cat\",\"sshs_model_hash\":\"0x1\",\"ss_network_dim\":"
                       "\"2\"}");
    add_lora(&file, "lora_unet_conv_in", &o.layer, 2, 0, &seed);
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors")};
    for (int anew = 0; anew < 2; anew++) {
        p.rank = anew;
        assert_int_equal(convert(o.names, &use, p, NULL), KRON_OK);
        assert_int_equal(st_open(&st, in_dir("out.safetensors")), KRON_OK);
        assert_string_equal(st_meta(st, "ss_output_name"), "cat");
        assert_string_equal(st_meta(st, "kron.made_from"), "in.safetensors:1");
        assert_null(st_meta(st, "sshs_model_hash"));
        assert_true((st_meta(st, "ss_network_dim") == NULL) == anew);
        st_close(&st);
    }
    adapter_close(&f);
    adapter_names_free(&o.names);
}

/* PEFT's config stays behind, and with it the only place that names alpha. */
static void a_config_becomes_an_alpha(void **state)
{
    struct fx_file file = {0};
    struct fx_one o;
    uint64_t seed = 2;

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    fx_add_meta(&file, "{\"lora_adapter_metadata\":"
                       "\"{\\\"unet.lora_alpha\\\":6,\\\"unet.r\\\":2}\"}");
    add_lora(&file, "unet.conv_in", &o.layer, 2, 0, &seed);
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    for (int naming = 0; naming <= KRON_NAMING_COMFY; naming++) {
        kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                         .naming = (kron_naming)naming};
        assert_int_equal(convert(o.names, &use, p, NULL), KRON_OK);
        assert_int_equal(expect_same(o.names, &o.table, &use, 1, "out.safetensors", 2e-7), 1);
    }
    adapter_close(&f);
    adapter_names_free(&o.names);
}

/* --- forms --- */

/* A LoKr on one layer, w2 whole or of some rank. */
static struct adapter_file *lokr(const struct layer *l, int64_t up, int64_t uq, int64_t rank,
                                 uint64_t seed, const char *name)
{
    struct fx_file file = {0};
    const char *prefix = "lora_unet_conv_in";
    int64_t vp = l->out / up, vq = l->in / uq, ks = (int64_t)l->kh * l->kw;

    add_part(&file, prefix, ".lokr_w1", &seed, 2, (int64_t[]){up, uq});
    if (rank == 0) {
        add_part(&file, prefix, ".lokr_w2", &seed, l->is_conv ? 4 : 2,
                 (int64_t[]){vp, vq, l->kh, l->kw});
    } else {
        add_part(&file, prefix, ".lokr_w2_a", &seed, 2, (int64_t[]){vp, rank});
        add_part(&file, prefix, ".lokr_w2_b", &seed, 2, (int64_t[]){rank, vq * ks});
    }
    return save(&file, name);
}

static void lokr_to_lora_and_back_loses_nothing(void **state)
{
    static const struct {
        int64_t out, in, up, uq, rank;
        int kh;
    } cases[] = {{32, 24, 4, 4, 0, 1}, {32, 24, 4, 2, 3, 1}, {16, 12, 4, 4, 0, 3},
                 {24, 8, 8, 4, 2, 3},  {7, 5, 1, 5, 0, 1}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fx_one o;
        fx_one_create(&o, cases[i].out, cases[i].in, cases[i].kh, cases[i].kh, cases[i].kh > 1);
        struct adapter_file *f =
            lokr(&o.layer, cases[i].up, cases[i].uq, cases[i].rank, 40 + i, "in.safetensors");
        struct adapter_use use = {f, 1, 1};
        kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("lora.safetensors"),
                                         .form = KRON_FORM_LORA, .rank = 1000};
        if (convert(o.names, &use, p, NULL) != KRON_OK)
            fail_msg("%s", kron_error_detail());
        expect_same(o.names, &o.table, &use, 1, "lora.safetensors", 2e-6);
        struct adapter_file *lora;
        assert_int_equal(adapter_open(&lora, in_dir("lora.safetensors")), KRON_OK);
        struct adapter_use back = {lora, 1, 1};
        p = (kron_adapter_convert_params){.n_inputs = 1, .output = in_dir("back.safetensors"),
                                          .form = KRON_FORM_LOKR,
                                          .factor = (int)(cases[i].up > cases[i].uq
                                                              ? cases[i].up
                                                              : cases[i].uq)};
        if (cases[i].up != cases[i].uq)
            p.factor = 0; /* another cut of the channels: checked by its report alone */
        struct str report = {0};
        assert_int_equal(convert(o.names, &back, p, &report), KRON_OK);
        assert_non_null(strstr(str_get(&report), "LoKr, off by"));
        if (p.factor > 0)
            expect_same(o.names, &o.table, &use, 1, "back.safetensors", 5e-6);
        str_free(&report);
        adapter_close(&lora);
        adapter_close(&f);
        adapter_names_free(&o.names);
    }
}

/* The report says what the bytes written are off by. */
static void a_resize_says_what_it_loses(void **state)
{
    struct fx_one o;
    struct str report = {0};
    uint64_t seed = 6;
    struct fx_file file = {0};
    struct adapter_file *got;
    double said;

    (void)state;
    fx_one_create(&o, 30, 20, 1, 1, false);
    add_lora(&file, "lora_unet_conv_in", &o.layer, 8, 8, &seed);
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                     .rank = 3};
    assert_int_equal(convert(o.names, &use, p, &report), KRON_OK);
    assert_int_equal(sscanf(strstr(str_get(&report), "off by "), "off by %lf", &said), 1);
    assert_int_equal(adapter_open(&got, in_dir("out.safetensors")), KRON_OK);
    struct adapter_use cut = {got, 1, 1};
    double *x = sum_of(o.names, &cut, 1, &o.layer), *y = sum_of(o.names, &use, 1, &o.layer);
    double rel = fx_rel(x, y, 600);
    assert_true(rel > 0.1 && fabs(said / rel - 1) < 5e-3); /* three digits are printed */
    struct adapter_summary s;
    adapter_summarise(got, &s);
    assert_true(s.rank.min == 3 && s.rank.max == 3 && s.scale.min == 1);
    free(x);
    free(y);
    str_free(&report);
    adapter_close(&got);
    /* All of the energy needs all ranks, a little of it one. */
    p.rank = 0;
    p.energy = 1;
    assert_int_equal(convert(o.names, &use, p, NULL), KRON_OK);
    expect_same(o.names, &o.table, &use, 1, "out.safetensors", 2e-6);
    p.energy = 0.01;
    assert_int_equal(convert(o.names, &use, p, NULL), KRON_OK);
    assert_int_equal(adapter_open(&got, in_dir("out.safetensors")), KRON_OK);
    adapter_summarise(got, &s);
    assert_true(s.rank.max == 1);
    adapter_close(&got);
    adapter_close(&f);
    adapter_names_free(&o.names);
}

/* --- several --- */

static void a_merge_is_the_sum_of_its_parts(void **state)
{
    struct model m;

    (void)state;
    model_open(&m, "sdxl");
    struct adapter_file *a = lora_of_some(&m, "a.safetensors", 11);
    struct adapter_file *b = lora_of_some(&m, "b.safetensors", 12);
    struct adapter_use uses[2] = {{a, 0.5f, 0.7f}, {b, -1.25f, 0.3f}};
    kron_adapter_convert_params p = {.n_inputs = 2, .output = in_dir("out.safetensors")};
    assert_int_equal(convert(m.names, uses, p, NULL), KRON_OK);
    int n = expect_same(m.names, &m.t.table, uses, 2, "out.safetensors", 5e-7);
    assert_int_equal(n, adapter_count(a));
    p.form = KRON_FORM_FULL;
    assert_int_equal(convert(m.names, uses, p, NULL), KRON_OK);
    expect_same(m.names, &m.t.table, uses, 2, "out.safetensors", 5e-7);
    uses[0].unet_strength = 0; /* the first file is left out of the UNet */
    assert_int_equal(convert(m.names, uses, p, NULL), KRON_OK);
    expect_same(m.names, &m.t.table, uses, 2, "out.safetensors", 5e-7);
    adapter_close(&a);
    adapter_close(&b);
    model_close(&m);
}

static void other_families_merge_into_a_difference_or_a_lora(void **state)
{
    struct fx_one o;
    struct fx_file file = {0};
    uint64_t seed = 70;

    (void)state;
    fx_one_create(&o, 16, 12, 3, 3, true);
    struct adapter_file *a = lokr(&o.layer, 4, 2, 0, 71, "a.safetensors");
    add_lora(&file, "lora_unet_conv_in", &o.layer, 2, 1, &seed);
    struct adapter_file *b = save(&file, "b.safetensors");
    struct adapter_use uses[2] = {{a, 1, 0.5f}, {b, 1, 2}};
    kron_adapter_convert_params p = {.n_inputs = 2, .output = in_dir("out.safetensors")};
    assert_int_equal(convert(o.names, uses, p, NULL), KRON_OK);
    expect_same(o.names, &o.table, uses, 2, "out.safetensors", 5e-7);
    p.rank = 16;
    assert_int_equal(convert(o.names, uses, p, NULL), KRON_OK);
    expect_same(o.names, &o.table, uses, 2, "out.safetensors", 2e-6);
    adapter_close(&a);
    adapter_close(&b);
    adapter_names_free(&o.names);
}

/* --- biases, norms, and changes that depend on the weight --- */

static void expect_biases(const struct model *m, const struct adapter_use *uses, int n,
                          const char *name, int n_layers)
{
    struct adapter_set *want, *got;
    struct adapter_file *f;
    int changed = 0;

    assert_int_equal(adapter_open(&f, in_dir(name)), KRON_OK);
    struct adapter_use one = {f, 1, 1};
    assert_int_equal(adapter_bind(&want, uses, n, m->names, true), KRON_OK);
    assert_int_equal(adapter_bind(&got, &one, 1, m->names, true), KRON_OK);
    float *ws = calloc((size_t)adapter_set_deltas(want)->n_strengths, sizeof *ws);
    float *gs = calloc((size_t)adapter_set_deltas(got)->n_strengths, sizeof *gs);
    adapter_set_get_strengths(want, ws);
    adapter_set_get_strengths(got, gs);
    for (int i = 0; i < m->t.table.n; i++) {
        const struct layer *l = m->t.table.at[i];
        double *x = calloc((size_t)l->out, sizeof *x), *y = calloc((size_t)l->out, sizeof *y);
        layer_bias_ref(l, delta_set_list(adapter_set_deltas(want), l), ws, x);
        layer_bias_ref(l, delta_set_list(adapter_set_deltas(got), l), gs, y);
        changed += x[0] != 0;
        for (int64_t k = 0; k < l->out; k++)
            assert_true(fabs(x[k] - y[k]) < 1e-6);
        free(x);
        free(y);
    }
    assert_int_equal(changed, n_layers);
    free(ws);
    free(gs);
    adapter_set_free(&want);
    adapter_set_free(&got);
    adapter_close(&f);
}

/* A bias on a LoRA's layer, one alone, and a norm, from two files. */
static void biases_and_norms_merge_too(void **state)
{
    struct model m;
    struct adapter_file *f[2];
    uint64_t seed = 90;

    (void)state;
    model_open(&m, "sd15");
    for (int i = 0; i < 2; i++) {
        struct fx_file file = {0};
        const struct layer *conv = layer_named(&m, "conv_in");
        add_lora(&file, "lora_unet_conv_in", conv, 2, 1, &seed);
        add_part(&file, "lora_unet_conv_in", ".diff_b", &seed, 1, &conv->out);
        add_part(&file, "lora_unet_conv_out", ".diff_b", &seed, 1,
                 &layer_named(&m, "conv_out")->out);
        add_part(&file, "lora_unet_conv_norm_out", ".w_norm", &seed, 1,
                 &layer_named(&m, "conv_norm_out")->out);
        add_part(&file, "lora_unet_conv_norm_out", ".b_norm", &seed, 1,
                 &layer_named(&m, "conv_norm_out")->out);
        f[i] = save(&file, i == 0 ? "a.safetensors" : "b.safetensors");
    }
    struct adapter_use uses[2] = {{f[0], 1, 0.5f}, {f[1], 1, -0.25f}};
    kron_adapter_convert_params p = {.n_inputs = 2, .output = in_dir("out.safetensors")};
    for (int naming = 0; naming <= KRON_NAMING_COMFY; naming++) {
        p.naming = (kron_naming)naming;
        if (convert(m.names, uses, p, NULL) != KRON_OK)
            fail_msg("naming %d: %s", naming, kron_error_detail());
        expect_same(m.names, &m.t.table, uses, 2, "out.safetensors", 5e-7);
        expect_biases(&m, uses, 2, "out.safetensors", 3);
    }
    adapter_close(&f[0]);
    adapter_close(&f[1]);
    model_close(&m);
}

/* DoRA under other names is the same change of the same weight, and is measured. */
static void what_depends_on_the_weight_is_carried_and_compared(void **state)
{
    struct fx_one o;
    struct fx_file file = {0};
    struct str report = {0};
    uint64_t seed = 91;
    float w[8 * 6];

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    for (int i = 0; i < 48; i++)
        w[i] = fx_unit(&seed);
    o.layer.weight = (struct tensor){.data = w, .bytes = sizeof w, .type = DT_F32, .n_dims = 2,
                                     .dim = {8, 6, 1, 1, 1, 1}, .name = "w"};
    add_lora(&file, "lora_unet_conv_in", &o.layer, 2, 1, &seed);
    add_part(&file, "lora_unet_conv_in", ".dora_scale", &seed, 2, (int64_t[]){8, 1});
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                     .naming = KRON_NAMING_DIFFUSERS};
    assert_int_equal(convert(o.names, &use, p, &report), KRON_OK);
    assert_non_null(strstr(str_get(&report), "1 layers, off by 0 of the whole change"));
    assert_int_equal(expect_same(o.names, &o.table, &use, 1, "out.safetensors", 5e-7), 1);
    str_free(&report);
    p.type = KRON_TYPE_F8_E5M2; /* two bits of mantissa: far off, and said so */
    assert_int_equal(convert(o.names, &use, p, &report), KRON_OK);
    assert_non_null(strstr(str_get(&report), "1 layers, off by 0."));
    str_free(&report);
    adapter_close(&f);
    adapter_names_free(&o.names);
}

/* q, k and v trained as one: carried over under the one name of each naming, made anew under three
 * of their own. */
static void names_of_several_layers(void **state)
{
    struct model m;
    struct fx_file file = {0};
    struct adapter_summary s;
    struct adapter_file *got;
    uint64_t seed = 95;

    (void)state;
    model_open(&m, "sdxl");
    const struct layer *q = fx_find(&m.t, PART_TE1, "encoder.layers.0.self_attn.q_proj");
    struct layer fused = *q;
    fused.out = 3 * q->out;
    add_lora(&file, "lora_te2_text_model_encoder_layers_0_self_attn_in_proj", &fused, 2, 1, &seed);
    struct adapter_file *f = save(&file, "in.safetensors");
    struct adapter_use use = {f, 0.5f, 1};
    for (int anew = 0; anew < 2; anew++)
        for (int naming = 0; naming <= KRON_NAMING_COMFY; naming++) {
            kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                             .naming = (kron_naming)naming};
            use.te_strength = anew ? 0.5f : 1;
            if (convert(m.names, &use, p, NULL) != KRON_OK)
                fail_msg("naming %d: %s", naming, kron_error_detail());
            assert_int_equal(expect_same(m.names, &m.t.table, &use, 1, "out.safetensors", 2e-7),
                             3);
            assert_int_equal(adapter_open(&got, in_dir("out.safetensors")), KRON_OK);
            adapter_summarise(got, &s);
            assert_int_equal(s.n_modules, anew ? 3 : 1);
            adapter_close(&got);
        }
    adapter_close(&f);
    model_close(&m);
}

/* --- without a model --- */

static void files_tell_their_own_layers(void **state)
{
    struct fx_one o;
    struct own_layers own;
    static const struct {
        int64_t rank;
        int kh;
    } cases[] = {{0, 1}, {2, 1}, {0, 3}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fx_one_create(&o, 16, 12, cases[i].kh, cases[i].kh, cases[i].kh > 1);
        struct adapter_file *f = lokr(&o.layer, 4, 2, cases[i].rank, 5, "in.safetensors");
        struct adapter_use use = {f, 1, 0.5f};
        assert_int_equal(own_layers_create(&own, &f, 1), KRON_OK);
        assert_int_equal(own.table.n, 1);
        assert_int_equal(own.table.at[0]->out, 16);
        assert_int_equal(own.table.at[0]->in, 12);
        assert_int_equal(own.table.at[0]->kh, cases[i].kh);
        kron_adapter_convert_params p = {.n_inputs = 1, .output = in_dir("out.safetensors"),
                                         .form = KRON_FORM_FULL};
        assert_int_equal(convert(own.names, &use, p, NULL), KRON_OK);
        assert_int_equal(expect_same(o.names, &o.table, &use, 1, "out.safetensors", 5e-7), 1);
        own_layers_free(&own);
        adapter_close(&f);
        adapter_names_free(&o.names);
    }
}

/* --- refusals --- */

static void refused(const struct adapter_names *names, const struct adapter_use *uses,
                    kron_adapter_convert_params p, kron_status status, const char *words)
{
    p.n_inputs = 1;
    p.output = in_dir("out.safetensors");
    assert_int_equal(convert(names, uses, p, NULL), status);
    if (strstr(kron_error_detail(), words) == NULL)
        fail_msg("'%s' does not say '%s'", kron_error_detail(), words);
}

/* An error leaves the file that was there, and no other. */
static void refusals_leave_the_output_alone(void **state)
{
    struct fx_file file = {0};
    struct fx_one o;
    uint64_t seed = 1;
    char *text;
    size_t bytes;

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    struct adapter_file *f = lokr(&o.layer, 2, 2, 0, 1, "in.safetensors");
    struct adapter_use use = {f, 1, 1};
    assert_int_equal(file_write(in_dir("out.safetensors"), "old", 3), KRON_OK);
    int before = temp_dir_count(dir);
    refused(o.names, &use, (kron_adapter_convert_params){.form = KRON_FORM_LORA},
            KRON_ERR_ARGUMENT, "rank");
    use.unet_strength = 0;
    refused(o.names, &use, (kron_adapter_convert_params){.n_inputs = 1}, KRON_ERR_ARGUMENT,
            "strength is 0");
    adapter_close(&f);
    add_lora(&file, "lora_unet_conv_in", &o.layer, 2, 0, &seed);
    fx_add(&file, "lora_unet_conv_in.dora_scale", DT_F32, &seed, FX_DIMS(8, 1));
    f = save(&file, "in.safetensors");
    use = (struct adapter_use){f, 1, 1};
    refused(o.names, &use, (kron_adapter_convert_params){.rank = 1}, KRON_ERR_UNSUPPORTED,
            "conv_in");
    assert_int_equal(file_read(&text, &bytes, in_dir("out.safetensors"), 100), KRON_OK);
    assert_string_equal(text, "old");
    mem_free(text);
    assert_int_equal(temp_dir_count(dir), before);
    adapter_close(&f);
    adapter_names_free(&o.names);
}

static void no_memory_is_an_error(void **state)
{
    struct fx_one o;
    int failures = 0;

    (void)state;
    fx_one_create(&o, 16, 12, 1, 1, false);
    struct adapter_file *f = lokr(&o.layer, 4, 4, 0, 1, "in.safetensors");
    struct adapter_use uses[2] = {{f, 1, 1}, {f, 1, 1}};
    kron_adapter_convert_params p = {.n_inputs = 2, .output = in_dir("none.safetensors"),
                                     .form = KRON_FORM_LOKR, .rank = 2};
    for (long n = 1;; n++) {
        mem_fail_after(n);
        kron_status status = convert(o.names, uses, p, NULL);
        mem_fail_after(0);
        assert_true(status == KRON_OK || status == KRON_ERR_MEMORY);
        assert_int_equal(path_is_file(in_dir("none.safetensors")), status == KRON_OK);
        failures += status != KRON_OK;
        if (status == KRON_OK)
            break;
    }
    assert_true(failures > 30);
    adapter_close(&f);
    adapter_names_free(&o.names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_naming_loads_again_and_gives_the_same),
        cmocka_unit_test(names_are_those_of_the_naming),
        cmocka_unit_test(tensors_of_every_family_are_carried_over),
        cmocka_unit_test(a_type_rounds_factors_and_leaves_alphas),
        cmocka_unit_test(metadata_are_kept_but_what_is_no_longer_true),
        cmocka_unit_test(a_config_becomes_an_alpha),
        cmocka_unit_test(lokr_to_lora_and_back_loses_nothing),
        cmocka_unit_test(a_resize_says_what_it_loses),
        cmocka_unit_test(a_merge_is_the_sum_of_its_parts),
        cmocka_unit_test(other_families_merge_into_a_difference_or_a_lora),
        cmocka_unit_test(biases_and_norms_merge_too),
        cmocka_unit_test(what_depends_on_the_weight_is_carried_and_compared),
        cmocka_unit_test(names_of_several_layers),
        cmocka_unit_test(files_tell_their_own_layers),
        cmocka_unit_test(refusals_leave_the_output_alone),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
