#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the README's picture: prompts of the shipped model, each plain and with its adapters.

    tools/make_sheet.py SD_CLI [OUT.png]

Needs Pillow. Run it again when the weights in models/ are replaced; seeds are in PROMPTS.
"""
import os
import subprocess
import sys
import tempfile

from PIL import Image, ImageDraw

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = os.path.join(ROOT, "models")
PROMPTS = [("a cat face", 101), ("an orange heart", 100), ("a smiling face", 100),
           ("a smiling face with sunglasses", 107), ("a castle", 114), ("a bear face", 100)]
STYLES = [("plain", ""), ("lokr-neon", " <lora:lokr-neon:1>"),
          ("lokr-pixel", " <lora:lokr-pixel:1>"), ("lora-sketch", " <lora:lora-sketch:1>")]
CELL, LEFT, TOP = 160, 84, 34  # pixels of a picture, of the margins with the names


def draw(sd_cli, prompt, seed, path):
    command = [sd_cli, "-m", os.path.join(MODELS, "emoji-sd.safetensors"), "-p", prompt,
               "-W", "256", "-H", "256", "--steps", "20", "--cfg-scale", "5",
               "--sampling-method", "dpm++2m", "--scheduler", "karras", "-s", str(seed),
               "--lora-model-dir", MODELS, "-o", path]
    subprocess.run(command, check=True)
    return Image.open(path).convert("RGB").resize((CELL, CELL), Image.LANCZOS)


def label(canvas, middle, text):
    """Words on lines of their own where they are longer than a cell."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) > 20:
            lines.append(line)
            line = ""
        line = (line + " " + word).strip()
    canvas.multiline_text(middle, "\n".join(lines + [line]), fill="black", anchor="mm",
                          align="center")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out = sys.argv[2] if len(sys.argv) > 2 else os.path.join(ROOT, "docs", "images", "sheet.png")
    sheet = Image.new("RGB", (LEFT + CELL * len(PROMPTS), TOP + CELL * len(STYLES)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, (name, _) in enumerate(STYLES):
        label(canvas, (LEFT // 2, TOP + CELL * row + CELL // 2), name)
    with tempfile.TemporaryDirectory() as folder:
        for column, (prompt, seed) in enumerate(PROMPTS):
            label(canvas, (LEFT + CELL * column + CELL // 2, TOP // 2), prompt)
            for row, (name, tag) in enumerate(STYLES):
                path = os.path.join(folder, f"{column}-{name}.png")
                picture = draw(sys.argv[1], prompt + tag, seed, path)
                sheet.paste(picture, (LEFT + CELL * column, TOP + CELL * row))
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


main()
