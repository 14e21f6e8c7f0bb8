# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2 images with clusters of 512 bytes, made and judged without the code that is to be tested: "Host cluster management" in QEMU's docs/interop/qcow2."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Mapping, NamedTuple

CLUSTER = 512
PER_TABLE = CLUSTER // 8
PER_BLOCK = CLUSTER // 2
COPIED, OFFSET, READS_ZERO = 1 << 63, 0x00FFFFFFFFFFFE00, 1
ZEROS, KEPT = "zeros", "zeros that kept their cluster"
_EXTENSIONS_END = bytes(8)


class Corrupt(AssertionError):
    """Something is used and not counted, or used twice."""


def make(
    path: Path,
    clusters: int,
    holds: Mapping[int, object] | None = None,
    *,
    version: int = 3,
    l1_entries: int | None = None,
    table_clusters: int = 1,
    backing: bytes = b"",
) -> None:
    """Write an image of ``clusters`` guest clusters.

    :param holds: guest cluster → the value of all its bytes, ZEROS or KEPT.
    :param table_clusters: the length of the table of counts. :param backing: the name of a file beneath.
    """
    holds = holds or {}
    l1_entries = -(-clusters // PER_TABLE) if l1_entries is None else l1_entries
    indices = sorted({guest // PER_TABLE for guest in holds})
    l1_at = 1 + table_clusters
    tables = {index: l1_at + -(-l1_entries * 8 // CLUSTER) + number for number, index in enumerate(indices)}
    following = l1_at + -(-l1_entries * 8 // CLUSTER) + len(tables)
    data = {guest: following + number for number, guest in enumerate(guest for guest, what in holds.items() if what != ZEROS)}
    used = following + len(data)
    blocks = 1
    while blocks * PER_BLOCK < used + blocks:
        blocks += 1
    content = bytearray((used + blocks) * CLUSTER)
    name_at = (104 if version == 3 else 72) + len(_EXTENSIONS_END) if backing else 0
    fields = [b"QFI\xfb", version, name_at, len(backing), 9, clusters * CLUSTER, 0, l1_entries, l1_at * CLUSTER, CLUSTER, table_clusters, 0, 0]
    header = struct.pack(">4sIQIIQIIQQIIQ", *fields) + (struct.pack(">QQQII", 0, 0, 0, 4, 104) if version == 3 else b"") + _EXTENSIONS_END + backing
    content[: len(header)] = header
    for number in range(blocks):
        struct.pack_into(">Q", content, CLUSTER + number * 8, (used + number) * CLUSTER)
    struct.pack_into(f">{used + blocks}H", content, used * CLUSTER, *([1] * (used + blocks)))
    for index, number in tables.items():
        struct.pack_into(">Q", content, l1_at * CLUSTER + index * 8, COPIED | number * CLUSTER)
    for guest, what in holds.items():
        entry = COPIED | data[guest] * CLUSTER if guest in data else 0
        entry |= READS_ZERO if what in (ZEROS, KEPT) else 0
        struct.pack_into(">Q", content, tables[guest // PER_TABLE] * CLUSTER + guest % PER_TABLE * 8, entry)
        if guest in data:
            value = what if isinstance(what, int) else 255  # what was there before
            content[data[guest] * CLUSTER : (data[guest] + 1) * CLUSTER] = bytes([value]) * CLUSTER
    path.write_bytes(bytes(content))


class Judged(NamedTuple):
    """What an image has. ``shows``: guest cluster → value of its bytes, ZEROS, or None where a file beneath shows through.
    ``leaks``: clusters that are counted and not used. ``entries``: guest cluster → L2 entry. ``counts``: cluster → count, if not 0.
    ``tables``: L1 index → cluster of the L2 table."""

    shows: dict[int, object]
    leaks: set[int]
    entries: dict[int, int]
    counts: dict[int, int]
    tables: dict[int, int]


def judge(content: bytes, strictly: bool = True) -> Judged:
    """What QEMU would see. :raises Corrupt: it would say that the image is corrupt, and ``strictly`` is true."""

    def require(holds: bool, what: str) -> None:
        if strictly and not holds:
            raise Corrupt(what)

    _magic, _version, _at, _length, _bits, size, _crypt, l1_entries, l1_at, table_at, table_clusters = struct.unpack_from(">4sIQIIQIIQQI", content)
    content = content.ljust(len(content) + CLUSTER * 64, b"\0")  # behind the end there are zeros

    def number(offset: int) -> int:
        return struct.unpack_from(">Q", content.ljust(offset + 8, b"\0"), offset)[0]

    uses: Counter[int] = Counter([0])
    uses.update(range(l1_at // CLUSTER, -(-(l1_at + l1_entries * 8) // CLUSTER)))
    uses.update(range(table_at // CLUSTER, table_at // CLUSTER + table_clusters))
    counts: dict[int, int] = {}
    for block in range(table_clusters * PER_TABLE):
        offset = number(table_at + block * 8)
        if offset:
            uses[offset // CLUSTER] += 1
            for position, count in enumerate(struct.unpack(f">{PER_BLOCK}H", content[offset : offset + CLUSTER].ljust(CLUSTER, b"\0"))):
                if count:
                    counts[block * PER_BLOCK + position] = count
    shows: dict[int, object] = dict.fromkeys(range(size // CLUSTER))
    entries, tables = {}, {}
    for index in range(l1_entries):
        entry = number(l1_at + index * 8)
        if not entry & OFFSET:
            continue
        tables[index] = (entry & OFFSET) // CLUSTER
        uses[tables[index]] += 1
        require(bool(entry & COPIED), f"the table {index} is not its own")
        for position in range(PER_TABLE):
            guest, found = index * PER_TABLE + position, number((entry & OFFSET) + position * 8)
            entries[guest] = found
            cluster = (found & OFFSET) // CLUSTER
            if cluster:
                uses[cluster] += 1
                require(bool(found & COPIED), f"the cluster of {guest} is not its own")
            if found & READS_ZERO:
                shows[guest] = ZEROS
            elif cluster:
                values = set(content[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(1, b"\0"))
                shows[guest] = values.pop() if len(values) == 1 else values
    for cluster, times in uses.items():
        require(times == 1, f"cluster {cluster} has {times} uses")
        require(counts.get(cluster, 0) == 1, f"cluster {cluster} is used and counted {counts.get(cluster, 0)} times")
    return Judged(shows, set(counts) - set(uses), {guest: entry for guest, entry in entries.items() if entry}, counts, tables)


def patch(path: Path, offset: int, data: bytes) -> None:
    """Change some bytes."""
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def offset_of_entry(path: Path, guest: int) -> int:
    """Where the L2 entry of a guest cluster is in the file. Its table has to be there."""
    return judge(path.read_bytes(), False).tables[guest // PER_TABLE] * CLUSTER + guest % PER_TABLE * 8


def set_entry(path: Path, guest: int, entry: int) -> None:
    """Change the L2 entry of a guest cluster."""
    patch(path, offset_of_entry(path, guest), struct.pack(">Q", entry))
