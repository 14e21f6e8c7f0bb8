# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference counts of a plain qcow2 image: section "Host cluster management" of QEMU's docs/interop/qcow2."""

from __future__ import annotations

import os
import struct
from typing import Iterable, Iterator, Mapping

from . import layout, reading, writing
from .clusters import OFFSET, Unsuited, big_endian

_TABLE = struct.Struct(">QI")  # offset of the refcount table and its number of clusters, at byte 48
_TABLE_AT = 48
_ORDER = struct.Struct(">I")
_ORDER_AT = layout.FIELDS.size + layout.FIELDS_OF_3.size - 8
_SIXTEEN_BITS = 4  # log2 of the width of a count in bits; version 2 always has it, and QEMU makes it
_ONE = b"\0\1"


class Counts:
    """The reference counts of an opened image. The table is read at once, blocks of counts when they are needed.

    :raises Unsuited: counts of another width, blocks at impossible places, or features that a writer would have to handle.
    """

    def __init__(self, fd: int, header: reading.Header) -> None:
        self._fd = fd
        self._cluster_size = header.cluster_size
        self._per_block = header.cluster_size // len(_ONE)
        start = os.pread(fd, layout.FIELDS.size + layout.FIELDS_OF_3.size, 0)
        if header.version == 3:
            (order,), (autoclear,) = _ORDER.unpack_from(start, _ORDER_AT), struct.unpack_from(">Q", start, layout.AUTOCLEAR_AT)
            if order != _SIXTEEN_BITS or autoclear:
                raise Unsuited("its reference counts are not of 16 bits, or it has features that a writer would end")
        self._offset, clusters = _TABLE.unpack_from(start, _TABLE_AT)
        length = clusters * header.cluster_size
        data = os.pread(fd, length, self._offset)
        if len(data) < length:
            raise Unsuited("its table of reference counts is cut short")
        self._blocks = big_endian(data)
        last = os.fstat(fd).st_size - header.cluster_size
        for entry in self._blocks:
            if entry and (entry & ~OFFSET or entry % header.cluster_size or entry > last):
                raise Unsuited("a block of reference counts is not where it can be")

    def clusters(self) -> Iterator[int]:
        """Numbers of the clusters that the table and its blocks occupy."""
        first = self._offset // self._cluster_size
        yield from range(first, first + len(self._blocks) * 8 // self._cluster_size)
        for entry in self._blocks:
            if entry:
                yield entry // self._cluster_size

    def end(self) -> int:
        """Number of the cluster behind the last one with a count that is not zero."""
        for index in range(len(self._blocks) - 1, -1, -1):
            if self._blocks[index]:
                counts = os.pread(self._fd, self._cluster_size, self._blocks[index]).rstrip(b"\0")
                if counts:
                    return index * self._per_block + -(-len(counts) // len(_ONE))
        return 0

    def blocks_for(self, first: int, end: int) -> tuple[int, dict[int, int]]:
        """The new blocks that are needed to count the clusters from ``first`` to ``end`` (not included): (the end, with the clusters of
        the new blocks included; index in the table → offset of a new block in bytes).

        :raises Unsuited: the table is too short.
        """
        new: dict[int, int] = {}
        index = first // self._per_block
        while first < end and index * self._per_block < end:
            if index >= len(self._blocks):
                raise Unsuited("its table of reference counts is full")
            if not self._blocks[index]:
                new[index] = end * self._cluster_size
                end += 1
            index += 1
        return end, new

    def write(self, first: int, end: int, new: Mapping[int, int]) -> None:
        """Set the counts of clusters from ``first`` to ``end`` to one, and those behind to zero, because nothing leads to these.

        :param new: the blocks that :meth:`blocks_for` returned.
        """
        stop = max(end, self.end())
        for index in range(first // self._per_block, -(-stop // self._per_block)):
            start = index * self._per_block
            low, high = max(first, start), min(stop, start + self._per_block)
            ones = max(0, min(end, high) - low)
            offset = new.get(index) or self._blocks[index]
            if offset:
                writing.write_whole(self._fd, _ONE * ones + bytes((high - low - ones) * len(_ONE)), offset + (low - start) * len(_ONE))

    def release(self, clusters: Iterable[int]) -> None:
        """Lower the count of each cluster by one, once for each time that it is listed. Call it only after the entries that led to
        them are durably removed."""
        for number in clusters:
            index, position = divmod(number, self._per_block)
            block = self._blocks[index] if index < len(self._blocks) else 0
            count = int.from_bytes(os.pread(self._fd, len(_ONE), block + position * len(_ONE)), "big") if block else 0
            if count:
                writing.write_whole(self._fd, (count - 1).to_bytes(len(_ONE), "big"), block + position * len(_ONE))

    def publish(self, new: Mapping[int, int]) -> None:
        """Make new blocks part of the table. They must be durable before."""
        for index, offset in new.items():
            self._blocks[index] = offset
            writing.write_whole(self._fd, offset.to_bytes(8, "big"), self._offset + index * 8)
