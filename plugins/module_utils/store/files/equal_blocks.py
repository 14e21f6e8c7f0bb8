# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks that are equal in several files, which a file system can store once.

The kernel compares both ranges while nobody can write to them, and lets the files share them only if they are equal: ioctl_fideduperange(2).
So no content changes, whoever has the files open. A kill in the middle leaves some blocks shared and others not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from typing import Callable, Iterator, NamedTuple, Sequence

from ... import model
from . import holes

_FIDEDUPERANGE, _FS_IOC_FIEMAP = 0xC0189436, 0xC020660B
_RANGE = struct.Struct("=QQHHI")  # of struct file_dedupe_range: src_offset, src_length, dest_count and two reserved fields
_TARGET = struct.Struct("=qQQiI")  # struct file_dedupe_range_info: dest_fd, dest_offset, bytes_deduped, status and a reserved field
_MAP = struct.Struct("=QQIIII")  # struct fiemap: start, length, flags, mapped_extents, extent_count and a reserved field
_EXTENT = struct.Struct("=QQQQQIIII")  # struct fiemap_extent: logical, physical, length, two reserved fields, flags and three more
_SYNC = 1  # FIEMAP_FLAG_SYNC: what is not on the disk yet gets its place first
_EXTENTS = 64  # that one call tells
_NOT_THERE = (errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)
_BLOCK = 128 << 10  # bytes: smaller blocks are shared more often, and make files of many pieces
_MOST_BLOCKS = 1 << 19  # of which the digests are kept: about 100 MiB
_AT_ONCE = 16 << 20  # bytes that one call shares: several kernels do no more


class NotPossible(Exception):
    """The file system cannot share blocks that are there already."""


class _Run(NamedTuple):
    """Equal bytes of two files, by their descriptors and offsets."""

    source: int
    start: int
    target: int
    to: int
    length: int

    def is_continued_by(self, other: _Run) -> bool:
        """Whether both are one run, and not too long."""
        joined = (self.source, self.start + self.length, self.target, self.to + self.length)
        return joined == other[:4] and self.length + other.length <= _AT_ONCE


def share(files: Sequence[int], has_read: Callable[[int], None], check: bool) -> Iterator[int]:
    """Let opened files share the blocks that are equal. Yields how many bytes they share now and did not before, as it goes on.

    :param files: descriptors, for reading. Who neither is root nor may write to a file cannot let it share anything.
    :param has_read: is told how many bytes were read. :param check: only find out how many bytes it would be, at most.
    :raises NotPossible: the file system cannot do that. :raises OSError: a file cannot be read.
    """
    for run in _joined(_equal(files, has_read)):
        if not _are_shared(run):
            yield run.length if check else _share(run)


def _equal(files: Sequence[int], has_read: Callable[[int], None]) -> Iterator[_Run]:
    """Pairs of blocks with equal digests: each block, and the first one like it."""
    block = _block_size(files)
    first: dict[bytes, tuple[int, int]] = {}
    for fd in files:
        for offset in _blocks(fd, block):
            data = os.pread(fd, block, offset)
            has_read(len(data))
            if len(data) < block:
                break  # the file has become shorter
            digest = hashlib.blake2b(data, digest_size=16).digest()
            source, start = first.setdefault(digest, (fd, offset))
            if (source, start) != (fd, offset):
                yield _Run(source, start, fd, offset, block)


def _block_size(files: Sequence[int]) -> int:
    """Bytes of a block, so that the digests of all blocks find room."""
    total, size = sum(model.allocated(os.fstat(fd)) for fd in files), _BLOCK
    while size * _MOST_BLOCKS < total:
        size *= 2
    return size


def _blocks(fd: int, block: int) -> Iterator[int]:
    """The offsets of whole blocks with data. Where a block ends with data, and where it begins, does not matter: a hole in it is zeros."""
    size, done = os.fstat(fd).st_size, 0
    for start, end in holes.all_data(fd, size):
        offset = max(start - start % block, done)
        while offset < end and offset + block <= size:
            yield offset
            offset += block
        done = offset


def _joined(runs: Iterator[_Run]) -> Iterator[_Run]:
    """Adjacent runs as one."""
    pending = None
    for run in runs:
        if pending is not None and pending.is_continued_by(run):
            pending = pending._replace(length=pending.length + run.length)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def _share(run: _Run) -> int:
    """Bytes that the kernel found equal and let both files share."""
    import fcntl

    done = 0
    while done < run.length:
        given = _RANGE.pack(run.start + done, run.length - done, 1, 0, 0) + _TARGET.pack(run.target, run.to + done, 0, 0, 0)
        try:
            told = fcntl.ioctl(run.source, _FIDEDUPERANGE, given)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise NotPossible(os.strerror(error.errno)) from error
            raise
        _fd, _to, count, status, _reserved = _TARGET.unpack_from(told, _RANGE.size)
        if -status in _NOT_THERE:
            raise NotPossible(os.strerror(-status))
        if status or not count:  # somebody wrote to one of them meanwhile, or this user may not
            break
        done += count
    return done


def _are_shared(run: _Run) -> bool:
    """Whether both are the same blocks of the disk already. False if that cannot be told."""
    one = _places(run.source, run.start, run.length)
    return one is not None and one == _places(run.target, run.to, run.length)


def _places(fd: int, start: int, length: int) -> list[tuple[int, int, int]] | None:
    """Where a range is on the disk, as (offset in the range, place, length) in bytes; what is missing are holes. None if that cannot be told, or if it
    has too many pieces."""
    import fcntl

    told = bytearray(_MAP.pack(start, length, _SYNC, 0, _EXTENTS, 0) + bytes(_EXTENTS * _EXTENT.size))  # more than what ioctl takes unchanged
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, told)
    except OSError:
        return None
    count = _MAP.unpack_from(told)[3]
    found = []
    for number in range(count):
        logical, physical, size, *_rest = _EXTENT.unpack_from(told, _MAP.size + number * _EXTENT.size)
        begin, end = max(logical, start), min(logical + size, start + length)
        found.append((begin - start, physical + begin - logical, end - begin))
    return found if count < _EXTENTS or found[-1][0] + found[-1][2] == length else None
