# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One change of one volume: lock, observe, recover, plan, apply, observe again.

Check mode is the same path: its workspace has other verbs (:mod:`check_mode`), which predict. It plans on the state that a recovery
would leave, and what it returns is the plan's prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import errors, model
from ..apply.interrupted import Interrupted, find_interrupted
from ..plan.plan import Plan
from ..store.volumes import ownership

if TYPE_CHECKING:
    from ..apply import engine
    from . import shapes, workspace


@dataclass(frozen=True)
class Outcome:
    """What a change did, or in check mode would do. ``before`` and ``after`` are volumes as modules return them, ``retention``
    the verdicts on snapshots where a policy was applied, ``not_counted`` the files that ``not_dependent`` overruled, ``content`` how a
    diff shows content that goes back: before and after. ``quiesced`` says whether a guest was frozen for the snapshot, where that was asked.
    ``told`` are further keys of the result."""

    name: str
    changed: bool
    actions: list[shapes.Action]
    recovered: list[shapes.Recovered]
    before: shapes.VolumeResult | None
    after: shapes.VolumeResult | None
    retention: list | None = None
    not_counted: tuple[str, ...] = ()
    content: tuple[str, str] | None = None
    quiesced: engine.Quiesced | None = None
    told: dict | None = None


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Two changes of one volume that a task made one after the other, as one."""
    return Outcome(
        second.name,
        first.changed or second.changed,
        first.actions + second.actions,
        each_once(first.recovered, second.recovered),
        first.before,
        second.after,
        not_counted=tuple(dict.fromkeys((*first.not_counted, *second.not_counted))),
        quiesced=first.quiesced,
        told=second.told or first.told,
    )


def each_once(*recovered: list) -> list:
    """What was recovered on the way, in order. Check mode ends nothing, so that it finds the same again."""
    every: list = []
    for part in recovered:
        every += [one for one in part if one not in every]
    return every


def recover(work: workspace.Workspace, share: model.Share, name: str, said: str | None = None, dependents: bool = False) -> tuple[model.Volume | None, list]:
    """The volume after what an interrupted task left has been ended (in check mode: as it would be), and ``recovered``."""
    interrupted = find_left(work, share, name)
    if interrupted.resumptions:
        work.locks.add(share, [name])  # what is to be ended may read their files
        interrupted = find_left(work, share, name)
    ended: list = []
    if interrupted.group is not None or "ended" in work.options.task.kept:
        from . import group_recovery  # late: hardly any group is interrupted

        ended = group_recovery.told_of(work, share, name)
        interrupted = group_recovery.with_group(work, share, name, interrupted)
    recovered = ended + interrupted.describe()
    if interrupted:
        work.mode.finish(share, interrupted)
    waiting = work.mode.forget_groups(share, name)
    if waiting:
        from . import group_recovery

        if group_recovery.end_beside(work, share, waiting[0]):
            volume, again = recover(work, share, name, said, dependents)
            return volume, each_once(recovered, again)
    volume = work.mode.observe(share, name, said, interrupted)
    if volume is not None and volume.info and not volume.adopted:
        ownership.require_own_files(work.directory(share), volume)
    if volume is not None and volume.move is not None and not work.ends_moves:
        volume = _without_move(work, share, volume)
        recovered = [*recovered, {"operation": "move", "outcome": "discarded", "steps": [], "left": []}]
    if volume is not None and volume.stale:
        _warn_of_stale(work, share, volume)
    if volume is not None and dependents:
        volume = replace(volume, dependents=work.mode.dependents(share, volume, work.mode.still_there(recovered)))
    return volume, recovered


def _without_move(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> model.Volume:
    """A volume that was being moved here. :raises Conflict: the user has not said that what is there counts."""
    from ..plan import moving  # late: hardly any volume is moved

    if not work.options.discard:
        raise moving.unfinished(volume, share.label)
    plan = moving.record(volume, None)
    work.mode.apply(share, plan)
    return replace(volume, move=None, adopted=True) if work.mode.checks_only else work.mode.volume_after(share, volume)


def _warn_of_stale(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> None:
    names = ", ".join(f"{snapshot} ({file})" for snapshot, file in volume.stale)
    sentence = (
        f"volume {volume.name} on {share.label}: its .info names snapshots whose files are no overlays of its chain: {names}; "
        "remotefs_snapshot with state: absent takes such an entry away"
    )
    work.options.task.warn(sentence)


def find_left(work: workspace.Workspace, share: model.Share, name: str, discard: bool = False) -> Interrupted:
    """:raises NeedsRecovery: the share is in no state that the interrupted task can have left, and its record is not to be
    given up."""
    try:
        return find_interrupted(work.look(share, name))
    except (errors.InUse, errors.NeedsRecovery):
        if not (discard or work.options.discard):
            raise
        from ..apply.recovery import discard_interrupted

        return discard_interrupted(work.look(share, name))


def carry_out(work: workspace.Workspace, share: model.Share, plan: Plan, recovered: list, source: engine.CopySource | None = None) -> Outcome:
    """Apply a plan, or in check mode say what it would do, and look at the result."""
    before = work.mode.described(share, plan.before) if plan.before else None
    if any(step.name in ("commit", "pull") for step in plan.steps):
        from . import cluster_tables

        cluster_tables.require_single_owners(work.directory(share), plan, work.options.attachment is not None)
    if plan.changed:
        work.mode.apply(share, plan, source)
    after = work.mode.described_after(share, plan, before)
    if plan.changed:
        work.options.task.capacity.follow(share, plan.before, plan.after)
    overruled = work.not_counted.get(plan.volume, ()) if plan.changed else ()
    if overruled:
        warning = f"not counted as resting on it, as not_dependent says: {', '.join(overruled)}"
        work.options.task.warn(f"volume {plan.volume} on {share.label}: {warning}")
    quiesced = work.quiesced.pop(plan.volume, None)
    return Outcome(plan.volume, plan.changed or bool(recovered), plan.actions, recovered, before, after, not_counted=overruled, quiesced=quiesced)
