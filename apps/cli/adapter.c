/* SPDX-License-Identifier: MIT
 * The modes about adapter files: adapter_info, adapter_convert, convert. */
#include "cli.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kron_model_params model_files(const struct options *o)
{
    kron_model_params p = {.model = o->model, .diffusion_model = o->diffusion_model,
                           .clip_l = o->clip_l, .clip_g = o->clip_g, .vae = o->vae};
    return p;
}

static bool has_model(const struct options *o)
{
    return o->model != NULL || o->diffusion_model != NULL;
}

int run_adapter_info(struct options *o)
{
    kron_model_params files = model_files(o);
    if (o->files.n != 1) {
        complain("--mode adapter_info needs one adapter file, and has %d", o->files.n);
        return EXIT_USAGE;
    }
    char *text;
    kron_status status =
        kron_adapter_info(&text, o->files.at[0], has_model(o) ? &files : NULL, o->json);
    if (status != KRON_OK) {
        complain_status(status);
        return EXIT_FAILED;
    }
    fputs(text, stdout);
    kron_string_free(text);
    return EXIT_OK;
}

/* --- FILE[:S] and FILE:TEXT_S:UNET_S --- */

/* Takes ":number" off the end of a path. */
static bool take_strength(char *path, float *out)
{
    char *colon = strrchr(path, ':'), *end;
    if (colon == NULL || colon == path || colon[1] == '\0' ||
        strspn(colon + 1, "+-.0123456789eE") != strlen(colon + 1))
        return false;
    double v = strtod(colon + 1, &end);
    if (*end != '\0' || !(v > -1e6 && v < 1e6))
        return false;
    *out = (float)v;
    *colon = '\0';
    return true;
}

struct sources {
    kron_adapter_source *at;
    char **paths;
    int n;
};

static void sources_free(struct sources *s)
{
    for (int i = 0; i < s->n; i++)
        free(s->paths[i]);
    free(s->at);
    free(s->paths);
}

static bool sources_init(struct sources *s, const struct word_list *words)
{
    *s = (struct sources){.at = calloc((size_t)words->n + 1, sizeof *s->at),
                          .paths = calloc((size_t)words->n + 1, sizeof *s->paths)};
    bool good = s->at != NULL && s->paths != NULL;
    for (int i = 0; i < words->n && good; i++) {
        size_t size = strlen(words->at[i]) + 1;
        char *path = malloc(size);
        good = path != NULL;
        if (!good)
            break;
        memcpy(path, words->at[i], size);
        s->paths[s->n] = path;
        kron_adapter_source *x = &s->at[s->n++];
        *x = (kron_adapter_source){.path = path, .te_strength = 1, .unet_strength = 1};
        if (take_strength(path, &x->unet_strength)) {
            x->te_strength = x->unet_strength;
            take_strength(path, &x->te_strength); /* two numbers: text first */
        }
    }
    if (!good) {
        sources_free(s);
        return complain("out of memory");
    }
    return true;
}

static bool ends_in(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n > m && strcmp(path + n - m, ending) == 0;
}

static bool check_output(const struct options *o, bool gguf)
{
    if (!ends_in(o->output, ".safetensors") && !(gguf && ends_in(o->output, ".gguf")))
        return complain("--output %s: expected the name of a .safetensors%s file", o->output,
                        gguf ? " or .gguf" : "");
    return check_folder_of(o->output);
}

/* Prints what was done, or why not. */
static int finish(kron_status status, char *report, const char *output)
{
    if (status != KRON_OK) {
        complain_status(status);
        return EXIT_FAILED;
    }
    fputs(report, stdout);
    printf("%s\n", output);
    kron_string_free(report);
    return EXIT_OK;
}

int run_adapter_convert(struct options *o)
{
    kron_model_params files = model_files(o);
    struct sources in;
    char *report = NULL;
    if (o->inputs.n < 1) {
        complain("--mode adapter_convert needs --input FILE");
        return EXIT_USAGE;
    }
    if (o->naming > 0 && !has_model(o)) {
        complain("--naming needs the model whose layers are named: -m FILE");
        return EXIT_USAGE;
    }
    if (o->type + 1 >= KRON_TYPE_Q4_0) {
        complain("--mode adapter_convert: factors are f32, f16, bf16, f8_e4m3 or f8_e5m2");
        return EXIT_USAGE;
    }
    if (!check_output(o, false) || !sources_init(&in, &o->inputs))
        return EXIT_USAGE;
    kron_adapter_convert_params p = {
        .inputs = in.at, .n_inputs = in.n, .output = o->output,
        .model = has_model(o) ? &files : NULL, .naming = (kron_naming)o->naming,
        .form = (kron_form)o->form, .type = (kron_type)(o->type + 1), .rank = o->rank,
        .energy = o->energy, .factor = o->factor,
    };
    kron_status status = kron_adapter_convert(&p, &report);
    sources_free(&in);
    return finish(status, report, o->output);
}

static int on_bytes(uint64_t done, uint64_t all, void *user)
{
    (void)user;
    report_bytes(done, all);
    return interrupted();
}

int run_convert(struct options *o)
{
    struct sources loras;
    char *report = NULL;
    if (o->model == NULL) {
        complain("a model is missing: -m FILE");
        return EXIT_USAGE;
    }
    if (!check_type_rules(o) || !check_output(o, true) || !sources_init(&loras, &o->loras))
        return EXIT_USAGE;
    kron_convert_params p = {.model = o->model, .output = o->output, .adapters = loras.at,
                             .n_adapters = loras.n, .type = (kron_type)(o->type + 1),
                             .strict = o->strict, .type_rules = o->type_rules,
                             .importance = o->imat_in, .diffusion_model = o->diffusion_model,
                             .clip_l = o->clip_l, .clip_g = o->clip_g, .vae = o->vae,
                             .progress = on_bytes};
    catch_interrupt();
    kron_status status = kron_convert(&p, &report);
    report_clear();
    sources_free(&loras);
    if (status == KRON_ERR_CANCELLED) {
        note("stopped: %s is as it was", o->output);
        return EXIT_INTERRUPTED;
    }
    return finish(status, report, o->output);
}
