# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Abilities that only some engines have. A plan may need one of them."""

from __future__ import annotations

from dataclasses import dataclass

from .. import errors
from . import steps
from .plan import FLATTEN, Plan

OFFLINE = "offline"  # the name of the engine for images that nobody has open
LIBVIRT = "libvirt"  # that of the engine for images of a domain of libvirt
QMP = "qmp"  # that of the engine for images that a machine has open, which QEMU's monitor reaches
_STOP = "stop the machine that uses it, or leave attachment out if none does, and run the task again"


@dataclass(frozen=True)
class Abilities:
    """What one engine can do besides what every engine can do.

    ``truncates``: it can cut a raw file. ``replaces_active``: it can put another file in the place of the active image. Neither
    is possible for a file that a machine has open. ``removes``: it can remove a volume.
    ``flattens``: it can give a linked clone its own data. ``grows_over_longer``: it can raise the size of an image over a longer one.
    ``pulls``: it can copy into an image what lies below it.
    """

    truncates: bool = True
    replaces_active: bool = True
    removes: bool = True
    flattens: bool = True
    grows_over_longer: bool = True
    pulls: bool = True

    def require_for(self, plan: Plan) -> None:
        """Check that this engine can carry out every step of the plan. :raises InUse: it cannot."""
        lacking = self._lacking_for(plan) or next(filter(None, map(self._lacking_for_step, plan.steps)), None)
        if lacking is not None:
            raise errors.InUse(f"volume {plan.volume}", f"{lacking}, which cannot be done through a running machine", _STOP)

    def _lacking_for(self, plan: Plan) -> str | None:
        if plan.after is None and plan.steps and not self.removes:
            return "it would be removed"
        if plan.operation == FLATTEN and plan.steps and not self.flattens:
            return "it would get its own data"
        return None

    def _lacking_for_step(self, step: steps.Step) -> str | None:
        if isinstance(step, steps.Truncate) and not self.truncates:
            return f"{step.file} would have to be cut to {step.size} bytes"
        if isinstance(step, steps.ReplaceOverlay) and not self.replaces_active:
            return f"its active image {step.file} would be replaced"
        if isinstance(step, steps.WriteSeed) and step.replaces and not self.replaces_active:
            return f"{step.file} would be replaced by another seed"
        if isinstance(step, steps.Pull) and not self.pulls:
            return f"{step.file} would get the data of what lies below it, which libvirt does in a way that is not safe"
        if isinstance(step, steps.Grow) and step.zero and not self.grows_over_longer:
            return f"{step.file} would grow over a longer file"
        return None
