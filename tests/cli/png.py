# SPDX-License-Identifier: MIT
"""Just enough PNG to look at what sd-cli wrote: 8 bits, grey or RGB, not interlaced."""
import struct
import zlib


def chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8:at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", data, at + 8 + size)[0]
        yield kind, body
        at += size + 12


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def read(path):
    """(width, height, channels, bytes)"""
    with open(path, "rb") as f:
        parts = list(chunks(f.read()))
    assert parts[-1][0] == b"IEND"
    width, height, depth, kind, _, _, interlace = struct.unpack(">IIBBBBB", parts[0][1])
    assert depth == 8 and kind in (0, 2) and interlace == 0
    n = 1 if kind == 0 else 3
    raw = zlib.decompress(b"".join(body for name, body in parts if name == b"IDAT"))
    out, above = bytearray(), bytes(width * n)
    for y in range(height):
        start = y * (width * n + 1)
        rule, row = raw[start], bytearray(raw[start + 1:start + 1 + width * n])
        for i in range(len(row)):
            a = row[i - n] if i >= n else 0
            b = above[i]
            c = above[i - n] if i >= n else 0
            row[i] = (row[i] + (0, a, b, (a + b) // 2, paeth(a, b, c))[rule]) & 255
        out += row
        above = row
    return width, height, n, bytes(out)


def write(path, width, height, channels, pixels):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body))

    stride = width * channels
    raw = b"".join(b"\0" + pixels[y * stride:(y + 1) * stride] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) +
                chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def texts(path):
    with open(path, "rb") as f:
        return {body.split(b"\0")[0].decode("latin-1"): body
                for name, body in chunks(f.read()) if name in (b"tEXt", b"iTXt")}
