# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast data moves, by a clock that only moves when somebody sleeps; and programs that are held back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command, pace
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime, Pace

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_without_limits_nobody_waits(clock: Clock) -> None:
    free = Pace("volume v")
    free.moved(1 << 40)
    assert free.unlimited and not clock.naps and free.until() is None and free.piece(5 * MIB) == 5 * MIB


def test_data_that_is_ahead_waits(clock: Clock) -> None:
    slow = Pace("volume v", speed=MIB, sleep=clock.sleep)
    for _time in range(12):
        slow.moved(MIB // 2)
    assert clock.now == pytest.approx(1006) and max(clock.naps) <= 0.5


def test_data_that_came_late_does_not_wait(clock: Clock) -> None:
    slow = Pace("volume v", speed=MIB, sleep=clock.sleep)
    slow.moved(0)
    clock.now += 10
    slow.moved(9 * MIB)
    assert not clock.naps


@pytest.mark.parametrize("speed, piece", [(1, 64 << 10), (MIB, MIB // 8), (1 << 40, 4 * MIB)])
def test_pieces_are_parts_of_a_second(speed: int, piece: int) -> None:
    assert Pace("volume v", speed=speed).piece(4 * MIB) == piece
    assert Pace("volume v", speed=speed).piece(512) == 512


def test_time_begins_with_the_first_byte(clock: Clock) -> None:
    short = Pace("volume v", timeout=5, sleep=clock.sleep)
    clock.now += 100
    short.moved(1)
    clock.now += 4
    short.moved(1)
    clock.now += 2
    with pytest.raises(OutOfTime, match=r"volume v: its data did not move within 5 s; run the task again with a longer timeout\."):
        short.moved(1)


def test_time_that_ends_in_a_nap(clock: Clock) -> None:
    both = Pace("volume v", speed=1, timeout=3, sleep=clock.sleep)
    with pytest.raises(OutOfTime):
        both.moved(MIB)
    assert clock.now <= 1003 + 0.5


def writing(megabytes: int, then: str) -> list[str]:
    """A program that writes."""
    lines = ["import os, time", "fd = os.open(os.devnull, os.O_WRONLY)", f"for _ in range({megabytes}): os.write(fd, bytes({MIB})); {then}"]
    return [sys.executable, "-c", "\n".join(lines)]


def test_a_program_that_goes_on_is_slower_than_it_could_be() -> None:
    slow = Pace("volume v", speed=10 * MIB)
    began = time.monotonic()
    assert command.run(writing(10, "time.sleep(0.05)"), pace=slow).rc == 0
    assert time.monotonic() - began > 0.7  # a second's worth of data; the last pieces may go unseen


def test_a_program_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfTime):
        command.run([sys.executable, "-c", "import time; time.sleep(600)"], pace=Pace("volume v", timeout=0.2))
    started: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(OutOfTime):  # it is stopped by then
        command.run(writing(100000, "pass"), pace=Pace("volume v", speed=1, timeout=0.5))
    assert started[0].returncode == -signal.SIGKILL
