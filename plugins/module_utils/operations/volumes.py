# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use cases of volumes: make sure that one exists as wished or is gone."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import Conflict, VolumeNotFound
from ..model import Share, Volume, check_volume_name
from ..plan.plan import Plan
from ..plan.wishes import MAX_CHAIN, VolumeWish
from ..store import kinship
from .candidates import Candidates, Policy, has_unfinished, locate
from .transaction import Options, Outcome, Workspace, carry_out, joined, settle

# What only changes need is imported where it is used: importing is most of what a task costs that changes nothing.


class SourceRequest(NamedTuple):
    """What a clone is made from: a volume, or one of its snapshots; ``linked`` to it, or with data of its own."""

    volume: str
    snapshot: str | None = None
    linked: bool = False
    max_chain: int = MAX_CHAIN

    @property
    def label(self) -> str:
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume


class VolumeRequest(NamedTuple):
    """A volume as a task asks for it, on one of ``candidates``."""

    candidates: Candidates
    wish: VolumeWish
    source: SourceRequest | None = None
    policy: Policy = Policy()


def ensure_present(request: VolumeRequest, options: Options) -> Outcome:
    """Create the volume (empty or as a clone) or bring the existing one to what is wished.

    :raises StorageError: with the code that docs/errors.md lists for it.
    """
    name = check_volume_name(request.wish.name)
    share = located(request.candidates, name, options)
    outcome = _created(request, options, []) if share is None else _update(request, share, options)
    return _flattened(request, options, outcome) if request.wish.flatten else outcome


def _flattened(request: VolumeRequest, options: Options, present: Outcome) -> Outcome:
    """Cut a linked clone loose, now that it is there and its headers are in order."""
    from ..plan import clones
    from . import layers

    name = request.wish.name
    share = located(request.candidates, name, options)
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


def _created(request: VolumeRequest, options: Options, ended: list) -> Outcome:
    from .creation import create

    return create(request, options, ended)


def located(candidates: Candidates, name: str, options: Options) -> Share | None:
    """Where the volume is; check mode also remembers what earlier items of the task would have done."""
    for share in candidates.shares:
        if (share.path, name) in options.world:
            return share if options.world[(share.path, name)] is not None else None
    return locate(candidates, name)


def _update(request: VolumeRequest, share: Share, options: Options) -> Outcome:
    name, said = request.wish.name, request.wish.format
    with Workspace(options) as work:
        work.lock([(share, name)])
        volume, recovered = settle(work, share, name, said)
        if volume is not None:
            return bring_up(work, share, volume, request, recovered)
    # It went away before the lock was ours, or only its unfinished deletion was left. Check mode, which ended nothing, meets
    # that once more; a run has ended it here.
    return _created(request, options, [] if options.check else recovered)


def bring_up(work: Workspace, share: Share, volume: Volume, request: VolumeRequest, recovered: list) -> Outcome:
    """Bring a volume that exists to what is wished, under its lock."""
    refuse_member(work, share, volume)
    wish = _only_what_the_share_keeps(request.wish, share, work.options)
    return carry_out(work, share, _plan_for(volume, wish), recovered)


def _plan_for(volume: Volume, wish: VolumeWish) -> Plan:
    if wish.is_met_by(volume):
        return Plan("present", volume.name, (), volume, volume)
    from ..plan import planner

    return planner.ensure_volume(volume, wish)


def _only_what_the_share_keeps(wish: VolumeWish, share: Share, options: Options) -> VolumeWish:
    """Owner and mode mean nothing where the mount options decide them: asking would be a change every time."""
    if share.keeps_modes or (wish.mode, wish.uid, wish.gid) == (None, None, None):
        return wish
    options.warn(f"{share.source} ({share.fstype}) keeps no owner and mode of single files: the mount options decide them")
    return wish._replace(mode=None, uid=None, gid=None)


def refuse_member(work: Workspace, share: Share, volume: Volume) -> None:
    """:raises Conflict: the lone file of this name belongs to another volume's chain."""
    if volume.info:
        return
    owner = kinship.owner_of(work.directory(share), volume.name, besides=volume.name)
    if owner is not None:
        raise Conflict(f"volume {volume.name}", f"the file of that name belongs to volume {owner}", "choose another name")


def ensure_absent(candidates: Candidates, name: str, cascade: bool, options: Options) -> Outcome:
    """Remove a volume; one that does not exist on any candidate is no change."""
    share = located(candidates, check_volume_name(name), options) or _unfinished_on(candidates, name)
    if share is None:
        return Outcome(name, False, [], [], None, None)
    from .removal import remove

    return remove(share, name, cascade, options)


def _unfinished_on(candidates: Candidates, name: str) -> Share | None:
    return next((share for share in candidates.shares if has_unfinished(share, name)), None)
