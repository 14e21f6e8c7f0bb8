# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects in one task: all attempted, results in the order asked for, several under way at a time.

They wait together for the disk (see :mod:`shared_syncs`). Deletions that stand next to each other in a task work in batches under
locks taken together, so that the headers of a share are read once for a batch and not once for each of its volumes (see
:mod:`batch_locks`).
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Callable, Iterable, Iterator, Sequence

from ... import errors, model
from ...store.files.waiting import NotBegun
from .. import transaction, updating
from ..candidates import Candidates, locate
from ..options import Options, end
from . import processes, shared_syncs
from .batch_locks import BatchLocks, NotLocked, PredictedBatchLocks
from .order import Change, arrange
from .rows import Work, parted, rows_of, run_in_threads

_UNDER_WAY = 16  # changes that have begun: enough to share syncs, few enough to be left unfinished by a killed task
_MOST_HELD = 200  # locks at once, each of them an open file
_OPEN_FILES = 8192  # a change of a long chain has each of its files open
_PATIENCE = 10  # seconds after which volumes of a batch whose turn has not come are given back, because others may wait for them


@dataclass(frozen=True)
class Deletion:
    """An item's volume, of which something is going to be deleted, and where that may be."""

    candidates: Candidates
    volume: str


@dataclass(frozen=True)
class Item:
    """One object of a bulk task. Items that share a name in ``touches``, their own volume's among them, run in order, and so do
    those that have it in ``reads``.

    ``asked`` returns the volume that it wants to be there, if any: room is promised to it before items run side by side (see
    :mod:`reserving`). ``told`` are keys of its result that name its volume and its snapshot. ``change`` is what others may depend on
    (see :mod:`order`).
    ``keeps_lock`` says that it moves data when the volume has been changed already, and cannot be given back to be done later.
    No more of such items are under way than work, because others wait for their volumes.
    """

    name: str
    touches: frozenset
    run: Callable[[Options], transaction.Outcome]
    deletion: Deletion | None = None
    reads: frozenset = frozenset()
    keeps_lock: bool = False
    change: Change | None = None
    told: dict = field(default_factory=dict)
    asked: Callable[[], updating.VolumeRequest] | None = None


def default_parallel() -> int:
    """How many items work at a time where the user does not say."""
    return min(8, os.cpu_count() or 1)


def run_all(items: Sequence[Item], parallel: int, options: Options) -> list[transaction.Outcome | errors.StorageError]:
    """Run every item, those that depend on each other in the order that works; an item that fails leaves its error in its place
    and stops no other. Results are in the order asked for.

    :param parallel: how many items work at a time, those not counted that wait for the disk or for a lock. With 1 they run
        strictly one after the other.
    """
    if options.task.meter is not None:
        options.task.meter.expect(len(items))
    order, names = arrange(items)
    items = [replace(items[index], touches=items[index].touches | names.get(index, frozenset())) for index in order]
    task = _Task(items, parallel, options)
    for is_deletion, group in groupby(range(len(items)), lambda index: items[index].deletion is not None):
        indexes = list(group)
        if is_deletion and len(indexes) > 1:
            # What comes back can take long, and holds its locks all the while: no more of that at once than work.
            task.run(task.delete_in_batches(indexes), parallel)
        else:
            task.run(indexes, task.at_once(indexes))
    results = {index: task.results[place] for place, index in enumerate(order)}
    return [results[index] for index in range(len(items))]


def _look_at_room(items: Sequence[Item], options: Options) -> bool:
    """Whether any of the volumes that are asked for is to be made. If so, the room on the shares is read before anything changes, so
    that a run and its prediction start from the same figures."""
    asked = [item.change for item in items if item.asked is not None and item.change is not None]
    makes = bool(asked) and (any(item.deletion for item in items) or not all(_is_there(change) for change in asked))
    for change in asked if makes else ():
        with suppress(OSError):  # to be told where a share is chosen
            options.task.capacity.look(change.candidates.shares)
    return makes


def _is_there(change: Change) -> bool:
    """Whether a file of that name is; a hint that costs little."""
    if not model.is_safe_file_name(change.volume):
        return True  # it is never made
    names = (change.volume, model.info_name(change.volume))
    return any(os.path.lexists(os.path.join(share.path, name)) for share in change.candidates.shares for name in names)


class _Task:
    """The items of one bulk task, and the results of those that are done, by index."""

    def __init__(self, items: Sequence[Item], parallel: int, options: Options) -> None:
        self.results: dict[int, transaction.Outcome | errors.StorageError] = {}
        self._makes = _look_at_room(items, options)
        self._items = items
        self._turns = shared_syncs.SharedSyncs(parallel)
        self._parallel = parallel
        self._under_way = 1
        self._options = options
        if parallel > 1:
            _allow_open_files()
            self._under_way = max(parallel, _UNDER_WAY)
            self._options = replace(options, task=replace(options.task, waiting=self._turns))

    def at_once(self, indexes: Iterable[int]) -> int:
        """How many of these items may be under way."""
        return self._parallel if any(self._items[index].keeps_lock for index in indexes) else self._under_way

    def _run_item(self, index: int, options: Options) -> None:
        """:raises NotLocked, NotBegun: as the item does where its batch does not hold the locks that it needs, or not for so long."""
        if self._options.task.meter is not None:
            self._options.task.meter.begin_item()
        try:
            result: transaction.Outcome | errors.StorageError = self._items[index].run(options)
        except (NotLocked, NotBegun):
            raise
        except Exception as error:  # whatever it is, it is this item's, and no other one is to suffer
            result = errors.as_storage_error(error, self._items[index].name)
        self._keep(index, result)

    def _keep(self, index: int, result: transaction.Outcome | errors.StorageError) -> None:
        self.results[index] = result
        change = self._items[index].change
        if change is not None:
            if "capacity" in self._options.task.kept:
                self._options.task.capacity.give_back(change.candidates, change.volume)
            if isinstance(result, errors.StorageError):
                shares = (*change.candidates.shares, *change.candidates.missing)
                self._options.task.failed.update((share.path, change.volume) for share in shares)

    def run(self, indexes: list[int], at_once: int) -> None:
        """Run items, of which ``at_once`` may be under way. Those for which there is no room come last, one after the other: others that
        fail may leave them theirs."""
        touched = frozenset().union(*(self._items[index].touches for index in indexes))
        names = {index: self._items[index].touches | (self._items[index].reads & touched) for index in indexes}
        rows, last = parted(rows_of(names), self._without_room(indexes))

        def run_row(row: list[int]) -> list[int]:
            with self._turns.turn():
                for index in row:
                    self._run_item(index, self._options)
            return []

        self._run_rows(Work(rows, at_once, run_row))
        for index in last:
            run_row([index])

    def _without_room(self, indexes: list[int]) -> frozenset:
        asked = [(index, ask) for index, ask in ((index, self._items[index].asked) for index in indexes) if ask is not None]
        if not self._makes or len(asked) < 2:
            return frozenset()
        from ..reserving import reserve_all  # late: other tasks start faster without

        return reserve_all(asked, self._options)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _run_rows(self, work: Work) -> list[int]:
        """Returns the indexes of items that are left to be run alone."""
        left: list[int] = []

        def done(number: int, remaining: list[int]) -> None:
            left.extend(remaining)
            work.finish(work.rows[number])

        numbers: Sequence[int] = range(len(work.rows))
        copies = processes.how_many(len(numbers), self._parallel)
        if copies > 1 and not (self._makes and self._chooses_later(work)):
            numbers = self._run_in_copies(work, copies, done)
        run_in_threads(work, numbers, work.at_once, done)
        return left

    def _chooses_later(self, work: Work) -> bool:
        """Whether a share is to be chosen for a volume that was promised no room: copies of this process know nothing of each other's
        choices."""
        asking = [self._items[index] for row in work.rows for index in row if self._items[index].asked is not None]
        changes = [item.change for item in asking if item.change is not None]
        return not all(self._options.task.capacity.promised(change.candidates, change.volume) or _is_there(change) for change in changes)

    def _run_in_copies(self, work: Work, copies: int, done: Callable[[int, list[int]], None]) -> list[int]:
        """Returns the numbers of the rows that are still to be run."""
        waiting = set(range(len(work.rows)))
        parts = [range(first, len(work.rows), copies) for first in range(copies)]
        for told in processes.in_copies(parts, partial(self._work_as_copy, work, copies), self._options.task.meter):
            waiting.discard(told.row)
            told.take_over(self._options.task)  # first, so that room of what was made is not given back
            for index, result in told.results.items():
                self._keep(index, result)
            done(told.row, told.left)
        return sorted(waiting)

    def _work_as_copy(self, work: Work, copies: int, part: Sequence[int], send: Callable[[processes.Report], None]) -> None:
        """What a copy of this process does; it waits with nobody but its own threads."""
        self._turns = shared_syncs.SharedSyncs(max(1, self._parallel // copies))
        reporter = processes.Reporter(replace(self._options.task, waiting=self._turns), send)
        self._options = replace(self._options, task=reporter.task)
        work.begin_copy([work.rows[number] for number in part])

        def done(number: int, left: list[int]) -> None:
            row = work.rows[number]
            work.finish(row)
            reporter.report(number, {index: self.results[index] for index in row if index in self.results}, left)

        try:
            run_in_threads(work, part, max(1, work.at_once // copies), done)
        finally:
            end(self._options)  # the original does not know of it

    # -- deletions in batches ----------------------------------------------------------------------------------------

    def delete_in_batches(self, indexes: Iterable[int]) -> list[int]:
        """Run these deletions as far as their locks are free. Returns those that are still to be run alone, in order."""
        left: list[int] = []
        for share, volumes in self._batches(indexes, left):
            volumes = self._not_behind(volumes, left)
            try:
                with (PredictedBatchLocks if self._options.check else BatchLocks)(share, self._options.break_lock) as batch_locks:
                    left += self._delete_batch(volumes, batch_locks)
            except Exception:  # the share fails: each of them will report it
                left += [index for index in volumes if index not in self.results]
        return sorted(set(left))

    def _batches(self, indexes: Iterable[int], left: list[int]) -> Iterator[tuple[model.Share, dict[int, str]]]:
        """Deletions on one share with their volumes, as many as may be locked at once; those that cannot be located go to
        ``left``."""
        by_share: dict[str, tuple[model.Share, list[tuple[int, str]]]] = {}
        for index in indexes:
            deletion = self._items[index].deletion
            share = _share_of(deletion)
            if deletion is None or share is None:
                left.append(index)
            else:
                by_share.setdefault(share.path, (share, []))[1].append((index, deletion.volume))
        for share, found in by_share.values():
            for start in range(0, len(found), _MOST_HELD):
                yield share, dict(found[start : start + _MOST_HELD])

    def _not_behind(self, volumes: dict[int, str], left: list[int]) -> dict[int, str]:
        """Without those that wait for one which is ``left`` to be done later: they go there too."""
        waited_for = set().union(*(self._items[index].touches for index in left))
        kept = {}
        for index, volume in volumes.items():
            if waited_for.isdisjoint(self._items[index].touches):
                kept[index] = volume
            else:
                left.append(index)
                waited_for |= self._items[index].touches
        return kept

    def _delete_batch(self, volumes: dict[int, str], batch_locks: BatchLocks) -> list[int]:
        """Returns the indexes of items that need locks which the batch does not hold, or whose turn did not come in time."""
        families = batch_locks.take(volumes.values())
        left = [index for index, volume in volumes.items() if volume not in families]
        ready = self._not_behind({index: volume for index, volume in volumes.items() if volume in families}, left)
        names = {index: families[volume] for index, volume in ready.items()}
        deadline = batch_locks.until = time.monotonic() + _PATIENCE

        def names_of(row: list[int]) -> set[str]:
            return {name for index in row for name in names[index]}

        def run_row(row: list[int]) -> list[int]:
            held = replace(self._options, task=replace(self._options.task, batch_locks=batch_locks))
            with self._turns.turn(deadline) as mine:
                return row[self._run_held(row, held) if mine else 0 :]

        def give_back(row: list[int]) -> None:
            for name in names_of(row):
                batch_locks.release(name)

        def begin_copy(rows: Sequence[list[int]]) -> None:
            batch_locks.keep_only({name for row in rows for name in names_of(row)})

        with suppress(errors.StorageError, OSError):  # each item will report it
            batch_locks.backings()  # each of them asks: read now, by all processors, and not by each copy of this process
        return left + self._run_rows(Work(rows_of(names), self.at_once(names), run_row, give_back, begin_copy, deadline))

    def _run_held(self, row: list[int], options: Options) -> int:
        """Returns how many were run: where a lock or the time is missing, the rest of the row keeps its place behind that item."""
        for position, index in enumerate(row):
            try:
                self._run_item(index, options)
            except (NotLocked, NotBegun):
                return position
        return len(row)


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _share_of(deletion: Deletion | None) -> model.Share | None:
    if deletion is None or not model.is_safe_file_name(deletion.volume):
        return None
    try:
        return locate(deletion.candidates, deletion.volume)
    except Exception:  # the item itself reports it
        return None
