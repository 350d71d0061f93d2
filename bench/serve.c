/* SPDX-License-Identifier: MIT
 * One turn for each line read, so that compare.py can let programs take turns. Calls of the UNet
 * are the steps of one long job, whose progress call waits for the next line: nothing is planned
 * or encoded between two of them. Texts and pictures are a job each. */
#include "bench.h"
#include <stdio.h>
#include <string.h>

const char *turn_name(enum bench_turn t)
{
    static const char *const names[TURN_COUNT] = {"unet", "guided", "text", "vae"};
    return names[t];
}

struct server {
    enum bench_turn turn;
    struct bench_session b;
    kron_job job;
    double began;      /* before the model was opened */
    double start;      /* from then until the first step starts, seconds */
    double first_step; /* planning of the UNet included */
    double since;      /* start of what is timed */
    double seconds;    /* of the turn taken last */
};

static void greet(const struct server *s)
{
    kron_buffers b = kron_session_buffers(s->b.session);
    printf("ready {\"name\": \"Kron %s\", \"start_s\": %.4f, \"first_step_s\": %.4f, "
           "\"open_s\": %.4f, \"adapters_s\": %.4f, \"text_buffer_mb\": %.2f, "
           "\"unet_buffer_mb\": %.2f, \"unet_kept_mb\": %.2f, \"vae_buffer_mb\": %.2f}\n",
           kron_version(), s->start,
           s->first_step, s->b.open, s->b.adapters, (double)b.text_encoder / 1e6,
           (double)b.unet / 1e6, (double)b.unet_kept / 1e6, (double)b.vae / 1e6);
    fflush(stdout);
}

static bool next_line(void)
{
    char line[64];
    return fgets(line, sizeof line, stdin) != NULL;
}

/* --- calls of the UNet: the job ends with the input --- */

static int on_step(const kron_progress *p, void *user)
{
    struct server *s = user;
    double now = seconds_now();
    if (strcmp(p->phase, "sampling") != 0)
        return 0;
    if (p->step == 0) {
        s->start = now - s->began;
    } else if (p->step == 1) {
        s->first_step = now - s->since;
        greet(s);
    } else {
        printf("%.6f\n", now - s->since);
        fflush(stdout);
    }
    bool stop = p->step > 0 && !next_line();
    s->since = seconds_now();
    return stop;
}

static bool serve_steps(struct server *s)
{
    kron_image image = {0};
    s->job.steps = 999;
    s->job.cfg_scale = s->turn == TURN_GUIDED ? 7 : 1;
    kron_status status = kron_generate(s->b.session, &s->job, &image);
    kron_image_free(&image);
    return status == KRON_OK || status == KRON_ERR_CANCELLED || complain_status("serve", status);
}

/* --- texts and pictures --- */

static int on_phase(const kron_progress *p, void *user)
{
    struct server *s = user;
    double now = seconds_now();
    bool text = s->turn == TURN_TEXT, sampling = strcmp(p->phase, "sampling") == 0;
    if (sampling && p->step == 0) {
        s->start = s->start > 0 ? s->start : now - s->began;
        s->seconds = now - s->since; /* decoding replaces it */
    }
    if (!sampling)
        s->since = now;
    return text && sampling;
}

/* Each prompt is another, lest one that is kept be used again. */
static bool one_job(struct server *s, int number)
{
    char prompt[96];
    kron_image image = {0};
    snprintf(prompt, sizeof prompt, "a photograph of an astronaut riding horse number %d", number);
    s->job.prompt = prompt;
    kron_status status = kron_generate(s->b.session, &s->job, &image);
    if (s->turn == TURN_VAE)
        s->seconds = seconds_now() - s->since;
    kron_image_free(&image);
    return status == KRON_OK || status == KRON_ERR_CANCELLED || complain_status("serve", status);
}

static bool serve_jobs(struct server *s)
{
    int number = 0;
    s->job.steps = 1;
    if (!one_job(s, number++))
        return false;
    greet(s);
    while (next_line()) {
        if (!one_job(s, number++))
            return false;
        printf("%.6f\n", s->seconds);
        fflush(stdout);
    }
    return true;
}

bool serve(const struct setup *setup, enum bench_turn turn, enum bench_arch arch, int width,
           int height, const struct bench_case *what)
{
    struct server s = {.turn = turn, .job = bench_job(width, height), .began = seconds_now()};
    bool steps = turn == TURN_UNET || turn == TURN_GUIDED;
    bool ok = bench_open(&s.b, setup, turn == TURN_VAE ? BENCH_SD15 : arch) &&
              bench_session(&s.b, setup, arch, what);
    s.job.progress = steps ? on_step : on_phase;
    s.job.progress_user = &s;
    if (ok)
        ok = steps ? serve_steps(&s) : serve_jobs(&s);
    bench_close(&s.b);
    return ok;
}
