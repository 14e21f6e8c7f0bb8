# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a program has an image open. QEMU locks bytes of an image file; these locks are tested or taken here.

QEMU (block/file-posix.c) locks byte 100+n for a permission that it uses, and byte 200+n for one that it does not share. n is
0 consistent read, 1 write, 2 write unchanged, 3 resize. A writer holds 101. Every user that relies on the content holds 201.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from ... import errors, model

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory
    from . import kernel_users

_OFD_GETLK, _OFD_SETLK = 36, 37  # <fcntl.h>; Python has names for them since 3.9
_LOCK_BYTES = (101, 201)
_READERS_BYTES = (100, 201)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock with an off_t of 64 bits
_FROM_FIRST_TO_LAST = _LOCK_BYTES[-1] - _LOCK_BYTES[0] + 1


def _request(kind: int, start: int, length: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def hold(fd: int, file: str, label: str) -> None:
    """Take the lock bytes of an image that is opened for writing. They are held until the descriptor is closed.

    :raises InUse: a program on this or another host has the image open.
    """
    _take(fd, fcntl.F_WRLCK, _LOCK_BYTES, file, label)


def hold_for_reading(fd: int, file: str, share: model.Share) -> None:
    """Take the lock bytes of a reader, if locks work on the share. Others may then read the image, but nobody may write it.

    :raises InUse: a program on this or another host has it open for writing.
    """
    if share.locks_visible:
        _take(fd, fcntl.F_RDLCK, _READERS_BYTES, file, share.label)
        if _is_held(fd, _LOCK_BYTES[0]):
            raise image_in_use(file, share.label)


def keep_writers_out(fd: int, file: str, label: str) -> None:
    """Keep other writers away from an image that is opened for writing, until the descriptor is closed. Others may read it.

    :raises InUse: a program on this or another host has it open for writing.
    """
    _take(fd, fcntl.F_RDLCK, _LOCK_BYTES[1:], file, label)
    _take(fd, fcntl.F_WRLCK, _LOCK_BYTES[:1], file, label)
    fcntl.fcntl(fd, _OFD_SETLK, _request(fcntl.F_UNLCK, _LOCK_BYTES[0]))


def _take(fd: int, kind: int, places: tuple[int, ...], file: str, label: str) -> None:
    """Try to take locks. Only this test is right on every file system: NFSv3 answers a query (GETLK) wrongly."""
    for byte in places:
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _request(kind, byte))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise image_in_use(file, label) from error


_REMEDY = "name the machine with attachment (see docs/live.md), or stop that program, or close what remotefs_access opened, and run the task again"


def image_in_use(file: str, label: str) -> errors.InUse:
    """The error for an image that a program has open."""
    return errors.InUse(f"image {file} on {label}", "a running program (a virtual machine?) has it open", _REMEDY)


def kernel_uses_image(user: kernel_users.User, file: str, label: str) -> errors.InUse:
    """The error for an image that the kernel of this host has open."""
    from .kernel_users import description

    return errors.InUse(
        f"image {file} on {label}", f"the kernel of this host has it open ({description(user)})", "unmount and detach it, then run the task again"
    )


def image_use_unknown(file: str, label: str) -> errors.InUse:
    """The error for an image whose use the file system cannot show."""
    return errors.InUse(
        f"image {file} on {label}",
        "this file system cannot tell whether somebody has it open",
        "make sure that nobody has and say assume_unused: true",
    )


def ask(fd: int, share: model.Share) -> bool | None:
    """Whether a program uses the image. Takes no lock. None if the file system cannot show this."""
    if not share.locks_visible:
        return None
    try:
        if _is_held(fd, _LOCK_BYTES[0], _FROM_FIRST_TO_LAST) and any(_is_held(fd, byte) for byte in _LOCK_BYTES):
            return True
    except OSError:
        return None
    return False if share.locks_readable else None


def is_open(fd: int) -> bool:
    """Whether a program can be seen to have a file open as an image, be it only for reading. Takes no lock."""
    try:
        return _is_held(fd, _READERS_BYTES[0], _READERS_BYTES[-1] - _READERS_BYTES[0] + 1)
    except OSError:
        return False


def is_written(fd: int, share: model.Share) -> bool | None:
    """Whether a program has the image open for writing. Takes no lock. None if the file system cannot show this.

    Programs that only read it do not count, such as machines on linked clones.
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
    """Whether a program holds a lock on any byte of a range. Most images are unused, and then one query is enough."""
    answer = fcntl.fcntl(fd, _OFD_GETLK, _request(fcntl.F_WRLCK, start, length))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def refuse_kernel_user(directory: ShareDirectory, fd: int, file: str, writing: bool = False) -> None:
    """Check that this host's kernel does not use the file (as a loop device, for instance).

    :param writing: a user that cannot write to it does not count. :raises InUse: the kernel has it open.
    """
    user = directory.kernel_users.of(os.fstat(fd))
    if user is not None and (user.writes or not writing):
        raise kernel_uses_image(user, file, directory.share.label)
