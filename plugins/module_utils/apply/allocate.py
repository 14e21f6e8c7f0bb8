# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserving space for new raw images: fallocate(2) where the file system has it, written zeros where it has not."""

from __future__ import annotations

import ctypes
import errno
import os

_CHUNK = 4 << 20
_MISSING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def fallocate(fd: int, size: int) -> bool:
    """Reserve ``size`` bytes; false where the file system cannot. :raises OSError: it can, and it failed (ENOSPC)."""
    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, 0, 0, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in _MISSING:
        return False
    raise OSError(number, os.strerror(number))


def write_zeros(fd: int, size: int) -> None:
    zeros = memoryview(bytes(_CHUNK))
    offset = 0
    while offset < size:
        offset += os.pwrite(fd, zeros[: min(_CHUNK, size - offset)], offset)


def copy_data(source: int, target: int) -> None:
    """Copy a file into an empty one; what is a hole in it stays one, where the file system can tell."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        offset, end = _next_data(source, offset, size)
        while offset < end:
            block = os.pread(source, min(_CHUNK, end - offset), offset)
            if not block:
                return
            offset += os.pwrite(target, block, offset)


def _next_data(fd: int, offset: int, size: int) -> tuple[int, int]:
    """Where the next data begins and ends; (``size``, ``size``) where there is none."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        return start, os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno not in _MISSING:
            raise
        return offset, size
