# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for a revert on a share that is full and has no ballast: the data that the revert gives up is taken out first.

The new overlay needs a few blocks before the old files can go. Those files belong to nothing that stays, so their data goes
in place, each of them remains a valid image, and the intent on record says what is to be done after a crash. A guest of another
volume may take the blocks first. Then the revert is pending until there is room.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Iterable

from ..plan.plan import Plan
from ..plan.steps import ReplaceOverlay, Step, Unlink, WriteRecord
from ..store import qcow2
from ..store.directory import ShareDirectory
from . import allocate

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


def take_data_out(directory: ShareDirectory, volume: str, files: Iterable[str]) -> bool:
    """Give the blocks of these files back, all but those of their tables. False where none of them could be emptied."""
    done = False
    for file in files:
        if directory.root.status(file) is None:
            continue
        directory.verify(volume)
        with directory.root.opened(file, write=True) as fd:
            try:
                kept = qcow2.drop_data(fd)
            except qcow2.Qcow2Error:
                continue
            _give_back(fd, kept)
            done = True
    return done


def _give_back(fd: int, start: int) -> None:
    length = os.fstat(fd).st_size
    if length > start and not allocate.make_hole(fd, start, length - start):
        os.ftruncate(fd, start)
        os.ftruncate(fd, length)
    os.fsync(fd)
