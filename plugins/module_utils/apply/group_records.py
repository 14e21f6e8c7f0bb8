# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on record of snapshots of several volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Sequence

from .. import errors
from ..store.metadata import records, unfinished

if TYPE_CHECKING:
    from ..store.files.directory import ShareDirectory
    from . import interrupted

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
    others: tuple[interrupted.Interrupted, ...] = ()


def group_file(group: str) -> str:
    """The name of the file that records the decision to take the snapshots of a group."""
    return group + ".json"


def forget_groups(directory: ShareDirectory, decided: Sequence[str], name: str, check: bool) -> tuple[str, ...]:
    """Remove the decisions on groups for which no volume's record waits any more. Returns the volumes that wait and end together with volume
    ``name``, which does not wait itself.

    :param decided: the names of the files of all decisions. They are listed before the records are read. So a group that is decided
        meanwhile is not among them. :param check: remove nothing.
    """
    private, volumes = directory.private("groups"), directory.private("volumes")
    if not private or not volumes:
        return ()
    suffix = len(records.file_name(""))
    try:
        every = {file[:-suffix]: records.read(directory, file[:-suffix]) for file in volumes.names()}
    except errors.StorageError:
        return ()  # a record that cannot be read may wait for any of them
    intents = {volume: record.intent for volume, record in every.items() if record and record.intent}
    waiting = {group_file(unfinished.group(intent)) for intent in intents.values()}
    for file in sorted(set(decided) - waiting if not check else ()):
        private.unlink(file)
    return tuple(volume for volume, intent in intents.items() if volume != name and name in unfinished.members(intent))
