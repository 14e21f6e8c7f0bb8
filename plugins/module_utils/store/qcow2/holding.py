# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows by the tables on disk that a merge which somebody else did is complete: the image has a place for whatever the layers hold.

QEMU keeps tables in memory and writes them later. If that fails, it may say nothing. Then the file lacks entries, and this sees it.
"""

from __future__ import annotations

import os
from typing import Iterator, NamedTuple, Sequence

from . import l2_entries, layout, reading, tables
from .clusters import COPIED, MOST_TABLE_BYTES, OFFSET, RawLayer, big_endian

_NOTHING, _DATA, _ZEROS = 0, 1, 2  # as in tables.allocation


class _Part(NamedTuple):
    """Adjacent clusters of a layer: the first byte and the one behind the last in the virtual disk; and whether they are data (else zeros)."""

    start: int
    stop: int
    is_data: bool


class _Cluster(NamedTuple):
    """A part of a cluster: from where to where in the virtual disk (bytes), its kind, and its entry in the L2 table."""

    start: int
    stop: int
    kind: int
    entry: int


class _Tables:
    """The tables of an opened qcow2 image, read as they are asked for."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.header: reading.Header = reading.read_header(fd)
        found = tables.l1_table(fd, self.header, MOST_TABLE_BYTES // self.header.cluster_size)
        if found is None:
            raise layout.Qcow2Error("it has too many tables to be looked through")
        self.l1 = found
        self._last: tuple[int, bytes, bytes] = (-1, b"", b"")

    def _table(self, index: int) -> tuple[bytes, bytes]:
        """(The L2 table at this index of the L1 table, a byte for each of its entries as in :func:`tables.allocation`)."""
        if self._last[0] != index:
            size, entry = self.header.cluster_size, self.l1.get(index, 0)
            data = os.pread(self.fd, size, entry & OFFSET).ljust(size, b"\0") if entry else b""
            self._last = index, data, tables.kinds(data, self.header) if entry else bytes(self.header.l2_entries)
        return self._last[1:]

    def parts(self) -> Iterator[_Part]:
        """What the image holds, within its virtual size."""
        size, per_table = self.header.cluster_size, self.header.l2_entries
        for index in sorted(self.l1):
            _data, kinds_of = self._table(index)
            position = 0
            while position < per_table:
                kind, first = kinds_of[position], position
                while position < per_table and kinds_of[position] == kind:
                    position += 1
                start = (index * per_table + first) * size
                stop = min((index * per_table + position) * size, self.header.size)
                if kind != _NOTHING and start < stop:
                    yield _Part(start, stop, kind == _DATA)

    def clusters(self, start: int, stop: int) -> Iterator[_Cluster]:
        """The clusters that have a part of a range of bytes."""
        size, per_table = self.header.cluster_size, self.header.l2_entries
        width = l2_entries.entry_bytes(self.header)
        for number in range(start // size, -(-min(stop, self.header.size) // size)):
            index, position = divmod(number, per_table)
            data, kinds_of = self._table(index)
            entry = big_endian(data[position * width : position * width + 8])[0] if data else 0
            yield _Cluster(max(start, number * size), min(stop, (number + 1) * size), kinds_of[position], entry)

    def kind(self, offset: int) -> int:
        """The kind of the cluster at an offset of the virtual disk."""
        return next((one.kind for one in self.clusters(offset, offset + 1)), _NOTHING)

    def shows_zeros(self, start: int, stop: int) -> bool:
        """Whether what its data clusters have in this range are zeros, as far as that can be told: compressed data is taken for it."""
        return all(one.kind != _DATA or one.entry & l2_entries.COMPRESSED or self._is_zero(one) for one in self.clusters(start, stop))

    def _is_zero(self, one: _Cluster) -> bool:
        return reading.is_zero(self.fd, (one.entry & OFFSET) + one.start % self.header.cluster_size, one.stop - one.start)


class _Raw:
    """The data of an opened raw image, where the file system shows holes."""

    def __init__(self, fd: int, cluster_size: int) -> None:
        self.fd, self._layer = fd, RawLayer(fd, cluster_size)

    def parts(self) -> Iterator[_Part]:
        """See :meth:`_Tables.parts`."""
        size = self._layer.cluster_size
        for index in sorted(set(self._layer.indices())):
            first = index * size * (size // 8)
            for run in self._layer.runs(index):
                start = first + run.position * size
                yield _Part(start, min(start + run.clusters * size, self._layer.size), True)

    def kind(self, _offset: int) -> int:
        """Nothing is beneath a raw image."""
        return _DATA

    def shows_zeros(self, start: int, stop: int) -> bool:
        """See :meth:`_Tables.shows_zeros`."""
        return reading.is_zero(self.fd, start, stop - start)


def require_held(fd: int, layers: Sequence[int], raw: int | None = None, is_above: bool = False) -> None:
    """Check that a qcow2 image has a place for everything that the layers hold. Nobody may write to the layers meanwhile.

    :param fd: the image into which the layers were merged. :param layers: descriptors of qcow2 images, the upper ones first.
    :param raw: a raw image beneath them. One on a file system that does not show holes cannot be looked at.
    :param is_above: the image rests on the layers, so that what it had before counts, and not what they have there.
    :raises Qcow2Error: a place is missing, or a table cannot be read.
    """
    target = _Tables(fd)
    above: list[_Tables] = []
    found: list[_Tables | _Raw] = [_Tables(layer) for layer in layers]
    if raw is not None:
        found.append(_Raw(raw, target.header.cluster_size))
    for layer in found:
        for part in layer.parts():
            _require_part(target, layer, part, above, is_above)
        if isinstance(layer, _Tables):
            above.append(layer)


def _require_part(target: _Tables, layer: _Tables | _Raw, part: _Part, above: Sequence[_Tables], is_above: bool) -> None:
    for one in target.clusters(part.start, part.stop):
        if is_above and one.kind != _NOTHING:
            continue
        hidden = any(upper.kind(one.start) != _NOTHING for upper in above)  # by a layer that has its own turn
        if not hidden and not (_has_data(target, layer, one) if part.is_data else _has_zeros(target, one)):
            raise layout.Qcow2Error(f"it has no place for what the merged images hold at byte {one.start}")


def _has_data(target: _Tables, layer: _Tables | _Raw, one: _Cluster) -> bool:
    """Whether the cluster can be where data of the layer was written. Whoever writes to a cluster is its only owner then (the flag COPIED),
    and it is not compressed. Zeros may be found while they are copied."""
    if one.kind == _DATA:
        return bool(one.entry & COPIED) and not one.entry & l2_entries.COMPRESSED
    return one.kind == _ZEROS and layer.shows_zeros(one.start, one.stop)


def _has_zeros(target: _Tables, one: _Cluster) -> bool:
    """Whether the cluster reads as zeros."""
    if one.kind == _NOTHING:
        return target.header.backing_file is None
    return one.kind == _ZEROS or (not one.entry & l2_entries.COMPRESSED and target.shows_zeros(one.start, one.stop))
