# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that each cluster of a file has one use only, before anything is written into the image.

If two entries of its tables lead to one cluster, a write to one part of the disk changes another part. If an entry leads to a table,
a write destroys the image. QEMU notices neither: it writes in place to clusters that are flagged as having one owner, and takes
clusters that are not counted for free. So no merge may begin, neither ours nor QEMU's.

All tables are checked, not only those of the clusters that are written. A merge also writes clusters that no plan names (tables,
counts), and a user who has to repair an image needs to know it before its data moves. The cost is reading the tables, which a merge
does anyway, to find the end of the clusters in use.

Section "Host cluster management" of QEMU's docs/interop/qcow2.
"""

from __future__ import annotations

import array
import os
import struct
import sys
from typing import Iterator

from . import bitmaps, l2_entries, layout, reading
from .clusters import COPIED, MOST_TABLE_BYTES, OFFSET, READS_ZERO, big_endian
from .tables import l1_table

_ORDER_AT = layout.FIELDS.size + layout.FIELDS_OF_3.size - 8  # offset of the field refcount_order, the binary logarithm of a count's width in bits
_MOST_CLUSTERS = 64 << 20  # in a file; each takes up to five bytes of memory
_MOST_BEHIND = 1 << 20  # clusters behind the end of the file
_MOST_USES = (1 << 16) - 1
_SHARED = "a cluster has two uses, so that a write to one part of the disk would change another part, or a table"
_UNCOUNTED = "a cluster is counted less often than it is used, so that a write may take it for free"


def require_single_owners(fd: int) -> None:
    """Check that a write to the image changes nothing else. Reads all tables and counts, as ``qemu-img check`` does.

    Two cases are allowed: several compressed clusters in one cluster of the file, and several owners that are counted and not
    flagged as the only one, because QEMU copies these before it writes. Counts are ignored if the header says that they have to be
    repaired. Files of more than 64 Mi clusters or 512 MiB of L2 tables are not checked: 4 TiB in clusters of 64 KiB.

    :raises Qcow2Error: a cluster has two uses, or is in use and not counted, or the tables are damaged in another way.
    """
    checked_uses(fd, reading.read_header(fd))


def checked_uses(fd: int, header: reading.Header) -> Uses | None:
    """All uses of the clusters of an opened image, which :func:`require_single_owners` checks. None: it is too large for that, or has internal snapshots.

    :raises Qcow2Error: as of that function.
    """
    found = _uses_of(fd, header)
    if found is not None and not header.dirty:
        _require_counts(fd, found)
    return found


def _uses_of(fd: int, header: reading.Header) -> Uses | None:
    clusters = -(-os.fstat(fd).st_size // header.cluster_size)
    tables = l1_table(fd, header, MOST_TABLE_BYTES // header.cluster_size)
    if header.internal_snapshots or clusters > _MOST_CLUSTERS or tables is None:
        return None
    at, blocks = l2_entries.refcount_table(fd, header)
    if blocks is None:
        raise layout.Qcow2Error("its table of reference counts is cut short")
    uses = Uses(header, clusters, blocks, _order_of(fd, header))
    uses.take_bytes(0, 1)
    uses.take_bytes(header.l1_offset, header.l1_entries * 8)
    uses.take_bytes(at, len(blocks) * 8)
    for block in blocks:
        if block:
            uses.take_whole(block)
    for start, length in bitmaps.ranges_of_bitmaps(fd, header):
        uses.take_bytes(start, length)
    for entry in tables.values():
        uses.take_whole(entry & OFFSET)  # l1_table has checked that no two of them are the same
    for entry in tables.values():
        uses.take_table(os.pread(fd, header.cluster_size, entry & OFFSET).ljust(header.cluster_size, b"\0"))
    uses.finish()
    return uses


class Uses:
    """The uses of each cluster of a file: by one owner, by entries that are not flagged as the only owner, and by compressed data.

    :param blocks: the offsets in bytes of the blocks of reference counts, in order. 0: there is none.
    :param order: the binary logarithm of the width of a reference count in bits.
    """

    def __init__(self, header: reading.Header, clusters: int, blocks: list[int], order: int) -> None:
        self._header = header
        self.blocks, self._order = blocks, order
        self.per_block = header.cluster_size * 8 >> order  # counts of a block
        self._size = header.cluster_size
        self._bits = header.cluster_bits
        entries = header.cluster_size // 8
        self._misplaced = int.from_bytes((OFFSET & (header.cluster_size - 1)).to_bytes(8, "big") * entries, "big")
        self.owned = bytearray(clusters)
        self.others: array.array | None = None  # for each cluster, the number of entries without the flag that lead to it
        self.packed: array.array | None = None  # for each cluster, the number of compressed clusters in it
        self.behind: set[int] = set()  # clusters in use that lie behind the end of the file

    def take_bytes(self, offset: int, length: int) -> None:
        """Count a part of the file that is no data. ``offset`` and ``length`` in bytes."""
        for number in range(offset >> self._bits, -(-(offset + length) >> self._bits)):
            self._own(number)

    def take_whole(self, offset: int) -> None:
        """Count a cluster that is a table or a block of counts."""
        if offset & (self._size - 1):
            raise layout.Qcow2Error("a cluster is not where the format wants it")
        self._own(offset >> self._bits)

    def take_table(self, data: bytes) -> None:
        """Count all clusters that an L2 table leads to."""
        if data.count(0) == len(data) or self._take_run(data) or self._take_flagged(data):
            return
        entries = big_endian(data)
        mask = self._size - 1
        for entry in entries[0::2] if self._header.extended_l2 else entries:
            if entry & l2_entries.COMPRESSED:
                self._count_compressed(entry)
                continue
            offset = entry & OFFSET
            if not offset:
                continue
            if offset & mask:
                raise layout.Qcow2Error("a cluster is not where the format wants it")
            if entry & COPIED:
                self._own(offset >> self._bits)
            else:
                self.others = self._count(self.others, offset >> self._bits)

    def _take_run(self, data: bytes) -> bool:
        """Count a table whose clusters follow each other in the file; most tables of a disk that was filled once are so. Else False."""
        first, number = int.from_bytes(data[:8], "big"), len(data) // 8
        if self._header.extended_l2 or not first & COPIED or first & (l2_entries.COMPRESSED | READS_ZERO):
            return False
        step = int.from_bytes(self._size.to_bytes(8, "big") * (number - 1), "big")
        if int.from_bytes(data[8:], "big") - int.from_bytes(data[:-8], "big") != step:
            return False
        begin, end = (first & OFFSET) >> self._bits, ((first & OFFSET) >> self._bits) + number
        if first & OFFSET & (self._size - 1) or end > len(self.owned):
            return False
        if self.owned.find(1, begin, end) >= 0:
            raise layout.Qcow2Error(_SHARED)
        self.owned[begin:end] = b"\1" * number
        return True

    def _take_flagged(self, data: bytes) -> bool:
        """Count a table in which each entry is empty or flagged as the only owner, by a few operations on all entries. Else False."""
        flags = data[::8]
        flagged = flags.count(0x80)
        if self._header.extended_l2 or flagged + flags.count(0) < len(flags) or int.from_bytes(data, "big") & self._misplaced:
            return False
        numbers = [(entry & OFFSET) >> self._bits for entry in big_endian(data) if entry & OFFSET]
        if len(numbers) != flagged or max(numbers, default=0) >= len(self.owned):
            return False
        if len(set(numbers)) < flagged or any(map(self.owned.__getitem__, numbers)):
            raise layout.Qcow2Error(_SHARED)
        for number in numbers:
            self.owned[number] = 1
        return True

    def _own(self, number: int) -> None:
        if number >= len(self.owned):
            if number in self.behind:
                raise layout.Qcow2Error(_SHARED)
            self._note_behind(number)
        elif self.owned[number]:
            raise layout.Qcow2Error(_SHARED)
        else:
            self.owned[number] = 1

    def _count_compressed(self, entry: int) -> None:
        start, length = l2_entries.compressed_range(entry, self._header)
        for number in range(start >> self._bits, ((start + length - 1) >> self._bits) + 1):
            self.packed = self._count(self.packed, number)

    def _count(self, counts: array.array | None, number: int) -> array.array:
        counts = array.array("H", bytes(2 * len(self.owned))) if counts is None else counts
        if number >= len(counts):
            self._note_behind(number)
        elif counts[number] < _MOST_USES:
            counts[number] += 1
        return counts

    def _note_behind(self, number: int) -> None:
        self.behind.add(number)
        if len(self.behind) > _MOST_BEHIND:
            raise layout.Qcow2Error("too many of its clusters lie behind the end of the file")

    def finish(self) -> None:
        """Compare the kinds of uses. :raises Qcow2Error: a cluster has two uses that exclude each other."""
        for counts, excluding in ((self.others, self.packed), (self.packed, None), (self.others, None)):
            for number in _used(counts):
                if self.owned[number] or (excluding is not None and excluding[number]):
                    raise layout.Qcow2Error(_SHARED)

    def counts(self, fd: int, index: int) -> array.array | list[int]:
        """The counts of the block of this index, as the file has them. Empty if there is none."""
        block = self.blocks[index] if index < len(self.blocks) else 0
        return _counts(os.pread(fd, self._size, block).ljust(self._size, b"\0") if block else b"", self._order)

    def by_block(self) -> dict[int, list[tuple[int, int]]]:
        """Of clusters without a single owner: index of their block of counts → (position in it, number of uses)."""
        found: dict[int, list[tuple[int, int]]] = {}
        for counts in (self.others, self.packed):
            for number in _used(counts):
                index, position = divmod(number, self.per_block)
                found.setdefault(index, []).append((position, counts[number] if counts is not None else 0))
        return found


def _used(counts: array.array | None) -> Iterator[int]:
    chunk = 4096
    for start in range(0, len(counts) if counts is not None else 0, chunk):
        part = counts[start : start + chunk] if counts is not None else array.array("H")
        if any(part):
            yield from (start + position for position, count in enumerate(part) if count)


def _require_counts(fd: int, uses: Uses) -> None:
    """Compare uses with counts. :raises Qcow2Error: a cluster is counted less often than it is used."""
    per_block, without_owner = uses.per_block, uses.by_block()
    for index in range(-(-len(uses.owned) // per_block)):
        owned = bytes(uses.owned[index * per_block : (index + 1) * per_block])
        if not without_owner.get(index) and not owned.count(1):
            continue
        counts = uses.counts(fd, index)
        counted = int.from_bytes(_is_counted(counts, len(owned)), "big")
        if int.from_bytes(owned, "big") & ~counted:
            raise layout.Qcow2Error(_UNCOUNTED)
        for position, count in without_owner.get(index, ()):
            if (counts[position] if position < len(counts) else 0) < count:
                raise layout.Qcow2Error(_UNCOUNTED)


def _is_counted(counts: array.array | list[int], number: int) -> bytes:
    """One byte for each of ``number`` clusters: 1 if its count is not zero."""
    return bytes([1 if count else 0 for count in counts[:number]]).ljust(number, b"\0")


def _order_of(fd: int, header: reading.Header) -> int:
    """The binary logarithm of the width of a reference count in bits."""
    return 4 if header.version == 2 else int(struct.unpack(">I", os.pread(fd, 4, _ORDER_AT))[0])


def _counts(block: bytes, order: int) -> array.array | list[int]:
    """The counts of a block, each of 2^order bits. Counts of less than a byte begin at its lowest bits."""
    if order >= 3:
        found = array.array("BHIQ"[order - 3], block)
        if sys.byteorder == "little":
            found.byteswap()
        return found
    width = 1 << order
    return [byte >> shift & ((1 << width) - 1) for byte in block for shift in range(0, 8, width)]
