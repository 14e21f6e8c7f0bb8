# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that a task takes of a volume that a machine is writing, to read it from them. They go when it has been read.

If the task is killed, its snapshot stays. Nobody holds its lock then, and the next task of this kind on that volume deletes it. It also
expires, so that retention takes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Iterator

from ..errors import LockTimeout, StorageError
from ..model import Share, listed, now
from ..plan.desired import DesiredSnapshot
from ..plan.retention import parse_expiry
from ..store.files.directory import ShareDirectory
from ..store.locks.lock import VolumeLock
from ..store.volumes import chains
from . import snapshots
from .candidates import Candidates
from .options import Options
from .workspace import Workspace

_PREFIX = "temporary-"
_NAME = re.compile(_PREFIX + "[0-9a-f]{16}")
_TIME = "1d"


@contextmanager
def snapshot(candidates: Candidates, volume: str, reader: str, options: Options) -> Iterator[str]:
    """A context with the name of a snapshot that shows the volume as it is now.

    :param reader: what reads it, for its description. :raises StorageError: it cannot be taken, or does not go again.
    """
    share = _share_of(candidates, volume, options)
    name = f"{_PREFIX}{os.urandom(8).hex()}"
    desired = DesiredSnapshot(name, description=f"read for {reader}"[:200], expires=parse_expiry(_TIME, now()))
    with ExitStack() as stack:
        _lock(stack, share, volume, name, options)
        _delete(candidates, volume, _left(share, volume, options), options)
        try:
            snapshots.take(snapshots.SnapshotRequest(candidates, volume, desired), replace(options, assume=False))
            yield name
        finally:
            failed = sys.exc_info()[1]
            try:
                _delete(candidates, volume, [name], options)
            except StorageError as error:
                if failed is None:
                    raise
                options.task.warn(f"snapshot {name} of volume {volume} stays until the next export: {error}")


def _share_of(candidates: Candidates, volume: str, options: Options) -> Share:
    with Workspace(options) as work:
        return snapshots.find(work, candidates, volume)


def _lock(stack: ExitStack, share: Share, volume: str, name: str, options: Options) -> None:
    """Hold the lock that says that somebody still reads the snapshot. :raises LockTimeout: somebody has it."""
    held: list[VolumeLock] = []

    def verify(_name: str) -> None:
        for lock in held:
            lock.verify()

    directory = stack.enter_context(ShareDirectory(share, verify, options.task.waiting))
    lock = VolumeLock(directory, _key(volume, name), 0)
    held.append(stack.enter_context(lock))
    stack.callback(lock.forget_file)


def _key(volume: str, name: str) -> str:
    return _mark(volume) + name[len(_PREFIX) :]


def _mark(volume: str) -> str:
    """What the names of such locks of a volume begin with."""
    return hashlib.sha256(volume.encode()).hexdigest()[:16]


def _left(share: Share, volume: str, options: Options) -> list[str]:
    """Names of such snapshots that nobody reads any more. Locks that a killed task left are removed."""
    with ShareDirectory(share) as directory:
        observed, folder = chains.observe(directory, volume), directory.private("locks")
        listed_locks = os.listdir(folder.fd) if folder is not None else []
    names = {one.name for one in observed.volume.snapshots if _NAME.fullmatch(one.name)} if observed else set()
    mark, left = _mark(volume), []
    locks = {_PREFIX + lock.partition(".")[0][len(mark) :] for lock in listed_locks if lock.startswith(mark)}
    for name in sorted(names | {lock for lock in locks if _NAME.fullmatch(lock)}):
        try:
            with ExitStack() as stack:
                _lock(stack, share, volume, name, options)
        except LockTimeout:
            continue
        if name in names:
            left.append(name)
    if left:
        options.task.warn(f"volume {volume}: a task was interrupted that had taken {listed(left)} to read from, which goes now")
    return left


def _delete(candidates: Candidates, volume: str, names: list[str], options: Options) -> None:
    if names:
        snapshots.delete(candidates, volume, names, replace(options, assume=False, timeout=None))
