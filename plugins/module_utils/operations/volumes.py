# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of volumes: make sure that one exists as wished or is gone."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..apply.recovery import forget_groups
from ..errors import Conflict, VolumeNotFound
from ..model import Share, Volume, check_snapshot_name, check_volume_name, now
from ..plan import planner
from ..plan.plan import Plan, require_healed_parent, require_known_formats
from ..store import inventory, kinship
from . import placement
from .transaction import Options, Outcome, Workspace, carry_out, joined, require_free_name, require_unused, settle, settle_for_removal

if TYPE_CHECKING:
    from ..apply.offline import CopySource

# What only clones need is imported where it is used: importing is most of what a task costs that changes nothing.


@dataclass(frozen=True)
class SourceRequest:
    """What a clone is made from: a volume, or one of its snapshots; ``linked`` to it, or with data of its own."""

    volume: str
    snapshot: str | None = None
    linked: bool = False
    max_chain: int = planner.MAX_CHAIN

    @property
    def label(self) -> str:
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume


@dataclass(frozen=True)
class VolumeRequest:
    """A volume as a task asks for it, on one of ``candidates``."""

    candidates: placement.Candidates
    wish: planner.VolumeWish
    source: SourceRequest | None = None
    policy: placement.Policy = placement.Policy()


def ensure_present(request: VolumeRequest, options: Options) -> Outcome:
    """Create the volume (empty or as a clone) or bring the existing one to what is wished.

    :raises StorageError: with the code that docs/errors.md lists for it.
    """
    name = check_volume_name(request.wish.name)
    share = _located(request.candidates, name, options)
    outcome = _create(request, options, []) if share is None else _update(request, share, options)
    return _flattened(request, options, outcome) if request.wish.flatten else outcome


def _flattened(request: VolumeRequest, options: Options, present: Outcome) -> Outcome:
    """Cut a linked clone loose, now that it is there and its headers are in order."""
    from ..plan import clones
    from . import layers

    name = request.wish.name
    share = _located(request.candidates, name, options)
    if share is None:
        raise VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
    with Workspace(options) as work:
        work.lock_families([(share, name)])
        volume, recovered = settle(work, share, name)
        if volume is None:
            raise VolumeNotFound(f"volume {name}", "it went away while the task ran", "run the task again")
        known = layers.allocations(work.directory(share), volume, volume.files[len(volume.own) - 1 :]) if volume.parent else {}
        told = [] if options.check else recovered  # check mode has ended nothing, and has told of it already
        return joined(present, carry_out(work, share, clones.flatten(volume, known), told))


def _located(candidates: placement.Candidates, name: str, options: Options) -> Share | None:
    """Where the volume is; check mode also remembers what earlier items of the task would have done."""
    for share in candidates.shares:
        if (share.path, name) in options.world:
            return share if options.world[(share.path, name)] is not None else None
    return placement.locate(candidates, name)


def _update(request: VolumeRequest, share: Share, options: Options) -> Outcome:
    name, said = request.wish.name, request.wish.format
    with Workspace(options) as work:
        work.lock([(share, name)])
        volume, recovered = settle(work, share, name, said)
        if volume is not None:
            return _bring_up(work, share, volume, request, recovered)
    # It went away before the lock was ours, or only its unfinished deletion was left. Check mode, which ended nothing, meets
    # that once more; a run has ended it here.
    return _create(request, options, [] if options.check else recovered)


def _bring_up(work: Workspace, share: Share, volume: Volume, request: VolumeRequest, recovered: list) -> Outcome:
    """Bring a volume that exists to what is wished, under its lock."""
    _refuse_member(work, share, volume)
    wish = _only_what_the_share_keeps(request.wish, share, work.options)
    return carry_out(work, share, planner.ensure_volume(volume, wish), recovered)


def _only_what_the_share_keeps(wish: planner.VolumeWish, share: Share, options: Options) -> planner.VolumeWish:
    """Owner and mode mean nothing where the mount options decide them: asking would be a change every time."""
    if share.keeps_modes or (wish.mode, wish.uid, wish.gid) == (None, None, None):
        return wish
    options.warn(f"{share.source} ({share.fstype}) keeps no owner and mode of single files: the mount options decide them")
    return replace(wish, mode=None, uid=None, gid=None)


def _create(request: VolumeRequest, options: Options, ended: list) -> Outcome:
    """Create under locks on all candidate shares, so that two tasks never create the name on two of them.

    :param ended: what was recovered on the way here.
    """
    name, candidates = request.wish.name, request.candidates
    candidates.require_all()
    with Workspace(options) as work:
        source_share = _source_share(request, options)
        wanted = [(share, name) for share in candidates.shares if len(candidates.shares) == 1 or _writable(share)]
        work.lock_families(wanted + ([(source_share, request.source.volume)] if request.source and source_share else []))
        again = None if options.check else placement.locate(candidates, name)
        if again is not None and inventory.observe(work.directory(again), name) is not None:
            volume, recovered = settle(work, again, name, request.wish.format)
            if volume is not None:
                return _bring_up(work, again, volume, request, ended + recovered)
        return _create_locked(work, request, source_share, ended)


def _writable(share: Share) -> bool:
    return os.access(share.path, os.W_OK)


def _create_locked(work: Workspace, request: VolumeRequest, source_share: Share | None, ended: list) -> Outcome:
    if request.source and request.source.linked and source_share:
        return _create_linked(work, request, source_share, ended)
    wish, copy = request.wish, None
    source_told: list = []
    if request.source and source_share:
        copy, told, source_told = _open_source(work, source_share, request.source)
        wish = replace(wish, source=told)
    size = wish.size or (wish.source.size if wish.source else 0)
    at_once = size if wish.preallocation in ("falloc", "full") else (wish.source.allocated if wish.source else 0)
    plan = planner.create_volume(wish)
    share = placement.choose(request.candidates, size, at_once, request.policy, work.options.ledger)
    recovered = ended + source_told + _clear_unfinished(work, request.candidates, wish.name)
    require_free_name(work, share, wish.name, wish.name, recovered)
    return carry_out(work, share, plan, recovered, copy)


def _create_linked(work: Workspace, request: VolumeRequest, share: Share, ended: list) -> Outcome:
    """A linked clone, after a snapshot was taken for it where a volume is its source.

    Everything that can be refused is, before the source is touched.
    """
    from ..plan import clones

    wish, source = request.wish, request.source
    if source is None:
        raise VolumeNotFound(f"source of volume {wish.name}", "it is not given", "say source.volume")
    parent, told = settle(work, share, source.volume)
    if parent is None:
        raise VolumeNotFound(f"source volume {source.volume}", f"it is not on {share.source}", "check the name, or create it first")
    snapshot = source.snapshot or clones.snapshot_for(wish.name)
    check_snapshot_name(source.volume, snapshot)
    prepared = _prepare_parent(parent, source, snapshot)
    planned = prepared.after or parent
    plan = clones.create_clone(wish, planned, snapshot, source.max_chain)
    placement.choose(replace(request.candidates, shares=(share,)), planned.size, 0, request.policy, work.options.ledger)
    recovered = ended + told + _clear_unfinished(work, request.candidates, wish.name)
    require_free_name(work, share, wish.name, wish.name, recovered)
    if prepared.operation == "create_snapshot" and prepared.changed and planned.active.file != parent.active.file:
        kinship.require_free_name(work.directory(share), planned.active.file, parent.name)
    first = carry_out(work, share, prepared, recovered)
    return replace(joined(first, carry_out(work, share, plan, [])), before=None)


def _prepare_parent(parent: Volume, source: SourceRequest, snapshot: str) -> Plan:
    """Heal the parent's headers, and take the snapshot that the clone is to rest on if none is named."""
    from ..plan import clones

    if source.snapshot is None and not parent.has_snapshot(snapshot):
        return planner.create_snapshot(
            parent, planner.SnapshotWish(snapshot, created=now(), description="taken for a linked clone", max_chain=source.max_chain)
        )
    if source.snapshot is None:
        clones.require_current(parent, snapshot)
    return planner.ensure_volume(parent, planner.VolumeWish(parent.name))


def _clear_unfinished(work: Workspace, candidates: placement.Candidates, name: str) -> list:
    """Take away what an interrupted creation or deletion left on any candidate; returns ``recovered``."""
    recovered = []
    for share in candidates.shares:
        if placement.has_unfinished(share, name):
            volume, told = settle(work, share, name)
            if volume is not None:
                raise Conflict(f"volume {name}", f"an interrupted task left it standing on {share.source}", "run the task again")
            recovered += told
    return recovered


def _source_share(request: VolumeRequest, options: Options) -> Share | None:
    if request.source is None:
        return None
    share = _located(request.candidates, check_volume_name(request.source.volume), options)
    if share is None:
        raise VolumeNotFound(
            f"source volume {request.source.volume}", "it is on none of the given shares", "check the name, or create it first"
        )
    return share


def _open_source(work: Workspace, share: Share, source: SourceRequest) -> tuple[CopySource, planner.Source, list]:
    """The chain that a clone is copied from, after whatever an interrupted task left on the source was ended."""
    from ..apply.offline import CopySource

    volume, recovered = settle(work, share, source.volume)
    if volume is None:
        raise VolumeNotFound(f"source volume {source.volume}", f"it is not on {share.source}", "check the name, or create it first")
    require_known_formats(volume)
    require_healed_parent(volume)
    top = volume.point_file(source.snapshot) if source.snapshot else volume.active.file
    images = volume.view(top)
    if source.snapshot is None:
        require_unused(work, work.directory(share), top)
    told = planner.Source(source.label, images[0].size, sum(image.allocated for image in images))
    return CopySource(work.directory(share), images), told, recovered


def _refuse_member(work: Workspace, share: Share, volume: Volume) -> None:
    """:raises Conflict: the lone file of this name belongs to another volume's chain."""
    if volume.info:
        return
    owner = kinship.owner_of(work.directory(share), volume.name, besides=volume.name)
    if owner is not None:
        raise Conflict(f"volume {volume.name}", f"the file of that name belongs to volume {owner}", "choose another name")


def ensure_absent(candidates: placement.Candidates, name: str, cascade: bool, options: Options) -> Outcome:
    """Remove a volume; one that does not exist on any candidate is no change."""
    share = _located(candidates, check_volume_name(name), options) or _unfinished_on(candidates, name)
    if share is None:
        return Outcome(name, False, [], [], None, None)
    with Workspace(options) as work:
        work.lock([(share, name)])
        if cascade:
            volume, recovered, strays = settle_for_removal(work, share, name)
        else:
            volume, recovered = settle(work, share, name, dependents=True)
            strays = ()
        if volume is None:
            work.forget_locks()
            return Outcome(name, bool(recovered), [], recovered, None, None)
        _refuse_member(work, share, volume)
        _refuse_foreign(volume)
        outcome = carry_out(work, share, planner.delete_volume(volume, cascade, strays), recovered)
        if not options.check:
            forget_groups(work.directory(share))
            work.forget_locks()
        return outcome


def _unfinished_on(candidates: placement.Candidates, name: str) -> Share | None:
    return next((share for share in candidates.shares if placement.has_unfinished(share, name)), None)


def _refuse_foreign(volume: Volume) -> None:
    """:raises Conflict: nothing says that the lone file is a disk; it may be anything that somebody put there."""
    if volume.base.format is None:
        raise Conflict(
            f"volume {volume.name}",
            "it is a file of which nothing records that it is a volume, and foreign files are never removed",
            "adopt it first by saying its format with state: present, or remove the file by hand",
        )
