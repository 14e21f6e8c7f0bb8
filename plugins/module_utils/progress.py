# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the work of a task is: the bytes that its plans move, and how many of them have moved.

A task may work in several threads and in several copies of its process. So the figures stand in memory that all of these share, and
each process has a place of its own there. Whoever shows them (see :mod:`background`) reads that memory.
"""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, NamedTuple

_PLACE = struct.Struct("=QQQQ")  # bytes of all plans, bytes moved, plans of which nobody knows the bytes, items that have begun
_PLACES = 512  # processes; what others do is not shown
SIZE = _PLACE.size * (_PLACES + 1)  # bytes of the memory. Its first place has the number of items
Probe = Callable[[], "float | int"]


class Figures(NamedTuple):
    """``total`` and ``done`` are bytes. ``unknown``: of how many plans nobody knows the bytes. ``begun`` of ``items`` have begun."""

    total: int
    done: int
    unknown: int
    begun: int
    items: int


def read(memory: memoryview) -> Figures:
    """The sum of what all processes have noted."""
    places = [_PLACE.unpack_from(memory, place * _PLACE.size) for place in range(1, _PLACES + 1)]
    total, done, unknown, begun = (sum(column) for column in zip(*places))
    items = max(1, _PLACE.unpack_from(memory)[0])
    return Figures(total, done, unknown, min(max(1, begun), items), items)  # an item may begin twice, and a task without items is one


class Meter:
    """Notes the figures of one process.

    :param memory: of :data:`SIZE` bytes, shared with the other processes of the task.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._place = memory, 1
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._parts: list[Part] = []
        self._ended = self._unknown = self._begun = 0

    def become_copy(self, number: int) -> None:
        """From now on this is the meter of the copy of the process that has this number, from 0 on."""
        self._lock, self._place = threading.Lock(), number + 2
        self._forget()

    def expect(self, items: int) -> None:
        """The task is about so many items."""
        _PLACE.pack_into(self._memory, 0, items, 0, 0, 0)

    def begin_item(self) -> None:
        """Work on one of the items begins."""
        with self._lock:
            self._begun += 1
            self._note()

    def part(self, amounts: Iterable[int | None]) -> Part:
        """The part of a plan whose steps move so many bytes each."""
        known = list(amounts)
        part = Part(self._note_safely, sum(amount or 0 for amount in known))
        with self._lock:
            self._unknown += None in known
            self._parts.append(part)
            self._note()
        return part

    def end(self, part: Part) -> None:
        """A plan is done. What was estimated of it counts as moved."""
        with self._lock:
            if part in self._parts:
                self._parts.remove(part)
                self._ended += part.total
                self._note()

    def refresh(self) -> None:
        """Look at what can only be looked at."""
        for part in list(self._parts):
            part.look()
        self._note_safely()

    def _note_safely(self) -> None:
        with self._lock:
            self._note()

    def _note(self) -> None:
        total, done = (self._ended + sum(figures) for figures in ([part.total for part in self._parts], [part.done for part in self._parts]))
        if self._place <= _PLACES:
            _PLACE.pack_into(self._memory, self._place * _PLACE.size, total, done, self._unknown, self._begun)


class Part:
    """One plan: so many bytes in ``total``, of which ``done`` have moved. A step begins where the one before it has ended."""

    def __init__(self, changed: Callable[[], None], total: int) -> None:
        self.total = total
        self._changed = changed
        self._before = self._amount = self._now = 0  # bytes of the steps before, of this one, and those of it that have moved
        self._probe: Probe | None = None

    @property
    def done(self) -> int:
        """Bytes that have moved. What a step moves beyond its estimate does not count."""
        return min(self.total, self._before + min(self._amount, self._now))

    def step(self, amount: int | None) -> None:
        """A step begins that moves so many bytes (None: nobody knows)."""
        if amount != 0:
            self._before, self._amount, self._now = self._before + self._amount, amount or 0, 0
            self._changed()

    def add(self, count: int) -> None:
        """So many bytes have moved."""
        if self._probe is None:
            self._now += count
            self._changed()

    def tell(self, moved: object, of: object) -> None:
        """Somebody else moves the data, and says how much of it has moved."""
        if isinstance(moved, int) and isinstance(of, int) and 0 <= moved <= of and of:
            self._now = self._amount * moved // of
            self._changed()

    @contextmanager
    def probed(self, probe: Probe) -> Iterator[None]:
        """A context in which ``probe`` tells how far this step is: a part of 1, or a number of bytes."""
        self._probe = probe
        try:
            yield
        finally:
            self.look()
            self._probe = None

    def look(self) -> None:
        """Ask the probe, if there is one."""
        probe = self._probe
        if probe is not None:
            told = probe()
            self._now = max(self._now, int(self._amount * told) if isinstance(told, float) else told)
