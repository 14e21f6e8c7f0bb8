# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drop empty overlays: those of snapshots that were taken for linked clones which are gone. No content changes.

A linked clone of the present content rests on a snapshot that is taken for it, which stays when the clone is removed. So each such clone makes the chain
of its source longer. As long as nothing is written to the overlay, the snapshot shows what the next point shows, and nothing is lost with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Iterator, NamedTuple

from .. import errors, model, pace
from ..plan import clones
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from ..store.volumes import chains
from . import candidates, leftovers, share_parts, snapshots
from .options import Options

_PREFIX = clones.snapshot_for("")


class Overlay(NamedTuple):
    """An empty overlay: its volume, the snapshot that goes with it, bytes on the disk, and ``why`` it stays; empty if it went."""

    volume: str
    snapshot: str
    bytes: int
    why: str = ""


class Dropped(NamedTuple):
    """What became of the empty overlays of a share. ``failure``: the error that ended it, None if nothing did."""

    overlays: tuple[Overlay, ...] = ()
    failure: errors.StorageError | None = None


def drop_all(shares: Iterable[model.Share], options: Options) -> dict:
    """Of shares, one after the other. One that fails in the middle stops no other. Returns what the module does."""
    found = [(share.source, drop(share, options)) for share in shares]
    told = [{"share": source, **overlay._asdict()} for source, dropped in found for overlay in dropped.overlays]
    done = [one for one in told if not one["why"]]
    return {
        **errors.told_of([dropped.failure for _source, dropped in found]),
        "empty_overlays": told,
        "actions": [{"step": "drop_overlay", "share": one["share"], "volume": one["volume"], "snapshot": one["snapshot"]} for one in done],
    }


def drop(share: model.Share, options: Options) -> Dropped:
    """Drop the empty overlays of all volumes of a share, within the time of the options."""
    return Dropped(*share_parts.kept(share, _drop_each(share, options)))


def _drop_each(share: model.Share, options: Options) -> Iterator[Overlay]:
    time = pace.Pace(f"share {share.label}", timeout=options.timeout)
    for found in _find(share):
        time.require_time()
        yield found._replace(why=_drop(share, found, replace(options, lock_timeout=0, timeout=time.left())))


def _find(share: model.Share) -> list[Overlay]:
    """Those that seem to be so. They are looked at again under the lock of their volume."""
    with ShareDirectory(share) as directory:
        told = share_parts.told(directory, _spare)
        spare = [(name, *one) for name, every in told.items() for one in every]
        spare = [one for one in spare if _clone_of(one[1]) not in told and _is_empty(directory, one[2])]
        return sorted(Overlay(name, snapshot, size) for name, snapshot, _file, size in spare)


def _spare(found: chains.Observed) -> list[tuple[str, str, int]]:
    """Of snapshots that may have been taken for a clone: name, overlay, and bytes of that on the disk."""
    volume = found.volume
    return [(one.name, one.file, volume.image(one.file).allocated) for one in volume.snapshots if _may_go(volume, one)]


def _may_go(volume: model.Volume, snapshot: model.Snapshot) -> bool:
    """Whether a snapshot was taken for a clone, and is as it was then. What is on another share rests on the points of a volume that has replicas; the
    volumes of a lease belong to its owner."""
    is_plain = snapshot.description == clones.DESCRIPTION and not (snapshot.protected or snapshot.expires or snapshot.labels)
    is_alone = not (volume.received or volume.replicated or volume.lease)
    overlay = volume.image(snapshot.file)
    same_size = overlay.backing_file in volume.files and overlay.size == volume.image(str(overlay.backing_file)).size
    return is_plain and is_alone and same_size and model.is_safe_file_name(_clone_of(snapshot.name)) and snapshot.name.startswith(_PREFIX)


def _clone_of(snapshot: str) -> str:
    return snapshot[len(_PREFIX) :]


def _is_empty(directory: ShareDirectory, file: str) -> bool:
    """Asked of few images: a listing does not find that out of all."""
    try:
        with directory.root.opened(file) as fd:
            return qcow2.is_empty(fd, qcow2.read_header(fd))
    except (errors.StorageError, qcow2.Qcow2Error, FileNotFoundError):
        return False  # a task works at it just now, or it is damaged


def _drop(share: model.Share, found: Overlay, options: Options) -> str:
    """Why it stays; empty if it went. :raises StorageError, OSError: the share fails, or the time is over."""

    def permit(volume: model.Volume) -> None:
        if not volume.has_snapshot(found.snapshot):
            return  # somebody was quicker
        snapshot = volume.snapshot(found.snapshot)
        around = {snapshot.file, volume.image(snapshot.file).backing_file}
        resting = sorted({clone for clone, file in volume.dependents if file in around and clone != volume.name})  # check mode finds its own files, too
        if resting:  # a deletion would have to copy data, to plan around them
            raise errors.HasDependents(f"volume {volume.name}", f"linked clones rest on it ({model.listed(resting)})", "it goes when they have gone")
        if not _may_go(volume, snapshot) or not volume.image(snapshot.file).empty:
            raise errors.Conflict(f"volume {volume.name}", "somebody has written to it just now", "delete the snapshot if nobody needs it")

    try:
        snapshots.delete(candidates.Candidates((share,)), found.volume, [found.snapshot], replace(options, permit=permit))
    except errors.LockTimeout:
        return leftovers.AT_WORK
    except errors.InUse:
        return leftovers.IN_USE
    except (errors.VolumeNotFound, *leftovers.OF_THE_FILE) as error:
        return leftovers.reason(error)
    return ""
