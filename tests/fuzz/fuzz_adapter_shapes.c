/* SPDX-License-Identifier: MIT
 * A sound file of tensors that need not fit: bytes choose each tensor's part, layer, type and
 * shape. Bound and run as in fuzz_adapter_apply, which seldom gets past the header. */
#include "adapter_layers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const parts[] = {
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_B.weight", "lora_A.weight",
    "lora_B.bias",    "alpha",            "scale",           "scalar",        "lokr_w1",
    "lokr_w1_a",      "lokr_w1_b",        "lokr_w2",         "lokr_w2_a",     "lokr_w2_b",
    "lokr_t2",        "hada_w1_a",        "hada_w1_b",       "hada_w2_a",     "hada_w2_b",
    "hada_t1",        "hada_t2",          "diff",            "diff_b",        "bias_indices",
    "bias_values",    "bias_size",        "w_norm",          "b_norm",        "dora_scale",
    "oft_blocks",     "oft_diag",         "oft_R.weight",    "rescale",       "a1.weight",
    "a2.weight",      "b1.weight",        "b2.weight",       "bm.weight",     "weight",
    "on_input",       "ia3_l",            "set_weight",      "reshape_weight"};
static const char *const layers[] = {"conv_in", "time_embedding_linear_1", "conv_norm_out"};
static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F64, DT_I64};
static const int sizes[] = {1, 2, 3, 4, 6, 8, 9, 12, 18, 36, 72, 0};
enum {
    PARTS = sizeof parts / sizeof *parts,
    LAYERS = sizeof layers / sizeof *layers,
    TYPES = sizeof types / sizeof *types,
    SIZES = sizeof sizes / sizeof *sizes,
    RECORD = 5,       /* bytes of a tensor: part and layer, type and axes, three of sizes */
    MAX_TENSORS = 12,
    MAX_NUMBERS = 1 << 12
};

/* Adds the tensor that a record asks for; those with too many numbers are left out. */
static void add_tensor(const uint8_t *r, struct str *header, struct str *data)
{
    enum dtype type = types[r[1] / 8 % TYPES];
    int n_dims = r[1] % 5;
    size_t n = 1, bytes;

    for (int i = 0; i < n_dims; i++)
        n *= (size_t)sizes[r[2 + i / 2] / (i % 2 ? 16 : 1) % 16 % SIZES];
    if (n > MAX_NUMBERS)
        return;
    bytes = dtype_bytes(type, (int64_t)n);
    str_addf(header, "%s\"lora_unet_%s.%s\":{\"dtype\":\"%s\",\"shape\":[",
             header->len > 1 ? "," : "", layers[r[0] / 64 % LAYERS], parts[r[0] % 64 % PARTS],
             dtype_info(type)->name);
    for (int i = 0; i < n_dims; i++)
        str_addf(header, "%s%d", i ? "," : "",
                 sizes[r[2 + i / 2] / (i % 2 ? 16 : 1) % 16 % SIZES]);
    str_addf(header, "],\"data_offsets\":[%zu,%zu]}", data->len, data->len + bytes);
    for (size_t i = 0; i < bytes; i++) /* the last byte of a record chooses the numbers */
        str_add_n(data, &(const char){(char)(r[4] * (i % 7) + i)}, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str header = {0}, values = {0}, file = {0};

    str_add(&header, "{");
    for (size_t i = 0; i < MAX_TENSORS && (i + 1) * RECORD <= size; i++)
        add_tensor(data + i * RECORD, &header, &values);
    str_add(&header, "}");
    for (int i = 0; i < 8; i++)
        str_add_n(&file, &(const char){(char)(header.len >> 8 * i & 255)}, 1);
    str_add_n(&file, str_get(&header), header.len);
    if (values.len > 0)
        str_add_n(&file, values.s, values.len);
    check(file.status == KRON_OK && header.status == KRON_OK && values.status == KRON_OK);
    fuzz_bind((const uint8_t *)file.s, file.len, NULL, fuzz_run);
    str_free(&header);
    str_free(&values);
    str_free(&file);
    return 0;
}
