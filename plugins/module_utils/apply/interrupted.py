# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a task was interrupted, and what it left. Most often no task was. So :mod:`recovery` is imported only where there are traces of
one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import StorageError
from ..store.metadata import records
from ..store.volumes import chains

if TYPE_CHECKING:
    from ..model import Volume
    from ..plan.resumption import Resumption
    from ..store.files.directory import ShareDirectory
    from ..store.volumes.look import Look
    from .engine import Engine


DECIDED, LOST = b"{}", b'{"lost": true}'  # what the file of a group says


class Group(NamedTuple):
    """A snapshot of several volumes of which a machine had some open: they end together.

    ``name`` is the group's, ``members`` are its volumes, ``snapshot`` is what they were to get. How it ends is decided only with the locks
    of all members; then ``end`` says it (see :mod:`plan.grouping`), and ``others`` is what is left of the other members, each by itself.
    """

    name: str
    members: tuple[str, ...]
    snapshot: str
    end: str = ""
    others: tuple[Interrupted, ...] = ()


class Interrupted:
    """What an interrupted task left of a volume: resumptions to run, temporary files to remove, and the group with which it ends."""

    def __init__(self, resumptions: tuple[Resumption, ...] = (), leftovers: tuple[str, ...] = (), group: Group | None = None) -> None:
        self.resumptions = resumptions
        self.leftovers = leftovers
        self.group = group

    def __bool__(self) -> bool:
        return bool(self.resumptions or self.leftovers)

    @property
    def after(self) -> Volume | None:
        """The volume after the last resumption; None where it is removed."""
        return self.resumptions[-1].plan.after

    def describe(self) -> list[dict]:
        """``recovered`` as modules return it: dicts with operation, outcome and steps (what :meth:`Resumption.describe` returns)."""
        items = [item.describe() for item in self.resumptions]
        if self.leftovers:
            from ..plan.steps import Unlink

            items.append({"operation": "temporary_files", "outcome": "undone", "steps": [Unlink(name).describe() for name in self.leftovers]})
        return items


def group_file(group: str) -> str:
    """The name of the file that records the decision to take the snapshots of a group."""
    return group + ".json"


def predict_end(engine: Engine, resumption: Resumption) -> None:
    """Check whether an interrupted task can be ended, without taking anything. :raises InUse: it cannot."""
    engine.predict_end(resumption)
    if resumption.begins:
        engine.predict(resumption.plan)


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
    except StorageError:
        return False  # a task that needs the volume reports it


def forget_groups(directory: ShareDirectory, name: str = "", check: bool = False) -> tuple[str, ...]:
    """Remove the decisions on groups for which no volume's record waits any more. Returns the volumes that wait and end together with volume
    ``name``, which does not wait itself.

    The decisions are listed before the records are read. So a group that is decided meanwhile is not among them.

    :param check: remove nothing.
    """
    private = directory.private("groups")
    decided = private.names() if private else []
    volumes = directory.private("volumes")
    if not private or not decided or not volumes:
        return ()
    suffix = len(records.file_name(""))
    try:
        every = {file[:-suffix]: records.read(directory, file[:-suffix]) for file in volumes.names()}
    except StorageError:
        return ()  # a record that cannot be read may wait for any of them
    from ..store.metadata import unfinished  # late: hardly any group was interrupted

    intents = {volume: record.intent for volume, record in every.items() if record and record.intent}
    waiting = {group_file(unfinished.group(intent)) for intent in intents.values()}
    for file in sorted(set(decided) - waiting if not check else ()):
        private.unlink(file)
    return tuple(volume for volume, intent in intents.items() if volume != name and name in unfinished.members(intent))
