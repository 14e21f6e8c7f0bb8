# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words that each of our mounts was made with, and what the kernel showed of it then.

The mount table leaves options out, alters some, and gives others to whoever mounted first: it cannot always say whether a
mount is as desired. One that we made with exactly these words and that looks as it did then is. The records lie where a
reboot clears them, as it does mounts. They are a help, nothing else: without one the table and fstab decide.
"""
from __future__ import annotations

import json
import os
from typing import NamedTuple

from . import resolve
from .tables import Mount

DIRECTORY = "/run/remotefs/mounts"
_LARGEST = 65536  # bytes of a record


class Record(NamedTuple):
    """How a mount was made."""

    words: tuple[str, ...]  # the options that were asked for
    live: tuple[str, ...]  # the options that the kernel showed then


def read(path: str, mount: Mount | None) -> Record | None:
    """How ``mount`` at ``path`` was made; None where there is no record, or where the record is of another mount."""
    if mount is None:
        return None
    try:
        descriptor = os.open(_file(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            found = json.loads(stream.read(_LARGEST))
        if found["mount"] != _identity(path, mount):
            return None
        return Record(tuple(map(str, found["words"])), tuple(map(str, found["live"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: str, mount: Mount | None, words: tuple[str, ...]) -> None:
    """Keep how ``mount`` at ``path`` was made; with None the record goes. A host that does not let us keep it is no error.

    :param words: the options that were asked for.
    """
    from ..errors import StorageError
    from . import host_files  # late: only changes write

    try:
        if mount is None:
            os.unlink(_file(path))
            return
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        content = {"mount": _identity(path, mount), "words": words, "live": mount.options}
        host_files.replace_file(_file(path), json.dumps(content).encode("ascii"), mode=0o600, keep=False)
    except (OSError, StorageError):
        pass  # without it the table and fstab decide


def _identity(path: str, mount: Mount) -> list:
    return [path, mount.id, mount.device, mount.source]


def _file(path: str) -> str:
    return os.path.join(DIRECTORY, os.path.basename(resolve.default_path(path, "/")))
