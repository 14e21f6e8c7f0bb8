# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read of the progress of a task, whatever its host may tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.plugin_utils.progress_lines import Course, Teller, duration, size

MIB = 1 << 20


@pytest.mark.parametrize(
    "count, words", [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1024 * MIB - 1, "1.0 GiB"), (5 * 2**60, "5120.0 PiB")]
)
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def figures(done: int, seconds: float, **more: object) -> dict:
    return {"total": 80 * MIB, "done": done, "unknown": 0, "begun": 1, "items": 1, "seconds": seconds, **more}


def line(*told: dict) -> str:
    course = Course()
    for one in told:
        course.note(one)
    return course.line()


def test_the_rate_is_that_since_data_moves() -> None:
    waited = [figures(0, 10, total=0), figures(0, 20, total=0)]
    assert line(figures(20 * MIB, 10)) == "25 %, 20.0 MiB of 80.0 MiB, 2.0 MiB/s, 30 s left"
    assert line(*waited, figures(20 * MIB, 24)) == "25 %, 20.0 MiB of 80.0 MiB, 5.0 MiB/s, 12 s left"


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    slow = [figures(MIB, seconds) for seconds in range(10, 200, 10)]
    assert line(*slow, figures(41 * MIB, 200)).endswith("1.0 MiB/s, 39 s left") and "50 %" not in line(*slow)
    assert line(*slow).endswith(", 0 B/s")  # nothing moves: nobody knows how long it takes


def test_what_nobody_knows_is_not_said() -> None:
    assert line(figures(10 * MIB, 10, unknown=1)) == "10.0 MiB, 1.0 MiB/s"
    assert line(figures(10 * MIB, 10, total=0)) == "10.0 MiB, 1.0 MiB/s"


def test_items_that_have_not_begun_are_like_the_others() -> None:
    some = figures(20 * MIB, 10, begun=4, items=8)
    assert line(some) == "12 %, 20.0 MiB of about 160.0 MiB, volume 4 of 8, 2.0 MiB/s, 1 min 10 s left"
    assert line({**some, "begun": 8}) == "25 %, 20.0 MiB of 80.0 MiB, volume 8 of 8, 2.0 MiB/s, 30 s left"


_ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2))


@given(st.lists(st.dictionaries(st.sampled_from([*figures(0, 0), "other"]), _ANY), max_size=5))
def test_a_host_may_tell_anything(told: list[dict]) -> None:
    words = line(*told)
    assert words.isprintable() and len(words) < 150


class Screen:
    def __init__(self, columns: int | None) -> None:
        self.now, self.text = 100.0, ""
        self.teller = Teller("db\x1b[31m\n01", self._write, columns, lambda: self.now)

    def _write(self, text: str) -> None:
        self.text += text


def test_lines_that_stay_come_every_ten_seconds() -> None:
    screen = Screen(None)
    for second in range(3, 36):
        screen.now += 1
        screen.teller.tell(figures(second * MIB, second))
    screen.teller.end(figures(80 * MIB, 80))
    lines = screen.text.splitlines()
    assert [one.split(" %")[0] for one in lines[:-1]] == [f"db?[31m?01: {percent}" for percent in (3, 16, 28, 41)]
    assert lines[-1] == "db?[31m?01: done, 80.0 MiB in 1 min 20 s"


def test_a_terminal_has_one_line_no_longer_than_it_is_wide() -> None:
    screen = Screen(30)
    for second in (3, 4):
        screen.teller.tell(figures(second * MIB, second))
    screen.teller.end(None)
    assert screen.text == "\rdb?[31m?01: 3 %, 3.0 MiB of 80\x1b[K\rdb?[31m?01: 5 %, 4.0 MiB of 80\x1b[K\n"


@pytest.mark.parametrize("columns", [None, 80])
def test_work_that_moves_no_data_is_silent(columns: int | None) -> None:
    screen = Screen(columns)
    screen.teller.tell(figures(0, 3, total=0))
    screen.teller.end(figures(0, 4, total=0))
    assert screen.text == ""
