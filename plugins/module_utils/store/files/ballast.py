# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserved room on each share, for tasks that free room. Without it a full share could not even store the record of a deletion.

``.remotefs/ballast`` has a few files with data, the pieces. A task that finds the share full takes one and overwrites it in place.
That needs no new block, and there is no moment in which a guest could take freed blocks. The pieces are no state: any of them may
be missing, cut short or taken by another task at any time. Missing ones are made again when there is room.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Iterator

from ... import errors
from .directory import write_all

if TYPE_CHECKING:
    from .directory import Directory, ShareDirectory

FOLDER = "ballast"
FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALL, _LARGE = 8 << 10, 208 << 10  # bytes, for a record and for an empty overlay of up to 1 TiB
_PIECES = tuple(f"{size}-{number}" for size, many in ((_SMALL, 8), (_LARGE, 2)) for number in range(many))
_MARGIN = 4  # a piece is made only if this many times its size is free
_BLOCK = 512  # st_blocks counts these
_OPENING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def keep(directory: ShareDirectory) -> frozenset[str]:
    """Make missing pieces, as far as there is room. Never fails, and syncs nothing. Returns the names that were in the folder before."""
    there: frozenset[str] = frozenset()
    try:
        folder = directory.private(FOLDER) or directory.private(FOLDER, create=True)
        there = frozenset(folder.names()) if folder is not None else there
        missing = [name for name in _PIECES if name not in there]
        if folder is None or not missing:
            return there
        room = os.fstatvfs(folder.fd)
        free = room.f_bavail * room.f_frsize
        for name in missing:
            size = _size_of(name)
            if free >= _MARGIN * size:
                _make(directory, folder, name, size)
                free -= size
    except (OSError, errors.StorageError):
        pass  # the share is full or may not be written: the next change reports that
    return there


def _make(directory: ShareDirectory, folder: Directory, name: str, size: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660, dir_fd=folder.fd)
    try:
        if os.write(fd, os.urandom(size)) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        directory.keep_as_private(fd, folder)
    except OSError:
        os.unlink(name, dir_fd=folder.fd)
        raise
    finally:
        os.close(fd)


def lend(directory: ShareDirectory, volume: str, size: int) -> tuple[int, str] | None:
    """Rename a piece of at least ``size`` bytes to a temporary file of ``volume``: (descriptor, temporary name). The caller overwrites
    it in place. None if there is no such piece.

    :raises LockTimeout: the task may not change the volume any more. :raises StorageError: the share fails, and is not only full.
    """
    for folder, name in _whole_pieces(directory, size):
        temporary = directory.temporary_name(volume)
        tmp = directory.make_private("tmp")
        try:
            os.rename(name, temporary, src_dir_fd=folder.fd, dst_dir_fd=tmp.fd)
            fd = os.open(temporary, _OPENING, dir_fd=tmp.fd)
        except FileNotFoundError:
            continue  # another task took it
        except OSError as error:
            raise errors.from_os_error(error, directory.root.subject(temporary)) from error
        if _is_whole(os.fstat(fd), size):
            return fd, temporary
        os.close(fd)
        tmp.unlink(temporary)
    return None


def places(directory: ShareDirectory, volume: str, size: int) -> Iterator[tuple[int, str]]:
    """Yield temporary files of ``volume``, as (descriptor, temporary name), to be tried in turn for ``size`` bytes on a full share.

    The first is a piece to be overwritten in place. A file system that copies on write may refuse that. So new files follow, and
    before each further one a piece is removed to make room for it.

    :raises StorageError: as :func:`lend` and :meth:`ShareDirectory.create_temporary`.
    """
    lent = lend(directory, volume, size)
    if lent is None:
        return
    yield lent
    yield directory.create_temporary(volume)
    while release(directory):
        yield directory.create_temporary(volume)


def release(directory: ShareDirectory) -> bool:
    """Remove a piece, to free its blocks. Returns False if there was none."""
    for folder, name in _whole_pieces(directory, 0):
        if folder.unlink(name):
            return True
    return False


def _whole_pieces(directory: ShareDirectory, size: int) -> Iterator[tuple[Directory, str]]:
    """Pieces of at least ``size`` bytes, small ones first. A damaged one is removed, so that it is made again."""
    folder = directory.private(FOLDER)
    names = folder.names() if folder is not None else []
    for name in sorted(set(names) & set(_PIECES), key=lambda name: (_size_of(name), name)):
        if folder is None or _size_of(name) < size:
            continue
        status = folder.status(name)
        if status is not None and _is_whole(status, _size_of(name)):
            yield folder, name
        elif status is not None:
            folder.unlink(name)


def _is_whole(status: os.stat_result, size: int) -> bool:
    whole = status.st_size >= size and status.st_blocks * _BLOCK >= size
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and whole


def _size_of(name: str) -> int:
    return int(name.partition("-")[0])


def overwrite(fd: int, data: bytes) -> None:
    """Overwrite a piece with ``data`` in place, and cut off the rest."""
    write_all(fd, data)
    if os.fstat(fd).st_size != len(data):
        os.ftruncate(fd, len(data))


def add_in_place(directory: Directory, name: str, data: bytes, is_list: bool) -> int:
    """Change a small file within the blocks that it has. Only for when nothing else is possible.

    :param is_list: append ``data`` as a line; of such a file the last whole line counts. Otherwise overwrite the file in one write.
    :returns: the descriptor, which the caller syncs and closes; -1 if the file has no room."""
    fd = directory.open(name, write=True)
    status = os.fstat(fd)
    length = status.st_size
    needed = length + 1 + len(data) if is_list else max(length, len(data))
    if needed > status.st_blocks * _BLOCK or (not is_list and needed > _BLOCK):
        os.close(fd)
        return -1
    try:
        if is_list:
            os.pwrite(fd, b"\n" + data, length)
        else:
            os.pwrite(fd, data.ljust(length), 0)  # spaces after JSON mean nothing; one sector is written whole or not at all
            os.ftruncate(fd, len(data))
    except OSError:
        os.close(fd)
        raise
    return fd
