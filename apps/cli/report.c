/* SPDX-License-Identifier: MIT
 * What the user sees on stderr: complaints, the library's messages, progress. Results go to stdout
 * and are printed where they come about. */
#define _POSIX_C_SOURCE 200809L
#include "cli.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool verbose, color, bar_shown;

static void say(const char *head, const char *fmt, va_list args)
{
    char line[2048];
    vsnprintf(line, sizeof line, fmt, args);
    flockfile(stderr);
    report_clear();
    fprintf(stderr, "%s%s\n", head, line);
    funlockfile(stderr);
}

bool complain(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say("sd-cli: ", fmt, args);
    va_end(args);
    return false;
}

void note(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say("", fmt, args);
    va_end(args);
}

void complain_status(kron_status status)
{
    const char *detail = kron_error_detail();
    complain("%s", detail[0] != '\0' ? detail : kron_status_text(status));
}

static void on_log(kron_log_level level, const char *line, void *user)
{
    static const char *const names[] = {"debug: ", "", "warning: "};
    static const char *const colors[] = {"\033[36m", "", "\033[33m"};
    (void)user;
    if (level == KRON_LOG_DEBUG && !verbose)
        return;
    flockfile(stderr);
    report_clear();
    fprintf(stderr, "%s%s%s%s\n", color ? colors[level] : "", names[level],
            color && names[level][0] != '\0' ? "\033[0m" : "", line);
    funlockfile(stderr);
}

void report_start(bool be_verbose, bool use_color)
{
    verbose = be_verbose;
    color = use_color;
    kron_log_set(on_log, NULL);
}

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void report_clear(void)
{
    if (bar_shown)
        fputs("\r\033[K", stderr);
    bar_shown = false;
}

/* --- progress --- */

/* Time of a step: the mean of those seen, without the very first, which also plans. */
static double mean_step(const kron_progress *p)
{
    static double sum, first;
    static int n;
    if (p->step < 1)
        return 0;
    if (first <= 0)
        first = p->step_seconds;
    else {
        sum += p->step_seconds;
        n++;
    }
    return n > 0 ? sum / n : first;
}

static void print_bar(const kron_progress *p, double step)
{
    char bar[31], count[32] = "";
    int full = p->n_steps > 0 ? (int)((int64_t)30 * p->step / p->n_steps) : 0;
    double left = step * ((double)(p->n_steps - p->step) +
                          (double)(p->n_images - p->image - 1) * p->n_steps);
    int minutes = (int)(left / 60);
    memset(bar, '-', 30);
    memset(bar, '#', (size_t)full);
    bar[30] = '\0';
    if (p->n_images > 1)
        snprintf(count, sizeof count, "picture %d/%d ", p->image + 1, p->n_images);
    fprintf(stderr, "\r%s[%s] %d/%d", count, bar, p->step, p->n_steps);
    if (p->step > 0)
        fprintf(stderr, "  %.2f s/step  %d:%02d left", step, minutes, (int)left - 60 * minutes);
    fputs("\033[K", stderr);
}

static void print_phase(const kron_progress *p)
{
    static int image = -1;
    static char phase[32];
    if (p->image == image && strcmp(phase, p->phase) == 0)
        return;
    image = p->image;
    snprintf(phase, sizeof phase, "%s", p->phase);
    fprintf(stderr, "picture %d/%d: %s", p->image + 1, p->n_images, phase);
    if (strcmp(phase, "sampling") == 0)
        fprintf(stderr, ", %d steps", p->n_steps);
    fputc('\n', stderr);
}

void report_progress(const kron_progress *p)
{
    bool sampling = strcmp(p->phase, "sampling") == 0;
    double step = sampling ? mean_step(p) : 0;
    flockfile(stderr);
    if (!isatty(STDERR_FILENO)) {
        print_phase(p);
    } else if (sampling) {
        print_bar(p, step);
        bar_shown = true;
    } else {
        fprintf(stderr, "\r%s\033[K", p->phase);
        bar_shown = true;
    }
    fflush(stderr);
    funlockfile(stderr);
}

void report_bytes(uint64_t done, uint64_t all)
{
    char bar[31];
    size_t full = all > 0 ? (size_t)(30 * done / all) : 30;
    if (!isatty(STDERR_FILENO)) {
        if (done == 0)
            note("writing %.1f MB", (double)all / 1e6);
        return;
    }
    memset(bar, '-', 30);
    memset(bar, '#', full);
    bar[30] = '\0';
    flockfile(stderr);
    fprintf(stderr, "\r[%s] %.1f of %.1f MB\033[K", bar, (double)done / 1e6, (double)all / 1e6);
    bar_shown = true;
    fflush(stderr);
    funlockfile(stderr);
}
