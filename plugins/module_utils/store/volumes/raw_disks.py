# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which raw disks of a volume hold only what a guest wrote, so that nothing in them is ever taken for a header."""

from __future__ import annotations

import os
from typing import Mapping

from ... import errors, model
from ..files.directory import ShareDirectory
from ..metadata import formats, records
from . import dependents


def disks_of(
    directory: ShareDirectory, volume: model.Volume, before: records.Record | None, made: Mapping[str, records.Disk]
) -> dict[str, records.Disk]:
    """The raw disks of a volume that only a guest writes to, as file → Disk for its record.

    :param before: the record that it had. What it says of a disk stays, as long as it is about the same file. A new disk is accepted
        only if it names no other file: a user may have called an overlay raw, and then the user has to be asked later.
    :param made: file → Disk, of files that the task itself made.
    """
    found: dict[str, records.Disk] = {}
    for file in [image.file for image in volume.own if image.format == "raw"]:
        try:
            disk = made.get(file) or (before.disks.get(file) if before and _is_recorded(directory, before, file) else None)
            found.update({file: disk} if disk else _disk_without_names(directory, file))
        except (OSError, errors.StorageError):
            continue  # the next record tries again
    return found


def marks_of(
    directory: ShareDirectory, volume: model.Volume, before: records.Record | None, made: Mapping[str, records.Disk]
) -> dict[str, records.Disk]:
    """What identifies the base file of a volume, as {file: Disk} for its record. Parameters as for :func:`disks_of`."""
    file = volume.own_base.file
    try:
        mark = made.get(file) or (before.marks.get(file) if before and _is_recorded(directory, before, file) else None)
        return {file: mark or _mark(directory, file)}
    except (OSError, errors.StorageError):
        return {}  # records of older releases have none either


def _is_recorded(directory: ShareDirectory, record: records.Record, file: str) -> bool:
    """Whether a record is still about the file that has this name now."""
    status = directory.root.status(file)
    if status is None:
        return True

    def read_generation() -> int:
        with directory.root.opened(file) as fd:
            return formats.generation(directory, fd)

    return records.identity(record, file, status, read_generation) != records.OTHER


def _mark(directory: ShareDirectory, file: str) -> records.Disk:
    with directory.root.opened(file) as fd:
        return mark_of(directory, fd, os.fstat(fd).st_size)


def mark_of(directory: ShareDirectory, fd: int, length: int) -> records.Disk:
    """What distinguishes an opened file from all others. ``length``: the length in bytes that it will have."""
    if not directory.share.keeps_inodes:
        return records.Disk(0, length)
    return records.Disk(os.fstat(fd).st_ino, length, formats.generation(directory, fd))


def _disk_without_names(directory: ShareDirectory, file: str) -> dict[str, records.Disk]:
    with directory.root.opened(file) as fd:
        status = os.fstat(fd)
        inode = status.st_ino if directory.share.keeps_inodes else 0
        return {} if dependents.names_in(fd) else {file: records.Disk(inode, status.st_size)}
