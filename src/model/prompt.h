/* SPDX-License-Identifier: MIT
 * model/prompt.h - a prompt as the A1111 web UI reads it, and its cut into windows of a text
 * encoder.
 *
 *   (a) 1.1   ((a)) 1.1 * 1.1   [a] 1 / 1.1   (a:1.2) 1.2, all multiplied where nested
 *   \( \) \[ \] \\   the character itself; any other backslash vanishes
 *   a ) or ] that closes nothing, and a colon that is no weight, are text; a ( or [ that is not
 *   closed reaches to the end
 *   BREAK   a word of its own: what follows starts a new window. Here also inside brackets,
 *           where A1111 takes it for text
 *   <lora:NAME>  <lora:NAME:S>  <lora:NAME:TE:UNET>, with fields KEY=VALUE anywhere after the
 *           name; <lyco:...> is the same. Without a UNet strength it is the text encoder's,
 *           without that 1. Removed from the text before the rest is read. Keys (docs/adapters.md
 *           says more): te unet lbw start stop step scale mask region
 *
 * Not here: prompt editing [a:b:0.5], alternation [a|b], AND. They are read as weights and text. */
#ifndef MODEL_PROMPT_H
#define MODEL_PROMPT_H
#include "model/tokenizer.h"

struct prompt_segment {
    const char *text; /* UTF-8, then a NUL; "" for BREAK */
    size_t len;       /* of text, which may hold NULs    */
    double weight;    /* no unit; 1 for BREAK            */
    bool is_break;
};

struct prompt_point {
    double at, factor;
};

/* Numbers are finite floats. Texts are as in the tag, blanks at their ends left out. */
struct prompt_adapter {
    const char *name; /* not a checked path */
    double te_strength, unet_strength;
    const char *blocks; /* of lbw=; NULL: none */
    /* Of the UNet's strength over the steps, as struct adapter_steps. */
    double start, stop; /* stop 0: to the end */
    bool in_numbers;    /* start and stop are steps, from 1; else shares */
    const struct prompt_point *points; /* places do not fall */
    size_t n_points;
    bool points_in_numbers;
    double scale;     /* 0: the file's */
    const char *mask; /* name of a picture, not a checked path; NULL: none */
    double region[4]; /* left, top, right, bottom, shares of the image; all 0: none */
};

/* Owns all it points to; read-only after prompt_parse(). */
struct prompt {
    const struct prompt_segment *segments; /* neighbours of one weight are one segment */
    size_t n_segments;
    const struct prompt_adapter *adapters; /* in order of appearance, repeats kept */
    size_t n_adapters;
    struct arena mem;
};

/* Reads `len` bytes of UTF-8, not kept. On failure *out is {0}.
 * Returns KRON_ERR_ARGUMENT for a malformed tag, for brackets over 256 deep, for a weight that is
 * no finite float and for a text over TOK_TEXT_MAX_BYTES; KRON_ERR_UNSUPPORTED for a tag's field
 * that Kron does not have (dyn=, lbwe=) and for <hypernet:...>; KRON_ERR_MEMORY. */
kron_status prompt_parse(struct prompt *out, const char *utf8, size_t len);
/* One adapter as text, without the brackets: FILE[:STRENGTH[:UNET]][:KEY=VALUE...]. What `out`
 * points to lives in `mem`. */
kron_status prompt_read_adapter(struct prompt_adapter *out, struct arena *mem, const char *text);
void prompt_free(struct prompt *p); /* {0} is fine */

/* A prompt cut into windows of up to TOK_WINDOW_TEXT ids. There is at least one window. */
struct prompt_windows {
    int32_t *ids;   /* without start, end and padding, window after window */
    float *weights; /* of each id                                          */
    size_t *starts; /* where each window begins in ids; n + 1 entries      */
    size_t n;
};

/* A word that stands for vectors of its own (textual inversion): n ids from `first` on, which is
 * TOK_COUNT or more. It is found whatever its ASCII case, where no letter, number or _ goes on
 * before its first or after its last character if these are such; of several the longest. */
struct prompt_word {
    const char *text; /* not "" */
    int32_t first, n;
};
bool prompt_has_word(const struct prompt *p, const char *text);

/* Encodes each segment alone and cuts after every 75 ids and at BREAK. As in A1111, BREAK at the
 * very start gives an empty window and at the very end nothing, and a word of up to 75 vectors
 * that does not fit in a window begins the next. Free with prompt_windows_free(). */
kron_status prompt_tokenize(struct prompt_windows *out, const struct tokenizer *t,
                            const struct prompt *p, const struct prompt_word *words,
                            size_t n_words);
void prompt_windows_free(struct prompt_windows *w);

/* Writes n_windows >= w->n windows: start, ids, end, then pad_id up to TOK_WINDOW; windows past
 * w->n are empty ones, so that two prompts can be made equally long. Start, end and padding
 * weigh 1. ids and weights: [n_windows, TOK_WINDOW]; weights may be NULL. Cannot fail. */
void prompt_windows_fill(const struct prompt_windows *w, size_t n_windows, int32_t pad_id,
                         int32_t *ids, float *weights);

/* --- for the files of this room (prompt.c) --- */

/* Whether s[len] starts with a letter, a number or _ of any script; whether one ends at s + at. */
bool prompt_word_char(const char *s, size_t len);
bool prompt_word_char_before(const char *s, size_t at);

#endif
