# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries out what the file system of a share can do, with two small files that go again."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager
from typing import Callable, Iterator

from ... import errors
from ...store.files import ballast
from ...store.files.directory import Directory, ShareDirectory, write_all
from ...store.metadata import share_abilities as abilities
from . import allocate, copying

_SIZE = 64 << 10  # bytes of a file; its first half is a hole
_HALF = _SIZE // 2
_ACLS = ("system.posix_acl_access", "system.nfs4_acl")
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EBADF, errno.ETXTBSY)


def try_out(directory: ShareDirectory, volume: str) -> None:
    """Find out what the share can do, and keep it there. What cannot be found out now is tried again by a later task.

    :param volume: the task has its lock. If it is killed, the next task on that volume removes these files, as any of its own.
    :raises OSError, StorageError: the share fails, and is not only full.
    """
    folder = directory.make_private("tmp")
    try:
        with _file(directory, volume) as (name, first), _file(directory, volume) as (_other, second):
            write_all(first, b"x" * _HALF, _HALF)
            found = _trials(folder, name, first, second)
    except (errors.NoSpace, OSError) as error:
        if isinstance(error, OSError) and error.errno not in ballast.FULL:
            raise
        return
    abilities.write(directory, volume, found)


@contextmanager
def _file(directory: ShareDirectory, volume: str) -> Iterator[tuple[str, int]]:
    """A context with a temporary file of the volume: (name, descriptor)."""
    fd, name = directory.create_temporary(volume)
    try:
        yield name, fd
    finally:
        os.close(fd)
        directory.discard_temporary(name)


def _trials(folder: Directory, name: str, first: int, second: int) -> dict[str, bool | None]:
    """The ability → whether the share has it, None where the trial failed for another reason."""
    return {
        abilities.REFLINK: _answer(lambda: _shares_blocks(first, second)),
        abilities.HOLES: _answer(lambda: os.lseek(first, 0, os.SEEK_DATA) > 0),
        abilities.CASE_SENSITIVE: None if name == name.swapcase() else _answer(lambda: folder.status(name.swapcase()) is None),
        abilities.MODES: _answer(lambda: _keeps_mode(first)),
        abilities.ACL: _answer(lambda: _has_acls(first)),
        abilities.FALLOCATE: _answer(lambda: allocate.can_fallocate(_emptied(second))),
    }


def _answer(trial: Callable[[], bool]) -> bool | None:
    try:
        return trial()
    except OSError as error:
        return False if error.errno in _CANNOT else None


def _shares_blocks(source: int, target: int) -> bool:
    fcntl.ioctl(target, copying.FICLONE, source)
    return True


def _keeps_mode(fd: int) -> bool:
    os.fchmod(fd, 0o640)
    changed = stat.S_IMODE(os.fstat(fd).st_mode)
    os.fchmod(fd, 0o600)
    return changed == 0o640 and stat.S_IMODE(os.fstat(fd).st_mode) == 0o600


def _has_acls(fd: int) -> bool:
    for name in _ACLS:
        try:
            os.getxattr(fd, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return True
            if error.errno not in _CANNOT:
                raise
        else:
            return True
    return False


def _emptied(fd: int) -> int:
    os.ftruncate(fd, 0)
    return fd
