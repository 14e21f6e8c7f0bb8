# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that are files, told without taking one: they stay on a share when the host of their task dies. See :mod:`.lock`."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from ... import errors, model
from ..files.directory import Directory, ShareDirectory
from .lock import parse_owner

ENDING = ".lease"


class LockFile(NamedTuple):
    """One such lock. ``name``: of the volume, or of what else is locked. ``host``, ``task``: of its holder, as the file has them; None if it names nobody.
    ``since``: UTC, ISO 8601; of a file that names nobody, when it was written (None for a time
    that cannot be). ``dead``: whether this host can prove that the holder is gone."""

    name: str
    host: str | None
    task: str | None
    since: str | None
    dead: bool


def find(directory: ShareDirectory) -> list[LockFile]:
    """All locks of a share that are files, by name. Each may belong to a task that works now.

    :raises StorageError, OSError: the folder of the locks cannot be read.
    """
    folder = directory.private("locks")
    names = sorted(name for name in folder.names() if name.endswith(ENDING)) if folder is not None else []
    found = [_read(folder, name) for name in names] if folder is not None else []
    return [one for one in found if one is not None]


def _read(folder: Directory, name: str) -> LockFile | None:
    """None if it is gone by now."""
    locked = name[: -len(ENDING)]
    data = b""
    with suppress(errors.StorageError):  # somebody else has put it there; it is still in the way of tasks
        told = folder.read_small(name)
        if told is None:
            return None
        data = told
    owner = parse_owner(data)
    if owner is not None:
        return LockFile(locked, owner.host, owner.task, owner.since, owner.is_dead())
    with suppress(errors.StorageError):
        status = folder.status(name)
        return LockFile(locked, None, None, model.time_text(status.st_mtime), False) if status is not None else None
    return LockFile(locked, None, None, None, False)
