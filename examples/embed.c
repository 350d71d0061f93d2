/* SPDX-License-Identifier: MIT
 * The smallest program around libkron: draws a prompt, with an adapter or without.
 *     embed MODEL.safetensors "a cat face" out.png [ADAPTER.safetensors]
 *     cc embed.c $(pkg-config --cflags --libs kron) -o embed */
#include <kron/kron.h>
#include <stdio.h>

static int on_progress(const kron_progress *p, void *user)
{
    (void)user;
    fprintf(stderr, "\r%s %d/%d ", p->phase, p->step, p->n_steps);
    return 0; /* anything else stops the job */
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: embed MODEL PROMPT OUT.png [ADAPTER]\n");
        return 2;
    }
    kron_model *model = NULL;
    kron_session *session = NULL;
    kron_adapter *adapter = NULL;
    kron_image picture = {0};
    kron_model_params files = {.model = argv[1]};
    kron_job job = kron_job_default();
    job.prompt = argv[2];
    job.width = job.height = 256;
    job.progress = on_progress;

    kron_status status = kron_model_open(&model, &files);
    if (status == KRON_OK)
        status = kron_session_create(&session, model, NULL);
    if (status == KRON_OK && argc > 4)
        status = kron_adapter_open(&adapter, argv[4]);
    if (status == KRON_OK && adapter != NULL)
        status = kron_session_set_adapters(session, &(kron_adapter_use){adapter, 1, 1}, 1);
    if (status == KRON_OK)
        status = kron_generate(session, &job, &picture);
    if (status == KRON_OK)
        status = kron_image_save(&picture, argv[3], job.prompt, 0);
    if (status != KRON_OK)
        fprintf(stderr, "\nembed: %s\n", kron_error_detail());

    kron_image_free(&picture);
    kron_adapter_close(&adapter);
    kron_session_free(&session);
    kron_model_close(&model);
    return status == KRON_OK ? 0 : 1;
}
