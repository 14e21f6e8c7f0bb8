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


def opened_by(pid: int) -> set[Key]:
    """The files that a process has open. :raises OSError: this process may not see them."""
    with _descriptors(pid) as folder:
        return {key for key, _number in _files(folder)}


def other_users(pid: int, keys: set[Key], writing: bool) -> dict[Key, int]:
    """Processes of this host besides ``pid`` and this one that have one of these files open, as far as this user may see.

    :param writing: only those that may write to it.
    """
    found: dict[Key, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (pid, os.getpid()):
            continue
        try:
            with _descriptors(int(entry)) as folder:
                found.update({key: int(entry) for key, number in _files(folder) if key in keys and (not writing or _may_write(folder, number))})
        except OSError:
            continue
    return found


@contextmanager
def _descriptors(pid: int) -> Iterator[int]:
    """The folder of what a process has open. Opened once, because each way from the root to it costs as much as a look at a file."""
    folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _files(folder: int) -> Iterator[tuple[Key, str]]:
    """What is open, and by which descriptor."""
    for number in os.listdir(folder):
        try:
            status = os.stat(number, dir_fd=folder)
        except OSError:
            continue  # closed meanwhile
        yield (status.st_dev, status.st_ino), number


def _may_write(folder: int, number: str) -> bool:
    try:
        return bool(os.lstat(number, dir_fd=folder).st_mode & 0o200)  # of a link under /proc its bits say how the file was opened
    except OSError:
        return False  # closed meanwhile


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
