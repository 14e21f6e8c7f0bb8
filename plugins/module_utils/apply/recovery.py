# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interrupted task left, and how it will end. This module only reads. The executor ends the task."""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from ..plan import grouping
from ..plan import intent as intents
from ..plan.plan import CREATE_SNAPSHOT, CREATE_VOLUME, DISCARD, REBUILD_INFO, UNLINK, Plan
from ..plan.steps import Step, Unlink, WriteRecord
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from ..store.volumes import chains, ownership
from ..store.volumes.look import Look
from . import engine, group_records, interrupted


def find_interrupted(look: Look) -> interrupted.Interrupted:
    """How the interrupted task of a volume will end. Without the volume's lock this is only a prediction.

    :raises NeedsRecovery: the interrupted task cannot have left the share in this state.
    """
    directory, name, record, leftovers = look.directory, look.name, look.record, look.leftovers
    if record is None:
        return interrupted.Interrupted((), leftovers)
    if record.intent is not None:
        intent = intents.from_json(name, record.intent)
        return interrupted.Interrupted((_resumption(look, intent),), leftovers, _group_of(name, intent))
    if not chains.exists(directory, name, look):
        nothing = Plan(CREATE_VOLUME, name, (), None, None)
        return interrupted.Interrupted((intents.Resumption(CREATE_VOLUME, "undone", nothing),), leftovers)
    garbage = tuple(item.file for item in record.garbage if _is_garbage(directory, name, item))
    present = _readable(look) if garbage else None
    if not garbage:
        return interrupted.Interrupted(_lost_info(look), leftovers)
    if present is None or set(garbage) & set(present.files):
        raise errors.NeedsRecovery(
            f"volume {name}", f"files that were to be removed are in use again ({', '.join(garbage)})", "see docs/worst-day.md"
        )
    steps = (intents.write_info(present), *(Unlink(file) for file in garbage))
    plan = Plan(UNLINK, name, steps, present, present)
    return interrupted.Interrupted((intents.Resumption(UNLINK, "finished", plan),), leftovers)


def _lost_info(look: Look) -> tuple[intents.Resumption, ...]:
    """If ``.info`` is torn or missing and its content is certain, it is written again."""
    try:
        if not chains.read_info(look)[1]:
            return ()
    except errors.StorageError:
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
    return same and item.file != model.info_name(name) and ownership.owner_of(directory, item.file, excluding=name) is None


def _readable(look: Look) -> model.Volume | None:
    """The volume as it is now. None where there is none, or it cannot be read."""
    try:
        observed = chains.observe(look.directory, look.name, look=look)
    except errors.StorageError:
        return None
    return observed.volume if observed else None


def _resumption(look: Look, intent: intents.Intent) -> intents.Resumption:
    """How the task would end by itself. Where it ends together with others this is only a prediction."""
    directory, name = look.directory, look.name
    _refuse_foreign(directory, name, intent)
    decision = decision_on(directory, intent.group, bool(intent.members)) if intent.group is not None else grouping.DECIDED
    return _resumed(look, intent, _observed(look, intent), decision)


def _observed(look: Look, intent: intents.Intent) -> intents.ObservedState:
    """What the task left. Of a machine the user's word counts: what is on the share has no say in where a task connects."""
    return engine.open_engine(intent.engine, look.directory, engine.Terms(attachment=look.attachment)).observe(look.name, intent)


def _resumed(look: Look, intent: intents.Intent, observed: intents.ObservedState, decision: str) -> intents.Resumption:
    observed = replace(observed, decided=decision != grouping.UNDECIDED, lost=decision == grouping.LOST)
    resumption = intents.resume(look.name, _readable(look), intent, observed)
    return replace(resumption, images=intent.files, attachment=intent.attachment, phase=intent.phase, agent=intent.agent)


def _group_of(name: str, intent: intents.Intent) -> group_records.Group | None:
    """The group with which an intent ends, if it does not end by itself."""
    if intent.group is None or name not in intent.members or intent.after is None:
        return None
    names = {snapshot.name for snapshot in intent.before.snapshots} ^ {snapshot.name for snapshot in intent.after.snapshots}
    return group_records.Group(intent.group, tuple(dict.fromkeys(intent.members)), names.pop()) if len(names) == 1 else None


def member_of(look: Look, group: group_records.Group) -> grouping.Member:
    """What is left of a member of a group.

    :raises StorageError: its record cannot be understood. :raises NeedsRecovery: the interrupted task cannot have left it so.
    """
    directory, name, record = look.directory, look.name, look.record
    intent = intents.from_json(name, record.intent) if record is not None and record.intent is not None else None
    if intent is None or intent.group != group.name or group != _group_of(name, intent):
        done = record is not None and group.snapshot in record.snapshots and chains.exists(directory, name, look)
        return grouping.Member(name, grouping.DONE if done else grouping.GONE)
    _refuse_foreign(directory, name, intent)
    state = grouping.HERE if intent.operation == CREATE_SNAPSHOT else grouping.GOING
    member = grouping.Member(name, state, intent, _observed(look, intent))
    if state == grouping.GOING:
        return member
    return member._replace(is_empty=not member.exists or is_empty(directory, member.overlay))


def is_empty(directory: ShareDirectory, overlay: str) -> bool:
    """Whether nothing was written to an overlay, as far as its file shows."""
    with directory.root.opened(overlay) as fd:
        return qcow2.is_empty(fd, qcow2.read_header(fd))


def end_of(look: Look, member: grouping.Member, end: str) -> intents.Resumption:
    """How a member ends that is here, once it is known how all of the group end. One that is given up and in use is no case of this.

    :raises NeedsRecovery: the interrupted task cannot have left it so.
    """
    if member.intent is None or member.observed is None:
        raise ValueError("nothing is left of this member")
    decision = {grouping.FINISH: grouping.DECIDED, grouping.UNDO: grouping.UNDECIDED, grouping.GIVE_UP: grouping.LOST}[end]
    return _resumed(look, member.intent, member.observed, decision)


def _refuse_foreign(directory: ShareDirectory, name: str, intent: intents.Intent) -> None:
    """:raises NeedsRecovery: the recorded steps would change or remove a file that belongs to another volume."""
    for file in sorted({file for step in intent.steps for file in step.touches() if file != model.info_name(name)}):
        owner = ownership.owner_of(directory, file, excluding=name)
        if owner is not None:
            raise errors.NeedsRecovery(
                f"volume {name}",
                f"the record of an interrupted task names {file}, which belongs to volume {owner}",
                "find out who wrote it; recover: discard gives the record up",
            )


def discard_interrupted(look: Look) -> interrupted.Interrupted:
    """Discard an intent that cannot be resumed. From now on the volume is what is on the share.

    Snapshots that the interrupted task had begun to delete lose their names, because their data may be damaged. Files that it
    was about to remove stay, and are reported.

    :raises StorageError: the volume cannot be read in its present state.
    """
    directory, name, record = look.directory, look.name, look.record
    observed = chains.observe(directory, name, look=look)
    try:
        intent = intents.from_json(name, record.intent) if record and record.intent else None
    except errors.NeedsRecovery:
        intent = None
    operation, agent = (intent.operation, intent.agent) if intent else ("unknown", None)
    leftovers = look.leftovers
    if observed is None:
        without_volume = Plan(DISCARD, name, (), None, None)
        return interrupted.Interrupted((intents.Resumption(operation, "discarded", without_volume),), leftovers)
    volume = observed.volume
    deleted = intent.deleted_snapshots if intent else ()
    after = replace(volume, snapshots=tuple(one for one in volume.snapshots if one.name not in deleted), pending=None)
    named = [*(intent.files if intent else ()), *(item.file for item in record.garbage if record)] if record else []
    left = tuple(sorted({file for file in named if file not in volume.files and directory.root.status(file) is not None}))
    steps: tuple[Step, ...] = (intents.write_info(after),) if volume.info else (WriteRecord(name),)
    plan = Plan(DISCARD, name, steps, volume, after)
    return interrupted.Interrupted((intents.Resumption(operation, "discarded", plan, left, tuple(intent.files if intent else ()), agent=agent),), leftovers)


def decision_on(directory: ShareDirectory, group: str, may_be_lost: bool) -> str:
    """What is on record of a group (see :mod:`plan.grouping`).

    :param may_be_lost: whether that can have been decided later. :raises NeedsRecovery: the record cannot be understood.
    """
    private = directory.private("groups")
    if private is None or private.status(group_records.group_file(group)) is None:
        return grouping.UNDECIDED
    if not may_be_lost:
        return grouping.DECIDED
    content = private.read_small(group_records.group_file(group))
    if content not in (group_records.DECIDED, group_records.LOST):
        raise errors.NeedsRecovery(f"group {group}", "the record of what was decided on it cannot be understood", "see docs/worst-day.md")
    return grouping.LOST if content == group_records.LOST else grouping.DECIDED
