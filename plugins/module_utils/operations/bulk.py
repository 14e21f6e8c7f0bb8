# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects in one task: all attempted, results in the order asked for, work spread over threads.

Deletions that stand next to each other in a task work in batches under locks taken together, so that the headers of a share
are read once for a batch and not once for each of its volumes (see :mod:`holding`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Callable, Iterator, Sequence

from ..errors import StorageError
from ..model import Share, is_safe_file_name
from . import placement
from .holding import Holding, NotHeld
from .transaction import Options, Outcome

_MOST_HELD = 200  # locks at once, each of them an open file
_PATIENCE = 10  # seconds after which volumes of a batch whose turn has not come are given back, because others may wait for them


@dataclass(frozen=True)
class Deletion:
    """An item's volume, of which something is going to be deleted, and where that may be."""

    candidates: placement.Candidates
    volume: str


@dataclass(frozen=True)
class Item:
    """One object of a bulk task. Items that share a name in ``touches``, their own volume's among them, run in order."""

    name: str
    touches: frozenset
    run: Callable[[Options], Outcome]
    deletion: Deletion | None = None


Results = list


def default_parallel() -> int:
    return min(8, os.cpu_count() or 1)


def run_all(items: Sequence[Item], parallel: int, options: Options) -> list[Outcome | StorageError]:
    """Run every item; an item that fails leaves its error in its place and stops no other."""
    results: Results = [None] * len(items)
    for together, group in groupby(range(len(items)), lambda index: items[index].deletion is not None):
        indexes = list(group)
        if together and len(indexes) > 1:
            indexes = _delete_in_batches(items, indexes, parallel, options, results)
        _run_rows(items, _rows(items, indexes), parallel, options, results)
    return results


def _run_rows(items: Sequence[Item], rows: list[list[int]], parallel: int, options: Options, results: Results) -> None:
    def run_row(row: list[int]) -> None:
        for index in row:
            try:
                results[index] = items[index].run(options)
            except StorageError as error:
                results[index] = error

    _spread(run_row, rows, parallel)


def _spread(run_row: Callable[[list[int]], None], rows: list[list[int]], parallel: int) -> None:
    if parallel == 1 or len(rows) <= 1:
        for row in rows:
            run_row(row)
        return
    from concurrent.futures import ThreadPoolExecutor  # late: most tasks are about one object

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        list(pool.map(run_row, rows))


def _rows(items: Sequence[Item], indexes: Sequence[int]) -> list[list[int]]:
    """Indexes of items that must keep their order, because they share a name directly or through others."""
    return _joined({index: items[index].touches for index in indexes})


def _joined(names_of: dict[int, frozenset]) -> list[list[int]]:
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


# -- deletions in batches --------------------------------------------------------------------------------------------


def _delete_in_batches(items: Sequence[Item], indexes: list[int], parallel: int, options: Options, results: Results) -> list[int]:
    """Run these deletions as far as their locks are free. Returns the indexes of those that are still to be run alone, in order."""
    left: list[int] = []
    for share, batch in _batches(items, indexes, left):
        try:
            with Holding(share, options.break_lock) as holding:
                left += _delete_batch(items, batch, holding, parallel, options, results)
        except StorageError:  # the share is ill: each of them will tell
            left += [index for index in batch if results[index] is None]
    return sorted(set(left))


def _batches(items: Sequence[Item], indexes: list[int], left: list[int]) -> Iterator[tuple[Share, list[int]]]:
    """Deletions on one share, as many as may be locked at once; those that cannot be located go to ``left``."""
    by_share: dict[str, tuple[Share, list[int]]] = {}
    for index in indexes:
        share = _share_of(items[index].deletion)
        if share is None:
            left.append(index)
        else:
            by_share.setdefault(share.path, (share, []))[1].append(index)
    for share, found in by_share.values():
        for start in range(0, len(found), _MOST_HELD):
            yield share, found[start : start + _MOST_HELD]


def _share_of(deletion: Deletion | None) -> Share | None:
    if deletion is None or not is_safe_file_name(deletion.volume):
        return None
    try:
        return placement.locate(deletion.candidates, deletion.volume)
    except StorageError:
        return None


def _delete_batch(
    items: Sequence[Item], batch: list[int], holding: Holding, parallel: int, options: Options, results: Results
) -> list[int]:
    """Returns the indexes of items that need locks which the holding has not, or whose turn did not come in time."""
    volumes = {index: items[index].deletion.volume for index in batch}  # type: ignore[union-attr]
    if not options.check:
        holding.take(volumes.values())
    free = [index for index in batch if options.check or holding.has(volumes[index])]
    families = {index: frozenset({volumes[index]} | holding.ancestors(volumes[index])) for index in free}
    held, left = replace(options, holding=holding), [index for index in batch if index not in families]

    def run_row(row: list[int]) -> None:
        for position, index in enumerate(row):
            try:
                results[index] = items[index].run(held)
            except StorageError as error:
                results[index] = error
            except NotHeld:  # and the rest of the row keeps its place behind this one
                left.extend(row[position:])
                break
        release(row)

    def release(row: list[int]) -> None:
        for name in {name for index in row for name in families[index]}:
            holding.release(name)

    for row in _spread_for_a_while(run_row, _joined(families), parallel):
        left += row
        release(row)
    return left


def _spread_for_a_while(run_row: Callable[[list[int]], None], rows: list[list[int]], parallel: int) -> Iterator[list[int]]:
    """Run rows side by side; yields those that were not begun in time, while the others are still at work."""
    from concurrent.futures import ThreadPoolExecutor, wait

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        futures = {pool.submit(run_row, row): row for row in rows}
        late = wait(futures, timeout=_PATIENCE).not_done
        yield from [row for future, row in futures.items() if future in late and future.cancel()]
    for future in set(futures):
        if not future.cancelled():
            future.result()
