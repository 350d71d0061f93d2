/* SPDX-License-Identifier: MIT
 * model/prompt_tag.h - what an adapter's tag says, and pieces that the prompt's reader shares. */
#ifndef MODEL_PROMPT_TAG_H
#define MODEL_PROMPT_TAG_H
#include "model/prompt.h"

/* A text to name in messages. */
struct tag_text {
    const char *what; /* "prompt: tag" */
    const char *s;
    size_t len;
};
kron_status prompt_tag_error(kron_status status, const struct tag_text *t, const char *why);

/* Reads NAME[:STRENGTH[:UNET]][:KEY=VALUE...], body[len]; texts go into `mem`. Errors name `t`. */
kron_status prompt_tag_read(struct arena *mem, const struct tag_text *t, const char *body,
                            size_t len, struct prompt_adapter *out);

/* Reads a decimal number at the start of s[len]: its length, 0 if there is none. Stricter than
 * the C library: no inf, nan or hexadecimal. */
size_t prompt_number(const char *s, size_t len, double *out);
/* s[len] and a NUL, in `mem`. */
kron_status prompt_copy(struct arena *mem, const char *s, size_t len, const char **out);
/* s[len] is that word, whatever its case. */
bool prompt_is_word(const char *s, size_t len, const char *lower);

#endif
