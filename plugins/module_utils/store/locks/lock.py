# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Allows one task at a time on a volume, across hosts: by a lock file on the share, or by a lease where locks do not work.

Where hosts see each other's kernel locks (local, NFS, GlusterFS, sshfs on one host), an open-file-description lock on
``.remotefs/locks/NAME.lock`` decides alone. It ends with its last holder, and programs inherit it. Tasks that only read the files
of a volume share it. On CIFS with ``nobrl`` other hosts do not see it. There a file made with O_EXCL is the lease. A dead owner
leaves it behind, and it is never shared.

A lock can be lost while its holder works: a server gives it away after a network partition, or an administrator breaks a lease.
So the file has a token: the holder's name with a random generation, or nothing while readers hold the lock. Before each change
a task checks with :meth:`VolumeLock.verify` that lock, file and token are still its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from functools import lru_cache
from typing import NamedTuple

from ... import errors, model
from ..files.directory import Directory, ShareDirectory

_OFD_GETLK, _OFD_SETLK = 36, 37
_WHOLE_FILE = {kind: struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0) for kind in (fcntl.F_WRLCK, fcntl.F_RDLCK)}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds
_TRIES_AT_ONCE = 3  # more of them where somebody replaces the file all the time would never end
LEASE = "@"  # the names of the locks of leases begin so, as no volume's does
_LOST = (errno.ENOENT, errno.ESTALE)
_REFUSED = (errno.EAGAIN, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Owner(NamedTuple):
    """Who holds a lock, as stored in the lock file. ``started``: start time of the process in the kernel's clock ticks. ``since``: UTC,
    ISO 8601. ``generation``: random, so that it differs each time that a lock is taken. ``task``: the module's name."""

    host: str
    machine: str
    boot: str
    pid_namespace: str
    pid: int
    started: str
    since: str
    generation: str = ""
    task: str = ""

    @staticmethod
    def of_this_process() -> Owner:
        """This process, with a new generation."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return _of_process(os.getpid())._replace(since=since, generation=os.urandom(8).hex())

    def to_bytes(self) -> bytes:
        """The owner as JSON."""
        return json.dumps(self._asdict()).encode("utf-8")

    def is_dead(self) -> bool:
        """Whether this host can prove that the owner is gone: it was in the same machine, boot and PID namespace, and its process ended."""
        here = Owner.of_this_process()
        if not self.boot or (self.machine, self.boot, self.pid_namespace) != (here.machine, here.boot, here.pid_namespace):
            return False
        return _start_time(self.pid) != self.started

    def __str__(self) -> str:
        task = f" ({self.task})" if self.task else ""
        return f"process {self.pid} on {self.host}{task} since {self.since}"


@lru_cache(maxsize=1)
def _of_process(pid: int) -> Owner:
    """What stays the same while this process runs; a copy of it has another number."""
    return Owner(
        socket.gethostname(),
        _first_line("/etc/machine-id"),
        _first_line("/proc/sys/kernel/random/boot_id"),
        _pid_namespace(),
        pid,
        _start_time(pid),
        since="",
        task=os.path.splitext(os.path.basename(sys.argv[0]))[0],
    )


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.readline().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat, in clock ticks; empty if there is no such process."""
    line = _first_line(f"/proc/{pid}/stat")
    return line.rpartition(")")[2].split()[19] if ")" in line else ""


def parse_owner(data: bytes) -> Owner | None:
    """The holder that a lock file names; None if this collection cannot have written that content."""
    try:
        owner = Owner(**json.loads(data.decode("utf-8")))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in owner._asdict().items() if name != "pid"]
    is_valid = isinstance(owner.pid, int) and not isinstance(owner.pid, bool) and all(isinstance(text, str) and text.isprintable() for text in texts)
    return owner if is_valid else None  # the process id becomes part of a path, and users see the texts


class VolumeLock:
    """The lock of one volume name on a share; a context manager.

    :param timeout: seconds to wait for it.
    :param break_lease: take a lease away even from an owner that cannot be proven dead.
    :param shared: only keep others from changing the volume. Many tasks can hold it so at once. A lease is never shared.
    :raises LockTimeout: another task held it all the time. The message names its owner if there is only one.
    """

    def __init__(self, directory: ShareDirectory, volume: str, timeout: float = 90, break_lease: bool = False, shared: bool = False) -> None:
        self.volume = volume
        self._directory = directory
        self._timeout = timeout
        self._break_lease = break_lease
        self._lease = not directory.share.locks_visible
        self._kind = fcntl.F_RDLCK if shared and not self._lease else fcntl.F_WRLCK
        self._name = volume + (".lease" if self._lease else ".lock")
        self._taken = False
        self._fd = -1  # of a lock; a lease is not kept open, because then SMB would let nobody break it
        self._identity = (0, 0)  # device and inode of the file that is locked
        self._token = b""  # the content of the file as long as the lock is ours
        self._stale_error: OSError | None = None  # the ESTALE error of the last attempt, if there was one
        self._may_be_free = False  # the last attempt met no holder: the file went away under it, or it removed the lease of a dead owner

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that programs inherit, so that the lock lasts as long as their work."""
        return (self._fd,) if self._fd >= 0 else ()

    @property
    def shared(self) -> bool:
        """Whether other readers may hold the lock at the same time."""
        return self._kind == fcntl.F_RDLCK

    def protects(self, file: str) -> bool:
        """Whether ``file`` is the lock's volume itself, or a file or temporary file named after it."""
        return file == self.volume or file.startswith((self.volume + ".", self.volume + "~"))

    def __enter__(self) -> VolumeLock:
        deadline = time.monotonic() + self._timeout
        pause, at_once = _FIRST_PAUSE, _TRIES_AT_ONCE
        while not self._try():
            if self._may_be_free and at_once:  # also after the deadline: who waits for nobody has not waited too long
                at_once -= 1
                continue
            if time.monotonic() >= deadline:
                raise errors.from_os_error(self._stale_error, self._subject) if self._stale_error else self._timed_out()
            self._directory.waiting.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            if self._lease and self._is_held():  # the lease of another task must not be removed
                self._directory.make_private("locks").unlink(self._name)
        finally:
            self.let_go()

    def require_free(self) -> None:
        """Wait until no other task holds the lock, and take nothing, for check mode. On NFSv3, which answers such questions wrongly, it seems free.

        :raises LockTimeout: another task held it all the time.
        """
        deadline, pause = time.monotonic() + self._timeout, _FIRST_PAUSE
        while self._is_held_by_others():
            if time.monotonic() >= deadline:
                raise self._timed_out()
            self._directory.waiting.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _is_held_by_others(self) -> bool:
        locks = self._directory.private("locks")
        if locks is None or not self._directory.share.locks_readable:
            return False
        if self._lease:
            owner = parse_owner(locks.read_small(self._name) or b"")
            return owner is not None and not owner.is_dead() and not self._break_lease
        try:
            with locks.opened(self._name) as fd:
                answer = fcntl.fcntl(fd, _OFD_GETLK, _WHOLE_FILE[self._kind])
        except FileNotFoundError:
            return False
        return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK

    def let_go(self) -> None:
        """Close the file. The lock ends, unless a copy of this process, or the one that this is a copy of, has the file open, too."""
        self._taken = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget_file(self) -> None:
        """Remove the lock file of a volume that is gone. A task that waits for it notices, and makes a new one.

        Does nothing where clients cache names: another client could lock the file that is gone.
        """
        if not self._lease and not self.shared and not self._directory.share.stale_seconds and self._is_held():
            self._directory.make_private("locks").unlink(self._name)

    def verify(self) -> None:
        """Check that the lock is still ours. With kernel locks this takes three system calls, none of them an fsync.

        :raises LockTimeout: another task has it or had it in between. Then nothing may be changed any more, not even cleaned up.
        """
        if not self._is_held():
            raise errors.LockTimeout(
                self._subject,
                f"it was lost to {self._owner() or 'another task'} while this task worked",
                "run the task again: it finishes or undoes what this one began",
            )

    def _is_held(self) -> bool:
        locks = self._directory.private("locks")
        if locks is None or not self._taken:
            return False
        try:
            if self._lease:
                return locks.read_small(self._name) == self._token
            # The lock request comes first. If a server keeps the locks, this asks the server and drops the cached data of the file.
            fcntl.fcntl(self._fd, _OFD_SETLK, _WHOLE_FILE[self._kind])
            return _identity(os.stat(self._name, dir_fd=locks.fd, follow_symlinks=False)) == self._identity and self._has_own_token()
        except OSError as error:
            if error.errno in (*_REFUSED, *_LOST, errno.EIO):  # EIO: the error of NFS for files whose lock it has lost
                return False
            raise errors.from_os_error(error, self._subject) from error

    def _has_own_token(self) -> bool:
        return os.pread(self._fd, len(self._token) + 1, 0) == self._token

    def _try(self) -> bool:
        self._stale_error, self._may_be_free = None, False
        try:
            return self._try_lease() if self._lease else self._try_lock()
        except OSError as error:
            if error.errno not in _LOST:
                raise errors.from_os_error(error, self._subject) from error
            # The file went away meanwhile, because a deletion finished or the server has another directory by now. Start over.
            self._stale_error, self._may_be_free = error if error.errno == errno.ESTALE else None, True
            self._directory.refresh()
            return False

    @property
    def _subject(self) -> str:
        what = f"lease {self.volume[len(LEASE) :]}" if self.volume.startswith(LEASE) else f"volume {self.volume}"
        return f"lock of {what} on {self._directory.share.label}"

    def _try_lock(self) -> bool:
        locks = self._directory.make_private("locks")
        self._refuse_foreign(locks)
        self._fd = self._open(locks, os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            self._directory.keep_as_private(self._fd, locks)
            if os.fstat(self._fd).st_nlink > 1:
                raise self._foreign("it has another name somewhere (a hard link), so writing it could change a foreign file")
            fcntl.fcntl(self._fd, _OFD_SETLK, _WHOLE_FILE[self._kind])
            self._identity = _identity(os.fstat(self._fd))
            if _identity(os.stat(self._name, dir_fd=locks.fd, follow_symlinks=False)) != self._identity:
                raise FileNotFoundError(errno.ENOENT, "lock file replaced")
            # Readers write no name. The file cannot name all of them, and the name of an earlier writer must not be taken for
            # one of them. An empty file shows each of them that no writer came in between.
            self._claim(self._fd, b"" if self.shared else Owner.of_this_process().to_bytes())
            self._directory.refresh()
        except BaseException as error:
            self.let_go()
            if isinstance(error, OSError) and error.errno in _REFUSED:
                return False
            raise
        self._taken = True
        return True

    def _open(self, locks: Directory, flags: int) -> int:
        """Open or make the lock file. On a full share, ballast is released to make room for it."""
        flags |= os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._name, flags, 0o600, dir_fd=locks.fd)
        except OSError as error:
            if error.errno not in _FULL or not self._make_room():
                raise
        return os.open(self._name, flags, 0o600, dir_fd=locks.fd)

    def _refuse_foreign(self, locks: Directory) -> None:
        """Check the file type before the open, because opening a device can have effects. :raises UnsafeImage: it is no regular file."""
        try:
            locks.status(self._name)
        except errors.UnsafeImage as error:
            raise self._foreign(error.problem) from error

    def _foreign(self, problem: str) -> errors.UnsafeImage:
        return errors.UnsafeImage(self._subject, problem, f"find out who put .remotefs/locks/{self._name} there and remove it")

    def _try_lease(self) -> bool:
        locks = self._directory.make_private("locks")
        try:
            fd = self._open(locks, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            owner = self._owner()
            if self._break_lease or (owner is not None and owner.is_dead()):
                self._break_lease = False  # only once: a lease that appears afterwards belongs to a living task
                locks.unlink(self._name)
                self._may_be_free = True
            return False
        try:
            try:
                token = Owner.of_this_process().to_bytes()
                try:
                    self._write_token(fd, token)
                except OSError as error:
                    if error.errno not in _FULL or not self._make_room():
                        raise
                    self._write_token(fd, token)
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            locks.unlink(self._name)  # without a token nobody could see whose lease it is
            raise
        self._taken = True
        self._directory.refresh()
        return True

    def _make_room(self) -> bool:
        """Release ballast for the lock of a volume that exists. A task that makes a new volume needs more room anyway."""
        from ..files import ballast  # late: few shares are full

        exists = any(self._directory.root.status(name) is not None for name in (self.volume, model.info_name(self.volume)))
        return exists and ballast.release(self._directory)

    def _claim(self, fd: int, token: bytes) -> None:
        """Write the token. If the share has no room for it, the lock is held without a token, as readers hold it."""
        try:
            self._write_token(fd, token)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._write_token(fd, b"")

    def _write_token(self, fd: int, token: bytes) -> None:
        os.pwrite(fd, token, 0)
        os.ftruncate(fd, len(token))
        self._token = token

    def _owner(self) -> Owner | None:
        try:
            return parse_owner(self._directory.make_private("locks").read_small(self._name) or b"")
        except (OSError, errors.StorageError):
            return None

    def _timed_out(self) -> errors.LockTimeout:
        owner = self._owner()
        remedy = "wait for that task to end or raise lock_timeout"
        if self._lease:
            remedy += "; if its host is dead, run the task with break_lock: true"
        return errors.LockTimeout(self._subject, f"it is held by {owner or 'another task'} and was not freed within {self._timeout:g} s", remedy)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
