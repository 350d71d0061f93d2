/* SPDX-License-Identifier: MIT
 * kron-bench - times the engine on random weights of the full shapes, through the public API only.
 *
 *   main.c     options, the list of what to measure    shapes.c   tensors of a checkpoint
 *   make.c     random checkpoints and adapters         measure.c  runs jobs and times them
 *   report.c   tables, CSV and JSON                    serve.c    one turn a line, for compare.py
 *   against.c  a second file in turns with the first */
#ifndef BENCH_H
#define BENCH_H
#include <kron/kron.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bench_arch { BENCH_SD15, BENCH_SDXL };
const char *bench_arch_name(enum bench_arch a); /* "sd15", "sdxl": also of files */

bool complain(const char *fmt, ...);     /* to stderr; false */
bool complain_status(const char *what, kron_status status);
double seconds_now(void);

/* --- shapes.c --- */

/* How a tensor is filled: around 0 with variance 1 / inputs, small, or around 1. */
enum fill { FILL_WEIGHT, FILL_SMALL, FILL_NORM };

struct shape {
    char name[160];
    int64_t dim[4];
    int n_dims;
    enum fill fill;
    bool unet_layer; /* weight of a linear layer or convolution of the UNet: adapters change it */
};

struct shape_list {
    struct shape *at;
    int n, cap;
    bool failed; /* no memory */
};

/* All tensors of a checkpoint in single-file (ldm, sgm) naming. Free with shapes_free(). */
bool shapes_make(struct shape_list *list, enum bench_arch arch);
/* The VAE of both architectures, in a checkpoint of an SD1 whose UNet is next to nothing. */
bool shapes_make_vae(struct shape_list *list);
struct shape *shapes_add(struct shape_list *list, enum fill fill, int n_dims, const int64_t *dim,
                         const char *fmt, ...);
void shapes_free(struct shape_list *list);
int64_t shape_numbers(const struct shape *s);

/* --- make.c --- */

/* Makes the file in `cache` where it is not there yet and gives its path (owned by the caller).
 * kind: "model", "vae" (shapes_make_vae), or an adapter for all linear layers and convolutions of the
 * UNet in kohya's
 * naming: "lokr" (factor 8, w2 whole), "lokr-split" (w2 of rank 16), "lora" (rank 16); a number
 * makes another of the same kind: "lora-2". */
bool bench_file(char **path, const char *cache, enum bench_arch arch, const char *kind);

/* --- measure.c --- */

enum { MAX_ADAPTERS = 6, MAX_REPEATS = 100 };

struct timing {
    double median, least; /* seconds */
    int n;
};

/* What is run: adapters and their route. */
struct bench_case {
    char name[64];
    const char *kinds[MAX_ADAPTERS]; /* for bench_file() */
    int n_adapters;
    kron_apply apply;
};

struct result {
    enum bench_arch arch;
    int width, height;
    struct bench_case what;
    struct timing call, plain_call; /* one UNet call; that of the plain session in alternation */
    struct timing guided;           /* a step with guidance */
    double open, adapters;          /* opening the model; setting the adapters */
    double first_text, text;        /* text encoding: first with planning, later */
    double decode;                  /* VAE, with planning */
    double start;                   /* from before opening until the first step starts */
    double first_step;              /* the first step, planning of the UNet included */
    kron_buffers buffers;           /* bytes, batch 1 */
    size_t guided_unet, guided_kept; /* the UNet's compute buffer with guidance, and beside it
                                     * what is kept for the prompt; bytes */
    int64_t peak, peak_anonymous;   /* bytes resident; without mapped files, between steps */
    double load;                    /* load average of the machine after the case */
};

struct setup {
    const char *model;  /* NULL: random weights from the cache */
    const char *cache;
    int threads, repeat;
    bool quick; /* UNet calls only: no decoding, no guidance */
    const char *kind; /* of the checkpoint from the cache: "model", "vae" */
    kron_compute compute;
};

/* Runs the case that r->arch, width, height and what name, and fills in the rest. */
bool measure(const struct setup *setup, struct result *r);

/* --- serve.c --- */

/* What one turn is: a call of the UNet, a step with guidance, encoding a prompt, decoding a picture
 * (of the checkpoint "vae"). */
enum bench_turn { TURN_UNET, TURN_GUIDED, TURN_TEXT, TURN_VAE, TURN_COUNT };
const char *turn_name(enum bench_turn t);

/* Takes one turn untimed, prints "ready" and what it learned as JSON, then for each line read takes
 * a turn and prints its seconds. */
bool serve(const struct setup *setup, enum bench_turn turn, enum bench_arch arch, int width,
           int height, const struct bench_case *what);

/* --- against.c --- */

/* Prints, for each case, a UNet call of the second file beside those of setup's model. */
bool against(const struct setup *setup, const char *file, enum bench_arch arch, int width,
             int height, const struct bench_case *cases, int n_cases);

/* --- shared by measure.c, serve.c and against.c --- */

struct bench_session {
    kron_model *model;
    kron_session *session;
    double open, adapters; /* seconds */
};
bool bench_open(struct bench_session *b, const struct setup *setup, enum bench_arch arch);
bool bench_session(struct bench_session *b, const struct setup *setup, enum bench_arch arch,
                   const struct bench_case *what);
void bench_close(struct bench_session *b);
kron_job bench_job(int width, int height);

/* --- report.c --- */

void report_head(const struct setup *setup);
void report_case(const struct result *r);
/* One row or object a case. */
bool report_csv(const char *path, const struct result *r, int n, const struct setup *setup);
bool report_json(const char *path, const struct result *r, int n, const struct setup *setup);

#endif
