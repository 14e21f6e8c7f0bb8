# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that exist: what a task asks of them, where they are, and how they are brought to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, NamedTuple

from .. import errors, model
from ..plan.desired import MAX_CHAIN, DesiredVolume
from ..plan.plan import PRESENT, Plan
from ..store.volumes import ownership
from . import transaction, workspace
from .candidates import Candidates, Opened, Policy, locate
from .options import Options

if TYPE_CHECKING:
    from . import importing
    from .seeds import Seed


class OtherShare(NamedTuple):
    """Another share, from which a volume is copied: its name as it was given, and what looks it up. A volume that is there needs it no
    more, so it is looked up when something is to be made from it."""

    name: str
    find: Callable[[], Candidates]


class SourceRequest(NamedTuple):
    """What a clone is made from: a volume, or one of its snapshots; ``linked`` to it, or with data of its own. ``elsewhere``: where it
    is, if not on one of the shares where the clone may be."""

    volume: str
    snapshot: str | None = None
    linked: bool = False
    max_chain: int = MAX_CHAIN
    elsewhere: OtherShare | None = None

    @property
    def label(self) -> str:
        """How messages and ``actions`` name it: ``VOLUME`` or ``VOLUME@SNAPSHOT``, and the other share."""
        point = f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume
        return f"{point} on {self.elsewhere.name}" if self.elsewhere else point


class VolumeRequest(NamedTuple):
    """A volume as a task asks for it, on one of ``candidates``. A new one is made from ``source`` or from ``image``, or is empty. One that is
    on ``moved_from`` moves to one of them. ``seed`` is what it holds, new or not."""

    candidates: Candidates
    desired: DesiredVolume
    source: SourceRequest | None = None
    policy: Policy = Policy()
    max_chain: int = MAX_CHAIN
    image: importing.ImageRequest | None = None
    moved_from: OtherShare | None = None
    seed: Seed | None = None

    @property
    def source_candidates(self) -> Candidates:
        """The shares on one of which the source is. :raises StorageError: ``source.share`` is no share at all."""
        return self.source.elsewhere.find() if self.source and self.source.elsewhere else self.candidates


def located(candidates: Candidates, name: str, options: Options, opened: Opened | None = None) -> model.Share | None:
    """Where the volume is; check mode also remembers what earlier items of the task would have done.

    :param opened: has each share opened already, as of :func:`locate`.
    """
    known = {share.path: options.task.predicted[(share.path, name)] for share in candidates.shares if (share.path, name) in options.task.predicted}
    for share in candidates.shares:
        if known.get(share.path) is not None:
            return share
    return locate(candidates._replace(shares=tuple(share for share in candidates.shares if share.path not in known)), name, opened)


def update_volume(work: workspace.Workspace, share: model.Share, volume: model.Volume, request: VolumeRequest, recovered: list) -> transaction.Outcome:
    """Bring a volume that exists to what is desired, under its lock."""
    refuse_member(work, share, volume)
    if work.options.permit is not None:
        work.options.permit(volume)
    if not volume.adopted:
        from . import cluster_tables  # late: most tasks find a volume that they know

        cluster_tables.require_whole(work.directory(share), volume.chain)
        _warn_of_another_format(work, share, volume)
    desired = _only_what_the_share_keeps(request.desired, share, work.options)
    if request.seed is not None:
        from . import seeds

        plan = seeds.replacing(work, share, volume, desired, request.seed)
        if plan is not None:
            return transaction.carry_out(work, share, plan, recovered, seeds.source_of(work, share, request.seed))
    return transaction.carry_out(work, share, _plan_for(volume, desired), recovered)


def _warn_of_another_format(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> None:
    """The user's word counts, but a VMDK image that is said to be raw is nearly always a mistake."""
    from ..store.volumes.appearance import looks_like

    base, directory = volume.own_base, work.directory(share)
    if base.format != "raw" or directory.root.status(base.file) is None:
        return
    with directory.root.opened(base.file) as fd:
        seen = looks_like(fd)
    if seen:
        work.options.task.warn(
            f"{directory.root.subject(base.file)} is taken for a raw disk, as you said, but it begins or ends like {seen}: a machine would see "
            "that file's own bytes; convert it first (qemu-img convert) if it is one"
        )


def _plan_for(volume: model.Volume, desired: DesiredVolume) -> Plan:
    if desired.is_satisfied_by(volume):
        return Plan(PRESENT, volume.name, (), volume, volume)
    from ..plan import planner

    return planner.ensure_volume(volume, desired)


def _only_what_the_share_keeps(desired: DesiredVolume, share: model.Share, options: Options) -> DesiredVolume:
    """Owner and mode mean nothing where the mount options decide them: asking would be a change every time."""
    if share.keeps_modes or (desired.mode, desired.uid, desired.gid) == (None, None, None):
        return desired
    options.task.warn(f"{share.source} ({share.fstype}) keeps no owner and mode of single files: the mount options decide them")
    return desired._replace(mode=None, uid=None, gid=None)


def refuse_member(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> None:
    """:raises Conflict: the lone file of this name belongs to another volume's chain."""
    if volume.info:
        return
    owner = ownership.owner_of(work.directory(share), volume.name, excluding=volume.name)
    if owner is not None:
        raise errors.Conflict(f"volume {volume.name}", f"the file of that name belongs to volume {owner}", "choose another name")
