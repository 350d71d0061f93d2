/* SPDX-License-Identifier: MIT
 * Runs jobs and times their parts by the progress calls: with guidance off, one Euler step is one
 * call of the UNet, and a job that is cancelled after its last step decodes nothing. */
#define _DEFAULT_SOURCE /* getloadavg */
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- memory of this process --- */

static int64_t status_bytes(const char *key)
{
    char line[256];
    long long kilobytes = 0;
    FILE *f = fopen("/proc/self/status", "r");
    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, key, strlen(key)) == 0)
            sscanf(line + strlen(key), ": %lld", &kilobytes);
    fclose(f);
    return kilobytes * 1024;
}

/* Makes the kernel count the peak anew. */
static void forget_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f == NULL)
        return;
    fputs("5", f);
    fclose(f);
}

static double load_average(void)
{
    double load = 0;
    return getloadavg(&load, 1) == 1 ? load : 0;
}

/* --- times --- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct samples {
    double at[MAX_REPEATS];
    int n;
};

static void put(struct samples *s, double seconds)
{
    if (s->n < MAX_REPEATS)
        s->at[s->n++] = seconds;
}

static struct timing timing_of(struct samples *s)
{
    struct timing t = {0, 0, s->n};
    if (s->n == 0)
        return t;
    qsort(s->at, (size_t)s->n, sizeof *s->at, compare);
    t.least = s->at[0];
    t.median = (s->at[(s->n - 1) / 2] + s->at[s->n / 2]) / 2;
    return t;
}

/* --- one job --- */

struct watch {
    bool decode; /* else the job ends after its last step */
    int steps;
    double since, text, sampling_at, decode_seconds;
    struct samples step;
    int64_t anonymous; /* most seen */
};

static int on_progress(const kron_progress *p, void *user)
{
    struct watch *w = user;
    double now = seconds_now();
    int64_t anonymous = status_bytes("RssAnon");
    w->anonymous = anonymous > w->anonymous ? anonymous : w->anonymous;
    if (strcmp(p->phase, "sampling") == 0 && p->step == 0) {
        w->text = now - w->since;
        w->sampling_at = now;
    } else if (strcmp(p->phase, "sampling") == 0) {
        put(&w->step, p->step_seconds);
    }
    w->since = now;
    return p->step == w->steps && strcmp(p->phase, "sampling") == 0 && !w->decode;
}

kron_job bench_job(int width, int height)
{
    kron_job job = kron_job_default();
    job.prompt = "a photograph of an astronaut riding a horse";
    job.width = width;
    job.height = height;
    job.sampler = "euler";
    job.seed = 1;
    job.cfg_scale = 1;
    return job;
}

static bool run_job(kron_session *s, const struct result *r, struct watch *w, int steps,
                    float guidance, bool decode)
{
    kron_job job = bench_job(r->width, r->height);
    kron_image image = {0};
    memset(w, 0, sizeof *w);
    w->steps = job.steps = steps;
    w->decode = decode;
    w->since = seconds_now();
    job.cfg_scale = guidance;
    job.progress = on_progress;
    job.progress_user = w;
    kron_status status = kron_generate(s, &job, &image);
    w->decode_seconds = seconds_now() - w->since;
    kron_image_free(&image);
    if (status != KRON_OK && status != KRON_ERR_CANCELLED)
        return complain_status(r->what.name, status);
    return true;
}

/* --- opening --- */

static bool open_adapters(const struct setup *setup, enum bench_arch arch,
                          const struct bench_case *what, kron_adapter_use uses[MAX_ADAPTERS])
{
    for (int i = 0; i < what->n_adapters; i++) {
        char *path;
        if (!bench_file(&path, setup->cache, arch, what->kinds[i]))
            return false;
        kron_status status = kron_adapter_open(&uses[i].adapter, path);
        uses[i].unet_strength = uses[i].te_strength = 0.5f;
        if (status != KRON_OK)
            complain_status("adapter", status);
        free(path);
        if (status != KRON_OK)
            return false;
    }
    return true;
}

static bool set_adapters(struct bench_session *b, const struct setup *setup, enum bench_arch arch,
                         const struct bench_case *what)
{
    kron_adapter_use uses[MAX_ADAPTERS] = {{0}};
    bool ok = open_adapters(setup, arch, what, uses);
    if (ok && what->n_adapters > 0) {
        kron_status status = kron_session_set_adapters(b->session, uses, (size_t)what->n_adapters);
        ok = status == KRON_OK || complain_status(what->name, status);
    }
    for (int i = 0; i < what->n_adapters; i++)
        kron_adapter_close(&uses[i].adapter);
    return ok;
}

bool bench_open(struct bench_session *b, const struct setup *setup, enum bench_arch arch)
{
    char *made = NULL;
    kron_model_params params = {.model = setup->model, .n_threads = setup->threads};
    memset(b, 0, sizeof *b);
    if (setup->model == NULL && !bench_file(&made, setup->cache, arch, setup->kind))
        return false;
    if (params.model == NULL)
        params.model = made;
    double start = seconds_now();
    kron_status status = kron_model_open(&b->model, &params);
    b->open = seconds_now() - start;
    if (status != KRON_OK)
        complain_status("model", status);
    free(made);
    return status == KRON_OK;
}

bool bench_session(struct bench_session *b, const struct setup *setup, enum bench_arch arch,
                   const struct bench_case *what)
{
    kron_session_params params = {.apply = what->apply, .compute = setup->compute};
    double start = seconds_now();
    kron_status status = kron_session_create(&b->session, b->model, &params);
    if (status != KRON_OK)
        return complain_status("session", status);
    if (!set_adapters(b, setup, arch, what))
        return false;
    b->adapters = seconds_now() - start;
    return true;
}

void bench_close(struct bench_session *b)
{
    kron_session_free(&b->session);
    kron_model_close(&b->model);
}

/* --- one case --- */

static void keep_peak(struct result *r, const struct watch *w)
{
    int64_t peak = status_bytes("VmHWM");
    r->peak = peak > r->peak ? peak : r->peak;
    r->peak_anonymous = w->anonymous > r->peak_anonymous ? w->anonymous : r->peak_anonymous;
}

static bool first_job(struct bench_session *b, const struct setup *setup, struct result *r,
                      double began)
{
    struct watch w;
    if (!run_job(b->session, r, &w, 1, 1, !setup->quick))
        return false;
    r->open = b->open;
    r->adapters = b->adapters;
    r->first_text = w.text;
    r->start = w.sampling_at - began;
    r->first_step = w.step.n > 0 ? w.step.at[0] : 0;
    r->decode = setup->quick ? 0 : w.decode_seconds;
    r->buffers = kron_session_buffers(b->session);
    keep_peak(r, &w);
    return true;
}

/* The first step plans and is left out. */
static bool guided_job(struct bench_session *b, const struct setup *setup, struct result *r)
{
    struct watch w;
    struct samples later = {{0}, 0};
    if (!run_job(b->session, r, &w, 1 + (setup->repeat + 1) / 2, 7, false))
        return false;
    for (int i = 1; i < w.step.n; i++)
        put(&later, w.step.at[i]);
    r->guided = timing_of(&later);
    r->guided_unet = kron_session_buffers(b->session).unet;
    r->guided_kept = kron_session_buffers(b->session).unet_kept;
    keep_peak(r, &w);
    return true;
}

static bool timed_call(kron_session *s, const struct result *r, struct samples *call,
                       struct samples *text)
{
    struct watch w;
    if (!run_job(s, r, &w, 1, 1, false))
        return false;
    for (int i = 0; i < w.step.n; i++)
        put(call, w.step.at[i]);
    put(text, w.text);
    return true;
}

/* Calls with and without adapters take turns, so that a disturbance meets both. */
static bool timed_calls(struct bench_session *b, kron_session *plain, const struct setup *setup,
                        struct result *r)
{
    struct samples call = {{0}, 0}, plain_call = {{0}, 0}, text = {{0}, 0}, other = {{0}, 0};
    struct watch w;
    if (plain != NULL && !run_job(plain, r, &w, 1, 1, false))
        return false;
    for (int i = 0; i < setup->repeat; i++) {
        if (plain != NULL && !timed_call(plain, r, &plain_call, &other))
            return false;
        if (!timed_call(b->session, r, &call, &text))
            return false;
    }
    r->call = timing_of(&call);
    r->plain_call = plain != NULL ? timing_of(&plain_call) : r->call;
    r->text = timing_of(&text).median;
    r->load = load_average();
    return true;
}

static bool measure_on(struct bench_session *b, const struct setup *setup, struct result *r,
                       double began)
{
    kron_session *plain = NULL;
    if (!bench_session(b, setup, r->arch, &r->what) || !first_job(b, setup, r, began))
        return false;
    if (!setup->quick && !guided_job(b, setup, r))
        return false;
    if (r->what.n_adapters > 0) {
        const kron_session_params params = {.compute = setup->compute};
        kron_status status = kron_session_create(&plain, b->model, &params);
        if (status != KRON_OK)
            return complain_status("session", status);
    }
    bool ok = timed_calls(b, plain, setup, r);
    kron_session_free(&plain);
    return ok;
}

/* Files are made beforehand: that must not count as opening. */
static bool make_files(const struct setup *setup, const struct result *r)
{
    char *path;
    for (int i = setup->model != NULL ? 0 : -1; i < r->what.n_adapters; i++) {
        if (!bench_file(&path, setup->cache, r->arch, i < 0 ? setup->kind : r->what.kinds[i]))
            return false;
        free(path);
    }
    return true;
}

bool measure(const struct setup *setup, struct result *r)
{
    struct bench_session b;
    if (!make_files(setup, r))
        return false;
    forget_peak();
    double began = seconds_now();
    bool ok = bench_open(&b, setup, r->arch) && measure_on(&b, setup, r, began);
    bench_close(&b);
    return ok;
}
