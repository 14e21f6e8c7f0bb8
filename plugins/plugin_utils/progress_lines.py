# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far work is, as people read it: percent, bytes, rate and time left in one line."""

from __future__ import annotations

import time
from collections import deque
from typing import Callable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_WINDOW = 30.0  # seconds over which the rate is taken
_EVERY = 10.0  # seconds between two lines that stay
_MINUTE, _HOUR = 60, 3600


def size(count: float) -> str:
    """Bytes with an IEC unit. ``size(1536)`` is ``1.5 KiB``."""
    unit = 0
    while count >= 1023.95 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 10 s`` or ``2 h 5 min``."""
    whole = int(seconds + 0.5)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


class Course:
    """What was told of the progress of one task."""

    def __init__(self) -> None:
        self._told: deque[tuple[float, int]] = deque([(0.0, 0)])  # (seconds since the task began, bytes)
        self._last = {"total": 0, "done": 0, "unknown": 0, "begun": 1, "items": 1, "seconds": 0.0}

    def note(self, figures: dict) -> None:
        """Take figures as the module tells them, whatever a host may say."""
        last = {key: figures.get(key, default) for key, default in self._last.items()}
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 64 for value in last.values()):
            return
        self._last = last
        now, done = self._last["seconds"], int(self._last["done"])
        if not self.has_begun:
            self._told = deque([(now, 0)])
        if now > self._told[-1][0]:
            self._told.append((now, done))
        while len(self._told) > 2 and self._told[1][0] < now - _WINDOW:
            self._told.popleft()

    @property
    def done(self) -> int:
        """Bytes that have moved."""
        return int(self._last["done"])

    @property
    def has_begun(self) -> bool:
        """Whether any data has moved, or it is known how much will."""
        return bool(self._last["done"] or self._last["total"])

    def _rate(self) -> float:
        (first, before), (last, after) = self._told[0], self._told[-1]
        return max(0.0, (after - before) / (last - first)) if last > first else 0.0

    def line(self) -> str:
        """How far it is. Where only some of the items have begun, the others are taken to be like them."""
        last, rate, words = self._last, self._rate(), []
        is_guess = last["begun"] < last["items"]
        total = int(last["total"] * last["items"] / max(1, last["begun"]))
        if total and not last["unknown"]:
            words += [f"{min(100, 100 * self.done // total)} %", f"{size(self.done)} of {'about ' if is_guess else ''}{size(total)}"]
        else:
            words.append(size(self.done))
        if last["items"] > 1:
            words.append(f"volume {int(last['begun'])} of {int(last['items'])}")
        words.append(f"{size(rate)}/s")
        if total > self.done and rate and not last["unknown"]:
            words.append(f"{duration((total - self.done) / rate)} left")
        return ", ".join(words)

    def end(self) -> str:
        """What is said at the end of work that went well."""
        return f"done, {size(max(self.done, 0 if self._last['unknown'] else self._last['total']))} in {duration(self._last['seconds'])}"


class Teller:
    """Tells people of the progress of one task on one host.

    On a terminal one line is written over again and again. Elsewhere, and where other hosts write, too, a line stays, and comes seldom.

    :param label: whose task it is. :param write: takes a text for standard error. :param columns: of the terminal; None: lines stay.
    """

    def __init__(self, label: str, write: Callable[[str], None], columns: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = "".join(char if char.isprintable() else "?" for char in label)
        self._write, self._columns, self._clock = write, columns, clock
        self._course = Course()
        self._next = 0.0  # when the next line that stays is due
        self._is_open = False

    def tell(self, figures: dict) -> None:
        """Take figures as the module tells them, and show them if it is time."""
        self._course.note(figures)
        if not self._course.has_begun or (self._columns is None and self._clock() < self._next):
            return
        self._next = self._clock() + _EVERY
        self._show(self._course.line())

    def end(self, figures: dict | None) -> None:
        """The work has ended. :param figures: the last ones, if it went well."""
        if figures is not None:
            self._course.note(figures)
            if self._course.has_begun:
                self._show(self._course.end())
        if self._is_open:
            self._write("\n")
            self._is_open = False

    def _show(self, words: str) -> None:
        text = f"{self._label}: {words}"
        if self._columns is None:
            self._write(f"{text}\n")
        else:
            self._write(f"\r{text[: self._columns]}\x1b[K")
            self._is_open = True
