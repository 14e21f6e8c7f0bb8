# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure functions that make a plan from the present state and the desired one. Nothing here opens a file or starts a program."""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from . import headers
from .desired import DesiredSnapshot, DesiredVolume
from .plan import CREATE_SNAPSHOT, CREATE_VOLUME, DELETE_VOLUME, PRESENT, REVERT, Plan
from .steps import CopyImage, CreateImage, CreateOverlay, Grow, ReplaceOverlay, SetAttributes, Step, Unlink, WriteRecord, write_info

DEFAULT_MODE = 0o660


def create_volume(desired: DesiredVolume) -> Plan:
    """Plan a volume that does not exist yet: empty, or a full clone of ``desired.source``.

    :raises InvalidParameter: there is neither a size nor a source, or the preallocation does not fit the format or a clone.
    :raises InvalidSize: no qcow2 image can be that large. :raises WouldShrink: the clone would be smaller than its source.
    """
    subject = f"volume {desired.name}"
    image_format = desired.format or "raw"
    size = desired.size or (desired.source.size if desired.source else None)
    if size is None:
        raise errors.InvalidParameter(subject, "it does not exist, and no size is given to create it with", "give size or source")
    if desired.source and size < desired.source.size:
        raise errors.WouldShrink(
            subject,
            f"{model.size_text(size)} is less than its source has, {model.size_text(desired.source.size)}",
            "ask for at least the source's size",
        )
    if image_format == "raw" and desired.preallocation == "metadata":
        raise errors.InvalidParameter(
            subject, "a raw image has no metadata to preallocate", "choose preallocation off, falloc or full, or format qcow2"
        )
    if desired.source and desired.preallocation != "off":
        raise errors.InvalidParameter(subject, "preallocation does not go with a source", "leave preallocation off for a clone")
    check_qcow2_size(subject, image_format, size)
    mode = DEFAULT_MODE if desired.mode is None else desired.mode
    step: Step = CreateImage(desired.name, image_format, size, desired.preallocation, mode, desired.uid, desired.gid)
    if desired.source:
        step = CopyImage(desired.name, image_format, size, desired.source.label, desired.source.allocated, mode, desired.uid, desired.gid)
    image = model.Image(desired.name, image_format, size, mode=mode, uid=desired.uid or 0, gid=desired.gid or 0)
    after = with_details(model.Volume(desired.name, (image,), adopted=True, created=desired.created, lease=desired.lease), desired)
    return Plan(CREATE_VOLUME, desired.name, (WriteRecord(desired.name), step), None, after)


def with_details(volume: model.Volume, desired: DesiredVolume) -> model.Volume:
    """The volume with the desired description and labels. Where the playbook does not say, they stay."""
    return replace(
        volume,
        description=volume.description if desired.description is None else desired.description,
        labels=volume.labels if desired.labels is None else dict(desired.labels),
    )


def ensure_volume(volume: model.Volume, desired: DesiredVolume) -> Plan:
    """Plan for a volume that exists: adopt it, repair its headers, grow it, set ownership, description and labels as desired.

    :raises InvalidParameter: the format of its base, or of the file on which that rests, is unknown.
    :raises Conflict: its format is not the desired one. :raises WouldShrink: it is larger than desired.
    :raises InvalidSize: no qcow2 image can be that large.
    """
    subject = f"volume {volume.name}"
    base = volume.own_base
    if base.format is None:
        raise errors.InvalidParameter(
            subject, f"the format of {base.file} {volume.doubt or headers.NOT_RECORDED}", "say its format: raw or qcow2"
        )
    headers.require_format_below(volume)
    if desired.format and desired.format != base.format:
        raise errors.Conflict(
            subject,
            f"its base file is {base.format}, not {desired.format}",
            "ask for the format it has, or clone it into a new volume of the other format",
        )
    if desired.size is not None and desired.size < volume.size:
        raise errors.WouldShrink(
            subject,
            f"it has {model.size_text(volume.size)} and is never shrunk to {model.size_text(desired.size)}",
            f"ask for at least {model.size_word(volume.size)}",
        )
    repairs, after = headers.header_repairs(volume)
    after = with_details(after, desired)
    on_record = volume.adopted and (after.description, after.labels) == (volume.description, volume.labels)
    steps: list[Step] = [] if on_record else [WriteRecord(volume.name)]
    steps += repairs
    if desired.size is not None and desired.size > volume.size:
        grow, after = _grow(after, desired.size)
        steps.append(grow)
    steps += _attributes(volume, desired)
    return Plan(PRESENT, volume.name, tuple(steps), volume, replace(after, adopted=True))


def _grow(volume: model.Volume, size: int) -> tuple[Step, model.Volume]:
    """The step that raises the size to ``size`` bytes, and the volume after it."""
    active = volume.active
    longer_below = any(image.size > active.size for image in volume.chain[1:])
    check_qcow2_size(f"volume {volume.name}", active.format, size)
    step = Grow(active.file, str(active.format), size, zero=longer_below)
    return step, volume.with_images(**{active.file: replace(active, size=size)})


def check_qcow2_size(subject: str, image_format: str | None, size: int) -> None:
    """Check the size in bytes of a new or grown image. :raises InvalidSize: no qcow2 image with clusters of 64 KiB can be that large."""
    if image_format == "qcow2" and size > model.MAX_QCOW2_SIZE:
        raise errors.InvalidSize(
            subject, f"a qcow2 image of {model.size_text(size)} is more than QEMU opens", f"stay within {model.size_text(model.MAX_QCOW2_SIZE)}"
        )


def _attributes(volume: model.Volume, desired: DesiredVolume) -> list[Step]:
    """One step for each of the volume's own files whose owner, group or mode is not the desired one."""
    steps: list[Step] = []
    for image in volume.own:
        uid = desired.uid if desired.uid is not None and desired.uid != image.uid else None
        gid = desired.gid if desired.gid is not None and desired.gid != image.gid else None
        mode = desired.mode if desired.mode is not None and desired.mode != image.mode else None
        if (uid, gid, mode) != (None, None, None):
            steps.append(SetAttributes(image.file, uid, gid, mode))
    return steps


def delete_volume(volume: model.Volume, cascade: bool, leftovers: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> Plan:
    """Plan to remove all files of a volume, the active image first.

    :param cascade: remove its snapshots too.
    :param leftovers: files that an interrupted merge left. They are removed as well.
    :param missing: files of the chain that do not exist. They need no step.
    :raises HasSnapshots: it has snapshots and ``cascade`` is false. :raises HasDependents: linked clones rest on it.
    """
    subject = f"volume {volume.name}"
    if (volume.snapshots or volume.stale) and not cascade:
        names = model.listed([*(snapshot.name for snapshot in volume.snapshots), *(f"{name}, stale" for name, _file in volume.stale)])
        raise errors.HasSnapshots(subject, f"it still has snapshots ({names})", "delete them first or say cascade: true")
    if volume.dependents:
        names = model.listed(sorted({clone for clone, _file in volume.dependents}))
        raise errors.HasDependents(subject, f"linked clones or other files rest on it: {names}", headers.DEPENDENTS_REMEDY)
    files = [*(file for file in volume.own_files if file not in missing), *leftovers] + ([model.info_name(volume.name)] if volume.info else [])
    return Plan(DELETE_VOLUME, volume.name, tuple(Unlink(file) for file in files), volume, None, intent=len(files) > 1 or bool(missing))


def create_snapshot(volume: model.Volume, desired: DesiredSnapshot) -> Plan:
    """Plan to take a snapshot: a new overlay becomes the active image. If the snapshot exists, only its details are updated.

    :raises InvalidParameter: the chain would have more than ``desired.max_chain`` files.
    :raises UnsafeImage: a format in the chain is unknown. :raises InvalidSize: no qcow2 overlay can be as large as the volume.
    """
    if volume.has_snapshot(desired.name):
        return _update_details(volume, desired)
    headers.require_known_formats(volume)
    check_chain_length(f"snapshot {desired.name} of volume {volume.name}", len(volume.chain), desired.max_chain)
    repairs, current = headers.header_repairs(volume)
    active = current.active
    check_qcow2_size(f"snapshot of volume {volume.name}", "qcow2", active.size)
    file = overlay_name(volume, desired.name)
    overlay = model.Image(
        file,
        "qcow2",
        active.size,
        backing_file=active.file,
        backing_format=active.format,
        empty=True,
        mode=active.mode,
        uid=active.uid,
        gid=active.gid,
    )
    expires = None if desired.expires is None else desired.expires.time
    snapshot = model.Snapshot(desired.name, file, desired.created, desired.description or "", dict(desired.labels or {}), bool(desired.protected), expires)
    stale = tuple(pair for pair in current.stale if pair[0] != desired.name)
    snapshots = current.snapshots + (snapshot,)
    after = replace(current, chain=(overlay,) + current.chain, snapshots=snapshots, stale=stale, info=True, adopted=True)
    steps = repairs + (CreateOverlay(file, active.file, str(active.format), active.size), write_info(after))
    return Plan(CREATE_SNAPSHOT, volume.name, steps, volume, after, intent=True)


def taken_back(plan: Plan) -> Plan:
    """The plan that undoes one of which nothing was done but what is on record; of a snapshot, also the overlay that nobody uses."""
    if plan.before is None or plan.after is None:
        raise ValueError("only a plan for a volume that stays can be taken back")
    before = replace(plan.before, adopted=True, pending=None)
    if plan.operation != CREATE_SNAPSHOT:
        return Plan(plan.operation, plan.volume, (WriteRecord(plan.volume),), plan.before, before)
    return Plan(CREATE_SNAPSHOT, plan.volume, (write_info(before), Unlink(plan.after.active.file)), plan.after, before)


def _update_details(volume: model.Volume, desired: DesiredSnapshot) -> Plan:
    """Plan to bring description, labels, protection and expiry of an existing snapshot to what is desired."""
    present = volume.snapshot(desired.name)
    wanted = replace(
        present,
        description=present.description if desired.description is None else desired.description,
        labels=present.labels if desired.labels is None else dict(desired.labels),
        protected=present.protected if desired.protected is None else desired.protected,
        expires=present.expires if desired.expires is None else desired.expires.time_for(present.expires),
    )
    if wanted == present:
        return Plan(CREATE_SNAPSHOT, volume.name, (), volume, volume)
    after = replace(volume, snapshots=tuple(wanted if snapshot == present else snapshot for snapshot in volume.snapshots))
    return Plan(CREATE_SNAPSHOT, volume.name, (WriteRecord(volume.name),), volume, after)


def check_chain_length(subject: str, files: int, max_chain: int) -> None:
    """Check that a chain may get one more overlay.

    :param files: number of files of the chain without the new overlay.
    :raises InvalidParameter: with it the chain would have more than ``max_chain`` files.
    """
    if files + 1 > max_chain:
        raise errors.InvalidParameter(
            subject,
            f"the chain has {files} files, and with one more it would be longer than max_chain ({max_chain})",
            "delete snapshots, flatten it if it is a linked clone, or raise max_chain",
        )


def overlay_name(volume: model.Volume, snapshot: str) -> str:
    """The file name for a new overlay: ``NAME.SNAPSHOT``, or ``NAME.SNAPSHOT-NUMBER`` if a file of the chain has that name already
    (since an earlier merge).

    The number follows a dash, because OpenStack Cinder accepts only one dot in the name of a backing file.
    """
    plain = f"{volume.name}.{snapshot}"
    taken = {file.lower() for file in volume.files}
    if plain.lower() not in taken:
        return plain
    return next(f"{plain}-{number}" for number in range(1, len(taken) + 2) if f"{plain}-{number}".lower() not in taken)


def revert(volume: model.Volume, name: str, discard_newer: bool) -> Plan:
    """Plan to give the volume the content of snapshot ``name``. The volume keeps its size.

    One rename puts an empty overlay in the place of the active image. Its backing file is the snapshot's point from the start,
    so that the volume never shows a mixture. Overlays in between (newer snapshots) are removed afterwards.

    :raises HasNewerSnapshots: newer snapshots exist and ``discard_newer`` is false.
    :raises HasDependents: a linked clone rests on data that would be discarded.
    :raises UnsafeImage: a format in the chain is unknown. :raises SnapshotNotFound: the volume has no such snapshot.
    """
    point = volume.point_file(name)
    overlay = volume.snapshot(name).file
    depth = volume.files.index(overlay)
    newer = tuple(snapshot for snapshot in volume.snapshots if volume.files.index(snapshot.file) < depth)
    if newer and not discard_newer:
        names = model.listed(snapshot.name for snapshot in newer)
        raise errors.HasNewerSnapshots(
            f"snapshot {name} of volume {volume.name}",
            f"newer snapshots would be lost: {names}",
            "delete them first or say discard_newer: true",
        )
    if depth == 0 and volume.active.empty:
        return Plan(REVERT, volume.name, (), volume, volume)
    headers.require_known_formats(volume)
    _refuse_losing_clones(volume, depth)
    repairs, current = headers.header_repairs(volume)
    active, below = current.active, current.image(point)
    fresh = replace(active, backing_file=point, backing_format=below.format, empty=True)
    kept = tuple(
        replace(snapshot, file=active.file) if snapshot.file == overlay else snapshot
        for snapshot in volume.snapshots
        if snapshot not in newer
    )
    after = replace(current, chain=(fresh,) + current.view(point), snapshots=kept, adopted=True)
    steps: list[Step] = list(repairs) + [ReplaceOverlay(active.file, point, str(below.format), active.size)]
    if depth:
        steps += [write_info(after)] + [Unlink(file) for file in volume.files[1 : depth + 1]]
    return Plan(REVERT, volume.name, tuple(steps), volume, after, intent=depth > 0)


def _refuse_losing_clones(volume: model.Volume, depth: int) -> None:
    """:raises HasDependents: a linked clone rests on one of the topmost ``depth`` + 1 files of the chain."""
    discarded = set(volume.files[: depth + 1])
    names = sorted({clone for clone, file in volume.dependents if file in discarded})
    if names:
        raise errors.HasDependents(
            f"volume {volume.name}",
            f"linked clones or other files rest on what would be discarded: {model.listed(names)}",
            headers.DEPENDENTS_REMEDY,
        )
