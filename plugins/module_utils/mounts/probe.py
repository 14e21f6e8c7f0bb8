# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Query a mounted share whose server may not answer.

A system call on a dead server cannot be interrupted. So a child process makes it, and the parent stops waiting after a time limit.
"""
from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .. import errors, limited

Answer = TypeVar("Answer")


class Deadline:
    """The time limit for the work on one share. :param seconds: the limit, counted from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the limit; negative after it."""
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Capacity:
    """The capacity of a share in bytes, and whether this user may write to it, as far as the kernel and the server report it."""

    total: int
    free: int  # bytes that a user may still store
    used: int
    writable: bool


def capacity(path: str, timeout: float, subject: str) -> Capacity:
    """The capacity of the share that is mounted at ``path``. :param subject: the share, for messages.

    :raises ShareNotMounted: it does not answer within ``timeout`` seconds, or its server is gone.
    :raises StorageError: it cannot be read.
    """

    return bounded(lambda: room(path), timeout, subject)


def room(path: str) -> Capacity:
    """As :func:`capacity`, without a limit of time. :raises OSError: it cannot be read."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return Capacity(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, used, os.access(path, os.W_OK | os.X_OK))


def directory_state(path: str, timeout: float, subject: str) -> tuple[bool, bool, bool]:
    """(whether ``path`` exists, whether it is a directory, whether it is empty). It raises the same errors as :func:`capacity`."""

    def query() -> tuple[bool, bool, bool]:
        """Runs in the child process."""
        if not os.path.isdir(path):
            return os.path.lexists(path), False, True
        return True, True, not os.listdir(path)

    return bounded(query, timeout, subject)


def bounded(query: Callable[[], Answer], timeout: float, subject: str) -> Answer:
    """Call ``query`` in a child process and return its result.

    :param timeout: seconds to wait for it. :param subject: the share, for messages.
    :raises ShareNotMounted: it took longer, or the path does not exist. :raises StorageError: it raised another error.
    """
    try:
        return limited.within(timeout, lambda _alive: query(), subject)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            remedy = "create it, or mount the share with remotefs_share, and run the task again"
            raise errors.ShareNotMounted(subject, "its directory is not there", remedy) from error
        raise errors.from_os_error(error, subject, os.geteuid()) from error


def holders(path: str, limit: int = 3, trigger: int | None = None) -> list[str]:
    """Up to ``limit`` processes that have open files or their working directory at or beneath ``path``, as "qemu-system-x86 (1234)".

    It reads only links in /proc, so it does not access any server.

    :param trigger: the mount id of an autofs trigger at ``path``. Its automounter keeps it open all the time, so that does not count.
    """
    found = []
    namespace = _namespace("self")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _namespace(pid) != namespace:
            continue  # a process in another mount namespace (a container), where the same path is another directory
        if any((link == path and (trigger is None or _mount_of(name) != trigger)) or link.startswith(path + "/") for name, link in _links(pid)):
            found.append(f"{_name(pid)} ({pid})")
            if len(found) == limit:
                break
    return found


def _mount_of(name: str) -> int | None:
    """The mount id of an open file, by its path under /proc; None if it cannot be read."""
    try:
        with open(name.replace("/fd/", "/fdinfo/"), encoding="ascii", errors="replace") as stream:
            return next((int(line.split()[1]) for line in stream if line.startswith("mnt_id:")), None)
    except (OSError, ValueError):
        return None


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def _links(pid: str) -> Iterator[tuple[str, str]]:
    names = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    try:
        names += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass  # the process has ended, or it belongs to another user
    for name in names:
        try:
            yield name, os.readlink(name)
        except OSError:
            continue


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return "process"
