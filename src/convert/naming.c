/* SPDX-License-Identifier: MIT
 * The inverse of adapter/adapter_names.c: what a layer is called in files of each naming. */
#include "adapter/family.h"
#include "convert/convert.h"
#include <string.h>

static void add_underscored(struct str *out, const char *name)
{
    for (const char *c = name; *c != '\0'; c++)
        str_add_n(out, *c == '.' ? "_" : c, 1);
}

static int count_encoders(const struct layer_table *t)
{
    bool has[PART_COUNT] = {false};

    for (int i = 0; i < t->n; i++)
        has[t->at[i]->part] = true;
    return has[PART_TE0] + has[PART_TE1];
}

/* SD2's encoder is OpenCLIP's H, which ComfyUI calls so. */
static const char *comfy_encoder(const struct layer *l)
{
    if (l->part == PART_TE1)
        return "text_encoders.clip_g.transformer.text_model.";
    return l->native != NULL && strstr(l->native, "resblocks") != NULL
               ? "text_encoders.clip_h.transformer.text_model."
               : "text_encoders.clip_l.transformer.text_model.";
}

static void encoder_prefix(kron_naming naming, const struct layer *l, int n_te, struct str *out)
{
    const char *name = l->name;

    if (str_starts(name, "text_model."))
        name += strlen("text_model.");
    switch (naming) {
    case KRON_NAMING_DIFFUSERS:
        str_addf(out, "text_encoder%s.text_model.%s", l->part == PART_TE1 ? "_2" : "", name);
        break;
    case KRON_NAMING_COMFY:
        str_addf(out, "%s%s", comfy_encoder(l), name);
        break;
    default:
        str_addf(out, "lora_te%s_text_model_", n_te < 2             ? ""
                                               : l->part == PART_TE0 ? "1"
                                                                     : "2");
        add_underscored(out, name);
    }
}

static void unet_prefix(kron_naming naming, const struct layer *l, struct str *out)
{
    const char *native = l->native != NULL ? l->native : l->name;

    switch (naming) {
    case KRON_NAMING_KOHYA_SGM:
        str_add(out, "lora_unet_");
        add_underscored(out, native);
        break;
    case KRON_NAMING_LYCORIS:
        str_add(out, "lycoris_");
        add_underscored(out, l->name);
        break;
    case KRON_NAMING_DIFFUSERS:
        str_addf(out, "unet.%s", l->name);
        break;
    case KRON_NAMING_COMFY:
        str_addf(out, "diffusion_model.%s", native);
        break;
    default:
        str_add(out, "lora_unet_");
        add_underscored(out, l->name);
    }
}

kron_status naming_prefix(const struct adapter_names *names, kron_naming naming,
                          const struct layer *l, struct str *out)
{
    size_t from = out->len;
    struct adapter_match m;

    if (l->part == PART_UNET)
        unet_prefix(naming, l, out);
    else
        encoder_prefix(naming, l, count_encoders(names_layers(names)), out);
    KRON_TRY(out->status);
    m = adapter_names_find(names, out->s + from, l->in);
    if (m.found != ADAPTER_FOUND || m.layer != l)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: the layer has no name of its own in this naming "
                       "('%s' would name another)", l->name, out->s + from);
    return KRON_OK;
}
