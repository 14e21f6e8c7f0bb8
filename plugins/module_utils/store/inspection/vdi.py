# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VDI: VirtualBox's images, of version 1.1 (VirtualBox's VDICore.h). Numbers are little-endian."""

from __future__ import annotations

import struct

from .source import Refused, Source

_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_SIGNATURE, _VERSION = 0xBEDA107F, 0x00010001
_DYNAMIC, _STATIC = 1, 2
_BLOCK = 1 << 20  # bytes; QEMU reads no other size
_FREE, _ZERO = 0xFFFFFFFF, 0xFFFFFFFE  # of the block map: never written; all zeros
_NOBODY = bytes(16)


def inspect(source: Source) -> int:
    """The virtual size in bytes. :raises Refused: it rests on another image, or the file does not have all of it."""
    fields = _HEADER.unpack(source.read(0, _HEADER.size, "header"))
    signature, version, _header_size, kind = fields[1:5]
    map_offset, data_offset = fields[7:9]
    sector, _unused, size, block, extra, blocks, allocated = fields[12:19]
    link, parent = fields[21:23]
    if (signature, version) != (_SIGNATURE, _VERSION):
        raise Refused(f"it is no VDI of version 1.1 (version {version >> 16}.{version & 0xFFFF})")
    if kind not in (_DYNAMIC, _STATIC) or link != _NOBODY or parent != _NOBODY:
        raise Refused("it is a differencing or undo image, which rests on another one", is_unsafe=True)
    if (sector, block, extra) != (512, _BLOCK, 0):
        raise Refused(f"it has sectors of {sector} and blocks of {block} and {extra} bytes")
    if not size or blocks != (size + block - 1) // block or allocated > blocks or map_offset % 512 or data_offset % 512:
        raise Refused("its header contradicts itself")
    _require_blocks(source, map_offset, data_offset, blocks)
    return size


def _require_blocks(source: Source, map_offset: int, data_offset: int, blocks: int) -> None:
    """Check that the file has every block that the map leads to."""
    for part in source.table(map_offset, blocks * 4, "block map"):
        used = [entry for (entry,) in struct.iter_unpack("<I", part) if entry not in (_FREE, _ZERO)]
        if used:
            source.require(data_offset + max(used) * _BLOCK, _BLOCK, "data")
