# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VHD: fixed and dynamic disks ("Virtual Hard Disk Image Format Specification" 1.0). QEMU calls it vpc. Numbers are big-endian."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .source import Refused, Source

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16s")
_COOKIE, _VERSION = b"conectix", 0x00010000
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_SPARSE = struct.Struct(">8sQQIIII16s")
_SPARSE_BYTES = 1024
_SECTOR, _UNUSED = 512, 0xFFFFFFFF
_SIZED = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"\0\0\0\0")  # programs whose size counts, and not the cylinders, heads and sectors
_MOST_CYLINDERS, _MOST_HEADS, _MOST_SECTORS = 65535, 16, 255


class _Disk(NamedTuple):
    at: int  # where the dynamic header is
    creator: bytes
    size: int
    cylinders: int
    heads: int
    sectors: int
    kind: int


def inspect(source: Source) -> int:
    """The virtual size in bytes, as QEMU finds it. :raises Refused: it rests on another disk, or the file does not have all of it."""
    if source.size < _SECTOR or source.at_most(source.size - _SECTOR, 8) != _COOKIE:
        raise Refused("it does not end with a footer of 512 bytes (the file was cut short, or goes on behind it)")
    footer = source.read(source.size - _SECTOR, _SECTOR, "footer")
    disk = _read(footer)
    if disk.kind == _DYNAMIC:
        if source.at_most(0, _SECTOR) != footer:
            raise Refused("the copy of its footer at the beginning differs")
        _require_blocks(source, disk)
    elif disk.kind == _FIXED and source.size - _SECTOR < _size(disk):
        raise Refused(f"it has {source.size - _SECTOR} bytes of data, and its footer tells {_size(disk)} (the file was cut short, or lies about it)")
    return _size(disk)


def _read(footer: bytes) -> _Disk:
    cookie, _features, version, at, _time, creator, _of, _os, _original, size, cylinders, heads, sectors, kind, told, _id = _FOOTER.unpack_from(footer)
    if (cookie, version) != (_COOKIE, _VERSION) or told != _checksum(footer, 64):
        raise Refused("its footer is damaged")
    if kind == _DIFFERENCING:
        raise Refused("it is a differencing disk, which rests on another one", is_unsafe=True)
    if kind not in (_FIXED, _DYNAMIC) or not size or size % _SECTOR:
        raise Refused(f"it is a disk of kind {kind} and {size} bytes")
    return _Disk(at, creator, size, cylinders, heads, sectors, kind)


def _size(disk: _Disk) -> int:
    """QEMU believes the geometry of programs whose disks have the size of their geometry."""
    is_most = (disk.cylinders, disk.heads, disk.sectors) == (_MOST_CYLINDERS, _MOST_HEADS, _MOST_SECTORS)
    if disk.creator in _SIZED or is_most:
        return disk.size
    return disk.cylinders * disk.heads * disk.sectors * _SECTOR


def _checksum(data: bytes, at: int) -> int:
    """One's complement of the sum of all bytes but those of the checksum, which is ``at`` there."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _require_blocks(source: Source, disk: _Disk) -> None:
    """Check that the file has every block that the table leads to."""
    header = source.read(disk.at, _SPARSE_BYTES, "dynamic header")
    cookie, _next, table, version, entries, block, told, _parent = _SPARSE.unpack_from(header)
    if (cookie, version) != (b"cxsparse", _VERSION) or told != _checksum(header, 36):
        raise Refused("its dynamic header is damaged")
    if block < _SECTOR or block & (block - 1) or entries * block < _size(disk):
        raise Refused("its dynamic header contradicts its footer")
    bitmap = (block // _SECTOR // 8 + _SECTOR - 1) // _SECTOR * _SECTOR
    for part in source.table(table, entries * 4, "table of blocks"):
        used = [entry for (entry,) in struct.iter_unpack(">I", part) if entry != _UNUSED]
        if used:
            source.require(max(used) * _SECTOR, bitmap + block, "data")
