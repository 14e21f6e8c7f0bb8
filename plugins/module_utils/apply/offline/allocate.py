# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of files: reserving them, filling them with zeros, giving them back.

Reserving is fallocate(2) where the file system has it, written zeros where it has not. It is not posix_fallocate(3), which
writes into every block where it finds no fallocate(2), and tells nobody.
"""

from __future__ import annotations

import errno
import os

from ...store.files.directory import write_all

_CHUNK = 4 << 20  # bytes that are written at a time
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def fallocate(fd: int, size: int) -> bool:
    """Reserve ``size`` bytes; false where the file system cannot. :raises OSError: it can, and it failed (ENOSPC)."""
    return _fallocate(fd, 0, 0, size)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate  # some C libraries have one name for both
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number))


def can_fallocate(fd: int) -> bool:
    """Whether the file system of an empty file has fallocate(2); the file is empty again afterwards."""
    try:
        return fallocate(fd, 1)
    finally:
        os.ftruncate(fd, 0)


def write_zeros(fd: int, size: int, start: int = 0) -> None:
    zeros = memoryview(bytes(min(size, _CHUNK)))
    for offset in range(0, size, _CHUNK):
        write_all(fd, zeros[: size - offset], start + offset)


def make_hole(fd: int, offset: int, length: int) -> bool:
    """Give the space of a part of a file back, which reads as zeros then; false where the file system cannot."""
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def make_zeros(fd: int, offset: int, length: int) -> None:
    """Let a part of a file read as zeros: as a hole, else written ones."""
    if not make_hole(fd, offset, length):
        write_zeros(fd, length, offset)
