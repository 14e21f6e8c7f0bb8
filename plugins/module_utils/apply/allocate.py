# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of files: reserving them for new images, and copying whole files with as few of them moved as the share allows.

Reserving is fallocate(2) where the file system has it, written zeros where it has not. It is not posix_fallocate(3), which
writes into every block where it finds no fallocate(2), and tells nobody.
"""

from __future__ import annotations

import errno
import os

from ..store.directory import write_all

_CHUNK = 4 << 20  # bytes that pass through this process at a time
_SERVER_CHUNK = 64 << 20  # bytes that the kernel or the server is asked to copy at a time
_GRAIN = 64 << 10  # bytes: runs of zeros this long are left out of what is written
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_MISSING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# What copy_file_range(2) says where it cannot work between these two files, on any kernel and file system so far.
_NO_SERVER_COPY = (*_MISSING, errno.EXDEV, errno.EBADF, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.ENOTTY, errno.EIO)


def fallocate(fd: int, size: int) -> bool:
    """Reserve ``size`` bytes; false where the file system cannot. :raises OSError: it can, and it failed (ENOSPC)."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate  # some C libraries have one name for both
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, 0, 0, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in _MISSING:
        return False
    raise OSError(number, os.strerror(number))


def can_fallocate(fd: int) -> bool:
    """Whether the file system of an empty file has fallocate(2); the file is empty again afterwards."""
    try:
        return fallocate(fd, 1)
    finally:
        os.ftruncate(fd, 0)


def write_zeros(fd: int, size: int) -> None:
    zeros = memoryview(bytes(_CHUNK))
    for offset in range(0, size, _CHUNK):
        write_all(fd, zeros[: size - offset], offset)


def copy_data(source: int, target: int) -> None:
    """Make an empty file the same as another, byte by byte, whatever these bytes mean. Holes stay holes.

    The two share their blocks where the file system can (reflink). Else the kernel, or the share's server, copies what is
    data; and where they cannot, this process does. The caller makes it durable.
    """
    if _reflink(source, target):
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset, by_kernel = 0, True
    while offset < size:
        offset, end = _next_data(source, offset, size)
        if by_kernel:
            offset = _copy_by_kernel(source, target, offset, end)
            by_kernel = offset == end
        if not _copy_by_hand(source, target, offset, end):
            return
        offset = end


def _reflink(source: int, target: int) -> bool:
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # whatever it is: a copy meets it too and says so, unless it was about reflinks alone
    return True


def _copy_by_kernel(source: int, target: int, offset: int, end: int) -> int:
    """Copy without moving the bytes through this process; returns the offset up to which it worked.

    :raises OSError: it is not about this way to copy (ENOSPC, a lost share).
    """
    while offset < end:
        try:
            done = os.copy_file_range(source, target, min(_SERVER_CHUNK, end - offset), offset, offset)
        except AttributeError:  # a C library without it
            break
        except OSError as error:
            if error.errno not in _NO_SERVER_COPY:
                raise
            break
        if not done:  # some kernels copy nothing and call it a success
            break
        offset += done
    return offset


def _copy_by_hand(source: int, target: int, offset: int, end: int) -> bool:
    """Read and write, without the zeros: where holes cannot be told from data, they must not be filled. False at the end of
    the source."""
    while offset < end:
        block = os.pread(source, min(_CHUNK, end - offset), offset)
        if not block:
            return False
        for first, last in _written_runs(block):
            write_all(target, memoryview(block)[first:last], offset + first)
        offset += len(block)
    return True


def _written_runs(block: bytes) -> list[tuple[int, int]]:
    """Parts of a block that are not zeros, in grains, adjacent ones as one."""
    runs: list[tuple[int, int]] = []
    zeros = bytes(_GRAIN)
    for first in range(0, len(block), _GRAIN):
        grain = block[first : first + _GRAIN]
        if grain == zeros[: len(grain)]:
            continue
        begin = runs.pop()[0] if runs and runs[-1][1] == first else first
        runs.append((begin, first + len(grain)))
    return runs


def _next_data(fd: int, offset: int, size: int) -> tuple[int, int]:
    """Where the next data begins and ends; (``size``, ``size``) where there is none."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno not in _MISSING:
            raise
        return offset, size
