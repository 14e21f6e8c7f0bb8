# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether somebody has an image open: QEMU's own byte locks, asked about or held.

QEMU (block/file-posix.c) locks byte 100+n for a permission that it uses and 200+n for one that it does not share, n being
0 consistent read, 1 write, 2 write unchanged, 3 resize. A writer holds 101, every user that relies on the content 201.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from ...errors import InUse
from ...model import Share

if TYPE_CHECKING:
    from .kernel_users import User as KernelUser

_OFD_GETLK, _OFD_SETLK = 36, 37  # <fcntl.h>; Python has names for them from 3.9 on
_LOCK_BYTES = (101, 201)
_READERS_BYTES = (100, 201)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock where off_t is 64 bits wide
_FROM_FIRST_TO_LAST = _LOCK_BYTES[-1] - _LOCK_BYTES[0] + 1


def _request(kind: int, start: int, length: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def hold(fd: int, file: str, label: str) -> None:
    """Take the lock bytes of an image opened for writing; they are ours until the descriptor is closed.

    :raises InUse: somebody on this host or another has the image open.
    """
    _take(fd, fcntl.F_WRLCK, _LOCK_BYTES, file, label)


def hold_for_reading(fd: int, file: str, share: Share) -> None:
    """Take the lock bytes of who only reads an image, where they mean anything: others may read it too, nobody gets to write it.

    :raises InUse: somebody on this host or another has it open for writing.
    """
    if share.locks_visible:
        _take(fd, fcntl.F_RDLCK, _READERS_BYTES, file, share.label)
        if _is_held(fd, _LOCK_BYTES[0]):
            raise met(file, share.label)


def keep_writers_out(fd: int, file: str, label: str) -> None:
    """Keep those away who would write an image opened for writing, until the descriptor is closed; others may read it.

    :raises InUse: somebody on this host or another has it open for writing.
    """
    _take(fd, fcntl.F_RDLCK, _LOCK_BYTES[1:], file, label)
    _take(fd, fcntl.F_WRLCK, _LOCK_BYTES[:1], file, label)
    fcntl.fcntl(fd, _OFD_SETLK, _request(fcntl.F_UNLCK, _LOCK_BYTES[0]))


def _take(fd: int, kind: int, places: tuple[int, ...], file: str, label: str) -> None:
    """Trying is the only probe that every file system answers rightly: NFSv3 answers the question (GETLK) wrongly."""
    for byte in places:
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _request(kind, byte))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise met(file, label) from error


def met(file: str, label: str) -> InUse:
    """The error for an image that somebody has open."""
    return InUse(f"image {file} on {label}", "a running program (a virtual machine?) has it open", "stop its user and run the task again")


def met_kernel(user: KernelUser, file: str, label: str) -> InUse:
    """The error for an image that the kernel of this host has open."""
    from .kernel_users import told

    return InUse(
        f"image {file} on {label}", f"the kernel of this host has it open ({told(user)})", "unmount and detach it, then run the task again"
    )


def use_unknown(file: str, label: str) -> InUse:
    """The error for an image of which nobody can tell."""
    return InUse(
        f"image {file} on {label}",
        "this file system cannot tell whether somebody has it open",
        "make sure that nobody has and say assume_unused: true",
    )


def ask(fd: int, share: Share) -> bool | None:
    """Whether somebody uses the image, without taking a lock. None where the file system cannot tell."""
    if not share.locks_visible:
        return None
    try:
        if _is_held(fd, _LOCK_BYTES[0], _FROM_FIRST_TO_LAST) and any(_is_held(fd, byte) for byte in _LOCK_BYTES):
            return True
    except OSError:
        return None
    return False if share.locks_readable else None


def is_written(fd: int, share: Share) -> bool | None:
    """Whether somebody has the image open for writing, without taking a lock. None where the file system cannot tell.

    Who only reads it, as machines on linked clones do, does not count.
    """
    if not share.locks_visible:
        return None
    try:
        if _is_held(fd, _LOCK_BYTES[0]):
            return True
    except OSError:
        return None
    return False if share.locks_readable else None


def _is_held(fd: int, start: int, length: int = 1) -> bool:
    """Whether somebody holds a lock on any byte of a range: one question where, as for most images, nobody holds any."""
    answer = fcntl.fcntl(fd, _OFD_GETLK, _request(fcntl.F_WRLCK, start, length))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
