/* SPDX-License-Identifier: MIT
 * Drawing: a model, a session, a job, and files written as pictures come. */
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE 1 /* getentropy */
#include "cli.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_asked;

/* The handler is taken off when it runs (SA_RESETHAND): a second Ctrl-C ends the program. */
static void on_interrupt(int signal_number)
{
    static const char text[] = "\nstopping after this step; Ctrl-C again ends at once\n";
    (void)signal_number;
    stop_asked = 1;
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    (void)written;
}

void catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool interrupted(void)
{
    return stop_asked != 0;
}

struct run {
    const struct options *o;
    struct output out;
    kron_model *model;
    kron_session *session;
    kron_job job;
    kron_image init, mask;
    kron_image *images;
    struct profile *profile;
    char *model_name;
    int n_saved;
    bool save_failed, preview_failed;
    double started;           /* of the picture being drawn */
    double sampling_seconds;  /* of the picture being drawn, and its steps */
    int sampling_steps;
};

/* --- files --- */

static bool save_next(struct run *r)
{
    int i = r->n_saved;
    char *name = output_name(&r->out, i);
    char *text = r->o->no_metadata
                     ? NULL
                     : kron_job_parameters(r->session, &r->job, i, r->model_name);
    double now = seconds_now();
    kron_status status = KRON_ERR_MEMORY;
    if (name != NULL)
        status = kron_image_save(&r->images[i], name, text, 0);
    if (name == NULL)
        complain("out of memory");
    else if (status != KRON_OK)
        complain_status(status);
    else {
        report_clear();
        printf("%s: %d x %d, seed %lld, %.2f s", name, r->images[i].width, r->images[i].height,
               (long long)(r->job.seed + i), now - r->started);
        if (r->sampling_steps > 0)
            printf(", %.3f s/step", r->sampling_seconds / r->sampling_steps);
        printf("\n");
        fflush(stdout);
    }
    free(name);
    kron_string_free(text);
    kron_image_free(&r->images[i]);
    r->n_saved++;
    r->started = now;
    r->sampling_seconds = 0;
    r->sampling_steps = 0;
    return status == KRON_OK;
}

static void save_preview(struct run *r, const kron_image *preview)
{
    if (preview == NULL || r->o->preview == PREVIEW_NONE || r->preview_failed)
        return;
    kron_status status = kron_image_save(preview, r->o->preview_path, NULL, 0);
    if (status != KRON_OK) {
        complain_status(status);
        note("no more previews are written");
        r->preview_failed = true;
    }
}

static int on_progress(const kron_progress *p, void *user)
{
    struct run *r = user;
    while (!r->save_failed && r->n_saved < p->image && r->images[r->n_saved].pixels != NULL)
        r->save_failed = !save_next(r);
    if (strcmp(p->phase, "sampling") == 0 && p->step > r->sampling_steps) {
        r->sampling_seconds += p->step_seconds;
        r->sampling_steps = p->step;
    }
    report_progress(p);
    save_preview(r, p->preview);
    return stop_asked || r->save_failed;
}

/* --- setting up --- */

/* Without folder and ending, as the metadata wants it. */
static char *name_of_model(const char *path)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    size_t start = len;
    while (start > 0 && path[start - 1] != '/')
        start--;
    static const char *const endings[] = {".safetensors", ".gguf", ".ckpt"};
    size_t n = len - start;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t cut = strlen(endings[i]);
        if (n > cut && memcmp(path + len - cut, endings[i], cut) == 0) {
            n -= cut;
            break;
        }
    }
    char *name = malloc(n + 1);
    if (name != NULL) {
        memcpy(name, path + start, n);
        name[n] = '\0';
    }
    return name;
}

static int64_t random_seed(void)
{
    uint32_t seed;
    if (getentropy(&seed, sizeof seed) != 0)
        seed = (uint32_t)(seconds_now() * 1e6);
    return seed; /* 32 bits: what other programs can read back */
}

/* Side of a tile in latent pixels: from 1 on `relative` is how many tiles overlap to a picture of
 * so many pixels. */
static int tile_side(const struct options *o, double relative, int tile, int pixels)
{
    double whole = pixels / 8.0;
    if (relative <= 0)
        return tile;
    double side = relative < 1 ? relative * whole
                               : ceil(whole / (1 + (relative - 1) * (1 - o->vae_overlap)));
    return side < 8 ? 8 : (int)side;
}

static void fill_job(struct run *r)
{
    const struct options *o = r->o;
    kron_job *job = &r->job;
    *job = kron_job_default();
    job->prompt = o->prompt;
    job->negative_prompt = o->negative;
    job->lora_dir = o->lora_dir;
    job->embd_dir = o->embd_dir;
    job->width = o->width;
    job->height = o->height;
    job->batch_count = o->batch;
    job->seed = o->seed >= 0 ? o->seed : random_seed();
    job->steps = o->sigmas != NULL ? o->n_sigmas - 1 : o->steps;
    job->cfg_scale = (float)o->cfg;
    job->sampler = o->sampler;
    job->schedule = o->schedule;
    job->sigmas = o->sigmas;
    job->n_sigmas = o->n_sigmas;
    job->eta = (float)o->eta;
    job->rng = (kron_rng)o->rng;
    job->sampler_rng = (kron_rng)(o->sampler_rng >= 0 ? o->sampler_rng : o->rng);
    job->clip_skip = o->clip_skip;
    job->init_image = r->init.pixels != NULL ? &r->init : NULL;
    job->mask = r->mask.pixels != NULL ? &r->mask : NULL;
    job->strength = (float)o->strength;
    job->vae_tiling = o->vae_tiling;
    job->vae_tile_width = tile_side(o, o->vae_relative_w, o->vae_tile_w, job->width);
    job->vae_tile_height = tile_side(o, o->vae_relative_h, o->vae_tile_h, job->height);
    job->vae_tile_overlap = (float)o->vae_overlap;
    job->preview_interval = o->preview != PREVIEW_NONE ? o->preview_interval : 0;
    job->preview_vae = o->preview == PREVIEW_VAE;
    job->progress = on_progress;
    job->progress_user = r;
}

static kron_status open_model(struct run *r)
{
    static const char *const backends[] = {"cpu", "ref"};
    const struct options *o = r->o;
    kron_model_params files = {
        .model = o->model, .diffusion_model = o->diffusion_model, .clip_l = o->clip_l,
        .clip_g = o->clip_g, .vae = o->vae,
        .backend = o->backend >= 0 ? backends[o->backend] : NULL,
        .n_threads = o->threads > 0 ? o->threads : 0,
        .prediction = (kron_prediction)(o->prediction + 1),
        .type = (kron_type)(o->type + 1), .type_rules = o->type_rules, .importance = o->imat_in,
        .quant_cache = o->quant_cache, .collect_importance = o->imat_out != NULL,
    };
    kron_session_params how = {
        .apply = (kron_apply)o->apply, .compute = (kron_compute)o->compute, .strict = o->strict,
        .max_memory = o->max_memory,
        .block_presets = o->lbw_presets,
    };
    kron_status status = kron_model_open(&r->model, &files);
    if (status == KRON_OK)
        status = kron_session_create(&r->session, r->model, &how);
    for (int i = 0; i < o->loras.n && status == KRON_OK; i++)
        status = kron_session_add_adapter_text(r->session, o->loras.at[i]);
    return status;
}

static void show_details(const struct run *r)
{
    const double mb = 1e6; /* as the library's messages */
    const char *report = kron_session_adapter_report(r->session);
    if (report != NULL && report[0] != '\0')
        fprintf(stderr, "%s%s", report, report[strlen(report) - 1] == '\n' ? "" : "\n");
    kron_model_info info = kron_model_get_info(r->model);
    note("numbers: text encoder %.1f M, unet %.1f M, vae %.1f M; weights %.1f MB",
         (double)info.text_parameters / 1e6, (double)info.unet_parameters / 1e6,
         (double)info.vae_parameters / 1e6, (double)info.weight_bytes / mb);
    kron_buffers b = kron_session_buffers(r->session);
    note("compute buffers: text encoder %.1f MB, unet %.1f MB, vae %.1f MB",
         (double)b.text_encoder / mb, (double)b.unet / mb, (double)b.vae / mb);
    note("kept for the prompt: %.1f MB, with the unet's buffer %.1f MB",
         (double)b.unet_kept / mb, (double)(b.unet + b.unet_kept) / mb);
}

static bool save_importance(const struct run *r)
{
    kron_status status = r->o->imat_out != NULL
                             ? kron_model_save_importance(r->model, r->o->imat_out)
                             : KRON_OK;
    if (status != KRON_OK)
        complain_status(status);
    return status == KRON_OK;
}

static int draw(struct run *r)
{
    kron_status status = open_model(r);
    if (status != KRON_OK) {
        complain_status(status);
        return EXIT_FAILED;
    }
    if (!profile_start(&r->profile, r->session, r->o))
        return EXIT_FAILED;
    fill_job(r);
    if (r->o->seed < 0)
        note("seed: %lld", (long long)r->job.seed);
    double start = r->started = seconds_now();
    status = stop_asked ? KRON_ERR_CANCELLED : kron_generate(r->session, &r->job, r->images);
    double seconds = seconds_now() - start;
    report_clear();
    /* Before anything is called that replaces the sentence of the failure. */
    if (status != KRON_OK && status != KRON_ERR_CANCELLED)
        complain_status(status);
    while (!r->save_failed && r->n_saved < r->o->batch && r->images[r->n_saved].pixels != NULL)
        r->save_failed = !save_next(r);
    if (r->o->verbose)
        show_details(r);
    bool profiled = profile_finish(r->profile, r->model, r->o, seconds);
    if (r->save_failed || !profiled || !save_importance(r))
        return EXIT_FAILED;
    if (status == KRON_ERR_CANCELLED) {
        note("stopped: %d of %d pictures drawn", r->n_saved, r->o->batch);
        return EXIT_INTERRUPTED;
    }
    return status == KRON_OK ? EXIT_OK : EXIT_FAILED;
}

int run_draw(struct options *o)
{
    struct run r = {.o = o};
    int result = EXIT_USAGE;
    if (check_options(o)) {
        result = EXIT_FAILED;
        if (output_init(&r.out, o) && load_pictures(o, &r.init, &r.mask)) {
            r.images = calloc((size_t)o->batch, sizeof *r.images);
            r.model_name = name_of_model(o->model != NULL ? o->model : o->diffusion_model);
            if (r.images == NULL || r.model_name == NULL)
                complain("out of memory");
            else {
                catch_interrupt();
                result = draw(&r);
            }
        }
    }
    for (int i = 0; r.images != NULL && i < o->batch; i++)
        kron_image_free(&r.images[i]);
    free(r.images);
    free(r.model_name);
    kron_image_free(&r.init);
    kron_image_free(&r.mask);
    output_free(&r.out);
    kron_session_free(&r.session);
    profile_free(&r.profile);
    kron_model_close(&r.model);
    return result;
}
