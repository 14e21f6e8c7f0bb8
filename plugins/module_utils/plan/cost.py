# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge costs: sets of allocated clusters, and the bytes that moving them means.

Deleting snapshots merges adjacent files into one of them, the pivot. Keeping file p in place writes at least
``|union| - |visible(p)|``, where visible(p) are p's clusters that nothing above overwrites; so the pivot with the most
visible clusters is the cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence


@dataclass(frozen=True)
class Allocation:
    """Which clusters of an image are allocated: L1 index → one byte (0 or 1) per L2 entry.

    ``cluster_size`` in bytes and ``per_table`` entries give the geometry; only equal geometries can be compared.
    """

    cluster_size: int
    per_table: int
    tables: Mapping[int, bytes]

    @property
    def bytes(self) -> int:
        return self.cluster_size * sum(table.count(1) for table in self.tables.values())

    def _combined(self, other: Allocation, keep_other: bool) -> Allocation:
        tables = {}
        for index, mine in self.tables.items():
            theirs = other.tables.get(index)
            if theirs is None:
                tables[index] = mine
                continue
            length = max(len(mine), len(theirs))
            a, b = int.from_bytes(mine.ljust(length, b"\0"), "little"), int.from_bytes(theirs.ljust(length, b"\0"), "little")
            tables[index] = (a | b if keep_other else a & ~b).to_bytes(length, "little")
        if keep_other:
            for index, theirs in other.tables.items():
                tables.setdefault(index, theirs)
        return Allocation(self.cluster_size, self.per_table, tables)

    def union(self, other: Allocation) -> Allocation:
        return self._combined(other, keep_other=True)

    def minus(self, other: Allocation) -> Allocation:
        return self._combined(other, keep_other=False)

    def comparable(self, other: Allocation) -> bool:
        return (self.cluster_size, self.per_table) == (other.cluster_size, other.per_table)


Allocations = Mapping[str, Allocation]


def union(files: Sequence[str], known: Allocations) -> Allocation | None:
    """Clusters allocated in any of ``files``; None where one is unknown, or geometries differ."""
    result = None
    for file in files:
        allocation = known.get(file)
        if allocation is None or (result is not None and not result.comparable(allocation)):
            return None
        result = allocation if result is None else result.union(allocation)
    return result


def moved(files: Sequence[str], stay: Sequence[str], known: Allocations) -> int | None:
    """Bytes that are in ``files`` and in none of ``stay``; None where that is unknown."""
    moving = union(files, known)
    staying = union(stay, known) if stay else None
    if moving is None or (stay and (staying is None or not moving.comparable(staying))):
        return None
    return (moving.minus(staying) if staying is not None else moving).bytes
