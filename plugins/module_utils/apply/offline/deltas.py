# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which parts of a disk may differ from a point that lies below: what the tables of the layers above it say."""

from __future__ import annotations

import heapq
from contextlib import ExitStack
from typing import Iterable, Iterator, Sequence, Tuple

from ... import model
from ...store.qcow2 import Qcow2Error, clusters
from .. import engine
from . import moving, viewing

Part = Tuple[int, int]  # of a disk: its begin and its end in bytes

GRAIN = 64 << 10  # bytes: parts begin and end at multiples of it


def above(stack: ExitStack, directory: engine.Readable, images: Sequence[model.Image], known: str | None) -> Iterator[Part] | None:
    """The parts, in order, in which the layers above the file ``known`` hold data or zeros. None: the tables cannot tell, so that all may
    differ. They are read while the parts are.

    :param images: a chain, top first. :raises InUse: somebody writes to one of them.
    """
    files = [image.file for image in images]
    if known is None or known not in files:
        return None
    position = files.index(known)
    sizes = [image.size for image in images[: position + 1]]
    if sizes != sorted(sizes, reverse=True):
        return None  # no table says what a shorter file hides
    try:
        layers = moving.open_layers(stack, directory, images[:position])
        for layer in layers:
            for index in layer.indices():
                for _run in layer.runs(index):
                    pass
    except Qcow2Error:
        return None
    return _grains(heapq.merge(*(_parts(layer) for layer in layers if isinstance(layer, clusters.QcowLayer))))


def _parts(layer: clusters.QcowLayer) -> Iterator[Part]:
    covered = layer.cluster_size * (layer.cluster_size // 8)
    for index in sorted(layer.indices()):
        for run in layer.runs(index):
            start = index * covered + run.position * layer.cluster_size
            yield start, min(layer.size, start + run.clusters * layer.cluster_size)


def shown(view: viewing.View) -> Iterator[Part]:
    """The parts in which a disk may have other bytes than zeros."""
    return _grains(view.data(0, view.size))


def joined(*sides: Iterable[Part]) -> Iterator[Part]:
    """The parts of several sides together, in order."""
    return _grains(heapq.merge(*sides))


def _grains(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts, rounded to whole grains and joined where they touch."""
    last: Part | None = None
    for start, stop in parts:
        start, stop = start // GRAIN * GRAIN, -(-stop // GRAIN) * GRAIN
        if last is not None and start <= last[1]:
            last = last[0], max(last[1], stop)
            continue
        if last is not None:
            yield last
        last = start, stop
    if last is not None:
        yield last


def pieces(parts: Iterable[Part], most: int, within: int = 1 << 62) -> Iterator[Part]:
    """The same parts in pieces of at most ``most`` bytes. No piece goes beyond a multiple of ``within``."""
    for start, stop in parts:
        while start < stop:
            end = min(stop, start + most, (start // within + 1) * within)
            yield start, end
            start = end


def read(view: viewing.View, start: int, stop: int) -> bytes:
    """The bytes of a disk from ``start`` to ``stop``. Behind its end there are zeros."""
    within = min(stop, view.size)
    data = view.read(start, within - start) if within > start else b""
    return data if len(data) == stop - start else data.ljust(stop - start, b"\0")
