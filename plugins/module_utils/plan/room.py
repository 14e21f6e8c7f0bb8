# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a revert may give up on a full share before it has made anything: the data of the files that it is going to remove."""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable

from .plan import Plan
from .steps import ReplaceOverlay, Step, Unlink, WriteRecord

_TABLES = 32 << 10  # bytes of a file that stay at most with few blocks: header, counts and tables
_NEEDED = 256 << 10  # bytes that must be given up: a new file takes a few blocks in most file systems, and sixty in XFS


def given_up(steps: Iterable[Step]) -> tuple[str, ...]:
    """Files whose data a revert gives up, the old active image first; none for other plans."""
    steps = tuple(steps)
    replaced = tuple(step.file for step in steps if isinstance(step, ReplaceOverlay))
    return replaced + tuple(step.file for step in steps if isinstance(step, Unlink)) if replaced else ()


def gives_enough(plan: Plan) -> bool:
    """Whether the files that a revert gives up hold enough to go on with, as far as their blocks tell."""
    if plan.before is None:
        return False
    images = [plan.before.image(file) for file in given_up(plan.steps) if file in plan.before.files]
    return sum(max(0, image.allocated - _TABLES) for image in images) >= _NEEDED


def on_record(plan: Plan) -> Plan | None:
    """The plan of a revert to the newest snapshot as it has to be where data is to be taken out first. It is one rename and needs no
    intent otherwise. None for other plans, and where it would gain nothing."""
    if plan.intent or not given_up(plan.steps) or not gives_enough(plan):
        return None
    return replace(plan, steps=(*plan.steps, WriteRecord(plan.volume)), intent=True)
