# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest sees of images: bytes at a virtual offset, and where there may be others than zeros.

Plain chains are read by their tables (see :mod:`moving`). What only QEMU can read is served to this process by qemu-nbd.
"""

from __future__ import annotations

import bisect
import os
from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator, NamedTuple, Protocol, Sequence

from ... import errors, model
from ...store.files import holes
from ...store.locks import in_use
from ...store.qcow2 import Qcow2Error, clusters
from .. import engine
from . import moving, qemu_img, served

PIECE = 1 << 20  # bytes that are read at once
_FENCED = 64 << 20  # bytes after which the task checks again that it still holds its locks


class Fence:
    """Lets a task that reads much check again and again that it still holds its locks. :param verify: raises an error if it does not."""

    def __init__(self, verify: Callable[[], None]) -> None:
        self._verify = verify
        self._unverified = 0  # bytes

    def passed(self, count: int) -> None:
        """So many bytes more were read. :raises LockTimeout: somebody else may have had the files."""
        self._unverified += count
        if self._unverified >= _FENCED:
            self._unverified = 0
            self._verify()


class View(Protocol):
    """A disk as a guest sees it. ``size`` is its virtual size in bytes."""

    @property
    def size(self) -> int:
        """Its virtual size in bytes."""

    def data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts from ``start`` to ``stop`` that may have other bytes than zeros, in order, each with its begin and its end."""

    def read(self, start: int, length: int) -> bytes:
        """The bytes from ``start`` on: ``length`` of them. :raises StorageError, OSError: they cannot be read."""


class FileView:
    """The bytes of an opened raw file. :param size: its virtual size in bytes."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self.size = fd, size

    def data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See :meth:`View.data`."""
        while start < stop:
            begin, start = holes.next_data(self._fd, start, stop)
            if begin < start:
                yield begin, start

    def read(self, start: int, length: int) -> bytes:
        """See :meth:`View.read`."""
        return _whole(self._fd, start, length)


class _Part(NamedTuple):
    """``start`` and ``stop`` are virtual offsets, ``fd`` is the file that has the bytes, from ``offset`` on."""

    start: int
    stop: int
    fd: int
    offset: int


class LayersView:
    """What plain layers show together. It remembers the one table that it read last.

    :raises Unsuited: as :class:`Layers`. The other methods raise it as well, if a table leads to what is not plain.
    """

    def __init__(self, layers: Sequence[moving.Layer], size: int) -> None:
        self._layers, self.size = moving.Layers(layers, size), size
        self._indices = sorted(set(self._layers.indices()))
        self._known = -1
        self._parts: tuple[_Part, ...] = ()
        self._stops: tuple[int, ...] = ()  # where each of them ends

    def require_plain(self) -> None:
        """Read all tables. :raises Unsuited: one of them leads to what is not plain."""
        for index in self._indices:
            self._from(index, 0)

    def data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See :meth:`View.data`."""
        covered = self._layers.covered
        for index in self._indices[bisect.bisect_left(self._indices, start // covered) :]:
            if index * covered >= stop:
                return
            for part in self._from(index, start):
                if part.start >= stop:
                    return
                yield max(start, part.start), min(stop, part.stop)

    def read(self, start: int, length: int) -> bytes:
        """See :meth:`View.read`."""
        found, position, stop = bytearray(), start, start + length
        while position < stop:
            index = position // self._layers.covered
            end = min(stop, (index + 1) * self._layers.covered)
            for part in self._from(index, position):
                if part.start >= end:
                    break
                found += bytes(max(0, part.start - position))
                position = max(position, part.start)
                found += _whole(part.fd, part.offset + position - part.start, min(end, part.stop) - position)
                position = min(end, part.stop)
            found += bytes(end - position)
            position = end
        return bytes(found)

    def _from(self, index: int, position: int) -> Iterator[_Part]:
        """The parts of a table that end behind ``position``."""
        if index != self._known:
            self._known, self._parts = index, tuple(self._read_table(index))
            self._stops = tuple(part.stop for part in self._parts)
        parts = self._parts
        return (parts[number] for number in range(bisect.bisect_right(self._stops, position), len(parts)))

    def _read_table(self, index: int) -> Iterator[_Part]:
        for piece in self._layers.pieces(index):
            layer = self._layers.layers[piece.layer]
            start = index * self._layers.covered + piece.position * layer.cluster_size
            stop = min(start + piece.clusters * layer.cluster_size, self.size, layer.size)
            if piece.start != clusters.ZEROS and start < stop:
                yield _Part(start, stop, layer.fd, piece.start)


def _whole(fd: int, offset: int, length: int) -> bytes:
    """``length`` bytes of a file; behind its end there are zeros."""
    found = os.pread(fd, length, offset)
    while len(found) < length:
        more = os.pread(fd, length - len(found), offset + len(found))
        if not more:
            return found.ljust(length, b"\0")
        found += more
    return found


@contextmanager
def opened(directory: engine.Readable, images: Sequence[model.Image]) -> Iterator[View]:
    """A context with what a chain shows, top first. Nobody can begin to write to it meanwhile, where the share shows locks.

    :raises InUse: somebody writes to one of its files. :raises ChainBroken, UnsafeImage, ToolFailed: it cannot be read.
    """
    with ExitStack() as stack:
        view = _plain(stack, directory, images)
        if view is None:
            chain = stack.enter_context(qemu_img.OpenedChain(directory, images))
            for image in images:
                in_use.hold_for_reading(chain.fd(image.file), image.file, directory.share)
            view = stack.enter_context(served.by_qemu(chain.graph(), chain.descriptors, images[0].size))
        yield view


def _plain(stack: ExitStack, directory: engine.Readable, images: Sequence[model.Image]) -> View | None:
    """What a plain chain shows; None if only QEMU can read it. :raises UnsafeImage: it is damaged."""
    if len(images) == 1 and images[0].format == "raw":
        fd = stack.enter_context(directory.root.opened(images[0].file))
        in_use.hold_for_reading(fd, images[0].file, directory.share)
        return FileView(fd, images[0].size)
    with ExitStack() as files:
        try:
            view = LayersView(moving.open_layers(files, directory, images), images[0].size)
            view.require_plain()
        except clusters.Unsuited:
            return None
        except Qcow2Error as error:
            raise errors.UnsafeImage(f"image {images[0].file}", str(error), "see docs/hostile-content.md") from error
        stack.enter_context(files.pop_all())
    return view


@contextmanager
def of_file(fd: int, image_format: str, size: int) -> Iterator[View]:
    """A context with what an image in one file shows, at whose header somebody has looked. :param size: its virtual size in bytes."""
    view: View | None = FileView(fd, size) if image_format == "raw" else None
    if image_format == "qcow2":
        try:
            layers = LayersView([clusters.QcowLayer(fd)], size)
            layers.require_plain()
            view = layers
        except Qcow2Error:
            pass  # QEMU says what it is
    if view is not None:
        yield view
        return
    with served.by_qemu(served.node(fd, image_format), [fd], size) as found:
        yield found
