/* SPDX-License-Identifier: MIT
 * sd-cli: options, checks, drawing, reports. Sees the public headers and the C library only.
 * Functions that can fail print one line "sd-cli: ..." themselves and return false or an exit
 * status, so callers only pass the failure on. */
#ifndef CLI_CLI_H
#define CLI_CLI_H
#include <kron/kron.h>
#include <stdbool.h>
#include <stddef.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

enum mode {
    MODE_IMG_GEN,
    MODE_METADATA,
    MODE_HELP,
    MODE_TXT2IMG,
    MODE_IMG2IMG,
    MODE_ADAPTER_INFO,
    MODE_ADAPTER_CONVERT,
    MODE_CONVERT
};
enum preview { PREVIEW_NONE, PREVIEW_PROJ, PREVIEW_VAE };

enum { SIZE_UNSET = -1, MAX_SIDE = 16384, MAX_STEPS = 999 };

/* Words that an option was given with, one each time; they point into argv. */
struct word_list {
    const char **at; /* owned */
    int n;
};

/* What the command line says. Strings point into argv unless noted. */
struct options {
    int mode; /* enum mode */
    int help, version, verbose, color;
    /* model */
    const char *model, *diffusion_model, *clip_l, *clip_g, *vae, *lora_dir, *embd_dir;
    const char *lbw_presets, *type_rules, *imat_in, *imat_out, *quant_cache;
    struct word_list loras;
    int backend, type, prediction; /* index among the choices of the option, -1: not given */
    int threads, apply, compute, strict;
    int64_t max_memory; /* bytes; 0: not given */
    /* prompt and pictures */
    const char *prompt, *negative, *prompt_file, *negative_file;
    char *prompt_text, *negative_text; /* of the files; owned */
    const char *init_path, *mask_path;
    /* output */
    const char *output, *image;
    int begin; /* -1: not given */
    int metadata_format, metadata_raw, metadata_brief, metadata_all, no_metadata;
    int preview, preview_interval; /* enum preview */
    const char *preview_path, *profile_trace;
    int profile;
    /* adapter files */
    struct word_list files; /* words that belong to no option */
    struct word_list inputs;
    int json, naming, form, rank, factor;
    double energy;
    /* picture */
    int width, height, batch; /* SIZE_UNSET where not given */
    int steps;
    double cfg, eta, strength;
    const char *sampler, *schedule;
    double *sigmas; /* owned */
    int n_sigmas;
    int64_t seed;
    int clip_skip, rng, sampler_rng;
    int vae_tiling, vae_tile_w, vae_tile_h;
    double vae_relative_w, vae_relative_h; /* 0: not given */
    double vae_overlap;
};

/* --- options.c --- */

void options_init(struct options *o);
void options_free(struct options *o);
/* False after a line of complaint: EXIT_USAGE. */
bool options_parse(struct options *o, int argc, char **argv);
void options_help(void);
/* Calls fn for the names of every option of the table until it returns true. */
bool options_find(bool (*fn)(const char *name, void *user), void *user);

/* --- known.c: options of stable-diffusion.cpp that are not here --- */

struct known {
    const char *name, *alt;
    int has_value;
    const char *harmless; /* why leaving it out changes nothing; NULL: it would */
};
const struct known *known_find(const char *name);
/* The option that `name` was most likely meant to be; NULL if nothing is near. */
const char *known_nearest(const char *name);

/* --- report.c: what goes to the terminal --- */

/* Prints "sd-cli: " and a line to stderr; always false. */
bool complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints what the library's last failed call says, or what the status means. */
void complain_status(kron_status status);
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Sends the library's messages to stderr: warnings and information, with `verbose` all. */
void report_start(bool verbose, bool color);
/* Shows where a job stands. One line is redrawn on a terminal, else one line a phase. */
void report_progress(const kron_progress *p);
/* Takes the progress line away, before other output and at the end. */
void report_clear(void);
/* The same for bytes of a file. */
void report_bytes(uint64_t done, uint64_t all);
double seconds_now(void);

/* --- check.c: all that can be known before the model is loaded --- */

/* Names of the pictures to write: head, number, tail. */
struct output {
    char *head, *tail; /* owned */
    int begin, digits; /* digits: least width, filled with zeros */
    bool pattern;      /* the user gave %d: every name has a number */
    bool numbered;     /* the user gave a first number */
    int count;
};
bool output_init(struct output *out, const struct options *o);
char *output_name(const struct output *out, int i); /* freed by the caller; NULL without memory */
void output_free(struct output *out);

bool check_options(struct options *o);
bool check_type_rules(const struct options *o);
bool check_folder_of(const char *path);
/* Reads init image and mask, cut to the shape of -W x -H and scaled; without -W or -H the size is
 * the init image's, rounded down to multiples of 8. */
bool load_pictures(struct options *o, kron_image *init, kron_image *mask);

/* --- profile.c: --profile and --profile-trace --- */

struct profile;
/* Watches the session's jobs from now on if the options ask for it, else *out is NULL. */
bool profile_start(struct profile **out, kron_session *session, const struct options *o);
/* Prints the table to stdout and gives the trace its name. p may be NULL. */
bool profile_finish(struct profile *p, kron_model *model, const struct options *o,
                    double job_seconds);
void profile_free(struct profile **p); /* after the session's last job */

/* --- the modes --- */

int run_draw(struct options *o);     /* draw.c */
/* From now on the first Ctrl-C only asks to stop. */
void catch_interrupt(void);
bool interrupted(void);
int run_metadata(struct options *o); /* metadata.c */
int run_adapter_info(struct options *o);    /* adapter.c */
int run_adapter_convert(struct options *o);
int run_convert(struct options *o);

#endif
