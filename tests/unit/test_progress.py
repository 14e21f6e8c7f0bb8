# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far work is, as its processes note it."""

from __future__ import annotations

import copy
import os
import sys
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command, progress
from ansible_collections.remotefs.storage.plugins.module_utils.pace import Pace
from ansible_collections.remotefs.storage.plugins.module_utils.progress import Figures, Meter


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(progress.SIZE))


@pytest.fixture
def meter(memory: memoryview) -> Iterator[Meter]:
    yield Meter(memory)


def test_steps_of_a_plan_follow_each_other(memory: memoryview, meter: Meter) -> None:
    part = meter.part([0, 100, 0, 50])
    done = []
    for amount, moved in ((0, 0), (100, 60), (0, 10), (50, 20)):
        part.step(amount)
        part.add(moved)
        done.append(progress.read(memory).done)
    assert done == [0, 60, 70, 120] and progress.read(memory) == Figures(150, 120, 0, 1, 1)
    part.add(1000)
    assert progress.read(memory).done == 150  # what was not foreseen is not counted
    meter.end(part)
    meter.end(part)
    assert progress.read(memory) == Figures(150, 150, 0, 1, 1)


def test_a_plan_that_ends_early_has_moved_what_it_was_to(memory: memoryview, meter: Meter) -> None:
    """The file system shares blocks, and nothing moves."""
    first, second = meter.part([100]), meter.part([50])
    second.step(50)
    second.add(5)
    meter.end(first)
    assert progress.read(memory)[:2] == (150, 105)


def test_what_others_move_is_told_by_them(memory: memoryview, meter: Meter) -> None:
    part = meter.part([100])
    part.step(100)
    for moved, of, done in ((1, 4, 25), (2, 0, 25), (5, 4, 25), (None, 4, 25), (True, 2, 50), (4, 4, 100)):
        part.tell(moved, of)
        assert progress.read(memory).done == done


def test_unknown_amounts_are_said(memory: memoryview, meter: Meter) -> None:
    part = meter.part([None, 10])
    part.step(None)
    part.add(7)
    assert progress.read(memory)[:3] == (10, 0, 1)


def test_copies_of_the_process_have_places_of_their_own(memory: memoryview, meter: Meter) -> None:
    meter.expect(9)
    meter.begin_item()
    meter.part([10])
    for number in (0, 1, 100_000):
        its_own = copy.copy(meter)
        its_own.become_copy(number)
        its_own.begin_item()
        part = its_own.part([100])
        part.step(100)
        part.add(30)
    assert progress.read(memory) == Figures(10 + 200, 60, 0, 3, 9)  # there is no room for the last one


def test_a_pace_without_limits_tells_what_moves(memory: memoryview, meter: Meter) -> None:
    pace = Pace("volume v", part=meter.part([100]))
    pace.step(100)
    pace.moved(40)
    pace.moved(20)
    assert pace.unlimited and progress.read(memory).done == 60


SAYS = 'print("    (1.00/100%)\\r    (40.00/100%)\\r", end="", flush=True)'


@pytest.mark.parametrize("limits", [{}, {"speed": 1 << 40}], ids=["any speed", "a speed"])
def test_programs_are_looked_at(memory: memoryview, meter: Meter, limits: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program says counts, and not what it reads besides."""
    part, seen = meter.part([1000]), []
    pace = Pace("volume v", part=part, **limits)
    pace.step(1000)
    real = command._wait_at_pace

    def wait(process: object, given: Pace) -> None:
        real(process, given)  # type: ignore[arg-type]
        meter.refresh()
        seen.append(progress.read(memory).done)

    monkeypatch.setattr(command, "_wait_at_pace", wait)
    assert command.run([sys.executable, "-c", SAYS], pace=pace).rc == 0
    assert seen == [400] and progress.read(memory).done == 400


def test_a_program_that_says_nothing_is_counted(memory: memoryview, meter: Meter) -> None:
    part = meter.part([1 << 40])
    part.step(1 << 40)
    out = os.memfd_create("out")
    with part.probed(lambda: command._told_by(os.getpid(), out)):
        before = progress.read(memory).done
        os.write(os.open("/dev/null", os.O_WRONLY), bytes(1 << 20))
        meter.refresh()
    assert progress.read(memory).done - before >= 1 << 20
