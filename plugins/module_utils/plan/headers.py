# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of what the headers of a chain say, and repairs. They must give every format, and every backing file by its plain name."""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from . import desired
from .steps import Repoint, Step

NOT_RECORDED = "is recorded nowhere and is never guessed"
# The remedy where something that would be removed has dependents.
DEPENDENTS_REMEDY = "delete or flatten those first, or name in not_dependent the files that do not count"


def require_known_formats(volume: model.Volume) -> None:
    """Check that the format of every file of the chain is known.

    :raises UnsafeImage: the format of one is recorded nowhere. Nothing may be built on such a file.
    """
    for image in volume.chain:
        if image.format is None:
            raise errors.UnsafeImage(
                f"volume {volume.name}",
                f"the format of {image.file} {volume.doubt or NOT_RECORDED}",
                "adopt it with remotefs_volume, saying its format",
            )


def require_format_below(volume: model.Volume) -> None:
    """Check that the format of the file on which a linked clone rests is known.

    :raises InvalidParameter: it is in no header and in no record.
    """
    base = volume.own_base
    below = volume.chain[len(volume.own) :][:1]
    if below and below[0].format is None and base.backing_format is None:
        raise errors.InvalidParameter(
            f"volume {volume.name}",
            f"the header of {base.file} does not say the format of its backing file {below[0].file}, and nothing records it",
            f"adopt {below[0].file} first with remotefs_volume, saying its format, and then this volume as qcow2",
        )


def header_repairs(volume: model.Volume) -> tuple[tuple[Step, ...], model.Volume]:
    """Steps that make absolute backing names relative and write missing backing formats, and the volume after these steps."""
    steps: list[Step] = []
    for image in volume.own:
        if image.backing_file and not desired.is_spelled_out(image):
            below = volume.image(image.backing_file)
            steps.append(Repoint(image.file, below.file, str(below.format)))
            volume = volume.with_images(**{image.file: replace(image, absolute=False, backing_format=below.format)})
    return tuple(steps), volume


def require_repaired_parent(volume: model.Volume) -> None:
    """Check the headers of a linked clone's parent. qemu-img needs the name and format of every layer from them, and a task for the
    clone does not write to its parent.

    :raises UnsafeImage: a header of the parent names its backing file by a path, or does not say its format.
    """
    for image in volume.chain[len(volume.own) :]:
        if volume.parent and not desired.is_spelled_out(image):
            raise errors.UnsafeImage(
                f"volume {volume.name}",
                f"the header of {image.file}, which it rests on, does not spell its backing file as it should",
                f"run remotefs_volume for {volume.parent.volume}, which mends it, and then this task again",
            )
