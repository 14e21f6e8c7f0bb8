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
from contextlib import contextmanager
from dataclasses import replace
from typing import Iterator

from .. import errors, model
from ..plan import retention
from ..plan.desired import DesiredSnapshot
from ..store.files.directory import ShareDirectory
from ..store.volumes import chains
from . import candidates, named_locks, snapshots
from .options import Options

_PREFIX = "temporary-"
_NAME = re.compile(_PREFIX + "[0-9a-f]{16}")
_TIME = "1d"


@contextmanager
def snapshot(share: model.Share, volume: str, reader: str, options: Options) -> Iterator[str]:
    """A context with the name of a snapshot that shows the volume as it is now.

    :param reader: what reads it, for its description. :raises StorageError: it cannot be taken, or does not go again.
    """
    name = f"{_PREFIX}{os.urandom(8).hex()}"
    desired = DesiredSnapshot(name, description=f"read for {reader}"[:200], expires=retention.parse_expiry(_TIME, model.now()))
    with _read(share, volume, name, options):
        _delete(share, volume, _left(share, volume, options), options)
        try:
            snapshots.take(snapshots.SnapshotRequest(candidates.Candidates((share,)), volume, desired), options)
            yield name
        finally:
            failed = sys.exc_info()[1]
            try:
                _delete(share, volume, [name], options)
            except errors.StorageError as error:
                if failed is None:
                    raise
                options.task.warn(f"snapshot {name} of volume {volume} stays until the next export: {error}")


@contextmanager
def _read(share: model.Share, volume: str, name: str, options: Options) -> Iterator[None]:
    """A context in which a lock says that somebody reads the snapshot. :raises LockTimeout: somebody else does."""
    with named_locks.locked_name(share, _key(volume, name), options) as (_directory, lock):
        try:
            yield
        finally:
            lock.forget_file()


def _key(volume: str, name: str) -> str:
    return _mark(volume) + name[len(_PREFIX) :]


def _mark(volume: str) -> str:
    """What the names of such locks of a volume begin with."""
    return hashlib.sha256(volume.encode()).hexdigest()[:16]


def _left(share: model.Share, volume: str, options: Options) -> list[str]:
    """Names of such snapshots that nobody reads any more. Locks that a killed task left are removed."""
    with ShareDirectory(share) as directory:
        observed, folder = chains.observe(directory, volume), directory.private("locks")
        listed_locks = os.listdir(folder.fd) if folder is not None else []
    names = {one.name for one in observed.volume.snapshots if _NAME.fullmatch(one.name)} if observed else set()
    mark, left = _mark(volume), []
    locks = {_PREFIX + lock.partition(".")[0][len(mark) :] for lock in listed_locks if lock.startswith(mark)}
    for name in sorted(names | {lock for lock in locks if _NAME.fullmatch(lock)}):
        try:
            with _read(share, volume, name, options):
                pass
        except errors.LockTimeout:
            continue
        if name in names:
            left.append(name)
    if left:
        options.task.warn(f"volume {volume}: a task was interrupted that had taken {model.listed(left)} to read from, which goes now")
    return left


def _delete(share: model.Share, volume: str, names: list[str], options: Options) -> None:
    if names:
        snapshots.delete(candidates.Candidates((share,)), volume, names, replace(options, timeout=None))
