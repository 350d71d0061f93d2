/* SPDX-License-Identifier: MIT
 * Any text as names of tensors, one a line: split and looked up among a few layers of each
 * network. Whatever is found must be found again by the layer's own name. */
#include "adapter/family.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct layer layers[] = {
    {.id = 0, .part = PART_UNET, .name = "conv_in", .native = "input_blocks.0.0"},
    {.id = 1,
     .part = PART_UNET,
     .name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
     .native = "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0"},
    {.id = 2, .part = PART_UNET, .name = "x_y.z", .native = "a_b.c"},
    {.id = 3, .part = PART_UNET, .name = "x.y_z", .native = "a.b_c"},
    {.id = 4,
     .part = PART_TE0,
     .name = "encoder.layers.0.self_attn.q_proj",
     .native = "encoder.layers.0.self_attn.q_proj"},
    {.id = 5,
     .part = PART_TE1,
     .name = "text_model.encoder.layers.0.self_attn.q_proj",
     .native = "transformer.resblocks.0.attn.q_proj"},
    {.id = 6, .part = PART_VAE, .name = "decoder.conv_in", .native = "decoder.conv_in"},
};
enum { N_LAYERS = sizeof layers / sizeof *layers };

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void check_name(const struct adapter_names *names, char *name)
{
    size_t len;
    enum ap part = ap_split(name, &len);
    struct adapter_match m;

    check(len <= strlen(name) && (part == AP_COUNT) == (len == strlen(name)));
    check(part == AP_COUNT || len > 0);
    name[len] = '\0';
    m = adapter_names_find(names, name, 0);
    check(m.layer == NULL || (m.layer >= layers && m.layer < layers + N_LAYERS));
    check(m.layer == NULL || m.layer->part != PART_VAE);
    check((m.found == ADAPTER_FOUND) == (m.naming != NULL));
    if (m.found != ADAPTER_FOUND)
        return;
    check(m.layer != NULL && strlen(name) >= strlen("a_b_c"));
    for (const char *p = name; *p != '\0'; p++) /* dots and underscores are all that may differ */
        check((unsigned char)*p >= ' ' && (unsigned char)*p < 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct layer *at[N_LAYERS];
    static struct layer_table table = {.at = at, .n = N_LAYERS};
    static struct adapter_names *names;
    char *text = malloc(size + 1), *line, *end;

    for (int i = 0; i < N_LAYERS; i++)
        at[i] = &layers[i];
    if (names == NULL)
        check(adapter_names_create(&names, &table) == KRON_OK);
    check(text != NULL);
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    for (line = text; line < text + size; line = end + 1) {
        end = line + strcspn(line, "\n");
        *end = '\0';
        check_name(names, line);
        end = end < text + size ? end : text + size;
    }
    free(text);
    return 0;
}
