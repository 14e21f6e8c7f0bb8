# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode before the first run: volumes, sources and shares that are not there yet.

An earlier task of the playbook would have made them by then. So check mode names what is missing in a warning, assumes that it is
there, and predicts the change from that. What nobody can know, such as the size of a volume that is not there, is null.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Iterable, Sequence

from .. import errors, model
from ..plan import planner
from ..plan.desired import DesiredSnapshot, Source
from ..plan.plan import Plan
from ..store.files.directory import ShareDirectory
from ..store.volumes import chains
from . import capacity, diffs, placement, report, transaction, updating
from .candidates import Candidates
from .options import Options

if TYPE_CHECKING:
    from ..plan.retention import Policy
    from . import shapes, snapshots

_MADE_EARLIER = "check mode assumes that an earlier task makes it"


def reachable(candidates: Candidates, options: Options) -> Candidates:
    """The candidates without the shares that are not there yet. Servers that do not answer are still errors."""
    return reachable_for_reading(candidates, options.task.warn)


def reachable_for_reading(candidates: Candidates, warn: Callable[[str], None]) -> Candidates:
    """The candidates without the shares that are not there yet, which a warning names."""
    if not candidates.missing:
        return candidates
    sources = model.listed(share.source for share in candidates.missing)
    problem = f"share {sources} is not mounted or does not exist yet: check mode assumes that an earlier task sees to it"
    warn(f"{problem}. If there is none, mount it, or create its directory, with remotefs_share")
    return Candidates(candidates.shares, tuple(error for error in candidates.unreadable if error not in candidates.excused))


# -- volumes ---------------------------------------------------------------------------------------------------------------


def present(request: updating.VolumeRequest, options: Options) -> transaction.Outcome | None:
    """The creation of a volume whose share or source is not there yet; None where both are there, so that nothing is assumed."""
    desired, there = request.desired, reachable(request.candidates, options)
    model.check_volume_name(desired.name)
    known = _assumed(request.candidates, desired.name, options)
    if known is not None:
        share, volume = known
        return assumed_outcome(share, options, [planner.ensure_volume(volume, desired)], volume)
    if not there.shares:
        if there.unreadable or not request.candidates.missing:
            return None
        return _create(request, request.candidates.missing[0], options)
    if request.source is None or updating.located(there, desired.name, options) or _has_failed(request, options) or _has_source(request, options):
        return None
    share = placement.place(desired.name, there, there, capacity.Demand(desired.size or 0), request.policy, options.task.capacity, options.check)
    return _create(request, share, options)


def _create(request: updating.VolumeRequest, share: model.Share, options: Options) -> transaction.Outcome:
    from ..plan import clones

    desired, source = request.desired, request.source
    if request.image is not None:
        from .importing import foretold_source

        plans = [planner.create_volume(desired._replace(source=foretold_source(request.image, desired, options)))]
    elif desired.seed is not None:
        from ..plan import seeds

        plans = [seeds.create(desired, desired.seed)]
    elif source is None:
        plans = [planner.create_volume(desired)]
    else:
        parent = _source(request, options)
        snapshot, prepared = source.snapshot, []
        if source.linked and snapshot is None:
            snapshot = clones.snapshot_for(desired.name)
            prepared = [planner.create_snapshot(parent, DesiredSnapshot(snapshot, created=model.now(), max_chain=source.max_chain))]
            parent = prepared[0].after or parent
        if source.linked:
            plans = [*prepared, clones.create_clone(desired, parent, str(snapshot), source.max_chain)]
        else:
            seen = parent.view(parent.point_file(snapshot) if snapshot else parent.active.file)
            label = Source(source.label, seen[0].size, sum(image.allocated for image in seen))
            plans = [planner.create_volume(desired._replace(source=label))]
    volume = plans[-1].after
    if desired.flatten and volume is not None:
        plans.append(clones.flatten(volume, {}))
        volume = plans[-1].after
    if desired.snapshot and volume is not None:
        plans.append(planner.create_snapshot(volume, DesiredSnapshot(desired.snapshot, created=model.now(), max_chain=request.max_chain)))
    return assumed_outcome(share, options, plans, None)


def _source(request: updating.VolumeRequest, options: Options) -> model.Volume:
    """The source as it is, or as it is assumed to be: a volume with the snapshot that is asked for."""
    source = request.source
    if source is None:
        raise ValueError("there is no source")
    found = _known(request.source_candidates, model.check_volume_name(source.volume), options)
    if found is None:
        where = f" on {source.elsewhere.name}" if source.elsewhere else ""
        options.task.warn(f"source volume {source.volume} does not exist yet{where}: {_MADE_EARLIER}")
        found = assumed_volume(source.volume)
    return with_snapshot(found, source.snapshot, options) if source.snapshot else found


def _has_failed(request: updating.VolumeRequest, options: Options) -> bool:
    """Whether an item of this task could not make the source: then no other task does."""
    there = request.source_candidates
    return request.source is not None and any((share.path, request.source.volume) in options.task.failed for share in (*there.shares, *there.missing))


def _has_source(request: updating.VolumeRequest, options: Options) -> bool:
    source = request.source
    found = None if source is None else _known(request.source_candidates, model.check_volume_name(source.volume), options)
    return found is not None and source is not None and (source.snapshot is None or found.has_snapshot(source.snapshot))


def absent(candidates: Candidates, name: str, cascade: bool, options: Options) -> transaction.Outcome | None:
    """What the removal of a volume would find where its share is not there yet; None where it is."""
    there = reachable(candidates, options)
    known = _assumed(candidates, name, options)
    if known is not None:
        share, volume = known
        plan = planner.delete_volume(volume, cascade)
        options.task.predicted[(share.path, name)] = None
        options.task.capacity.follow(share, volume, None)
        return transaction.Outcome(name, True, plan.actions, [], _result(volume, share), None)
    gone = (share.path for share in (*candidates.shares, *candidates.missing) if (share.path, name) in options.task.predicted)
    if any(options.task.predicted[path, name] is None for path in gone):
        return transaction.Outcome(name, False, [], [], None, None)  # an earlier item removes it
    return transaction.Outcome(name, False, [], [], None, None) if candidates.missing and not there.shares and not there.unreadable else None


# -- snapshots -------------------------------------------------------------------------------------------------------------


def missing_volume(candidates: Candidates, name: str, options: Options, quiet: bool = False) -> tuple[model.Share, model.Volume] | None:
    """A volume that is not there yet, as it is assumed to be, and where; None where it is there, or where only a server that does
    not answer could tell."""
    model.check_volume_name(name, "globs go into volumes")
    known = _assumed(candidates, name, options)
    if known is not None:
        return known
    there = reachable(candidates, options)
    if there.unreadable or not (there.shares or candidates.missing) or updating.located(there, name, options):
        return None
    share = (there.shares or candidates.missing)[0]
    if not quiet:
        options.task.warn(f"volume {name} does not exist yet on {share.source}: {_MADE_EARLIER}")
    return share, assumed_volume(name)


class AssumedImage(model.Image):
    """The base of a volume of which only the name is known. It counts as raw and empty. Results show null for both."""


def assumed_volume(name: str) -> model.Volume:
    """A volume of which only the name is known: neither its format nor its size, nor whether it is a linked clone."""
    return model.Volume(name, (AssumedImage(name, "raw", 0),), adopted=True)


def with_snapshot(volume: model.Volume, name: str, options: Options) -> model.Volume:
    """The volume with a snapshot that it has not yet, and written to since."""
    if volume.has_snapshot(name):
        return volume
    options.task.warn(f"snapshot {name} of volume {volume.name} does not exist yet: {_MADE_EARLIER}")
    plan = planner.create_snapshot(volume, DesiredSnapshot(name, max_chain=chains.MAX_CHAIN))
    after = plan.after or volume
    return after.with_images(**{after.active.file: replace(after.active, empty=False)})


def taken(request: snapshots.SnapshotRequest, options: Options) -> transaction.Outcome | None:
    """The snapshot of a volume that is not there yet; None where it is."""
    found = missing_volume(request.candidates, request.volume, options)
    if found is None:
        return None
    share, volume = found
    plan = planner.create_snapshot(volume, request.desired._replace(created=request.desired.created or model.now()))
    outcome = assumed_outcome(share, options, [plan], volume)
    return outcome if request.keep is None else _judged(outcome, plan.after or volume, request.keep, request.desired.name)


def kept(candidates: Candidates, name: str, policy: Policy, options: Options) -> transaction.Outcome | None:
    """Retention on a volume that is not there yet; None where it is."""
    found = missing_volume(candidates, name, options)
    if found is None:
        return None
    share, volume = found
    outcome = assumed_outcome(share, options, [], volume)
    return _judged(replace(outcome, changed=True), volume, policy, None)


def _judged(outcome: transaction.Outcome, volume: model.Volume, policy: Policy, named: str | None) -> transaction.Outcome:
    from ..plan import retention

    return replace(outcome, retention=[verdict.describe() for verdict in retention.judge(volume, policy, named, model.now())])


def reverted(candidates: Candidates, name: str, snapshot: str, discard_newer: bool, options: Options) -> transaction.Outcome | None:
    """The revert of a volume that is not there yet; None where it is."""
    found = missing_volume(candidates, name, options)
    if found is None:
        return None
    share, volume = found[0], with_snapshot(found[1], snapshot, options)
    plan = planner.revert(volume, snapshot, discard_newer)
    return replace(assumed_outcome(share, options, [plan], volume), content=diffs.content_goes_back(plan, snapshot))


def deleted(candidates: Candidates, name: str, names: Sequence[str], options: Options) -> transaction.Outcome | None:
    """Deletions on a volume that is not there yet, with those snapshots only that earlier items of the task take. None where it
    is there."""
    found = missing_volume(candidates, name, options)
    if found is None:
        return None
    share, volume = found
    if (share.path, name) not in options.task.assumed:
        return transaction.Outcome(name, False, [], [], None, None)
    from ..plan import merge
    from .snapshots import meant

    return assumed_outcome(share, options, [merge.delete_snapshots(volume, meant(volume, names), {})], volume)


# -- what is known and assumed -------------------------------------------------------------------------------------------------


def _assumed(candidates: Candidates, name: str, options: Options) -> tuple[model.Share, model.Volume] | None:
    """What an earlier item of this task has assumed to be there."""
    for share in (*candidates.shares, *candidates.missing):
        volume = options.task.predicted.get((share.path, name))
        if (share.path, name) in options.task.assumed and volume is not None:
            return share, volume
    return None


def _known(candidates: Candidates, name: str, options: Options) -> model.Volume | None:
    """A volume as it is, or as earlier items of the task leave it."""
    for share in (*candidates.shares, *candidates.missing):
        volume = options.task.predicted.get((share.path, name))
        if volume is not None:
            return volume
    where = updating.located(reachable(candidates, options), name, options)
    if where is None:
        return None
    with ShareDirectory(where) as directory:
        observed = chains.observe(directory, name)
    return observed.volume if observed else None


def assumed_outcome(share: model.Share, options: Options, plans: Sequence[Plan], before: model.Volume | None) -> transaction.Outcome:
    """What check mode says of plans for a volume of a share that is not there yet. Later parts of the task assume that they are carried out."""
    after = before
    for plan in plans:
        after = plan.after
        options.task.predicted[(share.path, plan.volume)] = after
        options.task.capacity.follow(share, plan.before, after)
        options.task.assumed.add((share.path, plan.volume))
    if after is None:
        raise ValueError("something is assumed to be there afterwards")
    if not plans:
        options.task.predicted[(share.path, after.name)] = after
        options.task.assumed.add((share.path, after.name))
    actions = [action for plan in plans for action in plan.actions]
    changed, told = any(plan.changed for plan in plans), _result(before, share) if before else None
    return with_unknown_sizes(transaction.Outcome(after.name, changed, actions, [], told, _result(after, share)))


def with_unknown_sizes(outcome: transaction.Outcome) -> transaction.Outcome:
    """What check mode says, where a size of 0 means that nobody can know it."""
    actions = [{**action, "size": None} if action.get("size") == 0 else action for action in outcome.actions]
    for result in (outcome.before, outcome.after):
        if result is not None and not result["chain"][-1]["size"]:
            result["size"] = result["size"] or None
            for image in result["chain"]:
                image["size"] = image["size"] or None
    return replace(outcome, actions=actions)


def told_of(share: model.Share, volume: model.Volume, options: Options) -> shapes.VolumeResult | None:
    """A volume that is assumed to be there, as modules return it. Later parts of the task assume it, too."""
    return assumed_outcome(share, options, [], volume).after


def _result(volume: model.Volume, share: model.Share) -> shapes.VolumeResult:
    """The volume for users. What is not known of its base is None."""
    result = report.volume(volume, share, False)
    if isinstance(volume.base, AssumedImage):
        result["chain"][-1]["format"] = result["base_format"] = None
        result["format"] = result["chain"][0]["format"]
    return result


def any_missing(names: Iterable[str], candidates: Candidates, options: Options) -> bool:
    """Whether one of these volumes is not there yet."""
    found = False
    for name in names:
        try:
            found = missing_volume(candidates, name, options, quiet=True) is not None or found
        except errors.StorageError:
            continue  # the work on it will report the error
    return found
