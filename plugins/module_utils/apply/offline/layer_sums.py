# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of what single files of a chain hold, so that a byte that has changed is found where nothing is left to compare with."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import Sequence

from ... import model
from ...pace import Pace
from ...store.files.directory import ShareDirectory
from . import deltas, viewing
from .deltas import GRAIN
from .viewing import PIECE, Fence

_ZEROS = bytes(GRAIN)


class LayerSum:
    """sha256 of the grains that a file holds, in order: of each its offset (eight bytes, the lowest first), and its bytes unless all are zeros.

    :param is_base: nothing lies below the file, so that zeros are the same as nothing.
    """

    def __init__(self, is_base: bool) -> None:
        self._is_base, self._sum = is_base, hashlib.sha256()

    def add(self, start: int, data: bytes) -> None:
        """Add whole grains. :param start: the offset of the first one in bytes."""
        for offset in range(0, len(data), GRAIN):
            grain = data[offset : offset + GRAIN]
            is_empty = grain == _ZEROS
            if not (is_empty and self._is_base):
                self._sum.update((start + offset).to_bytes(8, "little"))
                self._sum.update(b"" if is_empty else grain)

    def digits(self) -> str:
        """The checksum as hex digits."""
        return self._sum.hexdigest()


def sum_of_layer(directory: ShareDirectory, images: Sequence[model.Image], pace: Pace) -> str | None:
    """See :func:`engine.layer_sum`."""
    below = images[0].backing_file
    with ExitStack() as stack:
        view = stack.enter_context(viewing.opened(directory, images))
        parts = deltas.shown(view) if below is None else deltas.above(stack, directory, images, below)
        if parts is None:
            return None
        found, fence = LayerSum(below is None), Fence(lambda: directory.verify(images[0].file))
        for start, stop in deltas.pieces(parts, PIECE):
            found.add(start, deltas.read(view, start, stop))
            pace.moved(stop - start)
            fence.passed(stop - start)
    return found.digits()
