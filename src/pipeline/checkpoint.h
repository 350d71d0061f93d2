/* SPDX-License-Identifier: MIT
 * pipeline/checkpoint.h - the tensors of an opened model under the names of one file. */
#ifndef PIPELINE_CHECKPOINT_H
#define PIPELINE_CHECKPOINT_H
#include "model/model.h"

enum { CHECKPOINT_META = 6 };

struct checkpoint {
    struct tensor *at; /* views of the model's files and memory */
    int64_t n, cap;
    const char *meta[2 * CHECKPOINT_META]; /* key, value, ... */
    int64_t n_meta;                        /* pairs */
    struct arena mem;
};

/* Each needs checkpoint_free() also after a failure. */
/* The file that a model was opened from, as it is; only scaled f8 is the f16 product that the
 * model made of it, without the scales. */
kron_status checkpoint_of_file(struct checkpoint *c, const struct sd_model *m);
/* The layers of a folder, or of a file and parts. */
kron_status checkpoint_of_layers(struct checkpoint *c, const struct sd_model *m);
void checkpoint_free(struct checkpoint *c);

#endif
