# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the data of one volume moves, and for how long: what the options ``speed`` and ``timeout`` say.

Whoever moves data tells how many bytes it has moved, and is kept waiting while that is more than the time allows.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator

from . import errors

if TYPE_CHECKING:
    from . import progress

_NAP = 0.5  # seconds to sleep at most before the time is looked at again
_PIECES = 8  # parts of a second's data that are moved at a time
_SMALLEST = 64 << 10  # bytes: no smaller piece is moved at a time


class OutOfTime(errors.ToolFailed):
    """Data did not move within the time that the user gives it."""


class Pace:
    """The pace of one volume's data. It counts from the first byte.

    :param subject: how messages name the volume. :param speed: bytes a second at most; 0: as fast as it goes.
    :param timeout: seconds at most; None: as long as it takes. :param sleep: waits for some seconds.
    :param part: where the bytes are noted for those who watch. None: nobody does.
    """

    def __init__(
        self, subject: str, speed: int = 0, timeout: float | None = None, sleep: Callable[[float], None] = time.sleep, part: progress.Part | None = None
    ) -> None:
        self.speed, self.part = speed, part
        self._subject, self._timeout, self._sleep = subject, timeout, sleep
        self._begin: float | None = None
        self._moved = 0  # bytes

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return not self.speed and self._timeout is None

    def until(self) -> float | None:
        """When the time is over, in seconds of :func:`time.monotonic`. None: never. The first call lets it begin."""
        return None if self._timeout is None else self._started() + self._timeout

    def left(self) -> float | None:
        """Seconds until then. None: any number."""
        until = self.until()
        return None if until is None else until - time.monotonic()

    def nap(self, seconds: float) -> None:
        """Wait for somebody, but not beyond the time. :raises OutOfTime: it is over."""
        left = self.left()
        self._sleep(seconds if left is None else max(0.0, min(seconds, left)))
        self.require_time()

    def piece(self, count: int) -> int:
        """How many of ``count`` bytes to move before :meth:`moved` is called."""
        return min(count, max(_SMALLEST, self.speed // _PIECES)) if self.speed else count

    def moved(self, count: int) -> None:
        """Count bytes that were moved, and wait while they are ahead of their time. :raises OutOfTime: the time is over."""
        if self.unlimited and self.part is None:
            return
        self.count(count)
        while (ahead := self.ahead()) > 0:
            self._sleep(min(ahead, _NAP))
            self.require_time()

    def count(self, count: int) -> None:
        """Count bytes that were moved. :raises OutOfTime: the time is over."""
        if self.part is not None:
            self.part.add(count)
        self._moved += count
        self.require_time()

    def step(self, amount: int | None) -> None:
        """A step begins that moves so many bytes (None: nobody knows)."""
        if self.part is not None:
            self.part.step(amount)

    def require_time(self) -> None:
        """:raises OutOfTime: the time is over."""
        until = self.until()
        if until is not None and time.monotonic() > until:
            raise self.out_of_time()

    def ahead(self) -> float:
        """Seconds by which the bytes that were moved are ahead of their time; not above 0 if they are not."""
        return self._started() + self._moved / self.speed - time.monotonic() if self.speed else 0.0

    def out_of_time(self) -> OutOfTime:
        """The error for data that has not moved in time."""
        return OutOfTime(self._subject, f"its data did not move within {self._timeout:g} s", "run the task again with a longer timeout")

    @contextmanager
    def watched(self, meter: progress.Meter | None) -> Iterator[Callable[[int], None]]:
        """A context in which those who watch the task see how far it is. Yields what is told how many bytes are going to move."""

        def expect(count: int) -> None:
            if meter is not None and self.part is None:
                self.part = meter.part([count])
                self.step(count)

        try:
            yield expect
        finally:
            if meter is not None and self.part is not None:
                meter.end(self.part)

    def _started(self) -> float:
        if self._begin is None:
            self._begin = time.monotonic()
        return self._begin


UNLIMITED = Pace("")  # it counts nothing, so that all may share it
