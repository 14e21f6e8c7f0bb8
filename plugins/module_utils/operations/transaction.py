# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One change of one volume: lock, observe, recover, plan, apply, observe again.

Check mode is the same path without the lock and without apply: it plans on the state that a recovery would leave, and
what it returns is the plan's prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..apply.interrupted import Interrupted, find_interrupted, forget_groups
from ..errors import NeedsRecovery
from ..model import Share, Volume
from ..plan.plan import Plan
from ..store.volumes import chains, ownership
from ..store.volumes.images import UseProbe
from . import report

if TYPE_CHECKING:
    from ..apply.engine import CopySource
    from .workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    """What a change did, or in check mode would do. ``before`` and ``after`` are volumes as modules return them, ``retention``
    the verdicts on snapshots where a policy was applied, ``not_counted`` the files that ``not_dependent`` overruled, ``content`` how a
    diff tells content that goes back: before and after."""

    name: str
    changed: bool
    actions: list
    recovered: list
    before: dict | None
    after: dict | None
    retention: list | None = None
    not_counted: tuple[str, ...] = ()
    content: tuple[str, str] | None = None


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Two changes of one volume that a task made one after the other, as one."""
    return Outcome(
        second.name,
        first.changed or second.changed,
        first.actions + second.actions,
        first.recovered + second.recovered,
        first.before,
        second.after,
        not_counted=tuple(dict.fromkeys((*first.not_counted, *second.not_counted))),
    )


def recover(work: Workspace, share: Share, name: str, said: str | None = None, dependents: bool = False) -> tuple[Volume | None, list]:
    """The volume after what an interrupted task left has been ended (in check mode: as it would be), and ``recovered``."""
    directory = work.directory(share)
    interrupted = find_left(work, share, name)
    if interrupted.resumptions:
        work.lock_ancestors(share, name)  # what is to be ended may read their files
        interrupted = find_left(work, share, name)
    recovered = interrupted.describe()
    if interrupted.resumptions and work.options.check:
        from .applying import predict_end

        predict_end(work, share, interrupted)
    elif interrupted and not work.options.check:
        from .applying import finish  # late: nearly always none was

        finish(work, share, interrupted)
    if not work.options.check:
        forget_groups(directory)
    volume = _look(work, share, name, said, interrupted)
    if volume is not None and volume.info and not volume.adopted:
        ownership.require_own_files(directory, volume)
    if volume is not None and volume.stale:
        _tell_stale(work, share, volume)
    if volume is not None and dependents:
        volume = replace(volume, dependents=work.dependents(share, volume))
    return volume, recovered


def _tell_stale(work: Workspace, share: Share, volume: Volume) -> None:
    names = ", ".join(f"{snapshot} ({file})" for snapshot, file in volume.stale)
    sentence = (
        f"volume {volume.name} on {share.label}: its .info names snapshots whose files are no overlays of its chain: {names}; "
        "remotefs_snapshot with state: absent takes such an entry away"
    )
    if sentence not in work.options.told:
        work.options.told.add(sentence)
        work.options.warn(sentence)


def find_left(work: Workspace, share: Share, name: str, discard: bool = False) -> Interrupted:
    """:raises NeedsRecovery: the share is in no state that the interrupted task can have left, and its record is not to be
    given up."""
    try:
        return find_interrupted(work.look(share, name))
    except NeedsRecovery:
        if not (discard or work.options.discard):
            raise
        from ..apply.recovery import discard_interrupted

        return discard_interrupted(work.look(share, name))


def _look(work: Workspace, share: Share, name: str, said: str | None, interrupted: Interrupted) -> Volume | None:
    if work.options.check:
        if (share.path, name) in work.options.world:
            return work.options.world[(share.path, name)]
        if interrupted.resumptions:
            return interrupted.after
    return observed_under_lock(work, share, name, said)


def observed_under_lock(work: Workspace, share: Share, name: str, said: str | None = None) -> Volume | None:
    """A volume as it stands, and whether somebody uses it, in one reading of its images.

    :param said: as of :func:`chains.observe`. :raises StorageError: it cannot be read.
    """
    look = work.look(share, name)
    if look.observed is None or said is not None:
        look.observed = chains.observe(look.directory, name, said, partial(UseProbe, full=True), look=look)
    return look.observed.volume if look.observed else None


def carry_out(work: Workspace, share: Share, plan: Plan, recovered: list, source: CopySource | None = None) -> Outcome:
    """Apply a plan, or in check mode say what it would do, and look at the result."""
    directory = work.directory(share)
    before = _told(work, share, plan.before) if plan.before else None
    if any(step.name in ("commit", "pull") for step in plan.steps):
        from . import cluster_tables

        cluster_tables.require_single_owners(directory, plan)
    if work.options.check:
        if plan.changed:
            from .applying import predict

            predict(work, share, plan)
        work.options.world[(share.path, plan.volume)] = plan.after
        after = report.volume(plan.after, share, before["in_use"] if before else False) if plan.after else None
    else:
        if plan.changed:
            from .applying import apply

            apply(work, share, plan, source)
        looked = not plan.changed and plan.before is plan.after  # at this very volume, under the lock
        after = before if looked else _observed_after(work, share, plan)
    if plan.changed:
        work.options.capacity.follow(share, plan.before, plan.after)
    overruled = work.not_counted.get(plan.volume, ()) if plan.changed else ()
    if overruled:
        work.options.warn(f"volume {plan.volume} on {share.label}: not counted as resting on it, as not_dependent says: {', '.join(overruled)}")
    return Outcome(plan.volume, plan.changed or bool(recovered), plan.actions, recovered, before, after, not_counted=overruled)


def _told(work: Workspace, share: Share, volume: Volume) -> dict:
    """A volume as modules return it; whether it is used was asked when it was read."""
    look = work.look(share, volume.name)
    return report.volume(volume, share, look.observed.in_use) if look.observed else report.read_volume(look.directory, volume)


def _observed_after(work: Workspace, share: Share, plan: Plan) -> dict | None:
    if plan.after is None:
        return None
    volume = observed_under_lock(work, share, plan.volume)
    return None if volume is None else _told(work, share, replace(volume, dependents=plan.after.dependents))
