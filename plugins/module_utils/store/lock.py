# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task at a time on a volume, across hosts: a lock file on the share, or a lease where locks are not seen.

Where the kernel's locks travel (local, NFS, GlusterFS, sshfs on one host), an open-file-description lock on
``.remotefs/locks/NAME.lock`` decides alone: it ends with its last holder, and programs inherit it. On CIFS with ``nobrl``
nobody sees it; there a file made with O_EXCL is the lease, which a dead owner leaves behind.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import time
from dataclasses import asdict, dataclass

from ..errors import LockTimeout, StorageError, from_os_error
from .directory import ShareDirectory

_OFD_SETLK = 37
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds
_LOST = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock, as others are told. ``started`` is the process's start time in the kernel's clock ticks."""

    host: str
    machine: str
    boot: str
    pid_namespace: str
    pid: int
    started: str
    since: str

    @staticmethod
    def of_this_process() -> Owner:
        pid = os.getpid()
        return Owner(
            socket.gethostname(),
            _first_line("/etc/machine-id"),
            _first_line("/proc/sys/kernel/random/boot_id"),
            _pid_namespace(),
            pid,
            _start_time(pid),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode("utf-8")

    def is_dead(self) -> bool:
        """Whether this host can prove that the owner is gone: same machine, boot and PID namespace, other process."""
        here = Owner.of_this_process()
        if not self.boot or (self.machine, self.boot, self.pid_namespace) != (here.machine, here.boot, here.pid_namespace):
            return False
        return _start_time(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


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
    """Field 22 of /proc/PID/stat; empty where there is no such process."""
    line = _first_line(f"/proc/{pid}/stat")
    return line.rpartition(")")[2].split()[19] if ")" in line else ""


def _parse_owner(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data.decode("utf-8")))
    except (ValueError, TypeError):
        return None


class VolumeLock:
    """The lock of one volume name on a share; a context manager.

    :param timeout: seconds to wait for it.
    :param break_lease: take a lease away from an owner that cannot be proven dead.
    :raises LockTimeout: another task held it all the time; the message names its owner.
    """

    def __init__(self, directory: ShareDirectory, volume: str, timeout: float = 90, break_lease: bool = False) -> None:
        self._directory = directory
        self._volume = volume
        self._timeout = timeout
        self._break_lease = break_lease
        self._lease = not directory.share.locks_visible
        self._name = volume + (".lease" if self._lease else ".lock")
        self._fd = -1

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What programs inherit, so that the lock lasts as long as their work."""
        return (self._fd,) if self._fd >= 0 else ()

    def __enter__(self) -> VolumeLock:
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE
        while not self._try():
            if time.monotonic() >= deadline:
                raise self._timed_out()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._fd < 0:
            return
        if self._lease:
            self._directory.make_private("locks").unlink(self._name)
        os.close(self._fd)
        self._fd = -1

    def forget_file(self) -> None:
        """Remove the lock file of a volume that is gone; whoever waits on it notices and takes a new one.

        Not where clients remember names: another one could lock the file that is gone.
        """
        if not self._lease and not self._directory.share.stale_seconds:
            self._directory.make_private("locks").unlink(self._name)

    def _try(self) -> bool:
        try:
            return self._try_lease() if self._lease else self._try_lock()
        except OSError as error:
            if error.errno in _LOST:
                return False  # the file went away under us: a deletion finished, start over
            raise from_os_error(error, self._subject) from error

    @property
    def _subject(self) -> str:
        return f"lock of volume {self._volume} on {self._directory.share.label}"

    def _try_lock(self) -> bool:
        locks = self._directory.make_private("locks")
        fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=locks.fd)
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _WHOLE_FILE)
            current = os.stat(self._name, dir_fd=locks.fd, follow_symlinks=False)
            if (current.st_dev, current.st_ino) != (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
                raise FileNotFoundError(errno.ENOENT, "lock file replaced")
            self._take(fd)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _try_lease(self) -> bool:
        locks = self._directory.make_private("locks")
        try:
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=locks.fd)
        except FileExistsError:
            owner = self._owner()
            if self._break_lease or (owner is not None and owner.is_dead()):
                self._break_lease = False  # once: a lease that appears afterwards belongs to a living task
                locks.unlink(self._name)
            return False
        self._take(fd)
        os.fsync(fd)
        return True

    def _take(self, fd: int) -> None:
        data = Owner.of_this_process().to_bytes()
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        self._fd = fd
        self._directory.refresh()

    def _owner(self) -> Owner | None:
        try:
            return _parse_owner(self._directory.make_private("locks").read_small(self._name) or b"")
        except (OSError, StorageError):
            return None

    def _timed_out(self) -> LockTimeout:
        owner = self._owner()
        remedy = "wait for that task to end or raise lock_timeout"
        if self._lease:
            remedy += "; if its host is dead, run the task with break_lock: true"
        return LockTimeout(self._subject, f"it is held by {owner or 'another task'} and was not freed within {self._timeout:g} s", remedy)
