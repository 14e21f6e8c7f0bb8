# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge costs: sets of allocated clusters, and the bytes that are written to move them.

Deleting snapshots merges adjacent files into one of them, the pivot. Keeping file p in place writes at least
``|union| - |visible(p)|``. Here visible(p) are the clusters of p that nothing above overwrites. The table entries that find
the data are written too. So the pivot is the file for which data and tables together are least. qemu-img has to do the merge
where an image is not plain. It writes more tables than this estimate says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

_ENTRY = 8  # bytes of an entry of an L2 table. A table is written from the first entry that changes to the last one.
_SECTOR = 512  # bytes of the header, which a pull changes last
_ANY = bytes.maketrans(b"\2", b"\1")  # zeros count as data does
_DATA_ALONE = bytes.maketrans(b"\2", b"\0")  # zeros count as nothing


@dataclass(frozen=True)
class Allocation:
    """What an image itself holds, without its backing files.

    ``tables`` maps an L1 index to one byte for each L2 entry: 0 for nothing, 1 for data, 2 for zeros. Zeros hide what lies
    below, as data does, but take no space. ``cluster_size`` (bytes) and ``per_table`` (entries of a table) are the geometry.
    Only allocations with the same geometry can be compared.
    """

    cluster_size: int
    per_table: int
    tables: Mapping[int, bytes]

    @property
    def data(self) -> int:
        """Bytes of data clusters."""
        return self.cluster_size * sum(table.count(1) for table in self.tables.values())

    def comparable(self, other: Allocation) -> bool:
        """Whether both have the same geometry."""
        return (self.cluster_size, self.per_table) == (other.cluster_size, other.per_table)

    def over(self, lower: Allocation) -> Allocation:
        """What both images hold together when this one lies on ``lower``."""
        tables = dict(lower.tables)
        for index, mine in self.tables.items():
            tables[index] = _put_over(mine, tables[index]) if index in tables else mine
        return Allocation(self.cluster_size, self.per_table, tables)

    def outside(self, other: Allocation) -> Allocation:
        """What this image holds where ``other`` holds nothing."""
        tables = {index: _cut_out(mine, other.tables[index]) if index in other.tables else mine for index, mine in self.tables.items()}
        return Allocation(self.cluster_size, self.per_table, tables)


def _put_over(upper: bytes, lower: bytes) -> bytes:
    """One table from two: each entry of ``upper``, or that of ``lower`` where ``upper`` has none."""
    return (_number(upper) | _number(_cut_out(lower, upper))).to_bytes(max(len(upper), len(lower)), "little")


def _cut_out(table: bytes, other: bytes) -> bytes:
    """The entries of ``table`` where ``other`` has none."""
    taken = _number(other.translate(_ANY)) * 3  # 3 covers both kinds, and carries nothing into the next byte
    return (_number(table) & ~taken).to_bytes(len(table), "little")


def _number(table: bytes) -> int:
    return int.from_bytes(table, "little")


Allocations = Mapping[str, Allocation]  # by file name


@dataclass(frozen=True)
class Estimate:
    """Bytes that are written to keep one file of a group: by the commit into it, and by the pull into it."""

    commit: int
    pull: int


def estimates(files: Sequence[str], has_below: bool, known: Allocations) -> list[Estimate] | None:
    """What it costs to keep each of the adjacent ``files``, bottom first. None where one is unknown, or geometries differ.

    :param has_below: whether another file lies below them.
    """
    layers = _comparable_layers(files, known)
    if layers is None:
        return None
    shown = layers[-1:]  # what files[i:] show together, for each i
    for layer in reversed(layers[:-1]):
        shown.insert(0, shown[0].over(layer))
    result = [Estimate(_commit(shown[1], layers[0]) if len(layers) > 1 else 0, 0)]
    under = layers[0]
    for index in range(1, len(layers)):
        commit = _commit(shown[index + 1], layers[index]) if index + 1 < len(layers) else 0
        result.append(Estimate(commit, _pull(under, shown[index], has_below)))
        under = layers[index].over(under)
    return result


def committed_into_raw(files: Sequence[str], known: Allocations) -> int | None:
    """Bytes that a commit of ``files``, bottom first, writes into a raw image; None where unknown.

    A raw image has no tables, and its zeros are holes.
    """
    merged = stacked(files, known)
    return None if merged is None else merged.data


def pulled(files: Sequence[str], stay: Sequence[str], has_below: bool, known: Allocations) -> int | None:
    """Bytes that are written when what ``files`` hold is pulled into the top of ``stay``; None where unknown.

    :param files: bottom first, as ``stay``. :param has_below: whether another file lies below the files that are pulled.
    """
    under, staying = stacked(files, known), stacked(stay, known)
    if under is None or staying is None or not under.comparable(staying):
        return None
    return _pull(under, staying, has_below)


def stacked(files: Sequence[str], known: Allocations) -> Allocation | None:
    """What ``files``, bottom first, hold together. None where one is unknown, or geometries differ."""
    layers = _comparable_layers(files, known)
    if not layers:
        return None
    merged = layers[0]
    for layer in layers[1:]:
        merged = layer.over(merged)
    return merged


def _comparable_layers(files: Sequence[str], known: Allocations) -> list[Allocation] | None:
    layers = [known[file] for file in files if file in known]
    if len(layers) < len(files) or not all(layer.comparable(layers[0]) for layer in layers):
        return None
    return layers


def _commit(above: Allocation, into: Allocation) -> int:
    """Bytes of data, and of the tables whose entries change. Data that is overwritten in place changes no table."""
    new = above.outside(into)
    changed = [table for index, table in above.tables.items() if any(new.tables[index]) or 2 in table]
    return above.data + sum(_span(table) for table in changed)


def _pull(under: Allocation, staying: Allocation, has_below: bool) -> int:
    """Bytes of data, of tables, and of the header at the end. Zeros become table entries only where a file lies below, whose data
    they must hide."""
    moving = under.outside(staying)
    kinds = _ANY if has_below else _DATA_ALONE
    return moving.data + sum(_span(table.translate(kinds)) for table in moving.tables.values()) + _SECTOR


def _span(table: bytes) -> int:
    """Bytes from the first entry of a table that is used to the last one."""
    return len(table.strip(b"\0")) * _ENTRY
