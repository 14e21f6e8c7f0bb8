# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks on a share of points that a host has opened, ``.remotefs/opened/NAME.json``: only where nobody sees the locks of others.

A mark names the files of the point and for how long they are opened, from the time of its last write on. It is written under the lock of the volume,
which whoever changes the volume needs, too. A mark that nobody has removed counts no more some time after its end.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

from ... import errors, model
from ..files import replaced, small_files
from ..files.directory import SMALL_FILE

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

_FOLDER, _SUFFIX = "opened", ".json"
_VERSION = 1
_GRACE = 15 * 60  # seconds by which the clocks of hosts and of the server may differ
_LONGEST = 1 << 40  # seconds


class Mark(NamedTuple):
    """``host`` shows point ``label``, which rests on ``files``, until ``ends`` (seconds since 1970)."""

    label: str
    host: str
    files: tuple[str, ...]
    ends: float


def new_name() -> str:
    """A name that no other mark has."""
    return os.urandom(8).hex()


def write(directory: ShareDirectory, volume: str, name: str, label: str, files: Sequence[str], seconds: int) -> None:
    """Write a mark, durable, and remove those that count no more. The caller has the lock of the volume. :raises StorageError: it cannot be written."""
    folder = directory.make_private(_FOLDER)
    content = {"version": _VERSION, "label": label, "host": socket.gethostname(), "files": list(files), "seconds": seconds}
    directory.write_record(volume, folder, name + _SUFFIX, json.dumps(content, sort_keys=True).encode())
    for other in small_files.names(directory, _FOLDER, _SUFFIX):
        found = _read(directory, other)
        if found is not None and time.time() > found.ends + _GRACE:
            folder.unlink(other + _SUFFIX)


def remove(directory: ShareDirectory, name: str) -> None:
    """Remove a mark, if it is there. :raises OSError, StorageError: it cannot be removed."""
    folder = directory.private(_FOLDER)
    if folder is not None:
        folder.remove(name + _SUFFIX)


def require_none(directory: ShareDirectory, file: str) -> None:
    """:raises InUse: a host has opened a point that rests on the file, or a mark cannot be read."""
    for name in small_files.names(directory, _FOLDER, _SUFFIX):
        found, place = _read(directory, name), f".remotefs/{_FOLDER}/{name}{_SUFFIX}"
        subject = f"image {file} on {directory.share.label}"
        if found is None:
            raise errors.InUse(subject, f"{place} cannot be read, and it may be of a host that has it opened", f"find out who changed it, and remove {place}")
        if file in found.files and time.time() <= found.ends + _GRACE:
            problem = f"{found.host} has {found.label} opened until {model.time_text(found.ends)}"
            raise errors.InUse(subject, problem, f"close it there with remotefs_access; if that host is gone, remove {place}")


def _read(directory: ShareDirectory, name: str) -> Mark | None:
    """None: it is no mark. One that has gone meanwhile names no files."""
    folder = directory.private(_FOLDER)
    try:
        found = None if folder is None else replaced.read_file(folder, name + _SUFFIX, lambda fd, _status: (os.read(fd, SMALL_FILE), os.fstat(fd).st_mtime))
    except errors.UnsafeImage:  # somebody has put something else there: that keeps changes away, but nobody from opening a point
        return None
    if found is None:
        return Mark("", "", (), 0.0)
    try:
        told = json.loads(found[0])
        _require(isinstance(told, dict) and told["version"] == _VERSION)
        files, seconds = told["files"], told["seconds"]
        _require(isinstance(files, list) and all(isinstance(one, str) for one in files))
        _require(isinstance(seconds, int) and not isinstance(seconds, bool) and 0 <= seconds <= _LONGEST)
        return Mark(_text(told["label"]), _text(told["host"]), tuple(files), found[1] + seconds)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(value: Any) -> str:
    _require(isinstance(value, str))
    return str(value)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("no mark")
