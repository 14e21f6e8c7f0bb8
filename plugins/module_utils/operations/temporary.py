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
    return hashlib.sha256(f"{volume}\0{name}".encode()).hexdigest()[:32]


def _left(share: Share, volume: str, options: Options) -> list[str]:
    """Names of such snapshots that nobody reads any more."""
    with ShareDirectory(share) as directory:
        observed = chains.observe(directory, volume)
    names = [one.name for one in observed.volume.snapshots if _NAME.fullmatch(one.name)] if observed else []
    left = []
    for name in names:
        try:
            with ExitStack() as stack:
                _lock(stack, share, volume, name, options)
                left.append(name)
        except LockTimeout:
            continue
    if left:
        options.task.warn(f"volume {volume}: a task was interrupted that had taken {listed(left)} to read from, which goes now")
    return left


def _delete(candidates: Candidates, volume: str, names: list[str], options: Options) -> None:
    if names:
        snapshots.delete(candidates, volume, names, replace(options, assume=False, timeout=None))
