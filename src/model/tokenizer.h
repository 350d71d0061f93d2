/* SPDX-License-Identifier: MIT
 * model/tokenizer.h - text to token ids: the byte-pair encoding of CLIP, which SD1, SD2 and SDXL
 * share. Knows nothing of prompt syntax (model/prompt.h).
 *
 * Gives the ids of transformers' CLIPTokenizer: NFC, lower case character by character (no final
 * sigma), then words, each encoded alone. No ftfy, no HTML entities. Numbers and letters are
 * those of the installed utf8proc's Unicode version. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H
#include "base/base.h"

enum {
    TOK_START = 49406,           /* <|startoftext|>, also recognised inside a text */
    TOK_END = 49407,             /* <|endoftext|>, likewise                        */
    TOK_COUNT = 49408,           /* ids are below this                             */
    TOK_WINDOW = 77,             /* positions of a text encoder                    */
    TOK_WINDOW_TEXT = 75,        /* of these, between start and end                */
    TOK_TEXT_MAX_BYTES = 1 << 20 /* longest text that tok_encode() takes           */
};

/* Immutable after tok_create(), so any number of threads may share one. */
struct tokenizer;

/* Builds the tables from the merges compiled into the library: a few ms, about 1 MB. */
kron_status tok_create(struct tokenizer **out);
void tok_free(struct tokenizer **t);

/* Encodes `len` bytes of UTF-8, without start, end and padding. Bytes that are not UTF-8 count as
 * U+FFFD each. *ids has *n entries and is not NULL even for none; the caller frees it with
 * mem_free(). On failure it is NULL.
 * Returns KRON_ERR_ARGUMENT for a text over TOK_TEXT_MAX_BYTES, KRON_ERR_MEMORY. */
kron_status tok_encode(const struct tokenizer *t, const char *utf8, size_t len, int32_t **ids,
                       size_t *n);

#endif
