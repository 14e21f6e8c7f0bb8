# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for linked clones: how one is created, and how it becomes independent (flatten).

The base file of a linked clone is an overlay. Its backing file is the file that shows a snapshot of another volume.
"""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from . import cost, headers, planner, steps
from .desired import DesiredVolume
from .plan import CREATE_VOLUME, FLATTEN, Plan

DESCRIPTION = "taken for a linked clone"  # of such a snapshot


def snapshot_for(clone: str) -> str:
    """The name of the snapshot that is taken of the source volume so that ``clone`` can be made from it."""
    return f"clone-{clone}"


def require_current(parent: model.Volume, snapshot: str) -> None:
    """Check that ``snapshot`` shows what the volume holds now. It may exist since an earlier run that was interrupted.

    :raises Conflict: the volume was written since then. The clone would not show the volume as it is now.
    """
    overlay = parent.image(parent.snapshot(snapshot).file)
    if overlay != parent.active or not overlay.empty or overlay.size != parent.image(str(overlay.backing_file)).size:
        raise errors.Conflict(
            f"snapshot {snapshot} of volume {parent.name}",
            "it exists already and does not show what the volume holds now",
            "delete it, or name a snapshot to clone from as source.snapshot",
        )


def create_clone(desired: DesiredVolume, parent: model.Volume, snapshot: str, max_chain: int) -> Plan:
    """Plan a linked clone that does not exist yet. It rests on the file that shows ``snapshot``.

    :param max_chain: the number of files that the clone's chain may have.
    :raises InvalidParameter: a linked clone cannot have the desired format or preallocation, or its chain would be too long.
    :raises WouldShrink: it would be smaller than its source. :raises UnsafeImage: a format in the parent's chain is unknown.
    """
    subject = f"volume {desired.name}"
    point = parent.point_file(snapshot)
    below = parent.view(point)
    size = desired.size or below[0].size
    if desired.format == "raw":
        raise errors.InvalidParameter(subject, "a linked clone is a qcow2 overlay and cannot be raw", "leave format out, or say method: full")
    if desired.preallocation != "off":
        raise errors.InvalidParameter(subject, "preallocation does not go with a source", "leave preallocation off for a clone")
    if size < below[0].size:
        raise errors.WouldShrink(
            subject,
            f"{model.size_text(size)} is less than its source has, {model.size_text(below[0].size)}",
            "ask for at least the source's size",
        )
    headers.require_known_formats(parent)
    planner.check_qcow2_size(subject, "qcow2", size)
    planner.check_chain_length(subject, len(below), max_chain)
    mode = planner.DEFAULT_MODE if desired.mode is None else desired.mode
    step = steps.CreateClone(desired.name, point, str(below[0].format), size, mode, desired.uid, desired.gid)
    image = model.Image(
        desired.name,
        "qcow2",
        size,
        backing_file=point,
        backing_format=below[0].format,
        empty=True,
        mode=mode,
        uid=desired.uid or 0,
        gid=desired.gid or 0,
    )
    rests_on = model.Parent(parent.name, snapshot, point)
    after = model.Volume(desired.name, (image, *below), adopted=True, parent=rests_on, created=desired.created, lease=desired.lease)
    after = planner.with_details(after, desired)
    return Plan(CREATE_VOLUME, desired.name, (steps.WriteRecord(desired.name), step), None, after)


def flatten(volume: model.Volume, known: cost.Allocations) -> Plan:
    """Plan to give a linked clone its own data. A volume that is no linked clone needs no steps.

    :param known: allocated clusters by file, for the estimate of bytes. Files may be missing.
    :raises UnsafeImage: a format in the chain is unknown, or a header of the parent must be repaired first.
    """
    if volume.parent is None:
        return Plan(FLATTEN, volume.name, (), volume, volume)
    headers.require_known_formats(volume)
    headers.require_repaired_parent(volume)
    base = volume.own_base
    alone = replace(base, backing_file=None, backing_format=None, empty=False)
    after = replace(volume, chain=(*volume.own[:-1], alone), parent=None, adopted=True)
    step = steps.Pull(base.file, None, None, _bytes_of_parent(volume, known))
    return Plan(FLATTEN, volume.name, (step, steps.WriteRecord(volume.name)), volume, after, intent=True)


def _bytes_of_parent(volume: model.Volume, known: cost.Allocations) -> int:
    """Bytes that a pull of the parent's data writes. Where the clusters are unknown, what the parent's files take on disk."""
    below = volume.chain[len(volume.own) :]
    moved = cost.pulled([image.file for image in reversed(below)], [volume.own_base.file], False, known)
    return sum(image.allocated for image in below) if moved is None else moved
