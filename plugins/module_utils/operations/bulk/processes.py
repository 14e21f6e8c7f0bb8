# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of a bulk task in several processes. The threads of one Python process share one processor, which a fast disk leaves waiting.

Each copy of this process does its part of the rows as this process would, and reports each row when it is done. Rows that no copy has
reported are done by this process: a copy can be killed at any time, like any task, and what it left is ended first.
"""

from __future__ import annotations

import os
import pickle
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple, Sequence

from ... import process_copies

if TYPE_CHECKING:
    from ... import errors, progress
    from .. import capacity, options, transaction

_ROWS_EACH = 16  # starting a copy costs as much as a few changes


class Report(NamedTuple):
    """What a copy says of a row, by its number: results by index of the item, what is left to be run alone, and what has happened in the
    copy since its last report."""

    row: int
    results: dict[int, transaction.Outcome | errors.StorageError]
    left: list[int]
    warnings: list[str]
    log: list[dict]
    followed: list[capacity.Followed]

    def take_over(self, task: options.Task) -> None:
        """Add to ``task`` what has happened in the copy."""
        for sentence in self.warnings:
            task.warn(sentence)
        if task.log is not None:
            task.log.add_lines(self.log)
        for change in self.followed:
            task.capacity.follow_again(change)


class Reporter:
    """Sends the reports of a copy. Its ``task`` is that of the copy, whose warnings it collects."""

    def __init__(self, task: options.Task, send: Callable[[Report], None]) -> None:
        self._warnings: list[str] = []
        self.task = replace(task, warn=self._warnings.append)
        self._send = send
        self._mutex = threading.Lock()
        self._followed = len(task.capacity.followed)
        if task.log is not None:
            task.log.take_lines()  # the original has them

    def report(self, row: int, results: dict[int, transaction.Outcome | errors.StorageError], left: list[int]) -> None:
        """Send what is known of a row that is done."""
        with self._mutex:
            warnings = self._warnings[:]
            del self._warnings[: len(warnings)]  # and not those that another thread has added since
            lines = [] if self.task.log is None else self.task.log.take_lines()
            followed = self.task.capacity.followed[self._followed :]
            self._followed += len(followed)
            self._send(Report(row, results, left, warnings, lines, followed))


def how_many(rows: int, parallel: int) -> int:
    """How many processes are worth it: one of several is not."""
    return min(parallel, len(os.sched_getaffinity(0)), rows // _ROWS_EACH)


def in_copies(
    parts: Sequence[Sequence[int]], work: Callable[[Sequence[int], Callable[[Report], None]], None], meter: progress.Meter | None = None
) -> Iterator[Report]:
    """Do ``work`` on each part (numbers of rows) in a copy of this process, and yield the reports as they come."""
    die_with_parent = process_copies.dying_with_parent()

    def do(number: int, part: Sequence[int], send: process_copies.Send) -> None:
        die_with_parent()
        if meter is not None:
            meter.become_copy(number)
        work(part, lambda report: send(pickle.dumps(report)))

    with process_copies.started([partial(do, number, part) for number, part in enumerate(parts)]) as copies:
        for message in process_copies.messages(copies):
            yield pickle.loads(message)
