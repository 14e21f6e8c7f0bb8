# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of what is no volume: images that arrive, snapshots that are read, and leases."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from .. import model
from ..store.files.directory import ShareDirectory
from ..store.locks.lock import VolumeLock
from .options import Options


@contextmanager
def locked_name(
    share: model.Share, name: str, options: Options, patience: float = 0, breaks: bool = False, shared: bool = False
) -> Iterator[tuple[ShareDirectory, VolumeLock]]:
    """A context in which this task alone has such a name. Each change in the directory verifies the lock.

    :param patience: seconds to wait for another task. :param breaks: take it from one whose host died. :param shared: other tasks may have it
        in this way at the same time. :raises LockTimeout: one has it.
    """
    held: list[VolumeLock] = []

    def verify(_name: str) -> None:
        for lock in held:
            lock.verify()

    with ShareDirectory(share, verify, options.task.waiting) as directory, VolumeLock(directory, name, patience, breaks, shared) as lock:
        held.append(lock)
        yield directory, lock


def outwait_caches(directory: ShareDirectory, folder: str, options: Options) -> None:
    """Wait, under a lock, until this client cannot show any more what the last holder has replaced in ``.remotefs/FOLDER`` (see
    :meth:`Locks._outwait_caches`)."""
    if directory.share.stale_seconds:
        options.task.waiting.sleep(directory.share.stale_seconds)
        directory.refresh()
        listed = directory.private(folder)
        if listed is not None:
            listed.names()
