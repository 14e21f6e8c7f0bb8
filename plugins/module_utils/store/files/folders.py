# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds which files rest on which on all of a share, before a task destroys something. Its directory is read whole, its folders as
far as a bounded search gets."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Collection, Mapping

from ..volumes import dependents
from .directory import PRIVATE, Directory, ShareDirectory
from .names import shown

# Folders in which servers show older states of the share. A file there rests on older files, not on the present ones.
SNAPSHOT_FOLDERS = frozenset((".snapshot", ".snapshots", ".zfs", ".snaps", "~snapshot", "#recycle"))
MOST_ENTRIES = 50_000
MOST_SECONDS = 10.0
_DEEPEST = 64
_OPENING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def scan_all(directory: ShareDirectory, known: Mapping[str, str | None] | None = None) -> dependents.Backings:
    """Find which files rest on which, before a task destroys something. Folders of the share and targets of links are read, too.

    :param known: file → backing file, of files that the caller has just read under the lock of their volume.
    """
    listed = dependents.listing(directory)
    found = dependents.Backings(known)
    search = found.search = dependents.Search(directory, listed, outside=True)
    dependents.search_root(directory, search, listed, found, known or {})
    search_folders(directory, search, listed.folders, found)
    return found


def search_folders(directory: ShareDirectory, search: dependents.Search, folders: Collection[str], found: dependents.Backings) -> None:
    """Search ``folders`` of the share's directory and all folders below them. Other file systems and :data:`SNAPSHOT_FOLDERS` are
    skipped. ``found.unreached`` gets sentences about what was not searched."""
    device = os.fstat(directory.root.fd).st_dev
    deadline, entries_left = time.monotonic() + MOST_SECONDS, MOST_ENTRIES
    waiting = deque((name,) for name in sorted(folders) if _is_searched(name))
    not_searched: list[str] = []
    while waiting:
        folder = waiting.popleft()
        if entries_left <= 0 or time.monotonic() > deadline or len(folder) > _DEEPEST:
            not_searched += ["/".join(folder), *("/".join(one) for one in waiting)]
            break
        try:
            fd = _opened(directory.root.fd, folder)
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                not_searched.append("/".join(folder))
            continue
        try:
            if os.fstat(fd).st_dev == device:
                entries_left -= _look_into(fd, folder, search, found, waiting, not_searched, deadline)
        except OSError:
            not_searched.append("/".join(folder))
        finally:
            os.close(fd)
    if not_searched:
        found.unreached += (_sentence_about_unreached(directory, not_searched),)
    found.unreached += tuple(search.unreached)


def _is_searched(name: str) -> bool:
    return name != PRIVATE and name not in SNAPSHOT_FOLDERS


def _opened(root: int, folder: tuple[str, ...]) -> int:
    """Open a folder of the share without following any link."""
    fd = os.dup(root)
    for part in folder:
        try:
            deeper = os.open(part, _OPENING, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _look_into(
    fd: int, folder: tuple[str, ...], search: dependents.Search, found: dependents.Backings, waiting: deque, not_searched: list[str], deadline: float
) -> int:
    """Read all files of an opened folder. Returns how many entries were read."""
    place, count = "/".join(folder), 0
    opened = Directory(fd, place)
    with os.scandir(fd) as entries:
        for entry in entries:
            count += 1
            file = f"{place}/{entry.name}"
            if count % 64 == 0 and time.monotonic() > deadline:
                not_searched.append(place)
                break
            if entry.is_symlink():
                dependents.record_backings(found, file, search.of_link, fd, entry.name, place)
            elif entry.is_file(follow_symlinks=False):
                dependents.record_backings(found, file, search.read, opened, entry.name, place)
            elif entry.is_dir(follow_symlinks=False) and _is_searched(entry.name):
                waiting.append((*folder, entry.name))
            if file in found.unread:  # in a folder this only leads to a warning; in the share's directory it would be a doubt
                del found.unread[file]
                not_searched.append(file)
    return count


def _sentence_about_unreached(directory: ShareDirectory, not_searched: list[str]) -> str:
    names = ", ".join(map(shown, not_searched[:3])) + (f" and {len(not_searched) - 3} more" if len(not_searched) > 3 else "")
    return (
        f"{directory.share.label}: not all of its folders could be searched for files that rest on what is destroyed (not looked at: {names}); "
        "make sure that nothing there does"
    )
