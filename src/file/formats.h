/* SPDX-License-Identifier: MIT
 * What the readers of this room fill in; file.h is the interface. */
#ifndef FILE_FORMATS_H
#define FILE_FORMATS_H
#include "file/file.h"

struct st_meta {
    const char *key, *value;
};

struct st_file {
    struct mapped_file map;
    const uint8_t *bytes; /* map.data, or the caller's memory */
    size_t n_bytes;
    struct arena mem;
    const char *path;
    struct tensor *tensors;
    int64_t n;
    struct st_meta *meta;
    int64_t n_meta;
    struct name_map names; /* to indices of tensors */
};

/* Each reads f->bytes into tensors and metadata; on failure the caller closes f. */
kron_status safetensors_read(struct st_file *f);
bool gguf_is(const void *data, size_t bytes);
kron_status gguf_read(struct st_file *f);
bool torch_is(const void *data, size_t bytes);
kron_status torch_read(struct st_file *f);

/* An error of one tensor, naming file and tensor. */
kron_status st_bad(const struct st_file *f, const char *name, const char *what);
/* Sorts the tensors by the place of their data, the empty ones first where several begin, and
 * refuses two that share bytes: a lie about one of them. */
kron_status st_sort(struct st_file *f);
/* Makes the table of names; two tensors of one name are an error. */
kron_status st_index(struct st_file *f);

#endif
