# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of files: reserve them, fill them with zeros, free them.

Space is reserved with fallocate(2) where the file system has it, and with written zeros where not. posix_fallocate(3) is not used:
without fallocate(2) it writes into every block, and does not report that.
"""

from __future__ import annotations

import errno
import os

from ...pace import UNLIMITED, Pace
from ...store.files import directory

_CHUNK = 4 << 20  # bytes that are written at a time
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def fallocate(fd: int, size: int) -> bool:
    """Reserve the first ``size`` bytes of a file. False where the file system cannot. :raises OSError: it can, but failed (ENOSPC)."""
    return _fallocate(fd, 0, 0, size)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Call fallocate(2). False where the file system does not have it. :raises OSError: it failed for another reason."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate  # some C libraries have only one name
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number))


def can_fallocate(fd: int) -> bool:
    """Whether the file system of an empty file has fallocate(2). The file is empty again afterwards."""
    try:
        return fallocate(fd, 1)
    finally:
        os.ftruncate(fd, 0)


def write_zeros(fd: int, size: int, start: int = 0, pace: Pace = UNLIMITED) -> None:
    """Write ``size`` bytes of zeros at offset ``start``. :raises OutOfTime: ``pace`` leaves no more time."""
    piece = pace.piece(_CHUNK)
    zeros = memoryview(bytes(min(size, piece)))
    for offset in range(0, size, piece):
        directory.write_all(fd, zeros[: size - offset], start + offset)
        pace.moved(min(piece, size - offset))


def make_hole(fd: int, offset: int, length: int) -> bool:
    """Free the space of ``length`` bytes at ``offset``. They read as zeros then. False where the file system cannot."""
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def make_zeros(fd: int, offset: int, length: int) -> None:
    """Make ``length`` bytes at ``offset`` read as zeros: with a hole, or with written zeros where the file system has no holes."""
    if not make_hole(fd, offset, length):
        write_zeros(fd, length, offset)
