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
from typing import Collection, Mapping

from ... import errors, model
from ..files.directory import ShareDirectory
from . import formats, records


def new_point() -> str:
    """An identity that no other point has."""
    return os.urandom(16).hex()


def marks_of_points(
    directory: ShareDirectory, volume: model.Volume, before: records.Record | None, changed: Collection[str], identified: Collection[str] = ()
) -> dict[str, records.PointMark]:
    """The identities of a volume's points, for its record. A point without one gets one, but not one that has lost its identity.

    :param before: the record that it had. What it says stays. :param changed: files of which it does not, because the task has changed them.
    :param identified: those of them of which the task knows the point, whatever the record said.
    :raises OSError, StorageError: a file of a volume that has replicas, or is one, cannot be read. Without its identity a point would be taken for
        another one.
    """
    found, matters = {}, volume.received or volume.replicated
    for snapshot in volume.snapshots:
        known = _known(before, snapshot)
        if known is None or snapshot.file in changed or known.backing_file in changed or known.backing_file != _backing(volume, snapshot):
            is_lost = snapshot.file not in identified and _is_without(before, snapshot) and matters
            known = None if is_lost else _mark(directory, volume, snapshot, matters)  # a replication finds out by its content which point it is
        if known is not None:
            found[snapshot.name] = known
    return found


def checksums_of_points(volume: model.Volume, before: records.Record | None, written: Collection[str], sums: Mapping[str, str]) -> dict[str, records.Checksum]:
    """The checksums of the files that a volume's points end with, for its record, by snapshot. They hold whether identities do or not: they are there
    to find what nobody should have done.

    :param before: the record that it had. :param written: files of which the task has changed what they hold by themselves.
    :param sums: checksums of files that the task has received or read, by file.
    """
    found = {}
    for snapshot in volume.snapshots:
        known = checksum(before, snapshot)
        if known is None and not sums:
            continue
        file = volume.point_file(snapshot.name)
        if file in sums:
            found[snapshot.name] = records.Checksum(file, sums[file])
        elif known is not None and known.file == file and file not in written:
            found[snapshot.name] = known
    return found


def checksum(record: records.Record | None, snapshot: model.Snapshot) -> records.Checksum | None:
    """The recorded checksum of the file that a point ends with."""
    details = record.snapshots.get(snapshot.name) if record is not None else None
    found: records.Checksum | None = details.get("checksum") if details is not None else None
    return found


def without_lost(directory: ShareDirectory, volume: model.Volume, record: records.Record) -> records.Record:
    """The record of a volume without identities that hold no more. Once the task has changed the files, nobody could tell. No other share
    knows those of a volume that was never replicated."""
    if not (record.received or record.replicated):
        return record
    lost = {one.name for one in volume.snapshots if one.name in record.snapshots} - held(directory, volume, record)
    if not lost:
        return record
    return replace(record, snapshots={name: {**details, "point": None} if name in lost else details for name, details in record.snapshots.items()})


def _is_without(record: records.Record | None, snapshot: model.Snapshot) -> bool:
    """Whether a record has the snapshot, and no identity for it."""
    details = record.snapshots.get(snapshot.name) if record is not None else None
    return details is not None and details["point"] is None


def _known(before: records.Record | None, snapshot: model.Snapshot) -> records.PointMark | None:
    details = before.snapshots.get(snapshot.name) if before is not None else None
    if details is None or details["file"] != snapshot.file or details["point"] is None or details["point"].point != snapshot.point:
        return None
    mark: records.PointMark = details["point"]
    return mark


def _mark(directory: ShareDirectory, volume: model.Volume, snapshot: model.Snapshot, matters: bool) -> records.PointMark | None:
    """None: the file cannot be read, and that does not matter. The next record tries again. :raises OSError, StorageError: it does."""
    try:
        return _read_mark(directory, volume, snapshot)
    except (OSError, errors.StorageError):
        if matters:
            raise
        return None


def _read_mark(directory: ShareDirectory, volume: model.Volume, snapshot: model.Snapshot) -> records.PointMark | None:
    """None: a file is not there, or is none. :raises OSError, StorageError: it cannot be read, from which nothing follows."""
    point = snapshot.point if model.is_safe_file_name(snapshot.point) else new_point()
    try:
        backing_file = volume.point_file(snapshot.name)
        below, overlay, number = directory.root.status(backing_file), directory.root.status(snapshot.file), 0
        if below is None or overlay is None:
            return None
        if directory.share.local:  # servers show no generation
            with directory.root.opened(snapshot.file) as fd:
                number = formats.generation(directory, fd)
    except (errors.ChainBroken, FileNotFoundError, errors.SnapshotNotFound, errors.UnsafeImage):
        return None
    content = (_inode(directory, below), below.st_size, below.st_mtime_ns)
    return records.PointMark(str(point), _inode(directory, overlay), number, backing_file, *content)


def _inode(directory: ShareDirectory, status: os.stat_result) -> int:
    return status.st_ino if directory.share.keeps_inodes else 0


def _backing(volume: model.Volume, snapshot: model.Snapshot) -> str | None:
    return volume.image(snapshot.file).backing_file


def held(directory: ShareDirectory, volume: model.Volume, record: records.Record | None, foretold: bool = False) -> set[str]:
    """The snapshots whose identity is still that of the recorded files: of its own, and of all below it.

    :param foretold: check mode foretells the volume. What is not on record as it is foretold will be recorded by then.
    :raises OSError, StorageError: one cannot be read, from which nothing follows.
    """
    found: set[str] = set()
    every = [snapshot.point for snapshot in volume.snapshots]
    for snapshot in volume.snapshots:
        known = _known(record, snapshot)
        holds = _read_mark(directory, volume, snapshot) == known if known is not None else foretold and snapshot.point is not None
        if not holds or every.count(snapshot.point) > 1:  # one that stands twice is none
            break
        found.add(snapshot.name)
    return found


def state_of(directory: ShareDirectory, volume: model.Volume) -> tuple:
    """What is the same as long as the points of a volume are: its snapshots, and the files below the active image, to which nobody has written."""
    below = [directory.root.status(file) for file in volume.files[1:]]
    return volume.snapshots, volume.files, tuple(status and (status.st_ino, status.st_size, status.st_mtime_ns) for status in below)
