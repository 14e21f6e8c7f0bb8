# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the clusters of an image that are to be moved: of plain qcow2 images and of raw images.

Plain means: whole clusters in their standard form, each with one owner. Images with compressed clusters, subclusters, internal
snapshots, bitmaps or unknown flags are :class:`Unsuited`; qemu-img moves their clusters.
"""

from __future__ import annotations

import array
import bisect
import os
import sys
from typing import Iterator, NamedTuple

from ..files import holes
from . import layout, reading, tables

ZEROS = -1  # instead of a cluster's offset: it reads as zeros, whatever the backing file has
COPIED = 1 << 63  # section "Standard Cluster Descriptor" and "L1 table entry": the reference count is exactly one
OFFSET = 0x00FFFFFFFFFFFE00
READS_ZERO = 1
MOST_TABLE_BYTES = 512 << 20  # for the L2 tables of all layers together: 4 TiB of data in clusters of 64 KiB
_MOST_EXTENTS = 1 << 20
_CHUNK = 1 << 20
_GRAIN = 64  # entries of a table that are compared at once
_NOTHING = array.array("Q", bytes(8 * _GRAIN))


class Run(NamedTuple):
    """Adjacent clusters: position of the first in its L2 table, how many, offset of the first in the file in bytes, or ZEROS."""

    position: int
    clusters: int
    start: int


class Unsuited(layout.Qcow2Error):
    """The image may be valid, but it has something that only qemu-img can handle."""


class QcowLayer:
    """The clusters of an opened qcow2 image. ``l1``: index → entry of the L1 table, for entries that lead to an L2 table.

    :raises Qcow2Error: it is damaged or hostile. :raises Unsuited: it is not plain.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.header = reading.read_header(fd)
        header = self.header
        if header.extended_l2 or header.internal_snapshots or header.bitmaps or header.dirty or header.unknown_extensions:
            raise Unsuited("it has subclusters, internal snapshots, bitmaps, unknown extensions, or counts to be repaired")
        found = tables.l1_table(fd, header, MOST_TABLE_BYTES // header.cluster_size)
        if found is None:
            raise Unsuited("it has too many L2 tables")
        self.l1: dict[int, int] = found
        self.size = header.size
        self.cluster_size = header.cluster_size
        self._last = os.fstat(fd).st_size

    def indices(self) -> Iterator[int]:
        """Indices of the L1 table that have an L2 table."""
        return iter(self.l1)

    def table(self, index: int) -> array.array:
        """Entries of the L2 table at ``index`` of the L1 table, as numbers. All zero if there is no table."""
        if index not in self.l1:
            return array.array("Q", bytes(self.cluster_size))
        return big_endian(os.pread(self.fd, self.cluster_size, self.l1[index] & OFFSET).ljust(self.cluster_size, b"\0"))

    @property
    def table_bytes(self) -> int:
        """Bytes of all L2 tables."""
        return len(self.l1) * self.cluster_size

    def runs(self, index: int) -> Iterator[Run]:
        """The allocated clusters of the table at ``index`` that are within the virtual size.

        :raises Unsuited: any entry is not plain, also beyond the size. :raises CutShort: the file ends before the data of an entry.
        """
        most = self.within(index)
        for position, count, entry in split(self.table(index), self.cluster_size):
            self.require_plain(entry, count)
            if entry and position < most:
                self._require_data(index, position, count, entry)
                yield Run(position, min(count, most - position), ZEROS if entry & READS_ZERO else entry & OFFSET)

    def require_plain(self, entry: int, count: int = 1) -> None:
        """Check ``count`` adjacent clusters, of which ``entry`` is the first. :raises Unsuited: compressed, misplaced, or an unknown flag."""
        offset = entry & OFFSET
        if entry & ~(COPIED | OFFSET | READS_ZERO) or offset & (self.cluster_size - 1) or (entry & COPIED and not offset):
            raise Unsuited("it has compressed or misplaced clusters, or flags that nobody knows")
        if offset + (count - 1) * self.cluster_size >= self._last and offset:
            raise Unsuited("a cluster lies behind the end of the file")
        if entry & READS_ZERO and self.header.version == 2:
            raise Unsuited("an entry of its L2 tables has a flag that version 2 does not know")

    def _require_data(self, index: int, position: int, count: int, entry: int) -> None:
        within = self.size - (index * self.header.l2_entries + position) * self.cluster_size
        if not entry & READS_ZERO and (entry & OFFSET) + min(count * self.cluster_size, within) > self._last:
            raise layout.CutShort("a cluster lies behind the end of the file (the file was cut short)")

    def last_cluster(self, index: int) -> int:
        """Offset in bytes of the last cluster that a table leads to, even if it is for zeros or beyond the virtual size. 0 if none.

        It takes a few operations on all entries at once, because it is called for tables that are not read otherwise.

        :raises Unsuited: the table may lead to clusters in ways that are not plain.
        """
        table = self.table(index)
        flags = to_big_endian(table)[::8]
        if flags.strip(b"\0\x80") or flags.count(0) != table.count(0) + table.count(READS_ZERO):
            raise Unsuited("it has compressed clusters, ones with several owners, or flags that nobody knows")
        last = max(table) & OFFSET
        if last >= self._last:
            raise Unsuited("a cluster lies behind the end of the file")
        return last

    def within(self, index: int) -> int:
        """How many clusters of a table lie within the virtual size. The last of them may be in it only in part."""
        start = index * self.header.l2_entries * self.cluster_size
        return max(0, min(self.header.l2_entries, -(-(self.size - start) // self.cluster_size)))


class RawLayer:
    """The data of an opened raw image, in clusters of the size that the images above it have.

    :raises Unsuited: the file system does not show holes, or there are too many.
    """

    def __init__(self, fd: int, cluster_size: int) -> None:
        self.fd = fd
        self.cluster_size = cluster_size
        self._covered = cluster_size * (cluster_size // 8)
        status = os.fstat(fd)
        self.size = status.st_size
        self._starts, self._ends = [], []
        for start, end in holes.all_data(fd, self.size):
            self._starts.append(start)
            self._ends.append(end)
            if len(self._ends) > _MOST_EXTENTS:
                raise Unsuited("it has too many holes")
        if sum(self._ends) - sum(self._starts) > status.st_blocks * 512 + _CHUNK:
            raise Unsuited("the file system does not tell where its holes are")

    @property
    def looks_full(self) -> bool:
        """Whether it seems to have no hole. That is so for all files if the file system does not show holes."""
        return self.size > _CHUNK and (self._starts, self._ends) == ([0], [self.size])

    def indices(self) -> Iterator[int]:
        """As :meth:`QcowLayer.indices`: those parts of the disk that have data. An index may come twice."""
        for start, end in zip(self._starts, self._ends):
            yield from range(start // self._covered, (end - 1) // self._covered + 1)

    def runs(self, index: int) -> Iterator[Run]:
        """As :meth:`QcowLayer.runs`. Clusters in no run are holes. Two runs may have a cluster in common."""
        first, last = index * self._covered, (index + 1) * self._covered
        for number in range(bisect.bisect_right(self._ends, first), bisect.bisect_left(self._starts, last)):
            begin = (max(self._starts[number], first) - first) // self.cluster_size
            end = -(-(min(self._ends[number], last) - first) // self.cluster_size)
            yield Run(begin, end - begin, first + begin * self.cluster_size)


def split(table: array.array, cluster_size: int) -> Iterator[tuple[int, int, int]]:
    """Split an L2 table into runs: (position, count, first entry). The other entries of a run are equal to the first or, if they have
    an offset, each is one cluster further than the one before."""
    begin, first, expected, step = 0, table[0], table[0], 0
    for start in range(0, len(table), _GRAIN):
        grain = table[start : start + _GRAIN]
        if not first and grain == _NOTHING:
            continue  # fast path: most tables of an overlay are nearly empty
        for position, entry in enumerate(grain, start):
            if entry != expected:
                yield begin, position - begin, first
                begin, first, expected = position, entry, entry
            if begin == position:
                step = cluster_size if entry & OFFSET else 0
            expected += step
    yield begin, len(table) - begin, first


def run_of(entry: int, count: int, cluster_size: int) -> array.array:
    """The ``count`` entries of a run, of which ``entry`` is the first; the reverse of :func:`split`."""
    if not entry & OFFSET:
        return array.array("Q", [entry]) * count
    return array.array("Q", range(entry, entry + count * cluster_size, cluster_size))


def big_endian(data: bytes) -> array.array:
    """Decode numbers of eight bytes from a qcow2 file."""
    entries = array.array("Q", data)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def to_big_endian(entries: array.array) -> bytes:
    """Encode numbers of eight bytes for a qcow2 file."""
    if sys.byteorder == "little":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()
