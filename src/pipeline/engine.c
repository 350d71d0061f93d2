/* SPDX-License-Identifier: MIT
 * Opening a model: files, device, tables that all its sessions share. */
#include "convert/convert.h"
#include "pipeline/session.h"
#include <string.h>

static kron_status add_part(struct store *s, const char *tag, const char *path)
{
    return path != NULL && path[0] != '\0' ? store_add_file(s, tag, path) : KRON_OK;
}

/* A CLIP-G file is SDXL's second encoder where there is a CLIP-L beside it, else SD2's only one. */
static kron_status add_files(struct store *s, const kron_model_params *p)
{
    bool any = p->model != NULL && p->model[0] != '\0';

    if (!any && p->diffusion_model == NULL)
        return err_set(KRON_ERR_ARGUMENT, "no model file given");
    if (any && path_is_dir(p->model))
        KRON_TRY(store_add_folder(s, p->model));
    else if (any)
        KRON_TRY(store_add_file(s, "", p->model));
    KRON_TRY(add_part(s, "unet", p->diffusion_model));
    KRON_TRY(add_part(s, "text_encoder", p->clip_l));
    KRON_TRY(add_part(s, any || p->clip_l ? "text_encoder_2" : "text_encoder", p->clip_g));
    return add_part(s, "vae", p->vae);
}

kron_status model_open(struct sd_model *m, const kron_model_params *p)
{
    struct store *store = NULL;

    KRON_TRY(store_create(&store));
    kron_status status = add_files(store, p);
    if (status != KRON_OK) {
        store_free(&store);
        return status;
    }
    status = model_load(m, store);
    if (status != KRON_OK)
        model_free(m);
    return status;
}

static void *make_tokenizer(void *out)
{
    tok_create(out);
    return NULL;
}

static kron_status open_model(struct engine *e, const kron_model_params *p)
{
    KRON_TRY(model_open(&e->model, p));
    KRON_TRY(be_open(p->backend, p->n_threads, &e->device));
    KRON_TRY(engine_quantise(e, p));
    return adapter_names_create(&e->names, &e->model.layers);
}

/* The tokenizer's tables take a third of the time, and wait for nothing. */
static kron_status open_beside_tokenizer(struct engine *e, const kron_model_params *p)
{
    pthread_t thread;
    bool started = pthread_create(&thread, NULL, make_tokenizer, &e->tokenizer) == 0;
    kron_status status = open_model(e, p);

    if (started)
        pthread_join(thread, NULL);
    if (status == KRON_OK && e->tokenizer == NULL) /* once more, for this thread's message */
        status = tok_create(&e->tokenizer);
    return status;
}

static kron_status open_all(struct engine *e, const kron_model_params *p)
{
    KRON_TRY(open_beside_tokenizer(e, p));
    KRON_TRY(cache_create(&e->adapters));
    e->prediction = p->prediction != KRON_PREDICTION_DETECT ? p->prediction : e->model.prediction;
    if (e->prediction == KRON_PREDICTION_DETECT)
        KRON_TRY(detect_prediction(e, &e->prediction));
    KRON_TRY(engine_collect(e, p));
    log_info("%s, %s prediction, %d layers, device %s (%d threads)", arch_name(e->model.arch),
             e->prediction == KRON_PREDICTION_V ? "v" : "eps", e->model.layers.n, e->device->name,
             e->device->caps.n_threads);
    return KRON_OK;
}

kron_status engine_open(struct engine *e, const kron_model_params *p)
{
    memset(e, 0, sizeof *e);
    pthread_mutex_init(&e->importance_lock, NULL);
    kron_status status = open_all(e, p);
    if (status != KRON_OK)
        engine_close(e);
    return status;
}

void engine_close(struct engine *e)
{
    cache_free(&e->adapters);
    adapter_names_free(&e->names);
    tok_free(&e->tokenizer);
    engine_quantise_end(e);
    be_close(&e->device);
    model_free(&e->model);
    importance_free(&e->importance);
    pthread_mutex_destroy(&e->importance_lock);
}
