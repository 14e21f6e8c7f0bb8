# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Abilities that only some engines have. A plan may need one of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InUse
from .plan import Plan
from .steps import ReplaceOverlay, Truncate

OFFLINE = "offline"  # the name of the engine for images that nobody has open
_STOP = "stop the machine that uses it, and run the task again"


@dataclass(frozen=True)
class Abilities:
    """What one engine can do besides what every engine can do.

    ``truncates``: it can cut a raw file. ``replaces_active``: it can put another file in the place of the active image. Neither
    is possible for a file that a machine has open.
    """

    truncates: bool = True
    replaces_active: bool = True

    def require_for(self, plan: Plan) -> None:
        """Check that this engine can carry out every step of the plan. :raises InUse: it cannot."""
        for step in plan.steps:
            if isinstance(step, Truncate) and not self.truncates:
                raise InUse(f"volume {plan.volume}", f"{step.file} would have to be cut to {step.size} bytes, and a machine uses it", _STOP)
            if isinstance(step, ReplaceOverlay) and not self.replaces_active:
                raise InUse(f"volume {plan.volume}", f"its active image {step.file} would be replaced, and a machine uses it", _STOP)
