# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of items that depend on each other: a source before its clones, a volume's removal after that of what rests on it."""

from __future__ import annotations

import heapq
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Iterable, NamedTuple, Sequence, Tuple

from ... import errors
from ...store.files.directory import ShareDirectory
from ...store.volumes import ownership
from ..candidates import Candidates, locate

if TYPE_CHECKING:
    from . import runner


Place = Tuple[str, str]  # a directory, and the name of a volume there


class Change(NamedTuple):
    """What an item does to its volume, as far as others depend on it: whether that goes (``absent``), what it is made from
    (``source``, a volume, which is on one of ``source_candidates`` if these are given), and whether it is cut loose from that
    (``flatten``). It may move from one of the shares ``left``."""

    candidates: Candidates
    volume: str
    absent: bool = False
    source: str | None = None
    flatten: bool = False
    source_candidates: Candidates | None = None
    left: Candidates | None = None

    @property
    def places_left(self) -> set[Place]:
        """Where its volume is no longer, once it has moved."""
        return set() if self.left is None else _places(self.left, self.volume)

    @property
    def places(self) -> set[Place]:
        """Where its volume may be."""
        return _places(self.candidates, self.volume)

    @property
    def sources(self) -> set[Place]:
        """Where what its volume is made from may be; empty where that is nothing, or may be the volume itself."""
        if self.source is None or self.absent:
            return set()
        found = _places(self.source_candidates or self.candidates, self.source)
        return set() if found & self.places else found


def _places(candidates: Candidates, name: str) -> set[Place]:
    return {(_directory(share.path, share.local), name) for share in (*candidates.shares, *candidates.missing)}


@lru_cache(maxsize=64)
def _directory(path: str, local: bool) -> str:
    """A directory of this host is known by any of its names; a server is not asked."""
    return os.path.realpath(path) if local else path


def arrange(items: Sequence[runner.Item]) -> tuple[list[int], dict[int, frozenset]]:
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
    by_place = _by_place(changes)
    pairs = {pair for indexes in by_place.values() for pair in zip(indexes, indexes[1:])}
    for index, change in changes.items():
        pairs |= {(other, index) for other in _at(change.sources, by_place) if other < index and not changes[other].absent}
    return pairs


def _by_place(changes: dict[int, Change]) -> dict[Place, list[int]]:
    found: dict[Place, list[int]] = {}
    for index, change in changes.items():
        for place in change.places:
            found.setdefault(place, []).append(index)
    return found


def _at(places: set[Place], by_place: dict[Place, list[int]]) -> list[int]:
    """The items of volumes that may be at one of these places, in the order asked for."""
    return sorted({index for place in places for index in by_place.get(place, [])})


def _edges(changes: dict[int, Change]) -> set[tuple[int, int]]:
    """Pairs of indexes: the first must be done before the second."""
    if not any(change.absent or change.source for change in changes.values()):
        return set()  # the usual case
    by_place = _by_place(changes)
    edges = set()
    for index, change in changes.items():
        edges |= _after_its_source(index, change, _at(change.sources, by_place), changes)
        edges |= {(index, other) for other, moved in changes.items() if other != index and change.sources & moved.places_left}
    for index, places in _families(changes):
        edges |= {(index, other) for other in _at(places, by_place) if changes[other].absent and other != index}
    return edges


def _after_its_source(index: int, change: Change, others: Sequence[int], changes: dict[int, Change]) -> set[tuple[int, int]]:
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


def _families(changes: dict[int, Change]) -> Iterable[tuple[int, set[Place]]]:
    """(index, where what its volume rests on is) of items after which their volume rests on nothing any more, where others may go too."""
    going = {change.volume for change in changes.values() if change.absent}
    for index, change in changes.items():
        if not (change.absent or change.flatten) or going <= {change.volume}:
            continue
        try:
            share = locate(change.candidates, change.volume)
            if share is not None:
                with ShareDirectory(share) as directory:
                    ancestors = ownership.ancestors_of(directory, change.volume) - {change.volume}
                there = change.candidates._replace(shares=(share,), missing=())
                yield index, {place for name in ancestors for place in _places(there, name)}
        except (OSError, errors.StorageError):
            continue  # the item itself reports it


def _is_there(candidates: Candidates, name: str) -> bool:
    try:
        return locate(candidates, name) is not None
    except errors.StorageError:
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
