# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge costs: sets of allocated clusters, and the bytes that are written to move them.

Deleting snapshots merges adjacent files into one of them, the pivot. Keeping file p in place writes at least
``|union| - |visible(p)|``, where visible(p) are p's clusters that nothing above overwrites. Beside the data there are the
table entries that find it. So the pivot is the file for which data and tables together are least. Where qemu-img has to do
it, because an image is not plain, it writes more tables than is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

_ENTRY = 8  # bytes of an L2 table's entry: a table is written from the first one that changes to the last
_SECTOR = 512  # bytes of the header that a pull changes in the end
_ANY = bytes.maketrans(b"\2", b"\1")
_DATA_ALONE = bytes.maketrans(b"\2", b"\0")


@dataclass(frozen=True)
class Allocation:
    """What an image holds of its own: L1 index → one byte per L2 entry, 0 for nothing, 1 for data, 2 for zeros.

    Zeros hide what lies beneath as data does, and take no room. ``cluster_size`` in bytes and ``per_table`` entries give the
    geometry; only equal geometries can be compared.
    """

    cluster_size: int
    per_table: int
    tables: Mapping[int, bytes]

    @property
    def data(self) -> int:
        """Bytes of data clusters."""
        return self.cluster_size * sum(table.count(1) for table in self.tables.values())

    def comparable(self, other: Allocation) -> bool:
        return (self.cluster_size, self.per_table) == (other.cluster_size, other.per_table)

    def over(self, lower: Allocation) -> Allocation:
        """What this image on top of ``lower`` holds together with it."""
        tables = dict(lower.tables)
        for index, mine in self.tables.items():
            tables[index] = _put_over(mine, tables[index]) if index in tables else mine
        return Allocation(self.cluster_size, self.per_table, tables)

    def outside(self, other: Allocation) -> Allocation:
        """What this image holds where ``other`` holds nothing."""
        tables = {index: _cut_out(mine, other.tables[index]) if index in other.tables else mine for index, mine in self.tables.items()}
        return Allocation(self.cluster_size, self.per_table, tables)


def _put_over(upper: bytes, lower: bytes) -> bytes:
    return (_number(upper) | _number(_cut_out(lower, upper))).to_bytes(max(len(upper), len(lower)), "little")


def _cut_out(table: bytes, other: bytes) -> bytes:
    taken = _number(other.translate(_ANY)) * 3  # 3 covers both kinds, and carries nothing into the next byte
    return (_number(table) & ~taken).to_bytes(len(table), "little")


def _number(table: bytes) -> int:
    return int.from_bytes(table, "little")


Allocations = Mapping[str, Allocation]


@dataclass(frozen=True)
class Estimate:
    """Bytes that keeping one file of a group writes: by the commit into it, and by the pull into it."""

    commit: int
    pull: int


def estimates(files: Sequence[str], onto: bool, known: Allocations) -> list[Estimate] | None:
    """For each of the adjacent ``files``, bottom first, what keeping that one costs.

    :param onto: something lies beneath them. None where one of them is unknown, or geometries differ.
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
        result.append(Estimate(commit, _pull(under, shown[index], onto)))
        under = layers[index].over(under)
    return result


def committed_into_raw(files: Sequence[str], known: Allocations) -> int | None:
    """Bytes that a commit of ``files``, bottom first, writes into a raw image: it has no tables, and zeros are holes."""
    merged = stacked(files, known)
    return None if merged is None else merged.data


def pulled(files: Sequence[str], stay: Sequence[str], onto: bool, known: Allocations) -> int | None:
    """Bytes that pulling what ``files`` hold into the top of ``stay`` writes, both bottom first; None where unknown."""
    under, staying = stacked(files, known), stacked(stay, known)
    if under is None or staying is None or not under.comparable(staying):
        return None
    return _pull(under, staying, onto)


def stacked(files: Sequence[str], known: Allocations) -> Allocation | None:
    """What ``files``, bottom first, hold together; None where one is unknown, or geometries differ."""
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
    """Data, and the tables that get other entries. What is overwritten in its place changes no table."""
    new = above.outside(into)
    changed = [table for index, table in above.tables.items() if any(new.tables[index]) or 2 in table]
    return above.data + sum(_span(table) for table in changed)


def _pull(under: Allocation, staying: Allocation, onto: bool) -> int:
    """Data, tables and in the end the header. Zeros are entries of a table where something lies beneath that they hide, and
    nothing where nothing does."""
    moving = under.outside(staying)
    kinds = _ANY if onto else _DATA_ALONE
    return moving.data + sum(_span(table.translate(kinds)) for table in moving.tables.values()) + _SECTOR


def _span(table: bytes) -> int:
    return len(table.strip(b"\0")) * _ENTRY
