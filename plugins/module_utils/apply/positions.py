# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes of a merge have moved when a job of QEMU's is at some position of the disk.

QEMU's merge jobs tell how far they are on the disk, and pass what holds no data at once. A disk of a terabyte with its data at the
end would be done in a second, and then wait for hours. So a position is turned into the bytes of data before it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Callable, Sequence

from .. import errors, model
from ..plan import cost
from ..store import qcow2
from ..store.files.directory import ShareDirectory

if TYPE_CHECKING:
    from .. import progress

Tell = Callable[[object, object], None]  # is told what has been done, of how much
_SHORT = 1.0  # seconds after which a merge is long enough to read its tables for this


def telling(directory: ShareDirectory, part: progress.Part | None, layers: Sequence[model.Image], above: model.Image | None = None) -> Tell | None:
    """Who is told how far a job is; None if nobody watches.

    :param layers: as of :class:`Positions`. Without any, the job tells bytes that have moved. :param above: as there.
    """
    if part is None:
        return None
    return Positions(directory, layers, part.tell, above) if layers else part.tell


class Data:
    """The bytes of data in front of each position of a disk."""

    def __init__(self, allocation: cost.Allocation) -> None:
        self._allocation = allocation
        self._indexes = sorted(allocation.tables)
        counts = (allocation.cluster_size * allocation.tables[index].count(1) for index in self._indexes)
        self._sums = [0, *accumulate(counts)]  # in front of each table, and behind the last one

    @property
    def total(self) -> int:
        """Bytes of data of the disk."""
        return self._sums[-1]

    def before(self, position: int) -> int:
        """Bytes of data in clusters that lie in front of a position, given in bytes."""
        allocation = self._allocation
        index, entry = divmod(position // allocation.cluster_size, allocation.per_table)
        place = bisect_right(self._indexes, index) - 1
        if place < 0:
            return 0
        if self._indexes[place] < index:
            return self._sums[place + 1]
        return self._sums[place] + allocation.cluster_size * allocation.tables[index].count(1, 0, entry)


class Positions:
    """What a job tells of itself, told to ``tell`` as bytes that have moved and bytes that are to move.

    Nothing is told in the first second, and nothing is read for it. Where the tables do not say where the data lies (a raw image is among
    the layers, or a table is too large to be read for this), positions are told as they are.

    :param layers: the images whose data moves, the upper ones first. None of them changes meanwhile.
    :param above: the image that it moves to, if that rests on them: what it holds itself hides theirs, and does not move.
    """

    def __init__(self, directory: ShareDirectory, layers: Sequence[model.Image], tell: Tell, above: model.Image | None = None) -> None:
        self._directory, self._layers, self._tell, self._above = directory, layers, tell, above
        self._begin = time.monotonic()
        self._data: Data | None = None
        self._is_read = False

    def __call__(self, position: object, end: object) -> None:
        """:param position: bytes from the beginning of the disk that the job has passed, of ``end``. Anything else is not told."""
        if time.monotonic() - self._begin < _SHORT or not (isinstance(position, int) and isinstance(end, int) and 0 <= position <= end):
            return
        if not self._is_read:
            self._data, self._is_read = self._read(), True
        if self._data is None or position == end:
            self._tell(position, end)
        else:
            self._tell(self._data.before(position), self._data.total)

    def _read(self) -> Data | None:
        known = {}
        try:
            for image in (*self._layers, *([self._above] if self._above is not None else [])):
                with self._directory.root.opened(image.file) as fd:
                    header = qcow2.read_header(fd)
                    tables = qcow2.allocation(fd, header)
                if tables is not None:
                    known[image.file] = cost.Allocation(header.cluster_size, header.l2_entries, tables)
        except (errors.StorageError, qcow2.Qcow2Error, OSError):
            return None  # it is only a figure for people: the merge itself finds what is wrong
        merged = cost.stacked([image.file for image in reversed(self._layers)], known)
        hiding = known.get(self._above.file) if self._above is not None else None
        if merged is not None and hiding is not None and merged.comparable(hiding):
            merged = merged.outside(hiding)
        return Data(merged) if merged is not None and merged.data else None
