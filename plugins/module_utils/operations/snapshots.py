# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of snapshots: take one, take one of several volumes at once, delete some, keep what a policy says, revert to one."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..apply.recovery import group_file
from ..errors import Conflict, InvalidParameter, StorageError, VolumeNotFound, from_os_error
from ..model import Share, Volume, check_snapshot_name, check_volume_name, now
from ..plan import planner
from ..plan.plan import Plan
from ..store import inventory
from ..store.directory import ShareDirectory
from . import placement
from .transaction import Options, Outcome, Workspace, carry_out, joined, require_free_name, settle

if TYPE_CHECKING:
    from ..apply.executor import Executor
    from ..apply.offline import Guard
    from ..plan import retention

# What deletions and changes need is imported where it is used: importing is most of what a task costs that changes nothing.


@dataclass(frozen=True)
class SnapshotRequest:
    """A volume on one of ``candidates``, what is wanted of one of its snapshots, and what to ``keep`` beside that one."""

    candidates: placement.Candidates
    volume: str
    wish: planner.SnapshotWish
    keep: retention.Policy | None = None


def _find(candidates: placement.Candidates, name: str, options: Options) -> Share:
    """:raises VolumeNotFound: no candidate has the volume."""
    check_volume_name(name)
    for share in candidates.shares:
        if options.world.get((share.path, name)) is not None:
            return share
    found = placement.locate(candidates, name)
    if found is None:
        raise VolumeNotFound(
            f"volume {name}", "it is on none of the given shares", "check the name, or create it first with remotefs_volume"
        )
    return found


def _settled(work: Workspace, share: Share, name: str, dependents: bool = False) -> tuple[Volume, list]:
    volume, recovered = settle(work, share, name, dependents=dependents)
    if volume is None:
        raise VolumeNotFound(f"volume {name}", f"it is not on {share.source}", "check the name, or create it first with remotefs_volume")
    if work.options.check:  # files that are only predicted to be gone still stand on this volume's own
        volume = replace(volume, dependents=tuple(pair for pair in volume.dependents if pair[0] != name))
    return volume, recovered


def take(request: SnapshotRequest, options: Options) -> Outcome:
    """Take a snapshot; one that exists is no change but for a description, labels or protection that differ. Then remove what
    ``request.keep`` does not keep."""
    check_snapshot_name(request.volume, request.wish.name)
    share = _find(request.candidates, request.volume, options)
    with Workspace(options) as work:
        (work.lock_families if request.keep else work.lock)([(share, request.volume)])
        volume, recovered = _settled(work, share, request.volume, dependents=request.keep is not None)
        plan = _plan_taking(work, share, volume, request.wish, recovered)
        taken = carry_out(work, share, plan, recovered)
        return taken if request.keep is None else _retain_after(work, share, plan, taken, request.keep, request.wish.name)


def _plan_taking(work: Workspace, share: Share, volume: Volume, wish: planner.SnapshotWish, recovered: list) -> Plan:
    plan = planner.create_snapshot(volume, replace(wish, created=wish.created or now()))
    if plan.intent and plan.after is not None:
        require_free_name(work, share, plan.after.active.file, volume.name, recovered)
    return plan


def retain(candidates: placement.Candidates, volume_name: str, policy: retention.Policy, options: Options) -> Outcome:
    """Remove the snapshots that a policy does not keep, in one pass."""
    share = _find(candidates, volume_name, options)
    with Workspace(options) as work:
        work.lock_families([(share, volume_name)])
        volume, recovered = _settled(work, share, volume_name, dependents=True)
        return _retain(work, share, volume, recovered, policy, None)


def _retain(work: Workspace, share: Share, volume: Volume, recovered: list, policy: retention.Policy, named: str | None) -> Outcome:
    from ..plan import retention

    verdicts = retention.judge(volume, policy, named)
    doomed = [verdict.snapshot.name for verdict in verdicts if not verdict.reasons]
    plan = _deletion(work.directory(share), volume, doomed)
    done = carry_out(work, share, plan, recovered)
    return replace(done, retention=[verdict.describe() for verdict in verdicts])


def _retain_after(work: Workspace, share: Share, plan: Plan, taken: Outcome, policy: retention.Policy, name: str) -> Outcome:
    """The retention of a volume on which ``plan`` has taken snapshot ``name``, both as one outcome."""
    volume = plan.after
    if volume is None:
        raise ValueError("a snapshot is of a volume")
    if not work.options.check:
        observed = inventory.observe(work.directory(share), volume.name)
        if observed is None:
            raise VolumeNotFound(f"volume {volume.name}", "it went away while the task held its lock", "find out who removed its files")
        volume = replace(observed.volume, dependents=volume.dependents)
    kept = _retain(work, share, volume, [], policy, name)
    both = joined(taken, kept)
    if work.options.check and both.after and taken.after:  # whoever uses a file that is only predicted cannot be asked
        both = replace(both, after={**both.after, "in_use": taken.after["in_use"]})
    return replace(both, retention=kept.retention)


def delete(candidates: placement.Candidates, volume_name: str, names: list[str], options: Options) -> Outcome:
    """Delete snapshots in one pass; names that do not exist are no change."""
    for name in names:
        check_snapshot_name(volume_name, name)
    share = _find(candidates, volume_name, options)
    with Workspace(options) as work:
        work.lock_families([(share, volume_name)])
        volume, recovered = _settled(work, share, volume_name, dependents=True)
        plan = _deletion(work.directory(share), volume, names)
        return carry_out(work, share, plan, recovered)


def _deletion(directory: ShareDirectory, volume: Volume, names: list[str]) -> Plan:
    """The plan, which weighs the clusters that are allocated in the files it may merge: the doomed overlays and what they stand on."""
    from ..plan import merge
    from . import layers

    overlays = [snapshot.file for snapshot in volume.snapshots if snapshot.name in names]
    backings = {str(volume.image(file).backing_file) for file in overlays}
    return merge.delete_snapshots(volume, names, layers.allocations(directory, volume, {*overlays, *backings}))


def revert(candidates: placement.Candidates, volume_name: str, name: str, discard_newer: bool, options: Options) -> Outcome:
    """Make the volume's content that of a snapshot."""
    check_snapshot_name(volume_name, name)
    share = _find(candidates, volume_name, options)
    with Workspace(options) as work:
        work.lock([(share, volume_name)])
        volume, recovered = _settled(work, share, volume_name, dependents=True)
        return carry_out(work, share, planner.revert(volume, name, discard_newer), recovered)


# -- groups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """One volume of a group: where it is, what is planned for it, what its recovery did."""

    share: Share
    plan: Plan
    recovered: list


def take_group(
    candidates: placement.Candidates,
    volumes: list[str],
    wish: planner.SnapshotWish,
    options: Options,
    keep: retention.Policy | None = None,
) -> list[Outcome | StorageError]:
    """Take one snapshot of several volumes, all or nothing, at one point in time: all locks are held and no image is in
    use while the overlays are made.

    :param keep: what stays of each volume's snapshots once all are taken. Where that fails, it is tried for the others all
        the same, and the error stands in the place of the volume's outcome.

    :raises Conflict: some of them have the snapshot already and others have not.
    """
    for name in volumes:
        check_snapshot_name(check_volume_name(name), wish.name)
    shares = {name: _find(candidates, name, options) for name in volumes}
    if len({share.path for share in shares.values()}) > 1:
        raise InvalidParameter(
            f"group of {len(volumes)} volumes",
            "they are on different shares, where no single record can decide for all",
            "group volumes of one share",
        )
    wish = replace(wish, created=wish.created or now())
    with Workspace(options, siblings=True) as work:
        work.lock_families([(shares[name], name) for name in volumes])
        members = [_plan_member(work, shares[name], name, wish, keep is not None) for name in volumes]
        _require_same_state(members, wish.name)
        if not options.check and members[0].plan.intent:
            _apply_group(work, members)
            outcomes = [_outcome_of(work, member) for member in members]
        else:
            outcomes = [carry_out(work, member.share, member.plan, member.recovered) for member in members]
        if keep is None:
            return list(outcomes)
        return [_retain_member(work, member, outcome, keep, wish.name) for member, outcome in zip(members, outcomes)]


def _retain_member(work: Workspace, member: _Member, taken: Outcome, keep: retention.Policy, name: str) -> Outcome | StorageError:
    try:
        return _retain_after(work, member.share, member.plan, taken, keep, name)
    except StorageError as error:
        return error
    except OSError as error:
        return from_os_error(error, f"volume {member.plan.volume} on {member.share.label}")


def _plan_member(work: Workspace, share: Share, name: str, wish: planner.SnapshotWish, dependents: bool) -> _Member:
    volume, recovered = _settled(work, share, name, dependents=dependents)
    return _Member(share, _plan_taking(work, share, volume, wish, recovered), recovered)


def _require_same_state(members: list[_Member], snapshot: str) -> None:
    having = [member.plan.volume for member in members if member.plan.before and member.plan.before.has_snapshot(snapshot)]
    if having and len(having) < len(members):
        raise Conflict(f"snapshot {snapshot}", f"of this group only {', '.join(having)} have it", "choose another name, or delete it there")


def _apply_group(work: Workspace, members: list[_Member]) -> None:
    """All overlays are published before the group is decided, and it is decided before any ``.info`` names one.

    A crash before the decision undoes them all, one after it finishes them all: each volume's own recovery can tell from
    the group's record on its share.
    """
    group = os.urandom(8).hex()
    executors = {member.plan.volume: work.executor(member.share) for member in members}
    with ExitStack() as stack:
        guards: dict[str, Guard] = {}
        for member in members:
            guards[member.plan.volume] = stack.enter_context(executors[member.plan.volume].guarded(member.plan))
        try:
            for member in members:
                executors[member.plan.volume].record_intent(member.plan, group)
            for member in members:
                executors[member.plan.volume].run_data_steps(member.plan, guards[member.plan.volume])
            _decide(work, members, group)
        except (StorageError, OSError):
            _undo(members, executors, guards)
            raise
        for member in members:
            executors[member.plan.volume].run_final_steps(member.plan, guards[member.plan.volume])
    work.directory(members[0].share).make_private("groups").unlink(group_file(group))


def _decide(work: Workspace, members: list[_Member], group: str) -> None:
    directory = work.directory(members[0].share)
    directory.write_record(members[0].plan.volume, directory.make_private("groups"), group_file(group), b"{}")


def _undo(members: list[_Member], executors: dict[str, Executor], guards: dict[str, Guard]) -> None:
    for member in members:
        executors[member.plan.volume].undo_snapshot(member.plan, guards[member.plan.volume])


def _outcome_of(work: Workspace, member: _Member) -> Outcome:
    unchanged = replace(member.plan, steps=())
    looked = carry_out(work, member.share, unchanged, member.recovered)
    return replace(looked, changed=True, actions=member.plan.actions)
