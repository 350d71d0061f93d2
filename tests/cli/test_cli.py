#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sd-cli from the outside: what it draws, what it answers to bad input.
   test_cli.py build/bin/sd-cli [unittest options]"""
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import ckpt
import png

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODELS = os.path.join(ROOT, "models")
MODEL = os.path.join(MODELS, "emoji-sd.safetensors")
PROGRAM = None

# Waiting threads sleep: on a busy machine spinning ones make each small picture take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensors(shapes):
    """A well-formed file of f16 zeros."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return safetensors(header, bytes(at))


def difference(a, b):
    """Mean of the absolute differences of two lots of bytes."""
    assert len(a) == len(b)
    return sum(abs(x - y) for x, y in zip(a, b)) / len(a)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kron-cli-")
        self.out = os.path.join(self.folder, "out")
        os.mkdir(self.out)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def make(self, name, data):
        with open(self.path(name), "wb") as f:
            f.write(data)
        return self.path(name)

    def run_cli(self, *args, **how):
        return subprocess.run([PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=300, cwd=self.folder, **how)

    def draw(self, *args, name="out/a.png"):
        """Draws 64 x 64 in 2 steps unless args say otherwise; the pixels of out/a.png."""
        got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 2, "--cfg-scale", 3,
                           "-o", name, "-p", "a cat face", *args)
        self.assertEqual(got.returncode, 0, got.stderr)
        return png.read(self.path(name)) if name.endswith("a.png") else None

    def refuse(self, code, words, *args, **how):
        """The program ends with `code`, one line of complaint with all `words`, and no file."""
        before = self.files()
        got = self.run_cli(*args, **how)
        self.assertEqual(got.returncode, code, got.stderr)
        lines = [s for s in got.stderr.splitlines() if s.startswith("sd-cli: ")]
        self.assertEqual(len(lines), 1, got.stderr)
        self.assertEqual(got.stdout, "")
        for word in words:
            self.assertIn(word.lower(), lines[0].lower())
        self.assertEqual(self.files(), before)
        return lines[0]

    def files(self):
        return sorted(os.path.join(d, f) for d, _, names in os.walk(self.folder) for f in names)


class Usage(Case):
    def test_help_names_every_option_of_the_issue(self):
        got = self.run_cli("-h")
        self.assertEqual(got.returncode, 0)
        for name in ("--model", "--vae", "--prompt", "--init-img", "--mask", "--strength",
                     "--lora-model-dir", "--lora-apply-mode", "--clip-skip", "--vae-tiling",
                     "--preview", "--sampling-method", "--rng", "--metadata-format"):
            self.assertIn(name, got.stdout)
        self.assertEqual(self.run_cli("-M", "help").stdout, got.stdout)
        self.assertTrue(all(len(s) <= 100 for s in got.stdout.splitlines()))

    def test_version(self):
        got = self.run_cli("--version")
        self.assertRegex(got.stdout, r"^sd-cli \(Kron\) \d+\.\d+\.\d+\n$")

    def test_wrong_options_are_named(self):
        for words, *args in (
                (["nothing to do"],),
                (["--stesp", "--steps"], "--stesp", 4),
                (["--frobnicate", "-h"], "--frobnicate"),
                (["--control-net", "not in this version"], "--control-net", "x"),
                (["--hires", "not in this version"], "--hires"),
                (["-r", "not in this version"], "-r", "x.png"),
                (["upscale", "not in this version"], "-M", "upscale"),
                (["tae", "not in this version"], "--preview", "tae"),
                (["std_default", "not in this version"], "--rng", "std_default"),
                (["edm_v", "not in this version"], "--prediction", "edm_v"),
                (["q7_0", "q8_0"], "--type", "q7_0"),
                (["rule", "f17"], "-p", "x", "-m", MODEL, "--tensor-type-rules", "a=f17"),
                (["--backend", "cpu, ref"], "--backend", "abacus"),
                (["--steps 0", "1 to 999"], "--steps", 0),
                (["--steps 4x", "whole number"], "--steps", "4x"),
                (["--steps", "whole number"], "--steps", ""),
                (["--cfg-scale nan", "number"], "--cfg-scale", "nan"),
                (["--strength 1.5", "0 to 1"], "--strength", 1.5),
                (["-s 1e3", "whole number"], "-s", "1e3"),
                (["-s", "2^63"], "-s", "9223372036854775808"),
                (["--vae-tile-size 32x4", "8 to"], "--vae-tile-size", "32x4"),
                (["--vae-tile-size 32y", "48x32"], "--vae-tile-size", "32y"),
                (["--vae-relative-tile-size 0", "0.5 or 3x2"], "--vae-relative-tile-size", 0),
                (["--max-memory 3Q", "3G or 800M"], "--max-memory", "3Q"),
                (["--max-memory G", "3G or 800M"], "--max-memory", "G"),
                (["--max-vram -2", "3G or 800M"], "--max-vram", "-2"),
                (["--max-memory 1M", "at least 64M"], "--max-memory", "1M"),
                (["--sigmas 1,2,0", "falling"], "--sigmas", "1,2,0"),
                (["--sigmas 3,1", "last 0"], "--sigmas", "3,1"),
                (["-p", "needs a value"], "-p", "--steps", 4),
                (["--scheduler", "needs a value"], "--scheduler"),
                (["word", "-p"], "word"),
                (["model", "-m"], "-p", "x"),
                (["prompt", "-p"], "-m", MODEL),
                (["--image"], "-M", "metadata"),
                (["--width 100", "96", "104"], "-m", MODEL, "-p", "x", "-W", 100),
                (["--height 63", "56", "64"], "-m", MODEL, "-p", "x", "-H", 63),
                (["--mask", "--init-img"], "-m", MODEL, "-p", "x", "--mask", "m.png"),
                (["img2img", "--init-img"], "-M", "img2img", "-m", MODEL, "-p", "x"),
                (["lora", "no such folder"], "-m", MODEL, "-p", "x", "--lora-model-dir", "no"),
                (["--lora", "'a:b'", "strength"], "-m", MODEL, "-p", "x", "--lora", "a:b"),
                (["--lora", "'a:start=2.5'", "share"], "-m", MODEL, "-p", "x", "--lora",
                 "a:start=2.5"),
                (["--lora", "lbw="], "-m", MODEL, "-p", "x", "--lora", "a:size=2"),
                (["only one"], "-m", MODEL, "-p", "x", "--prompt-file", "y")):
            with self.subTest(args=args):
                self.refuse(2, words, *args)

    def test_output_that_cannot_be_written_is_found_first(self):
        for name, words in (("missing/a.png", ["no folder", "missing"]), ("out", ["folder"]),
                            ("out/a.webp", ["PNG", "JPEG"])):
            with self.subTest(name=name):
                # The model does not exist either: it must not have come that far.
                self.refuse(1, words, "-m", "nofile", "-p", "x", "-o", name)


class BadFiles(Case):
    def test_damaged_models_are_one_clear_line(self):
        one = {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}
        for name, data in {
                "empty": b"",
                "short": b"\x10\0\0",
                "cut_header": safetensors({"a": one}, bytes(8))[:20],
                "long_header": safetensors({"a": one}, bytes(8), length=1 << 40),
                "huge_header": safetensors({"a": one}, bytes(8), length=(1 << 64) - 1),
                "not_json": safetensors(b"{\"a\": [}", bytes(8)),
                "cut_data": safetensors({"a": one}, bytes(4)),
                "overlap": safetensors({"a": one, "b": {**one, "data_offsets": [4, 12]}},
                                       bytes(12)),
                "lying_shape": safetensors({"a": {**one, "shape": [1 << 40, 1 << 40]}}, bytes(8)),
                "wrong_size": safetensors({"a": {**one, "shape": [5]}}, bytes(8)),
                "backwards": safetensors({"a": {**one, "data_offsets": [8, 0]}}, bytes(8)),
        }.items():
            with self.subTest(name):
                self.make(name + ".safetensors", data)
                self.refuse(1, [name + ".safetensors"], "-m", name + ".safetensors", "-p", "x",
                            "-o", "out/a.png")

    def test_a_model_cut_in_half_is_refused(self):
        with open(MODEL, "rb") as f:
            data = f.read(os.path.getsize(MODEL) // 2)
        self.refuse(1, ["half.safetensors"], "-m", self.make("half.safetensors", data), "-p", "x",
                    "-o", "out/a.png")

    def test_an_unknown_kind_says_so(self):
        self.make("other.safetensors", tensors({"transformer.blocks.0.attn.weight": [8, 8]}))
        self.refuse(1, ["other.safetensors"], "-m", "other.safetensors", "-p", "x", "-o",
                    "out/a.png")
        self.make("half.safetensors", tensors(
            {"model.diffusion_model.input_blocks.0.0.weight": [32, 4, 3, 3]}))
        self.refuse(1, ["half.safetensors"], "-m", "half.safetensors", "-p", "x", "-o",
                    "out/a.png")

    def test_a_missing_model_is_named(self):
        self.refuse(1, ["nofile.safetensors"], "-m", "nofile.safetensors", "-p", "x")

    def test_an_adapter_of_another_kind_is_refused(self):
        shapes = {}
        for block in ("input_blocks_4_1", "input_blocks_7_1", "output_blocks_0_1"):
            width = 640 if block == "input_blocks_4_1" else 1280
            for layer, inner in (("attn1_to_q", width), ("attn2_to_k", 2048)):
                key = "lora_unet_%s_transformer_blocks_0_%s" % (block, layer)
                shapes[key + ".lora_down.weight"] = [4, inner]
                shapes[key + ".lora_up.weight"] = [width, 4]
                shapes[key + ".alpha"] = []
        self.make("xl.safetensors", tensors(shapes))
        self.refuse(1, ["xl", "0 of 6", "for SDXL", "SD 1.x"], "-m", MODEL, "-W", 64, "-H", 64,
                    "--steps", 1, "--lora-model-dir", ".", "-p", "x <lora:xl:1>", "-o", "out/a.png")

    def test_a_missing_lora_option_or_preset_is_named(self):
        neon = os.path.join(MODELS, "lokr-neon.safetensors")
        base = ["-m", MODEL, "-W", 64, "-H", 64, "--steps", 1, "-p", "x", "-o", "out/a.png"]
        self.refuse(1, ["nothere.safetensors"], *base, "--lora", "nothere.safetensors:1")
        self.refuse(1, ["lbw=", "'NOSUCH'", "OUTALL"], *base, "--lora", neon + ":lbw=NOSUCH")
        self.refuse(1, ["lbw=", "expected 17 or 26"], *base, "--lora", neon + ":lbw=1,2")
        self.refuse(1, ["mask.png"], *base, "--lora", neon + ":mask=mask.png")
        self.refuse(1, ["presets.txt"], *base, "--lbw-presets", "presets.txt")
        self.make("presets.txt", b"A 1,2\n")
        self.refuse(1, ["presets.txt", "line 1"], *base, "--lbw-presets", "presets.txt")

    def test_a_missing_or_damaged_adapter_is_named(self):
        self.make("bad.safetensors", safetensors({}, length=1 << 50))
        base = ["-m", MODEL, "-W", 64, "-H", 64, "--steps", 1, "-o", "out/a.png"]
        self.refuse(1, ["nothere"], *base, "--lora-model-dir", ".", "-p", "<lora:nothere:1>")
        self.refuse(1, ["bad.safetensors"], *base, "--lora-model-dir", ".", "-p", "<lora:bad:1>")
        self.refuse(1, ["lora"], *base, "-p", "<lora:bad:1>")

    def test_bad_pictures_are_named(self):
        self.make("text.png", b"no picture")
        png.write(self.path("good.png"), 64, 64, 3, bytes(64 * 64 * 3))
        with open(self.path("good.png"), "rb") as f:
            self.make("cut.png", f.read()[:-20])
        for name in ("text.png", "cut.png", "nofile.png"):
            with self.subTest(name):
                self.refuse(1, [name], "-m", "nofile", "-p", "x", "-i", name)
                self.refuse(1, [name], "-m", "nofile", "-p", "x", "-i", "good.png", "--mask", name)
                self.refuse(1, [name], "-M", "metadata", "--image", name)

    def test_out_of_memory_is_one_clear_line(self):
        limit = 700 << 20

        def shrink():
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        if self.run_cli("--version", preexec_fn=shrink).returncode != 0:
            self.skipTest("the program cannot start in little memory (a sanitizer's build)")
        self.refuse(1, ["memory"], "-m", MODEL, "-p", "x", "-W", 4096, "-H", 4096, "--steps", 1,
                    "-t", 1, "-o", "out/a.png", preexec_fn=shrink)


class Drawing(Case):
    def test_text_to_image_is_repeatable(self):
        first = self.draw()
        self.assertEqual(first[:3], (64, 64, 3))
        self.assertGreater(len(set(first[3])), 16)
        self.assertEqual(self.draw(), first)
        self.assertNotEqual(self.draw("-s", 43), first)
        self.assertNotEqual(self.draw("--rng", "cpu"), first)
        self.assertNotEqual(self.draw("-p", "a pizza"), first)
        self.assertEqual(self.draw("-s", 42, "--rng", "cuda", "--sampling-method", "euler_a"),
                         first)

    def test_a_checkpoint_of_torch_gives_the_same_picture(self):
        ckpt.write(self.path("model.ckpt"), MODEL)
        ckpt.write(self.path("neon.pt"), os.path.join(MODELS, "lokr-neon.safetensors"))
        want = self.draw("-p", "a cat face <lora:lokr-neon:1>", "--lora-model-dir", MODELS)
        self.assertNotEqual(want, self.draw())
        self.assertEqual(want, self.draw("-m", "model.ckpt", "-p", "a cat face <lora:neon:1>",
                                         "--lora-model-dir", "."))

    def test_prompt_files_and_harmless_options_change_nothing(self):
        first = self.draw("-n", "blurry")
        self.make("p.txt", b"a cat face\n")
        self.make("n.txt", b"blurry\n")
        got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 2, "--cfg-scale", 3, "-o",
                           "out/b.png", "--prompt-file", "p.txt", "--negative-prompt-file",
                           "n.txt", "--mmap", "--fa", "--guidance", "3.5")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(png.read(self.path("out/b.png")), first)
        for name in ("--mmap", "--fa", "--guidance"):
            self.assertEqual(len(re.findall("^%s .*no effect" % name, got.stderr, re.M)), 1)

    def test_names_of_a_batch(self):
        def names(*args):
            shutil.rmtree(self.out)
            os.mkdir(self.out)
            self.draw("--steps", 1, *args, name="out/none.png")
            return sorted(os.listdir(self.out))

        self.assertEqual(names("-o", "out/x.png", "-b", 3), ["x.png", "x_2.png", "x_3.png"])
        self.assertEqual(names("-o", "out/x.png", "-b", 2, "--output-begin-idx", 5),
                         ["x_5.png", "x_6.png"])
        self.assertEqual(names("-o", "out/x%03d.png", "-b", 2), ["x000.png", "x001.png"])
        self.assertEqual(names("-o", "out/x%d.jpg", "--output-begin-idx", 7), ["x7.jpg"])
        self.assertEqual(names("-o", "out/x"), ["x.png"])

    def test_a_batch_is_the_single_pictures_of_its_seeds(self):
        self.draw("-b", 2, "-s", 7)
        first, second = (png.read(self.path(n)) for n in ("out/a.png", "out/a_2.png"))
        self.assertLess(difference(self.draw("-s", 7)[3], first[3]), 0.1)
        self.assertLess(difference(self.draw("-s", 8)[3], second[3]), 0.1)
        self.assertGreater(difference(first[3], second[3]), 5)

    def test_a_random_seed_is_printed_and_repeats(self):
        got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 1, "-p", "x", "-s", -1,
                           "-o", "out/r.png")
        self.assertEqual(got.returncode, 0, got.stderr)
        seed = re.search(r"seed (\d+)", got.stdout).group(1)
        self.assertIn("seed: " + seed, got.stderr)
        again = self.draw("-p", "x", "-s", seed, "--steps", 1, "--cfg-scale", 7)
        self.assertEqual(again, png.read(self.path("out/r.png")))

    def test_parameters_come_back(self):
        prompt, negative = "a cat face, \u732b", "bad, caf\u00e9"
        for name in ("m.png", "m.jpg"):
            self.draw("-p", prompt, "-n", negative, "-s", 9, name="out/" + name)
            got = self.run_cli("-M", "metadata", "--image", "out/" + name)
            self.assertEqual(got.returncode, 0, got.stderr)
            for word in (prompt, "Negative prompt: " + negative, "Steps: 2", "Seed: 9",
                         "Size: 64x64", "CFG scale: 3", "Model: emoji-sd"):
                self.assertIn(word, got.stdout)
            got = self.run_cli("-M", "metadata", "--image", "out/" + name, "--metadata-format",
                               "json", "--metadata-all", "--metadata-raw")
            report = json.loads(got.stdout)
            value = report["texts"][0]["value"]
            self.assertTrue(value.startswith(prompt + "\nNegative prompt: " + negative + "\n"))
            self.assertGreater(len(report["parts"]), 3)

    def test_parameters_can_be_left_out(self):
        self.draw("--disable-image-metadata")
        self.assertEqual(png.texts(self.path("out/a.png")), {})
        self.draw()
        self.assertEqual(list(png.texts(self.path("out/a.png"))), ["parameters"])

    def test_image_to_image_keeps_what_strength_leaves(self):
        pixels = bytes((200 if (x // 16 + y // 16) % 2 else 40) for y in range(72)
                       for x in range(104) for _ in range(3))
        png.write(self.path("init.png"), 104, 72, 3, pixels)
        base = ["-m", MODEL, "-p", "x", "--steps", 4, "-i", "init.png"]
        result = {}
        for strength in (0.1, 0.9):
            got = self.run_cli(*base, "--strength", strength, "-o", "out/a.png")
            self.assertEqual(got.returncode, 0, got.stderr)
            width, height, _, out = png.read(self.path("out/a.png"))
            self.assertEqual((width, height), (104, 72))
            result[strength] = difference(out, pixels)
        self.assertLess(result[0.1], result[0.9])
        self.assertLess(result[0.1], 40)
        self.draw("-i", "init.png")
        self.assertEqual(png.read(self.path("out/a.png"))[:2], (64, 64))

    def test_a_size_that_is_no_multiple_of_8_is_rounded_down(self):
        png.write(self.path("init.png"), 77, 70, 3, bytes(77 * 70 * 3))
        got = self.run_cli("-m", MODEL, "-p", "x", "--steps", 1, "-i", "init.png", "-o",
                           "out/a.png")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(png.read(self.path("out/a.png"))[:2], (72, 64))

    def test_inpainting_redraws_the_white_part_only(self):
        init = bytes((x * 2 + c * 30) for y in range(64) for x in range(64) for c in range(3))
        png.write(self.path("init.png"), 64, 64, 3, init)
        mask = bytes(255 if x >= 32 else 0 for y in range(64) for x in range(64))
        png.write(self.path("mask.png"), 64, 64, 1, mask)
        out = self.draw("-i", "init.png", "--mask", "mask.png", "--strength", 1, "--steps", 4)[3]

        def part(pixels, first, last):
            return b"".join(pixels[(y * 64 + first) * 3:(y * 64 + last) * 3] for y in range(64))

        kept = difference(part(out, 0, 24), part(init, 0, 24))
        drawn = difference(part(out, 40, 64), part(init, 40, 64))
        self.assertLess(kept, 12)
        self.assertGreater(drawn, 2 * kept)

    def test_lora_options_are_tags(self):
        neon = os.path.join(MODELS, "lokr-neon.safetensors")
        fields = ":0.8:0.9:lbw=MINE:stop=0.5"
        presets = self.make("presets.txt", b"MINE:1,1,1,1,1,1,1,1,0,0,0,0,0.5,0.5,0.5,0.5,0.5\n")
        how = ["--lbw-presets", presets]
        tagged = self.draw("--lora-model-dir", MODELS, *how, "-p",
                           "a cat face <lora:lokr-neon%s>" % fields)[3]
        given = self.draw("--lora", neon + fields, *how)[3]
        self.assertLess(difference(given, tagged), 0.5)  # routes are chosen by measured speed
        twice = self.draw("--lora", neon + ":0.5", "--lora", neon + ":0.5")[3]
        once = self.draw("--lora", neon)[3]
        self.assertLess(difference(twice, once), 1)
        self.assertGreater(difference(tagged, once), 1)
        shown = self.run_cli("-M", "metadata", "--image", "out/a.png").stdout
        self.assertIn('Adapters: "<lora:lokr-neon:1:1>"', shown)

    def test_adapters_act_the_same_in_every_mode(self):
        plain = self.draw()[3]
        tag = ["--lora-model-dir", MODELS, "-p", "a cat face <lora:lokr-neon:1>"]
        runs = {mode: self.draw(*tag, "--lora-apply-mode", mode)[3]
                for mode in ("auto", "immediately", "at_runtime")}
        self.assertGreater(difference(plain, runs["auto"]), 3)
        for mode in ("immediately", "at_runtime"):
            self.assertLess(difference(runs["auto"], runs[mode]), 0.5)
        none = self.draw("--lora-model-dir", MODELS, "-p", "a cat face <lora:lokr-neon:0>")[3]
        self.assertLess(difference(plain, none), 0.05)

    def test_int8_draws_nearly_the_same(self):
        size = ["-W", 256, "-H", 256, "--steps", 4]
        plain, whole = self.draw(*size)[3], self.draw(*size, "--compute", "int8")[3]
        self.assertGreater(difference(plain, whole), 0)
        self.assertLess(difference(plain, whole), 4)

    def test_previews_are_written(self):
        for kind in ("proj", "vae"):
            self.draw("--preview", kind, "--preview-path", "out/%s.png" % kind)
            width, height, channels, pixels = png.read(self.path("out/%s.png" % kind))
            self.assertEqual(channels, 3)
            self.assertEqual(width, height)
            self.assertGreater(len(set(pixels)), 4)

    def test_tiles_and_own_noise_levels(self):
        whole = self.draw("-W", 128, "-H", 128)[3]
        for size in (("--vae-tile-size", "16x8"), ("--vae-relative-tile-size", "2x0.5")):
            tiled = self.draw("-W", 128, "-H", 128, "--vae-tiling", *size)[3]
            self.assertLess(difference(whole, tiled), 12)
            self.assertGreater(difference(whole, tiled), 0)
        for size in ("64MiB", "0.2G", "900m", "3", "-1"):
            self.assertLess(difference(whole, self.draw("-W", 128, "-H", 128, "--max-memory",
                                                        size)[3]), 2)
        self.assertNotEqual(self.draw("--sigmas", "14.6,3,0"), self.draw("--sigmas", "14.6,5,0"))

    def test_verbose_shows_buffers(self):
        got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 1, "-p", "x", "-v", "-o",
                           "out/a.png")
        self.assertRegex(got.stderr, r"compute buffers: text encoder [\d.]+ MB, unet [\d.]+ MB")

    def test_a_profile_is_a_table_and_a_trace(self):
        got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 2, "-p", "x <lora:lokr-neon:1>",
                           "--lora-model-dir", MODELS, "-o", "out/a.png", "--profile",
                           "--profile-trace", "trace.json")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertRegex(got.stdout, r"profile: [\d.]+ s, [\d.]+ s of it in \d+ operations")
        self.assertRegex(got.stdout, r"peak of the device.* [\d.]+ GFLOP/s .* [\d.]+ GB/s")
        rows = {tuple(m[:2]): m[2:] for m in re.findall(
            r"^(\w[\w ]*\w) +(\w+) +(\d+) +([\d.]+) +([\d.]+) %", got.stdout, re.M)}
        for row in [("unet", "conv2d"), ("unet", "attention"), ("text encoder", "embed"),
                    ("vae decoder", "conv2d"), ("all", "all")]:
            self.assertIn(row, rows)
        with open(self.path("trace.json")) as f:
            events = [e for e in json.load(f)["traceEvents"] if e["ph"] == "X"]
        self.assertEqual(len(events), int(rows["all", "all"][0]))
        self.assertEqual(sum(e["cat"] == "unet" and e["name"] == "conv2d" for e in events),
                         int(rows["unet", "conv2d"][0]))
        for a, b in zip(events, events[1:]):
            self.assertLessEqual(a["ts"] + a["dur"], b["ts"] + 0.002)
        self.assertTrue(any(e["args"].get("route") for e in events))
        self.assertEqual(self.files(), [self.path("out/a.png"), self.path("trace.json")])

    def test_a_trace_that_cannot_be_written_is_found_first(self):
        self.refuse(2, ["none/trace.json"], "-m", MODEL, "-p", "x", "--profile-trace",
                    "none/trace.json")

    def test_interrupt_stops_between_steps(self):
        run = subprocess.Popen([PROGRAM, "-m", MODEL, "-W", "64", "-H", "64", "--steps", "999",
                                "-p", "x", "-o", "out/a.png"], cwd=self.folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        seen = []
        for line in run.stderr:
            seen.append(line)
            if "sampling" in line:
                run.send_signal(signal.SIGINT)
                break
        out, rest = run.communicate(timeout=120)
        self.assertEqual(run.returncode, 130, "".join(seen) + rest)
        self.assertIn("stopped: 0 of 1", rest)
        self.assertEqual((out, os.listdir(self.out)), ("", []))


class Adapters(Case):
    """adapter_info, adapter_convert and convert."""
    NEON = os.path.join(MODELS, "lokr-neon.safetensors")
    SKETCH = os.path.join(MODELS, "lora-sketch.safetensors")

    def convert(self, *args):
        got = self.run_cli("-M", "adapter_convert", *args)
        self.assertEqual(got.returncode, 0, got.stderr)
        return got.stdout

    def header(self, path):
        with open(path, "rb") as f:
            return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))

    def test_info_is_text_and_json(self):
        got = self.run_cli("-M", "adapter_info", self.NEON, "-m", MODEL)
        self.assertEqual(got.returncode, 0, got.stderr)
        for words in ("LoKr", "SD 1.x", "factor", "283 of 283 layers", "lokr-neon"):
            self.assertIn(words, got.stdout)
        got = self.run_cli("-M", "adapter_info", self.SKETCH, "-m", MODEL, "--json")
        info = json.loads(got.stdout)
        self.assertEqual((info["family"], info["types"], info["modules"]), ("LoRA", ["F16"], 283))
        self.assertEqual((info["rank"], info["factor"]), ({"min": 8, "max": 8}, None))
        self.assertEqual(info["base_model"]["version"], "sd_v1")
        self.assertEqual(info["training"]["resolution"], "(256, 256)")
        model = info["model"]
        self.assertTrue(model["fits"])
        self.assertEqual(sum(c["changed"] for c in model["cover"]), 283)
        self.assertEqual(len(model["change"]["layers"]), 283)
        ratios = [x["ratio"] for x in model["change"]["layers"]]
        self.assertAlmostEqual(model["change"]["max"], max(ratios))
        self.assertTrue(all(0 < r < 1 for r in ratios))
        self.assertEqual(model["skipped"], [])

    def test_info_without_a_model_and_of_what_does_not_fit(self):
        info = json.loads(self.run_cli("-M", "adapter_info", self.NEON, "--json").stdout)
        self.assertNotIn("model", info)
        other = self.make("other.safetensors", tensors(
            {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [1, 8],
             "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": [8, 1]}))
        got = self.run_cli("-M", "adapter_info", other, "-m", MODEL, "--json")
        self.assertEqual(got.returncode, 0, got.stderr)
        info = json.loads(got.stdout)
        self.assertEqual((info["made_for"], info["model"]["fits"]), ("FLUX", False))
        self.assertIn("FLUX", info["model"]["error"])

    def test_names_change_and_the_picture_does_not(self):
        tag = ("--lora-model-dir", ".", "-p", "a cat face <lora:a:0.5>")
        shutil.copy(self.SKETCH, self.path("a.safetensors"))
        want = self.draw(*tag)
        for naming, name in (
                ("kohya_sgm", "lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight"),
                ("lycoris", "lycoris_down_blocks_0_resnets_0_conv1.lora_up.weight"),
                ("diffusers", "unet.down_blocks.0.resnets.0.conv1.lora_B.weight"),
                ("comfy", "diffusion_model.input_blocks.1.0.in_layers.2.lora_up.weight")):
            out = self.convert("--input", self.SKETCH, "-m", MODEL, "--naming", naming, "-o",
                               "a.safetensors")
            self.assertIn("283 layers, off by 0 of the whole change", out)
            self.assertIn(name, self.header(self.path("a.safetensors")))
            self.assertEqual(self.draw(*tag), want)

    def test_forms_say_what_they_lose(self):
        out = self.convert("--input", self.NEON, "--form", "lora", "--rank", 8, "-o",
                           "l.safetensors")
        lines = [s for s in out.splitlines() if "off by" in s]
        self.assertEqual(len(lines), 284)
        self.assertIn("LoRA, off by", lines[0])
        self.assertRegex(lines[-1], r"^283 layers, off by 0\.\d+ of the whole change")
        header = self.header(self.path("l.safetensors"))
        self.assertEqual(header["lora_unet_conv_in.lora_down.weight"]["shape"], [8, 4, 3, 3])
        self.assertEqual(header["__metadata__"]["kron.made_from"], "lokr-neon.safetensors:1")

    def test_a_merge_draws_what_both_draw(self):
        want = self.draw("--lora-model-dir", MODELS, "-p",
                         "a cat face <lora:lokr-neon:0.5><lora:lora-sketch:0.25>")
        self.convert("--input", self.NEON + ":0.5", "--input", self.SKETCH + ":0.25", "--type",
                     "f32", "-o", "m.safetensors")
        got = self.draw("--lora-model-dir", ".", "-p", "a cat face <lora:m:1>")
        self.assertLess(difference(got[3], want[3]), 0.02)

    def test_a_baked_checkpoint_draws_what_the_adapter_draws(self):
        want = self.draw("--lora-model-dir", MODELS, "-p", "a cat face <lora:lokr-neon:0.8>")
        for kind, tolerance in ((("--type", "f32"), 0.02), ((), 0.3)): # (): rounded to f16 again
            got = self.run_cli("-M", "convert", "-m", MODEL, "--lora", self.NEON + ":0.8", "-o",
                               "baked.safetensors", *kind)
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertIn("changed 283 of 992 tensors", got.stdout)
            picture = self.draw("-m", "baked.safetensors")
            self.assertLess(difference(picture[3], want[3]), tolerance)
        self.assertGreater(difference(self.draw()[3], want[3]), 5)

    def test_types_when_converting_and_when_drawing(self):
        # Merged: other routes follow the measured rates of each run, and round in their own way.
        want, prompt = self.draw(), ("-p", "a cat face <lora:lokr-neon:0.8>", "--lora-model-dir",
                                     MODELS, "--lora-apply-mode", "immediately")
        got = self.run_cli("-M", "convert", "-m", MODEL, "-o", "q.gguf", "--type", "Q8_0",
                           "--tensor-type-rules", "attn2=q5_1")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertRegex(got.stdout, "another type for [0-9]+ tensors")
        self.assertRegex(got.stderr, r"writing [0-9.]+ MB")
        file = self.draw("-m", "q.gguf", *prompt)
        os.mkdir(self.path("cache"))
        for words in ("made of", "from cache/kron-"):
            got = self.run_cli("-m", MODEL, "-W", 64, "-H", 64, "--steps", 2, "--cfg-scale", 3,
                               "-o", "out/a.png", *prompt, "--type", "q8_0",
                               "--tensor-type-rules", "attn2=q5_1", "--quant-cache", "cache")
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertIn(words, got.stderr)
            self.assertEqual(png.read(self.path("out/a.png")), file)
        self.assertLess(difference(self.draw("--type", "q8_0")[3], want[3]), 2)

    def test_importance_is_written_added_up_and_used(self):
        want = self.draw()
        self.assertEqual(self.draw("--imat-out", "a.gguf"), want)
        self.assertEqual(self.draw("--imat-in", "a.gguf", "--imat-out", "b.gguf"), want)
        self.assertEqual(os.path.getsize(self.path("a.gguf")),
                         os.path.getsize(self.path("b.gguf")))
        files = []
        for more in ((), ("--imat-in", "a.gguf"), ("--imat-in", "b.gguf")):
            got = self.run_cli("-M", "convert", "-m", MODEL, "-o", "q.gguf", "--type", "q4_1",
                               *more)
            self.assertEqual(got.returncode, 0, got.stderr)
            with open(self.path("q.gguf"), "rb") as f:
                files.append(f.read())
        self.assertNotEqual(files[0], files[1])
        self.refuse(1, ["importance"], "-M", "convert", "-m", MODEL, "-o", "x.gguf", "--type",
                    "q4_1", "--imat-in", MODEL)

    def test_a_killed_conversion_is_done_by_the_next(self):
        command = ["-M", "convert", "-m", MODEL, "-o", "k.gguf", "--type", "q4_0"]
        running = subprocess.Popen([PROGRAM, *command], cwd=self.folder, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        parts, end = [], time.monotonic() + 60
        while not parts and running.poll() is None and time.monotonic() < end:
            parts = [f for f in os.listdir(self.folder) if f.endswith(".part")]
        running.kill()
        running.wait()
        self.assertEqual(len(parts), 1)
        self.assertFalse(os.path.exists(self.path("k.gguf")))
        got = self.run_cli(*command)
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(sorted(os.listdir(self.folder)), ["k.gguf", "out"])

    def test_tools_refuse_what_they_cannot_do(self):
        for words, *args in (
                (["one adapter file"], "-M", "adapter_info"),
                (["belongs to no option"], "-M", "convert", "x"),
                (["--input"], "-M", "adapter_convert", "-o", "o.safetensors"),
                (["-m FILE"], "-M", "adapter_convert", "--input", self.NEON, "--naming", "comfy",
                 "-o", "o.safetensors"),
                ([".safetensors"], "-M", "adapter_convert", "--input", self.NEON, "-o", "o.png"),
                (["f8_e5m2"], "-M", "adapter_convert", "--input", self.NEON, "--type", "q8_0",
                 "-o", "o.safetensors"),
                ([".gguf"], "-M", "convert", "-m", MODEL, "-o", "o.png"),
                (["quant-cache"], "-m", MODEL, "-p", "x", "--type", "q8_0", "--quant-cache",
                 "nowhere")):
            self.refuse(2, words, *args)
        self.refuse(1, ["rank"], "-M", "adapter_convert", "--input", self.NEON, "--form", "lora",
                    "-o", "o.safetensors")
        self.refuse(1, ["nowhere"], "-M", "adapter_info", "nowhere.safetensors")
        self.refuse(1, ["folder"], "-M", "convert", "-m", MODELS, "--type", "f16", "-o",
                    "o.safetensors")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    if not os.path.exists(MODEL):
        sys.exit("test_cli.py: %s is missing" % MODEL)
    unittest.main()
