# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan: the steps that an operation will do for one volume, and the volume before and after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Mapping

from .. import model

if TYPE_CHECKING:
    from .steps import Step  # not at run time: a plan that changes nothing has no steps


# The operations, as records and ``recovered`` name them. Users ask for the first seven.
CREATE_VOLUME, PRESENT, DELETE_VOLUME, FLATTEN = "create_volume", "present", "delete_volume", "flatten"
CREATE_SNAPSHOT, DELETE_SNAPSHOT, REVERT = "create_snapshot", "delete_snapshot", "revert"
RECEIVE = "receive"  # a snapshot of another share
REPLACE_SEED = "replace_seed"  # another content for what cloud-init reads
UNLINK, REBUILD_INFO, DISCARD = "unlink", "rebuild_info", "discard"  # how interrupted operations end

_SECONDS = 2  # of data at a limited speed
MUCH = 16 << 20  # bytes: writing fewer takes so little time that nobody notices


def lost_snapshots(before: model.Volume | None, after: model.Volume | None) -> tuple[str, ...]:
    """Names of the snapshots that a volume has before a plan and not after it. Their data may be destroyed from the first step on."""
    kept = {snapshot.name for snapshot in after.snapshots} if after else set()
    return tuple(snapshot.name for snapshot in before.snapshots if snapshot.name not in kept) if before else ()


@dataclass(frozen=True)
class Plan:
    """Steps in order, and the volume before and after them (None: there is none). ``intent``: the steps only make sense together. The
    executor makes a durable record of them before it does the first one. ``unchanged``: the length in bytes and the time of the last
    write (ns) that files must still have once nobody can write to them any more, or nothing is done."""

    operation: str
    volume: str
    steps: tuple[Step, ...]
    before: model.Volume | None
    after: model.Volume | None
    intent: bool = False
    unchanged: Mapping[str, tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        """:raises ValueError: a file would be removed before ``.info`` names what replaces it."""
        kinds = [step.name for step in self.steps]
        if self.after is not None and "unlink" in kinds and "write_info" not in kinds[: kinds.index("unlink")]:
            raise ValueError("a plan that unlinks must write .info first")

    @property
    def changed(self) -> bool:
        """Whether the operation changes anything."""
        return bool(self.steps)

    @property
    def moves_much(self) -> bool:
        """Whether it may take long, because much data (or nobody knows how much) must be written."""
        return any(moved is None or moved > MUCH for moved in (step.moves() for step in self.steps))

    def takes_long(self, speed: int) -> bool:
        """Whether it may take so long that somebody wants to see how far it is. :param speed: bytes a second at most; 0: any."""
        moved = [step.moves() or 0 for step in self.steps]
        return self.moves_much or (speed > 0 and sum(moved) > _SECONDS * speed)

    @property
    def actions(self) -> list[dict]:
        """The steps as users see them: of each what :meth:`steps.Step.describe` returns."""
        return [step.describe() for step in self.steps]
