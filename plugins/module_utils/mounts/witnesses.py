# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mount it is, where the mount table shows a source in another form than users write it.

Some helpers tell the kernel addresses instead of names, and nobody knows what a file system without a row shows. There our record of the mount
tells the source. Without a record, as after a reboot, the line of fstab for the same path tells it.
"""
from __future__ import annotations

from .. import localities
from . import record, sources, tables, types


def is_mount_of(mount: tables.Mount, source: str, entries: tuple[tables.Entry, ...] = ()) -> bool:
    """Whether ``mount`` shows the whole network share ``source``, in any spelling. :param entries: the lines of fstab."""
    if sources.is_mount_of(mount, source):
        return True
    row = _row(mount)
    if row is None or sources.shows_part(mount):
        return False
    told = _told(mount, row, entries)
    return sources.is_same_share(told if told is not None else mount.source, source, row)


def source_of(mount: tables.Mount, entries: tuple[tables.Entry, ...] = ()) -> str:
    """The source of a mount of a network file system, as users spell it. :param entries: the lines of fstab."""
    row = _row(mount)
    told = _told(mount, row, entries) if row is not None else None
    known = types.by_kernel_type(mount.fstype)
    return told or (sources.bare(mount.source, known) if known is not None else mount.source)


def _row(mount: tables.Mount) -> types.FileSystem | None:
    """The row of a mount whose source the table does not show; None for any other mount."""
    row = types.by_kernel_type(mount.fstype)
    if row is not None:
        return row if row.hidden_source else None
    kind = localities.locality(mount.fstype)
    return None if kind.local or kind.trigger or kind.kernel_state else types.unknown_file_system(mount.fstype)


def _told(mount: tables.Mount, row: types.FileSystem, entries: tuple[tables.Entry, ...]) -> str | None:
    recorded = record.read(mount.path, mount)
    if recorded is not None and recorded.source:
        return recorded.source
    for entry in entries:
        listed = types.by_mount_type(entry.fstype)
        if entry.path == mount.path and (listed is None or listed == row) and not localities.locality(entry.fstype).local:
            return entry.source
    return None
