# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads of files that another host may replace or remove at that moment, because no lock of ours covers them.

GlusterFS and NFSv3 take the file away from those who have it open. A read, an fstat or even a close of it then fails with ENOENT or
ESTALE, although the share is well and the name leads to the next file. So the file is opened and read again.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Callable, TypeVar

from ... import errors

if TYPE_CHECKING:
    from .directory import Directory

Found = TypeVar("Found")
_TAKEN_AWAY = (errno.ENOENT, errno.ESTALE)
_PAUSES = (0.0, 0.01, 0.05, 0.2)  # seconds before each further attempt; a server that is gone is told soon


def read_again_if_replaced(read: Callable[[], Found]) -> Found:
    """The result of ``read()``, which opens a file by name and reads it. Made again if the file was taken away in between.

    :param read: must answer for itself if nothing has the name: ENOENT of the open is no sign that a file was replaced.
    :raises OSError, StorageError: of the last attempt, or any other error at once.
    """
    for pause in _PAUSES:
        try:
            return read()
        except (OSError, errors.StorageError) as error:
            if _number(error) not in _TAKEN_AWAY:
                raise
        time.sleep(pause)
    return read()


def read_file(directory: Directory, name: str, look: Callable[[int, os.stat_result], Found]) -> Found | None:
    """``look(descriptor, its fstat)`` of a regular file, opened as :meth:`Directory.examine` does. None if nothing has the name.

    :raises UnsafeImage: it is no regular file. :raises OSError, StorageError: it cannot be opened or read.
    """
    return read_again_if_replaced(lambda: _read_once(directory, name, look))


def _read_once(directory: Directory, name: str, look: Callable[[int, os.stat_result], Found]) -> Found | None:
    try:
        fd, status = directory.examine(name)
    except FileNotFoundError:
        return None
    try:
        return look(fd, status)
    finally:
        os.close(fd)


def _number(error: OSError | errors.StorageError) -> int | None:
    cause = error if isinstance(error, OSError) else error.__cause__
    return cause.errno if isinstance(cause, OSError) else None
