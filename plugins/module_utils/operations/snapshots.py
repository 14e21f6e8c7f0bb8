# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of snapshots: take one, take one of several volumes at once, delete some, revert to one."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ..apply.executor import Executor, group_file, now
from ..apply.offline import Guard
from ..errors import Conflict, InvalidParameter, StorageError, VolumeNotFound
from ..model import Share, Volume, check_snapshot_name, check_volume_name
from ..plan import merge, planner
from ..plan.cost import Allocation
from ..plan.plan import Plan
from ..store import kinship, qcow2
from ..store.directory import ShareDirectory
from . import placement
from .transaction import Options, Outcome, Workspace, carry_out, settle


@dataclass(frozen=True)
class SnapshotRequest:
    """A volume on one of ``candidates``, and what is wanted of one of its snapshots."""

    candidates: placement.Candidates
    volume: str
    wish: planner.SnapshotWish


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
    return volume, recovered


def take(request: SnapshotRequest, options: Options) -> Outcome:
    """Take a snapshot; one that exists is no change but for a description or labels that differ."""
    check_snapshot_name(request.volume, request.wish.name)
    share = _find(request.candidates, request.volume, options)
    with Workspace(options) as work:
        work.lock([(share, request.volume)])
        volume, recovered = _settled(work, share, request.volume)
        plan = _plan_taking(work, share, volume, request.wish)
        return carry_out(work, share, plan, recovered)


def _plan_taking(work: Workspace, share: Share, volume: Volume, wish: planner.SnapshotWish) -> Plan:
    plan = planner.create_snapshot(volume, replace(wish, created=wish.created or now()))
    if plan.intent and plan.after is not None:
        kinship.require_free_name(work.directory(share), plan.after.active.file, volume.name)
    return plan


def delete(candidates: placement.Candidates, volume_name: str, names: list[str], options: Options) -> Outcome:
    """Delete snapshots in one pass; names that do not exist are no change."""
    for name in names:
        check_snapshot_name(volume_name, name)
    share = _find(candidates, volume_name, options)
    with Workspace(options) as work:
        work.lock([(share, volume_name)])
        volume, recovered = _settled(work, share, volume_name, dependents=True)
        plan = merge.delete_snapshots(volume, names, _allocations(work.directory(share), volume, names))
        return carry_out(work, share, plan, recovered)


def _allocations(directory: ShareDirectory, volume: Volume, names: list[str]) -> dict[str, Allocation]:
    """Allocated clusters of the files that the deletion may merge: the doomed overlays and what they stand on."""
    wanted = set()
    for snapshot in volume.snapshots:
        if snapshot.name in names:
            wanted |= {snapshot.file, volume.image(snapshot.file).backing_file}
    known = {}
    for image in volume.chain:
        if image.file in wanted and image.format == "qcow2" and directory.root.status(image.file) is not None:
            with directory.root.opened(image.file) as fd:
                header = qcow2.read_header(fd)
                tables = qcow2.allocation(fd, header)
            if tables is not None:
                known[image.file] = Allocation(header.cluster_size, header.l2_entries, tables)
    return known


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


def take_group(candidates: placement.Candidates, volumes: list[str], wish: planner.SnapshotWish, options: Options) -> list[Outcome]:
    """Take one snapshot of several volumes, all or nothing, at one point in time: all locks are held and no image is in
    use while the overlays are made.

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
        work.lock([(shares[name], name) for name in volumes])
        members = [_plan_member(work, shares[name], name, wish) for name in volumes]
        _require_same_state(members, wish.name)
        if not options.check and members[0].plan.intent:
            _apply_group(work, members)
            return [_outcome_of(work, member) for member in members]
        return [carry_out(work, member.share, member.plan, member.recovered) for member in members]


def _plan_member(work: Workspace, share: Share, name: str, wish: planner.SnapshotWish) -> _Member:
    volume, recovered = _settled(work, share, name)
    return _Member(share, _plan_taking(work, share, volume, wish), recovered)


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
