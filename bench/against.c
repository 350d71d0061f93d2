/* SPDX-License-Identifier: MIT
 * The same cases on a second file of the same architecture: what a quantised checkpoint costs
 * against the one it was made of. Three sessions take turns, so that a disturbance meets all:
 * the model with the case's adapters, the model without, the second file with them. */
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum turn { WITH, WITHOUT, SECOND, N_TURNS };

struct contest {
    struct bench_session at[N_TURNS]; /* WITH and WITHOUT share a model, WITH's */
    double seconds[N_TURNS][MAX_REPEATS];
};

static int keep_seconds(const kron_progress *p, void *user)
{
    if (strcmp(p->phase, "sampling") != 0 || p->step == 0)
        return 0;
    *(double *)user = p->step_seconds;
    return 1; /* nothing is decoded */
}

static bool one_call(kron_session *s, int width, int height, double *seconds)
{
    kron_job job = bench_job(width, height);
    kron_image image = {0};
    job.steps = 1;
    job.progress = keep_seconds;
    job.progress_user = seconds;
    kron_status status = kron_generate(s, &job, &image);
    kron_image_free(&image);
    return status == KRON_ERR_CANCELLED || complain_status("call", status);
}

static bool open_all(struct contest *c, const struct setup *setup, const struct setup *second,
                     enum bench_arch arch, const struct bench_case *what)
{
    struct bench_case none = {.name = "none"};
    bool ok = bench_open(&c->at[WITH], setup, arch) &&
              bench_session(&c->at[WITH], setup, arch, what);
    if (!ok)
        return false;
    c->at[WITHOUT].model = c->at[WITH].model;
    return bench_session(&c->at[WITHOUT], setup, arch, &none) &&
           bench_open(&c->at[SECOND], second, arch) &&
           bench_session(&c->at[SECOND], second, arch, what);
}

/* The model after both of its sessions. */
static void close_all(struct contest *c)
{
    c->at[WITHOUT].model = NULL;
    bench_close(&c->at[WITHOUT]);
    bench_close(&c->at[WITH]);
    bench_close(&c->at[SECOND]);
}

/* The first round plans, and is left out. */
static bool take_turns(struct contest *c, int width, int height, int repeat)
{
    double planning;
    for (int i = -1; i < repeat; i++)
        for (int t = 0; t < N_TURNS; t++)
            if (!one_call(c->at[t].session, width, height, i < 0 ? &planning : &c->seconds[t][i]))
                return false;
    return true;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, compare);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

static void report(struct contest *c, const char *name, int width, int height, int repeat)
{
    char size[24];
    double with = median(c->seconds[WITH], repeat);
    double without = median(c->seconds[WITHOUT], repeat);
    double second = median(c->seconds[SECOND], repeat);
    snprintf(size, sizeof size, "%dx%d", width, height);
    printf("%-9s %-17s %8.3f %8.3f %8.3f  %8.3f %8.3f\n", size, name, without, with, second,
           second / without, second / with);
}

bool against(const struct setup *setup, const char *file, enum bench_arch arch, int width,
             int height, const struct bench_case *cases, int n_cases)
{
    struct setup second = *setup;
    bool ok = true;
    second.model = file;
    printf("%s: a UNet call without and with the adapters, of %s with them; seconds\n"
           "%-9s %-17s %8s %8s %8s  %8s %8s\n", bench_arch_name(arch), file, "size", "case",
           "without", "with", "second", "/without", "/with");
    for (int i = 0; i < n_cases && ok; i++) {
        struct contest c;
        memset(&c, 0, sizeof c);
        ok = open_all(&c, setup, &second, arch, &cases[i]) &&
             take_turns(&c, width, height, setup->repeat);
        if (ok)
            report(&c, cases[i].name, width, height, setup->repeat);
        close_all(&c);
    }
    return ok;
}
