# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of this process that read: whatever becomes of them, each part is there once, and nothing of them stays behind."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import process_copies
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import forked_readers

HERE = os.getpid()
PARTS = list(range(40))
BIG = "x" * 200_000  # more than a pipe holds


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def in_copies(action: Callable[[int], object]) -> Callable[[int], list]:
    """Work that says where it was done, and does something more where that is not here."""

    def work(part: int) -> list:
        if os.getpid() != HERE:
            action(part)
        return [part, os.getpid(), BIG]

    return work


def done(work: Callable[[int], list], processes: int = 3) -> dict[int, int]:
    """Part → who did it; all of them once, and whole."""
    found = list(forked_readers.in_processes(PARTS, work, processes))
    assert sorted(part for part, _who, _text in found) == PARTS and all(text == BIG for _part, _who, text in found)
    return {part: who for part, who, _text in found}


def killed(_part: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_part_is_done_once_and_in_copies() -> None:
    found = done(in_copies(lambda _part: None))
    assert len(set(found.values())) == 3 and HERE not in found.values()


def test_parts_of_a_killed_copy_are_done_here() -> None:
    found = done(in_copies(lambda part: killed(part) if part == 4 else None))
    assert [part for part, who in found.items() if who == HERE] == list(range(4, 40, 3))


def test_all_copies_are_killed_at_once() -> None:
    assert set(done(in_copies(killed)).values()) == {HERE}


@pytest.mark.parametrize("whole", [10, process_copies.HEAD.size, 100_000])
def test_what_came_of_a_part_in_pieces_is_done_anew(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = process_copies._write

    def cut(pipe: int, data: bytes) -> None:
        if len(data) > whole:
            write(pipe, data[:whole])
            killed(0)
        write(pipe, data)

    monkeypatch.setattr(process_copies, "_write", cut)
    assert set(done(in_copies(lambda _part: None)).values()) == {HERE}


def test_an_error_is_met_here_in_its_own_words() -> None:
    def work(part: int) -> list:
        if part == 7:
            raise ValueError("part 7 is ill")
        return [part]

    with pytest.raises(ValueError, match="part 7 is ill"):
        list(forked_readers.in_processes(PARTS, work, 3))


def test_what_cannot_be_handed_over_is_done_here() -> None:
    assert [who for (who,) in forked_readers.in_processes([0], lambda _part: [os.getpid] if os.getpid() != HERE else [HERE], 1)] == [HERE]


@pytest.mark.parametrize("started", [0, 2])
def test_no_more_processes_can_be_had(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, calls = os.fork, iter(range(100))

    def refused() -> int:
        if next(calls) >= started:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", refused)
    found = done(in_copies(lambda _part: None))
    assert (HERE in found.values()) and len(set(found.values())) == started + 1


def test_who_asks_no_further_leaves_nobody_at_work() -> None:
    found = forked_readers.in_processes(PARTS, in_copies(lambda _part: None), 3)
    next(found)
    found.close()


def test_nothing_is_printed_twice(capfd: pytest.CaptureFixture) -> None:
    print("said once", end="")  # still in this process's buffer when it is copied
    done(in_copies(lambda _part: None))
    assert capfd.readouterr().out.count("said once") == 1


def test_copies_end_with_this_process() -> None:
    """One that nobody reads from cannot go on."""
    reading, writing = os.pipe()
    asking = os.fork()
    if asking == 0:
        try:
            os.close(reading)
            for part, who, _text in forked_readers.in_processes(PARTS, lambda part: [part, os.getpid(), BIG], 2):
                os.write(writing, b"%d\n" % who)
                if part > 10:
                    killed(0)
        finally:
            os._exit(1)
    os.close(writing)
    os.waitpid(asking, 0)
    with os.fdopen(reading, "rb") as told:  # ends when the last copy does: each of them holds the other end
        copies = {int(line) for line in told.read().split()}
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in copies) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert copies and not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in copies)
