# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of an opened point: a small program that holds qemu-storage-daemon, and ends it when its time is over.

It runs in an interpreter of its own, which reads this file from its standard input: it imports nothing but the standard library. It gives the
daemon the opened files, and keeps none of them. The kernel sends the daemon SIGTERM when the guard dies, so that it takes its mount away and
ends. When the daemon dies, the guard takes away what that has left. A task that finds both gone does the same (:func:`remove_traces`).

The folder of the point has its record (:data:`RECORD`). The guard looks there again and again for when the time is over, which a task can
put off. Both have the lock of the folder meanwhile. Where the record is gone, the point is not wanted any more.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import time
from contextlib import suppress

RECORD, PID = "point.json", "pid"  # in the folder
FUSE, NBD = "fuse", "nbd"  # kinds of what shows a point: a file of a FUSE mount, or a socket
PLACEHOLDER = b"remotefs.storage shows a point of a volume here while it is opened. It is not opened now, and this file can be removed.\n"
GONE = (errno.ENOTCONN, errno.ECONNABORTED)  # what the kernel says of a FUSE mount whose daemon has ended
_LOOK = 15.0  # seconds between two looks at the record
_END = 15.0  # seconds for the daemon to end by itself, and again for the kernel to end it
_PAUSE = 0.05  # seconds
_PEER = struct.Struct("3i")  # SO_PEERCRED: process, user and group
_LONGEST = 1 << 20  # bytes of a record
_PR_SET_PDEATHSIG = 1
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # <sys/mount.h>
_FUSERMOUNT = ("/usr/bin/fusermount3", "/bin/fusermount3", "/usr/bin/fusermount", "/bin/fusermount")
_CANNOT_START = 126


def clock() -> float:
    """Seconds since the host was started. They go on while it sleeps, and nobody can set them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """Which start of the host that was. Empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


# -- what a holder leaves ------------------------------------------------------------------------------------------------


def remove_traces(kind: str, target: str) -> bool:
    """Take away what a holder that has ended left at ``target``: its mount and its file, or its socket. Whatever else is there stays.

    Returns whether there was anything. :raises OSError: it cannot be taken away.
    """
    return _remove_file(target) if kind == FUSE else _remove_socket(target)


def is_dead_mount(path: str) -> bool:
    """Whether a FUSE mount is there whose daemon has ended."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in GONE
    return False


def is_placeholder(path: str) -> bool:
    """Whether the file is one that was made to be mounted on, and is the user's. :raises OSError: it cannot be looked at."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (found.st_uid, found.st_nlink, found.st_size) != (os.geteuid(), 1, len(PLACEHOLDER)):
            return False
        return os.read(fd, len(PLACEHOLDER)) == PLACEHOLDER
    finally:
        os.close(fd)


def _remove_file(target: str) -> bool:
    found = False
    while is_dead_mount(target):  # several can lie on one file
        _unmount(target)
        found = True
    try:
        if is_placeholder(target):
            os.unlink(target)
            found = True
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES):
            raise
    return found


def _unmount(target: str) -> None:
    """:raises OSError: it cannot be unmounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    for program in _FUSERMOUNT if code == errno.EPERM else ():  # a mount of another user than root
        words = [program, "-u", "-z", "-q", target]
        if os.access(program, os.X_OK) and os.spawnv(os.P_WAIT, program, words) == 0:  # pylint: disable=ansible-bad-function
            return
    raise OSError(code, os.strerror(code), target)


def _remove_socket(target: str) -> bool:
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or is_served(target):
        return False
    os.unlink(target)
    return True


def is_served(target: str) -> bool:
    """Whether somebody listens at a socket. One that was killed, and whose last thread the kernel has not ended yet, does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_END)
        try:
            asking.connect(target)
            server = _PEER.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return not _has_ended(server)


def _has_ended(pid: int) -> bool:
    """Whether a process is no more, or waits only to be asked how it ended. One that is not seen from here (0) has not."""
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])
    except FileNotFoundError:
        return True
    except OSError:
        return False


def remove_folder(folder: str) -> None:
    """Remove the folder of a point. :raises OSError: it cannot be removed."""
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    with suppress(FileNotFoundError):
        os.rmdir(folder)


# -- the guard -----------------------------------------------------------------------------------------------------------


def main(told: str) -> None:
    """The whole life of the guard. :param told: as JSON: ``argv`` of the daemon, the ``descriptors`` that it inherits, the ``memory`` that it may
    have (bytes of address space), ``folder``, ``kind`` and ``target``.
    """
    given = json.loads(told)
    code = _CANNOT_START
    try:
        code = _guard(given)
    finally:
        os._exit(code)


def _guard(given: dict) -> int:
    """Returns the exit status of the daemon."""
    os.umask(0o077)  # the socket is for this user alone
    for one in (signal.SIGHUP, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signals = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = _started(given)
    for fd in given["descriptors"]:
        os.close(fd)  # they are the daemon's alone: its locks end with it
    _leave_standard_files()
    lock = os.open(given["folder"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    record = os.path.join(given["folder"], RECORD)
    status = None
    while status is None:
        left = _left(record)
        if left <= 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _left(record) <= 0:
                break  # nobody puts it off any more: who wants to waits for the lock
            fcntl.flock(lock, fcntl.LOCK_UN)
            continue
        caught = signal.sigtimedwait(signals, min(left, _LOOK))
        if caught is not None and caught.si_signo == signal.SIGTERM:
            fcntl.flock(lock, fcntl.LOCK_EX)
            break
        status = _status_of(pid)
    fcntl.flock(lock, fcntl.LOCK_EX)  # a task that puts the end off just now has the folder until it has written that
    if status is None:
        status = _ended(pid)
    if status is not None:  # one that the kernel cannot end still has its record
        with suppress(OSError):
            remove_traces(given["kind"], given["target"])
            remove_folder(given["folder"])
    return (status or 0) & 0xFF


def _started(given: dict) -> int:
    """Start the daemon. Returns its process."""
    prctl, guard = ctypes.CDLL(None).prctl, os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(_CANNOT_START)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(given["memory"])
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        for fd in given["descriptors"]:
            os.set_inheritable(fd, True)
        os.execv(given["argv"][0], given["argv"])
    except OSError as error:
        os.write(2, f"{given['argv'][0]} cannot be started ({error.strerror})\n".encode())
    finally:
        os._exit(_CANNOT_START)


def _limit_memory(most: int) -> None:
    _soft, highest = resource.getrlimit(resource.RLIMIT_AS)
    if highest != resource.RLIM_INFINITY:
        most = min(most, highest)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _leave_standard_files() -> None:
    """Whoever started the guard waits for the end of its output."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)


def _left(record: str) -> float:
    """Seconds until the time is over; none where the point is not wanted any more, or nobody knows."""
    try:
        with open(record, "rb") as stream:
            told = json.loads(stream.read(_LONGEST))
        return float(told["ends"]) - clock() if told["boot"] == boot() else 0.0
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0.0


def _status_of(pid: int) -> int | None:
    """The exit status of the daemon, as a shell has it; None: it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found == 0:
        return None
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _ended(pid: int) -> int | None:
    """End the daemon. None: the kernel cannot end it, because it waits for a server."""
    for one in (signal.SIGTERM, signal.SIGKILL):
        os.kill(pid, one)  # its status was not fetched, so that the number is still its own
        os.kill(pid, signal.SIGCONT)  # one that somebody stopped would not hear it
        until = time.monotonic() + _END
        while time.monotonic() < until:
            status = _status_of(pid)
            if status is not None:
                return status
            time.sleep(_PAUSE)
    return None
