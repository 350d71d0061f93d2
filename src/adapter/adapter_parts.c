/* SPDX-License-Identifier: MIT
 * The endings that tensor names of adapters have, and what part of a module each is. */
#include "adapter/family.h"
#include <string.h>

struct ending {
    const char *text;
    enum ap part;
};

/* Up is the side of the output: PEFT's B. Old diffusers files put "_lora" on the projection's
 * own name ("processor.to_q_lora.up.weight"), so that ending has no dot. */
static const struct ending endings[] = {
    {".lora_up.weight", AP_LORA_UP},
    {".lora_down.weight", AP_LORA_DOWN},
    {".lora_mid.weight", AP_LORA_MID},
    {".lora_B.weight", AP_LORA_UP},
    {".lora_A.weight", AP_LORA_DOWN},
    {".lora_B.default.weight", AP_LORA_UP},
    {".lora_A.default.weight", AP_LORA_DOWN},
    {".lora_B", AP_LORA_UP},
    {".lora_A", AP_LORA_DOWN},
    {".lora.up.weight", AP_LORA_UP},
    {".lora.down.weight", AP_LORA_DOWN},
    {"_lora.up.weight", AP_LORA_UP},
    {"_lora.down.weight", AP_LORA_DOWN},
    {".lora_linear_layer.up.weight", AP_LORA_UP},
    {".lora_linear_layer.down.weight", AP_LORA_DOWN},
    {".lora_up.bias", AP_LORA_BIAS},
    {".lora_B.bias", AP_LORA_BIAS},
    {".lora_B.default.bias", AP_LORA_BIAS},
    {".alpha", AP_ALPHA},
    {"_lora.alpha", AP_ALPHA},
    {".lora.alpha", AP_ALPHA},
    {".lora_linear_layer.alpha", AP_ALPHA},
    {".scale", AP_SCALE},
    {".scalar", AP_SCALAR},
    {".lokr_w1", AP_LOKR_W1},
    {".lokr_w1_a", AP_LOKR_W1_A},
    {".lokr_w1_b", AP_LOKR_W1_B},
    {".lokr_w2", AP_LOKR_W2},
    {".lokr_w2_a", AP_LOKR_W2_A},
    {".lokr_w2_b", AP_LOKR_W2_B},
    {".lokr_t2", AP_LOKR_T2},
    {".hada_w1_a", AP_HADA_W1_A},
    {".hada_w1_b", AP_HADA_W1_B},
    {".hada_w2_a", AP_HADA_W2_A},
    {".hada_w2_b", AP_HADA_W2_B},
    {".hada_t1", AP_HADA_T1},
    {".hada_t2", AP_HADA_T2},
    {".diff", AP_DIFF},
    {".diff_b", AP_DIFF_B},
    {".bias_indices", AP_SPARSE_INDICES},
    {".bias_values", AP_SPARSE_VALUES},
    {".bias_size", AP_SPARSE_SIZE},
    {".w_norm", AP_W_NORM},
    {".b_norm", AP_B_NORM},
    {".dora_scale", AP_DORA_SCALE},
    {".lora_magnitude_vector", AP_DORA_SCALE},
    {".lora_magnitude_vector.weight", AP_DORA_SCALE},
    {".lora_magnitude_vector.default.weight", AP_DORA_SCALE},
    {".oft_blocks", AP_OFT_BLOCKS},
    {".oft_diag", AP_OFT_DIAG},
    {".oft_R.weight", AP_OFT_R},
    {".rescale", AP_RESCALE},
    {".a1.weight", AP_GLORA_A1},
    {".a2.weight", AP_GLORA_A2},
    {".b1.weight", AP_GLORA_B1},
    {".b2.weight", AP_GLORA_B2},
    {".bm.weight", AP_GLORA_BM},
    {".weight", AP_IA3_WEIGHT},
    {".on_input", AP_IA3_ON_INPUT},
    {".ia3_l", AP_IA3_L},
    {".set_weight", AP_SET_WEIGHT},
    {".reshape_weight", AP_RESHAPE_WEIGHT},
    /* XLabs numbers a block's two streams; the number stays in the module's name. */
    {"_lora1.up.weight", AP_LORA_UP},
    {"_lora1.down.weight", AP_LORA_DOWN},
    {"_lora2.up.weight", AP_LORA_UP},
    {"_lora2.down.weight", AP_LORA_DOWN},
    {".lora_up", AP_PACKED_UP},
    {".lora_down", AP_PACKED_DOWN},
};

enum ap ap_split(const char *name, size_t *prefix_len)
{
    size_t len = strlen(name), best = 0;
    enum ap part = AP_COUNT;

    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = strlen(endings[i].text);
        if (n > best && n < len && memcmp(name + len - n, endings[i].text, n) == 0) {
            best = n;
            part = endings[i].part;
        }
    }
    *prefix_len = len - best;
    if (str_starts(name + *prefix_len, "_lora1.") || str_starts(name + *prefix_len, "_lora2."))
        *prefix_len += strlen("_lora1");
    return part;
}

const char *fam_text(enum fam f)
{
    static const char *const text[] = {
#define FAM_TEXT(name, kind, txt) txt,
        FAM_LIST(FAM_TEXT)
#undef FAM_TEXT
    };
    return text[f];
}

enum fam_kind fam_kind(enum fam f)
{
    static const enum fam_kind kind[] = {
#define FAM_KIND(name, knd, txt) FAM_##knd,
        FAM_LIST(FAM_KIND)
#undef FAM_KIND
    };
    return kind[f];
}

enum fam part_family(enum ap part)
{
    static const enum fam of[] = {
#define AP_FAM(name, fam) FAM_##fam,
        AP_LIST(AP_FAM)
#undef AP_FAM
    };
    return of[part];
}

unsigned module_families(const struct adapter_module *m)
{
    unsigned bits = 0;

    for (int i = 0; i < AP_COUNT; i++)
        if (m->part[i] != NULL && part_family((enum ap)i) != FAM_NONE)
            bits |= 1u << part_family((enum ap)i);
    /* Both orthogonal families call their blocks the same; butterflies have one axis more. */
    if (m->part[AP_OFT_BLOCKS] != NULL && m->part[AP_OFT_BLOCKS]->n_dims == 4)
        bits = (bits & ~(1u << FAM_OFT)) | 1u << FAM_BOFT;
    return bits;
}
