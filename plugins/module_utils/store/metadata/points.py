# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identities of points. The same point has the same identity on all shares where it is, whatever its snapshot and its files are called.

Whoever works on a share can make a snapshot of a name anew, with other data. So an identity is recorded together with what its overlay
was then, and holds only as long as that is still so.
"""

from __future__ import annotations

import os
from typing import Collection

from ...errors import StorageError
from ...model import Snapshot, Volume, is_safe_file_name
from ..files.directory import ShareDirectory
from . import records
from .formats import generation


def new_point() -> str:
    """An identity that no other point has."""
    return os.urandom(16).hex()


def marks_of_points(
    directory: ShareDirectory, volume: Volume, before: records.Record | None, changed: Collection[str]
) -> dict[str, records.PointMark]:
    """The identities of a volume's points, for its record. A point without one gets one.

    :param before: the record that it had. What it says stays. :param changed: files of which it does not, because the task has changed them.
    """
    found = {}
    for snapshot in volume.snapshots:
        known = _known(before, snapshot)
        if known is None or snapshot.file in changed:
            known = _mark(directory, volume, snapshot)
        if known is not None:
            found[snapshot.name] = known
    return found


def _known(before: records.Record | None, snapshot: Snapshot) -> records.PointMark | None:
    details = before.snapshots.get(snapshot.name) if before is not None else None
    if details is None or details["file"] != snapshot.file or details["point"] is None or details["point"].point != snapshot.point:
        return None
    mark: records.PointMark = details["point"]
    return mark


def _mark(directory: ShareDirectory, volume: Volume, snapshot: Snapshot) -> records.PointMark | None:
    """None: the file cannot be read. The next record tries again."""
    point = snapshot.point if is_safe_file_name(snapshot.point) else new_point()
    try:
        backing_file = volume.point_file(snapshot.name)
        if not directory.share.local:  # where a look is cheaper than to open it, and servers show no generation
            status = directory.root.status(snapshot.file)
            return None if status is None else records.PointMark(str(point), _inode(directory, status), 0, backing_file)
        with directory.root.opened(snapshot.file) as fd:
            return records.PointMark(str(point), _inode(directory, os.fstat(fd)), generation(directory, fd), backing_file)
    except (OSError, StorageError):
        return None


def _inode(directory: ShareDirectory, status: os.stat_result) -> int:
    return status.st_ino if directory.share.keeps_inodes else 0


def holds(directory: ShareDirectory, volume: Volume, snapshot: Snapshot, record: records.Record | None) -> bool:
    """Whether the identity of a snapshot's point is still that of the recorded overlay."""
    known = _known(record, snapshot)
    if known is None:
        return False
    now = _mark(directory, volume, snapshot)
    return now is not None and now == known


def will_hold(directory: ShareDirectory, volume: Volume, snapshot: Snapshot, record: records.Record | None) -> bool:
    """The same of a volume that check mode foretells: what is not on record as it is foretold will be recorded by then."""
    if _known(record, snapshot) is None:
        return snapshot.point is not None
    return holds(directory, volume, snapshot, record)
