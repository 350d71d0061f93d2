/* SPDX-License-Identifier: MIT
 * sd-cli: draws pictures from the command line. The way through it: options.c reads argv, check.c
 * looks at everything that needs no model, draw.c draws. */
#include "cli.h"
#include <stdio.h>

static int run(struct options *o)
{
    if (o->version) {
        printf("sd-cli (Kron) %s\n", kron_version());
        return EXIT_OK;
    }
    if (o->help || o->mode == MODE_HELP) {
        options_help();
        return EXIT_OK;
    }
    report_start(o->verbose, o->color);
    switch (o->mode) {
    case MODE_METADATA:
        return run_metadata(o);
    case MODE_ADAPTER_INFO:
        return run_adapter_info(o);
    case MODE_ADAPTER_CONVERT:
        return run_adapter_convert(o);
    case MODE_CONVERT:
        return run_convert(o);
    default:
        return run_draw(o);
    }
}

int main(int argc, char **argv)
{
    struct options o;
    options_init(&o);
    int result = EXIT_USAGE;
    if (argc < 2)
        complain("nothing to do; sd-cli -h lists the options");
    else if (options_parse(&o, argc, argv))
        result = run(&o);
    if (fflush(stdout) != 0 && result == EXIT_OK) {
        perror("sd-cli: standard output");
        result = EXIT_FAILED;
    }
    options_free(&o);
    return result;
}
