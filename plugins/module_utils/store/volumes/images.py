# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading one file of a chain: its header, and whether somebody uses it, asked while it is open."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Callable, Iterable, NamedTuple

from ... import errors, model
from .. import qcow2
from ..files.directory import ShareDirectory
from ..locks.in_use import ask, is_written
from ..metadata import records

WORST_DAY = "look at docs/worst-day.md for how to repair a chain by hand"
PUT_BACK = "put the file back from a backup of the share, or remove the volume with state: absent (and cascade: true where it has snapshots)"


@dataclass
class UseProbe:
    """Finds out whether the images of one volume are in use. Each is asked while it is open to be read, the active image first.

    :param full: the caller may change the volume. Then it is also found out which images are empty, and a failed question leaves
        ``in_use`` None. Without ``full``, emptiness is not read, and a failed question is raised as an error.
    """

    full: bool = False
    asked: bool = False
    in_use: bool | None = None
    rests_on_nothing: set[str] = field(default_factory=set)  # files that were read as raw and name no other file

    def probe(self, fd: int, status: os.stat_result, directory: ShareDirectory) -> None:
        """Ask for the use of an opened image. The first one (active) is in use if it has readers or writers. The others may have readers
        (machines on linked clones); they are in use only if they have a writer."""
        try:
            self._probe(fd, status, directory)
        except (OSError, errors.StorageError):
            if not self.full:
                raise
            self.asked, self.in_use = True, None

    def _probe(self, fd: int, status: os.stat_result, directory: ShareDirectory) -> None:
        share, first = directory.share, not self.asked
        if first:
            self.asked, self.in_use = True, ask(fd, share)
        elif self.in_use is False:
            self.in_use = is_written(fd, share)
        elif self.in_use is None and is_written(fd, share):
            self.in_use = True
        users = directory.kernel_users.found
        user = users.get((status.st_dev, status.st_ino)) if users else None
        if user is not None and (user.writes or first):
            self.in_use = True

    def note_if_resting_on_nothing(self, file: str, fd: int, status: os.stat_result, record: records.Record | None) -> None:
        """Add a raw file to ``rests_on_nothing`` if it names no other file. A disk of ours rests on nothing, whatever its guest wrote."""
        if self.full:
            return
        known = record is not None and records.is_disk(record, file, status.st_ino, status.st_size)
        if not known:
            from .dependents import names_in  # late: nearly all raw disks are known

            known = not names_in(fd)
        if known:
            self.rests_on_nothing.add(file)


class Judge(NamedTuple):
    """How a format is decided once the file is open. ``decide`` takes descriptor and fstat. ``at_once``: call it before the file is read."""

    decide: Callable[[int, os.stat_result], str | None]
    at_once: bool


def read_image(
    directory: ShareDirectory,
    file: str,
    image_format: str | None,
    use_probe: UseProbe | None = None,
    record: records.Record | None = None,
    judge: Judge | None = None,
) -> model.Image:
    """Read one file of a chain in the format that it is known to have.

    :param judge: decides the format once the file is open, if a record has one. A qcow2 file is judged only if it has no qcow2 header.
    :raises UnsafeImage: the header is damaged or hostile. :raises FileNotFoundError: the file is missing.
    """
    fd, status = directory.root.examine(file)
    try:
        if use_probe is not None:
            use_probe.probe(fd, status, directory)
        header_fields = None
        if judge is not None and judge.at_once:
            image_format = judge.decide(fd, status)
        if image_format == "qcow2":
            try:
                header_fields = _read_header(directory, file, fd, None if use_probe is None or use_probe.full else status.st_size)
            except errors.UnsafeImage:
                image_format = judge.decide(fd, status) if judge is not None and not qcow2.has_magic(fd) else "qcow2"
                if image_format == "qcow2":
                    raise
        if header_fields is None:
            header_fields = (model.round_to_sector(status.st_size), None, None, False, False)
            if use_probe is not None:
                use_probe.note_if_resting_on_nothing(file, fd, status, record)
    finally:
        os.close(fd)
    size, backing_file, backing_format, empty, absolute = header_fields
    return model.Image(
        file,
        image_format,
        size,
        model.allocated(status),
        backing_file,
        backing_format,
        empty,
        absolute,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
    )


def _read_header(directory: ShareDirectory, file: str, fd: int, summary: int | None) -> tuple[int, str | None, str | None, bool, bool]:
    """Read a header: (virtual size in bytes, backing file, its format, whether the image is empty, whether the backing file is
    written as a path or its format by another name).

    :param summary: the size of the file in bytes, if nobody asks whether the image is empty; a short read is enough then.
    :raises UnsafeImage: it is damaged or hostile, or has internal snapshots, which a merge would lose.
    """
    try:
        header = qcow2.read_header(fd) if summary is None else qcow2.read_summary(fd, summary)
        empty = isinstance(header, qcow2.Header) and qcow2.is_empty(fd, header)
    except qcow2.Qcow2Error as error:
        raise errors.UnsafeImage(directory.root.subject(file), f"as a qcow2 image it cannot be used: {error}", WORST_DAY) from error
    if header.internal_snapshots:
        raise errors.UnsafeImage(
            directory.root.subject(file),
            "it holds internal snapshots, which a merge would not carry",
            "remove them with qemu-img snapshot -d first",
        )
    backing_file, absolute = _backing_name(directory, file, header.backing_file)
    return header.size, backing_file, header.backing_format, empty, absolute or header.alias


def _backing_name(directory: ShareDirectory, file: str, name: str | None) -> tuple[str | None, bool]:
    """(Backing name as a basename, whether the header has it as a path into the share's directory)."""
    if name is None or model.is_safe_file_name(name):
        return name, False
    parent, _slash, base = name.rpartition("/")
    plain = ".." not in parent.split("/") and model.is_safe_file_name(base)
    if not (plain and (_is_share(directory, os.path.normpath(parent)) if name.startswith("/") else parent.strip("./") == "")):
        raise errors.UnsafeImage(
            directory.root.subject(file),
            f"its backing file {name!r} is not a file of this share",
            "find out who made it; qemu-img rebase -u can point it back",
        )
    return base, True


def _is_share(directory: ShareDirectory, path: str) -> bool:
    """Whether an absolute path leads to the share's directory, in any notation."""
    if path in (os.path.normpath(directory.share.path), os.path.realpath(directory.share.path)):
        return True
    from .resolving import Places  # late: nearly all names are plain

    return Places(directory).is_share(path)


def probe_all(use_probe: UseProbe, directory: ShareDirectory, files: Iterable[str]) -> None:
    """Ask for the use of files that nobody reads otherwise. Missing files are left out."""
    for file in dict.fromkeys(files):
        try:
            fd, status = directory.root.examine(file)
        except FileNotFoundError:
            continue  # pending work names files that are not there yet, or no more
        try:
            use_probe.probe(fd, status, directory)
        finally:
            os.close(fd)
