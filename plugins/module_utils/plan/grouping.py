# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an interrupted snapshot of several volumes ends, of which a machine had some open: for all of them in the same way.

A volume has its point of the group from the moment on in which its overlay is used. While no overlay is used, all of them can be used
from now on, which is one instant. If all are used, a transaction of QEMU's did that, or the machine was started again after all. If
only some are, it must be certain that nobody wrote to the images under the others since.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

from .. import errors, model
from . import resumption
from .intent import Intent

UNDECIDED, DECIDED, LOST = "undecided", "decided", "lost"  # what is on record of a group
UNDO, FINISH, GIVE_UP = "undo", "finish", "give up"  # how it ends
# Where a member is: its intent is on record, its snapshot is, its snapshot is being given up, or nothing of it is there.
HERE, DONE, GOING, GONE = "here", "done", "going", "gone"


class Member(NamedTuple):
    """One volume of the group. ``intent`` and ``observed`` are None unless it is HERE or GOING. ``is_empty``: nothing was written to its overlay.
    ``written`` is the file of it that the guest writes to; None if the machine does not have it open, or no machine can be asked."""

    volume: str
    state: str
    intent: Intent | None = None
    observed: resumption.ObservedState | None = None
    is_empty: bool = True
    written: str | None = None

    @property
    def overlay(self) -> str:
        """The file that the plan makes the active one."""
        return self.intent.after.active.file if self.intent is not None and self.intent.after is not None else ""

    @property
    def exists(self) -> bool:
        """Whether the overlay is there."""
        return self.observed is not None and self.overlay in self.observed.files

    @property
    def is_used(self) -> bool:
        """Whether the overlay has become the one that counts."""
        return self.exists and (not self.is_empty or self.written == self.overlay)

    @property
    def rests(self) -> bool:
        """Whether nobody can have written to the image under an unused overlay since ``.info`` names that."""
        return self.exists and self.observed is not None and self.observed.active == self.overlay and self.written is None


def verdict(decision: str, members: Sequence[Member], machine: str) -> str:
    """UNDO, FINISH or GIVE_UP.

    :param machine: how messages name it.
    :raises InUse: the group is on record as taken, and the machine was started on a file that one of the volumes had left.
    :raises NeedsRecovery: it is, and files of it are not there; or an overlay has data, and the machine writes to the image under it.
    """
    for member in members:
        if not member.is_empty and member.written not in (None, member.overlay):
            raise errors.NeedsRecovery(
                f"volume {member.volume}",
                f"its active image {member.overlay} has data, and {machine} writes to {member.written}, the image under that",
                "stop the machine, and decide which of the two counts; see docs/worst-day.md",
            )
    if decision != DECIDED:
        return UNDO if decision == UNDECIDED else GIVE_UP
    here = [member for member in members if member.state == HERE]
    done = any(member.state == DONE for member in members)
    gone = any(member.state == GONE for member in members)
    used = [member for member in here if member.is_used]
    unused = [member for member in here if not member.is_used]
    if not used and not done:
        return FINISH if not gone and all(member.exists for member in unused) else GIVE_UP
    if all(member.rests for member in unused) and not (gone and unused):
        return FINISH
    if not done:
        return GIVE_UP
    wrong = [str(member.written) for member in unused if member.written is not None]
    if not wrong:
        names = [member.volume for member in unused]
        raise errors.NeedsRecovery(f"volumes {model.listed(names)}", "they miss a snapshot that the others of their group have", "see docs/worst-day.md")
    raise errors.InUse(
        f"group of {len(members)} volumes",
        f"{machine} writes to {model.listed(wrong)}, which its volume has left: it was started on the wrong file",
        f"stop it, and start it on {model.listed([member.overlay for member in unused])}",
    )
