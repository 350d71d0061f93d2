/* SPDX-License-Identifier: MIT
 * file/ - tensors in files: typed views into mapped files, every number in a header checked
 * against the file before use. Knows no model.
 *
 * A store is the set of named tensors that a model is built from: one single-file checkpoint, or
 * a diffusers folder, and files that replace a part of it (a separate VAE). Each file is a
 * source with a tag; look-ups name the tag and the tensor. */
#ifndef FILE_FILE_H
#define FILE_FILE_H
#include "tensor/tensor.h"

/* --- one safetensors file --- */

struct st_file; /* owns the mapping; views live as long as it does */
kron_status st_open(struct st_file **out, const char *path);
/* The same over memory that the caller keeps (fuzzing, tests); `name` for messages. */
kron_status st_open_memory(struct st_file **out, const void *data, size_t bytes, const char *name);
void st_close(struct st_file **f);
const char *st_path(const struct st_file *f);
int64_t st_count(const struct st_file *f);
const struct tensor *st_at(const struct st_file *f, int64_t i); /* in the order of their data */
const struct tensor *st_find(const struct st_file *f, const char *name); /* NULL if absent */
/* A string of the header's __metadata__, NULL if absent. */
const char *st_meta(const struct st_file *f, const char *key);
int64_t st_meta_count(const struct st_file *f);
void st_meta_at(const struct st_file *f, int64_t i, const char **key, const char **value);

/* Writes tensors, their data row-major in `type`. Names, and keys of the metadata, must be UTF-8
 * and differ: KRON_ERR_ARGUMENT. */
kron_status st_write(const char *path, const struct tensor *tensors, int64_t n,
                     const char *const *meta_key_value, int64_t n_meta);
/* Its first part alone, for writing a file that never lies in memory as a whole: opens w and
 * writes the header; of the tensors only name, type, shape and bytes are read. Their data follow
 * by writer_put(), in the same order. */
kron_status st_write_header(struct file_writer *w, const char *path, const struct tensor *tensors,
                            int64_t n, const char *const *meta_key_value, int64_t n_meta);

/* --- store --- */

struct store;
kron_status store_create(struct store **out);
void store_free(struct store **s);
/* Adds a .safetensors file under `tag` ("" for a single-file checkpoint, "vae" for a separate
 * VAE). A later source with the same tag is searched first. */
kron_status store_add_file(struct store *s, const char *tag, const char *path);
/* Adds a diffusers folder: unet/, vae/, text_encoder/, text_encoder_2/ below `path` become the
 * tags "unet", "vae", "text_encoder", "text_encoder_2" (sharded files with an .index.json too).
 * Parts that are missing are left out; a folder with none of them is an error. */
kron_status store_add_folder(struct store *s, const char *path);
bool store_has_tag(const struct store *s, const char *tag);
const struct tensor *store_find(const struct store *s, const char *tag, const char *name);
const char *store_meta(const struct store *s, const char *tag, const char *key);
/* A value from the config.json beside a diffusers part: numbers, booleans and strings as text,
 * arrays as JSON text; NULL if absent. "scheduler" is a tag for this only. */
const char *store_config(const struct store *s, const char *tag, const char *key);
int64_t store_count(const struct store *s); /* of all sources */
const struct tensor *store_at(const struct store *s, int64_t i, const char **tag);
/* The file that the source `tag` was read from, for messages. */
const char *store_path(const struct store *s, const char *tag);

#endif
