# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One snapshot of several volumes at one point in time: all have it, or none has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import Conflict, InvalidParameter, StorageError, as_storage_error
from ..model import Share, check_snapshot_name, check_volume_name, listed, now
from ..plan.desired import DesiredSnapshot
from ..plan.plan import Plan
from .candidates import Candidates
from .options import Options
from .snapshots import SnapshotRequest, find, plan_taking, recovered_volume, retain_after, take
from .transaction import Outcome, carry_out, each_once
from .workspace import Workspace

if TYPE_CHECKING:
    from ..plan import retention


@dataclass(frozen=True)
class _Member:
    """One volume of a group: where it is, what is planned for it, what its recovery did."""

    share: Share
    plan: Plan
    recovered: list


def take_group(
    candidates: Candidates,
    volumes: list[str],
    desired: DesiredSnapshot,
    options: Options,
    keep: retention.Policy | None = None,
) -> list[Outcome | StorageError]:
    """Take one snapshot of several volumes, all or nothing, at one point in time: all locks are held and no image is in
    use while the overlays are made. Where ``options.attachment`` names a machine, it may have some of them open; QEMU switches its disks
    at one instant.

    :param keep: what stays of each volume's snapshots once all are taken. Where that fails, it is tried for the others all
        the same, and the error stands in the place of the volume's outcome.

    :raises Conflict: some of them have the snapshot already and others have not.
    """
    for name in volumes:
        check_snapshot_name(check_volume_name(name), desired.name)
    if options.assume:
        from . import assumptions

        if assumptions.any_missing(volumes, candidates, options):
            return [_taken_alone(SnapshotRequest(candidates, name, desired, keep), options) for name in volumes]
    desired = desired._replace(created=desired.created or now())
    with Workspace(options, siblings=True) as work:
        shares = {name: find(work, candidates, name) for name in volumes}
        if len({share.path for share in shares.values()}) > 1:
            raise InvalidParameter(
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
            outcomes = [carry_out(work, member.share, member.plan, member.recovered) for member in members]
        if keep is None:
            return list(outcomes)
        return [_retain_member(work, member, outcome, keep, desired.name) for member, outcome in zip(members, outcomes)]


def _taken_alone(request: SnapshotRequest, options: Options) -> Outcome | StorageError:
    """What check mode predicts of one of a group of which others are not there yet."""
    try:
        return take(request, options, in_group=True)
    except StorageError as error:
        return error


def _retain_member(work: Workspace, member: _Member, taken: Outcome, keep: retention.Policy, name: str) -> Outcome | StorageError:
    try:
        return retain_after(work, member.share, member.plan, taken, keep, name)
    except Exception as error:  # whatever it is, it is this volume's
        return as_storage_error(error, f"volume {member.plan.volume} on {member.share.label}")


def _plan_members(work: Workspace, shares: dict[str, Share], volumes: list[str], desired: DesiredSnapshot, dependents: bool) -> list[_Member]:
    """The plans of all. What was interrupted may need further locks: then all are taken anew, and what was planned before may be true no more."""
    recovered: dict[str, list] = {name: [] for name in volumes}
    while True:
        held = work.locks.rounds
        members = [_plan_member(work, shares[name], name, desired, dependents) for name in volumes]
        for name, member in zip(volumes, members):
            recovered[name] = each_once(recovered[name], member.recovered)
        if work.locks.rounds == held:
            return [replace(member, recovered=recovered[name]) for name, member in zip(volumes, members)]


def _plan_member(work: Workspace, share: Share, name: str, desired: DesiredSnapshot, dependents: bool) -> _Member:
    volume, recovered = recovered_volume(work, share, name, dependents=dependents)
    return _Member(share, plan_taking(work, share, volume, desired, recovered), recovered)


def _require_same_state(members: list[_Member], snapshot: str) -> None:
    having = [member.plan.volume for member in members if member.plan.before and member.plan.before.has_snapshot(snapshot)]
    if having and len(having) < len(members):
        raise Conflict(f"snapshot {snapshot}", f"of this group only {listed(having)} have it", "choose another name, or delete it there")


def _outcome_of(work: Workspace, member: _Member) -> Outcome:
    unchanged = replace(member.plan, steps=())
    looked = carry_out(work, member.share, unchanged, member.recovered)
    return replace(looked, changed=True, actions=member.plan.actions)
