# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two points show the same. Only the parts are read in which they can differ."""

from __future__ import annotations

from contextlib import ExitStack

from ...pace import Pace
from .. import engine
from . import deltas, viewing
from .viewing import PIECE, Fence, View


def first_difference(one: engine.Side, other: engine.Side, pace: Pace) -> engine.Difference | None:
    """See :func:`engine.difference`."""
    offset = _first_offset(one, other, pace)
    return None if offset is None else engine.Difference(offset, (_holder(one, offset), _holder(other, offset)))


def _holder(side: engine.Side, offset: int) -> str:
    """The topmost file that holds a byte, or hides it; the lowest one where none does. Where the tables do not tell, what lies above them."""
    for at, image in enumerate(side.images):
        with ExitStack() as stack:
            parts = deltas.above(stack, side.directory, side.images[at:], image.backing_file)
            if parts is None or any(start <= offset < stop for start, stop in parts):
                return image.file
    return side.images[-1].file


def _first_offset(one: engine.Side, other: engine.Side, pace: Pace) -> int | None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(viewing.opened(side.directory, side.images)) for side in (one, other))
        if first.size != second.size:
            return min(first.size, second.size)
        parts = [deltas.above(stack, side.directory, side.images, side.known) for side in (one, other)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            known = [deltas.shown(first), deltas.shown(second)]
        fence = Fence(lambda: _verify(one, other))
        for start, stop in deltas.pieces(deltas.joined(*known), PIECE):
            found = _differs(first, second, start, min(stop, first.size))
            if found is not None:
                return found
            pace.moved(stop - start)
            fence.passed(stop - start)
        _verify(one, other)
    return None


def _verify(*sides: engine.Side) -> None:
    for side in sides:
        side.directory.verify(side.images[0].file)


def _differs(first: View, second: View, start: int, stop: int) -> int | None:
    one, other = deltas.read(first, start, stop), deltas.read(second, start, stop)
    if one == other:
        return None
    return start + next(offset for offset in range(stop - start) if one[offset] != other[offset])
