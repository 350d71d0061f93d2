/* SPDX-License-Identifier: MIT
 * Lists of block weights: what stands after lbw=, and files of named lists. Names and orders are
 * those of sd-webui-lora-block-weight (hako-mikan). */
#include "adapter/family.h"
#include <math.h>
#include <string.h>

struct adapter_presets {
    struct arena mem;
    const char *path;
    struct preset {
        const char *name, *list;
        int line;
    } * at;
    size_t n;
};

/* Which blocks the numbers of a list are for. */
static const struct layout {
    int n;
    bool sd, xl; /* for SD 1.x and 2.x, for SDXL */
    int8_t block[ADAPTER_BLOCKS];
} layouts[] = {
    {17, true, false, {0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25}},
    {12, false, true, {0, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18, 19}},
    {20, false, true, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22}},
    {26, true, true, {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                      13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25}},
};

/* For SDXL the same halves of its 12 blocks with attention: shallow ones are IN04, IN05 and OUT03
 * to OUT05, deep ones IN07, IN08 and OUT00 to OUT02. */
static const struct {
    const char *name, *sd, *xl;
} builtin[] = {
    {"NONE", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,0,0,0"},
    {"ALL", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "1,1,1,1,1,1,1,1,1,1,1,1"},
    {"INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0", "1,1,1,0,0,0,0,0,0,0,0,0"},
    {"IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0", "1,0,0,1,1,0,0,0,0,0,0,0"},
    {"INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0", "1,1,1,1,1,0,0,0,0,0,0,0"},
    {"MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", "1,0,0,1,1,1,1,1,1,0,0,0"},
    {"OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "1,0,0,0,0,0,1,1,1,0,0,0"},
    {"OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1", "1,0,0,0,0,0,0,0,0,1,1,1"},
    {"OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1", "1,0,0,0,0,0,1,1,1,1,1,1"},
    {"ALL0.5", ".5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5",
     ".5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5,.5"},
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* text[len] without blanks at its ends. */
static const char *trim(const char *text, size_t *len)
{
    while (*len > 0 && is_blank(text[0])) {
        text++;
        --*len;
    }
    while (*len > 0 && is_blank(text[*len - 1]))
        --*len;
    return text;
}

static kron_status add_line(struct adapter_presets *p, const char *line, size_t len, int number)
{
    line = trim(line, &len);
    if (len == 0 || line[0] == '#')
        return KRON_OK;
    const char *colon = memchr(line, ':', len);
    if (colon == NULL || colon == line)
        return err_set(KRON_ERR_FORMAT, "%s: line %d: expected NAME:NUMBER,NUMBER,...", p->path,
                       number);
    size_t name_len = (size_t)(colon - line), list_len = len - name_len - 1;
    const char *name = trim(line, &name_len), *list = trim(colon + 1, &list_len);
    struct preset *to = &p->at[p->n];
    to->name = arena_printf(&p->mem, "%.*s", (int)name_len, name);
    to->list = arena_printf(&p->mem, "%.*s", (int)list_len, list);
    to->line = number;
    if (to->name == NULL || to->list == NULL)
        return p->mem.status;
    p->n++;
    return KRON_OK;
}

static kron_status add_lines(struct adapter_presets *p, const char *text)
{
    size_t n = 1;
    kron_status status = KRON_OK;
    void *at;

    for (const char *c = text; *c != '\0'; c++)
        n += *c == '\n';
    KRON_TRY(mem_alloc_n(&at, n, sizeof *p->at, "presets of block weights"));
    p->at = at;
    for (int line = 1; status == KRON_OK; line++) {
        size_t len = strcspn(text, "\n");
        status = add_line(p, text, len, line);
        text += len;
        if (*text++ == '\0')
            break;
    }
    return status;
}

kron_status adapter_presets_read(struct adapter_presets **out, const char *path)
{
    enum { MAX_BYTES = 1 << 20 };
    char *text;
    size_t bytes;
    void *mem;

    *out = NULL;
    KRON_TRY(file_read(&text, &bytes, path, MAX_BYTES));
    kron_status status = mem_alloc(&mem, sizeof **out, "presets of block weights");
    struct adapter_presets *p = mem;
    if (status == KRON_OK) {
        p->path = arena_strdup(&p->mem, path);
        status = p->path != NULL ? add_lines(p, text) : p->mem.status;
    }
    mem_free(text);
    if (status != KRON_OK)
        adapter_presets_free(&p);
    *out = p;
    return status;
}

void adapter_presets_free(struct adapter_presets **p)
{
    if (*p == NULL)
        return;
    arena_free(&(*p)->mem);
    mem_free((*p)->at);
    mem_free(*p);
    *p = NULL;
}

/* The list of that name, NULL if there is none. Where a name stands twice the later counts. */
static const struct preset *find_preset(const struct adapter_presets *p, const char *name)
{
    for (size_t i = p != NULL ? p->n : 0; i > 0; i--)
        if (strcmp(p->at[i - 1].name, name) == 0)
            return &p->at[i - 1];
    return NULL;
}

static const char *find_builtin(const char *name, bool xl)
{
    for (size_t i = 0; i < sizeof builtin / sizeof *builtin; i++)
        if (strcmp(builtin[i].name, name) == 0)
            return xl ? builtin[i].xl : builtin[i].sd;
    return NULL;
}

static bool read_number(const char *text, size_t len, float *out)
{
    char copy[32];
    double v;

    text = trim(text, &len);
    if (len == 0 || len >= sizeof copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (!str_to_double(copy, &v) || !(fabs(v) <= 1e6))
        return false;
    *out = (float)v;
    return true;
}

/* The numbers of a list into v, at most `max` of them; their count. *bad: the first that is no
 * number, or NULL. */
static int read_list(const char *text, float *v, int max, const char **bad)
{
    int n = 0;

    *bad = NULL;
    for (;; n++) {
        size_t len = strcspn(text, ",");
        float x = 0;
        if (!read_number(text, len, &x) && *bad == NULL)
            *bad = text;
        if (n < max)
            v[n] = x;
        if (text[len] == '\0')
            return n + 1;
        text += len + 1;
    }
}

static const struct layout *layout_of(int n, bool xl)
{
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].n == n && (xl ? layouts[i].xl : layouts[i].sd))
            return &layouts[i];
    return NULL;
}

static kron_status list_error(const char *bad, int n, bool xl)
{
    if (bad != NULL && (bad[0] == 'R' || bad[0] == 'U' || bad[0] == 'X'))
        return err_set(KRON_ERR_ARGUMENT,
                       "%c stands for a random or inherited block weight, which "
                       "Kron does not have",
                       bad[0]);
    if (bad != NULL)
        return err_set(KRON_ERR_ARGUMENT, "'%.*s' is no block weight", (int)strcspn(bad, ","), bad);
    return err_set(KRON_ERR_ARGUMENT, "%d block weights, expected %s", n,
                   xl ? "12, 20 or 26 (SDXL)" : "17 or 26 (SD 1.x, SD 2.x)");
}

static kron_status blocks_from_list(const char *list, bool xl, float *out)
{
    float v[ADAPTER_BLOCKS];
    const char *bad;
    int n = read_list(list, v, ADAPTER_BLOCKS, &bad);
    const struct layout *layout = layout_of(n, xl);

    if (bad != NULL || layout == NULL)
        return list_error(bad, n, xl);
    memset(out, 0, ADAPTER_BLOCKS * sizeof *out);
    for (int i = 0; i < n; i++)
        out[layout->block[i]] = v[i];
    return KRON_OK;
}

static kron_status no_preset(const struct adapter_presets *p, const char *name)
{
    struct str names = {0};
    kron_status status;

    for (size_t i = 0; i < sizeof builtin / sizeof *builtin; i++)
        str_addf(&names, " %s", builtin[i].name);
    status = err_set(KRON_ERR_ARGUMENT, "no block weights are called '%s'; there are%s%s%s", name,
                     str_get(&names), p != NULL ? " and those in " : "", p != NULL ? p->path : "");
    str_free(&names);
    return status;
}

kron_status adapter_blocks_read(const struct adapter_presets *p, const char *text, bool xl,
                                float *out)
{
    const struct preset *own = find_preset(p, text);
    const char *list = find_builtin(text, xl);

    if (own != NULL) {
        kron_status status = blocks_from_list(own->list, xl, out);
        return status == KRON_OK ? status : err_prefix(status, "%s: line %d", p->path, own->line);
    }
    if (list == NULL && strchr(text, ',') == NULL)
        return no_preset(p, text);
    return blocks_from_list(list != NULL ? list : text, xl, out);
}
