# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves clusters between the files of a chain without qemu-img: commits, pulls, and clones of chains.

The tables of all layers say which file has the data of each cluster. The kernel or the share's server copies the data from there to
its place. No byte passes through this process, and the blocks are shared where the file system can. An image that is not plain (see
:mod:`clusters`) raises :class:`Unsuited` before anything is written. Such images are left to qemu-img.

After an interruption the images show what they showed before. A pull writes clusters into a file that shows them already. A commit
writes clusters into a file that only files above it read, and those have the clusters too. So a move can be done again from the start.
"""

from __future__ import annotations

import array
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Callable, Container, Iterable, Iterator, NamedTuple, Sequence, Union

from ... import errors, model
from ...pace import UNLIMITED, Pace
from ...store.files.directory import ShareDirectory
from ...store.locks import in_use
from ...store.qcow2 import cluster_writer, grow, read_header
from ...store.qcow2.clusters import MOST_TABLE_BYTES, ZEROS, QcowLayer, RawLayer, Run, Unsuited
from .. import engine
from . import allocate, copying

Layer = Union[QcowLayer, RawLayer]
_CLUSTER = 64 << 10  # bytes: the unit where no layer has clusters
_FENCED = 64 << 20  # bytes that are moved at most before the task checks again that it still holds its lock


class RawClusterWriter:
    """Finds the places of clusters that are written into a raw image: each at its virtual offset. As :class:`ClusterWriter` for qcow2.

    :param cluster_size: bytes of a cluster of the layers. :param fresh: the whole file reads as zeros.
    """

    pads_last_cluster = False  # the last cluster ends where the file ends

    def __init__(self, cluster_size: int, fresh: bool) -> None:
        self.cluster_size = cluster_size
        self._fresh = fresh
        self._covered = cluster_size * (cluster_size // 8)

    def place(self, index: int, position: int, count: int, _zeros: bool) -> Iterator[cluster_writer.Place]:
        """The place of ``count`` clusters of table ``index`` from ``position`` on: always one, at their virtual offset."""
        yield cluster_writer.Place(position, count, index * self._covered + position * self.cluster_size, self._fresh)

    def restart(self) -> None:
        """As :meth:`ClusterWriter.restart`. Nothing is remembered here."""

    forget_tables = restart


AnyClusterWriter = Union[cluster_writer.ClusterWriter, RawClusterWriter]


class Piece(NamedTuple):
    """Adjacent clusters of one layer. ``position`` is that of the first cluster in its table, ``clusters`` how many there are.
    ``layer`` is the number of the layer, ``start`` the offset in its file or ZEROS."""

    position: int
    clusters: int
    layer: int
    start: int


class _Copy(NamedTuple):
    """``length`` bytes that go from offset ``start`` of a layer (ZEROS: they are zeros) to offset ``to`` of the target. ``fresh``: the
    target already reads as zeros there."""

    layer: int
    start: int
    to: int
    length: int
    fresh: bool

    def joined_with(self, other: _Copy) -> _Copy | None:
        """One copy for both. None where they are not adjacent."""
        continues = other.start == (ZEROS if self.start == ZEROS else self.start + self.length)
        if continues and (self.layer, self.fresh, self.to + self.length) == (other.layer, other.fresh, other.to):
            return self._replace(length=self.length + other.length)
        return None

    def parts(self, most: int) -> Iterator[_Copy]:
        """The same copy in parts of at most ``most`` bytes."""
        for done in range(0, self.length, most):
            start = ZEROS if self.start == ZEROS else self.start + done
            yield self._replace(start=start, to=self.to + done, length=min(most, self.length - done))


class Layers:
    """Adjacent opened layers of a chain, top first, and what they hold together up to ``size`` bytes.

    :param sizes_below: sizes in bytes of the files below them.
    :raises Unsuited: the layers have clusters of different sizes, or a file is shorter than one below it. No table says what the
        shorter file hides beyond its end.
    """

    def __init__(self, layers: Sequence[Layer], size: int, sizes_below: Sequence[int] = ()) -> None:
        self.layers = layers
        self.size = size
        self.cluster_size = layers[0].cluster_size
        sizes = [min(length, size) for length in (*(layer.size for layer in layers), *sizes_below)]
        if any(layer.cluster_size != self.cluster_size for layer in layers) or sizes != sorted(sizes, reverse=True):
            raise Unsuited("its layers have clusters of different sizes, or one is shorter than what it rests on")
        self._per_table = self.cluster_size // 8

    @property
    def covered(self) -> int:
        """Bytes of the disk that one table is about."""
        return self._per_table * self.cluster_size

    def indices(self) -> list[int]:
        """L1 indices of all tables within the size in which a layer has clusters, sorted."""
        used = {index for layer in self.layers for index in layer.indices()}
        return sorted(index for index in used if index * self._per_table * self.cluster_size < self.size)

    def pieces(self, index: int, held: Iterable[Run] = ()) -> Iterator[Piece]:
        """What the layers hold of the table with L1 index ``index``, in order.

        :param held: clusters that the target itself holds. They are left out.
        """
        origins: list[tuple[int, Run]] = [(0, Run(0, 0, ZEROS))]  # layer and run; the first one means that no layer has the cluster
        shown = array.array("I", bytes(4 * self._per_table))  # for each cluster its index in ``origins``
        for number in range(len(self.layers) - 1, -1, -1):
            for run in self.layers[number].runs(index):
                shown[run.position : run.position + run.clusters] = array.array("I", [len(origins)]) * run.clusters
                origins.append((number, run))
        covers = list(held)
        for run in covers:
            shown[run.position : run.position + run.clusters] = array.array("I", [0]) * run.clusters
        ends = {end for run in (*covers, *(run for _layer, run in origins)) for end in (run.position, run.position + run.clusters)}
        most = -(-self.size // self.cluster_size) - index * self._per_table
        bounds = sorted(min(end, most) for end in ends)
        for position, end in zip(bounds, bounds[1:]):
            layer, run = origins[shown[position]] if position < end else origins[0]
            if run.clusters:
                offset = ZEROS if run.start == ZEROS else run.start + (position - run.position) * self.cluster_size
                yield Piece(position, end - position, layer, offset)

    def copies(self, index: int, piece: Piece, writer: AnyClusterWriter) -> Iterator[_Copy]:
        """Where the bytes of a piece go. Only bytes within the size and within their layer are copied. Behind them there are zeros.

        :raises Unsuited: the rest of a cluster would have to be filled with zeros, or as :meth:`ClusterWriter.place`.
        """
        for position, count, to, fresh in writer.place(index, piece.position, piece.clusters, piece.start == ZEROS):
            if to == ZEROS:
                continue
            start = (index * self._per_table + position) * self.cluster_size
            within = min(count * self.cluster_size, self.size - start)
            if writer.pads_last_cluster and not fresh and within < count * self.cluster_size:
                # Behind the end there may be old data. Nobody could see it as long as the cluster read as zeros.
                yield _Copy(piece.layer, ZEROS, to + within, count * self.cluster_size - within, fresh)
            if piece.start == ZEROS:
                yield _Copy(piece.layer, ZEROS, to, within, fresh)
                continue
            length = min(within, self.layers[piece.layer].size - start)
            if length < within and not fresh:
                raise Unsuited("the last cluster of a shorter file would have to be filled up")
            yield _Copy(piece.layer, piece.start + (position - piece.position) * self.cluster_size, to, length, fresh)


@dataclass(frozen=True)
class _Move:
    """One merge or copy: clusters of ``layers`` are written into the file behind the descriptor ``target``.

    :param writer: finds the places in the target.
    :param keep: the target is above the layers, so that what it holds stays. Otherwise it is below them and is overwritten.
    :param sync: returns when everything written to the target is durable.
    :param verify: raises an error if the task may not continue, because it lost its lock.
    :param pace: how fast data moves, and for how long.
    """

    layers: Layers
    target: int
    writer: AnyClusterWriter
    keep: bool
    sync: Callable[[], None]
    verify: Callable[[], None]
    pace: Pace

    def check(self) -> None:
        """Check that the move can be done by this module. Nothing is written. :raises Unsuited: it cannot."""
        writer = self.writer
        if writer.cluster_size != self.layers.cluster_size:
            raise Unsuited("its clusters are of another size than those of the layers")
        moved = [0] * len(self.layers.layers)
        for index in self.layers.indices():
            for run in self._copies(index):
                moved[run.layer] += run.length if run.start != ZEROS else 0
            writer.forget_tables()
        if any(length > os.fstat(layer.fd).st_size for length, layer in zip(moved, self.layers.layers)):
            raise Unsuited("its tables lead to the same clusters many times")
        if isinstance(writer, cluster_writer.ClusterWriter):
            writer.require_room()

    def run(self) -> None:
        """Do the move, durably. After an error it can be done again from the start.

        :raises OSError: ENOSPC, or the share is lost. :raises OutOfTime: the pace leaves no more time.
        """
        self.verify()
        writer = self.writer
        writer.restart()
        copiers = [copying.Copier(layer.fd, self.target, pace=self.pace) for layer in self.layers.layers]
        if isinstance(writer, cluster_writer.ClusterWriter):
            writer.begin()
        left = _FENCED
        for index in self.layers.indices():
            for part in (part for run in self._copies(index) for part in run.parts(_FENCED)):
                if part.length > left:
                    self.verify()
                    left = _FENCED
                left -= part.length
                self._do(part, copiers[part.layer])
            if isinstance(writer, cluster_writer.ClusterWriter) and writer.is_full:
                self._finish()
        self._finish()

    def _do(self, part: _Copy, copier: copying.Copier) -> None:
        if part.start != ZEROS:
            copier.copy(part.start, part.to, part.length, part.fresh)
        elif not part.fresh:
            allocate.make_zeros(self.target, part.to, part.length)

    def _copies(self, index: int) -> Iterator[_Copy]:
        """What must be copied for the table with L1 index ``index``. Adjacent parts are joined."""
        held = self.writer.holds(index) if self.keep and isinstance(self.writer, cluster_writer.ClusterWriter) else ()
        last: _Copy | None = None
        for piece in self.layers.pieces(index, held):
            for one in self.layers.copies(index, piece, self.writer):
                joined = last.joined_with(one) if last else None
                if last and not joined:
                    yield last
                last = joined or one
        if last:
            yield last

    def _finish(self) -> None:
        """Make what was written durable, and then visible in the tables of the target."""
        self.verify()
        if isinstance(self.writer, RawClusterWriter):
            self.sync()
            return
        for start, length in self.writer.finish(self.sync):
            allocate.make_hole(self.target, start, length)


class Mover:
    """Merges and copies for one volume. A method that cannot do its work raises :class:`Unsuited` before it writes anything.

    :param directory: the share of ``volume``. The task holds the volume's lock. If the task is killed, its leftovers are found by
        the name of the volume.
    :param held: files whose lock bytes the task holds. When other files are read, their lock bytes are taken for reading.
    :param pace: how fast data moves, and for how long.
    """

    def __init__(self, directory: ShareDirectory, volume: str, held: Container[str] = (), pace: Pace = UNLIMITED) -> None:
        self._directory = directory
        self._volume = volume
        self._held = held
        self._pace = pace

    def commit(self, images: Sequence[model.Image], into: str) -> None:
        """Write what the files above ``into`` hold into it. If it is smaller than the topmost file, it gets that file's size.

        :param images: the chain, top first.
        :raises Unsuited: nothing was written. But ``into`` may have grown already, because it grows first.
        """
        position = [image.file for image in images].index(into)
        lower, size = images[position], images[0].size
        with ExitStack() as stack:
            layers = Layers(self._open(stack, self._directory, images[:position]), size, [lower.size])
            target = stack.enter_context(self._directory.root.opened(into, write=True))
            if lower.format == "raw":
                move = self._move(layers, target, into, RawClusterWriter(layers.cluster_size, fresh=False))
            else:
                if lower.size < size and not grow(target, size):  # even then data behind its end was removed
                    raise Unsuited("qemu-img has to make it larger")
                move = self._move(layers, target, into, cluster_writer.ClusterWriter(target, hides=lower.backing_file is not None))
            move.check()
            if lower.format == "raw" and lower.size < size:
                os.ftruncate(target, size)
            move.run()

    def pull(self, images: Sequence[model.Image], below: str | None) -> None:
        """Copy into the topmost file what it shows of the files down to ``below`` (not included; None: of all files below it).

        The header still names the old backing file afterwards.

        :param images: the chain, top first.
        """
        files = [image.file for image in images]
        position = files.index(below) if below else len(files)
        with ExitStack() as stack:
            target = stack.enter_context(self._directory.root.opened(files[0], write=True))
            cluster_size = read_header(target).cluster_size
            opened = self._open(stack, self._directory, images[1:position], cluster_size)
            layers = Layers(opened, images[0].size, [image.size for image in images[position:]])
            move = self._move(layers, target, files[0], cluster_writer.ClusterWriter(target, hides=below is not None), keep=True)
            move.check()
            move.run()

    def copy(self, source: engine.Readable, images: Sequence[model.Image], target: int, image_format: str) -> None:
        """Copy what a chain on any share shows into an empty image that is large enough and not published yet. The caller makes it durable.

        :param images: the chain on the share ``source``, top first. :param target: descriptor of the image.
        :param image_format: raw or qcow2.
        """
        cluster_size = read_header(target).cluster_size if image_format == "qcow2" else None
        with ExitStack() as stack:
            layers = Layers(self._open(stack, source, images, cluster_size), images[0].size)
            writer: AnyClusterWriter = (
                RawClusterWriter(layers.cluster_size, fresh=True) if image_format == "raw" else cluster_writer.ClusterWriter(target, hides=False)
            )
            move = _Move(layers, target, writer, False, lambda: None, lambda: self._directory.verify(self._volume), self._pace)
            move.check()
            move.run()

    def _reports_holes(self, fd: int) -> bool:
        """Whether the file system of an opened file reports holes. A new file next to the volume is used to find out. False where no
        new file can be created, or where it would be on another file system."""
        if os.fstat(fd).st_dev != os.fstat(self._directory.root.fd).st_dev:
            return False
        try:
            probe, temporary = self._directory.create_temporary(self._volume)
        except errors.StorageError:
            return False
        try:
            os.ftruncate(probe, _CLUSTER)
            return copying.reports_holes(probe)
        finally:
            os.close(probe)
            self._directory.discard_temporary(temporary)

    def _move(self, layers: Layers, target: int, file: str, writer: AnyClusterWriter, keep: bool = False) -> _Move:
        sync, verify = partial(self._directory.waiting.sync_file, target), partial(self._directory.verify, file)
        return _Move(layers, target, writer, keep, sync, verify, self._pace)

    def _open(
        self, stack: ExitStack, directory: engine.Readable, images: Sequence[model.Image], cluster_size: int | None = None
    ) -> list[Layer]:
        """As :func:`open_layers`. Files whose lock bytes the task holds are not locked a second time."""
        held = self._held if directory is self._directory else ()
        return open_layers(stack, directory, images, held, cluster_size, self._reports_holes)


def open_layers(
    stack: ExitStack,
    directory: engine.Readable,
    images: Sequence[model.Image],
    held: Container[str] = (),
    cluster_size: int | None = None,
    reports_holes: Callable[[int], bool] = lambda _fd: True,
) -> list[Layer]:
    """Open images as layers, top first, and take the lock bytes of a reader on those that are not ``held``.

    :param cluster_size: the unit of raw ones; without it, that of the images above.
    :param reports_holes: says of an opened file that seems to have no holes whether they would be seen.
    :raises Unsuited: this module cannot read one. :raises InUse: somebody writes to one.
    """
    layers: list[Layer] = []
    for image in images:
        if image.format not in ("raw", "qcow2"):
            raise Unsuited("it is of another format")
        fd = stack.enter_context(directory.root.opened(image.file))
        if image.file not in held:
            in_use.hold_for_reading(fd, image.file, directory.share)
        if image.format == "raw":
            raw = RawLayer(fd, cluster_size or (layers[-1].cluster_size if layers else _CLUSTER))
            if raw.looks_full and not reports_holes(fd):
                raise Unsuited("the file system does not tell where its holes are")
            layers.append(raw)
            continue
        layer = QcowLayer(fd)
        if layer.header.backing_file != image.backing_file:
            raise Unsuited("it names another backing file than a moment ago")
        layers.append(layer)
    if sum(layer.table_bytes for layer in layers if isinstance(layer, QcowLayer)) > MOST_TABLE_BYTES:
        raise Unsuited("the layers have too many L2 tables")
    return layers
