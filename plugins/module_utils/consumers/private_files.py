# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories of this host in which nobody but the user of the task writes, and small files there."""

from __future__ import annotations

import os
import stat
from typing import Callable, TypeVar

from .. import errors

_LONGEST = 1 << 20  # bytes of a record
Kept = TypeVar("Kept")


def content(path: str) -> str:
    """The text of a small file. Nothing else is opened: a pipe would block, and a device has no end. :raises OSError: it is no file, or too large."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError("it is no file")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        data = stream.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise OSError("it is too large for a record")
    return data.decode("utf-8")


def require_own(path: str) -> None:
    """:raises ToolFailed: others could write there."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        problem = "others than the user of this task can write there, or it is no directory"
        raise errors.ToolFailed(f"directory {path}", problem, "give another run_dir, or let it belong to that user alone (mode 0700)")


def make(path: str, folder: str) -> None:
    """Make a directory, and a folder in it, for this user alone, unless they are there. :raises ToolFailed: one is somebody else's, or cannot be made."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for one in (path, folder):
            try:
                os.mkdir(one, 0o700)
            except FileExistsError:
                pass
            require_own(one)
    except OSError as error:
        raise failed(error, path) from error


def read_record(path: str, folder: str, file: str, parse: Callable[[str, str], Kept], remedy: str) -> Kept | None:
    """What ``parse`` makes of the text of a record and of where it is; None where there is no such record.

    :param path: the directory that has the ``folder`` with the ``file``. :raises ToolFailed: it cannot be read, or one of the two is somebody else's.
    """
    require_own(path)
    try:
        require_own(folder)
        return parse(content(file), file)
    except FileNotFoundError:  # perhaps since this very moment: what it is about can end by itself
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ToolFailed(file, f"it cannot be read ({error})", remedy) from error


def failed(error: OSError, path: str) -> errors.ToolFailed:
    """An error of the system about such a directory, for users."""
    return errors.ToolFailed(f"directory {path} of this host", error.strerror or str(error), "mend that, or give another run_dir, and run the task again")
