# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a revert gets space on a full share: it gives up the data of files that it will remove, before it makes a new file."""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable

from .plan import Plan
from .steps import ReplaceOverlay, Step, Unlink, WriteRecord

_TABLES = 32 << 10  # bytes that remain at most of a file with few blocks: header, refcounts and tables
_NEEDED = 256 << 10  # bytes that must be given up. A new file takes a few blocks in most file systems, and sixty in XFS.


def given_up(steps: Iterable[Step]) -> tuple[str, ...]:
    """Files whose data a revert gives up, the old active image first. Other plans give up none."""
    steps = tuple(steps)
    replaced = tuple(step.file for step in steps if isinstance(step, ReplaceOverlay))
    return replaced + tuple(step.file for step in steps if isinstance(step, Unlink)) if replaced else ()


def gives_enough(plan: Plan) -> bool:
    """Whether the files that a revert gives up take enough space for it to go on. Their allocated bytes are an estimate."""
    if plan.before is None:
        return False
    images = [plan.before.image(file) for file in given_up(plan.steps) if file in plan.before.files]
    return sum(max(0, image.allocated - _TABLES) for image in images) >= _NEEDED


def with_intent(plan: Plan) -> Plan | None:
    """The plan of a revert to the newest snapshot, with an intent. It needs one where data is given up first. Otherwise such a revert
    is one rename and needs none. None for other plans, and where the revert would give up too little."""
    if plan.intent or not given_up(plan.steps) or not gives_enough(plan):
        return None
    return replace(plan, steps=(*plan.steps, WriteRecord(plan.volume)), intent=True)
