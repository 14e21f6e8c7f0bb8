# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Adds clusters to a qcow2 image that nobody has open, in a way that a crash cannot damage it.

The order is QEMU's own. First come the data, in clusters behind all that are in use, and their reference counts. When these are
durable, the tables that lead to them follow. A crash in between leaks clusters, but no table ever leads to missing data. Data for
a cluster that the image already has overwrites it.

Follows docs/interop/qcow2 of QEMU, sections "Host cluster management" and "L1 and L2 tables".
"""

from __future__ import annotations

import array
import os
from typing import Callable, Iterator, NamedTuple

from . import refcounts, writing
from .clusters import COPIED, OFFSET, READS_ZERO, ZEROS, QcowLayer, Run, Unsuited, run_of, split, to_big_endian

_MOST_PENDING = 256  # changed L2 tables in memory
_MOST_CLUSTERS = 64 << 20  # in an image; each takes a byte of memory


class Place(NamedTuple):
    """Where adjacent clusters go: position of the first in its L2 table, how many, offset in the file in bytes (ZEROS: nowhere).
    ``fresh``: it is free space, which reads as zeros."""

    position: int
    clusters: int
    offset: int
    fresh: bool


class _Changed(NamedTuple):
    """An L2 table as it will be, and the positions of its first and last changed entry."""

    table: array.array
    first: int
    last: int


class ClusterWriter:
    """Adds clusters to an opened image. :meth:`place` returns where the caller has to write the data. After that :meth:`finish` makes
    it part of the image.

    :param hides: the image has a backing file, so that zeros hide data of that.
    :raises Qcow2Error: the image is damaged or hostile. :raises Unsuited: it is not plain. Nothing was written.
    """

    pads_last_cluster = True  # the last cluster is whole in the file, even if the virtual size ends inside it

    def __init__(self, fd: int, hides: bool) -> None:
        self._fd = fd
        self._hides = hides
        self._layer = QcowLayer(fd)
        self.cluster_size = self._layer.cluster_size
        self._counts = refcounts.Counts(fd, self._layer.header)
        self._fixed = self._metadata()
        self._first = self._last_in_use() + 1
        if self._first > _MOST_CLUSTERS:
            raise Unsuited("its file is too long")
        self.restart()

    def restart(self) -> None:
        """Forget all places since the last :meth:`finish`."""
        self._end = self._first
        self._l1 = dict(self._layer.l1)
        self._changed: dict[int, _Changed] = {}
        self._placed = False  # whether there were places since the last :meth:`finish`
        self._dropped: list[tuple[int, int]] = []
        self._taken = bytearray(self._first)  # 1 for each cluster that was overwritten or may not be
        for number in self._fixed:
            self._taken[number] = 1

    def _metadata(self) -> frozenset[int]:
        """Numbers of the clusters of header, tables and counts. :raises Unsuited: one has two uses."""
        header = self._layer.header
        l1 = range(header.l1_offset // self.cluster_size, -(-(header.l1_offset + header.l1_entries * 8) // self.cluster_size))
        parts = [0, *l1, *self._counts.clusters(), *((entry & OFFSET) // self.cluster_size for entry in self._layer.l1.values())]
        if len(set(parts)) < len(parts):
            raise Unsuited("two of its tables share a cluster")
        return frozenset(parts)

    def _last_in_use(self) -> int:
        """Number of the last cluster that a table leads to, even if it is for zeros or beyond the virtual size.

        Clusters behind it that are counted were leaked by an interrupted attempt.
        """
        last = max(self._fixed)
        for index in self._layer.indices():
            last = max(last, self._layer.last_cluster(index) // self.cluster_size)
        return last

    def holds(self, index: int) -> Iterator[Run]:
        """The allocated clusters of the L2 table at ``index``, as :meth:`QcowLayer.runs`."""
        return self._layer.runs(index)

    def begin(self) -> None:
        """Cut off clusters at the end of the file that nothing leads to, so that places there read as zeros."""
        if os.fstat(self._fd).st_size > self._end * self.cluster_size:
            os.ftruncate(self._fd, self._end * self.cluster_size)

    def place(self, index: int, position: int, count: int, zeros: bool) -> Iterator[Place]:
        """Find places for ``count`` adjacent clusters from ``position`` of the L2 table at ``index``, for data or for ``zeros``.

        :raises Unsuited: a cluster may not be overwritten, or the image has no room.
        """
        changed = self._changed.get(index)
        table = changed.table if changed else self._layer.table(index)
        for start, number, old in split(table[position : position + count], self.cluster_size):
            self._layer.require_plain(old, number)
            if old & OFFSET:
                self._overwrite(old, number)
            if zeros:
                entry = self._zeros(old, number)
            else:
                entry = COPIED | (old & OFFSET or self._take(number))
            start += position
            if entry != old:
                self._require_table(index)
                table[start : start + number] = run_of(entry, number, self.cluster_size)
                first, last = (changed.first, changed.last) if changed else (start, start)
                changed = _Changed(table, min(first, start), max(last, start + number - 1))
                self._changed[index] = changed
            self._placed = True
            yield Place(start, number, ZEROS if zeros else entry & OFFSET, not old & OFFSET)

    def _require_table(self, index: int) -> None:
        """Make the L2 table if there is none. :raises Unsuited: it cannot be made, or may not be changed."""
        if index >= self._layer.header.l1_entries or not self._l1.get(index, COPIED) & COPIED:
            raise Unsuited("its L1 table is too short, or an L2 table is not its own")
        if index not in self._l1:
            self._l1[index] = COPIED | self._take(1)

    def _take(self, count: int) -> int:
        """Take ``count`` free, adjacent clusters. Returns the offset of the first in bytes."""
        self._end += count
        return (self._end - count) * self.cluster_size

    def _overwrite(self, entry: int, count: int) -> None:
        first = (entry & OFFSET) // self.cluster_size
        if not entry & COPIED or any(self._taken[first : first + count]):
            raise Unsuited("a cluster of it has several owners")
        self._taken[first : first + count] = b"\1" * count

    def _zeros(self, old: int, count: int) -> int:
        """The L2 entry for zeros: the old empty one if that shows zeros already, else one with a flag. :meth:`finish` returns the
        space of data that this drops."""
        offset = old & OFFSET
        if not offset and not self._hides:
            return old
        if self._layer.header.version == 2:
            raise Unsuited("version 2 of the format has no clusters of zeros")
        if offset:
            if not old & READS_ZERO:
                self._dropped.append((offset, count * self.cluster_size))
            return offset | COPIED | READS_ZERO
        return READS_ZERO

    @property
    def is_full(self) -> bool:
        """Whether it is time for :meth:`finish`, because of the memory that places take."""
        return len(self._changed) >= _MOST_PENDING

    def forget_tables(self) -> None:
        """Free the memory of changed tables, for callers that only test whether there are places for all clusters."""
        self._changed = {}

    def require_room(self) -> None:
        """Check the room of the refcount table. :raises Unsuited: it cannot count all new clusters."""
        self._counts.blocks_for(self._first, self._end)

    def finish(self, sync: Callable[[], None]) -> list[tuple[int, int]]:
        """Make all places part of the image. Returns the parts of the file that are not needed any more, as (offset, length) in bytes.

        :param sync: returns when everything written to the file is durable.
        """
        if not self._placed:
            return []
        self._placed = False
        end, blocks = self._counts.blocks_for(self._first, self._end)
        if os.fstat(self._fd).st_size < end * self.cluster_size:
            os.ftruncate(self._fd, end * self.cluster_size)
        self._counts.write(self._first, end, blocks)
        for index in self._changed.keys() - self._layer.l1.keys():
            self._write_table(index)
        sync()
        if blocks:
            self._counts.publish(blocks)
            sync()
        for index in self._changed:
            if index in self._layer.l1:
                self._write_table(index)
            else:
                writing.write_whole(self._fd, self._l1[index].to_bytes(8, "big"), self._layer.header.l1_offset + index * 8)
        if self._changed:
            sync()
        dropped, self._dropped = self._dropped, []
        self._changed = {}
        self._layer.l1 = dict(self._l1)
        self._first = self._end = end
        return dropped

    def _write_table(self, index: int) -> None:
        table, first, last = self._changed[index]
        writing.write_whole(self._fd, to_big_endian(table[first : last + 1]), (self._l1[index] & OFFSET) + first * 8)
