/* SPDX-License-Identifier: MIT
 * kron-golden: runs every case of a folder in the layout of the project's reference outputs
 * (../shared/reference/README.md; docs/numerics.md has the bounds). A file each kind of data. */
#ifndef GOLDEN_GOLDEN_H
#define GOLDEN_GOLDEN_H
#include "pipeline/session.h"
#include <jansson.h>

/* Relative L2 distances that an engine computing in f32 has to keep (reference README). */
#define BOUND_LAYER 1e-5
#define BOUND_MODULE 1e-4
#define BOUND_RUN 1e-4

struct golden {
    const char *dir, *backend, *only; /* only: cases with this in their name; NULL: all */
    int passed, failed, skipped;
};

/* --- reporting (main.c) --- */

bool wanted(const struct golden *g, const char *name);
void result(struct golden *g, const char *name, double error, double bound);
void skip(struct golden *g, const char *name, const char *why);
/* A case that could not run at all: the library's message. */
void broken(struct golden *g, const char *name);

/* --- data --- */

json_t *load_json(const struct golden *g, const char *name); /* NULL if the file is absent */
struct st_file *load_tensors(const struct golden *g, const char *name);
/* Tensor "case/part" as f32; *n numbers. Ends the program if it is absent: the folder is broken. */
float *get(const struct st_file *f, const char *name, const char *part, int64_t *n);
const struct tensor *find(const struct st_file *f, const char *name, const char *part);
float *floats(int64_t n);
/* NCHW of a tensor's shape to NHWC. */
float *get_nhwc(const struct st_file *f, const char *name, const char *part, int64_t dim[4]);
void to_nhwc(const float *in, const int64_t dim[4], float *out);
double rel(const float *got, const float *want, int64_t n);
/* rel(got - got0, want - want0) */
double rel_change(const float *got, const float *got0, const float *want, const float *want0,
                  int64_t n);
const char *text_of(const json_t *j, const char *key);
double number_of(const json_t *j, const char *key);

/* --- models --- */

struct loaded {
    struct kron_model model;
    struct session *s;
};
/* A data set KIND_ARCH of the folder, with the tiny checkpoint that it belongs to. */
struct data_set {
    json_t *manifest;
    struct st_file *tensors;
    struct loaded l;
};
/* False if the folder has none of that name, it is not wanted, or the model does not open. */
bool open_set(struct golden *g, struct data_set *d, const char *kind, const char *arch,
              kron_apply apply);
void close_set(struct data_set *d);
/* Opens n files of the folder and gives them to the session. */
kron_status bind_files(struct golden *g, struct session *s, const char *const *files,
                       const double *strengths, size_t n);
bool open_model(struct golden *g, struct loaded *l, const char *file, kron_apply apply);
void close_model(struct loaded *l);
/* Raw UNet output, NHWC in and out. */
kron_status run_unet(struct session *s, const struct net_key *key, const float *x, const float *t,
                     const float *context, const float *pooled, const float *sizes, float *out);
/* A text as context (and pooled where not NULL), by the model's own clip skip if skip is 0. */
kron_status encode_text(struct session *s, const char *text, int skip, struct condition *out);

/* A whole run from x (NHWC, as sample_run() takes it). noise: [steps, n] NHWC, or NULL.
 * timesteps: one for each network call, or NULL: from sigma. */
struct golden_run {
    const char *sampler, *schedule;
    int steps;
    double cfg;
    const double *sigmas;    /* steps + 1; NULL: by schedule */
    const double *timesteps;
    const float *noise;
};
kron_status run_whole(struct session *s, const struct golden_run *r, const struct condition *pos,
                      const struct condition *neg, int64_t h, int64_t w, float *x);

/* One run of runs_ARCH or adapters_ARCH; its start is x_name/x_init (runs.c). */
void check_run(struct golden *g, struct session *s, const struct st_file *f, const json_t *row,
               const char *x_name);

/* --- data sets --- */

void golden_tokens(struct golden *g);
void golden_schedules(struct golden *g);
void golden_modules(struct golden *g, const char *arch);
void golden_runs(struct golden *g, const char *arch);
void golden_adapters(struct golden *g, const char *arch);
void golden_layers(struct golden *g);
void golden_shipped(struct golden *g);

#endif
