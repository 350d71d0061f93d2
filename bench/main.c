/* SPDX-License-Identifier: MIT
 * kron-bench: options, and the list of what to measure. */
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_SIZES = 8, MAX_CASES = 32 };

struct options {
    struct setup setup;
    bool arch[2];
    int width[MAX_SIZES], height[MAX_SIZES], n_sizes;
    struct bench_case cases[MAX_CASES];
    int n_cases;
    const char *csv, *json, *against;
    enum bench_turn turn; /* of serve */
    bool serve, make, verbose;
};

bool complain(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("kron-bench: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    return false;
}

bool complain_status(const char *what, kron_status status)
{
    const char *detail = kron_error_detail();
    return complain("%s: %s", what, detail[0] != '\0' ? detail : kron_status_text(status));
}

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool verbose_log;

static void on_log(kron_log_level level, const char *line, void *user)
{
    (void)user;
    if (verbose_log || level == KRON_LOG_WARN)
        fprintf(stderr, "%s\n", line);
}

/* --- cases --- */

static const struct {
    const char *name;
    const char *kinds[MAX_ADAPTERS];
    int n;
} known[] = {
    {"none", {NULL}, 0},
    {"lokr", {"lokr"}, 1},
    {"lokr-split", {"lokr-split"}, 1},
    {"lora", {"lora"}, 1},
    {"six", {"lokr", "lokr-2", "lokr-split", "lokr-split-2", "lora", "lora-2"}, 6},
};

static const struct {
    const char *name;
    kron_apply apply;
} routes[] = {{"auto", KRON_APPLY_AUTO},
              {"immediately", KRON_APPLY_IMMEDIATELY},
              {"at_runtime", KRON_APPLY_AT_RUNTIME}};

static bool find_route(const char *name, kron_apply *out)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (strcmp(name, routes[i].name) == 0) {
            *out = routes[i].apply;
            return true;
        }
    return complain("'%s' is no route: expected auto, immediately or at_runtime", name);
}

static bool parse_case(struct bench_case *c, const char *text)
{
    const char *colon = strchr(text, ':');
    size_t length = colon != NULL ? (size_t)(colon - text) : strlen(text);
    memset(c, 0, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", text);
    if (colon != NULL && !find_route(colon + 1, &c->apply))
        return false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == length && strncmp(text, known[i].name, length) == 0) {
            c->n_adapters = known[i].n;
            memcpy(c->kinds, known[i].kinds, sizeof c->kinds);
            return true;
        }
    return complain("'%s' is no case: expected none, lokr, lokr-split, lora or six, and a route "
                    "after a colon", text);
}

/* --- options --- */

typedef bool item_fn(struct options *o, const char *item);

static bool each_item(struct options *o, char *list, item_fn *fn)
{
    char *rest = list, *item;
    while ((item = strtok_r(rest, ",", &rest)) != NULL)
        if (!fn(o, item))
            return false;
    return true;
}

static bool add_arch(struct options *o, const char *item)
{
    for (int a = BENCH_SD15; a <= BENCH_SDXL; a++)
        if (strcmp(item, bench_arch_name((enum bench_arch)a)) == 0)
            return o->arch[a] = true;
    return complain("'%s' is no architecture: expected sd15 or sdxl", item);
}

static bool add_size(struct options *o, const char *item)
{
    int w, h, end = 0;
    if (sscanf(item, "%dx%d%n", &w, &h, &end) < 2 || item[end] != '\0') {
        if (sscanf(item, "%d%n", &w, &end) != 1 || item[end] != '\0')
            return complain("'%s' is no size: expected 512 or 1024x1536", item);
        h = w;
    }
    if (o->n_sizes == MAX_SIZES)
        return complain("too many sizes: expected up to %d", MAX_SIZES);
    o->width[o->n_sizes] = w;
    o->height[o->n_sizes++] = h;
    return true;
}

static bool add_case(struct options *o, const char *item)
{
    if (o->n_cases == MAX_CASES)
        return complain("too many cases: expected up to %d", MAX_CASES);
    return parse_case(&o->cases[o->n_cases++], item);
}

static bool parse_compute(struct options *o, const char *text)
{
    bool f32 = strcmp(text, "f32") == 0;
    o->setup.compute = f32 ? KRON_COMPUTE_F32 : KRON_COMPUTE_INT8;
    return f32 || strcmp(text, "int8") == 0 ||
           complain("--compute %s: expected f32 or int8", text);
}

static bool parse_turn(struct options *o, const char *text)
{
    o->serve = true;
    for (o->turn = TURN_UNET; o->turn < TURN_COUNT; o->turn++)
        if (strcmp(text, turn_name(o->turn)) == 0)
            break;
    if (o->turn == TURN_COUNT)
        return complain("--serve %s: expected unet, guided, text or vae", text);
    o->setup.kind = o->turn == TURN_VAE ? "vae" : "model";
    return true;
}

static bool parse_count(const char *name, const char *text, int least, int most, int *out)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || n < least || n > most)
        return complain("--%s %s: expected %d to %d", name, text, least, most);
    *out = (int)n;
    return true;
}

static const char help[] =
    "Usage: kron-bench [options]\n"
    "Times the engine on random weights of the full shapes.\n\n"
    "  --arch LIST      sd15,sdxl (default: both)\n"
    "  --size LIST      512,768,1024x1536 (default: 512)\n"
    "  --cases LIST     none, lokr (w2 whole), lokr-split, lora, six; each may have a route, as in\n"
    "                   lokr:at_runtime (auto, immediately, at_runtime)\n"
    "                   (default: none,lokr,lokr:immediately,lokr:at_runtime,lokr-split,lora,six)\n"
    "  --repeat N       calls that are timed, after warm-up (default: 3)\n"
    "  --quick          UNet calls only: no decoding, no guidance\n"
    "  --compute NAME   what the UNet's linear layers multiply: f32, int8 (default: f32)\n"
    "  --threads N      (default: one per core)\n"
    "  --model PATH     this checkpoint in place of random weights; name its --arch too\n"
    "  --cache FOLDER   where random weights are kept (default: bench/cache); 2 GB and 7 GB\n"
    "  --csv FILE       --json FILE: writes the results\n"
    "  --against FILE   a UNet call of this file of the same --arch in turns with the model's, for\n"
    "                   each case: a quantised checkpoint beside the one it was made of\n"
    "  --make           makes the files that are missing, and ends\n"
    "  --serve WHAT     for compare.py: a turn for each line read: a call of the UNet (unet), a step\n"
    "                   with guidance (guided), a prompt encoded (text), a picture decoded (vae)\n"
    "  -v               shows what the library says\n";

static const struct option long_options[] = {
    {"arch", required_argument, NULL, 'a'},    {"size", required_argument, NULL, 's'},
    {"cases", required_argument, NULL, 'c'},   {"repeat", required_argument, NULL, 'r'},
    {"quick", no_argument, NULL, 'q'},         {"threads", required_argument, NULL, 't'},
    {"compute", required_argument, NULL, 'p'},
    {"model", required_argument, NULL, 'm'},   {"cache", required_argument, NULL, 'C'},
    {"csv", required_argument, NULL, 'V'},     {"json", required_argument, NULL, 'J'},
    {"make", no_argument, NULL, 'M'},          {"serve", required_argument, NULL, 'S'},
    {"help", no_argument, NULL, 'h'},          {"against", required_argument, NULL, 'A'},
    {NULL, 0, NULL, 0},
};

static bool take(struct options *o, int option)
{
    switch (option) {
    case 'a': return each_item(o, optarg, add_arch);
    case 's': return each_item(o, optarg, add_size);
    case 'c': return each_item(o, optarg, add_case);
    case 'r': return parse_count("repeat", optarg, 1, MAX_REPEATS, &o->setup.repeat);
    case 't': return parse_count("threads", optarg, 1, 1024, &o->setup.threads);
    case 'p': return parse_compute(o, optarg);
    case 'q': return o->setup.quick = true;
    case 'm': o->setup.model = optarg; return true;
    case 'C': o->setup.cache = optarg; return true;
    case 'V': o->csv = optarg; return true;
    case 'J': o->json = optarg; return true;
    case 'A': o->against = optarg; return true;
    case 'M': return o->make = true;
    case 'S': return parse_turn(o, optarg);
    case 'v': return o->verbose = true;
    case 'h': fputs(help, stdout); exit(0);
    default: return false; /* getopt has complained */
    }
}

static bool parse(struct options *o, int argc, char **argv)
{
    static char all[] = "none,lokr,lokr:immediately,lokr:at_runtime,lokr-split,lora,six";
    int option;
    memset(o, 0, sizeof *o);
    o->setup.cache = "bench/cache";
    o->setup.kind = "model";
    o->setup.repeat = 3;
    while ((option = getopt_long(argc, argv, "vh", long_options, NULL)) != -1)
        if (!take(o, option))
            return false;
    if (optind < argc)
        return complain("unexpected '%s'", argv[optind]);
    if (!o->arch[BENCH_SD15] && !o->arch[BENCH_SDXL])
        o->arch[BENCH_SD15] = o->arch[BENCH_SDXL] = true;
    if (o->n_sizes == 0)
        add_size(o, "512");
    return o->n_cases > 0 || each_item(o, all, add_case);
}

/* --- runs --- */

static bool make_one(const struct options *o, int arch, const char *kind)
{
    char *path;
    if (!bench_file(&path, o->setup.cache, (enum bench_arch)arch, kind))
        return false;
    printf("%s\n", path);
    free(path);
    return true;
}

static bool make_all(const struct options *o)
{
    for (int a = BENCH_SD15; a <= BENCH_SDXL; a++) {
        if (!o->arch[a])
            continue;
        if (!make_one(o, a, "model"))
            return false;
        for (int c = 0; c < o->n_cases; c++)
            for (int i = 0; i < o->cases[c].n_adapters; i++)
                if (!make_one(o, a, o->cases[c].kinds[i]))
                    return false;
    }
    return make_one(o, BENCH_SD15, "vae");
}

static bool run_cases(const struct options *o, struct result *results, int *n)
{
    report_head(&o->setup);
    for (int a = BENCH_SD15; a <= BENCH_SDXL; a++)
        for (int s = 0; o->arch[a] && s < o->n_sizes; s++)
            for (int c = 0; c < o->n_cases; c++) {
                struct result *r = &results[*n];
                r->arch = (enum bench_arch)a;
                r->width = o->width[s];
                r->height = o->height[s];
                r->what = o->cases[c];
                if (!measure(&o->setup, r))
                    return false;
                report_case(r);
                ++*n;
            }
    return true;
}

/* What was measured before a failure is written too. */
static bool run_all(const struct options *o)
{
    struct result *results = calloc((size_t)(2 * o->n_sizes * o->n_cases), sizeof *results);
    int n = 0;
    if (results == NULL)
        return complain("out of memory");
    bool ok = run_cases(o, results, &n);
    if (o->csv != NULL)
        ok = report_csv(o->csv, results, n, &o->setup) && ok;
    if (o->json != NULL)
        ok = report_json(o->json, results, n, &o->setup) && ok;
    free(results);
    return ok;
}

static enum bench_arch first_arch(const struct options *o)
{
    return o->arch[BENCH_SD15] ? BENCH_SD15 : BENCH_SDXL;
}

static bool run_against(const struct options *o)
{
    for (int s = 0; s < o->n_sizes; s++)
        if (!against(&o->setup, o->against, first_arch(o), o->width[s], o->height[s], o->cases,
                     o->n_cases))
            return false;
    return true;
}

int main(int argc, char **argv)
{
    struct options o;
    bool ok;
    if (!parse(&o, argc, argv))
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0); /* each row shows as soon as it is there */
    verbose_log = o.verbose;
    kron_log_set(on_log, NULL);
    if (o.make)
        ok = make_all(&o);
    else if (o.serve)
        ok = serve(&o.setup, o.turn, first_arch(&o), o.width[0], o.height[0],
                   &o.cases[0]);
    else if (o.against != NULL)
        ok = run_against(&o);
    else
        ok = run_all(&o);
    return ok ? 0 : 1;
}
