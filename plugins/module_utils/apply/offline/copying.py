# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of opened files and of parts of them, with as few bytes moved as the share allows, holes as holes."""

from __future__ import annotations

import errno
import os

from ...store.files.directory import write_all
from ...store.files.holes import next_data
from .allocate import NOT_SUPPORTED, make_zeros

_CHUNK = 4 << 20  # bytes that pass through this process at a time
_SERVER_CHUNK = 64 << 20  # bytes that the kernel or the server is asked to copy at a time
_GRAIN = 64 << 10  # bytes: runs of zeros this long are left out of what is written
_FICLONE = 0x40049409  # ioctl_ficlone(2)
# What copy_file_range(2) says where it cannot work between these two files, on any kernel and file system so far.
_NO_SERVER_COPY = (*NOT_SUPPORTED, errno.EXDEV, errno.EBADF, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.ENOTTY, errno.EIO)


def copy_data(source: int, target: int) -> None:
    """Make an empty file the same as another, byte by byte, whatever these bytes mean. Holes stay holes.

    The two share their blocks where the file system can (reflink). Else the kernel, or the share's server, copies what is
    data; and where they cannot, this process does. The caller makes it durable.
    """
    if _reflink(source, target):
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    Copier(source, target, by_kernel=reports_holes(target)).copy(0, 0, size)


def reports_holes(fd: int) -> bool:
    """Whether the file system tells holes from data, asked of a file that is one hole. Where it does not, only those who look at
    all data can leave zeros out."""
    size = os.fstat(fd).st_size
    return next_data(fd, 0, size) == (size, size)


class Copier:
    """Copies parts of one opened file to another, holes as holes, with as few bytes through this process as possible."""

    def __init__(self, source: int, target: int, by_kernel: bool = True) -> None:
        self._source = source
        self._target = target
        self._by_kernel = by_kernel

    def copy(self, start: int, to: int, length: int, fresh: bool = True) -> None:
        """Copy ``length`` bytes from offset ``start`` to offset ``to``; what lies behind the end of the source reads as zeros.

        :param fresh: the target has nothing there yet, and reads as zeros.
        :raises OSError: ENOSPC, a lost share.
        """
        offset, stop = start, start + length
        while offset < stop:
            data, end = next_data(self._source, offset, stop)
            if data > offset and not fresh:
                make_zeros(self._target, to + offset - start, data - offset)
            done = self._copy_data(data, to + data - start, end - data, fresh)
            if done < end - data and not fresh:
                make_zeros(self._target, to + data + done - start, end - data - done)
            offset = end

    def _copy_data(self, start: int, to: int, length: int, fresh: bool) -> int:
        done = 0
        if self._by_kernel:
            done = _copy_by_kernel(self._source, self._target, start, to, length)
            self._by_kernel = done == length
        return done + _copy_by_hand(self._source, self._target, start + done, to + done, length - done, fresh)


def _reflink(source: int, target: int) -> bool:
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # whatever it is: a copy meets it too and says so, unless it was about reflinks alone
    return True


def _copy_by_kernel(source: int, target: int, start: int, to: int, length: int) -> int:
    """Copy without moving the bytes through this process; returns how many it did.

    :raises OSError: it is not about this way to copy (ENOSPC, a lost share).
    """
    done = 0
    while done < length:
        try:
            some = os.copy_file_range(source, target, min(_SERVER_CHUNK, length - done), start + done, to + done)
        except AttributeError:  # a C library without it
            break
        except OSError as error:
            if error.errno not in _NO_SERVER_COPY:
                raise
            break
        if not some:  # the end of the source, or a kernel that copies nothing and calls it a success
            break
        done += some
    return done


def _copy_by_hand(source: int, target: int, start: int, to: int, length: int, fresh: bool) -> int:
    """Read and write; returns how many bytes there were. Where the target reads as zeros, these are left out: a file system
    that cannot tell holes from data must not fill them."""
    done = 0
    while done < length:
        block = os.pread(source, min(_CHUNK, length - done), start + done)
        if not block:
            break
        for first, last in _written_runs(block) if fresh else [(0, len(block))]:
            write_all(target, memoryview(block)[first:last], to + done + first)
        done += len(block)
    return done


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
