# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Access to the files of a share: relative to an opened directory, following no link, and durable where the docstring says so.

The share is not trusted. Every open refuses symbolic links, devices, FIFOs and directories. Every write refuses files that have a
second name. Only this file opens, creates, renames and unlinks files on a share.

"Durable" means: temporary file, fsync, rename or link, fsync of the directory.

Before every change the task checks that it still may change the file (:meth:`ShareDirectory.verify`): before an open for writing,
before a new file, before a name is made or removed. Cleaning up is a change, too.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Callable, Iterator

from ... import errors, model
from ..locks.kernel_users import KernelUsers
from . import replaced
from .names import Names
from .waiting import Waiting

if TYPE_CHECKING:
    from . import access

PRIVATE = ".remotefs"
_BALLAST = "ballast"  # the folder of the ballast in it
SMALL_FILE = 1 << 20  # bytes; all records of ours and of Cinder are much smaller
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_WRITING = _READING | os.O_RDWR
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_WAITING_ALONE = Waiting()
_TEMPORARY_MARK = "~"  # not allowed in names, so no volume's file can look like a temporary one
SEVERAL_NAMES = "it has another name somewhere (a hard link), so writing it could change a foreign file", "copy the file and remove the link"


def _checked_stat(directory: int, name: str, subject: str) -> os.stat_result:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise errors.UnsafeImage(subject, "it is a link, device or directory where a regular file should be", "find out who put it there and remove it")
    return status


Fence = Callable[[str], None]  # takes the name of what is about to change; raises if the task may not change it any more


def _unreadable(error: OSError, subject: str) -> errors.StorageError:
    return errors.from_os_error(error, subject, os.geteuid())


def _no_fence(_name: str) -> None:
    """The fence for callers that hold no locks."""


class Directory(Names):
    """One opened directory of a share."""

    def __init__(self, fd: int, label: str, fence: Fence = _no_fence, waiting: Waiting = _WAITING_ALONE) -> None:
        super().__init__(fd)
        self.label = label
        self._fence = fence
        self._waiting = waiting

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def subject(self, name: str) -> str:
        """What error messages call a file of this directory."""
        return f"file {name} on {self.label}"

    def names(self) -> list[str]:
        """All names, sorted. :raises StorageError: they may not be read."""
        try:
            return super().names()
        except PermissionError as error:
            raise _unreadable(error, self.label) from error

    def status(self, name: str) -> os.stat_result | None:
        """The lstat of a regular file; None if nothing has that name. :raises UnsafeImage: it is no regular file."""
        try:
            return _checked_stat(self.fd, name, self.subject(name))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise _unreadable(error, self.subject(name)) from error

    def open(self, name: str, write: bool = False) -> int:
        """Open a file as :meth:`examine` does; returns the descriptor only."""
        return self.examine(name, write)[0]

    def examine(self, name: str, write: bool = False) -> tuple[int, os.stat_result]:
        """Open an existing regular file: (descriptor, its fstat).

        :raises UnsafeImage: it is a link or a device, or has several names (hard links) and is to be written.
        :raises FileNotFoundError: nothing has that name.
        """
        if write:
            self._fence(name)
        if write or name not in self._listed_files:
            _checked_stat(self.fd, name, self.subject(name))  # before the open, because opening a device can have effects
        try:
            fd = os.open(name, _WRITING if write else _READING, dir_fd=self.fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise errors.UnsafeImage(self.subject(name), "it was exchanged for a link or device", "find out who changes the share") from error
            raise errors.from_os_error(error, self.subject(name), None if write else os.geteuid()) from error
        try:
            status = os.fstat(fd)
        except OSError as error:
            with suppress(OSError):
                os.close(fd)
            if error.errno != errno.ENOENT:
                raise
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from error  # the file went away; its name may lead to another
        if not stat.S_ISREG(status.st_mode) or (write and status.st_nlink > 1):
            os.close(fd)
            raise errors.UnsafeImage(self.subject(name), *SEVERAL_NAMES)
        return fd, status

    @contextmanager
    def opened(self, name: str, write: bool = False) -> Iterator[int]:
        """Open a file as :meth:`examine` does, and close it afterwards."""
        fd = self.open(name, write)
        try:
            yield fd
        finally:
            os.close(fd)

    def read_small(self, name: str) -> bytes | None:
        """The whole content of a small file; None if it does not exist. :raises UnsafeImage: it has more than SMALL_FILE bytes."""
        if self.is_not_listed(name):
            return None
        try:
            data = replaced.read_file(self, name, lambda fd, status: os.read(fd, min(status.st_size, SMALL_FILE) + 1))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None  # the name of a foreign file may be so long that its record's name would be too long
            raise
        if data is not None and len(data) > SMALL_FILE:
            raise errors.UnsafeImage(self.subject(name), "it is too large for a record", "see docs/worst-day.md for how to rebuild it")
        return data

    def unlink(self, name: str) -> bool:
        """Remove a name. Returns False if it was gone already. :raises UnsafeImage: it is a directory."""
        self._fence(name)
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        except IsADirectoryError as error:
            raise errors.UnsafeImage(self.subject(name), "it is a directory where a file should be", "find out who made it and remove it") from error
        return True

    def remove(self, name: str) -> None:
        """:meth:`unlink`, durably."""
        if self.unlink(name):
            self.sync()

    def sync(self) -> None:
        """Return when the names that were made and removed here are durable."""
        self._waiting.sync_directory(self.fd)


class ShareDirectory:
    """The directory of a share, which contains the volumes and the private folder ``.remotefs``.

    :param fence: is called before every change; see :meth:`verify`.
    :param waiting: how a change waits for the disk and for other changes.
    """

    def __init__(self, share: model.Share, fence: Fence = _no_fence, waiting: Waiting = _WAITING_ALONE) -> None:
        self.share = share
        self.waiting = waiting
        self._fence = fence
        self.root = Directory(-1, share.label)
        self._private: dict[str, Directory] = {}
        self._top = -1  # .remotefs
        self._missing: set[str] = set()
        self._kernel_users: KernelUsers | None = None
        self.refresh()

    def __enter__(self) -> ShareDirectory:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        gone = error is not None and self.is_gone()
        self.close()
        if gone:
            raise errors.share_gone(self.share.label)
        if isinstance(error, OSError):
            reader = os.geteuid() if self._fence is _no_fence else None
            raise errors.from_os_error(error, f"share {self.share.label}", reader) from error

    def is_gone(self) -> bool:
        """Whether the directory was removed. Then all other errors are consequences of that."""
        try:
            return os.fstat(self.root.fd).st_nlink == 0 and not os.path.lexists(self.share.path)
        except OSError as error:
            return error.errno != errno.EBADF

    def close(self) -> None:
        """Close all descriptors."""
        for directory in list(self._private.values()) + [self.root]:
            directory.close()
        if self._top >= 0:
            os.close(self._top)
        self._private, self._top, self._missing = {}, -1, set()

    def refresh(self, keep_listing: bool = False) -> None:
        """Open the directories anew. After taking a lock, this makes new files of other hosts visible: an NFS client remembers for
        half a minute that a file did not exist, and a new open makes it ask the server again.

        :param keep_listing: keep the listing of :meth:`Directory.names_from` and the list of files that the kernel has open, for
            callers that read many volumes and change nothing.
        """
        known, users = (self.root._listing, self._kernel_users) if keep_listing else (None, None)
        try:
            fd = os.open(self.share.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:  # descriptors stay open: later calls then raise the error of the share itself
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise errors.share_gone(self.share.label) from error
            raise _unreadable(error, f"share {self.share.label}") from error
        self.close()
        self._kernel_users = users
        self.root = Directory(fd, self.share.label, self.verify, self.waiting)
        self.root._listing = known

    @property
    def kernel_users(self) -> KernelUsers:
        """What this host's kernel has open. Found out once after each time that the directory is opened anew."""
        if self._kernel_users is None:
            self._kernel_users = KernelUsers(os.fstat(self.root.fd).st_dev)
        return self._kernel_users

    def verify(self, name: str) -> None:
        """Check that the task may still change ``name``, a file or a volume.

        :raises LockTimeout: a lock that it needs was lost, and another task may be at work.
        """
        self._fence(name)

    def look_afresh(self) -> None:
        """:meth:`refresh`, then list the names: on GlusterFS only a listing replaces cached names at once."""
        self.refresh()
        for directory in (self.root, self.private("volumes")):
            if directory is not None:
                directory.names()

    def private(self, name: str, create: bool = False) -> Directory | None:
        """The folder ``.remotefs/NAME``. None if it does not exist and ``create`` is false."""
        if name in self._private:
            return self._private[name]
        if not create and (self.root.is_not_listed(PRIVATE) or name in self._missing):
            return None
        if self._top < 0:
            top = self._subdirectory(self.root.fd, PRIVATE, create)
            if top is None:
                return None
            self._top = top
        fd = self._subdirectory(self._top, name, create)
        if fd is None:
            return None
        fence = _no_fence if name == "locks" else self.verify  # verify reads the lock files, so it cannot guard them
        self._private[name] = Directory(fd, f"{self.share.label} ({PRIVATE}/{name})", fence, self.waiting)
        return self._private[name]

    def read_private_entries(self, name: str) -> list[os.DirEntry]:
        """:meth:`Names.read_entries` of ``.remotefs/NAME``. If it does not exist, that is remembered."""
        directory = self.private(name)
        if directory is not None:
            return directory.read_entries()
        self._missing.add(name)
        return []

    def make_private(self, name: str) -> Directory:
        """The folder ``.remotefs/NAME``, made if it does not exist. :raises StorageError: it cannot be made or used."""
        directory = self.private(name, create=True)
        if directory is None:
            raise errors.from_os_error(FileNotFoundError(errno.ENOENT, "it vanished"), f"directory {PRIVATE}/{name} on {self.share.label}")
        return directory

    def _subdirectory(self, parent: int, name: str, create: bool) -> int | None:
        subject = f"directory {name if parent == self.root.fd else f'{PRIVATE}/{name}'} on {self.share.label}"
        remedy = f"remove what stands at {PRIVATE} on the share if it is not this collection's"
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        if create:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
                if self.share.keeps_modes and os.fstat(parent).st_mode & stat.S_IWGRP:
                    from . import privacy  # late: nearly always the folders exist

                    privacy.allow_group(self.root.fd, parent, name)
                if name != _BALLAST:  # ballast is no state, so it need not be durable
                    os.fsync(parent)
            except FileExistsError:
                pass
            except OSError as error:
                raise errors.from_os_error(error, subject) from error
        try:
            fd = os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise errors.UnsafeImage(subject, "it is not a directory of ours but a link or a file", remedy) from error
            if error.errno == errno.EACCES:
                from . import privacy

                raise privacy.refused_error(self.root.fd, f"{self.share.path}/{PRIVATE}", parent, name, subject, error) from error
            raise errors.from_os_error(error, subject) from error
        if self.share.keeps_modes and os.fstat(fd).st_mode & 0o002:
            os.close(fd)
            raise errors.UnsafeImage(subject, "everybody may write to it", f"check its content and set its mode to 0700; {remedy}")
        if create and name == "volumes":
            with os.scandir(fd) as entries:
                if next(entries, None) is None:
                    os.fsync(parent)  # the task that made the folder may have been killed before its fsync
        return fd

    def keep_as_private(self, fd: int, directory: Directory) -> None:
        """Give the mode 0660 to an opened file of ours, if the group may write to its folder."""
        if self.share.keeps_modes and os.fstat(directory.fd).st_mode & stat.S_IWGRP:
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, 0o660)

    # -- temporary files, and how they get their final names ------------------------------------------------------

    def create_temporary(self, volume: str, mode: int = 0o600) -> tuple[int, str]:
        """Make an empty file in ``.remotefs/tmp``: (descriptor, temporary name). :raises StorageError: as :meth:`temporary_name`, or no room."""
        directory, name = self.make_private("tmp"), self.temporary_name(volume)
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory.fd), name
        except OSError as error:
            raise errors.from_os_error(error, f"share {self.share.label}") from error

    def temporary_name(self, volume: str) -> str:
        """A name for a new file in ``.remotefs/tmp``. :raises LockTimeout: the task may not change the volume any more."""
        self.verify(volume)
        return f"{volume}{_TEMPORARY_MARK}{os.urandom(6).hex()}"

    def discard_temporary(self, name: str) -> None:
        """Remove a temporary file."""
        self.make_private("tmp").unlink(name)

    def leftovers(self, volume: str) -> list[str]:
        """Names of temporary files that an interrupted task on ``volume`` left. Only meaningful under the volume's lock."""
        directory = self.private("tmp")
        prefix = volume + _TEMPORARY_MARK
        return [name for name in directory.names() if name.startswith(prefix)] if directory else []

    def publish(self, temporary: str, name: str) -> None:
        """Give a synced temporary file its final name, if nothing has that name. Durable. :raises Conflict: something has the name, of any file type."""
        source = self.make_private("tmp")
        self.verify(name)
        try:
            os.link(temporary, name, src_dir_fd=source.fd, dst_dir_fd=self.root.fd, follow_symlinks=False)
            source.unlink(temporary)
        except FileExistsError as error:
            raise self._taken(name) from error
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise errors.from_os_error(error, self.root.subject(name)) from error
            self._publish_by_rename(temporary, name)
            return
        self.root.sync()

    def _publish_by_rename(self, temporary: str, name: str) -> None:
        """For file systems without hard links. The volume's lock keeps other tasks from taking the name in between."""
        try:
            os.lstat(name, dir_fd=self.root.fd)
        except FileNotFoundError:
            self.replace(temporary, name)
            return
        raise self._taken(name)

    def _taken(self, name: str) -> errors.StorageError:
        return errors.Conflict(self.root.subject(name), "the name is taken by something else", "remove or rename it, or choose another name")

    def replace(self, temporary: str, name: str, directory: Directory | None = None, volume: str | None = None) -> None:
        """Replace ``name`` by a synced temporary file, atomically and durably.

        :param directory: where ``name`` is; None: in the share's directory. :param volume: its volume, if the name does not show it.
        :raises LockTimeout: the task may not change it any more. :raises OSError: it may not be durable.
        """
        source, target = self.make_private("tmp"), self.root if directory is None else directory
        self.verify(volume or name)
        os.rename(temporary, name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        target.sync()

    def write_record(
        self, volume: str, directory: Directory, name: str, data: bytes, like: str | None = None, warn: access.Warn | None = None, last: str = ""
    ) -> None:
        """Write a small file whole and durable; see :func:`small_files.write`."""
        from . import small_files  # late: only changes write any

        small_files.write(self, volume, directory, name, data, like, warn, last)


def write_all(fd: int, data: bytes | memoryview, offset: int = 0) -> None:
    """Write all of ``data`` at ``offset`` (bytes), even if the file system takes only a part at a time."""
    left = memoryview(data)
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done
