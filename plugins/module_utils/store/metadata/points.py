# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identities of points. The same point has the same identity on all shares where it is, whatever its snapshot and its files are called.

Whoever works on a share can make a snapshot of a name anew, with other data. So an identity is recorded together with what its overlay
was then, and holds only as long as that is still so.
"""

from __future__ import annotations

import os
from dataclasses import replace
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
    directory: ShareDirectory, volume: Volume, before: records.Record | None, changed: Collection[str], identified: Collection[str] = ()
) -> dict[str, records.PointMark]:
    """The identities of a volume's points, for its record. A point without one gets one.

    :param before: the record that it had. What it says stays. :param changed: files of which it does not, because the task has changed them.
    :param identified: those of them of which the task knows the point, whatever the record said.
    """
    found = {}
    for snapshot in volume.snapshots:
        known = _known(before, snapshot)
        if known is None or snapshot.file in changed:
            is_lost = snapshot.file not in identified and _is_without(before, snapshot)
            known = _mark(directory, volume, replace(snapshot, point=None) if is_lost else snapshot)
        if known is not None:
            found[snapshot.name] = known
    return found


def without_lost(
    directory: ShareDirectory, volume: Volume, after: Volume | None, record: records.Record, changed: Collection[str]
) -> records.Record:
    """The record of a volume without identities that hold no more. Once the task has changed the overlays, nobody could tell.

    :param after: the volume as it will be; None: it goes. :param changed: files that the task is about to change.
    """
    staying = [one for one in volume.snapshots if one.file in changed and after is not None and after.has_snapshot(one.name)]
    lost = {one.name for one in staying if one.name in record.snapshots and not holds(directory, volume, one, record)}
    if not lost:
        return record
    return replace(record, snapshots={name: {**details, "point": None} if name in lost else details for name, details in record.snapshots.items()})


def _is_without(record: records.Record | None, snapshot: Snapshot) -> bool:
    """Whether a record has the snapshot, and no identity for it."""
    details = record.snapshots.get(snapshot.name) if record is not None else None
    return details is not None and details["point"] is None


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
