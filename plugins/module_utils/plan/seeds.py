# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules for seeds: volumes that are an image which cloud-init reads. A plan knows how long it is, and nothing of its content."""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from . import headers, plan, planner, steps
from .desired import DesiredVolume

DEFAULT_MODE = 0o440  # nobody writes to it, and it may hold secrets


def create(desired: DesiredVolume, size: int) -> plan.Plan:
    """Plan a seed of ``size`` bytes that does not exist yet."""
    mode = DEFAULT_MODE if desired.mode is None else desired.mode
    step = steps.WriteSeed(desired.name, size, False, mode, desired.uid, desired.gid)
    image = model.Image(desired.name, "raw", size, mode=mode, uid=desired.uid or 0, gid=desired.gid or 0)
    after = planner.with_details(model.Volume(desired.name, (image,), adopted=True, created=desired.created, lease=desired.lease), desired)
    return plan.Plan(plan.CREATE_VOLUME, desired.name, (steps.WriteRecord(desired.name), step), None, after)


def require_lone(volume: model.Volume) -> None:
    """:raises Conflict: the volume is more than one raw file, so that it is no seed."""
    if volume.info or volume.snapshots or len(volume.chain) > 1:
        raise not_one(volume, "it has snapshots or rests on another file")
    if volume.own_base.format != "raw":
        raise not_one(volume, f"it is {volume.own_base.format}")


def not_one(volume: model.Volume, why: str) -> errors.Conflict:
    """The error for a volume that is something else, which is never overwritten."""
    return errors.Conflict(f"volume {volume.name}", f"it is no seed that this module made: {why}", "choose another name, or remove it first if nobody needs it")


def replaced(volume: model.Volume, desired: DesiredVolume, size: int) -> plan.Plan:
    """Plan to give a seed another content of ``size`` bytes, and all else that is desired, by one rename.

    It has an intent: the record says which file the volume is, and it must not tell of a file that has gone. :raises HasDependents: somebody
    has made the seed the backing file of something.
    """
    if volume.dependents:
        names = model.listed(sorted({name for name, _file in volume.dependents}))
        raise errors.HasDependents(f"volume {volume.name}", f"linked clones or other files rest on it: {names}", headers.DEPENDENTS_REMEDY)
    base = volume.own_base
    step = steps.WriteSeed(base.file, size, True, desired.mode, desired.uid, desired.gid)
    fresh = replace(
        base,
        size=size,
        mode=base.mode if desired.mode is None else desired.mode,
        uid=base.uid if desired.uid is None else desired.uid,
        gid=base.gid if desired.gid is None else desired.gid,
    )
    after = planner.with_details(replace(volume.with_images(**{base.file: fresh}), adopted=True), desired)
    return plan.Plan(plan.REPLACE_SEED, volume.name, (step, steps.WriteRecord(volume.name)), volume, after, intent=True)
