# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the persistent dirty bitmaps of an image: sections "Bitmaps extension" and "Bitmap directory"."""

from __future__ import annotations

import os
import struct
from typing import Iterator, NamedTuple

from . import layout, reading

_BODY = struct.Struct(">IIQQ")  # number, reserved, size and offset of the directory
_ENTRY = struct.Struct(">QIIBBHI")  # offset and size of the table, flags, type, granularity, sizes of name and of extra data
_IN_USE, _AUTO = 1, 2
_CONSISTENT = 1  # bit of the autoclear features: the last program that wrote the image knew its bitmaps
_MOST_BITMAPS, _MOST_NAME, _MOST_DIRECTORY = 65535, 1023, 4 << 20
_MOST_TABLE = 32 << 20  # bytes
_OFFSET = 0x00FFFFFFFFFFFE00  # the bits of a table entry that are the offset of a cluster


class Bitmap(NamedTuple):
    """A bitmap. ``tracks``: every program that writes to the image marks its writes in the bitmap."""

    name: str
    tracks: bool


def read_bitmaps(fd: int, header: reading.Header) -> tuple[Bitmap, ...]:
    """The bitmaps of an image. Empty if a program without support for bitmaps has written to it, because then they are not valid.

    :raises Qcow2Error: the directory is damaged or hostile.
    """
    found = _directory(fd, header)
    return tuple(bitmap for bitmap, _table, _size in _entries(*found[1:])) if found else ()


def ranges_of_bitmaps(fd: int, header: reading.Header) -> Iterator[tuple[int, int]]:
    """The parts of the file that valid bitmaps take, as (offset, length) in bytes. :raises Qcow2Error: they are damaged or hostile."""
    found = _directory(fd, header)
    if not found:
        return
    offset, directory, number = found
    yield offset, len(directory)
    for _bitmap, table, entries in _entries(directory, number):
        if entries * 8 > _MOST_TABLE or table % header.cluster_size or table + entries * 8 > os.fstat(fd).st_size:
            raise layout.Qcow2Error("the table of a bitmap is not where the format wants it")
        yield table, entries * 8
        for entry in struct.unpack(f">{entries}Q", os.pread(fd, entries * 8, table)):
            if entry & _OFFSET:
                yield entry & _OFFSET, header.cluster_size


def _directory(fd: int, header: reading.Header) -> tuple[int, bytes, int] | None:
    """(Offset of the directory, its content, number of bitmaps in it); None if there are no valid bitmaps."""
    if not header.bitmaps or header.version < 3:
        return None
    data = os.pread(fd, min(layout.MOST_HEADER, header.cluster_size), 0)
    if not int.from_bytes(data[layout.AUTOCLEAR_AT : layout.AUTOCLEAR_AT + 8], "big") & _CONSISTENT:
        return None
    number, _reserved, size, offset = _BODY.unpack_from(_extension(data, header))
    if not 0 < number <= _MOST_BITMAPS or not _ENTRY.size <= size <= _MOST_DIRECTORY:
        raise layout.Qcow2Error("its directory of bitmaps is not what the format wants")
    if offset + size > os.fstat(fd).st_size:
        raise layout.Qcow2Error("its directory of bitmaps lies behind the end of the file")
    return offset, os.pread(fd, size, offset), number


def _extension(data: bytes, header: reading.Header) -> bytes:
    offset = int.from_bytes(data[layout.FIELDS.size + layout.FIELDS_OF_3.size - 4 :][:4], "big")
    while offset + layout.EXTENSION.size <= min(header.extensions_end, len(data)):
        kind, length = layout.EXTENSION.unpack_from(data, offset)
        body = offset + layout.EXTENSION.size
        if kind == layout.EXT_BITMAPS and length >= _BODY.size:
            return data[body : body + length].ljust(_BODY.size, b"\0")
        if kind == layout.EXT_END:
            break
        offset = body + (length + 7) // 8 * 8
    raise layout.Qcow2Error("its header extension for bitmaps is not what the format wants")


def _entries(directory: bytes, number: int) -> list[tuple[Bitmap, int, int]]:
    """Each bitmap with the offset of its table and the number of entries in that."""
    offset, found = 0, []
    for _each in range(number):
        if offset + _ENTRY.size > len(directory):
            raise layout.Qcow2Error("its directory of bitmaps is cut short")
        table, size, flags, _type, _granularity, name_size, extra = _ENTRY.unpack_from(directory, offset)
        start = offset + _ENTRY.size + extra
        name = directory[start : start + name_size]
        if not 0 < name_size <= _MOST_NAME or len(name) != name_size:
            raise layout.Qcow2Error("its directory of bitmaps is cut short")
        found.append((Bitmap(name.decode("utf-8", "backslashreplace"), bool(flags & _AUTO and not flags & _IN_USE)), table, size))
        offset = (start + name_size + 7) // 8 * 8
    return found
