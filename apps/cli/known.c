/* SPDX-License-Identifier: MIT
 * Options of stable-diffusion.cpp that Kron does not have, so that they get a clear answer; and
 * the search for what a mistyped option was meant to be. */
#include "cli.h"
#include <stdio.h>
#include <string.h>

#define MISSING(name) {name, NULL, 1, NULL}
#define MISSING_FLAG(name) {name, NULL, 0, NULL}

static const char mapped[] = "weights are always used from the mapped file";
static const char attention[] = "attention never stores its scores";
static const char direct[] = "convolutions never unfold their input";
static const char on_cpu[] = "everything runs on the CPU";
static const char no_input[] = "models of this version have no such input";

static const struct known table[] = {
    /* only speed, memory, or inputs of other models */
    {"--mmap", NULL, 0, mapped},
    {"--eager-load", NULL, 0, mapped},
    {"--offload-to-cpu", NULL, 0, on_cpu},
    {"--clip-on-cpu", NULL, 0, on_cpu},
    {"--vae-on-cpu", NULL, 0, on_cpu},
    {"--control-net-cpu", NULL, 0, on_cpu},
    {"--stream-layers", NULL, 0, mapped},
    {"--auto-fit", NULL, 0, "memory is planned to fit anyway; --max-vram limits it"},
    {"--fa", NULL, 0, attention},
    {"--diffusion-fa", NULL, 0, attention},
    {"--diffusion-conv-direct", NULL, 0, direct},
    {"--vae-conv-direct", NULL, 0, direct},
    {"--force-sdxl-vae-conv-scale", NULL, 0, "the VAE computes in 32 bits and cannot overflow"},
    {"--guidance", NULL, 1, no_input},
    {"--flow-shift", NULL, 1, no_input},
    /* models and parts */
    MISSING("--high-noise-diffusion-model"), MISSING("--uncond-diffusion-model"),
    MISSING("--clip_vision"), MISSING("--t5xxl"), MISSING("--llm"), MISSING("--llm_vision"),
    MISSING("--qwen2vl"), MISSING("--qwen2vl_vision"), MISSING("--embeddings-connectors"),
    MISSING("--vae-format"), MISSING("--audio-vae"), MISSING("--taesd"), MISSING("--tae"),
    MISSING("--control-net"), MISSING("--ip-adapter"), MISSING("--motion-module"),
    MISSING("--photo-maker"), MISSING("--pulid-weights"), MISSING("--upscale-model"),
    MISSING("--hires-upscalers-dir"),
    MISSING("--model-args"),
    /* devices */
    MISSING("--params-backend"), MISSING("--split-mode"), MISSING("--rpc-servers"),
    MISSING_FLAG("--list-devices"),
    /* pictures and prompts */
    MISSING("--end-img"), MISSING("--control-image"), MISSING("--control-video"),
    MISSING("--ip-adapter-image"), MISSING("--pm-id-images-dir"), MISSING("--pm-id-embed-path"),
    MISSING("--pulid-id-embedding"), {"--ref-image", "-r", 1, NULL}, MISSING("--ref-video"),
    MISSING("--ref-video-audio"), MISSING("--ref-audio"), MISSING("--ref-image-args"),
    MISSING_FLAG("--increase-ref-index"), MISSING_FLAG("--disable-auto-resize-ref-image"),
    MISSING("--ad-model"), MISSING("--ad-prompt"), MISSING("--ad-negative-prompt"),
    MISSING("--extra-ad-args"), MISSING_FLAG("--canny"),
    /* size and number */
    MISSING("--video-frames"), MISSING("--fps"), MISSING("--qwen-image-layers"),
    MISSING("--upscale-repeats"), MISSING("--upscale-tile-size"),
    /* sampling and guidance */
    MISSING("--high-noise-steps"), MISSING("--timestep-shift"), MISSING("--extra-sample-args"),
    MISSING("--img-cfg-scale"), MISSING("--slg-scale"), MISSING("--skip-layers"),
    MISSING("--skip-layer-start"), MISSING("--skip-layer-end"), MISSING("--high-noise-cfg-scale"),
    MISSING("--high-noise-img-cfg-scale"), MISSING("--high-noise-guidance"),
    MISSING("--high-noise-slg-scale"), MISSING("--high-noise-skip-layers"),
    MISSING("--high-noise-skip-layer-start"), MISSING("--high-noise-skip-layer-end"),
    MISSING("--high-noise-eta"), MISSING("--high-noise-sampling-method"),
    MISSING("--moe-boundary"), MISSING("--vace-strength"), MISSING("--control-strength"),
    MISSING("--ip-adapter-strength"), MISSING("--pm-style-strength"), MISSING("--pulid-id-weight"),
    MISSING("--cache-mode"), MISSING("--cache-option"), MISSING("--cache-preset"),
    MISSING("--scm-mask"), MISSING("--scm-policy"), MISSING("--chroma-t5-mask-pad"),
    MISSING_FLAG("--chroma-disable-dit-mask"), MISSING_FLAG("--chroma-enable-t5-mask"),
    /* high-resolution fix */
    MISSING_FLAG("--hires"), MISSING("--hires-width"), MISSING("--hires-height"),
    MISSING("--hires-steps"), MISSING("--hires-upscaler"), MISSING("--hires-scale"),
    MISSING("--hires-denoising-strength"), MISSING("--hires-upscale-tile-size"),
    MISSING("--hires-sigmas"),
    /* VAE */
    MISSING_FLAG("--temporal-tiling"), MISSING("--extra-tiling-args"), MISSING_FLAG("--circular"), MISSING_FLAG("--circularx"),
    MISSING_FLAG("--circulary"),
    /* output and conversion */
    MISSING_FLAG("--taesd-preview-only"), MISSING_FLAG("--preview-noisy"),
    MISSING_FLAG("--convert-name"),
    /* of the server */
    {"--listen-ip", "-l", 1, NULL}, MISSING("--listen-port"), MISSING("--serve-html-path"),
};

enum { N_KNOWN = sizeof table / sizeof *table, MAX_NAME = 48 };

const struct known *known_find(const char *name)
{
    for (int i = 0; i < N_KNOWN; i++)
        if (strcmp(table[i].name, name) == 0 ||
            (table[i].alt != NULL && strcmp(table[i].alt, name) == 0))
            return &table[i];
    return NULL;
}

/* Insertions, deletions and exchanges that turn one name into the other. */
static int distance(const char *a, const char *b)
{
    int row[MAX_NAME + 1];
    int na = (int)strlen(a), nb = (int)strlen(b);
    if (na > MAX_NAME || nb > MAX_NAME)
        return MAX_NAME;
    for (int j = 0; j <= nb; j++)
        row[j] = j;
    for (int i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
        }
    }
    return row[nb];
}

struct search {
    const char *name, *best;
    int distance;
};

static bool look_at(const char *name, void *user)
{
    struct search *s = user;
    int d = strlen(name) > 2 ? distance(s->name, name) : MAX_NAME;
    if (d < s->distance) {
        s->distance = d;
        s->best = name;
    }
    return false;
}

const char *known_nearest(const char *name)
{
    /* A third of the letters may differ, at most three. */
    int limit = (int)strlen(name) / 3;
    struct search s = {name, NULL, (limit > 3 ? 3 : limit) + 1};
    options_find(look_at, &s);
    for (int i = 0; i < N_KNOWN; i++)
        look_at(table[i].name, &s);
    return s.best;
}
