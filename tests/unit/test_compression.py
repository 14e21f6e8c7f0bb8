# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed files of all kinds, in pieces of any size: whole ones give their content, and all others are refused in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import tracemalloc
import zlib
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.images.compression import NAMES, found, unpacked
from ansible_collections.remotefs.storage.plugins.module_utils.store.inspection import Refused

MIB = 1 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
KINDS = list(PACK)
CONTENT = random.Random(1).randbytes(300_000) + bytes(3 * MIB) + b"end"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def content(data: bytes, kind: str, size: int = 65536) -> bytes:
    return b"".join(unpacked(pieces(data, size), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_packed_is_unpacked(kind: str) -> None:
    packed = PACK[kind](CONTENT)
    assert found(packed) == kind
    for size in (1009, 65536, len(packed)):
        assert content(packed, kind, size) == CONTENT
    assert content(PACK[kind](b"tiny"), kind, 1) == b"tiny"


def test_without_compression_it_passes() -> None:
    assert found(CONTENT) == found(b"") == "none" and content(CONTENT, "none") == CONTENT and NAMES[0] == "none"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 65536])
def test_several_streams_are_one_file(kind: str, size: int) -> None:
    assert content(PACK[kind](b"one") + PACK[kind](b"") + PACK[kind](b"two"), kind, size) == b"onetwo"
    if kind == "xz":
        assert content(PACK[kind](b"one") + bytes(8) + PACK[kind](b"two") + bytes(4), kind, size) == b"onetwo"
    else:
        assert content(PACK[kind](b"one") + bytes(77), kind, size) == b"one"


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_is_refused(kind: str) -> None:
    for more in (b"x", b"\0\0x", b"more of it" * 100, *([bytes(3), bytes(3) + PACK[kind](b"two")] if kind == "xz" else [bytes(4) + PACK[kind](b"two")])):
        with pytest.raises(Refused, match="something follows"):
            content(PACK[kind](CONTENT) + more, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_short(kind: str) -> None:
    packed = PACK[kind](CONTENT)
    for length in (1, 5, 12, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(Refused, match="ends too early"):
            content(packed[:length], kind)
    with pytest.raises(Refused, match="empty"):
        content(b"", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found(kind: str) -> None:
    packed = PACK[kind](CONTENT)
    chance = random.Random(kind)
    for _count in range(60):
        changed = bytearray(packed)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        try:
            assert content(bytes(changed), kind) == CONTENT  # a bit that means nothing, such as the time in a gzip header
        except Refused:
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_unpacks_for_ever_takes_no_memory(kind: str) -> None:
    engine = {"gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31), "bzip2": bz2.BZ2Compressor, "xz": lzma.LZMACompressor}[kind]()
    packed = b"".join(engine.compress(bytes(MIB)) for _count in range(64)) + engine.flush()
    tracemalloc.start()
    for _count, piece in zip(range(200), unpacked(iter([packed] * 1000), kind)):
        assert 0 < len(piece) <= MIB
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize("dictionary, passes", [(MIB, True), (64 * MIB, True), (65 * MIB, False), (1 << 30, False)])
def test_dictionaries_are_bounded(dictionary: int, passes: bool) -> None:
    """The size stands in the header of the block, whose checksum is made anew; nothing so large is allocated to write it."""
    bits = next(bits for bits in range(41) if (2 | bits & 1) << (bits // 2 + 11) >= dictionary)
    packed = bytearray(lzma.compress(b"content", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]))
    length = (packed[12] + 1) * 4
    assert packed[14:16] == b"\x21\x01"  # LZMA2, with one byte of properties: that of the dictionary
    packed[16] = bits
    packed[12 + length - 4 : 12 + length] = zlib.crc32(packed[12 : 12 + length - 4]).to_bytes(4, "little")
    if passes:
        assert content(bytes(packed), "xz") == b"content"
    else:
        with pytest.raises(Refused, match="dictionary is larger than 64 MiB"):
            content(bytes(packed), "xz")
