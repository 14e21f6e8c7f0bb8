# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stale entries of ``.info``: those whose file is no overlay of the chain. Which are allowed, and which files they leave."""

from __future__ import annotations

import os
from typing import Collection

from ... import errors, model
from .. import qcow2
from ..files.directory import ShareDirectory
from ..volumes import ownership
from . import records

_MOST_FILES = 256  # followed below an entry's file
_WORST_DAY = "look at docs/worst-day.md for how to repair a chain by hand"


def require_stale(directory: ShareDirectory, name: str, files: Collection[str], snapshot: str, file: str) -> None:
    """Check that an entry of ``.info`` is stale: its file cannot have newer data of this volume than the active image has.

    The file is gone, or it rests on nothing, or on files outside the chain. Cinder leaves such entries behind.

    :param files: the files of the chain. :param snapshot: the entry's name. :param file: the entry's file.
    :raises ChainBroken: the file rests on a file of the chain, or its header cannot be read. Then ``.info`` may be wrong.
    """
    seen: set[str] = set()
    below: str | None = file
    while below is not None and below not in files and below not in seen and len(seen) < _MOST_FILES:
        seen.add(below)
        try:
            with directory.root.opened(below) as fd:
                backing_name = qcow2.read_header(fd).backing_file if qcow2.has_magic(fd) else None
        except FileNotFoundError:
            return
        except (errors.StorageError, qcow2.Qcow2Error) as error:
            raise _contradiction(name, snapshot, file) from error
        below = os.path.basename(backing_name) if backing_name else None
    if below in files and file not in files:
        raise _contradiction(name, snapshot, file)


def _contradiction(name: str, snapshot: str, file: str) -> errors.ChainBroken:
    return errors.ChainBroken(
        f"snapshot {snapshot} of volume {name}", f"its file {file} is no overlay of the volume's chain, and may belong above it", _WORST_DAY
    )


def left_by_stale(directory: ShareDirectory, volume: model.Volume, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Files that only stale entries of ``.info`` name, and that are removed with these entries: for the snapshots ``names``, or all.

    Each belongs to this volume by its name or by the record, is claimed by no other volume, and is in no chain. Others stay.
    """
    try:
        record = records.read(directory, volume.name)
    except errors.StorageError:
        record = None
    kept = {*volume.files, *(file for snapshot, file in volume.stale if names is not None and snapshot not in names)}
    found = []
    for snapshot, file in volume.stale:
        ours = file == f"{volume.name}.{snapshot}" or (record is not None and file in record.formats and file != volume.name)
        if (names is not None and snapshot not in names) or not ours or file in kept or file in found:
            continue
        try:
            status = directory.root.status(file)
        except errors.StorageError:
            continue
        if status is not None and status.st_nlink == 1 and ownership.owner_of(directory, file, excluding=volume.name) is None:
            found.append(file)
    return tuple(found)
