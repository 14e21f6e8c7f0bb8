# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects in one task: all attempted, results in the order asked for, work spread over threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Sequence

from ..errors import StorageError
from .transaction import Outcome


@dataclass(frozen=True)
class Item:
    """One object of a bulk task. Items that share a name in ``touches``, their own among them, run one after the other, in order."""

    name: str
    touches: frozenset
    run: Callable[[], Outcome]


def default_parallel() -> int:
    return min(8, os.cpu_count() or 1)


def run_all(items: Sequence[Item], parallel: int) -> list[Outcome | StorageError]:
    """Run every item; an item that fails leaves its error in its place and stops no other."""
    results: list = [None] * len(items)

    def run_row(row: list[int]) -> None:
        for index in row:
            try:
                results[index] = items[index].run()
            except StorageError as error:
                results[index] = error

    rows = _rows(items)
    if parallel == 1 or len(rows) == 1:
        for row in rows:
            run_row(row)
    else:
        with ThreadPoolExecutor(max_workers=parallel) as pool:
            list(pool.map(run_row, rows))
    return results


def _rows(items: Sequence[Item]) -> list[list[int]]:
    """Indexes of items that must keep their order, because they share a name directly or through others."""
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while leaders.setdefault(name, name) != name:
            leaders[name] = name = leaders[leaders[name]]  # shortens the way for the next one
        return name

    for item in items:
        for name in item.touches:
            leaders[leader(name)] = leader(item.name)
    rows: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        rows.setdefault(leader(item.name), []).append(index)
    return list(rows.values())
