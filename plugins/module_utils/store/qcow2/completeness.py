# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that a file has all data that its tables lead to. QEMU reads missing data behind the end of a file as zeros without an error."""

from __future__ import annotations

import os
import struct

from . import clusters, l2_entries, layout, reading
from .tables import l1_table

_ORDER_AT = layout.FIELDS.size + layout.FIELDS_OF_3.size - 8  # offset of the field refcount_order, the binary logarithm of a count's width in bits

_NOT_COMPRESSED = bytes(byte & 0x40 for byte in range(256))


def require_whole(fd: int, thorough: bool = True) -> None:
    """Check that the file does not end before the data that its tables lead to.

    :param thorough: read all tables. Otherwise the counts of clusters are believed. They show in two or three reads how long the file
        must be, and the tables are read only if it is shorter: a crash leaves counted clusters that nothing leads to.

    QEMU makes files that end early and are valid: the last sector of compressed data is not filled up, or the file lacks subclusters
    that nobody wrote, or data behind the virtual end.

    :raises CutShort: data is missing. :raises Qcow2Error: the image is damaged in another way, or hostile.
    """
    header = reading.read_header(fd)
    length = os.fstat(fd).st_size
    if not thorough and not header.dirty and length >= _counted_end(fd, header, length) * header.cluster_size:
        return
    tables = l1_table(fd, header, clusters.MOST_TABLE_BYTES // header.cluster_size)
    if tables is None:
        return  # too many tables: nothing in this folder reads so many
    for index, table in tables.items():
        _check_table(fd, header, length, index, table & clusters.OFFSET)


def _counted_end(fd: int, header: reading.Header, length: int) -> int:
    """Number of the cluster behind the last counted one. If a count is missing, a number that is too large for the file."""
    order = 4 if header.version == 2 else struct.unpack(">I", os.pread(fd, 4, _ORDER_AT))[0]
    per_block = header.cluster_size * 8 >> order
    _offset, blocks = l2_entries.refcount_table(fd, header)
    if blocks is None:
        return length + 1
    for number in range(len(blocks) - 1, -1, -1):
        if not blocks[number]:
            continue
        if blocks[number] + header.cluster_size > length:
            return length + 1
        counts = os.pread(fd, header.cluster_size, blocks[number]).rstrip(b"\0")
        if counts:
            return number * per_block + -(-len(counts) * 8 >> order)
    return 0


def _check_table(fd: int, header: reading.Header, length: int, index: int, offset: int) -> None:
    size, first = header.cluster_size, index * header.l2_entries
    data = os.pread(fd, size, offset).ljust(size, b"\0")
    if data.count(0) == size or _lies_within(data, header, length):
        return
    for position, (entry, bitmap) in enumerate(l2_entries.pairs(data, header)):
        if not l2_entries.shows_data(entry, bitmap, header):
            continue
        within = min(size, header.size - (first + position) * size)
        if within > 0 and _end_of(entry, bitmap, header, within) > length:
            raise layout.CutShort("a cluster lies behind the end of the file (the file was cut short)")


def _lies_within(data: bytes, header: reading.Header, length: int) -> bool:
    """Whether no entry of a table can lead behind the end of the file, tested by a few operations on all entries at once."""
    width = l2_entries.entry_bytes(header)
    if data[::width].translate(_NOT_COMPRESSED).strip(b"\0"):
        return False
    offsets = bytearray(data)
    offsets[::width] = bytes(len(data) // width)  # the flags
    entries = clusters.big_endian(bytes(offsets))
    return (max(entries[0::2] if header.extended_l2 else entries) & clusters.OFFSET) + header.cluster_size <= length


def _end_of(entry: int, bitmap: int, header: reading.Header, within: int) -> int:
    """The least length in bytes of a file that has the data of an entry. ``within``: bytes of its cluster within the virtual size."""
    if entry & l2_entries.COMPRESSED:
        start, length = l2_entries.compressed_range(entry, header)
        return max(start + 1, start + length - (l2_entries.SECTOR - 1))
    if header.extended_l2:
        grain = header.cluster_size // l2_entries.SUBCLUSTERS
        last = min((bitmap & 0xFFFFFFFF).bit_length(), -(-within // grain)) - 1
        while last >= 0 and not bitmap >> last & 1:
            last -= 1
        within = min(within, (last + 1) * grain)
        return (entry & clusters.OFFSET) + within if within else 0
    return (entry & clusters.OFFSET) + within
