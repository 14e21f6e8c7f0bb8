# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden volumes: those that environments made from images, to make workers from. They stay while a lease uses them."""

from __future__ import annotations

from .. import errors, model
from ..store.files import small_files
from ..store.files.directory import ShareDirectory
from ..store.metadata import leases, records

NAMES = "golden-"  # how their names begin
_LABEL = "remotefs_golden"


def spare(directory: ShareDirectory, keep: int) -> list[str]:
    """Those that no lease uses, but for the ``keep`` newest. :raises StorageError: a lease cannot be read, so that it is not known."""
    used = _used(directory)
    names = [name for name in small_files.names(directory, "volumes", records.file_name("")) if name.startswith(NAMES)]
    found = [(record.created or "", name) for name, record in ((name, _record(directory, name)) for name in names) if record and _LABEL in record.labels]
    free = [name for _created, name in sorted(found) if name not in used]
    return free[: max(len(free) - keep, 0)]


def require_spare(directory: ShareDirectory, volume: model.Volume) -> None:
    """:raises Conflict: it is none, or a lease uses it."""
    if _LABEL not in volume.labels or volume.name in _used(directory):
        raise errors.Conflict(f"volume {volume.name}", "a lease uses it by now", "run the task again")


def _record(directory: ShareDirectory, name: str) -> records.Record | None:
    """None also where it cannot be read: such a volume stays."""
    try:
        return records.read(directory, name)
    except errors.StorageError:
        return None


def _used(directory: ShareDirectory) -> set[str]:
    """Volumes that a lease uses. :raises StorageError: a lease cannot be read, so that it is not known."""
    found = (leases.read(directory, name) for name in leases.names(directory))
    return {name for lease in found if lease is not None for name in lease.uses}
