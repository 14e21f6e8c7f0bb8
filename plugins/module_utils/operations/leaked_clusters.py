# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give back what leaked clusters of qcow2 images take: clusters that are counted, and that nothing uses. No content changes.

All images are looked at without a lock. Those that seem to have leaks are looked at again under the lock of their volume, and an image that anybody
has open stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Iterator, NamedTuple

from .. import errors, model, pace
from ..plan import plan as plans
from ..plan import steps
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from ..store.metadata import points
from ..store.qcow2 import clusters
from ..store.volumes import chains
from . import leftovers, share_parts, transaction, updating, workspace
from .options import Options

_PENDING = "a killed task on its volume is to be ended first; the next task that changes the volume does that"
_USE_UNKNOWN = "its file system does not show whether somebody has it open; use qemu-img check -r leaks while nobody has"
_IDENTITY = "somebody has written to it since its snapshot was recorded, so that the snapshot would be taken for another one"
_BITMAPS = "it has dirty bitmaps, which would be lost if the task were killed"


class Image(NamedTuple):
    """A qcow2 image with leaked clusters: its volume, its file, what they take in bytes, and ``why`` it stays as it is; empty if they were given back."""

    volume: str
    file: str
    bytes: int
    why: str = ""


class Freed(NamedTuple):
    """What became of the images of a share that have leaked clusters. ``failure``: the error that ended it, None if nothing did."""

    images: tuple[Image, ...] = ()
    failure: errors.StorageError | None = None


def free_all(shares: Iterable[model.Share], options: Options) -> dict:
    """Of shares, one after the other. One that fails in the middle stops no other. Returns what the module does."""
    found = [(share.source, free(share, options)) for share in shares]
    told = [{"share": source, **image._asdict()} for source, freed in found for image in freed.images]
    done = [one for one in told if not one["why"]]
    return {
        **errors.told_of([freed.failure for _source, freed in found]),
        "leaked_clusters": told,
        "given_back": sum(one["bytes"] for one in done),
        "actions": [{"step": "free_leaks", "share": one["share"], "file": one["file"], "bytes": one["bytes"]} for one in done],
    }


def free(share: model.Share, options: Options) -> Freed:
    """Give back the leaked clusters of all volumes of a share, within the time of the options."""
    return Freed(*share_parts.kept(share, _free(share, options)))


def _free(share: model.Share, options: Options) -> Iterator[Image]:
    time = pace.Pace(f"share {share.label}", timeout=options.timeout)
    for volume in _suspects(share, time):
        yield from _of_volume(share, volume, replace(options, lock_timeout=0, timeout=time.left()))


def _suspects(share: model.Share, time: pace.Pace) -> list[str]:
    """Volumes with an image that seems to have leaks, or of which that cannot be known. A machine that writes to it makes it seem so, too."""
    suspects = []
    with ShareDirectory(share) as directory:
        for name, files in share_parts.told(directory, _qcow2_files).items():
            time.require_time()
            if any(_seems_to_leak(directory, file) for file in files):
                suspects.append(name)
    return suspects


def _qcow2_files(found: chains.Observed) -> list[str]:
    return [image.file for image in found.volume.own if image.format == "qcow2"]


def _seems_to_leak(directory: ShareDirectory, file: str) -> bool:
    try:
        with directory.root.opened(file) as fd:
            return qcow2.find_leaks(fd).clusters > 0
    except FileNotFoundError:
        return False  # a task removes it just now
    except (errors.StorageError, clusters.Unsuited, qcow2.Qcow2Error):
        return True


def _of_volume(share: model.Share, name: str, options: Options) -> list[Image]:
    """What became of a volume's images with leaks. :raises StorageError, OSError: the share fails, or the time is over."""
    try:
        with workspace.Workspace(options) as work:
            work.locks.take_families([(share, name)])
            if transaction.find_left(work, share, name):
                return [Image(name, name, 0, _PENDING)]
            volume, _recovered = transaction.recover(work, share, name)
            if volume is None:
                return []
            updating.refuse_member(work, share, volume)
            observed = work.look(share, name).observed
            if not share.locks_visible or (observed is not None and observed.in_use):
                return [Image(name, volume.active.file, 0, leftovers.IN_USE if share.locks_visible else _USE_UNKNOWN)]
            lost = _without_identity(work, share, volume)
            return [image for one in volume.own if one.format == "qcow2" for image in _of_file(work, share, volume, one.file, lost)]
    except errors.LockTimeout:
        return [Image(name, name, 0, leftovers.AT_WORK)]
    except leftovers.OF_THE_FILE as error:
        return [Image(name, name, 0, leftovers.reason(error))]


def _without_identity(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> set[str]:
    """Files of which the record of a volume with replicas knows what they were, and are that no more. What is written to them now would be taken for it."""
    directory, record = work.directory(share), work.look(share, volume.name).record
    if not (volume.received or volume.replicated):
        return set()
    held = points.held(directory, volume, record)
    return {volume.point_file(snapshot.name) for snapshot in volume.snapshots if snapshot.name not in held}


def _of_file(work: workspace.Workspace, share: model.Share, volume: model.Volume, file: str, lost: set[str]) -> list[Image]:
    """Empty if the image has no leaks."""
    try:
        with work.directory(share).root.opened(file) as fd:
            found = qcow2.find_leaks(fd)
        if not found.clusters:
            return []
        why = _IDENTITY if file in lost else _BITMAPS if found.has_bitmaps else ""
        if not why:
            work.mode.apply(share, _plan(volume, file, found.bytes))
        return [Image(volume.name, file, found.bytes, why)]
    except (clusters.Unsuited, qcow2.Qcow2Error) as error:
        return [Image(volume.name, file, 0, str(error))]
    except errors.InUse:
        return [Image(volume.name, file, found.bytes, leftovers.IN_USE)]
    except leftovers.OF_THE_FILE as error:
        return [Image(volume.name, file, 0, leftovers.reason(error))]


def _plan(volume: model.Volume, file: str, size: int) -> plans.Plan:
    """It needs no intent: whenever it is stopped, there is nothing to end. The identity of a point rests on when its file was written to, so that is
    recorded anew."""
    is_point = volume.adopted and any(volume.point_file(snapshot.name) == file for snapshot in volume.snapshots)
    record = (steps.WriteRecord(volume.name),) if is_point else ()
    return plans.Plan(plans.PRESENT, volume.name, (steps.FreeLeaks(file, size), *record), volume, volume)
