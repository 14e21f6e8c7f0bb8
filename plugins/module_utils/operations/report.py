# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes as modules return them: plain dictionaries, documented in the modules' RETURN blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Sequence

from .. import errors, model
from ..mounts import types
from ..store.files.directory import ShareDirectory
from ..store.volumes import chains

if TYPE_CHECKING:
    from . import shapes

_SHOWN_OF_SNAPSHOTS = ("name", "file", "description", "labels", "protected", "expires")


def volume(found: model.Volume, share: model.Share, in_use: bool | None) -> shapes.VolumeResult:
    """A volume for users; sizes are bytes. A snapshot of which it is not known whether a machine writes behind it is shown as pending only."""
    unfinished = pending(found.pending) if found.move is None else _moving(found.move)
    uncertain = _uncertain(unfinished) if unfinished else ()
    result: shapes.VolumeResult = {
        "name": found.name,
        "share": share.source,
        "mountpoint": share.path,
        "path": f"{share.path}/{found.active.file}",
        "format": found.active.format,
        "base_format": found.base.format,
        "size": found.size,
        "allocated": found.allocated,
        "snapshots": [snapshot(item) for item in found.snapshots if item.name not in uncertain],
        "stale": [{"name": name, "file": file} for name, file in found.stale],
        "chain": [image(item) for item in found.chain],
        "parent": {"volume": found.parent.volume, "snapshot": found.parent.snapshot} if found.parent else None,
        "dependents": [],
        "created": found.created,
        "description": found.description,
        "labels": dict(found.labels),
        "lease": found.lease,
        "replica": found.received,
        "in_use": in_use,
        "pending": unfinished,
        "connection": _connection(found, share),
    }
    return with_dependents(result, found.dependents) if found.dependents else result


def with_dependents(result: shapes.VolumeResult, dependents: Sequence[tuple[str, str]]) -> shapes.VolumeResult:
    """A volume for users, with what rests on it: (linked clone, file of the volume)."""
    return {**result, "dependents": [{"volume": clone, "snapshot": _point(result, file)} for clone, file in dependents]}


def pending(intent: object) -> dict | None:
    """The work that an intent on record is about, for users; None where there is none."""
    if not isinstance(intent, dict):
        return None
    from ..plan.intent import summary  # late: rarely needed

    return summary(intent)


def _moving(move: model.Move) -> dict:
    from ..plan import moving  # late: hardly any volume moves

    return moving.describe(move)


def _uncertain(unfinished: dict) -> Sequence[str]:
    """Snapshots that were being taken of a running machine."""
    from ..plan.plan import CREATE_SNAPSHOT

    return unfinished["snapshots"] if "attachment" in unfinished and unfinished["operation"] == CREATE_SNAPSHOT else ()


def _point(result: shapes.VolumeResult, file: str) -> str | None:
    """The snapshot whose data is what ``file`` shows."""
    above = [image["file"] for image in result["chain"] if image["backing_file"] == file]
    return next((item["name"] for item in result["snapshots"] if item["file"] in above), None)


def _connection(found: model.Volume, share: model.Share) -> dict:
    """In the form of os-brick: a mount of the whole export and a name in it, or a path on this host."""
    file = found.active.file
    driver = (types.find(share.fstype) or types.DIRECTORY).cinder_type
    data = {
        "export": share.export or share.source,
        "name": f"{share.below}/{file}" if share.below else file,
        "format": found.active.format,
        "options": f"-o {share.mount_words}" if share.mount_words and driver != types.BY_PATH else None,
    }
    if driver == types.BY_PATH:
        data["device_path"] = f"{share.path}/{file}"
    return {"driver_volume_type": driver, "data": data, "mount_point_base": share.mount_base}


def snapshot(found: model.Snapshot) -> shapes.SnapshotResult:
    """A snapshot for users."""
    return {
        "name": found.name,
        "file": found.file,
        "created": found.created,
        "description": found.description,
        "labels": dict(found.labels),
        "protected": found.protected,
        "expires": found.expires,
    }


def image(found: model.Image) -> shapes.ImageResult:
    """One file of a chain for users. Sizes are in bytes."""
    return {
        "file": found.file,
        "format": found.format,
        "backing_file": found.backing_file,
        "size": found.size,
        "allocated": found.allocated,
    }


def read_volume(directory: ShareDirectory, found: model.Volume) -> shapes.VolumeResult:
    """A volume of an opened share, with whether it is in use."""
    try:
        in_use = chains.used_by_somebody(directory, found)
    except (OSError, errors.StorageError):
        in_use = None
    return volume(found, directory.share, in_use)


def difference(found: Mapping | None) -> dict:
    """The part of a :class:`shapes.VolumeResult` that a diff shows: what tasks change, not what the world does."""
    if found is None:
        return {}
    kept = ("name", "share", "path", "format", "base_format", "size", "description", "labels", "parent")
    shown = {key: found[key] for key in kept}
    shown["snapshots"] = [{key: item[key] for key in _SHOWN_OF_SNAPSHOTS} for item in found["snapshots"]]
    shown["chain"] = [{key: item[key] for key in ("file", "format", "backing_file", "size")} for item in found["chain"]]
    return shown
