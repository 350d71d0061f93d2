/* SPDX-License-Identifier: MIT
 * Every spelling of a model's layers. Dots and underscores count as the same letter, so that
 * "down_blocks.0.resnets" and "down_blocks_0_resnets" are one entry; what names begin with is a
 * table of its own, and says which networks the rest may be of. Two layers of one network whose
 * names differ only in that letter would be one entry: it is marked and reported, not guessed. */
#include "adapter/family.h"
#include <string.h>

enum { NAME_MAX = 512, TWO_LAYERS = -1, MAX_PREFIXES = 3 };

enum { UNET = 1 << PART_UNET, TE0 = 1 << PART_TE0, TE1 = 1 << PART_TE1 };

/* What a name means: a layer, and the rows of the table's layers that it stands for. */
struct meaning {
    const struct layer *layer; /* of the table, or made for an alias */
    const struct adapter_target *targets;
    int n_targets;
};

struct entry {
    const char *text;
    struct meaning is;
    bool native;
};

struct adapter_names {
    struct arena mem;
    struct entry *entries;
    int n_entries, cap_entries;
    struct adapter_target *targets; /* one for each layer, then one for each alias */
    struct name_map map[PART_COUNT]; /* text -> index of its entry, or TWO_LAYERS */
    bool has[PART_COUNT];
    enum adapter_arch arch;
    const struct layer_table *layers;
};

/* `n_te`: only for models of so many text encoders (0: any), since "lora_te1_" of an SDXL file
 * must not be taken for an SD1 model's only one. The naming is told from the UNet's names where
 * a file has any: those of text encoders are the same in several. */
struct beginning {
    const char *text;
    unsigned parts;
    int n_te;
    const char *diffusers, *native; /* naming, by whose block names follow */
};

static const struct beginning beginnings[] = {
    {"lora_unet_", UNET, 0, "kohya, diffusers names", "kohya, sgm names"},
    {"lora_te_", TE0, 1, "kohya", "kohya"},
    {"lora_te1_", TE0, 2, "kohya", "kohya"},
    {"lora_te2_", TE1, 2, "kohya", "kohya"},
    {"oft_unet_", UNET, 0, "kohya, diffusers names", "kohya, sgm names"},
    {"oft_te_", TE0, 1, "kohya", "kohya"},
    {"oft_te1_", TE0, 2, "kohya", "kohya"},
    {"oft_te2_", TE1, 2, "kohya", "kohya"},
    {"lycoris_", UNET | TE0 | TE1, 0, "LyCORIS, diffusers names", "LyCORIS, sgm names"},
    {"unet_", UNET, 0, "diffusers", "OMI"},
    {"text_encoder_2_", TE1, 2, "diffusers", "diffusers"},
    {"text_encoder_", TE0, 0, "diffusers", "diffusers"},
    {"base_model_model_", UNET | TE0 | TE1, 0, "PEFT", "PEFT, sgm names"},
    {"model_diffusion_model_", UNET, 0, "checkpoint, diffusers names", "checkpoint"},
    {"diffusion_model_", UNET, 0, "ComfyUI, diffusers names", "ComfyUI"},
    {"text_encoders_", TE0 | TE1, 0, "ComfyUI", "ComfyUI"},
    {"clip_l_transformer_", TE0, 0, "ComfyUI", "ComfyUI"},
    {"clip_g_transformer_", TE1, 2, "ComfyUI", "ComfyUI"},
    {"clip_h_transformer_", TE0, 1, "ComfyUI", "ComfyUI"},
    {"clip_l_", TE0, 0, "OMI", "OMI"},
    {"clip_g_", TE1, 2, "OMI", "OMI"},
    {"clip_h_", TE0, 1, "OMI", "OMI"},
    {"cond_stage_model_transformer_", TE0, 1, "checkpoint", "checkpoint"},
    {"cond_stage_model_model_", TE0, 1, "checkpoint", "checkpoint"},
    {"conditioner_embedders_0_transformer_", TE0, 2, "checkpoint", "checkpoint"},
    {"conditioner_embedders_1_model_", TE1, 2, "checkpoint", "checkpoint"},
};

static const struct beginning bare = {"", UNET | TE0 | TE1, 0, "diffusers, bare",
                                      "checkpoint, bare"};

/* Copies a name with dots as underscores; false if it is longer than any layer's. */
static bool normalise(char *out, const char *name)
{
    size_t n = strlen(name);

    if (n >= NAME_MAX)
        return false;
    for (size_t i = 0; i <= n; i++)
        out[i] = name[i] == '.' ? '_' : name[i];
    return true;
}

/* --- building --- */

static void add_entry(struct adapter_names *n, const struct meaning *is, const char *text,
                      bool native)
{
    const struct layer *l = is->layer;
    char *own = arena_strdup(&n->mem, text);
    struct name_slot *slot;

    if (own == NULL)
        return;
    KRON_ASSERT(n->n_entries < n->cap_entries);
    slot = name_map_at(&n->map[l->part], own, strlen(own));
    if (slot->key != NULL) {
        if (slot->value == TWO_LAYERS || n->entries[slot->value].is.layer != l)
            slot->value = TWO_LAYERS;
        return;
    }
    *slot = (struct name_slot){own, n->n_entries};
    n->entries[n->n_entries++] = (struct entry){own, *is, native};
}

/* Old diffusers files name the attention's projections after its processor, those of text
 * encoders too, and know no "to_out.0". */
static void add_processor_names(struct adapter_names *n, const struct meaning *is,
                                const char *text)
{
    static const char *const unet[][2] = {
        {"to_q", "to_q"}, {"to_k", "to_k"}, {"to_v", "to_v"}, {"to_out_0", "to_out"}};
    static const char *const te[][2] = {
        {"q_proj", "to_q"}, {"k_proj", "to_k"}, {"v_proj", "to_v"}, {"out_proj", "to_out"}};
    bool is_unet = is->layer->part == PART_UNET;
    char alias[NAME_MAX + 16];
    size_t len = strlen(text);

    for (int i = 0; i < 4; i++) {
        const char *end = is_unet ? unet[i][0] : te[i][0];
        size_t stem = len - (len < strlen(end) ? len : strlen(end));
        if (!str_ends(text, end) || stem < 6 ||
            (strncmp(text + stem - 6, is_unet ? "attn1_" : "_attn_", 6) != 0 &&
             strncmp(text + stem - 6, is_unet ? "attn2_" : "_attn_", 6) != 0))
            continue;
        snprintf(alias, sizeof alias, "%.*s%s%s", (int)stem, text, is_unet ? "processor_" : "",
                 (is_unet ? unet : te)[i][1]);
        add_entry(n, is, alias, false);
        snprintf(alias, sizeof alias, "%.*s%s", (int)stem, text, (is_unet ? unet : te)[i][1]);
        add_entry(n, is, alias, false);
    }
}

static void add_layer_names(struct adapter_names *n, const struct meaning *is)
{
    const struct layer *l = is->layer;
    char text[NAME_MAX];
    const char *name = l->name;

    if (l->part != PART_UNET && str_starts(name, "text_model."))
        name += strlen("text_model.");
    if (normalise(text, name)) {
        add_entry(n, is, text, false);
        add_processor_names(n, is, text);
    }
    if (l->native != NULL && normalise(text, l->native))
        add_entry(n, is, text, true);
}

static void add_layers(struct adapter_names *n)
{
    for (int i = 0; i < n->layers->n; i++) {
        const struct layer *l = n->layers->at[i];
        if (l->part == PART_VAE)
            continue;
        n->has[l->part] = true;
        n->targets[i] = (struct adapter_target){l, 0, l->out, 0};
        add_layer_names(n, &(struct meaning){l, &n->targets[i], 1});
    }
}

static bool scales_behind(const struct tensor *a, const struct tensor *b)
{
    if (a->scale == NULL || b->scale == NULL)
        return a->scale == b->scale;
    return a->scale_step == b->scale_step && a->scale + a->dim[0] * a->scale_step == b->scale;
}

/* Rows b directly behind rows a of the same tensor as one view; else without data. */
static struct tensor behind(const struct tensor *a, const struct tensor *b)
{
    struct tensor t = *a;

    if (a->data == NULL || b->data == NULL || a->type != b->type || !scales_behind(a, b) ||
        b->skip != 0 ||
        (const uint8_t *)a->data + a->bytes != b->data)
        return (struct tensor){0};
    t.bytes += b->bytes;
    t.dim[0] += b->dim[0];
    return t;
}

/* The biases of all targets in one; no data where one has none. */
static struct tensor alias_bias(struct adapter_names *n, const struct adapter_target *t,
                                int n_targets)
{
    int64_t rows = t[n_targets - 1].from + t[n_targets - 1].rows;
    float *own;

    for (int i = 0; i < n_targets; i++)
        if (t[i].layer->bias.data == NULL)
            return (struct tensor){0};
    own = arena_alloc(&n->mem, (size_t)rows * sizeof *own);
    for (int i = 0; own != NULL && i < n_targets; i++)
        tensor_decode(&t[i].layer->bias, t[i].at, t[i].rows, own + t[i].from);
    return (struct tensor){.data = own, .bytes = (size_t)rows * sizeof *own, .type = DT_F32,
                           .n_dims = 1, .dim = {rows, 1, 1, 1, 1, 1},
                           .name = t[0].layer->bias.name};
}

/* The layer that an alias of these targets stands for. */
static struct layer *alias_layer(struct adapter_names *n, const struct layer_alias *a,
                                 const struct adapter_target *t, int n_targets)
{
    struct layer *l = arena_alloc(&n->mem, sizeof *l);

    if (l == NULL)
        return NULL;
    *l = *t[0].layer;
    l->name = a->name;
    l->native = a->native;
    l->out = 0;
    for (int i = 0; i < n_targets; i++) {
        const struct layer *of = t[i].layer;
        struct tensor w = {0};
        KRON_ASSERT(t[i].from == l->out && of->in == l->in && of->kh == l->kh && of->kw == l->kw);
        if (of->weight.data != NULL)
            w = tensor_rows(&of->weight, t[i].at, t[i].rows);
        l->weight = i == 0 ? w : behind(&l->weight, &w);
        l->out += t[i].rows;
    }
    l->bias = alias_bias(n, t, n_targets);
    return l;
}

static void add_aliases(struct adapter_names *n)
{
    const struct layer_table *table = n->layers;
    struct adapter_target *t = n->targets + table->n;

    for (int i = 0, end; i < table->n_aliases && n->mem.status == KRON_OK; i = end) {
        const struct layer_alias *a = &table->aliases[i];
        const struct layer *l;
        for (end = i; end < table->n_aliases; end++) {
            const struct layer_alias *b = &table->aliases[end];
            if (b->layer->part != a->layer->part || strcmp(b->name, a->name) != 0)
                break;
            t[end] = (struct adapter_target){b->layer, b->at, b->rows, b->from};
        }
        l = alias_layer(n, a, &t[i], end - i);
        if (l != NULL)
            add_layer_names(n, &(struct meaning){l, &t[i], end - i});
    }
}

static enum adapter_arch table_arch(const struct adapter_names *n)
{
    int64_t context = 0;
    bool openclip = false, sized = false;

    for (int i = 0; i < n->layers->n; i++) {
        const struct layer *l = n->layers->at[i];
        if (l->part == PART_UNET && str_ends(l->name, "attn2.to_k"))
            context = l->in;
        sized = sized || (l->part == PART_UNET && str_starts(l->name, "add_embedding."));
        openclip = openclip || (l->part == PART_TE0 && l->native != NULL &&
                                strstr(l->native, "resblocks") != NULL);
    }
    if (n->has[PART_TE1] || sized)
        return ADAPTER_ARCH_SDXL;
    if (openclip || context == 1024)
        return ADAPTER_ARCH_SD2;
    return n->has[PART_TE0] || context == 768 ? ADAPTER_ARCH_SD1 : ADAPTER_ARCH_UNKNOWN;
}

kron_status adapter_names_create(struct adapter_names **out, const struct layer_table *layers)
{
    enum { SPELLINGS = 4 }; /* diffusers, native, with and without a processor */
    struct adapter_names *n;
    size_t n_targets = (size_t)layers->n + (size_t)layers->n_aliases;
    size_t most = n_targets * SPELLINGS;
    kron_status status;

    *out = NULL;
    KRON_TRY(mem_alloc((void **)&n, sizeof *n, "adapter names"));
    n->layers = layers;
    n->cap_entries = (int)most;
    status = mem_alloc_n((void **)&n->entries, most, sizeof *n->entries, "adapter names");
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&n->targets, n_targets, sizeof *n->targets,
                             "adapter names");
    for (int p = 0; p < PART_COUNT && status == KRON_OK; p++)
        status = name_map_create(&n->map[p], most);
    if (status == KRON_OK) {
        add_layers(n);
        add_aliases(n);
        status = n->mem.status;
    }
    if (status != KRON_OK) {
        adapter_names_free(&n);
        return status;
    }
    n->arch = table_arch(n);
    *out = n;
    return KRON_OK;
}

void adapter_names_free(struct adapter_names **n)
{
    if (*n == NULL)
        return;
    for (int p = 0; p < PART_COUNT; p++)
        name_map_free(&(*n)->map[p]);
    mem_free((*n)->entries);
    mem_free((*n)->targets);
    arena_free(&(*n)->mem);
    mem_free(*n);
    *n = NULL;
}

enum adapter_arch adapter_names_arch(const struct adapter_names *n)
{
    return n->arch;
}

const struct layer_table *names_layers(const struct adapter_names *n)
{
    return n->layers;
}

/* --- looking up --- */

struct search {
    const struct adapter_names *n;
    int64_t width; /* of the module's input; 0: unknown */
    int n_te;
    /* The shortest rest that was tried, for the nearest name. */
    const char *rest;
    unsigned parts;
};

static const struct entry *find_in(const struct search *s, enum layer_part p, const char *rest,
                                   bool *twice)
{
    const struct name_slot *slot;

    if (!s->n->has[p])
        return NULL;
    if (p != PART_UNET && str_starts(rest, "text_model_"))
        rest += strlen("text_model_");
    slot = name_map_at(&s->n->map[p], rest, strlen(rest));
    if (slot->key == NULL)
        return NULL;
    if (slot->value == TWO_LAYERS) {
        *twice = true;
        return NULL;
    }
    return &s->n->entries[slot->value];
}

/* Of two text encoders' layers of one name, the one that the module fits; NULL if that does not
 * tell. The real models' encoders differ in width, so this also finds the layers of files that
 * number the encoders the other way round. */
static const struct entry *by_width(const struct search *s, const struct entry *a,
                                    const struct entry *b)
{
    bool fits_a = a != NULL && a->is.layer->in == s->width;
    bool fits_b = b != NULL && b->is.layer->in == s->width;

    return fits_a == fits_b ? NULL : fits_a ? a : b;
}

/* One name without its beginning, in the networks of `parts`. */
static struct adapter_match find_rest(const struct search *s, const char *rest, unsigned parts,
                                      const struct beginning *b)
{
    static const struct adapter_match none = {.found = ADAPTER_NOT_FOUND};
    static const struct adapter_match ambiguous = {.found = ADAPTER_AMBIGUOUS};
    const struct entry *at[PART_COUNT] = {0}, *e, *better = NULL;
    bool twice = false;
    int n = 0;

    for (unsigned p = 0; p < PART_COUNT; p++) {
        at[p] = parts & 1u << p ? find_in(s, p, rest, &twice) : NULL;
        n += at[p] != NULL;
    }
    if (twice || (at[PART_UNET] != NULL && n > 1))
        return ambiguous;
    if (n == 0)
        return none;
    e = at[PART_UNET] ? at[PART_UNET] : at[PART_TE0] ? at[PART_TE0] : at[PART_TE1];
    if (s->n_te == 2 && at[PART_UNET] == NULL && s->width > 0)
        better = by_width(s, find_in(s, PART_TE0, rest, &twice),
                          find_in(s, PART_TE1, rest, &twice));
    if (n > 1 && better == NULL)
        return ambiguous;
    e = better != NULL ? better : e;
    return (struct adapter_match){.found = ADAPTER_FOUND,
                                  .layer = e->is.layer,
                                  .targets = e->is.targets,
                                  .n_targets = e->is.n_targets,
                                  .naming = e->native ? b->native : b->diffusers};
}

/* Beginnings may be stacked, "unet.base_model.model.down_blocks...", and one may be the start of
 * another: all that fit are tried. */
static struct adapter_match find_stacked(struct search *s, const char *rest, unsigned parts,
                                         const struct beginning *first, int depth)
{
    struct adapter_match m = find_rest(s, rest, parts, first);

    if (s->rest == NULL || strlen(rest) < strlen(s->rest)) {
        s->rest = rest;
        s->parts = parts;
    }
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++) {
        const struct beginning *b = &beginnings[i];
        if (m.found != ADAPTER_NOT_FOUND || depth == MAX_PREFIXES)
            break;
        if (str_starts(rest, b->text))
            m = find_stacked(s, rest + strlen(b->text),
                             b->n_te == 0 || b->n_te == s->n_te ? parts & b->parts : 0,
                             first == &bare ? b : first, depth + 1);
    }
    return m;
}

/* How alike two names are: the letters they share at both ends. */
static size_t likeness(const char *a, size_t a_len, const char *b)
{
    size_t b_len = strlen(b), most = a_len < b_len ? a_len : b_len, head = 0, tail = 0;

    while (head < most && a[head] == b[head])
        head++;
    while (tail < most - head && a[a_len - 1 - tail] == b[b_len - 1 - tail])
        tail++;
    return head + tail;
}

static const struct layer *nearest(const struct adapter_names *n, const char *rest,
                                   unsigned parts)
{
    const struct layer *best = NULL;
    size_t len, best_likeness;

    if (!(parts & UNET) && str_starts(rest, "text_model_"))
        rest += strlen("text_model_");
    len = strlen(rest);
    best_likeness = len / 2;
    for (int i = 0; i < n->n_entries; i++) {
        const struct entry *e = &n->entries[i];
        size_t same;
        if (!(parts & 1u << e->is.layer->part))
            continue;
        same = likeness(rest, len, e->text);
        if (same > best_likeness) {
            best_likeness = same;
            best = e->is.layer;
        }
    }
    return best;
}

struct adapter_match adapter_names_find(const struct adapter_names *n, const char *prefix,
                                        int64_t width)
{
    struct search s = {.n = n, .width = width, .n_te = n->has[PART_TE0] + n->has[PART_TE1]};
    struct adapter_match m = {.found = ADAPTER_NOT_FOUND};
    char text[NAME_MAX];

    if (!normalise(text, prefix))
        return m;
    m = find_stacked(&s, text, bare.parts, &bare, 0);
    if (m.found == ADAPTER_NOT_FOUND)
        m.layer = nearest(n, s.rest, s.parts);
    return m;
}
