# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes that share syncs: each goes on only after a sync that began after its own change."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import shared_syncs
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk.shared_syncs import SharedSyncs
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.waiting import NotBegun


class Syncs:
    """Takes the place of fsync, and notes when each one began and ended, in ticks of one clock."""

    def __init__(self) -> None:
        self.clock = itertools.count()
        self.spans: list[tuple[int, int]] = []
        self.fails = False

    def fsync(self, _fd: int) -> None:
        begin = next(self.clock)
        time.sleep(0.001)
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        self.spans.append((begin, next(self.clock)))


class Crowd:
    """How many are inside at a time, and how many have been at most."""

    def __init__(self) -> None:
        self._mutex, self._inside, self.most = threading.Lock(), 0, 0

    def visit(self, seconds: float) -> None:
        with self._mutex:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(seconds)
        with self._mutex:
            self._inside -= 1


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs = Syncs()
    monkeypatch.setattr(shared_syncs.os, "fsync", syncs.fsync)
    return syncs


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[list[int]]:
    for name in "ab":
        (tmp_path / name).mkdir()
    opened = [os.open(tmp_path / name, os.O_RDONLY) for name in "aab"]  # two descriptors of one directory, one of another
    yield opened
    for fd in opened:
        os.close(fd)


def side_by_side(actions: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result(60) for future in [pool.submit(action) for action in actions]]


@pytest.mark.parametrize("at_work", [1, 3])
def test_each_goes_on_after_a_sync_that_began_after_its_change(syncs: Syncs, directories: list[int], at_work: int) -> None:
    waiting = SharedSyncs(at_work)

    def change(seed: int) -> list[tuple[int, int]]:
        chance, waited = random.Random(seed), []
        with waiting.turn():
            for _phase in range(10):
                time.sleep(chance.random() / 500)
                changed = next(syncs.clock)
                waiting.sync_directory(directories[0])
                waited.append((changed, next(syncs.clock)))
        return waited

    waited = [one for rows in side_by_side([lambda seed=seed: change(seed) for seed in range(12)]) for one in rows]
    for changed, went_on in waited:
        assert any(changed < begin and end < went_on for begin, end in syncs.spans)
    assert len(syncs.spans) < len(waited) / 3


def test_a_sync_that_another_began_is_waited_for_however_long_it_takes(syncs: Syncs, directories: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, two, begun, goes_on = SharedSyncs(3), threading.Barrier(2), threading.Event(), threading.Event()
    quick, ended = syncs.fsync, []
    assert shared_syncs._LONGEST_WAIT < 0.2

    def slow(fd: int) -> None:
        begun.set()
        assert goes_on.wait(60)
        quick(fd)

    monkeypatch.setattr(shared_syncs.os, "fsync", slow)

    def change() -> None:
        with waiting.turn():
            two.wait(60)
            waiting.sync_directory(directories[0])
            ended.append(goes_on.is_set())

    def server() -> None:
        assert begun.wait(60)
        time.sleep(6 * shared_syncs._LONGEST_WAIT)  # the patience of whoever waits is over long since
        goes_on.set()

    side_by_side([change, change, server])
    assert ended == [True, True] and len(syncs.spans) == 1


def test_changes_in_step_share_one_sync(syncs: Syncs, directories: list[int]) -> None:
    waiting, together = SharedSyncs(8), threading.Barrier(8)

    def change(number: int) -> None:
        with waiting.turn():
            together.wait(60)
            waiting.sync_directory(directories[number % 2])

    side_by_side([lambda number=number: change(number) for number in range(8)])
    assert len(syncs.spans) == 1


def test_each_directory_is_synced(syncs: Syncs, directories: list[int]) -> None:
    waiting, together = SharedSyncs(2), threading.Barrier(2)

    def change(fd: int) -> None:
        with waiting.turn():
            together.wait(60)
            waiting.sync_directory(fd)

    side_by_side([lambda fd=fd: change(fd) for fd in directories[1:]])
    assert len(syncs.spans) == 2


def test_who_shares_a_sync_shares_its_failure(syncs: Syncs, directories: list[int]) -> None:
    waiting, together, syncs.fails = SharedSyncs(4), threading.Barrier(4), True

    def change() -> int | None:
        with waiting.turn():
            together.wait(60)
            try:
                waiting.sync_directory(directories[0])
            except OSError as error:
                return error.errno
        return None

    assert side_by_side([change] * 4) == [errno.EIO] * 4
    syncs.fails = False
    with waiting.turn():
        waiting.sync_directory(directories[0])  # the next one is a new one


@pytest.mark.parametrize("how", ["at work", "asleep"])
def test_one_that_does_not_come_holds_nobody_up(syncs: Syncs, directories: list[int], how: str) -> None:
    waiting, others_are_done = SharedSyncs(2), threading.Event()

    def long() -> bool:
        with waiting.turn():
            if how == "at work":
                return others_are_done.wait(60)
            while not others_are_done.is_set():
                waiting.sleep(0.01)
        return True

    def short() -> bool:
        with waiting.turn():
            for _phase in range(3):
                waiting.sync_directory(directories[0])
        others_are_done.set()
        return True

    assert side_by_side([long, short]) == [True, True]


def test_no_more_are_at_work_than_may(syncs: Syncs, directories: list[int]) -> None:
    waiting, working = SharedSyncs(2), Crowd()

    def change() -> None:
        with waiting.turn():
            for wait in (lambda: waiting.sync_file(directories[0]), lambda: waiting.sync_directory(directories[0]), lambda: waiting.sleep(0.001)):
                working.visit(0.001)
                wait()
            working.visit(0.001)

    side_by_side([change] * 10)
    assert working.most == 2


def test_no_turn_until_the_deadline(directories: list[int]) -> None:
    waiting = SharedSyncs(1)
    with waiting.turn() as first:
        with waiting.turn(time.monotonic() + 0.01) as second:
            assert (first, second) == (True, False)
    with waiting.turn(time.monotonic()) as third:
        assert third


def test_quick_changes_go_on_beside_long_work(syncs: Syncs, directories: list[int]) -> None:
    """Two that move data have the only two turns, and wait until others, which need turns and syncs, are done."""
    waiting, others = SharedSyncs(2), threading.Barrier(6)

    def long() -> None:
        with waiting.turn(), waiting.long_work():
            waiting.sync_directory(directories[0])
            others.wait(60)
            waiting.sync_file(directories[0])

    def quick() -> None:
        with waiting.turn():
            for _phase in range(3):
                waiting.sync_file(directories[0])
                waiting.sync_directory(directories[0])
        others.wait(60)

    side_by_side([long, long, quick, quick, quick, quick])
    with waiting.turn(time.monotonic()) as one, waiting.turn(time.monotonic()) as two, waiting.turn(time.monotonic()) as three:
        assert (one, two, three) == (True, True, False), "turns were lost, or there are more of them now"


def test_long_work_has_as_many_places_as_there_are_turns(directories: list[int]) -> None:
    waiting, working = SharedSyncs(2), Crowd()

    def change() -> None:
        with waiting.turn(), waiting.long_work():
            working.visit(0.01)

    side_by_side([change] * 8)
    assert working.most == 2


def test_no_place_for_long_work_until_the_deadline() -> None:
    waiting, ended = SharedSyncs(1), threading.Event()

    def long() -> None:
        with waiting.turn(), waiting.long_work():
            ended.wait(60)

    def another() -> str:
        try:
            with waiting.turn(), waiting.long_work(time.monotonic() + 0.01):
                return "begun"
        except NotBegun:
            return "given back"
        finally:
            ended.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(long)
        while waiting._long._value:
            time.sleep(0.001)
        assert pool.submit(another).result(60) == "given back"
        first.result(60)
    with waiting.turn(time.monotonic()) as mine, waiting.long_work(time.monotonic()):
        assert mine
