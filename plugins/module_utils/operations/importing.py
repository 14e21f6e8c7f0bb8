# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images from elsewhere as the source of a new volume.

The image arrives on the share before its volume is planned, because nobody knows its size before. Then it is copied as the source of a
full clone is. It stays until the end of the task, so that other volumes of the task are made from it, too.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Iterator, NamedTuple

from .. import errors, model
from ..apply import engine
from ..images import arriving, checksums, compression, fetching
from ..images.arriving import Arrival, Arrived, Coming, Order
from ..images.fetching import Access, Fetch, FetchFailed, Version
from ..pace import Pace
from ..plan.desired import DesiredVolume, Source
from ..store import inspection
from ..store.files import passing
from ..store.files.directory import ShareDirectory
from . import candidates, capacity, named_locks, servers
from .options import ARRIVED, Options

_ANY = 1 << 62  # bytes: a share that does not say how large it is


@dataclass(frozen=True)
class ImageRequest:
    """What the user says of an image: ``place`` is a URL or a path on this host."""

    place: str
    checksum: str | None = None
    compression: str = "auto"
    image_format: str | None = None
    access: Access = field(default_factory=Access)

    @property
    def label(self) -> str:
        """How messages and ``actions`` name it, without secrets."""
        return fetching.shown(self.place) if self.is_url else self.place

    @property
    def is_url(self) -> bool:
        """Whether it comes from a server."""
        return servers.is_url(self.place)


def request_of(given: dict) -> ImageRequest:
    """What the option ``source`` says of an image. :raises InvalidParameter: it cannot be one, or options do not go together."""
    place = given["image"]
    is_url = servers.is_url(place)
    (servers.require_url if is_url else servers.require_path)("option source.image", place)
    servers.require_together(given, is_url or "://" in (given["checksum"] or ""), "source.", "source.image")
    return ImageRequest(place, given["checksum"], given["compression"], given["image_format"], servers.access_of(given, "source."))


class LocalFile:
    """A file of this host, as :class:`fetching.Fetch` gives that of a server."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.version: Version | None = None
        self.needs: int | None = None

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """See :meth:`arriving.Coming.pieces`. It is always read from the beginning, which costs no transfer."""
        fd = _opened(self._path)
        try:
            status, position = os.fstat(fd), 0
            self.version, self.needs = Version(status.st_size), min(status.st_size, model.allocated(status))
            for piece in passing.file_pieces(fd):
                yield position, piece
                position += len(piece)
            if position != status.st_size:
                raise FetchFailed("somebody changes it, or it is no file with a length")
        finally:
            os.close(fd)


def _opened(path: str) -> int:
    """The descriptor of a file of this host. :raises FetchFailed: it cannot be read, or is no file. A device or a pipe may never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before the open, because opening a device can have effects
            raise FetchFailed("it is no regular file")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FetchFailed(error.strerror or "it cannot be read") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FetchFailed("it is no regular file")
    return fd


def wanted(request: ImageRequest, pace: Pace) -> checksums.Wanted | None:
    """The checksum that the image must have; None if none was asked for. A list of checksums is read, within the time of ``pace``.

    :raises InvalidParameter: what was asked for is none. :raises ImageChecksum: the list has none for it.
    """
    if request.checksum is None:
        return None
    try:
        asked = checksums.wanted(request.checksum)
    except checksums.BadChecksum as error:
        raise errors.InvalidParameter("option source.checksum", str(error), "give sha256:DIGITS, or sha256:URL of a list such as SHA256SUMS") from error
    if not asked.list_url:
        return asked
    subject = f"list of checksums {fetching.shown(asked.list_url)}"
    text = bytearray()
    is_near = not request.is_url or fetching.same_server(request.place, asked.list_url)
    access = request.access if is_near else request.access.elsewhere()
    try:
        for position, piece in Fetch(asked.list_url, access, is_checked=False, sleep=pace.nap, left=pace.left).pieces():
            pace.require_time()
            del text[position:]
            text += piece
            if len(text) > checksums.MOST_LIST:
                raise errors.ImageChecksum(subject, f"it has more than {checksums.MOST_LIST >> 20} MiB", "give the URL of a list of checksums")
    except FetchFailed as error:
        raise errors.ToolFailed(subject, str(error), "check the URL and the server, and run the task again") from error
    name = fetching.name_of(request.place) if request.is_url else os.path.basename(request.place)
    try:
        return asked._replace(digits=checksums.from_list(text.decode("utf-8-sig", "replace"), asked.algorithm, name), list_url="")
    except checksums.BadChecksum as error:
        raise errors.ImageChecksum(subject, str(error), "check the URL of the list, and that it names the image") from error


@contextmanager
def arrived(share: model.Share, request: ImageRequest, wanted_size: int | None, policy: candidates.Policy, options: Options) -> Iterator[Arrived]:
    """A context in which the image is on the share, and nobody else changes it there. What this task has checked before it takes as it is.

    :param wanted_size: the virtual size in bytes that its volume is to have, if the user says it.
    :raises LockTimeout: another task is fetching it all the time. Other errors are those of :meth:`arriving.Arrival.receive`.
    """
    key = arriving.key_of(request.place, request.checksum)
    checked = options.task.kept.setdefault(ARRIVED, {})
    with named_locks.locked_name(share, key, options, options.lock_timeout, options.break_lock) as (directory, _lock):
        before = checked.get((share, key))
        image = arriving.known(directory, before) if before is not None else None
        if image is None:
            image = _received(directory, key, request, wanted_size, _Room.of(share, policy), options)
        checked[(share, key)] = image
        yield image


def _received(directory: ShareDirectory, key: str, request: ImageRequest, wanted_size: int | None, room: _Room, options: Options) -> Arrived:
    """Let the image arrive. The user's time begins now, and not with the first byte."""
    pace = Pace(f"image {request.label}", options.speed, options.timeout, options.task.waiting.sleep)
    pace.until()
    checksum = wanted(request, pace)

    def source(start: int, version: Version | None) -> Coming:
        if request.is_url:
            return Fetch(request.place, request.access, checksum is not None, start, version, pace.nap, pace.left)
        return LocalFile(request.place)

    with pace.watched(options.task.meter) as expect:
        order = Order(request.label, key, source, checksum, request.compression, request.image_format, room.free, wanted_size, room.largest, expect)
        try:
            return Arrival(directory, order, pace).receive()
        except OSError as error:
            raise errors.from_os_error(error, f"image {request.label}") from error


class _Room(NamedTuple):
    """``free``: bytes of a share that an image may take. ``largest``: bytes of virtual size that a volume there can have."""

    free: int
    largest: int

    @classmethod
    def of(cls, share: model.Share, policy: candidates.Policy) -> _Room:
        """:raises StorageError: the share does not answer."""
        figures = capacity.figures_of(share)
        total, free = figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
        largest = int(total * policy.max_over_subscription_ratio) if total else _ANY
        return cls(max(0, free - total * policy.reserved_percentage // 100) if total else _ANY, largest)


def foretold_source(request: ImageRequest, desired: DesiredVolume, options: Options) -> Source:
    """What check mode, which fetches nothing, knows of an image as the source of a volume. :raises StorageError: as :func:`foretold`."""
    if options.assume and not request.is_url and not os.path.lexists(request.place):
        options.task.warn(f"image {request.label} does not exist yet: check mode assumes that an earlier task makes it")
        known = None
    else:
        known = foretold(request)
    if known is None and desired.size is None:
        options.task.warn(f"check mode does not fetch image {request.label}, so that it cannot know the size of volume {desired.name}")
    return Source(request.label, known.size, known.held or None) if known is not None else Source(request.label, 0, None)


def foretold(request: ImageRequest) -> inspection.Inspected | None:
    """What check mode knows of an image without fetching it: of a file of this host that is not compressed, all that a look says.

    :raises ToolFailed: it cannot be read. :raises ImageInvalid, UnsafeImage: it would be refused.
    """
    if request.is_url or request.compression not in ("auto", "none"):
        return None
    subject = f"image {request.label}"
    try:
        fd = _opened(request.place)
    except FetchFailed as error:
        raise errors.ToolFailed(subject, str(error), arriving.REMEDY) from error
    try:
        if request.compression == "auto" and compression.found(os.pread(fd, 16, 0)) != "none":
            return None
        return inspection.inspect(fd, request.image_format)
    except inspection.Refused as error:
        raise arriving.refused(subject, error) from error
    finally:
        os.close(fd)


def as_source(image: Arrived, request: ImageRequest) -> tuple[engine.CopySource, Source]:
    """The image as what a new volume is copied from."""
    return engine.CopySource(image.place, (model.Image(image.file, image.format, image.size),)), Source(request.label, image.size, image.held)


def let_go(share: model.Share, request: ImageRequest, options: Options) -> None:
    """The volume that was to be made from an image is there. A task that was killed may have left the image, which goes at the end of this task."""
    key = arriving.key_of(request.place, request.checksum)
    options.task.kept.setdefault(ARRIVED, {}).setdefault((share, key), None)


def forget_all(options: Options) -> None:
    """Remove the images of this task from their shares, but for those that another task is at, and those of which a part arrived that
    the next task can go on with. Parts that nobody has gone on with for a day go as well."""
    for share, key in options.task.kept.pop(ARRIVED, {}):
        for old in _forget(share, key, options):
            _forget(share, old, options)


def _forget(share: model.Share, key: str, options: Options) -> list[str]:
    """Remove an image, unless another task has it. Returns the keys of those that nobody will go on with."""
    with suppress(errors.StorageError, OSError), named_locks.locked_name(share, key, options) as (directory, lock):
        old = arriving.old_ones(directory, key)
        arriving.remove(directory, key)
        lock.forget_file()
        return old
    return []
