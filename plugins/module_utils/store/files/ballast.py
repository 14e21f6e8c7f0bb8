# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Some room kept on each share for what frees room: on a full share not even the record of a deletion could be written.

``.remotefs/ballast`` holds a few files with data in them. Who finds the share full takes one and writes over it in place, which
needs no new block and leaves no moment in which a guest could take what was given back. The pieces are no state: any of them
may be missing, cut short or taken by another task at any time, and what is missing is made again when there is room.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Iterator

from ...errors import StorageError, from_os_error
from .directory import write_all

if TYPE_CHECKING:
    from .directory import Directory, ShareDirectory

FOLDER = "ballast"
FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALL, _LARGE = 8 << 10, 208 << 10  # bytes: a record; an empty overlay of up to 1 TiB
_PIECES = tuple(f"{size}-{number}" for size, many in ((_SMALL, 8), (_LARGE, 2)) for number in range(many))
_MARGIN = 4  # so many times a piece's size must be free before it is made
_BLOCK = 512  # st_blocks counts these
_OPENING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def keep(directory: ShareDirectory) -> None:
    """Make the pieces that are missing, as far as there is room. Never fails, and syncs nothing."""
    try:
        folder = directory.private(FOLDER) or directory.private(FOLDER, create=True)
        there = set(folder.names()) if folder is not None else set()
        missing = [name for name in _PIECES if name not in there]
        if folder is None or not missing:
            return
        room = os.fstatvfs(folder.fd)
        free = room.f_bavail * room.f_frsize
        for name in missing:
            size = _size_of(name)
            if free >= _MARGIN * size:
                _make(directory, folder, name, size)
                free -= size
    except (OSError, StorageError):
        pass  # a full share, or one that may not be written: whoever needs it will say so


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
    """A piece of at least ``size`` bytes as a temporary file of ``volume``: (descriptor, temporary name). Its content is to be
    overwritten in place. None where there is no such piece.

    :raises LockTimeout: the task may not change the volume any more. :raises StorageError: the share is ill, and not only full.
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
            raise from_os_error(error, directory.root.subject(temporary)) from error
        if _is_whole(os.fstat(fd), size):
            return fd, temporary
        os.close(fd)
        tmp.unlink(temporary)
    return None


def places(directory: ShareDirectory, volume: str, size: int) -> Iterator[tuple[int, str]]:
    """Temporary files of ``volume`` for ``size`` bytes on a full share, to be tried one after the other: a piece to be written over in
    place, and new files where that was refused, because the file system copies on write. For those pieces are given back.

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
    """Give a piece back to the file system; false where there was none."""
    for folder, name in _whole_pieces(directory, 0):
        if folder.unlink(name):
            return True
    return False


def _whole_pieces(directory: ShareDirectory, size: int) -> Iterator[tuple[Directory, str]]:
    """Pieces of at least that size, small ones first; what is not whole is removed, so that it is made again."""
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
    """Write over a piece in place and cut off the rest."""
    write_all(fd, data)
    if os.fstat(fd).st_size != len(data):
        os.ftruncate(fd, len(data))


def add_in_place(directory: Directory, name: str, data: bytes, is_list: bool) -> int:
    """Change an existing small file within the blocks that it has, where nothing else is possible: append a line to a list of
    which the last whole line counts, or write over the file in one go. Returns its descriptor, to be synced and closed; -1
    where there is no room in it."""
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
            os.pwrite(fd, data.ljust(length), 0)  # blanks behind JSON mean nothing; one sector is written whole or not at all
            os.ftruncate(fd, len(data))
    except OSError:
        os.close(fd)
        raise
    return fd
