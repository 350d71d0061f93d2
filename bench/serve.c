/* SPDX-License-Identifier: MIT
 * One UNet call for each line read, so that compare.py can let programs take turns. The job's
 * progress call waits for the next line: nothing is planned or encoded between two calls. */
#include "bench.h"
#include <stdio.h>
#include <string.h>

static double resumed_at;

static int on_progress(const kron_progress *p, void *user)
{
    char line[64];
    double seconds = seconds_now() - resumed_at;
    (void)user;
    if (strcmp(p->phase, "sampling") != 0)
        return 0;
    if (p->step == 1)
        printf("ready\n");
    else if (p->step > 1)
        printf("%.6f\n", seconds);
    fflush(stdout);
    bool stop = p->step > 0 && fgets(line, sizeof line, stdin) == NULL;
    resumed_at = seconds_now();
    return stop;
}

bool serve(const struct setup *setup, enum bench_arch arch, int width, int height,
           const struct bench_case *what)
{
    struct bench_session b;
    kron_image image = {0};
    kron_job job = bench_job(width, height);
    bool ok = bench_open(&b, setup, arch) && bench_session(&b, setup, arch, what);
    job.steps = 999;
    job.progress = on_progress;
    if (ok) {
        kron_status status = kron_generate(b.session, &job, &image);
        ok = status == KRON_OK || status == KRON_ERR_CANCELLED || complain_status("serve", status);
    }
    kron_image_free(&image);
    bench_close(&b);
    return ok;
}
