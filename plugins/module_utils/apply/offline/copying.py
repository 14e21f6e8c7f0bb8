# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies opened files, and parts of them. Moves as few bytes as the share allows. Holes stay holes."""

from __future__ import annotations

import errno
import os

from ...pace import UNLIMITED, Pace
from ...store import qcow2
from ...store.files import directory, holes
from . import allocate

_CHUNK = 4 << 20  # bytes that pass through this process at a time
_SERVER_CHUNK = 64 << 20  # bytes that the kernel or the server is asked to copy at a time
_GRAIN = 64 << 10  # bytes: zeros are not written where a piece of this size has nothing else
FICLONE = 0x40049409  # ioctl_ficlone(2)
# The errors of copy_file_range(2) where it cannot copy between two files, on all kernels and file systems seen so far.
_NO_SERVER_COPY = (*allocate.NOT_SUPPORTED, errno.EXDEV, errno.EBADF, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.ENOTTY, errno.EIO)


def copy_data(source: int, target: int, pace: Pace = UNLIMITED) -> None:
    """Copy a file byte by byte into an empty one, whatever the bytes mean. Holes stay holes.

    Where the file system can, both files share their blocks (reflink). Otherwise the kernel, or the share's server, copies the data.
    Where neither can, this process does. The caller makes the copy durable.

    :raises OutOfTime: ``pace`` leaves no more time.
    """
    if _reflink(source, target):
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    Copier(source, target, reports_holes(target), pace).copy(0, 0, size)


def stands_alone(fd: int) -> bool:
    """Whether a copy of this qcow2 file alone is a valid image: no backing file, no internal snapshots, and not marked as dirty.

    :raises Qcow2Error: the file was cut short.
    """
    header = qcow2.read_header(fd)
    qcow2.require_whole(fd)
    return header.backing_file is None and not header.internal_snapshots and not header.dirty


def reports_holes(fd: int) -> bool:
    """Whether the file system reports holes. ``fd`` is a file that is one hole. Without such reports zeros can only be left out by
    reading all data."""
    size = os.fstat(fd).st_size
    return holes.next_data(fd, 0, size) == (size, size)


class Copier:
    """Copies parts of one opened file to another. Holes stay holes. As few bytes as possible pass through this process."""

    def __init__(self, source: int, target: int, by_kernel: bool = True, pace: Pace = UNLIMITED) -> None:
        self._source = source
        self._target = target
        self._by_kernel = by_kernel
        self._pace = pace

    def copy(self, start: int, to: int, length: int, fresh: bool = True) -> None:
        """Copy ``length`` bytes from offset ``start`` to offset ``to``. Beyond the end of the source there are zeros.

        :param fresh: this part of the target is still empty and reads as zeros.
        :raises OSError: ENOSPC, or the share is lost. :raises OutOfTime: the pace leaves no more time.
        """
        offset, stop = start, start + length
        while offset < stop:
            data, end = holes.next_data(self._source, offset, stop)
            if data > offset and not fresh:
                allocate.make_zeros(self._target, to + offset - start, data - offset)
            done = self._copy_data(data, to + data - start, end - data, fresh)
            if done < end - data and not fresh:
                allocate.make_zeros(self._target, to + data + done - start, end - data - done)
            offset = end

    def _copy_data(self, start: int, to: int, length: int, fresh: bool) -> int:
        """Copy data. Returns how many bytes there were before the end of the source."""
        done = 0
        if self._by_kernel:
            done = self._copy_by_kernel(start, to, length)
            self._by_kernel = done == length
        return done + self._copy_by_hand(start + done, to + done, length - done, fresh)

    def _copy_by_kernel(self, start: int, to: int, length: int) -> int:
        """Copy without moving the bytes through this process. Returns how many bytes were copied.

        :raises OSError: the error does not concern this way of copying (ENOSPC, a lost share).
        """
        done = 0
        while done < length:
            try:
                copied = os.copy_file_range(self._source, self._target, self._pace.piece(min(_SERVER_CHUNK, length - done)), start + done, to + done)
            except AttributeError:  # the C library does not have it
                break
            except OSError as error:
                if error.errno not in _NO_SERVER_COPY:
                    raise
                break
            if not copied:  # the end of the source, or a kernel that copies nothing and reports success
                break
            done += copied
            self._pace.moved(copied)
        return done

    def _copy_by_hand(self, start: int, to: int, length: int, fresh: bool) -> int:
        """Copy by reading and writing. Returns how many bytes there were before the end of the source.

        Where the target reads as zeros, zeros are not written. So holes stay holes on a file system that does not report them.
        """
        done = 0
        while done < length:
            block = os.pread(self._source, self._pace.piece(min(_CHUNK, length - done)), start + done)
            if not block:
                break
            for first, last in _written_runs(block) if fresh else [(0, len(block))]:
                directory.write_all(self._target, memoryview(block)[first:last], to + done + first)
            done += len(block)
            self._pace.moved(len(block))
        return done


def _reflink(source: int, target: int) -> bool:
    """Let ``target`` share all blocks of ``source``. False where that is not possible."""
    import fcntl

    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False  # for any reason: a copy reports it too, unless it concerns only reflinks
    return True


def _written_runs(block: bytes) -> list[tuple[int, int]]:
    """(first, last) of the parts of a block that are not zeros, in units of :data:`_GRAIN`. Adjacent parts are joined."""
    runs: list[tuple[int, int]] = []
    zeros = bytes(_GRAIN)
    for first in range(0, len(block), _GRAIN):
        grain = block[first : first + _GRAIN]
        if grain == zeros[: len(grain)]:
            continue
        begin = runs.pop()[0] if runs and runs[-1][1] == first else first
        runs.append((begin, first + len(grain)))
    return runs
