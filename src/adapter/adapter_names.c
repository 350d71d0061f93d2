/* SPDX-License-Identifier: MIT
 * Every spelling of a model's layers. Dots and underscores count as the same letter, so that
 * "down_blocks.0.resnets" and "down_blocks_0_resnets" are one entry; what names begin with is a
 * table of its own, and says which networks the rest may be of. Two layers of one network whose
 * names differ only in that letter would be one entry: it is marked and reported, not guessed. */
#include "adapter/family.h"
#include <string.h>

enum { NAME_MAX = 512, TWO_LAYERS = -1, MAX_PREFIXES = 3 };

enum { UNET = 1 << PART_UNET, TE0 = 1 << PART_TE0, TE1 = 1 << PART_TE1 };

struct entry {
    const char *text;
    const struct layer *layer;
    bool native;
};

struct adapter_names {
    struct arena mem;
    struct entry *entries;
    int n_entries, cap_entries;
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
    {"lycoris_", UNET | TE0 | TE1, 0, "LyCORIS, diffusers names", "LyCORIS, sgm names"},
    {"unet_", UNET, 0, "diffusers", "OMI"},
    {"text_encoder_2_", TE1, 2, "diffusers", "diffusers"},
    {"text_encoder_", TE0, 0, "diffusers", "diffusers"},
    {"base_model_model_", UNET | TE0 | TE1, 0, "PEFT", "PEFT, sgm names"},
    {"model_diffusion_model_", UNET, 0, "checkpoint, diffusers names", "checkpoint"},
    {"diffusion_model_", UNET, 0, "ComfyUI, diffusers names", "ComfyUI"},
    {"text_encoders_clip_l_transformer_", TE0, 0, "ComfyUI", "ComfyUI"},
    {"text_encoders_clip_g_transformer_", TE1, 2, "ComfyUI", "ComfyUI"},
    {"text_encoders_clip_h_transformer_", TE0, 1, "ComfyUI", "ComfyUI"},
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

static void add_entry(struct adapter_names *n, const struct layer *l, const char *text,
                      bool native)
{
    char *own = arena_strdup(&n->mem, text);
    struct name_slot *slot;

    if (own == NULL)
        return;
    KRON_ASSERT(n->n_entries < n->cap_entries);
    slot = name_map_at(&n->map[l->part], own, strlen(own));
    if (slot->key != NULL) {
        if (slot->value == TWO_LAYERS || n->entries[slot->value].layer != l)
            slot->value = TWO_LAYERS;
        return;
    }
    *slot = (struct name_slot){own, n->n_entries};
    n->entries[n->n_entries++] = (struct entry){own, l, native};
}

/* Old diffusers files name the attention's projections after its processor, those of text
 * encoders too, and know no "to_out.0". */
static void add_processor_names(struct adapter_names *n, const struct layer *l, const char *text)
{
    static const char *const unet[][2] = {
        {"to_q", "to_q"}, {"to_k", "to_k"}, {"to_v", "to_v"}, {"to_out_0", "to_out"}};
    static const char *const te[][2] = {
        {"q_proj", "to_q"}, {"k_proj", "to_k"}, {"v_proj", "to_v"}, {"out_proj", "to_out"}};
    bool is_unet = l->part == PART_UNET;
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
        add_entry(n, l, alias, false);
        snprintf(alias, sizeof alias, "%.*s%s", (int)stem, text, (is_unet ? unet : te)[i][1]);
        add_entry(n, l, alias, false);
    }
}

static void add_layer_names(struct adapter_names *n, const struct layer *l)
{
    char text[NAME_MAX];
    const char *name = l->name;

    if (l->part != PART_UNET && str_starts(name, "text_model."))
        name += strlen("text_model.");
    if (normalise(text, name)) {
        add_entry(n, l, text, false);
        add_processor_names(n, l, text);
    }
    if (l->native != NULL && normalise(text, l->native))
        add_entry(n, l, text, true);
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
    size_t most = (size_t)layers->n * SPELLINGS;
    kron_status status;

    *out = NULL;
    KRON_TRY(mem_alloc((void **)&n, sizeof *n, "adapter names"));
    n->layers = layers;
    n->cap_entries = (int)most;
    status = mem_alloc_n((void **)&n->entries, most, sizeof *n->entries, "adapter names");
    for (int p = 0; p < PART_COUNT && status == KRON_OK; p++)
        status = name_map_create(&n->map[p], most);
    for (int i = 0; i < layers->n && status == KRON_OK; i++) {
        const struct layer *l = layers->at[i];
        if (l->part == PART_VAE)
            continue;
        n->has[l->part] = true;
        add_layer_names(n, l);
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

/* One name without its beginning, in the networks of `parts`. */
static struct adapter_match find_rest(const struct adapter_names *n, const char *rest,
                                      unsigned parts, const struct beginning *b)
{
    struct adapter_match m = {ADAPTER_NOT_FOUND, NULL, NULL};

    for (int p = 0; p < PART_COUNT; p++) {
        const char *text = rest;
        const struct name_slot *slot;

        if (!(parts & 1u << p) || !n->has[p])
            continue;
        if (p != PART_UNET && str_starts(text, "text_model_"))
            text += strlen("text_model_");
        slot = name_map_at(&n->map[p], text, strlen(text));
        if (slot->key == NULL)
            continue;
        if (m.found != ADAPTER_NOT_FOUND || slot->value == TWO_LAYERS)
            return (struct adapter_match){ADAPTER_AMBIGUOUS, NULL, NULL};
        const struct entry *e = &n->entries[slot->value];
        m = (struct adapter_match){ADAPTER_FOUND, e->layer, e->native ? b->native : b->diffusers};
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
        if (!(parts & 1u << e->layer->part))
            continue;
        same = likeness(rest, len, e->text);
        if (same > best_likeness) {
            best_likeness = same;
            best = e->layer;
        }
    }
    return best;
}

/* The beginning that a name has, NULL if none; "text_encoder_2_" stands before "text_encoder_"
 * in the table, and so on: the first is the longest. */
static const struct beginning *find_beginning(const char *name)
{
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (str_starts(name, beginnings[i].text))
            return &beginnings[i];
    return NULL;
}

struct adapter_match adapter_names_find(const struct adapter_names *n, const char *prefix)
{
    struct adapter_match m = {ADAPTER_NOT_FOUND, NULL, NULL};
    int n_te = n->has[PART_TE0] + n->has[PART_TE1];
    unsigned parts = bare.parts;
    const struct beginning *b, *first = &bare;
    char text[NAME_MAX];
    const char *rest = text;

    if (!normalise(text, prefix))
        return m;
    m = find_rest(n, rest, parts, first);
    /* Beginnings may be stacked: "unet.base_model.model.down_blocks...". */
    for (int i = 0; i < MAX_PREFIXES && m.found == ADAPTER_NOT_FOUND; i++) {
        if ((b = find_beginning(rest)) == NULL)
            break;
        rest += strlen(b->text);
        parts &= b->n_te == 0 || b->n_te == n_te ? b->parts : 0;
        first = first == &bare ? b : first;
        m = find_rest(n, rest, parts, first);
    }
    if (m.found == ADAPTER_NOT_FOUND)
        m.layer = nearest(n, rest, parts);
    return m;
}
