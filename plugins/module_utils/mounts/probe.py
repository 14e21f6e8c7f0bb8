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

from .. import errors


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

    def query() -> tuple:
        """Runs in the child process."""
        room = os.statvfs(path)
        writable = os.access(path, os.W_OK | os.X_OK)
        return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize, (room.f_blocks - room.f_bfree) * room.f_frsize, int(writable)

    total, free, used, writable = bounded(query, timeout, subject)
    return Capacity(total, free, used, bool(writable))


def directory_state(path: str, timeout: float, subject: str) -> tuple[bool, bool, bool]:
    """(whether ``path`` exists, whether it is a directory, whether it is empty). It raises the same errors as :func:`capacity`."""

    def query() -> tuple:
        """Runs in the child process."""
        if not os.path.isdir(path):
            return int(os.path.lexists(path)), 0, 1
        return 1, 1, int(not os.listdir(path))

    exists, directory, empty = bounded(query, timeout, subject)
    return bool(exists), bool(directory), bool(empty)


def bounded(query: Callable[[], tuple], timeout: float, subject: str) -> tuple:
    """Call ``query`` in a child process and return its result. :param query: a function that returns a tuple of integers.

    :param timeout: seconds to wait for it. :param subject: the share, for messages.
    :raises ShareNotMounted: it took longer, or the path does not exist. :raises StorageError: it raised another OSError.
    """
    import select

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(query, writer)
    os.close(writer)
    try:
        ready = select.select([reader], [], [], max(timeout, 0.1))[0]
        answer = os.read(reader, 4096).decode("ascii") if ready else ""
    finally:
        os.close(reader)
        _kill(child)
    if not ready:
        raise errors.ShareNotMounted(subject, f"it does not answer within {timeout:.0f} s", "check its server, or mount it again with state: remounted")
    numbers = tuple(int(number) for number in answer.split())
    if numbers and numbers[0] in (errno.ENOENT, errno.ENOTDIR):
        raise errors.ShareNotMounted(subject, "its directory is not there", "create it, or mount the share with remotefs_share, and run the task again")
    if not numbers or numbers[0] != 0:
        raise errors.from_os_error(_os_error(numbers[0] if numbers else 5), subject, os.geteuid())
    return numbers[1:]


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _run_in_child(query: Callable[[], tuple], writer: int) -> None:
    """Run ``query`` in the child and write the result to ``writer``. All other descriptors are closed first: a stuck child would keep pipes open."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(3, writer)
        os.closerange(writer + 1, 1024)
        try:
            answer = (0,) + tuple(query())
        except OSError as error:
            answer = (error.errno or 5,)
        os.write(writer, " ".join(map(str, answer)).encode("ascii"))
    finally:
        os._exit(0)


def _kill(child: int) -> None:
    """Kill the child and wait 0.1 s for its end. A child that is stuck in the kernel ends later, when its system call returns."""
    import signal

    os.kill(child, signal.SIGKILL)
    for _dummy in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)


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
