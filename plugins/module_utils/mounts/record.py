# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of our mounts: the options that each was made with, and the options that the kernel showed right afterwards.

The mount table leaves some options out and changes others. Some are set by the first mount of the server. So it cannot always
show whether a mount is as desired. A mount is as desired if we made it with exactly the desired options and the kernel still shows the same.
What another host needs for the same mount (:mod:`attaching`) is told from the record too.
A reboot clears the records together with the mounts. They only help: without a record, the mount table and fstab decide.
"""
from __future__ import annotations

import json
import os
from typing import NamedTuple

from . import resolve, tables

DIRECTORY = "/run/remotefs/mounts"
_MAX_SIZE = 65536  # bytes of a record


class Record(NamedTuple):
    """How a mount was made."""

    words: tuple[str, ...]  # the options that were desired
    live: tuple[str, ...]  # the options that the kernel showed after mounting
    source: str = ""  # the source as it was spelled; empty if that is unknown


def read(path: str, mount: tables.Mount | None) -> Record | None:
    """The record of ``mount`` at ``path``; None if there is none, or if the record is about another mount."""
    if mount is None:
        return None
    try:
        descriptor = os.open(_file(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            content = json.loads(stream.read(_MAX_SIZE))
        if content["mount"] != _identity(path, mount):
            return None
        return Record(tuple(map(str, content["words"])), tuple(map(str, content["live"])), str(content.get("source") or ""))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: str, mount: tables.Mount | None, words: tuple[str, ...], source: str | None = None) -> None:
    """Write the record of ``mount`` at ``path``; if ``mount`` is None, remove it. A failure to write is not an error.

    :param words: the options that were desired. :param source: the source as the user spelled it.
    """
    from ..errors import StorageError
    from . import host_files  # late: only changes write

    try:
        if mount is None:
            os.unlink(_file(path))
            return
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        content = {"mount": _identity(path, mount), "words": words, "live": mount.options, "source": source}
        host_files.replace_file(_file(path), json.dumps(content).encode("ascii"), mode=0o600, keep=False)
    except (OSError, StorageError):
        pass  # without a record the mount table and fstab decide


def _identity(path: str, mount: tables.Mount) -> list:
    return [path, mount.id, mount.device, mount.source]


def _file(path: str) -> str:
    return os.path.join(DIRECTORY, os.path.basename(resolve.default_path(path, "/")))
