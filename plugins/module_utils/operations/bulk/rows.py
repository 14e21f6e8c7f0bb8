# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of items: those of one row must keep their order, and different rows do not depend on each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Callable, Sequence

from . import shared_syncs


def _nothing(_given: object) -> None:
    pass


@dataclass(frozen=True)
class Work:
    """Rows of indexes of items, and what is done with each.

    ``at_once`` is how many rows may be under way. ``run`` does a row, and returns what it leaves of it to be run alone. ``finish`` is
    called for each row that is done. ``begin_copy`` is called in a copy of this process, with the rows that it does. A row that has not
    begun by the ``deadline`` (monotonic) is left.
    """

    rows: Sequence[list[int]]
    at_once: int
    run: Callable[[list[int]], list[int]]
    finish: Callable[[list[int]], None] = _nothing
    begin_copy: Callable[[Sequence[list[int]]], None] = _nothing
    deadline: float | None = None


def run_in_threads(work: Work, numbers: Sequence[int], at_once: int, done: Callable[[int, list[int]], None]) -> None:
    """Run the rows of these numbers. ``done`` is called for each with what is left of it."""

    def run(number: int) -> None:
        done(number, work.run(work.rows[number]))

    if work.deadline is None and (at_once == 1 or len(numbers) <= 1):
        for number in numbers:
            run(number)
        return
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        running = {pool.submit(run, number): number for number in numbers}
        for late in wait(running, timeout=shared_syncs.left_until(work.deadline)).not_done:
            if late.cancel():
                number = running.pop(late)
                done(number, work.rows[number])
    for one in running:
        one.result()


def rows_of(names_of: dict[int, frozenset]) -> list[list[int]]:
    """Items that must keep their order, because they share a name directly or through others."""
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while leaders.setdefault(name, name) != name:
            leaders[name] = name = leaders[leaders[name]]  # shortens the way for the next one
        return name

    for names in names_of.values():
        first, *others = sorted(names)
        for name in others:
            leaders[leader(name)] = leader(first)
    rows: dict[str, list[int]] = {}
    for index, names in names_of.items():
        rows.setdefault(leader(min(names)), []).append(index)
    return list(rows.values())


def parted(rows: list[list[int]], without_room: frozenset) -> tuple[list[list[int]], list[int]]:
    """(rows up to the first item without room, all that is behind those in order)."""
    first, last = [], []
    for row in rows:
        cut = next((place for place, index in enumerate(row) if index in without_room), len(row))
        first += [row[:cut]] if cut else []
        last += row[cut:]
    return first, sorted(last)
