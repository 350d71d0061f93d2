#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the adapter files that fuzz_adapter_apply starts from, one of each family and layout, for
the layers of adapter_layers.h; and the same as what fuzz_adapter_shapes reads.

    python3 tests/fuzz/make_adapter_corpus.py
"""
import json
import os
import random
import re
import struct

CONV, LINEAR, NORM = "lora_unet_conv_in.", "lora_unet_time_embedding_linear_1.", \
    "lora_unet_conv_norm_out."       # [8, 4, 3, 3], [12, 8], [8]
HERE = os.path.dirname(os.path.abspath(__file__))
APPLY, SHAPES = (os.path.join(HERE, "corpus", name) for name in ("adapter_apply", "adapter_shapes"))
# The tables of fuzz_adapter_shapes.c.
PARTS = re.findall(r'"([^"]+)"', re.search(r"parts\[\] = \{(.*?)\};", open(os.path.join(
    HERE, "fuzz_adapter_shapes.c")).read(), re.S).group(1))
LAYERS, TYPES = (CONV, LINEAR, NORM), ("F32", "F16", "BF16", "F8_E4M3", "F64", "I64")
SIZES = (1, 2, 3, 4, 6, 8, 9, 12, 18, 36, 72, 0)
rng = random.Random(1)


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def numbers(shape, dtype):
    v = [rng.choice([-1, -0.5, 0.25, 0.5, 1, 2]) for _ in range(count(shape))]
    if dtype == "F32":
        return struct.pack(f"<{len(v)}f", *v)
    if dtype == "F16":
        return struct.pack(f"<{len(v)}e", *v)
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in v)
    if dtype == "I64":
        return struct.pack(f"<{len(v)}q", *([1] * len(v)))
    return bytes(rng.choice([0x38, 0xb8, 0x30, 0x3c]) for _ in v)


def record(key, shape, dtype):
    """The five bytes of a tensor; none if its name is not one of the tables'."""
    layer = next((i for i, l in enumerate(LAYERS) if key.startswith(l)), None)
    if layer is None:
        return b""
    at = [SIZES.index(d) for d in shape] + [0] * 4
    return bytes([layer * 64 + PARTS.index(key[len(LAYERS[layer]):]),
                  TYPES.index(dtype) * 8 + len(shape), at[0] + 16 * at[1], at[2] + 16 * at[3], 7])


def write(name, tensors, dtype="F32", meta=None):
    """tensors: name to shape, or to (shape, dtype)."""
    header, data, records = {}, b"", b""
    if meta:
        header["__metadata__"] = meta
    for key, shape in tensors.items():
        t = "F32" if key.endswith((".alpha", ".scale", ".scalar")) else dtype
        if isinstance(shape, tuple):
            shape, t = shape
        raw = numbers(shape, t)
        records += record(key, shape, t)
        header[key] = {"dtype": t, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(APPLY, name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    if records:
        with open(os.path.join(SHAPES, name), "wb") as f:
            f.write(records)


def both(conv, linear):
    return {**{CONV + k: v for k, v in conv.items()}, **{LINEAR + k: v for k, v in linear.items()}}


LORA_C = {"alpha": [], "lora_down.weight": [2, 4, 3, 3], "lora_up.weight": [8, 2, 1, 1]}
LORA_L = {"alpha": [], "lora_down.weight": [3, 8], "lora_up.weight": [12, 3]}
LOHA_C = {"alpha": [], "hada_w1_a": [8, 2], "hada_w1_b": [2, 36], "hada_w2_a": [8, 2],
          "hada_w2_b": [2, 36]}
LOHA_L = {"alpha": [], "hada_w1_a": [12, 2], "hada_w1_b": [2, 8], "hada_w2_a": [12, 2],
          "hada_w2_b": [2, 8]}
LOKR_C = {"alpha": [], "lokr_w1": [2, 2], "lokr_w2": [4, 2, 3, 3]}
LOKR_L = {"alpha": [], "lokr_w1": [3, 2], "lokr_w2_a": [4, 2], "lokr_w2_b": [2, 4]}
OUT_C, OUT_L = {"dora_scale": [8, 1, 1, 1]}, {"dora_scale": [12, 1]}
IN_C, IN_L = {"dora_scale": [1, 4, 1, 1]}, {"dora_scale": [1, 8]}


def main():
    for folder in (APPLY, SHAPES):
        os.makedirs(folder, exist_ok=True)
    write("lora", both(LORA_C, LORA_L), "F16")
    write("lora_mid", both({"lora_down.weight": [2, 4, 1, 1], "lora_up.weight": [8, 2, 1, 1],
                            "lora_mid.weight": [2, 2, 3, 3]}, LORA_L), "BF16")
    write("lora_bias", {"base_model.model.time_embedding.linear_1.lora_A.weight": [2, 8],
                        "base_model.model.time_embedding.linear_1.lora_B.weight": [12, 2],
                        "base_model.model.time_embedding.linear_1.lora_B.bias": [12]})
    write("loha", both(LOHA_C, LOHA_L), "BF16")
    write("loha_tucker", both({"hada_t1": [2, 2, 3, 3], "hada_w1_a": [2, 8], "hada_w1_b": [2, 4],
                               "hada_t2": [2, 2, 3, 3], "hada_w2_a": [2, 8],
                               "hada_w2_b": [2, 4]}, LOHA_L))
    write("lokr", both(LOKR_C, LOKR_L), "F16")
    write("lokr_f8", both(LOKR_C, LOKR_L), "F8_E4M3")
    write("lokr_flat", both({"lokr_w1": [2, 2], "lokr_w2": [4, 18]}, LOKR_L))
    write("lokr_across", {CONV + "lokr_w1": [2, 9], CONV + "lokr_w2": [4, 4]})
    write("lokr_both", both({"alpha": [], "lokr_w1_a": [2, 1], "lokr_w1_b": [1, 2],
                             "lokr_w2_a": [4, 1], "lokr_w2_b": [1, 2, 3, 3]},
                            {"lokr_w1_a": [3, 2], "lokr_w1_b": [2, 2], "lokr_w2": [4, 4]}))
    write("lokr_tucker", {CONV + "lokr_w1": [2, 2], CONV + "lokr_t2": [2, 2, 3, 3],
                          CONV + "lokr_w2_a": [2, 4], CONV + "lokr_w2_b": [2, 2]})
    write("lokr_cdka", both(LOKR_C, LOKR_L), meta={
        "ss_network_module": "networks.cdka", "ss_network_args": "{\"cdka_alpha\": 2}"})
    for name, conv, linear in (("lora", LORA_C, LORA_L), ("loha", LOHA_C, LOHA_L),
                               ("lokr", LOKR_C, LOKR_L)):
        write(f"dora_out_{name}", both({**conv, **OUT_C}, {**linear, **OUT_L}))
        write(f"dora_in_{name}", both({**conv, **IN_C}, {**linear, **IN_L}))
    write("dora_peft", {"base_model.model.time_embedding.linear_1.lora_A.weight": [2, 8],
                        "base_model.model.time_embedding.linear_1.lora_B.weight": [12, 2],
                        "base_model.model.time_embedding.linear_1.lora_magnitude_vector": [12]})
    write("full", {**both({"diff": [8, 4, 3, 3], "diff_b": [8]}, {"diff": [12, 8], "diff_b": [12]}),
                   NORM + "diff": [8], NORM + "diff_b": [8]}, "F16")
    write("norm", {NORM + "w_norm": [8], NORM + "b_norm": [8]})
    write("set_weight", {LINEAR + "set_weight": [12, 8], NORM + "set_weight": [8]})
    write("ia3", {CONV + "weight": [1, 8, 1, 1], CONV + "on_input": ([], "I64"),
                  LINEAR + "weight": [8], LINEAR + "on_input": ([], "I64")})
    write("ia3_peft", {"base_model.model.conv_in.ia3_l": [1, 4, 1, 1],
                       "base_model.model.time_embedding.linear_1.ia3_l": [12, 1]})
    write("oft", both({"oft_blocks": [2, 4, 4], "alpha": [], "rescale": [8, 1, 1, 1]},
                      {"oft_blocks": [3, 4, 4], "rescale": [12, 1]}))
    write("oft_kohya", {"oft_unet_time_embedding_linear_1.oft_blocks": [3, 4, 4],
                        "oft_unet_time_embedding_linear_1.alpha": []})
    write("oft_peft", {"base_model.model.time_embedding.linear_1.oft_R.weight": [2, 6]})
    write("boft", {CONV + "oft_blocks": [2, 2, 4, 4], CONV + "rescale": [8, 1, 1, 1],
                   LINEAR + "oft_blocks": [1, 3, 4, 4]})
    write("glora", {LINEAR + "alpha": [], LINEAR + "a1.weight": [8, 2], LINEAR + "a2.weight": [2, 8],
                    LINEAR + "b1.weight": [12, 2], LINEAR + "b2.weight": [2, 8]})
    write("glora_old", {LINEAR + "alpha": [], LINEAR + "a1.weight": [2, 8],
                        LINEAR + "a2.weight": [8, 2], LINEAR + "b1.weight": [2, 8],
                        LINEAR + "b2.weight": [12, 2]})
    write("sparse_bias", {LINEAR + "bias_indices": ([1, 2], "I64"), LINEAR + "bias_values": [2],
                          LINEAR + "bias_size": ([1], "I64"), **{LINEAR + k: v for k, v in
                                                                LORA_L.items()}})


if __name__ == "__main__":
    main()
