# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interrupted operation left, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

from .. import attachments
from .plan import Plan


@dataclass(frozen=True)
class ObservedFile:
    """A file that exists: its inode, its length in bytes, and what its qcow2 header says. Without such a header ``size`` is None.
    ``changed`` is the time of the last write (ns)."""

    inode: int
    length: int
    size: int | None = None
    backing_file: str | None = None
    changed: int = 0


@dataclass(frozen=True)
class ObservedState:
    """What is on the share before an interrupted task is resumed.

    ``active`` is the active image that ``.info`` names (None: there is no ``.info``), ``snapshots`` are its pairs (snapshot,
    overlay). ``files`` has each file of the intent that exists, by name. ``info_changed`` is the time of the last write of ``.info`` (ns).
    """

    active: str | None
    snapshots: tuple[tuple[str, str], ...]
    files: dict[str, ObservedFile]
    info_changed: int = 0
    decided: bool = True  # the decision of its group is recorded, or it has no group
    lost: bool = False  # it was decided later that the group gets no snapshot after all
    switched: bool | None = None  # whether the machine is on the new active image. None: it is not known

    def backing(self, file: str) -> str | None:
        """The backing file that the header of an existing file names."""
        return self.files[file].backing_file


@dataclass(frozen=True)
class Resumption:
    """How an interrupted operation ends. ``plan`` has the steps that are still to do. ``outcome`` is finished, undone or discarded.
    ``left`` are files that stay for somebody to look at. ``images`` are files of the interrupted plan besides those of ``plan``, its
    active image first. ``attachment`` is the machine that had them open. ``empty`` are overlays that go and in which nothing
    may be. ``phase`` is that of the intent. ``begins``: what is on record cannot be ended; ``plan`` takes its place on the record and is carried
    out. ``agent`` is how a guest is reached that may have been left frozen."""

    operation: str
    outcome: str
    plan: Plan
    left: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    attachment: attachments.Attachment | None = None
    empty: tuple[str, ...] = ()
    begins: bool = False
    phase: str = ""
    agent: str | None = None

    @property
    def closed(self) -> frozenset[str]:
        """Files that nobody may have open: those that the steps touch, and the active images before and after."""
        touched = {file for step in self.plan.steps for file in step.touches() if not file.endswith(".info")}
        return frozenset(touched | {volume.active.file for volume in (self.plan.before, self.plan.after) if volume is not None})

    @property
    def unwritten(self) -> frozenset[str]:
        """The other files of the volume, before and after. Machines on linked clones may read them, but nobody may write to them."""
        own = {file for volume in (self.plan.before, self.plan.after) if volume is not None for file in volume.own_files}
        return frozenset(own.union(self.images)) - self.closed

    def describe(self) -> dict:
        """An item of ``recovered`` as modules return it: operation, outcome, steps (as in ``actions``), and left if discarded."""
        item = {"operation": self.operation, "outcome": self.outcome, "steps": self.plan.actions}
        return {**item, "left": list(self.left)} if self.outcome == "discarded" else item
