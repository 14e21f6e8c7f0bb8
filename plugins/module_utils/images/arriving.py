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
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Iterator, Protocol

from .. import errors, model
from ..pace import Pace
from ..store import inspection
from ..store.files import passing
from ..store.files.directory import Directory, ShareDirectory, write_all
from . import checksums, compression, fetching

# Hosts with restricted cryptography still check md5: it finds damage, and who wants more takes another one.
_NOT_FOR_SECURITY: dict[str, Any] = {"usedforsecurity": False} if sys.version_info >= (3, 9) else {}
_TABLES = 64 << 20  # bytes that the tables of a small image may take beside its data
_OLD = 24 * 60 * 60  # seconds after which nobody is expected to go on with what was cut
_KEY = re.compile(r"[0-9a-f]{32}")
REMEDY = "check the URL or the path, and run the task again"
_STATE, _UNPACKED = ".state", ".unpacked"


class Coming(Protocol):
    """What :class:`fetching.Fetch` and files of this host have in common."""

    version: fetching.Version | None

    @property
    def needs(self) -> int | None:
        """Bytes that the rest of it will probably take, once a piece has come. None if nobody knows."""

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Bytes in order, each piece with its position. A position of 0 that is not the first makes void what came before."""


@dataclass(frozen=True)
class Order:
    """What was asked for.

    ``label`` names the image in messages, without secrets. ``key`` is the same for the same image. ``source`` opens it from a position on,
    for which what is there must be of a state. ``room``: bytes that may be written to the share. ``wanted_size``: virtual size in bytes that
    the volume is to have, if the user says it. ``largest``: bytes of virtual size that the share takes. ``expect`` is told how many bytes
    are to come, if the server says it.
    """

    label: str
    key: str
    source: Callable[[int, fetching.Version | None], Coming]
    checksum: checksums.Wanted | None
    compression: str = "auto"
    image_format: str | None = None
    room: int = 1 << 63
    wanted_size: int | None = None
    largest: int = 1 << 62
    expect: Callable[[int], None] = lambda _count: None

    @property
    def longest(self) -> int:
        """Bytes after which it is given up: without its compression it cannot have more, but for the tables of a format."""
        size = self.largest if self.wanted_size is None else min(self.wanted_size, self.largest)
        return size + size // 8 + _TABLES

    @property
    def may_go_on(self) -> bool:
        """Whether a part that another task left is any use."""
        return self.checksum is not None and bool(self.checksum.digits)


@dataclass(frozen=True)
class Place:
    """Where images arrive: the private folder ``root`` of a share. Only the task that holds the image's lock changes them there."""

    root: Directory
    directory: ShareDirectory

    @property
    def share(self) -> model.Share:
        """The share that it is on."""
        return self.directory.share

    def verify(self, name: str) -> None:
        """Check that nobody else may have changed an image. :raises LockTimeout: its lock was lost."""
        self.directory.verify(name)


@dataclass(frozen=True)
class Arrived:
    """An image that was checked: ``file`` is its name in ``place``, ``size`` its virtual size, ``held`` the bytes of data in it, as far as
    that is known. ``mark`` changes with the file."""

    place: Place
    file: str
    format: str
    size: int
    held: int
    mark: tuple[int, int, int]


def key_of(place: str, checksum: str | None) -> str:
    """A name for an image: other tasks that ask for the same find it. :param checksum: as the user wrote it."""
    return hashlib.sha256("\0".join((place, checksum or "")).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Arrival:
    """The files of one image on a share. Only one task at a time may have it: the caller holds the lock of the order's key."""

    def __init__(self, directory: ShareDirectory, order: Order, pace: Pace) -> None:
        self._share, self._order, self._pace = directory, order, pace
        self._folder = directory.make_private("images")
        self._written = 0  # bytes of data that this task has written to the share

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
            is_refused = isinstance(error, errors.StorageError) and not isinstance(error, errors.ToolFailed)
            if is_refused or not self._order.may_go_on:
                self.remove()
            raise

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
                return
        finally:
            os.close(fd)
        raise errors.ImageChecksum(self._subject, "it has another checksum than was asked for", "check the URL and the checksum")

    def _opened(self, name: str) -> int:
        """The descriptor of a file of it, which is made if it is not there. :raises UnsafeImage: it is a link, a device, or has a second name."""
        try:
            return self._folder.open(name, write=True)
        except FileNotFoundError:
            pass
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder.fd)
        except OSError as error:
            raise errors.from_os_error(error, self._subject) from error
        self._share.keep_as_private(fd, self._folder)
        return fd

    def _left(self, fd: int) -> tuple[int, fetching.Version | None]:
        """How many bytes of it another task has left, and of which state."""
        size, data = os.fstat(fd).st_size, self._folder.read_small(self._state) or b""
        version = _read_state(data) if self._order.may_go_on and size else None
        if version is None or (version.length is not None and size > version.length):
            return 0, None
        return size, version

    def _took(self, fd: int, start: int, version: fetching.Version | None) -> bool:
        """Whether the image, of which ``start`` bytes are there, has arrived with the right checksum."""
        os.ftruncate(fd, start)
        digest, fetch = Digest(self._order.checksum), self._order.source(start, version)
        digest.add_file(fd, start)
        self._written = 0
        try:
            for position, piece in fetch.pieces():
                if position == 0 and digest.count:
                    os.ftruncate(fd, 0)
                    digest, self._written = Digest(self._order.checksum), 0
                if position == 0 or position == start:
                    self._begin(position, piece, fetch)
                digest.add(piece)
                self._write(fd, piece, position)
                if fetch.version != version:
                    version = fetch.version
                    self._note(version)
        except fetching.FetchFailed as error:
            os.ftruncate(fd, digest.count)  # with the zeros at its end
            os.fsync(fd)
            raise errors.ToolFailed(self._subject, str(error), REMEDY) from error
        except OSError as error:
            raise errors.from_os_error(error, self._subject) from error
        os.ftruncate(fd, digest.count)  # where it ends with a hole
        return digest.is_right

    def _begin(self, position: int, piece: bytes, fetch: Coming) -> None:
        """The first piece has come. :raises NoSpace: there is no room for the rest. :raises WouldShrink: it is larger than the volume."""
        length = fetch.version.length if fetch.version is not None else None
        if length is None:
            return
        self._order.expect(length - position)
        if (fetch.needs or 0) + len(piece) > self._order.room:
            raise self._no_room()
        # A fixed VHD begins as a raw disk, and has a sector more.
        is_raw = position == 0 and not inspection.is_packed(piece) and self._order.image_format in (None, "raw")
        if is_raw and length - inspection.SECTOR > min(self._order.largest, self._order.wanted_size or self._order.largest):
            raise self._too_large()

    def _write(self, fd: int, piece: bytes, position: int) -> None:
        """:raises NoSpace: there is no room for it. :raises WouldShrink: it is larger than the volume. :raises OSError: it cannot be written."""
        if position + len(piece) > self._order.longest:
            raise self._too_large()
        self._share.verify(self._order.key)
        self._written += passing.write_with_holes(fd, piece, position)
        if self._written > self._order.room:
            raise self._no_room()
        self._pace.moved(len(piece))

    def _no_room(self) -> errors.NoSpace:
        return errors.NoSpace(self._subject, f"the share has only {model.size_text(self._order.room)} free for use", "free some space, or use another share")

    def _too_large(self) -> errors.StorageError:
        wanted, largest = self._order.wanted_size, self._order.largest
        if wanted is not None and wanted <= largest:
            return errors.WouldShrink(self._subject, f"it holds more than the {model.size_text(wanted)} that the volume is to have", "ask for a larger size")
        problem = f"it holds more than the share takes ({model.size_text(largest)})"
        return errors.NoSpace(self._subject, problem, "use another share, or check that it is the right image")

    def _note(self, version: fetching.Version | None) -> None:
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
            finally:
                os.close(target)
        self._folder.unlink(self._order.key)
        self._folder.unlink(self._state)
        return self._unpacked

    def _write_unpacked(self, fd: int, target: int, kind: str) -> None:
        position = 0
        try:
            for piece in compression.unpacked(passing.file_pieces(fd), kind):
                self._write(target, piece, position)
                position += len(piece)
            os.ftruncate(target, position)
        except inspection.Refused as error:
            raise refused(self._subject, error) from error
        except OSError as error:
            raise errors.from_os_error(error, self._subject) from error

    def _look(self, file: str) -> Arrived:
        with self._folder.opened(file, write=True) as fd:
            os.fsync(fd)  # not for a power cut, but to learn of what the disk could not take: nobody else would see that
            try:
                found = inspection.inspect(fd, self._order.image_format)
            except inspection.Refused as error:
                raise refused(self._subject, error) from error
            if found.size > self._order.largest:
                raise self._too_large()
            if found.format == "raw":
                os.ftruncate(fd, found.size)  # whole sectors, as a disk has them
            status = os.fstat(fd)
        held = found.held or min(found.size, model.allocated(status))
        return Arrived(Place(self._folder, self._share), file, found.format, found.size, held, _mark(status))


def refused(subject: str, error: inspection.Refused) -> errors.StorageError:
    """The error for an image that is not taken."""
    if error.is_unsafe:
        return errors.UnsafeImage(subject, str(error), "use an image that is one whole disk in one file, from somebody whom you trust")
    return errors.ImageInvalid(subject, str(error), "check that it is the right file, and that it arrived whole")


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def known(directory: ShareDirectory, before: Arrived) -> Arrived | None:
    """An image that this task has checked before, if it is there still as it was then."""
    folder = directory.private("images")
    status = folder.status(before.file) if folder is not None else None
    if folder is None or status is None or _mark(status) != before.mark:
        return None
    return replace(before, place=Place(folder, directory))


def old_ones(directory: ShareDirectory, key: str) -> list[str]:
    """Keys of other images whose newest file is a day older than that of the image ``key``, which has just arrived: the share's own clock
    counts. Whoever was to go on with them has not come."""
    folder = directory.private("images")
    if folder is None:
        return []
    newest: dict[str, float] = {}
    for name in os.listdir(folder.fd):
        stem = name.partition(".")[0]
        status = folder.status(name) if _KEY.fullmatch(stem) else None
        if status is not None:
            newest[stem] = max(newest.get(stem, 0.0), status.st_mtime)
    limit = newest.get(key, 0.0) - _OLD
    return sorted(stem for stem, written in newest.items() if written < limit)


def remove(directory: ShareDirectory, key: str) -> None:
    """Remove all files of an image from a share. What is no regular file somebody else has made; it stays, and tasks refuse it."""
    folder = directory.private("images")
    if folder is None:
        return
    for name in (key, key + _UNPACKED, key + _STATE):
        with suppress(errors.UnsafeImage):
            status = folder.status(name)
            if status is not None and status.st_nlink == 1:
                folder.unlink(name)


class Digest:
    """The checksum of what arrives, if one was asked for. ``count`` is the number of bytes until now."""

    def __init__(self, wanted: checksums.Wanted | None) -> None:
        self._wanted, self.count = wanted, 0
        self._hash: Any = hashlib.new(wanted.algorithm, **_NOT_FOR_SECURITY) if wanted is not None else None

    def add(self, data: bytes) -> None:
        """Count bytes."""
        self.count += len(data)
        if self._hash is not None:
            self._hash.update(data)

    def add_file(self, fd: int, length: int) -> None:
        """Count the first bytes of a file."""
        for piece in passing.file_pieces(fd, length):
            self.add(piece)

    @property
    def is_right(self) -> bool:
        """Whether it is the checksum that was asked for, or none was."""
        return self._wanted is None or self._hash.hexdigest() == self._wanted.digits


def _read_state(data: bytes) -> fetching.Version | None:
    """What another task noted. None if it is nothing that this collection writes."""
    try:
        version = fetching.Version(**json.loads(data.decode("ascii")))
    except (ValueError, TypeError, RecursionError):
        return None
    is_length = isinstance(version.length, int) and not isinstance(version.length, bool) and version.length >= 0
    is_valid = (version.length is None or is_length) and isinstance(version.tag, str)
    return version if is_valid and version.tag.isprintable() else None
