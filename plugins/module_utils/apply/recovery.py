# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interrupted task left, and how it will end. This module only reads. The executor ends the task."""

from __future__ import annotations

from dataclasses import replace

from ..errors import NeedsRecovery, StorageError
from ..model import Volume, info_name
from ..plan import intent as intents
from ..plan.plan import CREATE_VOLUME, DISCARD, REBUILD_INFO, UNLINK, Plan
from ..plan.steps import Step, Unlink, WriteRecord
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from ..store.volumes import chains, ownership
from ..store.volumes.look import Look
from .engine import open_engine
from .interrupted import Interrupted, group_file


def find_interrupted(look: Look) -> Interrupted:
    """How the interrupted task of a volume will end. Without the volume's lock this is only a prediction.

    :raises NeedsRecovery: the interrupted task cannot have left the share in this state.
    """
    directory, name, record, leftovers = look.directory, look.name, look.record, look.leftovers
    if record is None:
        return Interrupted((), leftovers)
    if record.intent is not None:
        return Interrupted((_resumption(look, intents.from_json(name, record.intent)),), leftovers)
    if not chains.exists(directory, name, look):
        nothing = Plan(CREATE_VOLUME, name, (), None, None)
        return Interrupted((intents.Resumption(CREATE_VOLUME, "undone", nothing),), leftovers)
    garbage = tuple(item.file for item in record.garbage if _is_garbage(directory, name, item))
    present = _readable(look) if garbage else None
    if not garbage:
        return Interrupted(_lost_info(look), leftovers)
    if present is None or set(garbage) & set(present.files):
        raise NeedsRecovery(
            f"volume {name}", f"files that were to be removed are in use again ({', '.join(garbage)})", "see docs/worst-day.md"
        )
    steps = (intents.write_info(present), *(Unlink(file) for file in garbage))
    plan = Plan(UNLINK, name, steps, present, present)
    return Interrupted((intents.Resumption(UNLINK, "finished", plan),), leftovers)


def _lost_info(look: Look) -> tuple[intents.Resumption, ...]:
    """If ``.info`` is torn or missing and its content is certain, it is written again."""
    try:
        if not chains.read_info(look)[1]:
            return ()
    except StorageError:
        return ()  # a task that needs the volume reports it
    present = _readable(look)
    if present is None:
        return ()
    plan = Plan(REBUILD_INFO, look.name, (intents.write_info(present),), present, present)
    return (intents.Resumption(REBUILD_INFO, "finished", plan),)


def _is_garbage(directory: ShareDirectory, name: str, item: records.Garbage) -> bool:
    """Whether the file is still the one that the final record meant: same inode, same length, and no other volume owns it."""
    status = directory.root.status(item.file)
    same = status is not None and status.st_size == item.size and item.inode in (0, status.st_ino)
    return same and item.file != info_name(name) and ownership.owner_of(directory, item.file, excluding=name) is None


def _readable(look: Look) -> Volume | None:
    """The volume as it is now. None where there is none, or it cannot be read."""
    try:
        observed = chains.observe(look.directory, look.name, look=look)
    except StorageError:
        return None
    return observed.volume if observed else None


def _resumption(look: Look, intent: intents.Intent) -> intents.Resumption:
    directory, name = look.directory, look.name
    _refuse_foreign(directory, name, intent)
    decided = intent.group is None or _group_decided(directory, intent.group)
    observed = replace(open_engine(intent.engine, directory).observe(name, intent), decided=decided)
    return replace(intents.resume(name, _readable(look), intent, observed), images=intent.files, attachment=intent.attachment)


def _refuse_foreign(directory: ShareDirectory, name: str, intent: intents.Intent) -> None:
    """:raises NeedsRecovery: the recorded steps would change or remove a file that belongs to another volume."""
    for file in sorted({file for step in intent.steps for file in step.touches() if file != info_name(name)}):
        owner = ownership.owner_of(directory, file, excluding=name)
        if owner is not None:
            raise NeedsRecovery(
                f"volume {name}",
                f"the record of an interrupted task names {file}, which belongs to volume {owner}",
                "find out who wrote it; recover: discard gives the record up",
            )


def discard_interrupted(look: Look) -> Interrupted:
    """Discard an intent that cannot be resumed. From now on the volume is what is on the share.

    Snapshots that the interrupted task had begun to delete lose their names, because their data may be damaged. Files that it
    was about to remove stay, and are reported.

    :raises StorageError: the volume cannot be read in its present state.
    """
    directory, name, record = look.directory, look.name, look.record
    observed = chains.observe(directory, name, look=look)
    try:
        intent = intents.from_json(name, record.intent) if record and record.intent else None
    except NeedsRecovery:
        intent = None
    operation = intent.operation if intent else "unknown"
    leftovers = look.leftovers
    if observed is None:
        without_volume = Plan(DISCARD, name, (), None, None)
        return Interrupted((intents.Resumption(operation, "discarded", without_volume),), leftovers)
    volume = observed.volume
    deleted = intent.deleted_snapshots if intent else ()
    after = replace(volume, snapshots=tuple(one for one in volume.snapshots if one.name not in deleted), pending=None)
    named = [*(intent.files if intent else ()), *(item.file for item in record.garbage if record)] if record else []
    left = tuple(sorted({file for file in named if file not in volume.files and directory.root.status(file) is not None}))
    steps: tuple[Step, ...] = (intents.write_info(after),) if volume.info else (WriteRecord(name),)
    plan = Plan(DISCARD, name, steps, volume, after)
    return Interrupted((intents.Resumption(operation, "discarded", plan, left, tuple(intent.files if intent else ())),), leftovers)


def _group_decided(directory: ShareDirectory, group: str) -> bool:
    """Whether the decision to take the snapshots of the group is recorded."""
    private = directory.private("groups")
    return private is not None and private.status(group_file(group)) is not None
