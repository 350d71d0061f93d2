/* SPDX-License-Identifier: MIT
 * What a checkpoint is found to be, and the one line that says what it seems to be instead. */
#include "model/model.h"
#include <kron/model.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "temp_dir.h"

#define SHIPPED KRON_SOURCE_DIR "/models/emoji-sd.safetensors"

static struct tensor zeros(const char *name, int n_dims, const int64_t *dim)
{
    static const unsigned char none[8u << 20];
    struct tensor t = {.data = none, .type = DT_F8_E4M3, .n_dims = n_dims,
                       .dim = {1, 1, 1, 1, 1, 1}, .name = name};

    for (int i = 0; i < n_dims; i++)
        t.dim[i] = dim[i];
    t.bytes = dtype_bytes(t.type, tensor_elements(&t));
    assert_true(t.bytes <= sizeof none);
    return t;
}

/* A file of one small tensor under each of these names. */
static void put(const char *file, const char *const *names, int n)
{
    struct tensor t[8];

    for (int i = 0; i < n; i++)
        t[i] = zeros(names[i], 4, (const int64_t[]){4, 4, 3, 3});
    assert_int_equal(st_write(in_dir(file), t, n, NULL, 0), KRON_OK);
}

/* A store of the shipped model with a file laid over it; model_load() takes it over. */
static kron_status load_with(struct sd_model *m, const char *tag, const char *path)
{
    struct store *s;

    assert_int_equal(store_create(&s), KRON_OK);
    assert_int_equal(store_add_file(s, "", SHIPPED), KRON_OK);
    if (path != NULL)
        assert_int_equal(store_add_file(s, tag, path), KRON_OK);
    return model_load(m, s);
}

static void the_shipped_model(void **state)
{
    kron_model_params p = {.model = SHIPPED, .backend = "ref"};
    kron_model *model;
    kron_model_info info;

    (void)state;
    assert_int_equal(kron_model_open(&model, &p), KRON_OK);
    info = kron_model_get_info(model);
    assert_int_equal(info.arch, KRON_ARCH_SD1);
    assert_string_equal(info.arch_name, "SD 1.x");
    assert_int_equal(info.prediction, KRON_PREDICTION_EPS);
    assert_true(str_starts(info.backend, "ref"));
    assert_true(info.unet_parameters > 0 && info.text_parameters > 0 && info.vae_parameters > 0);
    /* f16 throughout: two bytes a number. */
    assert_int_equal(info.weight_bytes, 2 * (info.unet_parameters + info.text_parameters +
                                             info.vae_parameters));
    kron_model_close(&model);
    assert_null(model);
    p.prediction = KRON_PREDICTION_V; /* the caller knows better */
    assert_int_equal(kron_model_open(&model, &p), KRON_OK);
    assert_int_equal(kron_model_get_info(model).prediction, KRON_PREDICTION_V);
    kron_model_close(&model);
}

static void its_networks(void **state)
{
    struct sd_model m;

    (void)state;
    assert_int_equal(load_with(&m, NULL, NULL), KRON_OK);
    assert_int_equal(m.unet.n_levels, 4);
    assert_int_equal(m.unet.in_channels, 4);
    assert_int_equal(m.unet.context_width, m.te[0].width);
    assert_null(m.unet.label1);
    assert_int_equal(m.unet.mid.attn.heads, 8);
    assert_int_equal(m.n_te, 1);
    assert_int_equal(m.te[0].n_layers, 3);
    assert_int_equal(m.te[0].width, 128);
    assert_int_equal(m.te[0].heads, 2);
    assert_int_equal(m.te[0].act, ACT_QUICK_GELU);
    assert_int_equal(m.vae.factor, 8);
    assert_int_equal(m.vae.latent_channels, 4);
    assert_true(m.vae.scale == 0.18215f);
    for (int i = 0; i < m.layers.n; i++) {
        assert_int_equal(m.layers.at[i]->id, i);
        assert_non_null(m.layers.at[i]->weight.data);
    }
    model_free(&m);
}

/* Adapters may have been trained on q, k and v as one projection. */
static void names_of_fused_projections(void **state)
{
    struct sd_model m;

    (void)state;
    assert_int_equal(load_with(&m, NULL, NULL), KRON_OK);
    assert_int_equal(m.layers.n_aliases, 3 * 3 * 2); /* layers, projections, names */
    for (int i = 0; i < m.layers.n_aliases; i++) {
        const struct layer_alias *a = &m.layers.aliases[i];
        const struct clip_layer *l = &m.te[0].layers[i / 6];
        const struct layer *const qkv[3] = {l->q, l->k, l->v};
        assert_ptr_equal(a->layer, qkv[i % 3]);
        assert_int_equal(a->rows, 128);
        assert_int_equal(a->at, 0);
        assert_int_equal(a->from, i % 3 * 128);
    }
    assert_string_equal(m.layers.aliases[6].name, "encoder.layers.1.self_attn.in_proj");
    assert_string_equal(m.layers.aliases[9].native, "encoder.layers.1.attn.in_proj_weight");
    model_free(&m);
}

static const struct {
    const char *file;
    const char *names[8];
    const char *want;
} others[] = {
    {"flux", {"double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"},
     "looks like FLUX; expected a Stable Diffusion 1, 2 or XL checkpoint"},
    {"flux_whole", {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
                    "first_stage_model.decoder.conv_in.weight"}, "looks like FLUX;"},
    {"flux2", {"double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"},
     "looks like FLUX.2"},
    {"sd3", {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"},
     "looks like Stable Diffusion 3"},
    {"lora", {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
              "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"},
     "looks like an adapter (LoRA): use <lora:name:strength> in the prompt"},
    {"lokr", {"lora_unet_conv_in.lokr_w1", "lora_unet_conv_in.lokr_w2"}, "an adapter (LoKr)"},
    {"controlnet", {"control_model.input_blocks.0.0.weight"}, "looks like a ControlNet"},
    {"llm", {"model.layers.0.mlp.up_proj.weight"}, "a language model"},
    {"vae", {"decoder.conv_in.weight", "encoder.conv_in.weight"},
     "looks like a VAE: give it beside"},
    {"vae_of_all", {"first_stage_model.decoder.conv_in.weight"},
     "looks like a VAE: give it beside"},
    {"unet", {"input_blocks.0.0.weight"}, "looks like a UNet alone: give it as --diffusion-model"},
    {"unet_diffusers", {"down_blocks.0.resnets.0.conv1.weight"}, "looks like a UNet alone"},
    {"clip", {"text_model.encoder.layers.0.layer_norm1.weight"},
     "looks like a text encoder alone: give it as --clip_l or --clip_g"},
    {"no_te", {"model.diffusion_model.input_blocks.0.0.weight",
               "first_stage_model.decoder.conv_in.weight"},
     "UNet found, text encoder missing, VAE found (among 2 tensors)"},
    {"no_vae", {"model.diffusion_model.input_blocks.0.0.weight",
                "cond_stage_model.transformer.text_model.final_layer_norm.weight"},
     "UNet found, text encoder found, VAE missing"},
    {"no_unet", {"cond_stage_model.model.ln_final.weight",
                 "first_stage_model.decoder.conv_in.weight"},
     "UNet missing, text encoder found, VAE found"},
    {"nothing", {"a.weight", "b.weight", "c.weight"},
     "UNet missing, text encoder missing, VAE missing (among 3 tensors)"},
};

static void other_checkpoints_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        kron_model_params p = {.model = in_dir(others[i].file)};
        kron_model *model = NULL;
        int n = 0;

        while (others[i].names[n] != NULL)
            n++;
        put(others[i].file, others[i].names, n);
        kron_status status = kron_model_open(&model, &p);
        const char *said = kron_error_detail();
        if (status != KRON_ERR_UNSUPPORTED || model != NULL)
            fail_msg("%s: status %d", others[i].file, status);
        if (strstr(said, others[i].want) == NULL || !str_starts(said, in_dir(others[i].file)))
            fail_msg("%s: '%s' does not say '%s'", others[i].file, said, others[i].want);
    }
}

static void files_that_are_not_there(void **state)
{
    kron_model_params p = {.model = NULL};
    kron_model *model = NULL;

    (void)state;
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_model_open(NULL, &p), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_model_open(&model, NULL), KRON_ERR_ARGUMENT);
    p.model = in_dir("none.safetensors");
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_IO);
    assert_non_null(strstr(kron_error_detail(), "none.safetensors"));
    p.model = dir;
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "not a diffusers folder"));
    p.model = SHIPPED;
    p.vae = in_dir("vae.safetensors");
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_IO);
    p.vae = NULL;
    p.backend = "abacus";
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_ARGUMENT);
    assert_non_null(strstr(kron_error_detail(), "'abacus' is not one of: cpu, ref"));
    p.n_threads = -1;
    assert_int_equal(kron_model_open(&model, &p), KRON_ERR_ARGUMENT);
    assert_null(model);
}

/* --- a VAE of its own --- */

/* The shipped model's VAE without its prefix, as VAE files have it. */
static void put_vae(const char *path)
{
    struct st_file *f;
    struct tensor *t;
    void *p;
    int64_t n = 0;

    assert_int_equal(st_open(&f, SHIPPED), KRON_OK);
    assert_int_equal(mem_alloc_n(&p, (size_t)st_count(f), sizeof *t, "tensors"), KRON_OK);
    t = p;
    for (int64_t i = 0; i < st_count(f); i++)
        if (str_starts(st_at(f, i)->name, "first_stage_model.")) {
            t[n] = *st_at(f, i);
            t[n++].name += strlen("first_stage_model.");
        }
    assert_true(n > 100);
    assert_int_equal(st_write(path, t, n, NULL, 0), KRON_OK);
    mem_free(t);
    st_close(&f);
}

static void a_separate_vae_replaces(void **state)
{
    struct sd_model m;
    int vae = 0;

    (void)state;
    put_vae(in_dir("vae.safetensors"));
    assert_int_equal(load_with(&m, "vae", in_dir("vae.safetensors")), KRON_OK);
    for (int i = 0; i < m.layers.n; i++) {
        const struct layer *l = m.layers.at[i];
        bool own = !str_starts(l->weight.name, "first_stage_model.") &&
                   (str_starts(l->weight.name, "decoder.") ||
                    str_starts(l->weight.name, "encoder.") || strstr(l->weight.name, "quant_conv"));
        assert_int_equal(own, l->part == PART_VAE);
        vae += own;
    }
    assert_true(vae > 50);
    model_free(&m);
}

/* --- prediction --- */

static void metadata_says_what_is_predicted(void **state)
{
    static const struct {
        const char *key, *value;
        kron_prediction want;
    } cases[] = {
        {"prediction", "v_prediction", KRON_PREDICTION_V},
        {"prediction", "epsilon", KRON_PREDICTION_EPS},
        {"modelspec.prediction_type", "v", KRON_PREDICTION_V},
        {"modelspec.prediction_type", "epsilon", KRON_PREDICTION_EPS},
        {"ss_prediction_type", "v_prediction", KRON_PREDICTION_V},
        {"something", "v", KRON_PREDICTION_EPS},
    };
    const struct tensor other = zeros("other", 1, (const int64_t[]){1});
    const struct tensor v_pred = zeros("v_pred", 1, (const int64_t[]){0});
    struct sd_model m;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const meta[] = {cases[i].key, cases[i].value};
        assert_int_equal(st_write(in_dir("meta"), &other, 1, meta, 1), KRON_OK);
        assert_int_equal(load_with(&m, "", in_dir("meta")), KRON_OK);
        if (m.prediction != cases[i].want)
            fail_msg("%s = %s", cases[i].key, cases[i].value);
        model_free(&m);
    }
    assert_int_equal(st_write(in_dir("v"), &v_pred, 1, NULL, 0), KRON_OK);
    assert_int_equal(load_with(&m, "", in_dir("v")), KRON_OK);
    assert_int_equal(m.prediction, KRON_PREDICTION_V); /* an empty tensor, as some files mark it */
    model_free(&m);
}

/* --- tensors that lie --- */

static kron_status build_all(const struct sd_model *m)
{
    kron_status status = KRON_OK;

    for (int i = 0; i < 4; i++) {
        struct graph g;
        gr_init(&g, "g");
        if (i == 0)
            unet_graph(&g, &m->unet, 1, 8, 8, 77, false);
        else if (i == 1)
            vae_decode_graph(&g, &m->vae, VAE_WHOLE, 1, 8, 8);
        else if (i == 2)
            vae_encode_graph(&g, &m->vae, VAE_WHOLE, 1, 64, 64);
        else
            clip_graph(&g, &m->te[0], 1, 1, 0, true, false);
        kron_status one = gr_plan(&g);
        status = status == KRON_OK ? one : status;
        gr_free(&g);
    }
    return status;
}

/* Lays a tensor of another shape over each layer's weight in turn: either loading or building
 * must say so, since nobody checks after that. */
static void every_weight_of_another_shape_is_found(void **state)
{
    struct sd_model whole, m;
    int found = 0;

    (void)state;
    assert_int_equal(load_with(&whole, NULL, NULL), KRON_OK);
    assert_int_equal(build_all(&whole), KRON_OK);
    for (int i = 0; i < whole.layers.n; i++)
        for (int change = 0; change < 4; change++) {
            const struct layer *l = whole.layers.at[i];
            struct tensor t;
            int64_t dim[6];
            int n = l->weight.n_dims;

            if ((i + 3 * change) % 11 != 0) /* some of all, for time */
                continue;
            memcpy(dim, l->weight.dim, sizeof dim);
            if (change < 2 && change < n)
                dim[change] += l->kind == LAYER_EMBED ? -1 : 1; /* a table may have more rows */
            else if (change == 2)
                dim[n++] = 1; /* a dimension too many */
            else if (change == 3)
                dim[0] = 0;
            else
                continue;
            if (change == 2 && n == 5) /* or too few */
                n = 3;
            t = zeros(l->weight.name, n, dim);
            assert_int_equal(st_write(in_dir("lie"), &t, 1, NULL, 0), KRON_OK);
            kron_status status = load_with(&m, "", in_dir("lie"));
            if (status == KRON_OK)
                status = build_all(&m);
            if (status != KRON_ERR_SHAPE && status != KRON_ERR_UNSUPPORTED)
                fail_msg("%s, change %d: status %d", l->weight.name, change, status);
            if (strchr(kron_error_detail(), '\'') == NULL &&
                strchr(kron_error_detail(), '[') == NULL &&
                strstr(kron_error_detail(), "UNet") == NULL)
                fail_msg("%s, change %d: %s", l->weight.name, change, kron_error_detail());
            model_free(&m);
            found++;
        }
    assert_true(found > 100);
    model_free(&whole);
}

static void a_missing_tensor_is_named(void **state)
{
    static const char *const gone[] = {
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.time_embed.2.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
        "first_stage_model.decoder.mid.attn_1.k.weight"};
    struct st_file *f;
    struct tensor *t;
    void *p;

    (void)state;
    assert_int_equal(st_open(&f, SHIPPED), KRON_OK);
    assert_int_equal(mem_alloc_n(&p, (size_t)st_count(f), sizeof *t, "tensors"), KRON_OK);
    t = p;
    for (size_t k = 0; k < sizeof gone / sizeof *gone; k++) {
        kron_model_params params = {.model = in_dir("cut.safetensors")};
        kron_model *model;
        int64_t n = 0;

        for (int64_t i = 0; i < st_count(f); i++)
            if (strcmp(st_at(f, i)->name, gone[k]) != 0)
                t[n++] = *st_at(f, i);
        assert_int_equal(n, st_count(f) - 1);
        assert_int_equal(st_write(in_dir("cut.safetensors"), t, n, NULL, 0), KRON_OK);
        assert_int_equal(kron_model_open(&model, &params), KRON_ERR_FORMAT);
        const char *name = strstr(gone[k], "encoder.layers"); /* CLIP-L is named without prefix */
        if (strstr(kron_error_detail(), name != NULL ? name : gone[k]) == NULL ||
            strstr(kron_error_detail(), "cut.safetensors") == NULL)
            fail_msg("'%s' does not name %s", kron_error_detail(), gone[k]);
    }
    mem_free(t);
    st_close(&f);
}

static void no_memory_is_an_error(void **state)
{
    kron_model_params p = {.model = SHIPPED, .backend = "ref"};
    int failures = 0;

    (void)state;
    for (long n = 1;; n += 1 + n / 10) {
        kron_model *model = NULL;
        mem_fail_after(n);
        kron_status status = kron_model_open(&model, &p);
        mem_fail_after(0);
        kron_model_close(&model);
        if (status == KRON_OK)
            break;
        assert_int_equal(status, KRON_ERR_MEMORY);
        failures++;
    }
    assert_true(failures > 10);
}

/* --- the reference models, where they are at hand --- */

static void reference_models(void **state)
{
    static const struct {
        const char *name;
        kron_arch arch;
        kron_prediction prediction;
        int n_te;
    } cases[] = {{"tiny_sd15", KRON_ARCH_SD1, KRON_PREDICTION_EPS, 1},
                 {"tiny_sd2", KRON_ARCH_SD2, KRON_PREDICTION_V, 1},
                 {"tiny_sdxl", KRON_ARCH_SDXL, KRON_PREDICTION_EPS, 2}};
    int seen = 0;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct store *s;
        struct sd_model m;
        char path[4096];

        snprintf(path, sizeof path, "%s/reference/%s.safetensors", KRON_SHARED_DIR, cases[i].name);
        if (!path_is_file(path))
            continue;
        assert_int_equal(store_create(&s), KRON_OK);
        assert_int_equal(store_add_file(s, "", path), KRON_OK);
        assert_int_equal(model_load(&m, s), KRON_OK);
        assert_int_equal(m.arch, cases[i].arch);
        assert_int_equal(m.prediction, cases[i].prediction);
        assert_int_equal(m.n_te, cases[i].n_te);
        assert_int_equal(m.unet.pooled_width > 0, m.arch == KRON_ARCH_SDXL);
        model_free(&m);
        seen++;
    }
    if (seen == 0) {
        print_message("no reference models in %s: case skipped\n", KRON_SHARED_DIR);
        skip();
    }
    assert_int_equal(seen, sizeof cases / sizeof *cases);
}

int main(void)
{
#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_shipped_model),
        cmocka_unit_test(its_networks),
        cmocka_unit_test(names_of_fused_projections),
        IN_DIR(other_checkpoints_are_named),
        IN_DIR(files_that_are_not_there),
        IN_DIR(a_separate_vae_replaces),
        IN_DIR(metadata_says_what_is_predicted),
        IN_DIR(every_weight_of_another_shape_is_found),
        IN_DIR(a_missing_tensor_is_named),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(reference_models),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
