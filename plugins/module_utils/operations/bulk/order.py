# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of items that depend on each other: a source before its clones, a volume's removal after that of what rests on it."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Iterable, NamedTuple, Sequence

from ...errors import StorageError
from ...store.files.directory import ShareDirectory
from ...store.volumes import ownership
from ..candidates import Candidates, locate

if TYPE_CHECKING:
    from .runner import Item


class Change(NamedTuple):
    """What an item does to its volume, as far as others depend on it: whether that goes (``absent``), what it is made from
    (``source``, a volume on one of ``source_candidates``), and whether it is cut loose from that (``flatten``)."""

    candidates: Candidates
    volume: str
    absent: bool = False
    source: str | None = None
    flatten: bool = False
    source_candidates: Candidates | None = None

    def is_made_from(self, other: Change) -> bool:
        """Whether another item's volume may be the source of this one."""
        if self.source is None or self.absent or self.source != other.volume:
            return False
        return bool(_places(self.source_candidates or self.candidates) & _places(other.candidates))


def _places(candidates: Candidates) -> set[str]:
    return {share.path for share in (*candidates.shares, *candidates.missing)}


def arrange(items: Sequence[Item]) -> tuple[list[int], dict[int, frozenset]]:
    """(indexes in the order that works, names by index that an item has to share with those that it waits for).

    The order asked for stays where nothing depends on anything, and where the dependencies go round in a circle.
    """
    changes = {index: item.change for index, item in enumerate(items) if item.change is not None}
    edges = _edges(changes)
    if not edges:
        return list(range(len(items))), {}
    names: dict[int, set[str]] = {}
    for first, then in edges:
        names.setdefault(then, set()).add(changes[first].volume)
    return _sorted(len(items), edges | _as_asked(changes)), {index: frozenset(found) for index, found in names.items()}


def _as_asked(changes: dict[int, Change]) -> set[tuple[int, int]]:
    """Pairs that are in order as they are and have to stay so when others move: items of one volume, a source and its clone."""
    by_volume = _by_volume(changes)
    pairs = {pair for indexes in by_volume.values() for pair in zip(indexes, indexes[1:])}
    for index, change in changes.items():
        others = by_volume.get(change.source or "", [])
        pairs |= {(other, index) for other in others if other < index and not changes[other].absent and change.is_made_from(changes[other])}
    return pairs


def _by_volume(changes: dict[int, Change]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, change in changes.items():
        found.setdefault(change.volume, []).append(index)
    return found


def _edges(changes: dict[int, Change]) -> set[tuple[int, int]]:
    """Pairs of indexes: the first must be done before the second."""
    by_volume = _by_volume(changes)
    edges = set()
    for index, change in changes.items():
        others = [other for other in by_volume.get(change.source or "", []) if change.is_made_from(changes[other])]
        if others and (change.source != change.volume or change.source_candidates is not None):
            edges |= _after_its_source(index, change, others, changes)
    for index, volume, ancestors in _families(changes):
        edges |= {(index, other) for name in ancestors - {volume} for other in by_volume.get(name, []) if changes[other].absent}
    return edges


def _after_its_source(index: int, change: Change, others: Iterable[int], changes: dict[int, Change]) -> set[tuple[int, int]]:
    """A clone is made once its source stands, and before that goes."""
    before = [other for other in others if other < index]
    made_later = [other for other in others if other > index and not changes[other].absent]
    if before and not changes[before[-1]].absent:
        return set()
    if before and not made_later:
        return {(index, before[-1])}
    if made_later and (before or not _is_there(change.source_candidates or change.candidates, str(change.source))):
        return {(made_later[0], index)}
    return set()


def _families(changes: dict[int, Change]) -> Iterable[tuple[int, str, set[str]]]:
    """(index, volume, what it rests on) of items after which their volume rests on nothing any more, where others may go too."""
    going = {change.volume for change in changes.values() if change.absent}
    for index, change in changes.items():
        if not (change.absent or change.flatten) or going <= {change.volume}:
            continue
        try:
            share = locate(change.candidates, change.volume)
            if share is not None:
                with ShareDirectory(share) as directory:
                    yield index, change.volume, ownership.ancestors_of(directory, change.volume)
        except (OSError, StorageError):
            continue  # the item itself reports it


def _is_there(candidates: Candidates, name: str) -> bool:
    try:
        return locate(candidates, name) is not None
    except StorageError:
        return False


def _sorted(count: int, edges: set[tuple[int, int]]) -> list[int]:
    """All indexes, each behind those that it waits for and otherwise as early as it was; those in a circle as they were."""
    waiting = dict.fromkeys(range(count), 0)
    behind: dict[int, list[int]] = {}
    for first, then in edges:
        waiting[then] += 1
        behind.setdefault(first, []).append(then)
    ready = [index for index, number in waiting.items() if not number]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for then in behind.get(index, []):
            waiting[then] -= 1
            if not waiting[then]:
                heapq.heappush(ready, then)
    done = set(order)
    return order + [index for index in range(count) if index not in done]
