# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a task was interrupted, and what it left. Most often no task was. So :mod:`recovery` is imported only where there are traces of
one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import errors
from ..store.volumes import chains

if TYPE_CHECKING:
    from .. import model
    from ..plan import resumption
    from ..store.files.directory import ShareDirectory
    from ..store.volumes.look import Look
    from .group_records import Group


class Interrupted:
    """What an interrupted task left of a volume: resumptions to run, temporary files to remove, and the group with which it ends."""

    def __init__(self, resumptions: tuple[resumption.Resumption, ...] = (), leftovers: tuple[str, ...] = (), group: Group | None = None) -> None:
        self.resumptions = resumptions
        self.leftovers = leftovers
        self.group = group

    def __bool__(self) -> bool:
        return bool(self.resumptions or self.leftovers)

    @property
    def after(self) -> model.Volume | None:
        """The volume after the last resumption; None where it is removed."""
        return self.resumptions[-1].plan.after

    def describe(self) -> list[dict]:
        """``recovered`` as modules return it: dicts with operation, outcome and steps (what :meth:`Resumption.describe` returns)."""
        items = [item.describe() for item in self.resumptions]
        if self.leftovers:
            from ..plan.steps import Unlink

            items.append({"operation": "temporary_files", "outcome": "undone", "steps": [Unlink(name).describe() for name in self.leftovers]})
        return items


def find_interrupted(look: Look) -> Interrupted:
    """As :func:`recovery.find_interrupted`, which is called only where there are traces."""
    if not _has_traces(look):
        return Interrupted()
    from . import recovery

    return recovery.find_interrupted(look)


def _has_traces(look: Look) -> bool:
    """:raises StorageError: the record cannot be understood, or a recorded name belongs to something that is no regular file."""
    directory, record = look.directory, look.record
    if look.leftovers:
        return True
    if record is None:
        return False
    if record.intent is not None or not chains.exists(directory, look.name, look):
        return True
    if any(directory.root.status(item.file) is not None for item in record.garbage):
        return True
    try:
        return chains.read_info(look)[1]
    except errors.StorageError:
        return False  # a task that needs the volume reports it


def forget_groups(directory: ShareDirectory, name: str = "", check: bool = False) -> tuple[str, ...]:
    """As :func:`group_records.forget_groups`, which is called only where a group was decided."""
    private = directory.private("groups")
    if not private or not (decided := private.names()):
        return ()
    from . import group_records

    return group_records.forget_groups(directory, decided, name, check)
