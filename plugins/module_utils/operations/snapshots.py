# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of snapshots: take one, delete some, keep what a policy says, revert to one."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Sequence

from .. import errors, model
from ..plan.desired import DesiredSnapshot
from ..plan.plan import CREATE_SNAPSHOT, DELETE_SNAPSHOT, Plan
from . import transaction, workspace
from .candidates import Candidates, locate
from .options import Options

if TYPE_CHECKING:
    from ..plan import retention

# What deletions and changes need is imported where it is used: importing is most of what a task costs that changes nothing.


class SnapshotRequest(NamedTuple):
    """A volume on one of ``candidates``, what is desired of one of its snapshots, and what to ``keep`` besides that one."""

    candidates: Candidates
    volume: str
    desired: DesiredSnapshot
    keep: retention.Policy | None = None


def find(work: workspace.Workspace, candidates: Candidates, name: str) -> model.Share:
    """:raises VolumeNotFound: no candidate has the volume."""
    options = work.options
    model.check_volume_name(name, "globs go into volumes")
    if options.assume:
        from . import assumptions

        candidates = assumptions.reachable(candidates, options)
    for share in candidates.shares:
        if options.task.predicted.get((share.path, name)) is not None:
            return share
    found = locate(candidates, name, work.directory)
    if found is None:
        raise errors.VolumeNotFound(
            f"volume {name}", "it is on none of the given shares", "check the name, or create it first with remotefs_volume"
        )
    return found


def recovered_volume(work: workspace.Workspace, share: model.Share, name: str, dependents: bool = False) -> tuple[model.Volume, list]:
    """As :func:`recover`. :raises VolumeNotFound: there is no such volume."""
    volume, recovered = transaction.recover(work, share, name, dependents=dependents)
    if volume is None:
        raise errors.VolumeNotFound(f"volume {name}", f"it is not on {share.source}", "check the name, or create it first with remotefs_volume")
    if work.options.permit is not None:
        work.options.permit(volume)
    return work.mode.without_itself(volume), recovered


def take(request: SnapshotRequest, options: Options, in_group: bool = False) -> transaction.Outcome:
    """Take a snapshot. One that exists is no change, unless its description, labels or protection differ. Then remove what
    ``request.keep`` does not keep.

    :param in_group: it is one of several, so that the machine need not have this volume open.
    """
    model.check_snapshot_name(request.volume, request.desired.name)
    if options.assume:
        from . import assumptions

        predicted = assumptions.taken(request, options)
        if predicted is not None:
            return predicted
    with workspace.Workspace(options, siblings=in_group) as work:
        share = find(work, request.candidates, request.volume)
        (work.locks.take_families if request.keep else work.locks.take)([(share, request.volume)])
        volume, recovered = recovered_volume(work, share, request.volume, dependents=request.keep is not None)
        plan = plan_taking(work, share, volume, request.desired, recovered)
        taken = transaction.carry_out(work, share, plan, recovered)
        return taken if request.keep is None else retain_after(work, share, plan, taken, request.keep, request.desired.name)


def plan_taking(work: workspace.Workspace, share: model.Share, volume: model.Volume, desired: DesiredSnapshot, recovered: list) -> Plan:
    """The plan that takes a snapshot, or changes what is said of it. :param recovered: as :func:`recover` returns it."""
    if desired.is_satisfied_by(volume):
        return Plan(CREATE_SNAPSHOT, volume.name, (), volume, volume)
    from ..plan import planner
    from .refusals import require_free_name

    if not volume.adopted:
        from . import cluster_tables

        cluster_tables.require_whole(work.directory(share), volume.chain)
    plan = planner.create_snapshot(volume, desired._replace(created=desired.created or model.now()))
    if plan.intent and plan.after is not None:
        require_free_name(work.directory(share), plan.after.active.file, volume.name, work.mode.still_there(recovered))
    return plan


def retain(candidates: Candidates, volume_name: str, policy: retention.Policy | None, options: Options) -> transaction.Outcome:
    """Remove the snapshots that have expired and those that a policy does not keep, in one pass."""
    if options.assume:
        from . import assumptions

        told = assumptions.kept(candidates, volume_name, policy, options) if policy else assumptions.deleted(candidates, volume_name, (), options)
        if told is not None:
            return told
    with workspace.Workspace(options) as work:
        share = find(work, candidates, volume_name)
        work.locks.take_families([(share, volume_name)])
        volume, recovered = recovered_volume(work, share, volume_name, dependents=True)
        return _retain(work, share, volume, recovered, policy, None)


def _retain(
    work: workspace.Workspace, share: model.Share, volume: model.Volume, recovered: list, policy: retention.Policy | None, named: str | None
) -> transaction.Outcome:
    from ..plan import retention

    verdicts = retention.judge(volume, policy, named, model.now())
    doomed = [verdict.snapshot.name for verdict in verdicts if not verdict.reasons]
    plan = plan_deletion(work, share, volume, doomed)
    done = transaction.carry_out(work, share, plan, recovered)
    return replace(done, retention=[verdict.describe() for verdict in verdicts])


def retain_after(
    work: workspace.Workspace, share: model.Share, plan: Plan, taken: transaction.Outcome, policy: retention.Policy, name: str
) -> transaction.Outcome:
    """The retention of a volume on which ``plan`` has taken snapshot ``name``, both as one outcome."""
    volume = plan.after
    if volume is None:
        raise ValueError("a snapshot is of a volume")
    kept = _retain(work, share, work.mode.volume_after(share, volume), [], policy, name)
    return replace(transaction.joined(taken, kept), retention=kept.retention)


def delete(candidates: Candidates, volume_name: str, names: list[str], options: Options) -> transaction.Outcome:
    """Delete snapshots in one pass; names that do not exist are no change. A glob stands for all that match and are not protected:
    it names none of them."""
    for name in names:
        if not model.is_glob(name):
            model.check_snapshot_name(volume_name, name)
    if options.assume:
        from . import assumptions

        predicted = assumptions.deleted(candidates, volume_name, names, options)
        if predicted is not None:
            return predicted
    with workspace.Workspace(options) as work:
        share = find(work, candidates, volume_name)
        work.locks.take_families([(share, volume_name)])
        volume, recovered = recovered_volume(work, share, volume_name, dependents=True)
        plan = plan_deletion(work, share, volume, meant(volume, names))
        return transaction.carry_out(work, share, plan, recovered)


def meant(volume: model.Volume, names: Sequence[str]) -> list[str]:
    """The snapshots that names and globs stand for."""
    globs = [name for name in names if model.is_glob(name)]
    matching = [one.name for one in volume.snapshots if not one.protected and any(fnmatchcase(one.name, glob) for glob in globs)]
    return [name for name in names if name not in globs] + matching


def plan_deletion(work: workspace.Workspace, share: model.Share, volume: model.Volume, names: list[str]) -> Plan:
    """The plan that deletes these snapshots. It weighs the clusters that are allocated in the files it may merge: the doomed overlays and
    what they stand on."""
    stale = {name for name, _file in volume.stale}.intersection(names)
    if not stale and not any(volume.has_snapshot(name) for name in names):
        return Plan(DELETE_SNAPSHOT, volume.name, (), volume, volume)
    from ..plan import merge
    from . import cluster_tables

    if stale:
        return _deletion_with_stale(work, share, volume, names)

    attachment = work.options.attachment
    attached, commits_only = attachment is not None, attachment is not None and attachment.has_definition
    overlays = [snapshot.file for snapshot in volume.snapshots if snapshot.name in names]
    backings = {str(volume.image(file).backing_file) for file in overlays}
    known = cluster_tables.look_into(work.directory(share), volume, {*overlays, *backings}, not work.options.drop_bitmaps, attached)
    return merge.delete_snapshots(volume, names, known.allocations, known.fixed_tails, known.bitmaps, commits_only)


def _deletion_with_stale(work: workspace.Workspace, share: model.Share, volume: model.Volume, names: list[str]) -> Plan:
    """As :func:`plan_deletion`, where some of the names are entries of ``.info`` whose file is no overlay of the chain. Such a file goes as
    well, if it is surely this volume's and nothing rests on it."""
    from ..plan import merge
    from ..store.metadata.stale import left_by_stale

    remains = left_by_stale(work.directory(share), volume, names)
    resting = {file for _clone, file in volume.dependents}
    rest = replace(volume, stale=tuple(pair for pair in volume.stale if pair[0] not in names))
    return merge.drop_stale(volume, plan_deletion(work, share, rest, names), tuple(file for file in remains if file not in resting))


def revert(candidates: Candidates, volume_name: str, name: str, discard_newer: bool, options: Options) -> transaction.Outcome:
    """Make the volume's content that of a snapshot."""
    model.check_snapshot_name(volume_name, name)
    from ..plan import planner
    from . import diffs
    from .refusals import plan_that_gives_up

    if options.assume:
        from . import assumptions

        predicted = assumptions.reverted(candidates, volume_name, name, discard_newer, options)
        if predicted is not None:
            return predicted
    with workspace.Workspace(options) as work:
        share = find(work, candidates, volume_name)
        work.locks.take([(share, volume_name)])
        volume, recovered = recovered_volume(work, share, volume_name, dependents=True)
        if options.assume and not volume.has_snapshot(name):
            volume = assumptions.with_snapshot(volume, name, options)
        plan = plan_that_gives_up(work, share, partial(planner.revert, volume, name), discard_newer)
        return replace(transaction.carry_out(work, share, plan, recovered), content=diffs.content_goes_back(plan, name))
