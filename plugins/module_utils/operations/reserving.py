# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The room of all volumes that a task makes, promised in the order of its items before any of them begins.

So which of them are made, and where, does not depend on how many work at a time, and check mode tells the same. What is seen here
is seen without locks: each item looks again under its own, and what was promised to it only holds if it finds the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Callable, NamedTuple, Sequence

from .. import errors, model
from ..store.files import directory
from ..store.volumes import chains
from . import candidates, placement, updating
from .capacity import Demand
from .options import Options

Asked = Sequence["tuple[int, Callable[[], updating.VolumeRequest]]"]


class _Seen(NamedTuple):
    """A source: where it is, the size of what is cloned, and the bytes that this takes on the share."""

    share: model.Share
    size: int
    allocated: int


def reserve_all(asked: Asked, options: Options) -> frozenset:
    """Promise room to those of these items (index, what it asks for) that make a volume. Returns the indexes of those for which there
    is none. An item about which something cannot be read, or that asks for nonsense, gets nothing here: it fails by itself later."""
    with ExitStack() as stack:
        view = _View(stack, options)
        requests = [(index, request) for index, request in ((index, _understood(ask, options)) for index, ask in asked) if request is not None]
        if not any(view.where(request) is None for _index, request in requests):
            return frozenset()  # the usual case: all are there, and nothing more has to be read
        touched = {share.path: share for _index, request in requests for share in request.candidates.shares if view.where(request) is None}
        names, refused, without = {request.desired.name for _index, request in requests}, set(), set()
        with options.task.capacity.lock:
            if not options.check:
                _look_again(touched, options)
            for index, request in requests:
                try:
                    if request.desired.name not in refused and _is_decided_here(request, view, names):
                        _reserve(request, view, options, touched)
                except errors.NoEligibleShare:
                    without.add(index)
                    refused.add(request.desired.name)
                except (errors.StorageError, OSError, ValueError):
                    continue  # the item itself reports it
        return frozenset(without)


def _is_decided_here(request: updating.VolumeRequest, view: _View, names: set[str]) -> bool:
    """Whether nothing is missing of this task: a clone whose source finds no room must wait for that."""
    return request.source is None or request.source.volume not in names or view.source(request) is not None


def _look_again(shares: dict[str, model.Share], options: Options) -> None:
    for share in shares.values():
        try:
            options.task.capacity.look_again([share])
        except OSError:
            continue


def _understood(ask: Callable[[], updating.VolumeRequest], options: Options) -> updating.VolumeRequest | None:
    """A request on candidates of which all that could have its volume can be read; None where there is nothing to be decided."""
    try:
        request = ask()
        model.check_volume_name(request.desired.name)
    except Exception:  # whatever it is, the item itself reports it
        return None
    there = request.candidates
    left = [error for error in there.unreadable if error not in there.excused] if options.assume else there.unreadable
    if left or not there.shares:
        return None
    return request._replace(candidates=candidates.Candidates(there.shares))


def _reserve(request: updating.VolumeRequest, view: _View, options: Options, touched: dict[str, model.Share]) -> None:
    """:raises NoEligibleShare: there is no room."""
    name, capacity, where = request.desired.name, options.task.capacity, view.where(request)
    if where is not None:
        if request.desired.size is not None and where.path in touched and capacity.promised(request.candidates, name) is None:
            size = capacity.size_of(where, name)
            if size is not None and request.desired.size > size:
                capacity.promise(request.candidates, where, name, Demand(request.desired.size), new=False)
        return
    source = None if request.source is None else view.source(request)
    if request.source is None or (source is None and options.assume):
        wanted = placement.demand(request.desired)
        if request.source is None and not wanted.size:
            return  # it has no size, and fails for that later
        placement.reserve(name, request.candidates, request.candidates, wanted, request.policy, capacity)
    elif source is not None:
        able = request.candidates._replace(shares=(source.share,)) if request.source.linked else request.candidates
        wanted = placement.demand_of_clone(request.desired, request.source.linked, source.share, source.size, source.allocated, able)
        placement.reserve(name, request.candidates, able, wanted, request.policy, capacity)


class _View:
    """What is on the shares, with what check mode and earlier promises add."""

    def __init__(self, stack: ExitStack, options: Options) -> None:
        self._stack = stack
        self._options = options
        self._directories: dict[str, directory.ShareDirectory] = {}
        self._there: dict[tuple[str, str], bool] = {}
        self._sources: dict[tuple, _Seen] = {}

    def where(self, request: updating.VolumeRequest) -> model.Share | None:
        """Where the volume is, or will be by then."""
        return next((share for share in request.candidates.shares if self._has(share, request.desired.name)), None)

    def _has(self, share: model.Share, name: str) -> bool:
        key = (share.path, name)
        if self._options.task.capacity.standing(share, name) is not None:
            return True
        if key in self._options.task.predicted:
            return self._options.task.predicted[key] is not None
        if key not in self._there:
            try:
                self._there[key] = chains.exists(self._directory(share), name)
            except (errors.StorageError, OSError):
                return True  # nothing is decided about it here
        return self._there[key]

    def _directory(self, share: model.Share) -> directory.ShareDirectory:
        if share.path not in self._directories:
            self._directories[share.path] = self._stack.enter_context(directory.ShareDirectory(share))
        return self._directories[share.path]

    def source(self, request: updating.VolumeRequest) -> _Seen | None:
        """What a clone is made from; None where it is not there. :raises StorageError: it cannot be read."""
        source = request.source
        if source is None:
            return None
        share = next((share for share in request.source_candidates.shares if self._has(share, source.volume)), None)
        if share is None:
            return None
        claim = self._options.task.capacity.standing(share, source.volume)
        if claim is not None and claim.new:
            return _Seen(share, claim.demand.size, claim.demand.at_once)
        key = (share.path, source.volume, source.snapshot)
        if key not in self._sources:
            self._sources[key] = self._look(share, source.volume, source.snapshot)
        seen = self._sources[key]
        grown = source.snapshot is None and claim is not None
        return seen._replace(size=max(seen.size, claim.demand.size)) if grown and claim is not None else seen

    def _look(self, share: model.Share, name: str, snapshot: str | None) -> _Seen:
        volume: model.Volume | None = self._options.task.predicted.get((share.path, name))
        if volume is None:
            observed = chains.observe(self._directory(share), name)
            volume = observed.volume if observed else None
        if volume is None:
            raise errors.VolumeNotFound(f"source volume {name}", "it went away while the task ran", "run the task again")
        known = snapshot is not None and volume.has_snapshot(snapshot)
        images = volume.view(volume.point_file(str(snapshot)) if known else volume.active.file)
        return _Seen(share, images[0].size, sum(image.allocated for image in images))
