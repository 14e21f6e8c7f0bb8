# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads ISO 9660 images, strictly: each number in both byte orders, each extent inside and apart from the others. Shares no code with the writer."""

from __future__ import annotations

from typing import NamedTuple

SECTOR = 2048


class Parsed(NamedTuple):
    """Files by name, in the primary tree and in that of Joliet; the labels of both."""

    plain: dict[str, bytes]
    joliet: dict[str, bytes]
    labels: tuple[str, str]


def both(data: bytes, at: int, width: int) -> int:
    little, big = int.from_bytes(data[at : at + width], "little"), int.from_bytes(data[at + width : at + 2 * width], "big")
    assert little == big, f"{little} and {big} at {at}"
    return little


def parsed(image: bytes) -> Parsed:
    assert not len(image) % SECTOR and not any(image[: 16 * SECTOR])
    sectors = [image[at : at + SECTOR] for at in range(0, len(image), SECTOR)]
    assert [sector[0] for sector in sectors[16:19]] == [1, 2, 255]
    for descriptor in sectors[16:19]:
        assert descriptor[1:7] == b"CD001\1"
    assert sectors[17][88:91] == b"%/E" and not any(sectors[16][88:120])
    trees, taken = [], {*range(19)}
    for descriptor in sectors[16:18]:
        assert (both(descriptor, 80, 4), both(descriptor, 120, 2), both(descriptor, 124, 2), both(descriptor, 128, 2)) == (len(sectors), 1, 1, SECTOR)
        assert descriptor[881] == 1 and not any(descriptor[882:])
        root = record(descriptor, 156)
        assert root.length == SECTOR and root.flags == 2 and descriptor[156] == 34
        tables = (int.from_bytes(descriptor[140:144], "little"), int.from_bytes(descriptor[148:152], "big"))
        assert both(descriptor, 132, 4) == 10
        for order, table in zip(("little", "big"), tables):
            entry = sectors[table]
            assert (entry[0], int.from_bytes(entry[2:6], order), int.from_bytes(entry[6:8], order)) == (1, root.sector, 1)  # type: ignore[arg-type]
        assert not taken & {root.sector, *tables}
        taken |= {root.sector, *tables}
        trees.append(listed(sectors[root.sector], root.sector))
    places = [[(one.sector, one.length) for one in sorted(tree, key=lambda one: (one.sector, one.length))] for tree in trees]
    assert places[0] == places[1], "both trees name the same bytes"
    for sector, length in places[0]:
        mine = set(range(sector, sector + -(-length // SECTOR)))
        assert not mine & taken and sector < len(sectors) and max(mine, default=0) < len(sectors)
        taken |= mine
    plain, joliet = ({one.name: image[one.sector * SECTOR :][: one.length] for one in tree} for tree in trees)
    labels = sectors[16][40:72].decode("ascii").rstrip(), sectors[17][40:72].decode("utf-16-be").rstrip()
    return Parsed({name.decode("ascii"): data for name, data in plain.items()}, {name.decode("utf-16-be"): data for name, data in joliet.items()}, labels)


class Record(NamedTuple):
    name: bytes
    sector: int
    length: int
    flags: int
    size: int


def record(data: bytes, at: int) -> Record:
    size, letters = data[at], data[at + 32]
    assert size % 2 == 0 and size == 33 + letters + (letters + 1) % 2 and both(data, at + 28, 2) == 1 and not data[at + 1]
    return Record(data[at + 33 : at + 33 + letters], both(data, at + 2, 4), both(data, at + 10, 4), data[at + 25], size)


def listed(directory: bytes, itself: int) -> list[Record]:
    found, at = [], 0
    while at < SECTOR and directory[at]:
        found.append(record(directory, at))
        at += found[-1].size
    assert not any(directory[at:])
    assert [(one.name, one.sector, one.flags) for one in found[:2]] == [(b"\0", itself, 2), (b"\1", itself, 2)]
    files = found[2:]
    assert [one.name for one in files] == sorted(one.name for one in files) and not any(one.flags for one in files)
    return files
