# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes of this host have files open, as far as this user may see; and why nobody listens at a socket."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Iterator, Tuple

from ..store.files.directory import ShareDirectory
from ..store.locks import in_use

Key = Tuple[int, int]  # device and inode of a file


def opened_by(pid: int) -> Iterator[tuple[Key, bool]]:
    """The files that a process has open: (device and inode, whether it may write). :raises OSError: this process may not see them."""
    directory = f"/proc/{pid}/fd"
    for number in os.listdir(directory):
        try:
            status = os.stat(f"{directory}/{number}")
            mode = os.lstat(f"{directory}/{number}").st_mode  # of a link under /proc its bits say how the file was opened
        except OSError:
            continue  # closed meanwhile
        yield (status.st_dev, status.st_ino), bool(mode & 0o200)


def other_users(pid: int, keys: set[Key], writing: bool) -> dict[Key, int]:
    """Processes of this host besides ``pid`` and this one that have one of these files open, as far as this user may see.

    :param writing: only those that may write to it.
    """
    found: dict[Key, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (pid, os.getpid()):
            continue
        try:
            found.update({key: int(entry) for key, writes in opened_by(int(entry)) if key in keys and (writes or not writing)})
        except OSError:
            continue
    return found


@contextmanager
def kept_closed(directory: ShareDirectory, file: str) -> Iterator[None]:
    """A context in which nobody opens a file of the share, as far as its lock bytes show. :raises InUse: somebody has it open."""
    if not directory.share.locks_visible or directory.root.status(file) is None:
        yield
        return
    with directory.root.opened(file, write=True) as fd:
        in_use.hold(fd, file, directory.share.label)
        yield


def nobody_at(path: str) -> str:
    """Words for a socket at which nobody listens, with the reason as far as the file shows it."""
    try:
        kind = os.stat(path).st_mode
        reason = "the process that made the socket has ended" if stat.S_ISSOCK(kind) else "that is no socket"
    except OSError as error:
        reason = error.strerror or "that cannot be looked at"
    return f"nobody listens at {path} ({reason})"
