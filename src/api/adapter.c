/* SPDX-License-Identifier: MIT
 * kron/adapter.h: arguments are checked here, the work is done in adapter/ and convert/. */
#include "pipeline/session.h"
#include <kron/adapter.h>

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
