/* SPDX-License-Identifier: MIT
 * --profile: operations summed up by part and kind, held against what the device reaches at best;
 * --profile-trace: each of them as an event in the format of Chrome's trace viewer. */
#include "cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Operations that do the same work: all of it but the layer's name. */
struct key {
    const char *part, *kind, *type, *compute, *route; /* static strings: the pointer tells them apart */
    int64_t in[4], out[4], other;
    int window[2];
};

struct group {
    struct key key;
    int64_t calls;
    double seconds, flops, bytes;
};

struct profile {
    struct group *groups;
    int n, cap;
    bool failed; /* no memory */
    char *path, *temporary; /* of the trace; NULL: none */
    FILE *trace;
    double origin; /* start of the first event */
    int64_t n_events;
    const char *parts[8]; /* of the trace, by the order in which they came */
    int n_parts;
};

/* --- the trace --- */

static int lane_of(struct profile *p, const char *part)
{
    int i = 0;
    while (i < p->n_parts && p->parts[i] != part)
        i++;
    if (i == p->n_parts && i < (int)(sizeof p->parts / sizeof *p->parts)) {
        p->parts[p->n_parts++] = part;
        fprintf(p->trace, "%s\n{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": 1, \"tid\": %d, "
                "\"args\": {\"name\": \"%s\"}}", p->n_events++ > 0 ? "," : "", i + 1, part);
    }
    return i + 1;
}

static void print_shape(FILE *f, const char *name, const int64_t s[4])
{
    fprintf(f, "\"%s\": [%lld, %lld, %lld, %lld], ", name, (long long)s[0], (long long)s[1],
            (long long)s[2], (long long)s[3]);
}

/* All strings are words of the library's own: none needs escaping. */
static void trace_event(struct profile *p, const kron_operation *op)
{
    int lane = lane_of(p, op->part);
    if (p->origin <= 0)
        p->origin = op->start;
    fprintf(p->trace, "%s\n{\"ph\": \"X\", \"name\": \"%s\", \"cat\": \"%s\", \"pid\": 1, "
            "\"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"args\": {", p->n_events++ > 0 ? "," : "", op->kind,
            op->part, lane, (op->start - p->origin) * 1e6, op->seconds * 1e6);
    if (op->layer[0] != '\0')
        fprintf(p->trace, "\"layer\": \"%s\", \"type\": \"%s\", ", op->layer, op->type);
    if (op->compute[0] != '\0')
        fprintf(p->trace, "\"compute\": \"%s\", ", op->compute);
    if (op->route[0] != '\0')
        fprintf(p->trace, "\"route\": \"%s\", ", op->route);
    print_shape(p->trace, "in", op->in);
    print_shape(p->trace, "out", op->out);
    if (op->window[0] > 0)
        fprintf(p->trace, "\"window\": [%d, %d], ", op->window[0], op->window[1]);
    if (op->other > 0)
        fprintf(p->trace, "\"context\": %lld, ", (long long)op->other);
    fprintf(p->trace, "\"flops\": %.0f, \"weight_bytes\": %.0f, \"value_bytes\": %.0f}}", op->flops,
            op->weight_bytes, op->value_bytes);
}

static bool trace_open(struct profile *p, const char *path)
{
    size_t len = strlen(path);
    p->path = malloc(len + 1);
    p->temporary = malloc(len + 6);
    if (p->path == NULL || p->temporary == NULL)
        return complain("out of memory");
    memcpy(p->path, path, len + 1);
    snprintf(p->temporary, len + 6, "%s.part", path);
    p->trace = fopen(p->temporary, "w");
    if (p->trace == NULL)
        return complain("%s: cannot be written: %s", p->temporary, strerror(errno));
    fputs("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [", p->trace);
    return true;
}

/* The file gets its name when it is whole. */
static bool trace_close(struct profile *p)
{
    if (p->trace == NULL)
        return true;
    fputs("\n]}\n", p->trace);
    bool good = ferror(p->trace) == 0;
    good = fclose(p->trace) == 0 && good;
    p->trace = NULL;
    if (good && rename(p->temporary, p->path) == 0)
        return true;
    complain("%s: cannot be written: %s", p->path, strerror(errno));
    remove(p->temporary);
    return false;
}

/* --- sums --- */

static struct key key_of(const kron_operation *op)
{
    struct key k;
    memset(&k, 0, sizeof k); /* compared byte by byte */
    k.part = op->part;
    k.kind = op->kind;
    k.type = op->type;
    k.compute = op->compute;
    k.route = op->route;
    memcpy(k.in, op->in, sizeof k.in);
    memcpy(k.out, op->out, sizeof k.out);
    k.other = op->other;
    memcpy(k.window, op->window, sizeof k.window);
    return k;
}

static struct group *group_of(struct profile *p, const kron_operation *op)
{
    struct key key = key_of(op);
    for (int i = 0; i < p->n; i++)
        if (memcmp(&p->groups[i].key, &key, sizeof key) == 0)
            return &p->groups[i];
    if (p->n == p->cap) {
        int cap = p->cap > 0 ? 2 * p->cap : 64;
        struct group *more = realloc(p->groups, (size_t)cap * sizeof *more);
        if (more == NULL)
            return NULL;
        p->groups = more;
        p->cap = cap;
    }
    struct group *g = &p->groups[p->n++];
    *g = (struct group){.calls = 0};
    g->key = key;
    return g;
}

static void on_operation(const kron_operation *op, void *user)
{
    struct profile *p = user;
    struct group *g = group_of(p, op);
    if (g == NULL)
        p->failed = true;
    else {
        g->calls++;
        g->seconds += op->seconds;
        g->flops += op->flops;
        g->bytes += op->weight_bytes + op->value_bytes;
    }
    if (p->trace != NULL)
        trace_event(p, op);
}

/* --- the table --- */

/* One line of it, and what the roofline allows for its work at the best, in seconds. */
struct line {
    const char *part, *kind;
    int64_t calls;
    double seconds, flops, bytes, least;
};

static double least_seconds(const struct group *g, const kron_peak *peak)
{
    if (peak->flops <= 0 || peak->bytes <= 0)
        return 0;
    double product = g->flops / peak->flops, memory = g->bytes / peak->bytes;
    return product > memory ? product : memory; /* of one operation, times calls: all are alike */
}

static void add(struct line *l, const struct group *g, const kron_peak *peak)
{
    l->calls += g->calls;
    l->seconds += g->seconds;
    l->flops += g->flops;
    l->bytes += g->bytes;
    l->least += least_seconds(g, peak);
}

static void print_rates(const struct line *l, double all)
{
    char peak[32] = "-";
    double s = l->seconds > 0 ? l->seconds : 1e-12;
    if (l->least > 0)
        snprintf(peak, sizeof peak, "%.0f %%", 100 * l->least / s);
    printf("%8lld %9.3f %6.1f %% %9.1f %8.1f %7s", (long long)l->calls, l->seconds,
           all > 0 ? 100 * l->seconds / all : 0, 1e-9 * l->flops / s, 1e-9 * l->bytes / s, peak);
}

static void print_line(const struct line *l, double all)
{
    printf("%-15s %-11s", l->part, l->kind);
    print_rates(l, all);
    putchar('\n');
}

static int by_seconds(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : 0;
}

static int by_group_seconds(const void *a, const void *b)
{
    const struct group *x = a, *y = b;
    return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : 0;
}

enum { MOST_KINDS = 64, SHOWN_GROUPS = 12 };

/* The kinds of one part, those that took longest first, and their sum. */
static struct line print_part(const struct profile *p, const char *part, const kron_peak *peak,
                              double all)
{
    struct line kinds[MOST_KINDS], sum = {.part = part, .kind = "all"};
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        const struct group *g = &p->groups[i];
        int k = 0;
        if (g->key.part != part)
            continue;
        while (k < n && kinds[k].kind != g->key.kind)
            k++;
        if (k == MOST_KINDS)
            continue;
        if (k == n)
            kinds[n++] = (struct line){.part = part, .kind = g->key.kind};
        add(&kinds[k], g, peak);
        add(&sum, g, peak);
    }
    qsort(kinds, (size_t)n, sizeof *kinds, by_seconds);
    for (int i = 0; i < n; i++)
        print_line(&kinds[i], all);
    print_line(&sum, all);
    return sum;
}

static void print_group(const struct group *g, const kron_peak *peak, double all)
{
    const struct key *k = &g->key;
    struct line l = {.calls = 0};
    add(&l, g, peak);
    print_rates(&l, all);
    printf("  %s %s", k->part, k->kind);
    if (k->window[0] > 0)
        printf(" %dx%d", k->window[0], k->window[1]);
    printf(" [%lld, %lld, %lld, %lld]", (long long)k->in[0], (long long)k->in[1],
           (long long)k->in[2], (long long)k->in[3]);
    if (k->other > 0)
        printf(" on %lld tokens", (long long)k->other);
    printf(" -> [%lld, %lld, %lld, %lld]", (long long)k->out[0], (long long)k->out[1],
           (long long)k->out[2], (long long)k->out[3]);
    printf("%s%s%s%s%s%s\n", k->type[0] != '\0' ? " " : "", k->type,
           k->compute[0] != '\0' ? " in " : "", k->compute, k->route[0] != '\0' ? ", " : "",
           k->route);
}

static double seconds_of_all(const struct profile *p, int64_t *calls)
{
    double all = 0;
    *calls = 0;
    for (int i = 0; i < p->n; i++) {
        all += p->groups[i].seconds;
        *calls += p->groups[i].calls;
    }
    return all;
}

static bool seen_before(const struct profile *p, int i)
{
    for (int k = 0; k < i; k++)
        if (p->groups[k].key.part == p->groups[i].key.part)
            return true;
    return false;
}

static void print_table(struct profile *p, const kron_peak *peak, double job_seconds)
{
    int64_t calls;
    double all = seconds_of_all(p, &calls);
    printf("profile: %.3f s, %.3f s of it in %lld operations\n", job_seconds, all,
           (long long)calls);
    if (peak->flops > 0)
        printf("peak of the device, all its threads, now: %.1f GFLOP/s (f32 product of 1024^3), "
               "%.1f GB/s (copy)\n", 1e-9 * peak->flops, 1e-9 * peak->bytes);
    printf("%-15s %-11s%8s %9s %8s %9s %8s %7s\n", "part", "kind", "calls", "seconds", "share",
           "GFLOP/s", "GB/s", "of peak");
    struct line sum = {.part = "all", .kind = "all"};
    for (int i = 0; i < p->n; i++) {
        if (seen_before(p, i))
            continue;
        struct line part = print_part(p, p->groups[i].key.part, peak, all);
        sum.calls += part.calls;
        sum.seconds += part.seconds;
        sum.flops += part.flops;
        sum.bytes += part.bytes;
        sum.least += part.least;
    }
    print_line(&sum, all);
    printf("longest, by shape:\n");
    qsort(p->groups, (size_t)p->n, sizeof *p->groups, by_group_seconds);
    for (int i = 0; i < p->n && i < SHOWN_GROUPS; i++)
        print_group(&p->groups[i], peak, all);
}

/* --- what draw.c calls --- */

bool profile_start(struct profile **out, kron_session *session, const struct options *o)
{
    *out = NULL;
    if (!o->profile && o->profile_trace == NULL)
        return true;
    struct profile *p = calloc(1, sizeof *p);
    if (p == NULL)
        return complain("out of memory");
    *out = p;
    if (o->profile_trace != NULL && !trace_open(p, o->profile_trace))
        return false;
    kron_status status = kron_session_set_profile(session, on_operation, p);
    if (status != KRON_OK)
        complain_status(status);
    return status == KRON_OK;
}

bool profile_finish(struct profile *p, kron_model *model, const struct options *o,
                    double job_seconds)
{
    if (p == NULL)
        return true;
    bool good = trace_close(p);
    if (p->failed)
        return complain("out of memory: the profile is not whole");
    if (!o->profile)
        return good;
    kron_peak peak = {0, 0};
    kron_status status = kron_model_measure_peak(model, &peak);
    if (status != KRON_OK && status != KRON_ERR_UNSUPPORTED)
        complain_status(status);
    print_table(p, &peak, job_seconds);
    return good && (status == KRON_OK || status == KRON_ERR_UNSUPPORTED);
}

void profile_free(struct profile **p)
{
    if (*p == NULL)
        return;
    if ((*p)->trace != NULL) {
        fclose((*p)->trace);
        remove((*p)->temporary);
    }
    free((*p)->groups);
    free((*p)->path);
    free((*p)->temporary);
    free(*p);
    *p = NULL;
}
