/* SPDX-License-Identifier: MIT
 * kron/model.h: arguments are checked here, the work is done in pipeline/. */
#include "convert/convert.h"
#include "pipeline/session.h"

kron_status kron_model_open(kron_model **out, const kron_model_params *params)
{
    void *p;

    if (out == NULL || params == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_open: expected a model and its files");
    *out = NULL;
    if (params->n_threads < 0 || params->n_threads > 1024)
        return err_set(KRON_ERR_ARGUMENT, "%d threads: expected 0 (all cores) to 1024",
                       params->n_threads);
    if (params->prediction < KRON_PREDICTION_DETECT || params->prediction > KRON_PREDICTION_V)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_open: prediction %d is none of "
                       "kron_prediction", (int)params->prediction);
    if (params->type < KRON_TYPE_KEEP || params->type > KRON_TYPE_TQ2_0)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_open: type %d is none of kron_type",
                       (int)params->type);
    KRON_TRY(mem_alloc(&p, sizeof **out, "a model"));
    kron_model *m = p;
    kron_status status = engine_open(&m->engine, params);
    if (status != KRON_OK) {
        mem_free(m);
        return status;
    }
    *out = m;
    return KRON_OK;
}

kron_status kron_type_rules_check(const char *rules)
{
    struct type_rules r;
    kron_status status = type_rules_parse(&r, rules);

    type_rules_free(&r);
    return status;
}

kron_status kron_model_save_importance(const kron_model *m, const char *path)
{
    if (m == NULL || path == NULL || m->engine.importance == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_save_importance: expected a model that "
                       "collects importance, and a path");
    return engine_save_importance((struct engine *)(uintptr_t)&m->engine, path);
}

void kron_model_close(kron_model **m)
{
    if (m == NULL || *m == NULL)
        return;
    engine_close(&(*m)->engine);
    mem_free(*m);
    *m = NULL;
}

kron_model_info kron_model_get_info(const kron_model *m)
{
    const struct sd_model *model = &m->engine.model;
    kron_model_info info = {.arch = model->arch, .arch_name = arch_name(model->arch),
                            .prediction = m->engine.prediction,
                            .backend = m->engine.device->name};

    for (int i = 0; i < model->layers.n; i++) {
        const struct layer *l = model->layers.at[i];
        int64_t n = tensor_elements(&l->weight) + (l->bias.data ? l->out : 0);
        info.weight_bytes += (int64_t)(l->weight.bytes + l->bias.bytes);
        if (l->part == PART_UNET)
            info.unet_parameters += n;
        else if (l->part == PART_VAE)
            info.vae_parameters += n;
        else
            info.text_parameters += n;
    }
    return info;
}

kron_status kron_model_measure_peak(kron_model *m, kron_peak *out)
{
    struct be_peak peak;

    if (m == NULL || out == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_measure_peak: expected a model and room");
    kron_status status = be_measure_peak(m->engine.device, &peak);
    *out = (kron_peak){peak.flops, peak.bytes};
    return status;
}

kron_status kron_adapter_open(kron_adapter **out, const char *path)
{
    if (out == NULL || path == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_adapter_open: expected an adapter and a path");
    return adapter_open_counted(out, path);
}

void kron_adapter_close(kron_adapter **a)
{
    if (a != NULL)
        adapter_unref(a);
}

const char *kron_adapter_path(const kron_adapter *a)
{
    return adapter_path(a->file);
}

kron_status kron_model_open_adapter(kron_model *m, kron_adapter **out, const char *path)
{
    if (m == NULL || out == NULL || path == NULL)
        return err_set(KRON_ERR_ARGUMENT, "kron_model_open_adapter: expected a model, an adapter "
                       "and a path");
    return cache_open(m->engine.adapters, path, out);
}

void kron_model_set_adapter_cache(kron_model *m, size_t bytes)
{
    cache_set_budget(m->engine.adapters, bytes);
}

kron_adapter_cache kron_model_get_adapter_cache(const kron_model *m)
{
    return cache_stats(m->engine.adapters);
}
