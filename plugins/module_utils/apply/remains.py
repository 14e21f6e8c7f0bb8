# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed task left of a volume, as those tell it who looked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Volume
    from ..plan.intent import Resumption


class Interrupted:
    """What a killed task left of a volume: resumptions to run, temporary files to remove."""

    def __init__(self, resumptions: tuple[Resumption, ...] = (), leftovers: tuple[str, ...] = ()) -> None:
        self.resumptions = resumptions
        self.leftovers = leftovers

    def __bool__(self) -> bool:
        return bool(self.resumptions or self.leftovers)

    @property
    def after(self) -> Volume | None:
        return self.resumptions[-1].plan.after

    def describe(self) -> list[dict]:
        told = [item.describe() for item in self.resumptions]
        if self.leftovers:
            from ..plan.steps import Unlink

            told.append(
                {"operation": "temporary_files", "outcome": "undone", "steps": [Unlink(name).describe() for name in self.leftovers]}
            )
        return told


def group_file(group: str) -> str:
    """The name of the decision that the snapshots of a group are taken."""
    return group + ".json"
