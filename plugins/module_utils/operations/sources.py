# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that are read: locked so that many can read them at once, and opened after what was interrupted has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from .. import errors, model
from ..apply import interrupted
from ..plan import desired, headers
from ..store.volumes import chains
from ..store.volumes.look import Look
from . import transaction, updating, workspace

if TYPE_CHECKING:
    from ..apply.engine import CopySource
    from ..store.files.directory import ShareDirectory


def lock(work: workspace.Workspace, own: list[tuple[model.Share, str]], share: model.Share | None, source: updating.SourceRequest | None) -> None:
    """Lock the new name and the source. The source is locked for reading only where a snapshot is asked for and nothing of it has to be
    repaired, so that many clones can be made of one source at the same time."""
    if source is None or share is None:
        work.locks.take_families(own)
        return
    if source.snapshot is not None and lock_for_reading(work, own, share, source.volume):
        return
    work.locks.take_families([*own, (share, source.volume)])


def lock_for_reading(work: workspace.Workspace, own: list[tuple[model.Share, str]], share: model.Share, volume: str) -> bool:
    """Lock names to be changed, and a volume for reading. False, and nothing is locked: the volume has to be repaired before it is read."""
    work.locks.take_families(own, [(share, volume)])
    if work.mode.checks_only or _is_at_rest(work.directory(share), volume):
        return True
    work.locks.give_back()
    return False


def _is_at_rest(directory: ShareDirectory, name: str) -> bool:
    """Whether nothing of a volume has to be ended, adopted or mended before it is read."""
    try:
        look = Look(directory, name)
        if interrupted.find_interrupted(look):
            return False
        observed = chains.observe(directory, name, look=look)
    except errors.StorageError:
        return False  # the error is reported under the lock for a change
    return observed is not None and desired.DesiredVolume(name).is_satisfied_by(observed.volume)


def seen(work: workspace.Workspace, share: model.Share, volume: model.Volume, snapshot: str | None) -> tuple[model.Image, ...]:
    """The images that make up a snapshot, or a volume's present, top first; they are whole.

    :raises SnapshotNotFound: there is no such snapshot. :raises UnsafeImage: a file was cut short. Other errors are those of the chain.
    """
    from . import cluster_tables

    headers.require_known_formats(volume)
    headers.require_repaired_parent(volume)
    images = volume.view(volume.point_file(snapshot) if snapshot else volume.active.file)
    cluster_tables.require_whole(work.directory(share), images)
    return images


def held(work: workspace.Workspace, share: model.Share, source: updating.SourceRequest, images: Sequence[model.Image]) -> int:
    """Bytes that what is cloned takes on its share. A source that check mode only predicts takes what was promised to it."""
    return max(sum(image.allocated for image in images), work.mode.promised(share, source.volume))


def open_source(work: workspace.Workspace, share: model.Share, source: updating.SourceRequest) -> tuple[CopySource, desired.Source, list]:
    """The chain that a clone is copied from, after whatever an interrupted task left on the source was ended."""
    from ..apply.engine import CopySource
    from .applying import engine_for

    volume, recovered = transaction.recover(work, share, source.volume)
    if volume is None:
        raise errors.VolumeNotFound(f"source volume {source.volume}", f"it is not on {share.source}", "check the name, or create it first")
    images = seen(work, share, volume, source.snapshot)
    if source.snapshot is None:
        with engine_for(work, share) as engine:
            engine.require_unused(images[0].file, check_only=work.mode.checks_only)
    told = desired.Source(source.label, images[0].size, held(work, share, source, images))
    return CopySource(work.directory(share), images), told, recovered
