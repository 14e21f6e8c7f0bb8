# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image on its way to a share: a private file that fills, and is checked, unpacked and looked at before anybody may use it.

A file under ``.remotefs/images`` has the image as it arrives. Its name is made of what was asked for, so that a task finds what another
one left. It is gone on with only if a checksum of the whole decides in the end: after a power cut nobody else could tell what is missing
in it. Beside it, ``NAME.state`` says which state of the server's file it is of.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Iterator, Protocol

from ..errors import ImageChecksum, ImageInvalid, NoSpace, StorageError, ToolFailed, UnsafeImage, from_os_error
from ..model import Share
from ..pace import Pace
from ..store import inspection
from ..store.files.directory import Directory, ShareDirectory, write_all
from . import compression
from .checksums import Wanted
from .fetching import FetchFailed, Version

# Hosts with restricted cryptography still check md5: it finds damage, and who wants more takes another one.
_NOT_FOR_SECURITY: dict[str, Any] = {"usedforsecurity": False} if sys.version_info >= (3, 9) else {}
_GRAIN = 64 << 10  # bytes: what is all zeros in pieces of this size stays a hole
_PIECE = 1 << 20
_STATE, _UNPACKED = ".state", ".unpacked"


class Coming(Protocol):
    """What :class:`fetching.Fetch` and files of this host have in common."""

    version: Version | None

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Bytes in order, each piece with its position. A position of 0 that is not the first makes void what came before."""


@dataclass(frozen=True)
class Order:
    """What was asked for. ``label`` names the image in messages, without secrets. ``key`` is the same for the same image. ``source``
    opens it from a position on, for which what is there must be of a state. ``most``: bytes that may arrive, and that it may hold."""

    label: str
    key: str
    source: Callable[[int, Version | None], Coming]
    checksum: Wanted | None
    compression: str = "auto"
    image_format: str | None = None
    most: int = 1 << 63

    @property
    def may_go_on(self) -> bool:
        """Whether a part that another task left is any use."""
        return self.checksum is not None and bool(self.checksum.digits)


@dataclass(frozen=True)
class Place:
    """Where images arrive: the private folder of a share. Only the task that holds the image's lock reads them there."""

    root: Directory
    share: Share

    def verify(self, name: str) -> None:
        """Nothing to check: another task would have to break the lock, and what it made there would be checked anew."""


@dataclass(frozen=True)
class Arrived:
    """An image that was checked: ``file`` is its name in ``place``, ``size`` its virtual size, ``held`` what the file takes on disk, in bytes.
    ``mark`` changes with the file."""

    place: Place
    file: str
    format: str
    size: int
    held: int
    mark: tuple[int, int, int]


def key_of(url: str, checksum: Wanted | None) -> str:
    """A name for an image: other tasks that ask for the same find it."""
    words = (url, checksum.algorithm if checksum else "", checksum.digits if checksum else "")
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Arrival:
    """The files of one image on a share. Only one task at a time may have it: the caller holds the lock of :attr:`lock_name`."""

    def __init__(self, directory: ShareDirectory, order: Order, pace: Pace) -> None:
        self._share, self._order, self._pace = directory, order, pace
        self._folder = directory.make_private("images")

    def receive(self) -> Arrived:
        """Let the image arrive, and check it.

        :raises ToolFailed: it cannot be had. :raises ImageChecksum: it is another one. :raises ImageInvalid, UnsafeImage: it is none that may
            be used. :raises NoSpace: the share is full. Nothing stays then, but for what a transfer that was cut can go on with.
        """
        try:
            self._fetch()
            file = self._unpack()
            return self._look(file)
        except BaseException as error:
            if not (isinstance(error, ToolFailed) and self._order.may_go_on):
                self.remove()
            raise

    def known(self, before: Arrived) -> Arrived | None:
        """An image that this task has checked before, if it is there still as it was then."""
        status = self._folder.status(before.file)
        if status is None or _mark(status) != before.mark:
            return None
        return replace(before, place=Place(self._folder, self._share.share))

    def remove(self) -> None:
        """Remove all files of it."""
        remove(self._share, self._order.key)

    @property
    def _state(self) -> str:
        return self._order.key + _STATE

    @property
    def _unpacked(self) -> str:
        return self._order.key + _UNPACKED

    @property
    def _subject(self) -> str:
        return f"image {self._order.label}"

    # -- arriving ----------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        fd = self._opened(self._order.key)
        try:
            start, version = self._left(fd)
            if self._took(fd, start, version) or (start and self._took(fd, 0, None)):
                os.fsync(fd)
                return
        finally:
            os.close(fd)
        raise ImageChecksum(self._subject, "it has another checksum than was asked for", "check the URL and the checksum")

    def _opened(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._folder.status(name)  # :raises UnsafeImage: it is no regular file
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._folder.fd)
        except OSError as error:
            raise from_os_error(error, self._subject) from error
        self._share.keep_as_private(fd, self._folder)
        return fd

    def _left(self, fd: int) -> tuple[int, Version | None]:
        """How many bytes of it another task has left, and of which state."""
        size, data = os.fstat(fd).st_size, self._folder.read_small(self._state) or b""
        version = _read_state(data) if self._order.may_go_on and size else None
        if version is None or (version.length is not None and size > version.length):
            return 0, None
        return size, version

    def _took(self, fd: int, start: int, version: Version | None) -> bool:
        """Whether the image, of which ``start`` bytes are there, has arrived with the right checksum."""
        os.ftruncate(fd, start)
        digest, fetch = Digest(self._order.checksum), self._order.source(start, version)
        digest.add_file(fd, start)
        try:
            for position, piece in fetch.pieces():
                if position == 0 and digest.count:
                    os.ftruncate(fd, 0)
                    digest = Digest(self._order.checksum)
                self._require_small(position + len(piece))
                digest.add(piece)
                write_with_holes(fd, piece, position)
                self._pace.moved(len(piece))
                if fetch.version != version:
                    version = fetch.version
                    self._note(version)
        except FetchFailed as error:
            os.ftruncate(fd, digest.count)  # with the zeros at its end
            os.fsync(fd)
            raise ToolFailed(self._subject, str(error), "check the URL and the server, and run the task again") from error
        except OSError as error:
            raise from_os_error(error, self._subject) from error
        os.ftruncate(fd, digest.count)  # where it ends with a hole
        return digest.is_right

    def _require_small(self, count: int) -> None:
        if count > self._order.most:
            raise NoSpace(self._subject, f"it has more than {self._order.most} bytes", "choose a share with more room, or a smaller image")

    def _note(self, version: Version | None) -> None:
        """Write down of which state of the server's file the part is. Nothing depends on it but the next task's hope, so it is not synced."""
        if version is not None and self._order.may_go_on:
            fd = self._opened(self._state)
            try:
                os.ftruncate(fd, 0)
                write_all(fd, json.dumps(asdict(version)).encode())
            finally:
                os.close(fd)

    # -- what it is --------------------------------------------------------------------------------------------------

    def _unpack(self) -> str:
        """The name of the file that has the image without compression."""
        with self._folder.opened(self._order.key) as fd:
            kind = compression.found(os.pread(fd, 16, 0)) if self._order.compression == "auto" else self._order.compression
            if kind == "none":
                return self._order.key
            target = self._opened(self._unpacked)
            try:
                os.ftruncate(target, 0)
                self._write_unpacked(fd, target, kind)
                os.fsync(target)
            finally:
                os.close(target)
        self._folder.unlink(self._order.key)
        self._folder.unlink(self._state)
        return self._unpacked

    def _write_unpacked(self, fd: int, target: int, kind: str) -> None:
        position = 0
        try:
            for piece in compression.unpacked(file_pieces(fd), kind, self._order.most):
                write_with_holes(target, piece, position)
                position += len(piece)
                self._pace.moved(len(piece))
            os.ftruncate(target, position)
        except inspection.Refused as error:
            raise self._refused(error) from error
        except OSError as error:
            raise from_os_error(error, self._subject) from error

    def _look(self, file: str) -> Arrived:
        with self._folder.opened(file) as fd:
            try:
                found = inspection.inspect(fd, self._order.image_format)
            except inspection.Refused as error:
                raise self._refused(error) from error
            status = os.fstat(fd)
        return Arrived(Place(self._folder, self._share.share), file, found.format, found.size, status.st_blocks * 512, _mark(status))

    def _refused(self, error: inspection.Refused) -> StorageError:
        if error.is_unsafe:
            return UnsafeImage(self._subject, str(error), "use an image that is one whole disk in one file, from somebody whom you trust")
        return ImageInvalid(self._subject, str(error), "check that it is the right file, and that it arrived whole")


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def remove(directory: ShareDirectory, key: str) -> None:
    """Remove all files of an image from a share."""
    folder = directory.private("images")
    if folder is not None:
        for suffix in ("", _UNPACKED, _STATE):
            folder.unlink(key + suffix)


class Digest:
    """The checksum of what arrives, if one was asked for. ``count`` is the number of bytes until now."""

    def __init__(self, wanted: Wanted | None) -> None:
        self._wanted, self.count = wanted, 0
        self._hash: Any = hashlib.new(wanted.algorithm, **_NOT_FOR_SECURITY) if wanted is not None else None

    def add(self, data: bytes) -> None:
        """Count bytes."""
        self.count += len(data)
        if self._hash is not None:
            self._hash.update(data)

    def add_file(self, fd: int, length: int) -> None:
        """Count the first bytes of a file."""
        for piece in file_pieces(fd, length):
            self.add(piece)

    @property
    def is_right(self) -> bool:
        """Whether it is the checksum that was asked for, or none was."""
        return self._wanted is None or self._hash.hexdigest() == self._wanted.digits


def file_pieces(fd: int, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from the beginning, up to ``length`` or to the end."""
    position = 0
    while length is None or position < length:
        piece = os.pread(fd, _PIECE if length is None else min(_PIECE, length - position), position)
        if not piece:
            return
        yield piece
        position += len(piece)


def write_with_holes(fd: int, data: bytes, position: int) -> None:
    """Write bytes to a file that is empty from ``position`` on. What is all zeros stays a hole."""
    start = position
    while start < position + len(data):
        end = min(position + len(data), (start // _GRAIN + 1) * _GRAIN)
        part = memoryview(data)[start - position : end - position]
        if any(part) if len(part) < 64 else part.tobytes().count(0) < len(part):
            write_all(fd, part, start)
        start = end


def _read_state(data: bytes) -> Version | None:
    """What another task noted. None if it is nothing that this collection writes."""
    try:
        version = Version(**json.loads(data.decode("ascii")))
    except (ValueError, TypeError, RecursionError):
        return None
    is_valid = (version.length is None or (type(version.length) is int and version.length >= 0)) and isinstance(version.tag, str)
    return version if is_valid and version.tag.isprintable() else None
