# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of volumes: make sure that one exists as desired or is gone."""

from __future__ import annotations

import os

from .. import errors, model
from ..store.volumes import look
from . import transaction, updating, workspace
from .candidates import Candidates
from .options import Options

# What only changes need is imported where it is used: importing is most of what a task costs that changes nothing.


def ensure_present(request: updating.VolumeRequest, options: Options) -> transaction.Outcome:
    """Create the volume (empty or as a clone) or bring the existing one to what is desired.

    :raises StorageError: with the code that docs/errors.md lists for it.
    """
    name = model.check_volume_name(request.desired.name)
    if request.desired.snapshot is not None:
        model.check_snapshot_name(name, request.desired.snapshot)
    if options.lease is not None:
        if request.moved_from is not None:
            raise errors.InvalidParameter("option moved_from", "a volume that moves was not made under the lease", "move it without option lease")
        options.lease.require_listed(name)
        request = request._replace(desired=request.desired._replace(lease=options.lease.id))
    moved = None
    if request.moved_from is not None:
        from .moving import move

        moved = move(request, request.moved_from, options)
    if options.assume:
        from . import assumptions

        predicted = assumptions.present(request, options) if moved is None else None
        if predicted is not None:
            return predicted
        request = request._replace(candidates=assumptions.reachable(request.candidates, options))
    outcome = _updated_or_created(request, options)
    if moved is not None:
        outcome = transaction.joined(moved, outcome)
    outcome = _flattened(request, options, outcome) if request.desired.flatten else outcome
    return outcome if request.desired.snapshot is None else _with_snapshot(request, options, outcome)


def _with_snapshot(request: updating.VolumeRequest, options: Options, present: transaction.Outcome) -> transaction.Outcome:
    """Take the snapshot that the volume is to have, unless it has it."""
    from ..plan.desired import DesiredSnapshot
    from .snapshots import SnapshotRequest, take

    desired = DesiredSnapshot(str(request.desired.snapshot), max_chain=request.max_chain)
    return transaction.joined(present, take(SnapshotRequest(request.candidates, request.desired.name, desired), options))


def _flattened(request: updating.VolumeRequest, options: Options, present: transaction.Outcome) -> transaction.Outcome:
    """Cut a linked clone loose, now that it is there and its headers are in order."""
    from ..plan import clones
    from . import cluster_tables

    name = request.desired.name
    with workspace.Workspace(options) as work:
        share = updating.located(request.candidates, name, options, work.directory)
        if share is None:
            raise errors.VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
        work.locks.take_families([(share, name)])
        volume, recovered = transaction.recover(work, share, name)
        if volume is None:
            raise errors.VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
        read = cluster_tables.look_into(work.directory(share), volume, volume.files[len(volume.own) - 1 :] if volume.parent else (), False)
        known = read.allocations
        return transaction.joined(present, transaction.carry_out(work, share, clones.flatten(volume, known), recovered))


def _updated_or_created(request: updating.VolumeRequest, options: Options) -> transaction.Outcome:
    name = request.desired.name
    recovered: list[dict] = []
    with workspace.Workspace(options) as work:
        share = updating.located(request.candidates, name, options, work.directory)
        if share is not None:
            work.locks.take([(share, name)])
            volume, recovered = transaction.recover(work, share, name, request.desired.format)
            if volume is not None:
                _let_image_go(work, share, request)
                return updating.update_volume(work, share, volume, request, recovered)
    # It is not there, it went away before the lock was ours, or only its unfinished deletion was left.
    from .creation import create

    return create(request, options, recovered)


def _let_image_go(work: workspace.Workspace, share: model.Share, request: updating.VolumeRequest) -> None:
    """The volume is there, and needs its image no more."""
    folder = work.directory(share).private("images") if request.image is not None and not work.options.check else None
    if request.image is not None and folder is not None and os.listdir(folder.fd):
        from .importing import let_go

        let_go(share, request.image, work.options)


def ensure_absent(candidates: Candidates, name: str, cascade: bool, options: Options) -> transaction.Outcome:
    """Remove a volume; one that does not exist on any candidate is no change."""
    if options.assume:
        from . import assumptions

        predicted = assumptions.absent(candidates, model.check_volume_name(name), cascade, options)
        if predicted is not None:
            return predicted
        candidates = assumptions.reachable(candidates, options)
    with workspace.Workspace(options) as work:
        share = updating.located(candidates, model.check_volume_name(name), options, work.directory) or _unfinished_on(work, candidates, name)
        if share is None:
            return transaction.Outcome(name, False, [], [], None, None)
        from .removal import remove

        return remove(work, share, name, cascade)


def _unfinished_on(work: workspace.Workspace, candidates: Candidates, name: str) -> model.Share | None:
    """Where an interrupted task left a record or temporary files of a volume that is not there."""
    from ..apply.interrupted import find_interrupted

    return next((share for share in candidates.shares if find_interrupted(look.Look(work.directory(share), name, work.options.attachment))), None)
