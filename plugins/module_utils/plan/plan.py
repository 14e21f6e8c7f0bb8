# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan: what an operation will do to one volume, and what will be there afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import UnsafeImage
from ..model import Volume, info_name
from .wishes import is_spelled_out

if TYPE_CHECKING:
    from .steps import Step, WriteInfo

# The steps themselves are imported by what makes some: a plan that changes nothing has none.


@dataclass(frozen=True)
class Plan:
    """Steps in order, and the volume before and after them (None: there is none).

    ``intent`` says that the steps only make sense together: the executor records them durably before the first one.
    """

    operation: str
    volume: str
    steps: tuple[Step, ...]
    before: Volume | None
    after: Volume | None
    intent: bool = False

    def __post_init__(self) -> None:
        """Nothing is unlinked before what replaces it is recorded."""
        kinds = [step.name for step in self.steps]
        if self.after is not None and "unlink" in kinds and "write_info" not in kinds[: kinds.index("unlink")]:
            raise ValueError("a plan that unlinks must write .info first")

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    @property
    def actions(self) -> list[dict]:
        return [step.describe() for step in self.steps]


def write_info(volume: Volume) -> WriteInfo:
    from .steps import WriteInfo

    return WriteInfo(info_name(volume.name), volume.active.file, tuple((snapshot.name, snapshot.file) for snapshot in volume.snapshots))


def require_known_formats(volume: Volume) -> None:
    """:raises UnsafeImage: a file's format is recorded nowhere, so that nothing may be built on it."""
    for image in volume.chain:
        if image.format is None:
            raise UnsafeImage(
                f"volume {volume.name}",
                f"the format of {image.file} is recorded nowhere and is never guessed",
                "adopt it with remotefs_volume, saying its format",
            )


def healing(volume: Volume) -> tuple[tuple[Step, ...], Volume]:
    """Steps that make absolute backing names relative and spell missing backing formats, and the volume after them."""
    from .steps import Repoint

    steps: list[Step] = []
    for image in volume.own:
        if image.backing_file and not is_spelled_out(image):
            below = volume.image(image.backing_file)
            steps.append(Repoint(image.file, below.file, str(below.format)))
            volume = volume.with_images(**{image.file: replace(image, absolute=False, backing_format=below.format)})
    return tuple(steps), volume


def require_healed_parent(volume: Volume) -> None:
    """qemu-img must be told every layer's name and format, and a clone's task does not write its parent's headers.

    :raises UnsafeImage: a header of the parent spells its backing file as a path, or does not say its format.
    """
    for image in volume.chain[len(volume.own) :]:
        if volume.parent and not is_spelled_out(image):
            raise UnsafeImage(
                f"volume {volume.name}",
                f"the header of {image.file}, which it rests on, does not spell its backing file as it should",
                f"run remotefs_volume for {volume.parent.volume}, which mends it, and then this task again",
            )
