# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the file system of a share can do. The first task that changes something there tries it out and keeps the answers on the share.

They lie beside the ballast, ``.remotefs/ballast/abilities``, because the names there are listed before each change anyway. They are no
state: without them, they are found out again.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Mapping

from ... import errors
from ..files import ballast
from ..files.directory import ShareDirectory, write_all

FILE = "abilities"
LOCKS_BETWEEN_HOSTS, IN_USE_SEEN = "locks_between_hosts", "in_use_seen"
REFLINK, FALLOCATE, HOLES, CASE_SENSITIVE, MODES, ACL = "reflink", "fallocate", "holes", "case_sensitive", "modes", "acl"
PROBED = (REFLINK, FALLOCATE, HOLES, CASE_SENSITIVE, MODES, ACL)
ALL = (LOCKS_BETWEEN_HOSTS, IN_USE_SEEN, *PROBED)


def read(directory: ShareDirectory) -> dict[str, bool | None]:
    """What was found out of each of :data:`PROBED`; None where nothing is known, or nothing that can be believed."""
    content: object = None
    with suppress(OSError, ValueError, RecursionError, errors.StorageError):
        folder = directory.private(ballast.FOLDER)
        content = json.loads(folder.read_small(FILE) or b"null") if folder is not None else None
    told = content if isinstance(content, dict) else {}
    return {name: told.get(name) if isinstance(told.get(name), bool) else None for name in PROBED}


def write(directory: ShareDirectory, volume: str, found: Mapping[str, bool | None]) -> None:
    """Keep what was found out, by a task that has the lock of ``volume``. Syncs nothing. A full share does not keep it.

    :raises OSError, StorageError: the share fails, and is not only full.
    """
    folder = directory.make_private(ballast.FOLDER)
    try:
        fd, temporary = directory.create_temporary(volume)
    except errors.NoSpace:
        return
    try:
        try:
            directory.keep_as_private(fd, folder)
            write_all(fd, json.dumps({name: found.get(name) for name in PROBED}).encode("ascii"))
        finally:
            os.close(fd)
        os.rename(temporary, FILE, src_dir_fd=directory.make_private("tmp").fd, dst_dir_fd=folder.fd)
    except OSError as error:
        directory.discard_temporary(temporary)
        if error.errno not in ballast.FULL:
            raise
