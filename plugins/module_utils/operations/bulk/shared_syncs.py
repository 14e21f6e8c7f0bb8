# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many changes at once, of which few work and the others wait: for the disk, for a lock, for their turn.

Each change syncs the directories in which it has given or taken names, several times. A sync makes durable whatever was done in
a directory before it began, by whomever. So changes that are under way at the same time wait for each other at that point, and
one sync serves them all: each goes on only when a sync that began after its own change has ended well.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Iterator

from ...store.files import waiting

_LONGEST_WAIT = 0.05  # seconds that a sync is put off for others to join: one of them may move data for an hour


def left_until(deadline: float | None) -> float | None:
    """Seconds until a deadline (monotonic), not below zero; None where there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class _Round:
    """One sync of a directory that has not begun yet, and the threads that wait for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # of a waiting change, which keeps it open until the sync is over
        self.over = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        """Sync, and let those go on that wait. An error is for all of them."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.error = error
        self.over.set()


class SharedSyncs(waiting.Waiting):
    """Waiting shared by the threads of one task. Each change is made inside :meth:`turn`.

    :param at_work: how many of them work at one time, not counting those that wait. As many more may move much data.
    """

    def __init__(self, at_work: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()  # a semaphore; threading.Semaphore made lives of volumes in memory 17 % slower
        for _turn in range(at_work):
            self._free.put(None)
        self._long = threading.Semaphore(at_work)
        self._mutex = threading.Lock()
        self._coming = 0  # changes that are under way and do not wait for a sync: those that could join one
        self._rounds: dict[tuple[int, int], _Round] = {}

    @contextmanager
    def turn(self, deadline: float | None = None) -> Iterator[bool]:
        """One change's time, or that of several in a row. False where no turn was free until ``deadline`` (monotonic)."""
        with self._mutex:
            self._coming += 1
        mine = False
        try:
            mine = self._take(left_until(deadline))
            yield mine
        finally:
            if mine:
                self._free.put(None)
            self._stop_coming()

    def _take(self, timeout: float | None) -> bool:
        try:
            self._free.get(timeout=timeout)
        except Empty:
            return False
        return True

    def _stop_coming(self) -> None:
        """One less is waited for. The last to leave syncs for all that wait."""
        with self._mutex:
            self._coming -= 1
            if self._coming > 0:
                return
            due, self._rounds = list(self._rounds.values()), {}
        for one in due:
            one.run()

    def sync_file(self, fd: int) -> None:
        """As of :class:`Waiting`; another change works meanwhile."""
        with self._aside():
            os.fsync(fd)

    def sleep(self, seconds: float) -> None:
        """As of :class:`Waiting`; another change works meanwhile."""
        with self._aside(), self._not_coming():
            time.sleep(seconds)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let another one work meanwhile."""
        self._free.put(None)
        try:
            yield
        finally:
            self._free.get()

    @contextmanager
    def _not_coming(self) -> Iterator[None]:
        """Nobody waits for this one meanwhile."""
        self._stop_coming()
        try:
            yield
        finally:
            with self._mutex:
                self._coming += 1

    def sync_directory(self, fd: int) -> None:
        """As of :class:`Waiting`: one sync serves all changes that wait for the same directory."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        with self._mutex:
            mine = self._rounds.setdefault(key, _Round(fd))
        with self._aside(), self._not_coming():
            if not mine.over.wait(_LONGEST_WAIT):
                self._begin(key, mine)
                mine.over.wait()
        if mine.error is not None:
            raise OSError(mine.error.errno, mine.error.strerror)

    @contextmanager
    def long_work(self, deadline: float | None = None) -> Iterator[None]:
        """As many at a time as :meth:`turn` lets work, in addition to those: quick changes go on meanwhile, and wait for none of these."""
        with self._aside(), self._not_coming():
            if not self._long.acquire(timeout=left_until(deadline)):
                raise waiting.NotBegun
            try:
                yield
            finally:
                self._long.release()

    def _begin(self, key: tuple[int, int], mine: _Round) -> None:
        """Sync without those that have not come yet, unless another thread has begun."""
        with self._mutex:
            if self._rounds.get(key) is not mine:
                return
            del self._rounds[key]
        mine.run()
