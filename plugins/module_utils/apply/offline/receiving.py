# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a point of another share into an overlay: what differs from the image on which the overlay rests.

The overlay is not published yet, so that an interruption leaves nothing of it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import groupby
from typing import Callable, Iterable, Iterator, Sequence

from ... import errors, model
from ...pace import Pace
from ...plan import steps
from ...store.files.directory import ShareDirectory, write_all
from ...store.qcow2 import cluster_writer, clusters
from .. import engine, unchanged
from . import deltas, layer_sums, viewing
from .deltas import GRAIN, Part
from .viewing import PIECE, Fence, LayersView, View

_COVERED = GRAIN * (GRAIN // 8)  # bytes of the disk that a table of the overlay is about
_ZEROS = bytes(GRAIN)
_SAME, _EMPTY, _DATA = range(3)  # what a grain is: as below it, zeros, anything else


class Receiver:
    """Fills an empty overlay, with clusters of :data:`GRAIN` bytes, that rests on images of the replica.

    :param below: those images, top first. :param source: the point, of which the replica has what ``source.known`` says.
    :param verify: raises an error if the task may not go on.
    """

    def __init__(self, directory: ShareDirectory, below: Sequence[model.Image], source: engine.CopySource, pace: Pace, verify: Callable[[], None]) -> None:
        self._directory, self._below, self._source, self._pace, self._verify_target = directory, below, source, pace, verify
        self._known = source.known or engine.Known(None, None, lambda _count: None)
        self._written: list[Part] = []  # parts of the disk, in order
        self._sum = layer_sums.LayerSum(is_base=False)  # of what was written
        self._sent = 0  # bytes of data

    def fill(self, fd: int, file: str) -> None:
        """Write the point into the overlay behind ``fd``, which will have the name ``file``. The caller makes it durable.

        :raises VerifyFailed: what was written does not come back. :raises StorageError, OSError: it cannot be read or written.
        """
        with ExitStack() as stack:
            theirs = stack.enter_context(viewing.opened(self._source.directory, self._source.images))
            self._write(fd, theirs, *self._parts(stack, theirs))
            size = theirs.size
        self._known.sent(self._sent)
        if self._source.is_checked:
            self._read_back(fd, size)
            self._source.sums[file] = self._sum.digits()
            self._source.marks[file] = unchanged.mark_of(os.fstat(fd))

    def _parts(self, stack: ExitStack, theirs: View) -> tuple[Iterator[Part], View | None]:
        """The parts that may differ from what lies below the overlay, and that, unless all of them do."""
        changed = deltas.above(stack, self._source.directory, self._source.images, self._known.source)
        if changed is not None and self._below[0].file == self._known.replica:
            return changed, None
        ours = deltas.above(stack, self._directory, self._below, self._known.replica)
        below = stack.enter_context(viewing.opened(self._directory, self._below))
        if changed is None or ours is None:
            changed, ours = deltas.shown(theirs), deltas.shown(below)
        return deltas.joined(changed, ours), below

    def _write(self, fd: int, theirs: View, parts: Iterable[Part], below: View | None) -> None:
        writer, fence = cluster_writer.ClusterWriter(fd, hides=True), Fence(self._verify)
        writer.begin()
        for start, stop in deltas.pieces(parts, PIECE, _COVERED):
            if start >= theirs.size:
                break
            data = deltas.read(theirs, start, stop)
            old = None if below is None else deltas.read(below, start, stop)
            for offset, kind, length in _groups(data, old):
                self._place(fd, writer, start + offset, b"" if kind == _EMPTY else data[offset : offset + length], length)
            if writer.is_full:
                writer.finish(lambda: None)
            self._pace.moved(stop - start)
            fence.passed(stop - start)
        writer.finish(lambda: None)
        self._verify()

    def _place(self, fd: int, writer: cluster_writer.ClusterWriter, start: int, data: bytes, length: int) -> None:
        """Write grains that lie under one table. :param data: empty for zeros."""
        index, position = divmod(start // GRAIN, _COVERED // GRAIN)
        for place in writer.place(index, position, length // GRAIN, not data):
            if place.offset != clusters.ZEROS:
                first = (place.position - position) * GRAIN
                write_all(fd, data[first : first + place.clusters * GRAIN], place.offset)
        self._sent += len(data)
        self._sum.add(start, data or bytes(length))
        if self._written and self._written[-1][1] == start:
            self._written[-1] = self._written[-1][0], start + length
        else:
            self._written.append((start, start + length))

    def _read_back(self, fd: int, size: int) -> None:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that it comes from the disk, or from the server
        view, found = LayersView([clusters.QcowLayer(fd)], size), layer_sums.LayerSum(is_base=False)
        for start, stop in deltas.pieces(self._written, PIECE):
            found.add(start, deltas.read(view, start, stop))
            self._pace.require_time()
        if found.digits() != self._sum.digits():
            raise _not_the_same(f"share {self._directory.share.label}")

    def _verify(self) -> None:
        self._verify_target()
        self._source.directory.verify(self._source.images[0].file)


def _groups(data: bytes, old: bytes | None) -> Iterator[tuple[int, int, int]]:
    """Adjacent grains that are of one kind and have to be written: offset in bytes, kind, length in bytes."""

    def kind(offset: int) -> int:
        grain = data[offset : offset + GRAIN]
        if old is not None and grain == old[offset : offset + GRAIN]:
            return _SAME
        return _EMPTY if grain == _ZEROS else _DATA

    for found, group in groupby(range(0, len(data), GRAIN), kind):
        offsets = list(group)
        if found != _SAME:
            yield offsets[0], found, len(offsets) * GRAIN


def require_same(fd: int, step: steps.CopyImage, source: engine.CopySource, pace: Pace) -> None:
    """Read a new copy again, compare it with its source, and compute its checksum. :raises VerifyFailed: it shows something else."""
    found = layer_sums.LayerSum(is_base=True)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with viewing.opened(source.directory, source.images) as theirs, viewing.of_file(fd, step.format, step.size) as ours:
        for start, stop in deltas.pieces(deltas.joined(deltas.shown(theirs), deltas.shown(ours)), PIECE):
            data = deltas.read(ours, start, stop)
            if deltas.read(theirs, start, stop) != data:
                raise _not_the_same(f"copy {step.file}")
            found.add(start, data)
            pace.require_time()
    source.sums[step.file] = found.digits()
    source.marks[step.file] = unchanged.mark_of(os.fstat(fd))


def _not_the_same(subject: str) -> errors.VerifyFailed:
    return errors.VerifyFailed(subject, "what was written there does not come back the same", "check the share's disk and network, and run the task again")
