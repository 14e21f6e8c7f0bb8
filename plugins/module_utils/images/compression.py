# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed images, unpacked in bounded memory. Their content may be endless, so that whoever takes it has to say when it is enough.

gzip is RFC 1952, with several members. bzip2 and xz may have several streams; between streams of xz there may be zeros in fours (the
.xz file format, 2.2). Nothing else may follow.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Any, Iterable, Iterator

from ..store.inspection import Refused

_PIECE = 1 << 20  # bytes that are unpacked at once
_MOST_DICTIONARY = 64 << 20  # bytes of an xz dictionary
_XZ_MEMORY = _MOST_DICTIONARY + (1 << 20)  # with what liblzma needs besides
_MARKS = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00"}
NAMES = ("none", *_MARKS)


def found(head: bytes) -> str:
    """How a file is compressed that begins so; ``none`` if it is not."""
    return next((name for name, mark in _MARKS.items() if head.startswith(mark)), "none")


def unpacked(pieces: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """The content of a compressed file, in pieces of at most a MiB.

    :param pieces: the file's bytes. :param compression: one of :data:`NAMES`.
    :raises Refused: it is damaged, cut short, has too large a dictionary, or something follows.
    """
    parts = (piece for piece in pieces if piece)
    return _content(parts, compression) if compression != "none" else parts


def _content(pieces: Iterator[bytes], compression: str) -> Iterator[bytes]:
    streams, data = 0, b""
    while True:
        data = data or next(pieces, b"")
        data = _without_padding(data, pieces, compression) if streams else data
        if not data:
            break
        mark = _MARKS[compression]
        if streams and data[: len(mark)] != mark[: len(data)]:
            raise Refused(f"something follows its {compression}")
        engine = _engine(compression)
        while not engine.eof:
            try:
                piece = engine.decompress(data, _PIECE)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise _damaged(compression, error, is_first=not streams) from error
            if piece:
                yield piece
            data = _rest(engine)
            if not engine.eof and not data and _needs_more(engine, piece):
                data = next(pieces, b"")
                if not data:
                    raise Refused(f"its {compression} ends too early (the file was cut short)")
        data, streams = engine.unused_data, streams + 1
    if not streams:
        raise Refused("it is empty")


def _engine(compression: str) -> Any:
    if compression == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    return bz2.BZ2Decompressor() if compression == "bzip2" else lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _rest(engine: Any) -> bytes:
    """What an engine has not taken yet. Those of bzip2 and xz keep it themselves."""
    return getattr(engine, "unconsumed_tail", b"")


def _needs_more(engine: Any, piece: bytes) -> bool:
    return getattr(engine, "needs_input", not piece or len(piece) < _PIECE)


def _without_padding(data: bytes, pieces: Iterator[bytes], compression: str) -> bytes:
    """What follows a stream, without zeros: programs fill files up with them. Nothing, if that is all."""
    count = 0
    while data:
        stripped = data.lstrip(b"\0")
        count += len(data) - len(stripped)
        if stripped:
            if count and (compression != "xz" or count % 4):
                raise Refused(f"something follows its {compression}")
            return stripped
        data = next(pieces, b"")
    if compression == "xz" and count % 4:
        raise Refused("something follows its xz")
    return b""


def _damaged(compression: str, error: Exception, is_first: bool) -> Refused:
    if "emory usage limit" in str(error):
        return Refused(f"its dictionary is larger than {_MOST_DICTIONARY >> 20} MiB")
    return Refused(f"its {compression} is damaged ({error})" if is_first else f"something follows its {compression}")
