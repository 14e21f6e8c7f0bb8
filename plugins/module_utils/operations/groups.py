# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One snapshot of several volumes at one point in time: all have it, or none has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import errors, model
from ..plan.desired import DesiredSnapshot
from ..plan.plan import Plan
from . import snapshots, transaction, workspace
from .candidates import Candidates
from .options import Options

if TYPE_CHECKING:
    from ..plan import retention


@dataclass(frozen=True)
class _Member:
    """One volume of a group: where it is, what is planned for it, what its recovery did."""

    share: model.Share
    plan: Plan
    recovered: list


def take_group(
    candidates: Candidates,
    volumes: list[str],
    desired: DesiredSnapshot,
    options: Options,
    keep: retention.Policy | None = None,
) -> list[transaction.Outcome | errors.StorageError]:
    """Take one snapshot of several volumes, all or nothing, at one point in time: all locks are held and no image is in
    use while the overlays are made. Where ``options.attachment`` names a machine, it may have some of them open; QEMU switches its disks
    at one instant.

    :param keep: what stays of each volume's snapshots once all are taken. Where that fails, it is tried for the others all
        the same, and the error stands in the place of the volume's outcome.

    :raises Conflict: some of them have the snapshot already and others have not.
    """
    for name in volumes:
        model.check_snapshot_name(model.check_volume_name(name), desired.name)
    if options.assume:
        from . import assumptions

        if assumptions.any_missing(volumes, candidates, options):
            return [_taken_alone(snapshots.SnapshotRequest(candidates, name, desired, keep), options) for name in volumes]
    desired = desired._replace(created=desired.created or model.now())
    with workspace.Workspace(options, siblings=True) as work:
        shares = {name: snapshots.find(work, candidates, name) for name in volumes}
        if len({share.path for share in shares.values()}) > 1:
            raise errors.InvalidParameter(
                f"group of {len(volumes)} volumes",
                "they are on different shares, where no single record can decide for all",
                "group volumes of one share",
            )
        work.locks.take_families([(shares[name], name) for name in volumes])
        members = _plan_members(work, shares, volumes, desired, keep is not None)
        _require_same_state(members, desired.name)
        if members[0].plan.intent:
            work.mode.apply_together(members[0].share, [member.plan for member in members])
            outcomes = [_outcome_of(work, member) for member in members]
        else:
            outcomes = [transaction.carry_out(work, member.share, member.plan, member.recovered) for member in members]
        if keep is None:
            return list(outcomes)
        return [_retain_member(work, member, outcome, keep, desired.name) for member, outcome in zip(members, outcomes)]


def _taken_alone(request: snapshots.SnapshotRequest, options: Options) -> transaction.Outcome | errors.StorageError:
    """What check mode predicts of one of a group of which others are not there yet."""
    try:
        return snapshots.take(request, options, in_group=True)
    except errors.StorageError as error:
        return error


def _retain_member(
    work: workspace.Workspace, member: _Member, taken: transaction.Outcome, keep: retention.Policy, name: str
) -> transaction.Outcome | errors.StorageError:
    try:
        return snapshots.retain_after(work, member.share, member.plan, taken, keep, name)
    except Exception as error:  # whatever it is, it is this volume's
        return errors.as_storage_error(error, f"volume {member.plan.volume} on {member.share.label}")


def _plan_members(work: workspace.Workspace, shares: dict[str, model.Share], volumes: list[str], desired: DesiredSnapshot, dependents: bool) -> list[_Member]:
    """The plans of all. What was interrupted may need further locks: then all are taken anew, and what was planned before may be true no more."""
    recovered: dict[str, list] = {name: [] for name in volumes}
    while True:
        held = work.locks.rounds
        members = [_plan_member(work, shares[name], name, desired, dependents) for name in volumes]
        for name, member in zip(volumes, members):
            recovered[name] = transaction.each_once(recovered[name], member.recovered)
        if work.locks.rounds == held:
            return [replace(member, recovered=recovered[name]) for name, member in zip(volumes, members)]


def _plan_member(work: workspace.Workspace, share: model.Share, name: str, desired: DesiredSnapshot, dependents: bool) -> _Member:
    volume, recovered = snapshots.recovered_volume(work, share, name, dependents=dependents)
    return _Member(share, snapshots.plan_taking(work, share, volume, desired, recovered), recovered)


def _require_same_state(members: list[_Member], snapshot: str) -> None:
    having = [member.plan.volume for member in members if member.plan.before and member.plan.before.has_snapshot(snapshot)]
    if having and len(having) < len(members):
        raise errors.Conflict(f"snapshot {snapshot}", f"of this group only {model.listed(having)} have it", "choose another name, or delete it there")


def _outcome_of(work: workspace.Workspace, member: _Member) -> transaction.Outcome:
    unchanged = replace(member.plan, steps=())
    looked = transaction.carry_out(work, member.share, unchanged, member.recovered)
    return replace(looked, changed=True, actions=member.plan.actions)
