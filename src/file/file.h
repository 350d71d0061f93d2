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

/* --- one file of tensors: safetensors, GGUF, PyTorch's pickles --- */

/* The format is told by the first bytes, never by the name:
 *   safetensors
 *   GGUF, versions 2 and 3, little-endian, in the types of tensor.h; axes in our order, the last
 *     the fastest, and with the shapes that ComfyUI-GGUF keeps as metadata. Where a block spans
 *     two rows in such a shape, the tensor is f32 memory of the file instead of a view
 *   what torch.save() writes, zip or the older layout: a dictionary of tensors, or one under
 *     "state_dict" and the like. Nothing is executed: whatever is neither a tensor nor plain data
 *     is an error that names it
 * Whatever a header says is checked against the file: KRON_ERR_FORMAT for a file that is damaged
 * or lies, KRON_ERR_UNSUPPORTED for a part of a format that is not read. */
struct st_file; /* owns the mapping; views live as long as it does */
kron_status st_open(struct st_file **out, const char *path);
/* The same over memory that the caller keeps (fuzzing, tests); `name` for messages. */
kron_status st_open_memory(struct st_file **out, const void *data, size_t bytes, const char *name);
void st_close(struct st_file **f);
const char *st_path(const struct st_file *f);
/* True if p points into the mapping: not into memory of the file's own or of a caller. */
bool st_maps(const struct st_file *f, const void *p);
int64_t st_count(const struct st_file *f);
const struct tensor *st_at(const struct st_file *f, int64_t i); /* in the order of their data */
const struct tensor *st_find(const struct st_file *f, const char *name); /* NULL if absent */
/* A value of the file's metadata, NULL if absent: safetensors' strings, GGUF's values as text
 * (true, 0.5, arrays as JSON). Pickles have none. */
const char *st_meta(const struct st_file *f, const char *key);
int64_t st_meta_count(const struct st_file *f);
void st_meta_at(const struct st_file *f, int64_t i, const char **key, const char **value);

/* The ending of a file's name that tells one of these formats, ".safetensors" first; NULL past the
 * last. And how many bytes of a name are left without one. */
const char *st_ending(int i);
size_t st_stem(const char *name);

/* Writes safetensors, their data row-major in `type`. Names, and keys of the metadata, must be
 * UTF-8 and differ: KRON_ERR_ARGUMENT. */
kron_status st_write(const char *path, const struct tensor *tensors, int64_t n,
                     const char *const *meta_key_value, int64_t n_meta);
/* Its first part alone, for writing a file that never lies in memory as a whole: opens w and
 * writes the header; of the tensors only name, type, shape and bytes are read. Their data follow
 * by writer_put(), in the same order. */
kron_status st_write_header(struct file_writer *w, const char *path, const struct tensor *tensors,
                            int64_t n, const char *const *meta_key_value, int64_t n_meta);

/* Writes GGUF, version 3, with metadata that is all strings. Names and keys must differ:
 * KRON_ERR_ARGUMENT. A type that ggml does not have is KRON_ERR_UNSUPPORTED; a tensor that is no
 * whole number of blocks is KRON_ERR_SHAPE. Where its rows are not, all but the first axis are
 * taken as one, or each block is, and its shape is metadata the way ComfyUI-GGUF does it. */
kron_status gguf_write(const char *path, const struct tensor *tensors, int64_t n,
                       const char *const *meta_key_value, int64_t n_meta);
/* As st_write_header(). Each tensor's data are followed by the zeros that gguf_write_padding()
 * writes after so many bytes. */
kron_status gguf_write_header(struct file_writer *w, const char *path,
                              const struct tensor *tensors, int64_t n,
                              const char *const *meta_key_value, int64_t n_meta);
kron_status gguf_write_padding(struct file_writer *w, size_t bytes);

/* --- store --- */

struct store;
kron_status store_create(struct store **out);
void store_free(struct store **s);
/* Adds a file that st_open() reads under `tag` ("" for a single-file checkpoint, "vae" for a
 * separate VAE). A later source with the same tag is searched first. */
kron_status store_add_file(struct store *s, const char *tag, const char *path);
/* Adds a diffusers folder: unet/, vae/, text_encoder/, text_encoder_2/ below `path` become the
 * tags "unet", "vae", "text_encoder", "text_encoder_2" (sharded files with an .index.json too).
 * Parts that are missing are left out; a folder with none of them is an error. */
kron_status store_add_folder(struct store *s, const char *path);
bool store_has_tag(const struct store *s, const char *tag);
const struct tensor *store_find(const struct store *s, const char *tag, const char *name);
/* The latest source of `tag`; NULL if there is none. */
const struct st_file *store_file(const struct store *s, const char *tag);
const char *store_meta(const struct store *s, const char *tag, const char *key);
/* A value from the config.json beside a diffusers part: numbers, booleans and strings as text,
 * arrays as JSON text; NULL if absent. "scheduler" is a tag for this only. */
const char *store_config(const struct store *s, const char *tag, const char *key);
int64_t store_count(const struct store *s); /* of all sources */
const struct tensor *store_at(const struct store *s, int64_t i, const char **tag);
/* The file of source i, in the order of adding; NULL past the last. */
const struct st_file *store_source(const struct store *s, int i);
/* The file that the source `tag` was read from, for messages. */
const char *store_path(const struct store *s, const char *tag);

#endif
