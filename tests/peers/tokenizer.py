#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares an encoder's ids with transformers' CLIPTokenizer over random Unicode text.

    python tests/peers/tokenizer.py --bpe bpe_simple_vocab_16e6.txt.gz --reference DIR \\
        --program PROGRAM [--n 4000] [--seed 1]

DIR holds goldens_tokens.py. PROGRAM reads records (u32 length, UTF-8) from stdin and answers each
with (u32 count, i32 ids); --each adds every code point between two letters. Code points newer than
either side's Unicode tables may differ: texts with characters unknown to Python's own tables are
counted apart. (tokenizers 0.2x also misorders the combining marks that Unicode 14 added: 1 random text in 10,000.)
"""
import argparse
import random
import struct
import subprocess
import sys
import unicodedata

WORDS = ["a", "cat", "The", "it's", "THEY'VE", "'ll", "<|endoftext|>", "<|ENDOFTEXT|>!!", "3d", "é",
         "BREAK", "(x:1.2)", "ﬁ", "ǅ", "İ", "ΑΣ", "naïve", "日本語", "한국어", "😀", "\u0301", "\u0323",
         "\u0307", "...", "''s", "_", "½", "\u200b", "\u3000", "\x85", "\x1c", "\x00", "\n", " "]


def random_text(rng):
    kind = rng.randrange(4)
    n = rng.randrange(1, 24)
    if kind == 0:
        return "".join(rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(n))
    if kind == 1:
        return "".join(chr(rng.randrange(1, 0x250)) for _ in range(n))
    top = 0x3100 if kind == 2 else 0x20000
    chars = (rng.randrange(1, top) for _ in range(n))
    return "".join(chr(c) for c in chars if not 0xd800 <= c < 0xe000)


def ids_of_program(program, texts):
    sent = b""
    for text in texts:
        raw = text.encode()
        sent += struct.pack("<I", len(raw)) + raw
    got = subprocess.run([program], input=sent, stdout=subprocess.PIPE, check=True).stdout
    at, rows = 0, []
    for _ in texts:
        n, = struct.unpack_from("<I", got, at)
        rows.append(list(struct.unpack_from(f"<{n}i", got, at + 4)))
        at += 4 + 4 * n
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--bpe", required=True)
    ap.add_argument("--reference", required=True)
    ap.add_argument("--program", required=True)
    ap.add_argument("--n", type=int, default=4000)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--each", action="store_true", help="also every single code point")
    a = ap.parse_args()
    sys.path.insert(0, a.reference)
    import goldens_tokens
    peer = goldens_tokens.tokenizer(a.bpe)
    rng = random.Random(a.seed)
    texts = [random_text(rng) for _ in range(a.n)]
    if a.each:
        texts += [f"a{chr(c)}b" for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    known = unknown = 0
    wanted = peer(texts, add_special_tokens=False)["input_ids"]
    for text, got, want in zip(texts, ids_of_program(a.program, texts), wanted):
        if got == want:
            continue
        if any(unicodedata.category(c) == "Cn" for c in text):
            unknown += 1
            continue
        known += 1
        if known <= 20:
            print(f"{text!r}: {got}, expected {want}")
    print(f"{len(texts)} texts, {known} differ, and {unknown} with unassigned characters")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
