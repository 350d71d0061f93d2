/* SPDX-License-Identifier: MIT
 * Copyright the Kron authors
 *
 * kron/kron.h - Kron, a Stable Diffusion engine with run-time adapters.
 *
 *     kron_model *model = NULL;
 *     kron_session *session = NULL;
 *     kron_image picture = {0};
 *     kron_model_params files = {.model = "emoji-sd.safetensors"};
 *     kron_job job = kron_job_default();
 *     job.prompt = "a cat face <lora:lokr-neon:1>";
 *     job.lora_dir = "models";
 *     if (kron_model_open(&model, &files) || kron_session_create(&session, model, NULL) ||
 *         kron_generate(session, &job, &picture) ||
 *         kron_image_save(&picture, "cat.png", NULL, 0))
 *         fprintf(stderr, "%s\n", kron_error_detail());
 *     kron_image_free(&picture);
 *     kron_session_free(&session);
 *     kron_model_close(&model);
 */
#ifndef KRON_KRON_H
#define KRON_KRON_H
#include <kron/adapter.h>
#include <kron/image.h>
#include <kron/log.h>
#include <kron/model.h>
#include <kron/profile.h>
#include <kron/session.h>
#include <kron/status.h>
#endif
