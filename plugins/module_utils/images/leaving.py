# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of this host that an image is written to: whole and durable, or as it was before.

The image is written beside the file, under a name that is always the same for it, so that the next task goes over what a killed one left.
A lock on that part keeps tasks with the same file apart.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Callable, Iterator

from .. import errors
from ..store.files import passing
from ..store.locks import in_use, kernel_users

PRIVATE = 0o600  # an image has whatever its guest keeps secret
_PART = ".remotefs-part"
_LONGEST_FILE, _LONGEST_STAMP = 255, len(".1234567.2026-01-01@00:00:00~")  # bytes of a name
_LONGEST_NAME = _LONGEST_FILE - len("." + _PART)  # bytes
_NAP = 0.2  # seconds between two looks whether another task is done
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STAMP = "%Y-%m-%d@%H:%M:%S~"


@dataclass(frozen=True)
class Access:
    """Mode and owner that the file is to have. None: those that it has, and for a new one :data:`PRIVATE` and this user's."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def is_that_of(self, status: os.stat_result) -> bool:
        """Whether a file has all of it."""
        asked = ((self.mode, stat.S_IMODE(status.st_mode)), (self.uid, status.st_uid), (self.gid, status.st_gid))
        return all(wanted in (None, found) for wanted, found in asked)

    def completed(self, status: os.stat_result | None) -> Access:
        """The same with what the file has that is going to be replaced."""
        if status is None:
            return Access(PRIVATE if self.mode is None else self.mode, self.uid, self.gid)
        mode = stat.S_IMODE(status.st_mode) if self.mode is None else self.mode
        return Access(mode, status.st_uid if self.uid is None else self.uid, status.st_gid if self.gid is None else self.gid)


class Destination:
    """A file that is, or is to be, at ``path``; a link is followed. It is a context manager.

    :param path: absolute. :param keeps_old: what is there is going to have another name beside it.
    :raises InvalidParameter: its directory is not there, or something else than a file is in its place.
    """

    def __init__(self, path: str, keeps_old: bool = False) -> None:
        if path.endswith("/"):  # the user means a directory, and a file of its name is not what is wanted
            raise errors.InvalidParameter(f"option dest, {path}", "it ends with a slash, as a directory", "give the path of the file")
        self.path = os.path.realpath(path)
        self.name = os.path.basename(self.path)
        parent = os.path.dirname(self.path)
        if len(os.fsencode(self.name)) > _LONGEST_FILE - (_LONGEST_STAMP if keeps_old else 0):
            raise errors.InvalidParameter(
                f"option dest, {path[:80]}...", "its name is too long", "give a shorter one" + (", or leave out backup" if keeps_old else "")
            )
        if not self.name or os.path.isdir(self.path):
            raise errors.InvalidParameter(f"option dest, {path}", "it is a directory", "give the path of the file")
        try:
            self._folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NoFolder(f"option dest, {path}", f"there is no directory {parent}", "make it first") from error
        except OSError as error:
            raise errors.from_os_error(error, f"directory {parent}") from error

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._folder)

    @property
    def subject(self) -> str:
        """How messages name it."""
        return f"file {self.path}"

    @property
    def is_in_share(self) -> bool:
        """Whether its directory, or one above, is where this collection keeps volumes or its own files, or whether OpenStack Cinder has a
        volume there to which a file of this name would belong."""
        parts = self.name.split(".")
        owners = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if self._has(".remotefs") or any(self._has(f"{owner}.info") for owner in owners if owner):
            return True
        return ".remotefs" in os.path.dirname(self.path).split("/")

    def _has(self, name: str) -> bool:
        with suppress(OSError):
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            return True
        return False

    def status(self) -> os.stat_result | None:
        """What is there now. :raises InvalidParameter: no file."""
        try:
            status = os.stat(self.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.from_os_error(error, self.subject) from error
        if not stat.S_ISREG(status.st_mode):
            raise errors.InvalidParameter(f"option dest, {self.path}", "it is no regular file", "give the path of a file, or of none yet")
        return status

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """A context with the file that is there, opened for reading; None if there is none. :raises ToolFailed: it may not be read."""
        if self.status() is None:
            yield None
            return
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError as error:
            raise errors.from_os_error(error, self.subject, reader=os.geteuid()) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def require_unused(self, fd: int) -> None:
        """:raises InUse: a machine or this host's kernel has the file open. It would go on with what is no longer there. One that only reads
        it may rest its own disk on it, which would be another one when it starts again."""
        status = os.fstat(fd)
        user = kernel_users.KernelUsers(status.st_dev).of(status)
        if user is not None:
            raise in_use.kernel_uses_image(user, self.path, os.path.dirname(self.path))
        if in_use.is_open(fd):
            problem, remedy = "a running program (a virtual machine?) has it open", "stop that program, or write to another file"
            raise errors.InUse(self.subject, problem, remedy)

    @contextmanager
    def part(self, patience: float, sleep: Callable[[float], None]) -> Iterator[int]:
        """A context with an empty file beside it, which only this task has. It is gone at the end, if it was not published.

        :param patience: seconds to wait for another task. :raises LockTimeout: it is not done by then. :raises Conflict: somebody else has
            made something of that name.
        """
        name = self._part_name
        fd = self._locked(name, patience, sleep)
        try:
            yield fd
        finally:
            if self._is_at(fd, name):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
            os.close(fd)

    def publish(self, fd: int, access: Access, keeps_old: bool) -> str | None:
        """Put the part into its place, durably. Returns the path of what was there before, if that is kept.

        :raises OSError: it cannot be done. What was there before is there still.
        """
        before = self.status()
        set_access(fd, access.completed(before))
        os.fsync(fd)
        kept = self._keep() if keeps_old and before is not None else None
        os.rename(self._part_name, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        return kept

    def set_access(self, access: Access) -> None:
        """Set mode and owner of what is there. :raises OSError: it cannot be done."""
        with self.opened() as fd:
            if fd is not None:
                set_access(fd, access)

    @property
    def _part_name(self) -> str:
        if len(os.fsencode(self.name)) <= _LONGEST_NAME:
            return f".{self.name}{_PART}"
        return f".{hashlib.sha256(os.fsencode(self.name)).hexdigest()}{_PART}"

    def _keep(self) -> str:
        """Give what is there a second name, or make a copy where its file system has no such names."""
        name = f"{self.name}.{os.getpid()}.{time.strftime(_STAMP)}"
        try:
            os.link(self.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            self._copy(name)
        return os.path.join(os.path.dirname(self.path), name)

    def _copy(self, name: str) -> None:
        with self.opened() as source:
            if source is None:
                return
            status, position = os.fstat(source), 0
            target = os.open(name, _NEW, PRIVATE, dir_fd=self._folder)
            try:
                for piece in passing.file_pieces(source):
                    passing.write_with_holes(target, piece, position)
                    position += len(piece)
                os.ftruncate(target, position)
                set_access(target, Access().completed(status))
                os.fsync(target)
            finally:
                os.close(target)

    def _locked(self, name: str, patience: float, sleep: Callable[[float], None]) -> int:
        """The descriptor of a new file of that name, locked. What a task has left there that is no more goes."""
        until = time.monotonic() + patience
        while True:
            fd = self._create(name)
            is_new = fd is not None
            if fd is None:
                fd = self._open_left(name)
            if fd is not None and self._is_locked(fd) and self._is_at(fd, name):
                if is_new:
                    return fd
                self._remove_left(fd, name)
                continue
            if fd is not None:
                os.close(fd)
            if time.monotonic() >= until:
                raise errors.LockTimeout(self.subject, "another task is writing it", "wait for it, or raise lock_timeout")
            sleep(_NAP)

    def _create(self, name: str) -> int | None:
        """The descriptor of a new file of that name; None if something of that name is there."""
        try:
            return os.open(name, _NEW, PRIVATE, dir_fd=self._folder)
        except FileExistsError:
            return None
        except OSError as error:
            raise errors.from_os_error(error, self.subject) from error

    def _is_locked(self, fd: int) -> bool:
        """Whether this task has the file now. The lock goes with the descriptor."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(fd)
            raise errors.from_os_error(error, self.subject) from error

    def _open_left(self, name: str) -> int | None:
        """What stands under that name; None if it is gone by now. :raises Conflict: no task has made it."""
        try:  # first a look, because opening a device or a pipe can have effects
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise self._foreign(name)
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._foreign(name) from error
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise self._foreign(name)

    def _remove_left(self, fd: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError as error:
            raise self._foreign(name) from error
        finally:
            os.close(fd)

    def _foreign(self, name: str) -> errors.Conflict:
        place = os.path.join(os.path.dirname(self.path), name)
        return errors.Conflict(self.subject, f"it would be written as {place}, which somebody else has made", "remove that, or use another directory")

    def _is_at(self, fd: int, name: str) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._folder, follow_symlinks=False))
        return False


class NoFolder(errors.InvalidParameter):
    """The directory of a destination is not there."""


def set_access(fd: int, access: Access) -> None:
    """Set mode and owner of an opened file. :raises OSError: it cannot be done."""
    status = os.fstat(fd)
    uid, gid = (-1 if wanted in (None, found) else wanted for wanted, found in ((access.uid, status.st_uid), (access.gid, status.st_gid)))
    if (uid, gid) != (-1, -1):
        os.fchown(fd, uid, gid)
    if access.mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != access.mode:
        os.fchmod(fd, access.mode)
