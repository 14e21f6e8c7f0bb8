# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes qcow2 images for the fuzzer: valid ones with every part the format has, then broken in the ways that parsers break."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

BASE = struct.Struct(">4sIQIIQIIQQIIQ")
MORE = struct.Struct(">QQQII")
BACKING_FORMAT, DATA_FILE, FEATURE_NAMES, BITMAPS, ENCRYPTION = 0xE2792ACA, 0x44415441, 0x6803F857, 0x23852875, 0x0537BE77

# (offset, width) of every field of the header
FIELDS = [(0, 4), (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8)]
FIELDS += [(72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1)]
NAMES = [b"base", b"b", b"volume.one", b"x" * 200, b"y" * 255, b"z" * 384, b"w" * 1023, b"v" * 1024, "größe".encode()]
NAMES += [b"/etc/passwd", b"../up", b"a\nb", b"a\0b", b"json:{}", b"nbd:unix:/x", b"a:b", b"-U", b"a,b", b"\xff\xfe", b" ", b"base\0"]
SIZES = [0, 512, 1 << 20, (1 << 20) + 512, 1 << 29, (1 << 29) + 512, 10 << 30, 1 << 40, 16 << 40]
EDGES = [0, 1, 2, 3, 4, 7, 8, 9, 16, 21, 22, 63, 64, 71, 72, 73, 103, 104, 105, 112, 127, 255, 256, 511, 512, 513, 528, 1023, 1024, 1025]
EDGES += [4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, 1 << 21, (1 << 22) - 1, 1 << 22, (1 << 22) + 1, 1 << 29]
EDGES += [(1 << bits) + more for bits in (31, 32, 48, 55, 56, 61, 62, 63, 64) for more in (-1, 0, 512)]


@dataclass
class Image:
    """Content of a file: pieces at offsets, zeros elsewhere."""

    size: int
    pieces: list = field(default_factory=list)

    @classmethod
    def of(cls, content: bytes) -> Image:
        return cls(len(content), [(0, bytearray(content))])

    @classmethod
    def load(cls, path: Path) -> Image:
        return cls.of(path.read_bytes())


def generate(rng: random.Random, corpus: list) -> Image:
    """One input: mostly made from scratch, sometimes from a file of the corpus; then broken none to eight times."""
    image = Image.of(rng.choice(corpus)) if corpus and rng.random() < 0.05 else _valid(rng)
    breaks = rng.choice((0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 5, 8))
    for _break in range(breaks):
        rng.choice(_BREAKS)(rng, image)
    return image


def _valid(rng: random.Random) -> Image:
    version = 3 if rng.random() < 0.75 else 2
    bits = rng.choice((9, 9, 9, 10, 12, 12, 14, 16, 16, 16, 18, 21))
    cluster = 1 << bits
    extended = version == 3 and bits >= 14 and rng.random() < 0.3
    entries = cluster // (16 if extended else 8)
    size = rng.choice(SIZES)
    needed = (size + cluster * entries - 1) // (cluster * entries)
    if needed > 1 << 14 and rng.random() < 0.98:  # large tables take long, so there are few of them
        size, needed = entries * cluster, 1
    l1_entries = needed + rng.choice((0, 0, 0, 1, 7, 60))
    l1_at = 3 * cluster
    l1_clusters = (l1_entries * 8 + cluster - 1) // cluster
    tables = [(index, 3 + l1_clusters + order) for order, index in enumerate(sorted(_indexes(rng, l1_entries)))]
    features = (1 if rng.random() < 0.1 else 0) | (16 if extended else 0)
    length = 72 if version == 2 else rng.choice((104, 104, 112, 112, 120, 160))
    header = _header_cluster(rng, version, length, cluster)
    BASE.pack_into(
        header, 0, b"QFI\xfb", version, *struct.unpack_from(">QI", header, 8), bits, size, 0, l1_entries, l1_at, cluster, 1,
        0 if rng.random() < 0.9 else 1, 0,
    )  # fmt: skip
    if version == 3:
        autoclear = rng.choice((0, 0, 0, 1, 1 << 40))
        MORE.pack_into(header, 72, features, rng.choice((0, 0, 1)), autoclear, rng.choice((4, 4, 4, 0, 6)), length)
    pieces = [(0, header), (cluster, bytearray(struct.pack(">Q", 2 * cluster))), (2 * cluster, bytearray(b"\0\1" * 4))]
    l1 = bytearray(l1_clusters * cluster if l1_clusters * cluster <= 1 << 16 else 0)
    if l1:
        for index, number in tables:
            struct.pack_into(">Q", l1, index * 8, number * cluster | 1 << 63)
        pieces.append((l1_at, l1))
        pieces += [(number * cluster, _l2_table(rng, min(entries, 512))) for _index, number in tables[:64]]
    return Image((4 + l1_clusters + len(tables)) * cluster, pieces)


def _indexes(rng: random.Random, l1_entries: int) -> set:
    if l1_entries > 4000 and rng.random() < 0.3:
        return set(range(min(l1_entries, rng.choice((4096, 4097)))))
    return {rng.randrange(l1_entries) for _entry in range(rng.choice((0, 0, 1, 1, 3, 9)))} if 0 < l1_entries <= 8192 else set()


def _l2_table(rng: random.Random, words: int) -> bytearray:
    data = bytearray(words * 8)
    for _entry in range(rng.choice((0, 1, 4, 16))):
        value = rng.choice((1, 1 << 63, (1 << 63) | 0x50000, 1 << 62 | 0x1001, 0x50001, 0xFFFFFFFF, 0xFFFFFFFF << 32, (1 << 64) - 1))
        struct.pack_into(">Q", data, rng.randrange(words) * 8, value)
    return data


def _header_cluster(rng: random.Random, version: int, length: int, cluster: int) -> bytearray:
    """Extensions and the backing name, in front of them room for the fixed fields of which the name's two are filled in."""
    out = bytearray(length)
    for kind, body in _extensions(rng):
        if len(out) + 16 + len(body) <= cluster:
            out += struct.pack(">II", kind, len(body)) + body.ljust((len(body) + 7) // 8 * 8, rng.choice((b"\0", b"\xff")))
    if rng.random() < 0.9 and len(out) + 8 <= cluster:
        out += bytes(8)
    if rng.random() < 0.8:
        name = rng.choice(NAMES if rng.random() < 0.3 else NAMES[:5])
        place = rng.choice((len(out), len(out), max(len(out), 512), max(len(out), 528), cluster - len(name), 4096, len(out) + 3))
        if len(out) <= place and place + len(name) <= cluster:
            out += bytes(place - len(out)) + name
            struct.pack_into(">QI", out, 8, place, len(name))
    return out


def _extensions(rng: random.Random) -> list:
    found = []
    if rng.random() < 0.7:
        found.append((BACKING_FORMAT, rng.choice((b"raw", b"qcow2"))))
    if rng.random() < 0.4:
        found.append((FEATURE_NAMES, b"\0\0dirty bit".ljust(48, b"\0") * rng.choice((1, 5, 8, 9))))
    if rng.random() < 0.15:
        found.append((BITMAPS, bytes(24)))
    for _extension in range(rng.choice((0, 0, 0, 1, 2, 20))):
        found.append((rng.randrange(1, 1 << 32), rng.randbytes(rng.choice((0, 1, 8, 13, 100)))))
    if rng.random() < 0.2:
        rng.shuffle(found)
    return found


# -- how an image is broken ----------------------------------------------------------------------------------------------


def _number(rng: random.Random, width: int) -> bytes:
    value = rng.choice(EDGES) if rng.random() < 0.8 else rng.getrandbits(width * 8)
    if rng.random() < 0.1:
        value = -value
    return (value % (1 << width * 8)).to_bytes(width, "big")


def _put(image: Image, offset: int, data: bytes) -> None:
    start, piece = image.pieces[0]
    if offset + len(data) <= len(piece):
        piece[offset : offset + len(data)] = data
    else:
        image.pieces.append((offset, bytearray(data)))


def _break_field(rng: random.Random, image: Image) -> None:
    offset, width = rng.choice(FIELDS)
    _put(image, offset, _number(rng, width))


def _break_backing_name(rng: random.Random, image: Image) -> None:
    _put(image, 8, _number(rng, 8) + _number(rng, 4))


def _break_features(rng: random.Random, image: Image) -> None:
    _put(image, rng.choice((72, 80, 88)), (1 << rng.randrange(64)).to_bytes(8, "big"))


def _break_extension(rng: random.Random, image: Image) -> None:
    """A kind or a length at the first places where extensions stand."""
    kinds = (0, BACKING_FORMAT, DATA_FILE, FEATURE_NAMES, BITMAPS, ENCRYPTION, 1)
    offset = rng.choice((72, 104, 112, 88, 120, 128, 136, 504))
    _put(image, offset, rng.choice(kinds).to_bytes(4, "big") + (_number(rng, 4) if rng.random() < 0.7 else b""))


def _break_bytes(rng: random.Random, image: Image) -> None:
    _start, piece = rng.choice(image.pieces)
    if piece:
        offset = rng.randrange(min(len(piece), rng.choice((128, 700, 1 << 20))))
        piece[offset] = rng.choice((0, 1, 255, 128, rng.randrange(256)))


def _break_table(rng: random.Random, image: Image) -> None:
    """Entries of L1 and L2 tables, or of whatever a broken header takes for one."""
    _start, piece = rng.choice(image.pieces)
    if len(piece) >= 8:
        places = [0, 512, 1024, 1536, 4096, 65536, 1 << 20, image.size, image.size - 512, (1 << 56) - 512]
        value = rng.choice(places) + rng.choice((0, 0, 0, 1, 512)) | rng.choice((0, 1 << 63, 1 << 62, 127 << 56))
        struct.pack_into(">Q", piece, rng.randrange(len(piece) // 8) * 8, value % (1 << 64))


def _break_copy(rng: random.Random, image: Image) -> None:
    """A part of the header again somewhere else: extensions and names that overlap."""
    piece = image.pieces[0][1]
    start = rng.randrange(len(piece) + 1)
    _put(image, rng.randrange(0, max(1, len(piece)), 4), bytes(piece[start : start + rng.choice((8, 16, 24, 100))]))


def _break_size(rng: random.Random, image: Image) -> None:
    image.size = max(
        0, rng.choice((0, 3, 20, 71, 72, 103, 104, 511, 512, 4095, image.size - 1, image.size // 2, image.size + 512, 1 << 25))
    )


def _break_table_twice(rng: random.Random, image: Image) -> None:
    """An entry stands a second time in its table, or behind it."""
    _start, piece = rng.choice(image.pieces)
    words = [offset for offset in range(0, len(piece) - 7, 8) if any(piece[offset : offset + 8])] if len(piece) <= 1 << 12 else []
    if words:
        word = rng.choice(words)
        target = rng.randrange(len(piece) // 8) * 8
        piece[target : target + 8] = piece[word : word + 8]


_BREAKS = [_break_field] * 4 + [_break_extension] * 3 + [_break_table] * 3 + [_break_bytes] * 2
_BREAKS += [_break_table_twice] * 2 + [_break_backing_name, _break_features, _break_copy, _break_size]
