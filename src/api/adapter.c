/* SPDX-License-Identifier: MIT
 * kron/adapter.h: arguments are checked here, the work is done in adapter/ and convert/. */
#include "convert/convert.h"
#include "pipeline/checkpoint.h"
#include "pipeline/session.h"

/* A model's layers by all their names in adapters. {0} is closed. */
struct layers {
    struct sd_model model;
    struct adapter_names *names;
};

static kron_status layers_open(struct layers *l, const kron_model_params *p)
{
    *l = (struct layers){.names = NULL};
    KRON_TRY(model_open(&l->model, p));
    kron_status status = adapter_names_create(&l->names, &l->model.layers);
    if (status != KRON_OK)
        model_free(&l->model);
    return status;
}

static void layers_close(struct layers *l)
{
    adapter_names_free(&l->names);
    model_free(&l->model);
}

static const char *name_of(const kron_model_params *p)
{
    return p->model != NULL ? p->model : p->diffusion_model != NULL ? p->diffusion_model : "";
}

kron_status kron_adapter_info(char **out, const char *path, const kron_model_params *model,
                              int json)
{
    struct layers layers = {.names = NULL};
    struct adapter_file *f;
    struct str text = {0};

    if (out == NULL || path == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_info: expected a text and a path");
    *out = NULL;
    KRON_TRY(adapter_open(&f, path));
    kron_status status = model != NULL ? layers_open(&layers, model) : KRON_OK;
    if (status == KRON_OK)
        status = adapter_info(f, layers.names, model != NULL ? name_of(model) : "", json != 0,
                              &text);
    if (status == KRON_OK)
        *out = text.s;
    else
        str_free(&text);
    if (layers.names != NULL)
        layers_close(&layers);
    adapter_close(&f);
    return status;
}

/* --- opened inputs --- */

struct inputs {
    struct adapter_file **files;
    struct adapter_use *uses;
    int n;
};

static void inputs_close(struct inputs *in)
{
    for (int i = 0; i < in->n; i++)
        adapter_close(&in->files[i]);
    mem_free(in->files);
    mem_free(in->uses);
}

static kron_status inputs_open(struct inputs *in, const kron_adapter_source *sources, int n)
{
    *in = (struct inputs){.n = 0};
    kron_status status =
        mem_alloc_n((void **)&in->files, (size_t)n, sizeof *in->files, "adapters");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&in->uses, (size_t)n, sizeof *in->uses, "adapters");
    for (int i = 0; i < n && status == KRON_OK; i++) {
        status = sources[i].path != NULL
                     ? adapter_open(&in->files[i], sources[i].path)
                     : err_set(KRON_ERR_ARGUMENT, "adapter %d has no path", i);
        if (status != KRON_OK)
            break;
        in->uses[i] = (struct adapter_use){in->files[i], sources[i].te_strength,
                                           sources[i].unet_strength};
        in->n++;
    }
    if (status != KRON_OK)
        inputs_close(in);
    return status;
}

static bool is_type(kron_type t)
{
    return t >= KRON_TYPE_KEEP && t <= KRON_TYPE_F8_E5M2;
}

/* A text for the caller, who may not want it. */
static kron_status give(kron_status status, struct str *text, char **out)
{
    if (status == KRON_OK && out != NULL) {
        *out = text->s;
        return KRON_OK;
    }
    str_free(text);
    return status;
}

/* --- adapter_convert --- */

static kron_status check_convert(const kron_adapter_convert_params *p)
{
    if (p == NULL || p->inputs == NULL || p->n_inputs < 1 || p->n_inputs > 1000 ||
        p->output == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_convert: expected 1 to 1000 inputs and an "
                       "output");
    if (!is_type(p->type) || p->naming < KRON_NAMING_KEEP || p->naming > KRON_NAMING_COMFY ||
        p->form < KRON_FORM_KEEP || p->form > KRON_FORM_FULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_convert: type %d, naming %d or form %d is "
                       "none of its list", (int)p->type, (int)p->naming, (int)p->form);
    if (p->rank < 0 || p->factor < 0 || !(p->energy >= 0 && p->energy <= 1))
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_convert: rank %d, factor %d or energy %g "
                       "is out of range", p->rank, p->factor, p->energy);
    if (p->naming != KRON_NAMING_KEEP && p->model == NULL)
        return err_set(KRON_ERR_ARGUMENT, "other names need the model whose layers they name");
    return KRON_OK;
}

static kron_status convert_inputs(const kron_adapter_convert_params *p, const struct inputs *in,
                                  struct str *report)
{
    struct layers layers = {.names = NULL};
    struct own_layers own = {.names = NULL};
    kron_status status = p->model != NULL ? layers_open(&layers, p->model)
                                          : own_layers_create(&own, in->files, in->n);

    if (status != KRON_OK)
        return status;
    struct convert_job job = {p, in->uses, p->model != NULL ? layers.names : own.names};
    status = convert_adapter(&job, report);
    if (p->model != NULL)
        layers_close(&layers);
    else
        own_layers_free(&own);
    return status;
}

kron_status kron_adapter_convert(const kron_adapter_convert_params *params, char **report)
{
    struct inputs in;
    struct str text = {0};

    if (report != NULL)
        *report = NULL;
    KRON_TRY(check_convert(params));
    KRON_TRY(inputs_open(&in, params->inputs, params->n_inputs));
    kron_status status = convert_inputs(params, &in, &text);
    inputs_close(&in);
    return give(status, &text, report);
}

/* --- convert --- */

static kron_model_params files_of(const kron_convert_params *p)
{
    kron_model_params files = {.model = p->model, .diffusion_model = p->diffusion_model,
                               .clip_l = p->clip_l, .clip_g = p->clip_g, .vae = p->vae};
    return files;
}

static bool is_one_file(const kron_convert_params *p)
{
    return !path_is_dir(p->model) && p->diffusion_model == NULL && p->clip_l == NULL &&
           p->clip_g == NULL && p->vae == NULL;
}

static kron_status bake_inputs(const kron_convert_params *p, const struct inputs *in,
                               struct str *report)
{
    kron_model_params files = files_of(p);
    struct checkpoint c = {.n = 0};
    struct layers layers;
    struct adapter_set *set = NULL;
    bool one = is_one_file(p);

    KRON_TRY(layers_open(&layers, &files));
    kron_status status = adapter_bind(&set, in->uses, in->n, layers.names, p->strict != 0);
    if (status == KRON_OK)
        status = one ? checkpoint_of_file(&c, &layers.model)
                     : checkpoint_of_layers(&c, &layers.model);
    if (status == KRON_OK) {
        struct bake_job job = {p, one ? store_file(layers.model.store, "") : NULL,
                               &layers.model.layers, set, in->uses, c.at, c.n, c.meta, c.n_meta};
        status = bake(&job, report);
    }
    checkpoint_free(&c);
    adapter_set_free(&set);
    layers_close(&layers);
    return status;
}

static kron_status check_bake(const kron_convert_params *p)
{
    if (p == NULL || p->model == NULL || p->output == NULL || p->n_adapters < 0 ||
        p->n_adapters > 1000 || (p->n_adapters > 0 && p->adapters == NULL) ||
        p->type < KRON_TYPE_KEEP || p->type > KRON_TYPE_TQ2_0)
        return err_set(KRON_ERR_ARGUMENT, "kron_convert: expected a model, an output, 0 to 1000 "
                       "adapters and a type");
    if (!str_ends(p->output, ".safetensors") && !str_ends(p->output, ".gguf"))
        return err_set(KRON_ERR_ARGUMENT, "%s: expected the name of a .safetensors or .gguf file",
                       p->output);
    return KRON_OK;
}

kron_status kron_convert(const kron_convert_params *params, char **report)
{
    struct inputs in;
    struct str text = {0};

    if (report != NULL)
        *report = NULL;
    KRON_TRY(check_bake(params));
    KRON_TRY(inputs_open(&in, params->adapters, params->n_adapters));
    kron_status status = bake_inputs(params, &in, &text);
    inputs_close(&in);
    return give(status, &text, report);
}
