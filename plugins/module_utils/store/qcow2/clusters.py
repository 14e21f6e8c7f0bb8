# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the clusters of a layer are, for who moves them: of plain qcow2 images and of raw ones.

Plain means: whole clusters in their standard form, each with one owner. Images that hold compressed clusters, subclusters,
internal snapshots, bitmaps or flags that nobody knows are :class:`Unsuited`; qemu-img moves theirs.
"""

from __future__ import annotations

import array
import bisect
import os
import sys
from typing import Iterator, NamedTuple

from ..files.holes import all_data
from .layout import CutShort, Qcow2Error
from .reading import read_header
from .tables import l1_table

ZEROS = -1  # instead of a cluster's offset: it reads as zeros, whatever lies beneath
COPIED = 1 << 63  # section "Standard Cluster Descriptor" and "L1 table entry": the reference count is exactly one
OFFSET = 0x00FFFFFFFFFFFE00
READS_ZERO = 1
MOST_TABLE_BYTES = 512 << 20  # of L2 tables, of all layers together: 4 TiB of data in clusters of 64 KiB
_MOST_EXTENTS = 1 << 20
_CHUNK = 1 << 20
_GRAIN = 64  # entries of a table that are looked at as one
_NOTHING = array.array("Q", bytes(8 * _GRAIN))


class Run(NamedTuple):
    """Adjacent clusters: position of the first in its L2 table, how many, its offset in the file, or ZEROS for all of them."""

    position: int
    clusters: int
    start: int


class Unsuited(Qcow2Error):
    """The image may be in order, but it holds what is left to qemu-img."""


class QcowLayer:
    """The clusters of an opened qcow2 image.

    :raises Qcow2Error: it is damaged or hostile. :raises Unsuited: it is not plain.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.header = read_header(fd)
        header = self.header
        if header.extended_l2 or header.internal_snapshots or header.bitmaps or header.dirty or header.unknown_extensions:
            raise Unsuited("it has subclusters, internal snapshots, bitmaps, unknown extensions, or counts to be repaired")
        found = l1_table(fd, header, MOST_TABLE_BYTES // header.cluster_size)
        if found is None:
            raise Unsuited("it has too many L2 tables")
        self.l1: dict[int, int] = found
        self.size = header.size
        self.cluster_size = header.cluster_size
        self._last = os.fstat(fd).st_size

    def indices(self) -> Iterator[int]:
        return iter(self.l1)

    def table(self, index: int) -> array.array:
        """Entries of the L2 table at ``index`` of the L1 table, as numbers; all zero where there is none."""
        if index not in self.l1:
            return array.array("Q", bytes(self.cluster_size))
        return big_endian(os.pread(self.fd, self.cluster_size, self.l1[index] & OFFSET).ljust(self.cluster_size, b"\0"))

    @property
    def table_bytes(self) -> int:
        """Bytes of all L2 tables."""
        return len(self.l1) * self.cluster_size

    def runs(self, index: int) -> Iterator[Run]:
        """What is allocated of a table and within the size.

        :raises Unsuited: an entry is not plain, within the size or not. :raises CutShort: data of one is not in the file.
        """
        most = self.within(index)
        for position, count, entry in split(self.table(index), self.cluster_size):
            self.require_plain(entry, count)
            if entry and position < most:
                self._require_data(index, position, count, entry)
                yield Run(position, min(count, most - position), ZEROS if entry & READS_ZERO else entry & OFFSET)

    def require_plain(self, entry: int, count: int = 1) -> None:
        """:raises Unsuited: it is compressed or misplaced, or has a flag that nobody knows. For the first entry of ``count``."""
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
            raise CutShort("a cluster lies behind the end of the file (the file was cut short)")

    def last_cluster(self, index: int) -> int:
        """Offset of the last cluster that a table leads to, be it for zeros or beyond the virtual size; 0 where there is none.

        A few operations on all entries at once, because this is asked of tables that are not looked at otherwise.

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
        """How many clusters of a table lie within the virtual size, the last of them maybe in part."""
        start = index * self.header.l2_entries * self.cluster_size
        return max(0, min(self.header.l2_entries, -(-(self.size - start) // self.cluster_size)))


class RawLayer:
    """The data of an opened raw image, in clusters of the images above it.

    :raises Unsuited: nobody can tell where its holes are, or there are too many.
    """

    def __init__(self, fd: int, cluster_size: int) -> None:
        self.fd = fd
        self.cluster_size = cluster_size
        self._covered = cluster_size * (cluster_size // 8)
        status = os.fstat(fd)
        self.size = status.st_size
        self._starts, self._ends = [], []
        for start, end in all_data(fd, self.size):
            self._starts.append(start)
            self._ends.append(end)
            if len(self._ends) > _MOST_EXTENTS:
                raise Unsuited("it has too many holes")
        if sum(self._ends) - sum(self._starts) > status.st_blocks * 512 + _CHUNK:
            raise Unsuited("the file system does not tell where its holes are")

    @property
    def looks_full(self) -> bool:
        """Whether it has no hole, as all files seem to where the file system tells none."""
        return self.size > _CHUNK and (self._starts, self._ends) == ([0], [self.size])

    def indices(self) -> Iterator[int]:
        for start, end in zip(self._starts, self._ends):
            yield from range(start // self._covered, (end - 1) // self._covered + 1)

    def runs(self, index: int) -> Iterator[Run]:
        """As of :class:`QcowLayer`; what is in no run is a hole. Two may have a cluster in common."""
        first, last = index * self._covered, (index + 1) * self._covered
        for number in range(bisect.bisect_right(self._ends, first), bisect.bisect_left(self._starts, last)):
            begin = (max(self._starts[number], first) - first) // self.cluster_size
            end = -(-(min(self._ends[number], last) - first) // self.cluster_size)
            yield Run(begin, end - begin, first + begin * self.cluster_size)


def split(table: array.array, cluster_size: int) -> Iterator[tuple[int, int, int]]:
    """The entries of an L2 table in runs: position, count, and the first entry. The others are equal, or, where they have an
    offset, each is one cluster further than the one before."""
    begin, first, expected, step = 0, table[0], table[0], 0
    for start in range(0, len(table), _GRAIN):
        grain = table[start : start + _GRAIN]
        if not first and grain == _NOTHING:
            continue  # most tables of an overlay are nearly empty
        for position, entry in enumerate(grain, start):
            if entry != expected:
                yield begin, position - begin, first
                begin, first, expected = position, entry, entry
            if begin == position:
                step = cluster_size if entry & OFFSET else 0
            expected += step
    yield begin, len(table) - begin, first


def run_of(entry: int, count: int, cluster_size: int) -> array.array:
    """The entries of a run, of which ``entry`` is the first."""
    if not entry & OFFSET:
        return array.array("Q", [entry]) * count
    return array.array("Q", range(entry, entry + count * cluster_size, cluster_size))


def big_endian(data: bytes) -> array.array:
    """Numbers of eight bytes that qcow2 stores."""
    entries = array.array("Q", data)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def to_big_endian(entries: array.array) -> bytes:
    """Numbers of eight bytes as qcow2 stores them."""
    if sys.byteorder == "little":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()
