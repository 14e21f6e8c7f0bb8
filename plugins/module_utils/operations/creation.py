# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that do not exist yet: where they go, and how they are made, empty or as clones."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import errors, model
from ..apply import interrupted
from ..plan import planner
from ..plan.desired import DesiredSnapshot, DesiredVolume, Source
from ..plan.plan import CREATE_SNAPSHOT, Plan
from ..store.volumes import chains, ownership
from . import capacity, placement, refusals, sources, transaction, updating, workspace
from .candidates import Candidates
from .options import Options, TakesLong

if TYPE_CHECKING:
    from ..apply import engine
    from .importing import ImageRequest


def create(request: updating.VolumeRequest, options: Options, ended: list) -> transaction.Outcome:
    """Create under locks on all candidate shares, so that two tasks never create the name on two of them.

    :param ended: what was recovered on the way here.
    """
    request = request._replace(desired=request.desired._replace(created=request.desired.created or model.now()))
    candidates = request.candidates
    candidates.require_all()
    with suppress(OSError):  # to be told where a share is chosen
        options.task.capacity.look(candidates.shares)
    if request.image is None:
        return _create(request, options, ended, None)
    try:
        return _create_from_image(request, request.image, options, ended)
    except errors.NoEligibleShare as error:  # with an image it is a question of its size
        raise errors.NoSpace(f"image {request.image.label}", f"{error.subject}: {error.problem}", error.remedy) from error


def _create_from_image(request: updating.VolumeRequest, image: ImageRequest, options: Options, ended: list) -> transaction.Outcome:
    """The image arrives on a share before anything is locked for the volume, because that may take long."""
    if options.check:
        from . import assumptions

        return assumptions.with_unknown_sizes(_create(request, options, ended, None))
    from . import importing

    if options.task.may_begin_anew:
        raise TakesLong
    wanted = placement.demand(request.desired)
    share = placement.choose(request.candidates, wanted.size, wanted.at_once, request.policy, options.task.capacity)
    with importing.arrived(share, image, request.desired.size, request.policy, options) as arrived:
        return _create(request, options, ended, (share, *importing.as_source(arrived, image)))


def _create(request: updating.VolumeRequest, options: Options, ended: list, image: tuple[model.Share, engine.CopySource, Source] | None) -> transaction.Outcome:
    """:param image: what the volume is a copy of, and the share that has it."""
    name, candidates = request.desired.name, request.candidates
    with workspace.Workspace(options) as work:
        source_share = _source_share(work, request)
        wanted = [(share, name) for share in candidates.shares if len(candidates.shares) == 1 or _writable(share)]
        sources.lock(work, wanted, source_share, request.source)
        again = work.mode.located(candidates, name)
        if again is not None and chains.observe(work.directory(again), name) is not None:
            volume, recovered = transaction.recover(work, again, name, request.desired.format)
            if volume is not None:
                return updating.update_volume(work, again, volume, request, ended + recovered)
        return _create_locked(work, request, source_share, ended, image)


def _writable(share: model.Share) -> bool:
    return os.access(share.path, os.W_OK)


def _create_locked(
    work: workspace.Workspace,
    request: updating.VolumeRequest,
    source_share: model.Share | None,
    ended: list,
    image: tuple[model.Share, engine.CopySource, Source] | None,
) -> transaction.Outcome:
    if request.source and request.source.linked and source_share:
        return _create_linked(work, request, source_share, ended)
    desired, copy = request.desired, None
    source_told: list = []
    if request.source and source_share:
        copy, told, source_told = sources.open_source(work, source_share, request.source)
        desired = desired._replace(source=told)
    if image is not None:
        source_share, copy, told = image
        desired = desired._replace(source=told)
    elif request.image is not None:
        from .importing import foretold_source

        desired = desired._replace(source=foretold_source(request.image, desired, work.options))
    wanted = placement.demand(desired if desired.size or not desired.source else desired._replace(size=desired.source.size))
    if desired.source and source_share:
        wanted = placement.demand_of_clone(desired, False, source_share, desired.source.size, desired.source.allocated or 0, request.candidates)
    plan = _plan_of(desired)
    share = _place(work, request, request.candidates, wanted)
    recovered = transaction.each_once(ended, source_told, _clear_unfinished(work, request.candidates, desired.name))
    _require_free_name(work, share, desired.name, recovered)
    if request.seed is not None:
        from . import seeds

        copy = seeds.source_of(work, share, request.seed)
    return transaction.carry_out(work, share, plan, recovered, copy)


def _plan_of(desired: DesiredVolume) -> Plan:
    if desired.seed is None:
        return planner.create_volume(desired)
    from ..plan import seeds  # late: few volumes are one

    return seeds.create(desired, desired.seed)


def _place(work: workspace.Workspace, request: updating.VolumeRequest, able: Candidates, wanted: capacity.Demand) -> model.Share:
    return placement.place(request.desired.name, request.candidates, able, wanted, request.policy, work.options.task.capacity, work.options.check)


def _create_linked(work: workspace.Workspace, request: updating.VolumeRequest, share: model.Share, ended: list) -> transaction.Outcome:
    """A linked clone, after a snapshot was taken for it where a volume is its source.

    Everything that can be refused is, before the source is touched.
    """
    from ..plan import clones
    from . import cluster_tables

    desired, source = request.desired, request.source
    if source is None:
        raise errors.VolumeNotFound(f"source of volume {desired.name}", "it is not given", "say source.volume")
    parent, told = transaction.recover(work, share, source.volume)
    if parent is None:
        raise errors.VolumeNotFound(f"source volume {source.volume}", f"it is not on {share.source}", "check the name, or create it first")
    snapshot = source.snapshot or clones.snapshot_for(desired.name)
    model.check_snapshot_name(source.volume, snapshot)
    prepared = _prepare_parent(parent, source, snapshot)
    planned = prepared.after or parent
    plan = clones.create_clone(desired, planned, snapshot, source.max_chain)
    below, on_it = planned.view(planned.point_file(snapshot)), request.candidates._replace(shares=(share,))
    cluster_tables.require_whole(work.directory(share), below, thorough=False)
    held = sources.held(work, share, source, below)
    _place(work, request, on_it, placement.demand_of_clone(desired, True, share, below[0].size, held, on_it))
    recovered = transaction.each_once(ended, told, _clear_unfinished(work, request.candidates, desired.name))
    _require_free_name(work, share, desired.name, recovered)
    if prepared.operation == CREATE_SNAPSHOT and prepared.changed and planned.active.file != parent.active.file:
        ownership.require_free_name(work.directory(share), planned.active.file, parent.name)
    first = transaction.carry_out(work, share, prepared, recovered)
    return replace(transaction.joined(first, transaction.carry_out(work, share, plan, [])), before=None)


def _require_free_name(work: workspace.Workspace, share: model.Share, name: str, recovered: list) -> None:
    """:raises Conflict: as of :func:`ownership.require_free_name`, but not for what check mode foretells to be gone by then."""
    directory, world = work.directory(share), work.options.task.predicted
    owner = ownership.owner_of(directory, name) or name if world else name
    goes = (share.path, owner) in world and world[(share.path, owner)] is None
    if not goes:
        refusals.require_free_name(directory, name, name, work.mode.still_there(recovered))


def _prepare_parent(parent: model.Volume, source: updating.SourceRequest, snapshot: str) -> Plan:
    """Heal the parent's headers, and take the snapshot that the clone is to rest on if none is named."""
    from ..plan import clones

    if source.snapshot is None and not parent.has_snapshot(snapshot):
        return planner.create_snapshot(
            parent, DesiredSnapshot(snapshot, created=model.now(), description=clones.DESCRIPTION, max_chain=source.max_chain)
        )
    if source.snapshot is None:
        clones.require_current(parent, snapshot)
    return planner.ensure_volume(parent, DesiredVolume(parent.name))


def _clear_unfinished(work: workspace.Workspace, candidates: Candidates, name: str) -> list:
    """Take away what an interrupted creation or deletion left on any candidate; returns ``recovered``."""
    recovered = []
    for share in candidates.shares:
        if interrupted.find_interrupted(work.look(share, name)):
            volume, told = transaction.recover(work, share, name)
            if volume is not None:
                raise errors.Conflict(f"volume {name}", f"an interrupted task left it standing on {share.source}", "run the task again")
            recovered += told
    return recovered


def _source_share(work: workspace.Workspace, request: updating.VolumeRequest) -> model.Share | None:
    if request.source is None:
        return None
    share = updating.located(request.source_candidates, model.check_volume_name(request.source.volume), work.options, work.directory)
    if share is None:
        problem = f"it is not on {request.source.elsewhere.name}" if request.source.elsewhere else "it is on none of the given shares"
        raise errors.VolumeNotFound(f"source volume {request.source.volume}", problem, "check the name, or create it first")
    return share
