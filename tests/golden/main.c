/* SPDX-License-Identifier: MIT
 * kron-golden DIR [--backend NAME] [--only TEXT]: what stands in DIR, compared case by case. */
#include "golden.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool wanted(const struct golden *g, const char *name)
{
    return g->only == NULL || strstr(name, g->only) != NULL;
}

void result(struct golden *g, const char *name, double error, double bound)
{
    bool ok = error <= bound; /* false for NaN */

    printf("%s %-60s %.2e (bound %.0e)\n", ok ? "ok  " : "FAIL", name, error, bound);
    g->passed += ok;
    g->failed += !ok;
}

void skip(struct golden *g, const char *name, const char *why)
{
    printf("skip %-60s %s\n", name, why);
    g->skipped++;
}

void broken(struct golden *g, const char *name)
{
    printf("FAIL %-60s %s\n", name, kron_error_detail());
    g->failed++;
}

static void usage(void)
{
    fprintf(stderr, "usage: kron-golden DIR [--backend cpu|ref] [--only TEXT] [-v]\n");
    exit(2);
}

static void print_log(kron_log_level level, const char *line, void *user)
{
    (void)user;
    fprintf(stderr, "%d: %s\n", (int)level, line);
}

int main(int argc, char **argv)
{
    static const char *const archs[] = {"sd15", "sd2", "sdxl"};
    struct golden g = {.backend = "cpu"};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc)
            g.backend = argv[++i];
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            g.only = argv[++i];
        else if (strcmp(argv[i], "-v") == 0)
            kron_log_set(print_log, NULL);
        else if (argv[i][0] == '-' || g.dir != NULL)
            usage();
        else
            g.dir = argv[i];
    }
    if (g.dir == NULL)
        usage();
    golden_tokens(&g);
    golden_schedules(&g);
    golden_layers(&g);
    for (int i = 0; i < 3; i++) {
        golden_modules(&g, archs[i]);
        golden_adapters(&g, archs[i]);
        golden_runs(&g, archs[i]);
    }
    golden_shipped(&g);
    if (g.skipped > 0)
        printf("%d passed, %d failed, %d skipped\n", g.passed, g.failed, g.skipped);
    else
        printf("%d passed, %d failed\n", g.passed, g.failed);
    if (g.passed + g.failed == 0)
        fprintf(stderr, "kron-golden: %s: no case found\n", g.dir);
    return g.failed > 0 || g.passed == 0;
}
