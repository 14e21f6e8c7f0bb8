# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files with several names (hard links). What is written to one is written to whatever the other names stand for."""

from __future__ import annotations

from typing import Iterable

from ... import errors
from .directory import SEVERAL_NAMES, ShareDirectory


def require_one_name(directory: ShareDirectory, volume: str, files: Iterable[str]) -> None:
    """Check that files of a volume may be written, those of them that exist.

    The name of a new file in ``.remotefs/tmp`` does not count. A task that was killed right after it gave the file its final name has left
    it, and it goes before anything is written.

    :raises UnsafeImage: one is a link or a device, or has another name.
    """
    for file in files:
        status = directory.root.status(file)
        if status is not None and status.st_nlink > 1 and status.st_nlink > 1 + _left(directory, volume, status.st_ino):
            raise errors.UnsafeImage(directory.root.subject(file), *SEVERAL_NAMES)


def _left(directory: ShareDirectory, volume: str, inode: int) -> int:
    """How many names of this inode a killed task has left."""
    folder = directory.private("tmp")
    if folder is None:
        return 0
    statuses = [folder.status(name) for name in directory.leftovers(volume)]
    return sum(status is not None and status.st_ino == inode for status in statuses)
