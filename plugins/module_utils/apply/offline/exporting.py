# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a chain shows, written into a file of its own in any format, or compared with one. Checksums come from the bytes on their way.

A raw image is its content: what is read is hashed and written. Every other format is written by qemu-img, while a thread reads and
hashes the content beside it, so that the kernel has in memory what the second of them reads.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

from ... import errors, model
from ...pace import Pace
from ...store import inspection
from ...store.files import passing
from ...store.files.directory import ShareDirectory
from .. import engine
from . import guard, qemu_img, viewing
from .viewing import PIECE, Fence, View

_ZEROS = bytes(PIECE)
_GAP = 256 << 20  # bytes of zeros that are passed at once
_OPTIONS = {"vpc": ["-o", "force_size=on"]}  # else QEMU rounds its size to a geometry


class Point:
    """The point of a volume that a context has open: see :class:`engine.Shown`.

    :param pace: how fast its data moves, and for how long. :param hashes_content: whether :class:`Sums` have the checksum of the content.
    """

    def __init__(self, source: engine.CopySource, view: View, pace: Pace, locks: Sequence[int], hashes_content: bool) -> None:
        self._source, self._view, self._pace, self._locks = source, view, pace, locks
        self._hashes_content = hashes_content
        self._fence = Fence(self.verify)
        self.size = view.size

    def pieces(self) -> Iterator[bytes]:
        """See :meth:`engine.Shown.pieces`."""
        for _start, data, count in self._read():
            yield from _zeros(count) if data is None else (data,)

    def write(self, fd: int, written: engine.Written) -> engine.Sums:
        """See :meth:`engine.Shown.write`."""
        if written.format == "raw":
            return self._write_raw(fd)
        with _beside(self._hash_content if self._hashes_content else lambda _stopped: None) as content:
            self._convert(fd, written)
        return engine.Sums(self._sum_of(fd), content())

    def compare(self, fd: int, image_format: str) -> engine.Sums | None:
        """See :meth:`engine.Shown.compare`."""
        try:
            if image_format == "raw":
                is_alike = os.fstat(fd).st_size == self.size
            else:
                is_alike = inspection.inspect(fd, image_format).size == self.size
        except inspection.Refused:
            return None
        if not is_alike:
            return None
        try:
            with viewing.of_file(fd, image_format, self.size) as other:
                content = self._sum_if_same(other, self._hashes_content or image_format == "raw")
        except errors.ToolFailed:
            return None  # what cannot be read is replaced
        if content is None:
            return None
        return engine.Sums(content if image_format == "raw" else self._sum_of(fd), content if self._hashes_content else None)

    # -- the content -------------------------------------------------------------------------------------------------

    def _read(self, pace: Pace | None = None) -> Iterator[tuple[int, bytes | None, int]]:
        """All of it in order: where, the bytes (None: zeros), and how many: at most :data:`PIECE`, or :data:`_GAP` of zeros."""
        pace, position = pace or self._pace, 0
        for start, stop in self._view.data(0, self.size):
            yield from self._holes(position, start)
            while start < stop:
                count = pace.piece(min(PIECE, stop - start))
                yield start, self._view.read(start, count), count
                start += count
                pace.moved(count)
                self._fence.passed(count)
            position = stop
        yield from self._holes(position, self.size)

    def _holes(self, start: int, stop: int) -> Iterator[tuple[int, None, int]]:
        """Zeros move no bytes, but whoever hashes terabytes of them takes time. :raises OutOfTime: it is over."""
        while start < stop:
            self._pace.require_time()
            count = min(_GAP, stop - start)
            yield start, None, count
            start += count

    def verify(self) -> None:
        """See :meth:`engine.Shown.verify`."""
        self._source.directory.verify(self._source.images[0].file)

    def _write_raw(self, fd: int) -> engine.Sums:
        found = hashlib.sha256()
        os.ftruncate(fd, self.size)
        for start, data, count in self._read():
            _add(found, data, count)
            if data is not None:
                passing.write_with_holes(fd, data, start)
        self.verify()
        return engine.Sums(found.hexdigest(), found.hexdigest() if self._hashes_content else None)

    def _convert(self, fd: int, written: engine.Written) -> None:
        options = ["-c"] if written.compressed else []
        if written.compressed and written.format == "vmdk":
            options += ["-o", "subformat=streamOptimized"]
        options += _OPTIONS.get(written.format, [])
        with qemu_img.OpenedChain(self._source.directory, self._source.images, pace=self._pace) as chain:
            try:
                qemu_img.export(chain, fd, written.name, written.format, options, self._locks)
            except errors.NoSpace as error:  # the share is elsewhere, and is only read
                problem, remedy = "the disk that it is written to is full", "free some space there and run the task again, nothing was lost"
                raise errors.NoSpace(f"file {written.name}", problem, remedy, error.details) from error
        self.verify()
        try:
            found = inspection.inspect(fd, written.format).size
        except inspection.Refused as error:
            raise errors.ToolFailed(f"copy {written.name}", f"qemu-img made an image that is not sound ({error})", "report this") from error
        if found != self.size:
            problem = f"the format {written.format} made it {found} bytes large instead of {self.size}"
            raise errors.ToolFailed(f"copy {written.name}", problem, "use another format")

    def _hash_content(self, stopped: threading.Event) -> str:
        found, pace = hashlib.sha256(), Pace("", self._pace.speed)
        for _start, data, count in self._read(pace):
            _add(found, data, count)
            self._pace.require_time()
            if stopped.is_set():
                break
        return found.hexdigest()

    def _sum_of(self, fd: int) -> str:
        found = hashlib.sha256()
        for piece in passing.file_pieces(fd):
            self._pace.require_time()
            found.update(piece)
        return found.hexdigest()

    def _sum_if_same(self, other: View, hashes: bool) -> str | None:
        """The checksum of the content, if the other one is the same. Where both have holes nothing is read.

        :param hashes: whether anybody wants it. If not, it is that of nothing: hashing terabytes of zeros takes hours.
        """
        found = hashlib.sha256()
        for start, data, count in self._read():
            if data is None:
                if not _is_zeros(other, start, start + count):
                    return None
            elif other.read(start, count) != data:
                return None
            if hashes:
                _add(found, data, count)
        self.verify()
        return found.hexdigest()


def _zeros(count: int) -> Iterator[bytes]:
    for done in range(0, count, PIECE):
        yield _ZEROS[: min(PIECE, count - done)]


def _add(found: Any, data: bytes | None, count: int) -> None:
    """Hash bytes, or so many zeros."""
    for piece in _zeros(count) if data is None else (data,):
        found.update(piece)


def _is_zeros(view: View, start: int, stop: int) -> bool:
    for begin, end in view.data(start, stop):
        for at in range(begin, end, PIECE):
            count = min(PIECE, end - at)
            if view.read(at, count) != _ZEROS[:count]:
                return False
    return True


@contextmanager
def _beside(work: Callable[[threading.Event], str | None]) -> Iterator[Callable[[], str | None]]:
    """A context beside which a thread works. Yields what returns the thread's result once it is there, or raises its error."""
    stopped = threading.Event()
    found: list[str | None] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work(stopped))
        except BaseException as error:  # it is raised where somebody waits for it
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)

    def result() -> str | None:
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    thread.start()
    try:
        yield result
    except BaseException:
        stopped.set()
        thread.join()
        raise


@contextmanager
def opened(
    directory: ShareDirectory, images: Sequence[model.Image], terms: engine.Terms, pace: Pace, is_present: bool, hashes_content: bool
) -> Iterator[Point]:
    """A context with a point of a volume, on its way out. See :func:`engine.shown`."""
    if is_present:
        require_unwritten(directory, images, terms)
    with viewing.opened(directory, images) as view:
        yield Point(engine.CopySource(directory, tuple(images)), view, pace, terms.locks, hashes_content)


def require_unwritten(directory: ShareDirectory, images: Sequence[model.Image], terms: engine.Terms) -> None:
    """:raises InUse: somebody writes to the images, or the share cannot show it and the user does not promise that nobody does."""
    for image in images:
        guard.check_unused(directory, image.file, terms.assume_unused, writing=True)
