# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single entries of L2 tables, in all forms that QEMU knows: section "L2 table entry" and its subsections."""

from __future__ import annotations

import os
import struct
from typing import Iterator

from . import layout, reading
from .clusters import OFFSET, READS_ZERO, big_endian

COMPRESSED = 1 << 62
SECTOR = 512
SUBCLUSTERS = 32  # in a cluster, if L2 entries are extended
_REFCOUNT_TABLE = struct.Struct(">QI")
_REFCOUNT_TABLE_AT = 48
_COMPRESSION = 8  # bit of the incompatible features: compressed by something else than zlib


def entry_bytes(header: reading.Header) -> int:
    """The length of an L2 entry in bytes."""
    return 16 if header.extended_l2 else 8


def pairs(data: bytes, header: reading.Header) -> Iterator[tuple[int, int]]:
    """Each entry of (a part of) an L2 table as (entry, bitmap of its subclusters); 0 if it has no bitmap."""
    numbers = big_endian(data)
    if header.extended_l2:
        return zip(numbers[0::2], numbers[1::2])
    return ((number, 0) for number in numbers)


def shows_data(entry: int, bitmap: int, header: reading.Header) -> bool:
    """Whether an entry makes its image show bytes of its own file, and not zeros or the backing file."""
    if entry & COMPRESSED:
        return True
    if not entry & OFFSET:
        return False
    return bool(bitmap & 0xFFFFFFFF) if header.extended_l2 else not entry & READS_ZERO


def compressed_range(entry: int, header: reading.Header) -> tuple[int, int]:
    """Where compressed data is: (offset, length rounded up) in bytes. Section "Compressed Clusters Descriptor"."""
    shift = 62 - (header.cluster_bits - 8)
    start = entry & ((1 << shift) - 1)
    sectors = (entry >> shift & ((1 << (header.cluster_bits - 8)) - 1)) + 1
    return start, sectors * SECTOR - start % SECTOR


def packed_by_zlib(fd: int, header: reading.Header) -> bool:
    """Whether compressed clusters of the image are compressed by zlib."""
    return header.version == 2 or not struct.unpack(">Q", os.pread(fd, 8, layout.FIELDS.size))[0] & _COMPRESSION


def refcount_table(fd: int, header: reading.Header) -> tuple[int, list[int] | None]:
    """(Offset of the refcount table in bytes, its entries). The entries are None if the file ends before them. Section "Host cluster
    management"."""
    offset, clusters = _REFCOUNT_TABLE.unpack(os.pread(fd, _REFCOUNT_TABLE.size, _REFCOUNT_TABLE_AT))
    data = os.pread(fd, clusters * header.cluster_size, offset)
    return offset, list(big_endian(data)) if len(data) == clusters * header.cluster_size else None
