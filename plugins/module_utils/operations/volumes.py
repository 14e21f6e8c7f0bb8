# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of volumes: make sure that one exists as wished or is gone."""

from __future__ import annotations

from dataclasses import replace

from ..errors import VolumeNotFound
from ..model import Share, check_snapshot_name, check_volume_name
from ..store.volumes.look import Look
from .candidates import Candidates
from .transaction import Outcome, carry_out, joined, settle
from .updating import VolumeRequest, bring_up, located
from .workspace import Options, Workspace

# What only changes need is imported where it is used: importing is most of what a task costs that changes nothing.


def ensure_present(request: VolumeRequest, options: Options) -> Outcome:
    """Create the volume (empty or as a clone) or bring the existing one to what is wished.

    :raises StorageError: with the code that docs/errors.md lists for it.
    """
    name = check_volume_name(request.wish.name)
    if request.wish.snapshot is not None:
        check_snapshot_name(name, request.wish.snapshot)
    if options.assume:
        from . import assumptions

        foretold = assumptions.present(request, options)
        if foretold is not None:
            return foretold
        request = request._replace(candidates=assumptions.reachable(request.candidates, options))
    outcome = _updated_or_created(request, options)
    outcome = _flattened(request, options, outcome) if request.wish.flatten else outcome
    return outcome if request.wish.snapshot is None else _with_snapshot(request, options, outcome)


def _with_snapshot(request: VolumeRequest, options: Options, present: Outcome) -> Outcome:
    """Take the snapshot that the volume is to have, unless it has it."""
    from ..plan.desired import SnapshotWish
    from .snapshots import SnapshotRequest, take

    wish = SnapshotWish(str(request.wish.snapshot), max_chain=request.max_chain)
    taken = take(SnapshotRequest(request.candidates, request.wish.name, wish), options)
    if options.check:  # it has ended nothing, and has told of it already
        taken = replace(taken, recovered=[])
    return joined(present, taken)


def _flattened(request: VolumeRequest, options: Options, present: Outcome) -> Outcome:
    """Cut a linked clone loose, now that it is there and its headers are in order."""
    from ..plan import clones
    from . import cluster_tables

    name = request.wish.name
    with Workspace(options) as work:
        share = located(request.candidates, name, options, work.directory)
        if share is None:
            raise VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
        work.lock_families([(share, name)])
        volume, recovered = settle(work, share, name)
        if volume is None:
            raise VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
        read = cluster_tables.look_into(work.directory(share), volume, volume.files[len(volume.own) - 1 :] if volume.parent else (), False)
        known = read.allocations
        told = [] if options.check else recovered  # check mode has ended nothing, and has told of it already
        return joined(present, carry_out(work, share, clones.flatten(volume, known), told))


def _updated_or_created(request: VolumeRequest, options: Options) -> Outcome:
    name = request.wish.name
    recovered: list[dict] = []
    with Workspace(options) as work:
        share = located(request.candidates, name, options, work.directory)
        if share is not None:
            work.lock([(share, name)])
            volume, recovered = settle(work, share, name, request.wish.format)
            if volume is not None:
                return bring_up(work, share, volume, request, recovered)
    # It is not there, it went away before the lock was ours, or only its unfinished deletion was left. Check mode, which ended
    # nothing, meets that once more; a run has ended it here.
    from .creation import create

    return create(request, options, [] if options.check else recovered)


def ensure_absent(candidates: Candidates, name: str, cascade: bool, options: Options) -> Outcome:
    """Remove a volume; one that does not exist on any candidate is no change."""
    if options.assume:
        from . import assumptions

        foretold = assumptions.absent(candidates, check_volume_name(name), cascade, options)
        if foretold is not None:
            return foretold
        candidates = assumptions.reachable(candidates, options)
    with Workspace(options) as work:
        share = located(candidates, check_volume_name(name), options, work.directory) or _unfinished_on(work, candidates, name)
        if share is None:
            return Outcome(name, False, [], [], None, None)
        from .removal import remove

        return remove(work, share, name, cascade)


def _unfinished_on(work: Workspace, candidates: Candidates, name: str) -> Share | None:
    """Where an interrupted task left a record or temporary files of a volume that is not there."""
    from ..apply.interrupted import find_interrupted

    return next((share for share in candidates.shares if find_interrupted(Look(work.directory(share), name))), None)
