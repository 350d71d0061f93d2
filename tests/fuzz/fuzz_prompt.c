/* SPDX-License-Identifier: MIT
 * Any bytes as a prompt: parsed, encoded, filled into windows; all results keep their contracts. */
#include "model/prompt.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* Ids are below n_ids. */
static void check_windows(const struct prompt_windows *w, int32_t n_ids)
{
    void *ids, *weights;
    check(w->n > 0 && w->starts[0] == 0);
    if (w->n > 4096)
        return;
    size_t n = (w->n + 1) * TOK_WINDOW;
    check(mem_alloc_n(&ids, n, sizeof(int32_t), "fuzz") == KRON_OK);
    check(mem_alloc_n(&weights, n, sizeof(float), "fuzz") == KRON_OK);
    prompt_windows_fill(w, w->n + 1, TOK_END, ids, weights);
    for (size_t i = 0; i < n; i++) {
        int32_t id = ((int32_t *)ids)[i];
        check(id >= 0 && id < n_ids && isfinite(((float *)weights)[i]));
    }
    mem_free(ids);
    mem_free(weights);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tok;
    if (tok == NULL)
        check(tok_create(&tok) == KRON_OK);
    static const struct prompt_word words[] = {{"cat", TOK_COUNT, 3}, {"(", TOK_COUNT + 3, 80}};
    struct prompt p;
    /* An exact copy, so that a read past the end is seen. */
    char *text = malloc(size > 0 ? size : 1);
    check(text != NULL);
    if (size > 0)
        memcpy(text, data, size);
    if (prompt_parse(&p, text, size) == KRON_OK) {
        struct prompt_windows w;
        check(prompt_tokenize(&w, tok, &p, NULL, 0) == KRON_OK);
        check_windows(&w, TOK_COUNT);
        prompt_windows_free(&w);
        check(prompt_tokenize(&w, tok, &p, words, 2) == KRON_OK);
        check_windows(&w, TOK_COUNT + 83);
        prompt_windows_free(&w);
        prompt_free(&p);
    } else {
        check(kron_error_detail()[0] != '\0' && strchr(kron_error_detail(), '\n') == NULL);
    }
    free(text);
    return 0;
}
