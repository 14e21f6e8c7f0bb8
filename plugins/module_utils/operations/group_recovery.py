# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of an interrupted snapshot of several volumes of which a machine had some open: a task on one of them ends it for all."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import errors, model
from ..apply import group_records, recovery
from ..apply.interrupted import Interrupted
from ..plan import grouping, resumption
from ..store.volumes import chains
from . import applying, transaction

if TYPE_CHECKING:
    from ..apply.engine import Engine
    from . import workspace


def told_of(work: workspace.Workspace, share: model.Share, name: str) -> list:
    """What an earlier part of this task ended of a volume, which is told once, as ``recovered``."""
    return work.options.task.kept.get("ended", {}).pop((share.path, name), [])


def with_group(work: workspace.Workspace, share: model.Share, name: str, interrupted: Interrupted) -> Interrupted:
    """What is left of a volume, with what is left of the other members of its group, and how all of them end. Their locks are taken.

    :raises InUse: the machine, or who else uses an image, does not let it be known. :raises NeedsRecovery: as :func:`find_left`.
    """
    while interrupted.group is not None:
        group = interrupted.group
        work.locks.add(share, [group_member for group_member in group.members if chains.exists(work.directory(share), group_member)])
        again = transaction.find_left(work, share, name)
        if again.group == group:
            try:
                return _decided(work, share, name, again)
            except errors.NeedsRecovery:
                if not work.options.discard:
                    raise
                return recovery.discard_interrupted(work.look(share, name))
        interrupted = again
    return interrupted


def end_beside(work: workspace.Workspace, share: model.Share, waiting: str) -> bool:
    """End a group, if that is possible, of which the task's own volume has its snapshot for good, and volume ``waiting`` has not. Returns
    whether locks were taken anew for that: what was read before may be true no more.

    :raises LockTimeout: another task has one of the locks.
    """
    rounds = work.locks.rounds
    with suppress(errors.NeedsRecovery, errors.InUse):  # a task on that volume tells it
        work.locks.add(share, [waiting])
        interrupted = with_group(work, share, waiting, transaction.find_left(work, share, waiting))
        group = interrupted.group
        if group is not None and group.end:
            work.mode.finish(share, interrupted)
            if group.end != grouping.GIVE_UP and not group.others:
                _tell(work, share, group, group.end)
            if not work.options.check:
                work.options.task.kept.setdefault("ended", {})[(share.path, waiting)] = interrupted.describe()
    return work.locks.rounds != rounds


def _decided(work: workspace.Workspace, share: model.Share, name: str, interrupted: Interrupted) -> Interrupted:
    group = interrupted.group
    if group is None:
        raise ValueError("there is no group")
    members = [recovery.member_of(work.look(share, one), group) for one in group.members]
    decision = recovery.decision_on(work.directory(share), group.name, may_be_lost=True)
    volumes = [volume for one in members if one.intent is not None for volume in (one.intent.before, one.intent.after) if volume is not None]
    with applying.engine_for(work, share, mixed=True, known=volumes) as engine:
        members = [_asked(engine, one) for one in members]
    end = grouping.verdict(decision, members, str(work.options.attachment))
    ends = {one.volume: _end_of(work, share, one, end, group) for one in members if one.intent is not None}
    others = tuple(Interrupted((ends[one],), work.look(share, one).leftovers, group) for one in group.members if one != name and one in ends)
    if others or end == grouping.GIVE_UP:
        _tell(work, share, group, end)
    return Interrupted((ends[name],), interrupted.leftovers, group._replace(end=end, others=others))


def _asked(engine: Engine, member: grouping.Member) -> grouping.Member:
    if member.state != grouping.HERE or member.intent is None or member.intent.after is None:
        return member
    return member._replace(written=engine.written(member.intent.after, member.intent.after.files[:2]))


def _end_of(work: workspace.Workspace, share: model.Share, member: grouping.Member, end: str, group: group_records.Group) -> resumption.Resumption:
    """How one member ends. Where the point is given up and somebody has written behind it, it goes as other snapshots do, by a merge."""
    look, intent = work.look(share, member.volume), member.intent
    if intent is None or intent.after is None:
        raise ValueError("nothing is left of this member")
    if member.state == grouping.GOING:
        end = grouping.FINISH
    if end != grouping.GIVE_UP or not member.is_used:
        return recovery.end_of(look, member, end)
    from . import cluster_tables
    from .snapshots import plan_deletion

    finished = recovery.end_of(look, member, grouping.FINISH)  # as far as it checks what is on the share
    found = chains.observe(work.directory(share), member.volume, look=look)
    if found is None or not found.volume.has_snapshot(group.snapshot):
        raise errors.NeedsRecovery(
            f"volume {member.volume} on {share.label}", f"its .info does not name {member.overlay}, which has data", "see docs/worst-day.md"
        )
    volume = replace(found.volume, adopted=True, pending=None)
    volume = replace(volume, dependents=work.mode.dependents(share, volume))
    plan = plan_deletion(work, share, volume, [group.snapshot])
    cluster_tables.require_single_owners(work.directory(share), plan, work.options.attachment is not None)
    return replace(finished, outcome="undone", plan=plan, begins=True)


def _tell(work: workspace.Workspace, share: model.Share, group: group_records.Group, end: str) -> None:
    """What ends besides the task's own volume is told by a warning."""
    subject = f"snapshot {group.snapshot} of volumes {model.listed(sorted(group.members))} on {share.label}: the task that took it was interrupted"
    if end == grouping.GIVE_UP:
        work.options.task.warn(f"{subject}, and it could not be finished at one point in time; it is given up on all of them")
    else:
        work.options.task.warn(f"{subject}; it is {'finished' if end == grouping.FINISH else 'undone'} on all of them")
