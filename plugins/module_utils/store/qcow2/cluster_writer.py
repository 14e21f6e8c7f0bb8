# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes clusters into a qcow2 image that nobody has open, so that a crash leaves it as good as it was.

The order is QEMU's own: first the data, in clusters behind all that is in use, and their reference counts; when these are
durable, the tables that lead to them. A crash in between leaks clusters, and no table ever leads to what is not there. Data
for a cluster that the image has already takes its place.

Follows docs/interop/qcow2 of QEMU, sections "Host cluster management" and "L1 and L2 tables".
"""

from __future__ import annotations

import array
import os
from typing import Callable, Iterator, NamedTuple

from .clusters import COPIED, OFFSET, READS_ZERO, ZEROS, QcowLayer, Run, Unsuited, run_of, split, to_big_endian
from .refcounts import Counts
from .writing import write_whole

_MOST_PENDING = 256  # changed L2 tables in memory
_MOST_CLUSTERS = 64 << 20  # of an image, a byte of memory for each


class Place(NamedTuple):
    """Where adjacent clusters go: position of the first in its L2 table, how many, offset in the file (ZEROS: nowhere), and
    whether that is free space, which reads as zeros."""

    position: int
    clusters: int
    offset: int
    fresh: bool


class _Changed(NamedTuple):
    """An L2 table as it will be, and its first and last entry that differ."""

    table: array.array
    first: int
    last: int


class ClusterWriter:
    """An opened image that takes clusters in: :meth:`place` says where the data of each goes, and once it is there
    :meth:`finish` makes it part of the image.

    :param hides: whether zeros hide anything: something lies beneath the image.
    :raises Qcow2Error: it is damaged or hostile. :raises Unsuited: it is not plain. Nothing was written.
    """

    pads_last_cluster = True  # a last cluster that is cut by the size is whole in the file

    def __init__(self, fd: int, hides: bool) -> None:
        self._fd = fd
        self._hides = hides
        self._layer = QcowLayer(fd)
        self.cluster_size = self._layer.cluster_size
        self._counts = Counts(fd, self._layer.header)
        self._fixed = self._metadata()
        self._first = self._last_in_use() + 1
        if self._first > _MOST_CLUSTERS:
            raise Unsuited("its file is too long")
        self.restart()

    def restart(self) -> None:
        """Forget all that was placed and not finished."""
        self._end = self._first
        self._l1 = dict(self._layer.l1)
        self._changed: dict[int, _Changed] = {}
        self._placed = False  # something was, since the last :meth:`finish`
        self._dropped: list[tuple[int, int]] = []
        self._taken = bytearray(self._first)  # 1 for each cluster that may not be overwritten, or was
        for number in self._fixed:
            self._taken[number] = 1

    def _metadata(self) -> frozenset[int]:
        """Numbers of the clusters that hold no data. :raises Unsuited: one has two uses."""
        header = self._layer.header
        l1 = range(header.l1_offset // self.cluster_size, -(-(header.l1_offset + header.l1_entries * 8) // self.cluster_size))
        parts = [0, *l1, *self._counts.clusters(), *((entry & OFFSET) // self.cluster_size for entry in self._layer.l1.values())]
        if len(set(parts)) < len(parts):
            raise Unsuited("two of its tables share a cluster")
        return frozenset(parts)

    def _last_in_use(self) -> int:
        """Number of the last cluster that a table leads to, be it for zeros or beyond the virtual size.

        What is counted behind it was leaked by an interrupted attempt.
        """
        last = max(self._fixed)
        for index in self._layer.indices():
            last = max(last, self._layer.last_cluster(index) // self.cluster_size)
        return last

    def holds(self, index: int) -> Iterator[Run]:
        """As of :meth:`QcowLayer.runs`."""
        return self._layer.runs(index)

    def begin(self) -> None:
        """Cut off what nothing leads to at the end of the file: places there read as zeros."""
        if os.fstat(self._fd).st_size > self._end * self.cluster_size:
            os.ftruncate(self._fd, self._end * self.cluster_size)

    def place(self, index: int, position: int, count: int, zeros: bool) -> Iterator[Place]:
        """Find places for adjacent clusters of the L2 table at ``index``, of data or of ``zeros``.

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
                changed = _Changed(table, min(start, changed.first) if changed else start, start + number - 1)
                self._changed[index] = changed
            self._placed = True
            yield Place(start, number, ZEROS if zeros else entry & OFFSET, not old & OFFSET)

    def _require_table(self, index: int) -> None:
        """Make the L2 table if it is not there. :raises Unsuited: it cannot be, or may not be changed."""
        if index >= self._layer.header.l1_entries or not self._l1.get(index, COPIED) & COPIED:
            raise Unsuited("its L1 table is too short, or an L2 table is not its own")
        if index not in self._l1:
            self._l1[index] = COPIED | self._take(1)

    def _take(self, count: int) -> int:
        """The offset of free, adjacent clusters."""
        self._end += count
        return (self._end - count) * self.cluster_size

    def _overwrite(self, entry: int, count: int) -> None:
        first = (entry & OFFSET) // self.cluster_size
        if not entry & COPIED or any(self._taken[first : first + count]):
            raise Unsuited("a cluster of it has several owners")
        self._taken[first : first + count] = b"\1" * count

    def _zeros(self, old: int, count: int) -> int:
        """The entry for zeros: nothing where that shows zeros already, else a flag. The space of data is given back later."""
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
        """For who only asks whether there are places for all: what the tables would hold needs no memory."""
        self._changed = {}

    def require_room(self) -> None:
        """:raises Unsuited: the refcount table has no room for all that was placed."""
        self._counts.blocks_for(self._first, self._end)

    def finish(self, sync: Callable[[], None]) -> list[tuple[int, int]]:
        """Make what was placed part of the image; returns the parts of the file that nothing needs any more (offset, bytes).

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
                write_whole(self._fd, self._l1[index].to_bytes(8, "big"), self._layer.header.l1_offset + index * 8)
        if self._changed:
            sync()
        dropped, self._dropped = self._dropped, []
        self._changed = {}
        self._layer.l1 = dict(self._l1)
        self._first = self._end = end
        return dropped

    def _write_table(self, index: int) -> None:
        table, first, last = self._changed[index]
        write_whole(self._fd, to_big_endian(table[first : last + 1]), (self._l1[index] & OFFSET) + first * 8)
