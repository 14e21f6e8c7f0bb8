# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories of this host in which nobody but the user of the task writes, and small files there."""

from __future__ import annotations

import os
import stat

from ..errors import ToolFailed

_LONGEST = 1 << 20  # bytes of a record


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
        raise ToolFailed(f"directory {path}", problem, "give another run_dir, or let it belong to that user alone (mode 0700)")
